"""How near to the limit of one GPU the package is, beside its peers: exactness, training, scoring and PPO.

    python benchmarks/gpu.py [--output FOLDER] [--data SHORT [LONG]] [--model 0.6b] [--sections train score]
    python benchmarks/gpu.py --model tiny --batch 2 --steps 2 --texts 32 --episodes 8 --response 8
                                                      on a CPU: only tries the command out

The limit is a bare product of two bfloat16 matrices of 8,192 rows and columns: what a model would have to
multiply for its tokens (6 operations for each weight outside the embeddings and each token in training, 2 in
scoring), over what the card multiplies in the same time, is the "share of the bare product". Models have
the shapes of Qwen3 with random weights and are made on the device; nothing is downloaded. A file that is not
given is made up, with the lengths of short conversations or of long pairs.

What has begun when time is over (--minutes) is finished or stopped, and the tables say what was not run. An
error or a full memory costs one row of a table, not the others.
"""

import argparse
import faulthandler
import gc
import itertools
import json
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter, sleep, time

from common import (
    BLUE,
    GREEN,
    GREY,
    NUMBERS,
    ORANGE,
    PURPLE,
    SHAPES,
    YELLOW,
    StepMeter,
    Workers,
    answer,
    available_threads,
    build_tokenizer,
    evenly,
    new_figure,
    peak_gib,
    publish,
    read_pairs,
    table,
    texts_of,
)
from score_speed import ranking

LARGE = {
    "0.6b": (1024, 3072, 28, 16, 8),
    "4b": (2560, 9728, 36, 32, 8),
    "8b": (4096, 12288, 36, 32, 8),
}
SIZES = {"tiny": SHAPES["tiny"] | {"head_dim": 32}}
SIZES |= {name: dict(zip(NUMBERS, numbers), head_dim=128) for name, numbers in LARGE.items()}
MAX_LENGTH = 2048  # tokens of a text; pairs with longer ones, or nearly, are left out
WARM_UP = 4  # steps of a training before those that are timed
ALONE = 64  # texts that are scored one by one
LARGE_NEEDS = 70  # GiB of free memory
NO_TIME = "not run: no time left"
BACKENDS = {"cuda": "inductor", "cpu": "eager"}  # of torch.compile; a CPU only tries it out

SIDES = {
    "ours": "reward_kit",
    "trl": "TRL, grouped by hand",
    "flash-pref": "TRL with flash-pref, grouped by hand",
    "compiled": "reward_kit, torch_compile=True",
    "liger": "reward_kit, use_liger_kernel=True",
    "fa3": "reward_kit, torch_compile=True, FlashAttention 3",
}  # of training, in this order
NEEDS = {"flash-pref": "flash_pref", "liger": "liger_kernel", "fa3": "flash_attn_interface"}  # -> a module
OURS = ("ours", "compiled", "liger", "fa3")
SCORERS = {
    "float32": "reward_kit, float32",
    "bfloat16": "reward_kit, bfloat16",
    "long": "reward_kit, bfloat16, layers compiled as for a long job",
    "pipeline-32": "transformers pipeline, bfloat16, sorted by hand, batch 32",
    "pipeline-128": "transformers pipeline, bfloat16, sorted by hand, batch 128",
    "alone": "transformers, bfloat16, one by one",
}
COLOURS = {"ours": BLUE, "compiled": GREEN, "liger": GREEN, "fa3": GREEN, "trl": ORANGE, "flash-pref": YELLOW}
COLOURS |= {
    "float32": BLUE,
    "bfloat16": BLUE,
    "long": GREEN,
    "pipeline-32": ORANGE,
    "pipeline-128": ORANGE,
    "alone": GREY,
}


# ---- what is measured with: the card, texts, models


def synchronize(device: str) -> None:
    "Wait until the device has done all its work."
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def free_memory(device: str) -> None:
    "What nobody uses is given back, and the peak counts from here."
    import torch

    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> float:
    "GiB of tensors at most since `free_memory`; on a CPU those of the process."
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else peak_gib()


def product_rate(device: str) -> float:
    "Operations a second of a bare bfloat16 product."
    import torch

    size, times = (8192, 20) if device == "cuda" else (256, 5)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    synchronize(device)
    begin = perf_counter()
    for _ in range(times):
        a @ b
    synchronize(device)
    return times * 2 * size**3 / (perf_counter() - begin)


def made_up(kind: str) -> list:
    "Pairs of meaningless words: conversations about as long as those of HH-RLHF, or long texts."
    draw, n = random.Random(kind), {"short": 1100, "long": 300}[kind]
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.choice((1, 2, 2, 3)))) for _ in range(2000)]

    def message(role, shape, mean):
        count = max(2, round(draw.gammavariate(shape, mean / shape)))
        return {"role": role, "content": " ".join(draw.choices(words, k=count))}

    pairs = []
    for _ in range(n):
        turns, asked, answered = (1, 450, 350) if kind == "long" else (draw.choice((1, 3, 5)), 45, 50)
        roles = ("user", "assistant", "user", "assistant", "user")[:turns]
        prompt = [message(role, 0.8, asked) for role in roles]
        pairs.append((prompt, [[message("assistant", 1.5, answered)] for _ in range(2)]))
    return pairs


