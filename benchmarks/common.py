"""What the benchmarks share: a model to measure with, processes of their own, peak memory, tables and
pictures; no benchmark by itself."""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import mean, median, stdev
from time import perf_counter

NUMBERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
SHAPES = {"33m": dict(zip(NUMBERS, (512, 1536, 8, 8, 4))), "tiny": dict(zip(NUMBERS, (64, 128, 2, 2, 1)))}
DTYPES = {"fp32": "float32", "bf16": "bfloat16 autocast"}
BLUE, ORANGE, GREEN, YELLOW, PURPLE, SKY, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
    "#777777",
)  # Okabe and Ito
T_975 = {
    2: 12.71,
    3: 4.30,
    4: 3.18,
    5: 2.78,
    6: 2.57,
    7: 2.45,
    8: 2.36,
    9: 2.31,
    10: 2.26,
}  # Student's t of so many values, two-sided 95%


def peak_gib() -> float:
    "Largest resident memory of this process so far."
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
    )


def available_threads() -> int:
    "Processors that this process may use."
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def run_worker(script: str, arguments: list, threads: int, log: Path) -> None:
    "This command again, in a process of its own; RuntimeError with the end of its output if it fails."
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    with open(log, "w") as file:
        done = subprocess.run(
            [sys.executable, script, *map(str, arguments)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments))} failed:\n{log.read_text()[-3000:]}")


class Workers:
    """Processes of a benchmark one after another, each with a question and an answer in JSON; the
    caller stays small, since a child's peak memory may begin with its parent's."""

    def __init__(self, script: str, threads: int):
        self.script, self.threads, self.count = script, threads, 0

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix=f"{Path(self.script).stem}-")
        self.work = Path(self._folder.name)
        return self

    def __exit__(self, *_):
        self._folder.cleanup()

    def ask(self, job: str, **given) -> dict:
        "What `jobs[job](work, **given)` of the script returns, in a process of its own."
        self.count += 1
        question = self.work / f"{self.count}.json"
        question.write_text(json.dumps({"job": job, "threads": self.threads, "given": given}))
        run_worker(self.script, ["--worker", question], self.threads, self.work / f"{self.count}.log")
        return json.loads(question.with_suffix(".answer").read_text())


def answer(question: Path, jobs: dict) -> None:
    "The other end of `Workers.ask`."
    asked = json.loads(question.read_text())
    import torch

    torch.set_num_threads(asked["threads"])
    found = jobs[asked["job"]](question.parent, **asked["given"])
    question.with_suffix(".answer").write_text(json.dumps(found))


def alternating(names, i: int) -> list:
    "The names in the order of round i: another one begins each time, and every second round goes backwards."
    names = list(names)
    start = i % len(names)
    return (names[start:] + names[:start])[:: -1 if i % 2 else 1]


def save_reward_model(
    folder: Path, tokenizer, shape: str, positions: int, max_length: int, seed: int = 0
) -> dict:
    """A Qwen3-shaped reward model with random weights, its tokenizer and its encoding, in one folder;
    facts about it."""
    import torch
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    from reward_kit.model.encoding import prepare_tokenizer
    from reward_kit.model.model_folder import RewardMetadata

    torch.manual_seed(seed)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    heads = SHAPES[shape]["num_attention_heads"]
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        head_dim=SHAPES[shape]["hidden_size"] // heads,
        max_position_embeddings=positions,
        num_labels=1,
        **SHAPES[shape],
        **special,
    )
    model = Qwen3ForSequenceClassification(config)
    encoding = prepare_tokenizer(tokenizer, model, max_length=max_length)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    RewardMetadata(encoding=encoding).save(folder)
    parameters, embeddings = (
        sum(p.numel() for p in model.parameters()),
        model.get_input_embeddings().weight.numel(),
    )
    return {
        "parameters": parameters,
        "without embeddings": parameters - embeddings,
        "vocabulary": len(tokenizer),
    }


def build_tokenizer(texts: list[str], vocabulary: int):
    "A tokenizer learned from some texts, as that of the playground's base was."
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
    from build_playground import build_tokenizer

    return build_tokenizer(texts, vocabulary)


def read_pairs(data: str):
    """Rows of a preference file that have two responses, the better one first, as (prompt, [chosen,
    rejected])."""
    from reward_kit.data.preferences import load_preferences

    rows = [
        row
        for row in load_preferences(data, progress=False)
        if len(row["responses"]) == 2 and row["ranks"][0] != row["ranks"][1]
    ]
    return [
        (row["prompt"], row["responses"][:: 1 if row["ranks"][0] < row["ranks"][1] else -1]) for row in rows
    ]


def texts_of(pairs) -> list[str]:
    "All that is said in some pairs."
    parts = [part for prompt, responses in pairs for part in (prompt, *responses)]
    return [
        text
        for part in parts
        for text in ([part] if isinstance(part, str) else [message["content"] or "" for message in part])
    ]


