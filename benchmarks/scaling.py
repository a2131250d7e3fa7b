"""How time grows with size: preparation of generated pairs beside TRL's, training steps, and scoring; the
exponent of time over size.

    python benchmarks/scaling.py [--pairs 1000 10000 100000] [--output benchmarks/results/scaling.md]

Preparation is what happens before the first step, from a file of JSON lines: on our side
load_preferences (reading, checking, the report) and the constructor of the trainer (tokenising); on
TRL's load_dataset and the constructor of its trainer (adding EOS, tokenising, filtering); with
empty caches. Tokenizers may use threads, as they do unless the environment forbids it; then the
largest file again with a process a core on both sides. A fixed number of steps follows, whose time
should not depend on how many pairs there are. Then, on random tokens, seconds a training step and a
scoring pass by length of the prompt, responses to a prompt, and batch. An exponent of 1 is time
proportional to size, below 1 there is a constant part, above 1 it grows faster than the size.
"""

import argparse
import json
import os
import random
import shutil
from math import log
from pathlib import Path
from statistics import mean, median
from time import perf_counter

from common import (
    BLUE,
    GREEN,
    ORANGE,
    StepMeter,
    Workers,
    alternating,
    answer,
    build_tokenizer,
    common_arguments,
    middle,
    model_line,
    new_figure,
    peak_gib,
    publish,
    save_reward_model,
    table,
    versions_line,
)

SIDES = {"ours": "reward_kit", "theirs": "TRL"}
AXES = {"prompt": "tokens of the prompt", "k": "responses to a prompt", "batch": "prompts in a batch"}
BATCH = 8  # of the steps after preparation


def exponent(sizes: list[float], times: list[float]) -> float:
    "Slope of the logarithm of time over the logarithm of size, by least squares."
    x, y = [log(size) for size in sizes], [log(time) for time in times]
    return sum((a - mean(x)) * (b - mean(y)) for a, b in zip(x, y)) / sum((a - mean(x)) ** 2 for a in x)