@dataclass
class World:
    "Where everything is, and models to measure with."

    work: Path  # tokenizer and rows
    device: str  # cuda or cpu
    vocabulary: int  # of the models

    @property
    def tokenizer(self):
        "A new one, since trainers change theirs."
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.work / "tokenizer")

    def rows(self, kind: str, n: int) -> list[dict]:
        "So many pairs, from the shortest to the longest, with the lengths of all."
        return evenly(json.loads((self.work / f"{kind}.json").read_text()), n)

    def model(self, shape: str, dtype: str = "float32", head: str = "SequenceClassification"):
        "Random weights, always the same ones, made on the device; buffers stay float32."
        import torch
        import transformers

        tokenizer = self.tokenizer
        special = ("bos_token_id", "eos_token_id", "pad_token_id")
        config = transformers.Qwen3Config(
            vocab_size=max(self.vocabulary, len(tokenizer)),
            max_position_embeddings=2 * MAX_LENGTH,
            num_labels=1,
            tie_word_embeddings=True,
            **SIZES[shape],
            **{name: getattr(tokenizer, name) for name in special},
        )
        torch.manual_seed(0)
        with torch.device(self.device):
            model = getattr(transformers, f"Qwen3For{head}")(config)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype))
        return model

    def reward_model(self, shape: str, dtype: str = "float32"):
        "What `RewardModel.from_pretrained` gives, without a folder."
        from reward_kit.model.encoding import RewardEncoder, prepare_tokenizer
        from reward_kit.scores.inference import RewardModel, RowScorer

        model, tokenizer = self.model(shape, dtype), self.tokenizer
        encoder = RewardEncoder(tokenizer, prepare_tokenizer(tokenizer, model, max_length=MAX_LENGTH))
        return RewardModel(model.eval(), tokenizer, encoder, RowScorer(model, encoder.pad_token_id))


def inner_parameters(model) -> int:
    "Weights outside the embeddings."
    embeddings = model.get_input_embeddings().weight.numel()
    return sum(p.numel() for p in model.parameters()) - embeddings


def prepare(work: Path, data: list[str], vocabulary: int) -> dict:
    "Tokenizer and rows for all sections; the card and its limit."
    import torch

    from reward_kit.model.batches import shared_length
    from reward_kit.model.model_folder import RewardMetadata

    device = "cuda" if torch.cuda.is_available() else "cpu"
    files = dict(zip(("short", "long"), data))
    pairs = {kind: read_pairs(files[kind]) if kind in files else made_up(kind) for kind in ("short", "long")}
    texts = [text for own in pairs.values() for text in texts_of(own)]
    build_tokenizer(texts, vocabulary).save_pretrained(work / "tokenizer")
    encoder = World(work, "cpu", vocabulary).reward_model("tiny").encoder
    facts = {"device": device, "versions": RewardMetadata().versions, "free": 0.0}
    for kind, own in pairs.items():
        flat = ([p for p, responses in own for _ in responses], [r for _, both in own for r in both])
        encoded, rows = encoder.encode(*flat), []
        for i, (prompt, (chosen, rejected)) in enumerate(own):
            first, other = encoded.ids[2 * i : 2 * i + 2]
            if None in (first, other) or max(len(first), len(other)) > MAX_LENGTH - 8:
                continue  # with room for a token that another template may add
            unique = len(first) + len(other) - shared_length(first, other)
            row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            rows.append(row | {"unique": unique, "longest": max(len(first), len(other))})
        rows.sort(key=lambda row: row["longest"])
        (work / f"{kind}.json").write_text(json.dumps(rows))
        name = Path(files[kind]).name if kind in files else "made up"
        facts[kind] = {"name": name, "rows": len(rows), "tokens": sum(r["unique"] for r in rows) / len(rows)}
    if device == "cuda":
        facts["free"] = torch.cuda.mem_get_info()[0] / 2**30
        facts["card"] = f"{torch.cuda.get_device_name()}, {facts['free']:.0f} GiB free"
    else:
        facts["card"] = f"CPU, {torch.get_num_threads()} threads"
    return facts | {"product": product_rate(device)}


def attempt(measure, device: str, until: float) -> dict:
    "What is measured with the memory free, or the problem in words."
    from reward_kit.model.runs import MicroBatches

    if time() > until:
        return {"problem": NO_TIME}
    free_memory(device)
    try:
        return measure()
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        problem = f"{type(error).__name__}: {lines[0].strip()[:160]}".replace("|", "/")
        if MicroBatches.is_out_of_memory(error):
            problem = "out of memory"
    return {"problem": problem}


# ---- exactness