def evenly(values: list, n: int, size=None) -> list:
    """n of them, one from each of n equal parts: of sorted values a sample that has their distribution,
    and as nearly as can be their mean size."""
    take = lambda place: [values[int((i + place) * len(values) / n)] for i in range(n)]
    if size is None:
        return take(0.5)
    whole = mean(map(size, values))
    return take(
        min((i / 100 for i in range(100)), key=lambda place: abs(mean(map(size, take(place))) - whole))
    )


class StepMeter:
    """When each optimizer step of a trainer ended, and how many token positions its model read in it,
    padding included."""

    def __init__(self):
        self.ends, self.steps, self.now = [], [], Counter()

    def watch(self, model) -> None:
        "Count what the model's embeddings read. A forward pass that is computed twice counts twice."

        def read(module, args, output):
            self.now["positions"] += args[0].numel()

        model.get_input_embeddings().register_forward_hook(read)

    def end_step(self) -> None:
        "A step is complete."
        self.ends.append(perf_counter())
        self.steps.append(self.now)
        self.now = Counter()

    def callback(self):
        "One that tells this meter when a step ends."
        from transformers import TrainerCallback

        meter = self

        class Ends(TrainerCallback):
            def on_step_end(self, *args, **kwargs):
                meter.end_step()

        return Ends()

    def result(self) -> dict:
        "Seconds and positions of the steps after the first, which warms up."
        return {
            "seconds": [b - a for a, b in zip(self.ends, self.ends[1:])],
            "positions": [step["positions"] for step in self.steps[1:]],
        }


def middle(runs: list[dict], key: str) -> float:
    "Median over runs of a number."
    return median(run[key] for run in runs)


def interval(values: list[float]) -> tuple[float, float]:
    "Mean and half the width of its 95% interval by Student's t; NaN of one value."
    return mean(values), (
        T_975[len(values)] * stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    )


def shown(values: list[float], digits: int = 2) -> str:
    "Mean and interval in a cell."
    centre, half = interval(values)
    return f"{centre:.{digits}f} ± {half:.{digits}f}"


def table(head: list[str], rows: list[list]) -> list[str]:
    "Lines of a Markdown table."
    return [
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *("| " + " | ".join(map(str, row)) + " |" for row in rows),
    ]


def versions_line(threads: int) -> str:
    "What a table rests on."
    from reward_kit.model.model_folder import RewardMetadata

    return (
        f"CPU, {threads} threads;"
        f" {', '.join(f'{name} {version}' for name, version in RewardMetadata().versions.items())}."
    )


def model_line(facts: dict) -> str:
    "The model in words."
    size, inner = (f"{facts[name] / 1e6:.1f}M" for name in ("parameters", "without embeddings"))
    return (
        f"a Qwen3-shaped decoder with random weights, {size} parameters ({inner} without embeddings,"
        f" vocabulary {facts['vocabulary']:,})"
    )


def new_figure(rows: int = 1, columns: int = 1, width: float = 6.4, height: float = 3.2):
    "A figure with its panels, the axes without a box."
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def bars(
    axes, groups: list[str], series: dict[str, list[float]], colours: dict[str, str], digits: int = 1
) -> None:
    "Bars side by side in each group, told apart by colour and by hatching, each with its number."
    hatches, width = ("", "///", "...", "xx", "\\\\\\", "++", "oo", "--"), 0.84 / len(series)
    for i, (name, values) in enumerate(series.items()):
        places = [g - 0.42 + (i + 0.5) * width for g in range(len(groups))]
        drawn = axes.bar(
            places,
            values,
            width * 0.94,
            label=name,
            color=colours[name],
            hatch=hatches[i % len(hatches)],
            edgecolor="white",
            linewidth=0,
        )
        axes.bar_label(drawn, fmt=f"%.{digits}f", fontsize=6.5, padding=1)
    axes.set_xticks(range(len(groups)), groups)


def publish(text: str, output: Path | None, figure=None, caption: str = "") -> None:
    "Print a report; where an output is given write it there, with its picture beside it."
    print(f"\n{text}")
    if output is None:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    if figure is not None:
        picture = output.with_suffix(".png")
        text += f"\n\n![{caption}]({picture.name})"
        figure.savefig(picture)
        from PIL import Image

        with Image.open(picture) as image:
            image.quantize(64).save(picture, optimize=True)  # a third of the size
    output.write_text(text + "\n")


def common_arguments(parser) -> None:
    "Options that all benchmarks of speed have."
    parser.add_argument("--model", choices=SHAPES, default="33m", help="'tiny' is for trying the command out")
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--output", type=Path, help="Markdown file; the picture goes beside it")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