def prepare(work: Path, model: str, vocabulary: int, sizes: list[int]) -> dict:
    """Files of generated pairs, prompts of 10 to 30 and responses of 20 to 60 words, a model, and its
    tokenizer as it was before our encoding."""
    chance = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "il")]
    words = ["".join(chance.choices(syllables, k=chance.randint(1, 3))) for _ in range(8000)]
    weights = [1 / (i + 1) for i in range(len(words))]  # as words of a language are
    sentence = lambda n: " ".join(chance.choices(words, weights, k=chance.randint(n // 2, 3 * n // 2)))
    rows = [
        json.dumps({"prompt": sentence(20) + "\n", "chosen": sentence(40), "rejected": sentence(40)}) + "\n"
        for _ in range(max(sizes))
    ]
    for size in sizes:
        (work / f"{size}.jsonl").write_text("".join(rows[:size]))
    texts = [text for row in rows[:2000] for text in json.loads(row).values()]
    tokenizer = build_tokenizer(texts, vocabulary)
    tokenizer.save_pretrained(work / "raw")
    facts = save_reward_model(work / "model", tokenizer, model, 8192, 8192)
    return facts | {"mib": {str(size): (work / f"{size}.jsonl").stat().st_size / 2**20 for size in sizes}}


def settings(steps: int, batch: int) -> dict:
    "What both trainers are told."
    return {
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "optim": "adamw_torch",
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "seed": 0,
    }


def start(work: Path, side: str, size: int, steps: int, processes: int) -> dict:
    """Everything from a file to some steps, in this process with empty caches: seconds of each part,
    and the first rows as token ids."""
    cache = work / f"cache-{os.getpid()}"
    os.environ["HF_DATASETS_CACHE"] = str(cache)  # read when datasets is imported
    os.environ.pop("TOKENIZERS_PARALLELISM", None)
    import datasets
    import transformers
    import trl

    from reward_kit.data.preferences import load_preferences
    from reward_kit.model.trainer import RewardConfig, RewardTrainer

    datasets.disable_progress_bars()
    imports, file, meter = peak_gib(), str(work / f"{size}.jsonl"), StepMeter()
    tokenizer = transformers.AutoTokenizer.from_pretrained(work / "raw")
    given = settings(steps + 1, BATCH) | {"dataset_num_proc": processes}
    begin = perf_counter()
    if side == "ours":
        data = load_preferences(file, num_proc=processes, progress=False)
        loaded = perf_counter()
        trainer = RewardTrainer(
            str(work / "model"),
            RewardConfig(str(work / "out"), estimate_time=False, **given),
            train_dataset=data,
            callbacks=[meter.callback()],
        )
    else:
        data = datasets.load_dataset("json", data_files=file, split="train")
        loaded = perf_counter()
        trainer = trl.RewardTrainer(
            str(work / "model"),
            trl.RewardConfig(str(work / "out"), max_length=8192, **given),
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[meter.callback()],
        )
    built = perf_counter()
    trainer.train()
    rows = [trainer.train_dataset[i] for i in range(100)]
    first = [
        row["sequences"] if "sequences" in row else [row["chosen_ids"], row["rejected_ids"]] for row in rows
    ]
    found = {
        "load": loaded - begin,
        "build": built - loaded,
        "total": built - begin,
        "to first step": meter.ends[0] - built,
        "step": median(meter.result()["seconds"]),
        "rows": len(trainer.train_dataset),
    }
    shutil.rmtree(cache, ignore_errors=True)
    return found | {"first": first, "imports_gib": imports, "peak_gib": peak_gib()}


def examples(prompt: int, response: int, k: int, n: int, vocabulary: int) -> list[list[list[int]]]:
    "Random prompts with k random responses each."
    draw = random.Random(0)
    tokens = lambda size: [draw.randrange(10, vocabulary) for _ in range(size)]
    rows = []
    for _ in range(n):
        shared = tokens(prompt)
        rows.append([shared + tokens(response) for _ in range(k)])
    return rows


def step_and_score(
    work: Path, prompt: int, response: int, k: int, batch: int, steps: int, vocabulary: int
) -> dict:
    "Median seconds of a training step, and of scoring a batch, in this process."
    from datasets import Dataset

    from reward_kit.model.batches import shared_length
    from reward_kit.model.model_folder import load_reward_backbone
    from reward_kit.model.trainer import RewardConfig, RewardTrainer
    from reward_kit.scores.inference import RowScorer

    rows, meter = examples(prompt, response, k, batch * (steps + 1), vocabulary), StepMeter()
    data = Dataset.from_dict(
        {
            "sequences": rows,
            "lengths": [[len(ids) for ids in row] for row in rows],
            "ranks": [list(range(1, k + 1)) for _ in rows],
        }
    )
    args = RewardConfig(
        str(work / "out"),
        show_plan=False,
        loss_type="bradley_terry" if k == 2 else "plackett_luce",
        max_length=8192,
        **settings(steps + 1, batch),
    )
    RewardTrainer(str(work / "model"), args, train_dataset=data, callbacks=[meter.callback()]).train()
    model, tokenizer = load_reward_backbone(work / "model")
    scorer, seconds = RowScorer(model, tokenizer.pad_token_id), []
    for first in range(0, len(rows), batch):
        texts = [ids for row in rows[first : first + batch] for ids in row]
        begin = perf_counter()
        scorer(texts)
        seconds.append(perf_counter() - begin)
    unique = sum(
        len(ids) - (shared_length(row[0], ids) if i else 0) for row in rows for i, ids in enumerate(row)
    ) / (steps + 1)
    return {"train": median(meter.result()["seconds"]), "score": median(seconds[1:]), "unique": unique}


def growth(args, workers: Workers, vocabulary: int) -> dict:
    "axis -> size -> runs"
    base = {"prompt": args.prompt, "k": 2, "batch": args.batch}
    points = [
        (axis, size)
        for axis, sizes in (("prompt", args.prompts), ("k", args.ks), ("batch", args.batches))
        for size in sizes
    ]
    found = {axis: {} for axis in AXES}
    for i in range(args.rounds):
        for axis, size in alternating(points, i):
            run = workers.ask(
                "step_and_score",
                **base | {axis: size},
                response=args.response,
                steps=args.steps,
                vocabulary=vocabulary,
            )
            found[axis].setdefault(size, []).append(run)
            print(
                f"round {i + 1} of {args.rounds}, {AXES[axis]:24} {size:5}: step {run['train']:.3f} s,"
                f" scoring {run['score']:.3f} s",
                flush=True,
            )
    return {axis: dict(sorted(own.items())) for axis, own in found.items()}


def preparation(args, workers: Workers) -> dict:
    "(side, size, processes) -> runs. RuntimeError where the sides did not get the same token ids."
    found = {}
    for i in range(args.rounds):
        for size, processes in [*((size, 1) for size in args.pairs), (args.pairs[-1], args.threads)]:
            for side in alternating(SIDES, i):
                run = workers.ask("start", side=side, size=size, steps=args.steps, processes=processes)
                found.setdefault((side, size, processes), []).append(run)
                print(
                    f"round {i + 1} of {args.rounds}, {size:7,} pairs, {processes} processes,"
                    f" {SIDES[side]:10}: {run['total']:.1f} s to prepare, {run['step']:.3f} s a step",
                    flush=True,
                )
            if found["ours", size, processes][-1]["first"] != found["theirs", size, processes][-1]["first"]:
                raise RuntimeError("the sides did not get the same token ids")
    return found


def preparation_tables(args, found: dict, facts: dict) -> list[str]:
    "Seconds by part, and the exponents."
    rows = []
    for size, processes in dict.fromkeys(
        (size, processes) for _, size, processes in sorted(found, key=lambda key: key[2])
    ):
        for side, name in SIDES.items():
            runs = found[side, size, processes]
            ratio = median(a["total"] / b["total"] for a, b in zip(found["theirs", size, processes], runs))
            rows.append(
                [
                    f"{size:,}",
                    f"{facts['mib'][str(size)]:.1f}",
                    processes,
                    name,
                    *(f"{middle(runs, key):.2f}" for key in ("load", "build", "total")),
                    f"{ratio:.2f}",
                    f"{size / middle(runs, 'total'):,.0f}",
                    f"{middle(runs, 'to first step'):.2f}",
                    f"{middle(runs, 'step'):.3f}",
                    f"{BATCH / middle(runs, 'step'):.1f}",
                    f"{middle(runs, 'peak_gib'):.2f}",
                ]
            )
    head = [
        "pairs",
        "MiB of JSON lines",
        "processes",
        "",
        "load, s",
        "constructor, s",
        "both, s",
        "TRL's time over it",
        "pairs/s prepared",
        "from there to the end of the first step, s",
        "s a step",
        "pairs/s trained",
        "peak GiB",
    ]
    lines = [*table(head, rows), ""]
    if len(args.pairs) < 2:
        return lines
    slope = lambda side, key, sizes: exponent(sizes, [middle(found[side, size, 1], key) for size in sizes])
    fits = [
        [
            name,
            f"{slope(side, 'total', args.pairs):.2f}",
            f"{slope(side, 'total', args.pairs[-2:]):.2f}",
            f"{slope(side, 'step', args.pairs):.2f}",
        ]
        for side, name in SIDES.items()
    ]
    return [
        *lines,
        *table(
            [
                "exponent over the number of pairs",
                "preparation",
                "preparation, the two largest",
                "a training step",
            ],
            fits,
        ),
        "",
    ]


def growth_tables(found: dict) -> list[str]:
    "Seconds by size, and the exponents."
    rows, fits = [], []
    for axis, own in found.items():
        sizes, unique = list(own), [middle(runs, "unique") for runs in own.values()]
        for size, runs in own.items():
            rows.append(
                [
                    AXES[axis],
                    size,
                    f"{middle(runs, 'unique'):,.0f}",
                    *(f"{middle(runs, key):.3f}" for key in ("train", "score")),
                    f"{middle(runs, 'unique') / middle(runs, 'train'):,.0f}",
                    f"{middle(runs, 'unique') / middle(runs, 'score'):,.0f}",
                ]
            )
        if len(sizes) < 2:
            continue
        for key, what in (("train", "training step"), ("score", "scoring")):
            times = [middle(runs, key) for runs in own.values()]
            fits.append(
                [
                    AXES[axis],
                    what,
                    f"{exponent(sizes, times):.2f}",
                    f"{exponent(unique, times):.2f}",
                    f"{exponent(unique[-2:], times[-2:]):.2f}",
                ]
            )
    return [
        *table(
            [
                "",
                "size",
                "unique tokens, a batch",
                "s a training step",
                "s to score a batch",
                "unique tokens/s trained",
                "scored",
            ],
            rows,
        ),
        "",
        *table(
            [
                "exponent of time",
                "",
                "over the size",
                "over unique tokens",
                "over unique tokens, the two largest",
            ],
            fits,
        ),
        "",
    ]


def figure_of(args, prepared: dict, grown: dict):
    "Preparation over pairs, and seconds over unique tokens, both axes logarithmic."
    figure, panels = new_figure(1, 2, 7.2, 4.2)
    left, right = panels.flat
    for (side, name), colour, style in zip(SIDES.items(), (BLUE, ORANGE), ("o-", "s--")):
        left.plot(
            args.pairs,
            [middle(prepared[side, size, 1], "total") for size in args.pairs],
            style,
            color=colour,
            markersize=4,
            label=f"{name}, preparation",
        )
        left.plot(
            args.pairs,
            [middle(prepared[side, size, 1], "step") for size in args.pairs],
            style,
            color=colour,
            markersize=4,
            markerfacecolor="white",
            alpha=0.6,
            label=f"{name}, a training step",
        )
    for axis, colour, mark in zip(AXES, (BLUE, ORANGE, GREEN), "os^"):
        unique = [middle(runs, "unique") for runs in grown[axis].values()]
        for key, style, fill in (("train", "-", colour), ("score", ":", "white")):
            right.plot(
                unique,
                [middle(runs, key) for runs in grown[axis].values()],
                style,
                marker=mark,
                color=colour,
                markerfacecolor=fill,
                markersize=4,
                label=f"{'training' if key == 'train' else 'scoring'}, by {AXES[axis]}",
            )
    left.set(xlabel="pairs in the file", ylabel="seconds")
    right.set(xlabel="unique tokens of a batch", ylabel="seconds a batch")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend(frameon=False, fontsize=6.5, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return figure


def arguments():
    "Of the command."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pairs", type=int, nargs="+", default=[1000, 10_000, 100_000], help="generated pairs in a file"
    )
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one to warm up")
    parser.add_argument(
        "--prompts", type=int, nargs="+", default=[64, 256, 1024, 2048], help="lengths of the prompt, tokens"
    )
    parser.add_argument("--ks", type=int, nargs="+", default=[2, 4, 8, 16], help="responses to a prompt")
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 8, 32], help="prompts in a batch")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt where it does not vary")
    parser.add_argument("--response", type=int, default=64, help="tokens of each response")
    parser.add_argument("--batch", type=int, default=4, help="prompts in a batch where it does not vary")
    parser.add_argument("--rounds", type=int, default=2)
    common_arguments(parser)
    args = parser.parse_args()
    args.pairs.sort()
    if args.worker is None and args.pairs[0] < 100:
        parser.error(f"--pairs {args.pairs[0]}: at least 100, which are compared with TRL's")
    return args


def main(args) -> None:
    "Prepare, measure, report."
    with Workers(__file__, args.threads) as workers:
        facts = workers.ask("prepare", model=args.model, vocabulary=args.vocabulary, sizes=args.pairs)
        prepared = preparation(args, workers)
        grown = growth(args, workers, facts["vocabulary"])
    lines = [
        f"Model: {model_line(facts)}. Medians of {args.rounds} rounds of processes.",
        "",
        "## From a file of generated pairs to the first steps",
        "",
        *preparation_tables(args, prepared, facts),
        (
            "Both sides got the same token ids (the first 100 pairs, compared in the run). Steps: float32,"
            f" batch {BATCH}. Our constructor also tries whether the model can read packed lines; our loading"
            " also checks every row and writes the report on the data. One process means tokenizers with a"
            " thread a core, which helps where many texts are given at once; several processes tokenise with"
            " a thread each."
        ),
        "",
        "## By length of the prompt, responses to a prompt, and batch",
        "",
        *growth_tables(grown),
        (
            f"Where it does not vary: a prompt of {args.prompt} tokens, 2 responses of {args.response} tokens"
            f" each, batches of {args.batch} prompts. Attention grows with the square of the length, so the"
            " exponent over the length of the prompt can exceed 1 a little where it is long."
        ),
        "",
        versions_line(args.threads),
    ]
    publish(
        "\n".join(lines),
        args.output,
        figure_of(args, prepared, grown),
        "Seconds of preparation, training steps and scoring over size",
    )


if __name__ == "__main__":
    args = arguments()
    if args.worker is None:
        main(args)
    else:
        answer(args.worker, {"prepare": prepare, "start": start, "step_and_score": step_and_score})