DECODER = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
HEADS = DECODER | {"head_dim": 64}
WINDOW = HEADS | {"sliding_window": 48, "layer_types": ["sliding_attention", "full_attention"]}
GPT2 = {"vocab_size": 512, "n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 1024}
FAMILIES = {
    "Llama": ("Llama", DECODER),
    "Qwen2": ("Qwen2", DECODER),
    "Qwen3": ("Qwen3", HEADS),
    "Mistral": ("Mistral", DECODER | {"sliding_window": 48}),
    "Gemma-2": ("Gemma2", WINDOW),
    "Gemma-3": ("Gemma3Text", WINDOW),
    "GPT-2": ("GPT2", GPT2),
}  # name -> what its classes begin with, a small configuration

# way -> layout, precision, layers compiled; compiled ones last, since they take long
WAYS = {
    "padded, bfloat16": ("padded", "bfloat16", False),
    "packed, bfloat16": ("packed", "bfloat16", False),
    "packed, float32": ("packed", "float32", False),
    "packed, bfloat16, compiled": ("packed", "bfloat16", True),
    "packed, float32, compiled": ("packed", "float32", True),
}


def rewards_and_gradients(model, pairs: list, layout: str, dtype: str, device: str):
    "Of the mean Bradley-Terry loss, as float64 vectors."
    import torch

    from reward_kit.model.batches import RewardCollator

    batch = RewardCollator(0, layout)(pairs).to(device)
    model.zero_grad()
    with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
        rewards = model(**batch.model_inputs()).logits
    (-torch.nn.functional.logsigmoid(rewards[:, 0] - rewards[:, 1])).mean().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return rewards.detach().double(), torch.cat(gradients).double()


def compare(family: str, way: str, device: str) -> dict:
    "Norm of the difference from the padded batch in float32, over its norm."
    import torch
    import transformers

    from reward_kit.model.batches import bind_reward_forward
    from reward_kit.model.packing import compile_layers, packing_problem

    draw, (begins, sizes) = random.Random(0), FAMILIES[family]
    tokens = lambda least, most: [draw.randrange(3, 512) for _ in range(draw.randrange(least, most))]
    prompts = [tokens(40, 160) for _ in range(6)]
    pairs = [{"sequences": [prompt + tokens(5, 90) for _ in range(2)]} for prompt in prompts]
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_labels": 1}
    config = getattr(transformers, f"{begins}Config")(**sizes, **special)
    model = getattr(transformers, f"{begins}ForSequenceClassification")(config)
    bind_reward_forward(model).to(device).eval()
    expected = rewards_and_gradients(model, pairs, "padded", "float32", device)
    layout, dtype, compiled = WAYS[way]
    problem = packing_problem(model) if layout == "packed" else None
    if problem:
        raise RuntimeError(problem)
    if compiled:
        compile_layers(model, BACKENDS[device])
    found = rewards_and_gradients(model, pairs, layout, dtype, device)
    relative = [((a - b).norm() / b.norm()).item() for a, b in zip(found, expected)]
    return dict(zip(("rewards", "gradients"), relative))


def exact(work: Path, device: str, families: list[str], until: float):
    "A row for each family and way."
    for way in WAYS:
        for family in families:
            measured = attempt(partial(compare, family, way, device), device, until)
            yield {"family": family, "way": way} | measured


def exact_line(row: dict) -> str:
    "What was measured, in words."
    return f"rewards {row['rewards']:.1e}, gradients {row['gradients']:.1e}"


def exact_report(rows: list[dict], facts: dict):
    "Text, figure and caption."
    found = {(row["family"], row["way"]): row for row in rows}
    names = list(dict.fromkeys(family for family, _ in found))

    def cell(family, way):
        row = found.get((family, way), {"problem": "not run"})
        return row.get("problem") or f"{row['rewards']:.1e}, {row['gradients']:.1e}"

    text = [
        "A packed batch against the padded one in float32: norm of the difference over the norm, of the"
        " rewards, then of the gradients of all weights. bfloat16 is autocast; what a padded batch loses in"
        " it stands beside. Small models with random weights, six pairs with shared prompts.",
        "",
        *table(["", *WAYS], [[name, *(cell(name, way) for way in WAYS)] for name in names]),
    ]
    figure, panels = new_figure(1, 1, 6.4, 0.34 * len(names) + 1.5)
    axes = panels[0, 0]
    for way, marker, colour in zip(WAYS, "so^Dv", (ORANGE, BLUE, GREEN, PURPLE, GREY)):
        own = [(i, found.get((name, way), {}).get("gradients")) for i, name in enumerate(names)]
        own = [(max(value, 1e-9), i) for i, value in own if value is not None]
        places = tuple(zip(*own)) or ((), ())
        axes.scatter(*places, marker=marker, facecolors="none", edgecolors=colour, label=way, s=30)
    axes.set_yticks(range(len(names)), names)
    axes.set(xscale="log", xlim=(1e-8, 1))
    axes.set_xlabel("gradients: relative difference from the padded batch in float32", fontsize=9)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return text, figure, "Differences of gradients by model family, layout and precision"


# ---- training


def runs_of(args, large: bool) -> list[dict]:
    "What every side trains: data, batch, model."
    runs = [{"data": "short", "batch": batch, "shape": args.model} for batch in args.batch]
    runs.append({"data": "long", "batch": args.long_batch, "shape": args.model})
    for shape in ("4b", "8b") if large else ():
        run = {"data": "short", "batch": 2 * args.long_batch, "lora": shape == "8b", "size": shape.upper()}
        runs.append(run | {"shape": "tiny" if args.model == "tiny" else shape})
    for run in runs:
        run["steps"] = args.steps
        adapter = "LoRA of bfloat16 weights, " if run.setdefault("lora", False) else ""
        size = f"{run['size']}, " if "size" in run else ""
        run["name"] = f"{size}{adapter}{run['data']}, batch {run['batch']}"
    return runs


class Meter(StepMeter):
    "A step ends when the device has done its work."

    def __init__(self, device: str):
        super().__init__()
        self.device = device

    def end_step(self) -> None:
        synchronize(self.device)
        super().end_step()


def in_batches(rows: list[dict], batch: int) -> list[dict]:
    "Sorted rows as batches of similar length, in a random order."
    groups = [rows[i : i + batch] for i in range(0, len(rows), batch)]
    random.Random(0).shuffle(groups)
    return [row for group in groups for row in group]


def flash_pref_trainer():
    "TRL's trainer whose steps share beginnings; its own subclass is for an older TRL."
    import trl
    from flash_pref import shared_prefix

    class Trainer(trl.RewardTrainer):
        def training_step(self, model, inputs, *more):
            ids = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
            with shared_prefix(model, **ids, interleaved=True):
                return super().training_step(model, inputs | ids, *more)

    return Trainer


def make_trainer(world: World, side: str, model, rows: list[dict], settings: dict, lora: bool, callback):
    "A trainer of one side, called as its users do."
    import trl
    from datasets import Dataset

    from reward_kit.model.trainer import RewardConfig, RewardTrainer

    adapter = None
    if lora:
        from peft import LoraConfig

        layers = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
        adapter = LoraConfig(
            r=16, lora_alpha=32, target_modules=layers, modules_to_save=["score"], task_type="SEQ_CLS"
        )
    if side in OURS:
        trainer, own = RewardTrainer, {"show_plan": False, "use_liger_kernel": side == "liger"}
        if side in ("compiled", "fa3"):
            own |= {"torch_compile": True, "torch_compile_backend": BACKENDS[world.device]}
        if side == "fa3":  # for the whole process, which measures nothing else
            from torch.nn.attention import activate_flash_attention_impl

            activate_flash_attention_impl("FA3")
        args = RewardConfig(**settings, **own)
    else:
        trainer = flash_pref_trainer() if side == "flash-pref" else trl.RewardTrainer
        if side == "flash-pref":
            model.set_attn_implementation("flash_attention_2")
        args = trl.RewardConfig(
            **settings,
            bf16=world.device == "cuda",
            max_length=MAX_LENGTH,
            gradient_checkpointing=False,
            learning_rate=1e-5,
            train_sampling_strategy="sequential",
        )
    columns = ("prompt", "chosen", "rejected")
    texts = Dataset.from_list([{name: row[name] for name in columns} for row in rows])
    given = {"train_dataset": texts, "processing_class": world.tokenizer, "peft_config": adapter}
    return trainer(model, args, callbacks=[callback], **given)


def train_once(world: World, side: str, product: float, run: dict) -> dict:
    "Speed and memory of one trainer."
    from reward_kit.model.settings import quiet

    batch, lora, steps = run["batch"], run["lora"], WARM_UP + run["steps"]
    rows, ours = world.rows(run["data"], batch * (steps + 1)), side in OURS
    if ours:
        random.Random(0).shuffle(rows)
    else:
        rows = in_batches(rows, batch)
    model, meter = world.model(run["shape"], "bfloat16" if lora else "float32"), Meter(world.device)
    weights = inner_parameters(model)
    free_memory(world.device)
    meter.watch(model)
    settings = {
        "output_dir": str(world.work / "out"),
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": world.device == "cpu",
    }
    with quiet():
        trainer = make_trainer(world, side, model, rows, settings, lora, meter.callback())
        begin = perf_counter()
        trainer.train()
    seconds = [after - before for before, after in zip(meter.ends, meter.ends[1:])][WARM_UP - 1 :]
    unique, layout = sum(row["unique"] for row in rows[WARM_UP * batch : steps * batch]), ""
    if ours:  # the order is its own; what a packed batch reads are unique tokens
        layout = trainer._layout
        if layout.startswith("packed"):
            unique = sum(step["positions"] for step in meter.steps[WARM_UP:])
    speed = unique / sum(seconds)
    return {
        "first": meter.ends[0] - begin,
        "step": median(seconds),
        "pairs": batch * len(seconds) / sum(seconds),
        "tokens": speed,
        "share": (4 if lora else 6) * weights * speed / product,
        "peak": peak(world.device),
        "layout": layout,
    }


def train(work: Path, device: str, vocabulary: int, sides: list, runs: list, product: float, until: float):
    "A row for each run of some sides."
    world = World(work, device, vocabulary)
    for side, run in itertools.product(sides, runs):
        measured = attempt(partial(train_once, world, side, product, run), device, until)
        yield {"side": side, "run": run["name"]} | measured


def not_packed(row: dict) -> str:
    "Words where reward_kit did not pack its batches."
    layout = row.get("layout", "")
    return f", {layout.replace('|', '/')}" if layout.startswith("padded") else ""


def train_line(row: dict) -> str:
    "What was measured, in words."
    speed = f"{row['pairs']:.1f} pairs/s, {1000 * row['step']:.0f} ms a step, {row['tokens']:,.0f} tokens/s"
    return f"{speed}, {row['share']:.1%} of the bare product, peak {row['peak']:.1f} GiB{not_packed(row)}"


TRAIN_NOTES = """reward_kit has its defaults: bfloat16 autocast (float32 on a CPU), packed batches, a random
order; a run of 300 steps or more compiles its layers by itself on a GPU, these short ones only where asked.
Liger's kernels and FlashAttention 3 (which torch offers to its own attention) are measured where they are
installed; TRL takes no Liger kernels for a model with a head.
TRL has its best settings for the same work: batches of pairs of similar length, made by hand and read in
order (`train_sampling_strategy="sequential"`), the same precision, no gradient checkpointing,
`max_length=2048`, a learning rate of 1e-5; the rest are its defaults. Both get the same pairs as texts,
none too long for either. A step ends when the device has done its work. The first {warm} steps are left
out; how long the first took stands in the last column, with what was compiled in it. Tokens are unique
ones, on all sides: a beginning that both responses share counts once, padding never. A token takes 6
operations for each weight outside the embeddings; with LoRA 4, since frozen weights need no gradients.
Peak memory is that of tensors (on a CPU that of the process)."""


def train_report(rows: list[dict], facts: dict):
    "Text, figure and caption."
    found = {(row["run"], row["side"]): row for row in rows}
    names = dict.fromkeys(run for run, _ in found)
    rows = [found[name, side] for name in names for side in SIDES if (name, side) in found]
    base = {row["run"]: row["tokens"] for row in rows if row["side"] == "trl" and "tokens" in row}

    def cells(row):
        if "problem" in row:
            return [row["problem"], *[""] * 6]
        ratio = row["tokens"] / base[row["run"]] if row["run"] in base else None
        return [
            f"{row['pairs']:.1f}",
            f"{1000 * row['step']:.0f}",
            f"{row['tokens']:,.0f}",
            f"{ratio:.2f}" if ratio else "",
            f"{row['share']:.1%}",
            f"{row['peak']:.1f}",
            f"{row['first']:.1f}",
        ]

    head = ["", "", "pairs/s", "ms a step, median", "tokens/s", "of TRL's", "share of the bare product"]
    head += ["peak GiB", "first step, s"]
    text = [
        f"Training a reward model of Qwen3-{facts['model']}'s shape, where no other is named.",
        "",
        *table(head, [[row["run"], SIDES[row["side"]] + not_packed(row), *cells(row)] for row in rows]),
        "",
        TRAIN_NOTES.format(warm=WARM_UP),
    ]
    labels = [f"{row['run']}: {SIDES[row['side']]}" for row in rows]
    figure, panels = new_figure(1, 2, 9.6, 0.2 * len(rows) + 0.9)
    colours = [COLOURS[row["side"]] for row in rows]
    row_bars(panels[0, 0], labels, rows, colours, "share")
    row_bars(panels[0, 1], [""] * len(rows), rows, colours, "peak")
    return text, figure, "Share of the bare product and peak memory of training by side"


# key of a row -> label of its axis, factor
AXES = {
    "share": ("share of the bare product, %", 100),
    "peak": ("peak memory, GiB", 1),
    "texts": ("texts a second", 1),
    "seconds": ("seconds of a step", 1),
}


def row_bars(axes, labels: list[str], rows: list[dict], colours: list[str], key: str) -> None:
    "A bar a row with its number, or with what went wrong."
    label, factor = AXES[key]
    values = [factor * row.get(key, 0) for row in rows]
    drawn = axes.barh(range(len(rows)), values, color=colours)
    words = [row.get("problem", f"{value:.3g}")[:40] for row, value in zip(rows, values)]
    axes.bar_label(drawn, labels=words, fontsize=7, padding=2)
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel(label, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15, y=0.02)


# ---- scoring


def scorer(world: World, side: str, shape: str):
    "A function of prompts, responses and their rendered texts, its model, and the layout if it is ours."
    import torch
    import transformers

    rm = world.reward_model(shape, "float32" if side == "float32" else "bfloat16")
    tokenizer, model = rm.tokenizer, rm.model  # its forward pass is its own unless rewards are asked for
    if side in ("float32", "bfloat16", "long"):
        layout = rm.scorer.collate.layout
        if side == "long":
            from reward_kit.model.packing import compile_layers

            compile_layers(model, asked=False)  # on a GPU
        return lambda prompts, responses, texts: rm.score(prompts, responses), model, layout
    if side == "alone":

        @torch.inference_mode()
        def call(prompts, responses, texts):
            ready = (tokenizer(text, return_tensors="pt").to(world.device) for text in texts)
            return [model(**one).logits.item() for one in ready]

        return call, model, ""
    pipe = transformers.pipeline(
        "text-classification",
        model,
        tokenizer=tokenizer,
        device=world.device,
        function_to_apply="none",
        batch_size=int(side.split("-")[1]),
    )

    def in_order(prompts, responses, texts):
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = dict(zip(order, pipe([texts[i] for i in order])))
        return [found[i]["score"] for i in range(len(texts))]

    return in_order, model, ""


def score_once(world: World, side: str, shape: str, rows: list, product: float, reference: list) -> dict:
    "Speed, memory, and what changes in the order of texts; scores in float32 become the reference."
    from reward_kit.model.settings import quiet

    rows = rows[: ALONE // 2] if side == "alone" else rows
    prompts = [row["prompt"] for row in rows for _ in range(2)]
    responses = [row[name] for row in rows for name in ("chosen", "rejected")]
    with quiet():
        encoder = World(world.work, "cpu", world.vocabulary).reward_model("tiny").encoder
        texts = [encoder.render(*pair) for pair in zip(prompts, responses)]
        call, model, layout = scorer(world, side, shape)
        free_memory(world.device)
        call(prompts[-16:], responses[-16:], texts[-16:])  # warms up
        synchronize(world.device)
        begin = perf_counter()
        scores = call(prompts, responses, texts)
        seconds = perf_counter() - begin
    speed = sum(row["unique"] for row in rows) / seconds
    if side == "float32":
        reference += scores
    change = ranking(reference[: len(scores)], scores) if reference and side != "float32" else {}
    return {
        "texts": len(texts) / seconds,
        "seconds": seconds,
        "tokens": speed,
        "share": 2 * inner_parameters(model) * speed / product,
        "peak": peak(world.device),
        "layout": layout,
    } | {name: change[name] for name in ("turned", "tied", "tau") if change}


def score(work: Path, device: str, vocabulary: int, shape: str, texts: int, product: float, until: float):
    "A row for each way of scoring."
    world, reference = World(work, device, vocabulary), []
    rows = world.rows("short", texts // 2)
    random.Random(0).shuffle(rows)
    for side in SCORERS:
        measured = attempt(partial(score_once, world, side, shape, rows, product, reference), device, until)
        yield {"side": side, "count": texts // 2 * 2} | measured


def score_line(row: dict) -> str:
    "What was measured, in words."
    share = f"{row['share']:.1%} of the bare product, peak {row['peak']:.1f} GiB"
    return f"{row['texts']:.1f} texts/s, {share}{not_packed(row)}"


def score_report(rows: list[dict], facts: dict):
    "Text, figure and caption."

    def cells(row):
        if "problem" in row:
            return [row["problem"], *[""] * 6]
        numbers = [f"{row['texts']:.1f}", f"{row['tokens']:,.0f}"]
        numbers += [f"{row['share']:.1%}", f"{row['peak']:.1f}"]
        if "tau" not in row:
            return numbers + [""] * 3
        return [*numbers, f"{row['turned']:.2%}", f"{row['tied']:.2%}", f"{row['tau']:.4f}"]

    head = ["", "texts/s", "tokens/s", "share of the bare product", "peak GiB", "pairs turned around"]
    head += ["pairs that tie", "Kendall's tau"]
    text = [
        f"Scoring {rows[0]['count']} short texts with a reward model of Qwen3-{facts['model']}'s"
        f" shape; one by one the first {ALONE} of them.",
        "",
        *table(head, [[SCORERS[row["side"]] + not_packed(row), *cells(row)] for row in rows]),
        "",
        "reward_kit gets prompts and responses, in no order, and does the template and the tokenising in the"
        " time measured; the others get rendered texts. The pipeline pads a batch to its longest text;"
        " sorting is done here, in the time measured. The last three columns compare with float32: pairs of"
        " a prompt whose order is the other one, pairs whose scores are equal, and Kendall's tau-b of all"
        " texts. A model with random weights tells the responses to a prompt apart less than a trained one"
        " does. Tokens are unique ones, as in training; a token takes 2 operations for each weight outside"
        " the embeddings.",
    ]
    figure, panels = new_figure(1, 2, 9.0, 0.26 * len(rows) + 0.9)
    colours, labels = [COLOURS[row["side"]] for row in rows], [SCORERS[row["side"]] for row in rows]
    row_bars(panels[0, 0], labels, rows, colours, "texts")
    row_bars(panels[0, 1], [""] * len(rows), rows, colours, "share")
    return text, figure, "Texts a second and share of the bare product of scoring"


# ---- PPO

PHASES = {"sample": "sampling", "score": "scoring", "reference": "reference", "values": "values"}
PHASES |= {"update": "updates"}
CRITICS = ("separate", "shared")
CACHES = ("dynamic", "static", "paged")  # of sampling


def policy_of(world: World, shape: str, cache: str):
    "Random weights, and an adapter where they are in 16 bits, as FlashAttention wants for a paged cache."
    half = cache == "paged" and world.device == "cuda"
    model = world.model(shape, "bfloat16" if half else "float32", head="CausalLM")
    if not half:
        return model, None
    from peft import LoraConfig

    return model, LoraConfig(r=16, target_modules="all-linear")


def ppo_once(world: World, shape: str, critic: str, cache: str, episodes: int, response: int) -> dict:
    "Seconds of the phases of the second step, with compiled layers; the first of them compiles."
    from reward_kit.model.settings import quiet
    from reward_kit.rl.ppo import PPOConfig, PPOTrainer

    (policy, adapter), judge = policy_of(world, shape, cache), world.reward_model(shape)
    prompts = [row["prompt"] for row in world.rows("short", 2 * episodes)]
    size = min(8, episodes)
    settings = PPOConfig(
        str(world.work / "ppo"),
        critic=critic,
        cache_implementation=cache,
        torch_compile=world.device == "cuda",
        total_episodes=2 * episodes,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=episodes // size,
        response_length=response,
        num_ppo_epochs=4,
        logging_steps=1,
        save_steps=0,
        num_sample_generations=0,
        disable_tqdm=True,
        use_cpu=world.device == "cpu",
    )
    with quiet():
        trainer = PPOTrainer(
            policy, judge, settings, prompts, processing_class=world.tokenizer, peft_config=adapter
        )
        log = trainer.train().log_history[-1]
    if trainer.sampling.way != cache:
        raise RuntimeError("sampling fell back to the dynamic cache; the reason is in the log")
    seconds = {phase: log.get(f"time/{phase}", 0.0) for phase in PHASES}
    return {
        "seconds": seconds,
        "step": episodes / log["eps"],
        "tokens": episodes * log["response/length"] / seconds["sample"],
        "peak": peak(world.device),
    }


def ppo(work: Path, device: str, vocabulary: int, shape: str, episodes: int, response: int, until: float):
    "A row for each way of sampling, and one for the other kind of critic."
    world = World(work, device, vocabulary)
    for critic, cache in [*(("shared", cache) for cache in CACHES), ("separate", "dynamic")]:
        measured = attempt(partial(ppo_once, world, shape, critic, cache, episodes, response), device, until)
        yield {"critic": critic, "cache": cache, "episodes": episodes, "response": response} | measured


def ppo_line(row: dict) -> str:
    "What was measured, in words."
    parts = ", ".join(f"{PHASES[phase]} {seconds:.1f}" for phase, seconds in row["seconds"].items())
    speed = f"{row['tokens']:,.0f} tokens/s sampled, peak {row['peak']:.1f} GiB"
    return f"a step of {row['step']:.1f} s ({parts}), {speed}"


def ppo_report(rows: list[dict], facts: dict):
    "Text, figure and caption."

    def cells(row):
        if "problem" in row:
            return [row["problem"], *[""] * (len(PHASES) + 2)]
        own = [row["step"], *row["seconds"].values()]
        return [*(f"{seconds:.2f}" for seconds in own), f"{row['tokens']:,.0f}", f"{row['peak']:.1f}"]

    head = ["critic", "cache", "step, s", *(f"{name}, s" for name in PHASES.values())]
    head += ["tokens/s sampled", "peak GiB"]
    told = f"{rows[0]['episodes']} responses of at most {rows[0]['response']} tokens"
    text = [
        f"A step of PPO: {told}, four passes over them, policy and reward model of Qwen3-{facts['model']}'s"
        " shape. The second step of a run is measured.",
        "",
        *table(head, [[row["critic"], row["cache"], *cells(row)] for row in rows]),
        "",
        "A policy with random weights hardly ever ends a response, so nearly all have full length. The reward"
        " model has float32 weights, the rest computes in bfloat16 where the device is a GPU. A shared critic"
        " is a head on the policy, which saves a model and its forward and backward passes. Caches: dynamic"
        " is reward_kit's loop, static and paged are of transformers (compiled steps; continuous batching)."
        " On a GPU layers are compiled, in the first step; beside a paged cache the policy is an adapter on"
        " bfloat16 weights, which FlashAttention reads where it is installed.",
    ]
    figure, panels = new_figure(2, (len(rows) + 1) // 2, 4.2 * ((len(rows) + 1) // 2), 4.6)
    for axes, row in zip(panels.flat, rows):
        phases = [{"seconds": seconds} for seconds in row.get("seconds", {}).values()] or [row]
        row_bars(axes, list(PHASES.values())[: len(phases)], phases, [BLUE] * len(phases), "seconds")
        axes.set_title(f"critic: {row['critic']}, cache: {row['cache']}", fontsize=9)
    return text, figure, "Seconds of the phases of a step of PPO"


# ---- the command

SECTIONS = {
    "exact": (exact, exact_line, exact_report),
    "train": (train, train_line, train_report),
    "score": (score, score_line, score_report),
    "ppo": (ppo, ppo_line, ppo_report),
}
WEIGHTS = {"exact": 2, "train": 2, "score": 1, "ppo": 2}  # of each process, where time has to be shared


def streamed(job, work: Path, path: str, until: float, stop: float, **given) -> None:
    "Rows are written as they are found; whatever happens, the process is over in time."
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # as users have it
    faulthandler.dump_traceback_later(max(1.0, stop - time()), exit=True)
    with open(path, "a", encoding="utf-8") as file:
        for row in job(work, until=until, **given):
            file.write(json.dumps(row) + "\n")
            file.flush()
    faulthandler.cancel_dump_traceback_later()


class Jobs(Workers):
    "Processes whose rows are printed as they come."

    def rows(self, section: str, label: str, line, until: float, stop: float, **given) -> list[dict]:
        "Rows of a process; where it failed, what happened is one more."
        path, found = self.work / f"rows-{self.count}.jsonl", []
        if time() > until:
            print(f"{label}: {NO_TIME}", flush=True)
            return [{"job": label, "problem": NO_TIME}]
        path.touch()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(self.ask, section, path=str(path), until=until, stop=stop, **given)
            done = False
            while not done:
                sleep(0.1)
                done = asked.done()
                lines = path.read_text(encoding="utf-8").split("\n")[len(found) : -1]
                for row in map(json.loads, lines):
                    found.append(row)
                    print(f"{name_of(row)}: {row.get('problem') or line(row)}", flush=True)
        if asked.exception():
            last = str(asked.exception()).strip().splitlines()[-1].strip()[:160]
            found.append({"job": label, "problem": "stopped: no time left" if time() > stop - 1 else last})
            print(f"{label}: {found[-1]['problem']}", flush=True)
        return found


def name_of(row: dict) -> str:
    "What a row is about."
    names = [row[key] for key in ("family", "way", "run", "side", "critic", "cache") if key in row]
    words = SIDES | SCORERS | {critic: f"PPO, {critic} critic" for critic in CRITICS}
    words |= {cache: f"{cache} cache" for cache in CACHES}
    return ", ".join(words.get(name, name) for name in names)


def processes(args, facts: dict) -> list[tuple[str, str, dict]]:
    "(section, its name in the output, what it is given) of every process."
    world = {"device": facts["device"], "vocabulary": args.vocabulary}
    product = {"product": facts["product"]}
    large = facts["free"] >= LARGE_NEEDS if args.large is None else args.large
    on_gpu = facts["device"] == "cuda"
    sides = [side for side in SIDES if side not in NEEDS or (on_gpu and find_spec(NEEDS[side]))]
    alone = [[side] for side in sides] if on_gpu else [sides]
    training = world | product | {"runs": runs_of(args, large)}
    scoring = world | product | {"shape": args.model}
    scoring["texts"] = min(args.texts, 2 * facts["short"]["rows"])
    rollouts = {"shape": args.model, "episodes": args.episodes, "response": args.response}
    found = {
        "exact": [("exact", {"device": facts["device"], "families": args.families})],
        "train": [(f"train ({', '.join(some)})", training | {"sides": some}) for some in alone],
        "score": [("score", scoring)],
        "ppo": [("ppo", world | rollouts)],
    }
    return [(section, *job) for section in args.sections for job in found[section]]


def about(facts: dict) -> list[str]:
    "What a table rests on."
    pairs = "; ".join(
        f"{kind}: {facts[kind]['name']}, {facts[kind]['tokens']:.0f} unique tokens a pair"
        for kind in ("short", "long")
    )
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    product = f"bare bfloat16 product: {facts['product'] / 1e12:.3g} TFLOP/s"
    return [f"{facts['card']}; {product}; {versions}.", "", f"Pairs: {pairs}."]


def arguments():
    "Of the command."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    add("--data", nargs="+", default=[], help="preference files: short conversations, long pairs")
    add("--model", choices=SIZES, default="0.6b", help="'tiny' is for trying the command out")
    add("--vocabulary", type=int, default=16384)
    add("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="of 'exact'")
    add("--batch", type=int, nargs="+", default=[8, 32, 64], help="pairs of short conversations")
    add("--long-batch", type=int, default=8)
    add("--steps", type=int, default=12, help="timed steps of each training")
    add("--texts", type=int, default=2048, help="to score")
    add("--episodes", type=int, default=64, help="of a step of PPO; above 8 a multiple of it")
    add("--response", type=int, default=128, help="tokens that PPO samples at most")
    add(
        "--large",
        action=argparse.BooleanOptionalAction,
        help=f"also train 4B, and 8B by LoRA; by itself where {LARGE_NEEDS} GiB are free",
    )
    add("--minutes", type=float, default=9.5, help="for everything; what does not fit is not run")
    add("--threads", type=int, default=available_threads())
    add("--output", type=Path, help="folder for a Markdown file and a picture a section")
    add("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if len(args.data) > 2:
        parser.error("--data takes two files: short conversations, long pairs")
    if args.episodes < 1 or args.episodes % min(8, args.episodes):
        parser.error(f"--episodes {args.episodes} must be a multiple of 8")
    return args


def main(args) -> None:
    "Prepare, measure, report; each section is written as soon as it is done."
    deadline = time() + 60 * args.minutes
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # trainers would use all there are
    with Jobs(__file__, args.threads) as workers:
        facts = workers.ask("prepare", data=args.data, vocabulary=args.vocabulary) | {"model": args.model}
        print("\n".join(about(facts)), flush=True)
        pending, found = processes(args, facts), {section: [] for section in args.sections}
        while pending:
            section, label, given = pending[0]
            share = WEIGHTS[section] / sum(WEIGHTS[own] for own, *_ in pending)
            wanted = time() + share * (deadline - time())
            stop = min(wanted + 45, deadline)
            _, line, report = SECTIONS[section]
            found[section] += workers.rows(section, label, line, min(wanted, stop - 20), stop, **given)
            pending.pop(0)
            if section in {own for own, *_ in pending}:
                continue
            rows = [row for row in found[section] if "job" not in row]
            lost = [f"- {row['job']}: {row['problem']}" for row in found[section] if "job" in row]
            try:
                text, *picture = report(rows, facts) if rows else [[]]
            except Exception as error:  # of the table; what was measured is kept
                text, picture = [f"{type(error).__name__}: {error}", *map(json.dumps, rows)], []
            output = args.output and args.output / f"gpu_{section}.md"
            publish("\n".join([*text, "", *lost, *([""] if lost else []), *about(facts)]), output, *picture)


if __name__ == "__main__":
    args = arguments()
    if args.worker is None:
        main(args)
    else:
        jobs = {section: partial(streamed, job) for section, (job, *_) in SECTIONS.items()}
        answer(args.worker, {"prepare": prepare} | jobs)
