"""Pairs per second and peak memory of training: ours beside TRL's RewardTrainer (the installed release), on
the same token ids.

    python benchmarks/train_speed.py --data hh-rlhf-harmless-test.jsonl.gz [--batch 8 32] [--dtype fp32 bf16]
        [--output benchmarks/results/train_speed.md]
    python benchmarks/train_speed.py --data FILE --defaults [--output ...]    each side with its own defaults
    python benchmarks/train_speed.py --shapes [--output ...]                  made-up lengths at which packing
        has nothing to gain

The pairs are those of a preference file at their natural lengths (its conversations through one chat
template, cut on the left beyond
--max-length tokens), a sample with the file's distribution of lengths, encoded once; every side reads the
same ids and the same model from one folder. Each process takes one step on the shortest pairs to
warm up; the steps after it are timed, from the end of a step to the end of the next. What our speed
is made of is told apart by turning it on piece by piece: padded as TRL does it, then packed without
sharing prompts, then packed. TRL is also measured with batches of similar length, made by hand.
With --pairs 32
--rounds 1 it took 11 minutes on two cores for a file of short conversations; for long ones use --batch 8
--pairs 16.
"""

import argparse
import json
import random
from pathlib import Path
from statistics import median
from time import perf_counter

from common import (
    BLUE,
    DTYPES,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    YELLOW,
    StepMeter,
    Workers,
    alternating,
    answer,
    bars,
    build_tokenizer,
    common_arguments,
    evenly,
    middle,
    model_line,
    new_figure,
    peak_gib,
    publish,
    read_pairs,
    save_reward_model,
    table,
    texts_of,
    versions_line,
)

# side -> name in the table, layout of the batch, whether batches hold pairs of similar length
SIDES = {
    "packed": ("reward_kit, packed (default)", "random"),
    "unshared": ("reward_kit, packed, prompts not shared", "random"),
    "padded": ("reward_kit, padded", "random"),
    "theirs": ("TRL", "random"),
    "theirs-grouped": ("TRL, grouped by hand", "grouped"),
    "packed-grouped": ("reward_kit, packed, TRL's grouped batches", "grouped"),
}
NAMES = {side: name for side, (name, _) in SIDES.items()}
COLOURS = {
    "packed": BLUE,
    "unshared": SKY,
    "padded": GREEN,
    "theirs": ORANGE,
    "theirs-grouped": YELLOW,
    "packed-grouped": GREY,
}
POSITIONS = 8192  # that the model has; no limit to any length here


def prepare(
    work: Path, data: str, model: str, vocabulary: int, batches: list[int], n: int, max_length: int
) -> dict:
    "Model, tokenizer and encoded pairs, in one folder that all processes read."
    from reward_kit.model.encoding import RewardEncoder
    from reward_kit.model.model_folder import RewardMetadata

    pairs = read_pairs(data)
    tokenizer = build_tokenizer(texts_of(pairs), vocabulary)
    facts = save_reward_model(work / "model", tokenizer, model, POSITIONS, max_length)
    encoded = RewardEncoder(tokenizer, RewardMetadata.load(work / "model").encoding).encode(
        [prompt for prompt, responses in pairs for _ in responses],
        [response for _, responses in pairs for response in responses],
    )
    ids = [pair for pair in zip(encoded.ids[::2], encoded.ids[1::2]) if None not in pair]
    if len(ids) < n + max(batches):
        raise SystemExit(
            f"{n + max(batches)} pairs are needed, {Path(data).name} has {len(ids)}; fewer --pairs do"
        )
    ids.sort(key=lambda pair: max(map(len, pair)))
    for batch in batches:
        chance, sample = random.Random(0), evenly(ids, n)
        size = lambda group: sum(len(a) + len(b) for a, b in group)
        groups = evenly([ids[i : i + batch] for i in range(0, len(ids) - batch + 1, batch)], n // batch, size)
        chance.shuffle(sample)
        chance.shuffle(groups)
        for name, chosen in (("random", sample), ("grouped", [pair for group in groups for pair in group])):
            (work / f"{name}-{batch}.json").write_text(json.dumps([*ids[:batch], *chosen]))
    whole, taken = (sum(len(a) + len(b) for a, b in some) / len(some) for some in (ids, evenly(ids, n)))
    return facts | {
        "pairs": len(ids),
        "cut": sum(encoded.cut),
        "mean tokens": whole,
        "mean tokens of the sample": taken,
    }


def made_up(work: Path, model: str, vocabulary: int, shapes: dict) -> dict:
    "A model, and pairs of random tokens of given lengths."
    from reward_kit.data.playground import Playground

    facts = save_reward_model(
        work / "model", build_tokenizer(Playground(0).texts(2000), vocabulary), model, POSITIONS, POSITIONS
    )
    draw = random.Random(0)
    tokens = lambda k: [draw.randrange(10, facts["vocabulary"]) for _ in range(k)]
    for name, (prompt, response, batch, steps) in shapes.items():
        pairs = []
        for _ in range(batch * (steps + 1)):
            shared = tokens(prompt)
            pairs.append(
                [
                    shared + tokens(response if isinstance(response, int) else draw.randint(*response))
                    for _ in range(2)
                ]
            )
        (work / f"{name}.json").write_text(json.dumps(pairs))
    return facts


def count_tokens(pairs: list, batch: int) -> list[dict]:
    "Tokens of each batch, and how many of them are not a beginning that both responses share."
    from reward_kit.model.batches import shared_length

    found = []
    for start in range(0, len(pairs), batch):
        own = pairs[start : start + batch]
        total = sum(len(a) + len(b) for a, b in own)
        found.append({"tokens": total, "unique": total - sum(shared_length(a, b) for a, b in own)})
    return found


def settings_of(side: str, batch: int, dtype: str, steps: int, defaults: bool) -> dict:
    "What both trainers are told, by the same names."
    needed = {
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if defaults:
        return needed
    return needed | {
        "bf16": dtype == "bf16",
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "seed": 0,
    }


def multiplies_bf16() -> bool:
    "Whether this CPU does; one that emulates it takes a hundred times as long."
    from reward_kit.model.runs import default_precision

    return default_precision(use_cpu=True, parameters=10**9) == "bf16"


def make_trainer(
    side: str, folder: Path, out: Path, pairs: list, settings: dict, defaults: bool, callbacks: list
):
    "A trainer of one side on given token ids."
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer

    import reward_kit.model.batches as encoding
    from reward_kit.model.trainer import RewardConfig, RewardTrainer

    dataset = Dataset.from_dict(
        {"chosen_ids": [pair[0] for pair in pairs], "rejected_ids": [pair[1] for pair in pairs]}
    )
    if side.startswith("theirs"):
        own = {"bf16": multiplies_bf16()} if defaults else {"max_length": None}
        args = trl.RewardConfig(str(out), **settings, **own)
        return trl.RewardTrainer(
            str(folder),
            args,
            train_dataset=dataset,
            processing_class=AutoTokenizer.from_pretrained(folder),
            callbacks=callbacks,
        )
    own = {} if defaults else {"layout": "padded" if side == "padded" else "packed", "max_length": POSITIONS}
    trainer = RewardTrainer(
        str(folder),
        RewardConfig(str(out), show_plan=defaults, **settings, **own),
        train_dataset=dataset,
        callbacks=callbacks,
    )
    if side == "unshared":
        encoding._MIN_SHARED = POSITIONS  # of a shared beginning: none is that long
    return trainer


def time_planning(trainer) -> list[float]:
    "Seconds of each plan that a trainer of ours makes from now on; TRL's makes none."
    seconds, plan = [], getattr(trainer, "plan", None)

    def timed(*given, **named):
        begin = perf_counter()
        made = plan(*given, **named)
        seconds.append(perf_counter() - begin)
        return made

    trainer.plan = timed
    return seconds


def train(work: Path, side: str, batches: str, batch: int, dtype: str, defaults: bool = False) -> dict:
    "One trainer in this process: seconds, positions and losses of the steps after the first, peak memory."
    import trl  # noqa: F401  so that what is imported does not count as the trainer's memory

    import reward_kit.model.trainer  # noqa: F401

    pairs, meter, started = json.loads((work / f"{batches}.json").read_text()), StepMeter(), peak_gib()
    steps, begin = len(pairs) // batch, perf_counter()
    trainer = make_trainer(
        side,
        work / "model",
        work / "out",
        pairs,
        settings_of(side, batch, dtype, steps, defaults),
        defaults,
        [meter.callback()],
    )
    planning = time_planning(trainer)
    kept = len(trainer.train_dataset)
    if kept < len(pairs):
        trainer.args.max_steps = kept // batch
    meter.watch(trainer.model)
    trainer.train()
    whole = perf_counter() - begin
    counts = count_tokens(pairs, batch)[1:]
    result = meter.result() | {
        name: sum(one[name] for one in counts) / len(counts) for name in ("tokens", "unique")
    }
    result |= {
        "imports_gib": started,
        "peak_gib": peak_gib(),
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "speed": batch * len(result["seconds"]) / sum(result["seconds"]),
        "median speed": batch / median(result["seconds"]),
        "whole speed": kept / whole,
        "planning": sum(planning) / whole,
        "kept": kept,
        "given": len(pairs),
    }
    if defaults:
        result |= trained_tokens(trainer, result["seconds"])
    args = trainer.args
    return result | {
        "settings": {
            "precision": "bfloat16 autocast" if args.bf16 else "float32",
            "gradient checkpointing": bool(args.gradient_checkpointing),
            "learning rate": args.learning_rate,
            "order": str(args.train_sampling_strategy),
        }
    }


def trained_tokens(trainer, seconds: list[float]) -> dict:
    "Tokens a second of a trainer that chose its own order: all it kept, but for a batch that warmed up."
    rows = trainer.train_dataset
    total = (
        sum(map(sum, rows["lengths"]))
        if "lengths" in rows.column_names
        else sum(len(a) + len(b) for a, b in zip(rows["chosen_ids"], rows["rejected_ids"]))
    )
    return {"tokens of a pair": total / len(rows)}


def check_losses(found: dict[str, list[dict]], dtype: str) -> float:
    """Largest difference of the losses of runs over the same batches. RuntimeError where the sides did
    not do the same work."""
    worst = 0.0
    for kind in ("random", "grouped"):
        runs = [run["losses"] for side, own in found.items() for run in own if SIDES[side][1] == kind]
        worst = max([worst, *(abs(a - b) for one in runs for a, b in zip(one, runs[0], strict=True))])
    if worst > (2e-3 if dtype == "fp32" else 5e-2):
        raise RuntimeError(f"the losses of the same batches differ by {worst:.2g} ({dtype})")
    return worst


def ratio(found: dict, a: str, b: str, key: str = "speed") -> float:
    "Median over rounds of one side's number over another's."
    return median(x[key] / y[key] for x, y in zip(found[a], found[b]))


def side_rows(
    found: dict[str, list[dict]], against: dict[str, str], names: dict[str, str], batch: int
) -> list[list[str]]:
    "A row a side."
    rows = []
    for side, runs in found.items():
        each, other = ", ".join(f"{run['speed']:.2f}" for run in runs), against[side]
        counts = [
            f"{sum(runs[0]['positions']) / len(runs[0]['positions']):,.0f}",
            f"{runs[0]['tokens']:,.0f}",
            f"{runs[0]['unique']:,.0f}",
        ]
        rows.append(
            [
                names[side],
                f"{middle(runs, 'speed'):.2f} ({each})",
                f"{ratio(found, side, other):.2f}",
                f"{middle(runs, 'peak_gib'):.2f} ({middle(runs, 'imports_gib'):.2f})",
                f"{ratio(found, side, other, 'peak_gib'):.0%}",
                *counts,
            ]
        )
    return rows


HEAD = [
    "",
    "pairs/s, median (each round)",
    "of TRL's speed",
    "peak memory, GiB (before the model is read)",
    "of TRL's memory",
    "positions computed, a batch",
    "tokens",
    "unique tokens",
]
NOTES = """*Positions computed* are those that the embeddings read, padding included; *tokens* are those of
chosen and rejected texts; *unique* ones count a beginning that both responses to a prompt share
once. The same on all sides: token ids, pairs, their order and the batches they form, model, AdamW
with its rate (1e-5, constant, clipped at 1), precision, no gradient checkpointing, nothing saved, a
log line at every step. TRL pads chosen and rejected texts to the longest of the batch;
`group_by_length` raises in its trainer, so the grouped batches are made by hand: all pairs of the
file sorted by their longer text, cut into batches, and batches taken evenly from all lengths, of
about the file's mean length, in a random order. Those hold other pairs than the random batches, so
both sides are measured on them, and across batches tokens a second are compared; packing gains
nothing from grouping. Ours computes a batch of more than 4,096 tokens in parts, as it does by
default on a CPU, to the same gradients; that, not the padding, is what sets our padded batches of
32 apart from TRL's. The head's product is float32 on our side, whatever the precision around it.
Peak memory is the largest resident set of a process."""


def variants(args, workers: Workers) -> None:
    "Pieces of our speed beside TRL, for each batch size and precision."
    facts = workers.ask(
        "prepare",
        data=args.data,
        model=args.model,
        vocabulary=args.vocabulary,
        batches=args.batch,
        n=args.pairs,
        max_length=args.max_length,
    )
    configurations, found = [(dtype, batch) for dtype in args.dtype for batch in args.batch], {}
    for i in range(args.rounds):
        for dtype, batch in alternating(configurations, i):
            for side in alternating(SIDES, i):
                run = workers.ask(
                    "train", side=side, batches=f"{SIDES[side][1]}-{batch}", batch=batch, dtype=dtype
                )
                found.setdefault((dtype, batch), {}).setdefault(side, []).append(run)
                print(
                    f"round {i + 1} of {args.rounds}, {dtype}, batch {batch:3}, {NAMES[side]:42}:"
                    f" {run['speed']:7.2f} pairs/s, peak {run['peak_gib']:.2f} GiB",
                    flush=True,
                )
    found = {key: {side: found[key][side] for side in SIDES} for key in configurations}
    lines = [
        (
            f"Training {model_line(facts)} on {args.pairs} pairs of {Path(args.data).name}"
            f" ({facts['mean tokens of the sample']:.0f} tokens a pair; all {facts['pairs']:,} pairs of the"
            f" file: {facts['mean tokens']:.0f}; {facts['cut']} texts cut to {args.max_length} tokens), after"
            f" a step to warm up. Rounds of processes in alternating order: {args.rounds}."
        ),
        "",
    ]
    against = {side: "theirs-grouped" if SIDES[side][1] == "grouped" else "theirs" for side in SIDES}
    shares = []
    for (dtype, batch), own in found.items():
        worst = check_losses(own, dtype)
        lines += [
            f"## {DTYPES[dtype]}, batch {batch}",
            "",
            *table(HEAD, side_rows(own, against, NAMES, batch)),
            "",
            f"Losses of the same batches differ by at most {worst:.1e}.",
            "",
        ]
        pieces = (
            ratio(own, "padded", "theirs"),
            ratio(own, "unshared", "padded"),
            ratio(own, "packed", "unshared"),
            ratio(own, "packed", "theirs"),
        )
        per_token = (
            ratio(own, "packed", "theirs-grouped")
            * own["packed"][0]["tokens"]
            / own["theirs-grouped"][0]["tokens"]
        )
        shares.append(
            [
                DTYPES[dtype],
                batch,
                *(f"{piece:.2f}" for piece in pieces),
                f"{ratio(own, 'packed-grouped', 'theirs-grouped'):.2f}",
                f"{per_token:.2f}",
            ]
        )
    lines += [
        "## What the speed is made of",
        "",
        *table(
            [
                "",
                "batch",
                "the rest (ours padded over TRL)",
                "no padding",
                "shared prompts",
                "all three (ours over TRL)",
                "ours over TRL grouped by hand, its batches",
                "ours, random batches, over TRL grouped by hand, by token",
            ],
            shares,
        ),
        "",
        NOTES,
        "",
        versions_line(args.threads),
    ]
    publish(
        "\n".join(lines), args.output, variants_figure(found, args), "Pairs per second of training by variant"
    )


def variants_figure(found: dict, args):
    "Pairs per second, a panel a precision."
    figure, panels = new_figure(1, len(args.dtype), 3.6 * len(args.dtype) + 0.4, 3.6)
    for axes, dtype in zip(panels.flat, args.dtype):
        series = {
            NAMES[side]: [middle(found[dtype, batch][side], "speed") for batch in args.batch]
            for side in SIDES
        }
        bars(
            axes,
            [f"batch {batch}" for batch in args.batch],
            series,
            {NAMES[side]: colour for side, colour in COLOURS.items()},
        )
        axes.set(ylabel="pairs per second", title=DTYPES[dtype])
        axes.title.set_fontsize(10)
    figure.legend(
        *panels.flat[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=7.5,
    )
    return figure


def own_defaults(args, workers: Workers) -> None:
    "Each side as it is released: what a user gets who sets nothing."
    facts = workers.ask(
        "prepare",
        data=args.data,
        model=args.model,
        vocabulary=args.vocabulary,
        batches=[8],
        n=args.pairs,
        max_length=args.max_length,
    )
    sides, found = {"ours": "reward_kit", "theirs": "TRL"}, {"ours": [], "theirs": []}
    for i in range(args.rounds):
        for side in alternating(sides, i):
            run = workers.ask("train", side=side, batches="random-8", batch=8, dtype="", defaults=True)
            found[side].append(run | {"token speed": run["speed"] * run["tokens of a pair"]})
            print(
                f"round {i + 1} of {args.rounds}, {sides[side]:12}: {run['speed']:7.2f} pairs/s, peak"
                f" {run['peak_gib']:.2f} GiB",
                flush=True,
            )
    rows = []
    for side, runs in found.items():
        each, one = ", ".join(f"{run['speed']:.2f}" for run in runs), runs[0]
        settings = "; ".join(
            f"{name} {'on' if value is True else 'off' if value is False else value}"
            for name, value in one["settings"].items()
        )
        rows.append(
            [
                sides[side],
                f"{middle(runs, 'speed'):.2f} ({each})",
                f"{ratio(found, side, 'theirs'):.2f}",
                f"{middle(runs, 'token speed'):,.0f}",
                f"{ratio(found, side, 'theirs', 'token speed'):.2f}",
                f"{middle(runs, 'whole speed'):.2f}",
                f"{ratio(found, side, 'theirs', 'whole speed'):.2f}",
                f"{middle(runs, 'planning'):.1%}",
                f"{middle(runs, 'peak_gib'):.2f} ({middle(runs, 'imports_gib'):.2f})",
                f"{one['given'] - one['kept']} of {one['given']}",
                settings,
            ]
        )
    head = [
        "",
        "pairs/s, median (each round)",
        "of TRL's speed",
        "tokens of the data a second",
        "of TRL's",
        "pairs/s of the whole call",
        "of TRL's",
        "planning, of the whole call",
        "peak memory, GiB (before the model is read)",
        "pairs left out as too long",
        "its defaults here",
    ]
    text = [
        (
            "Each side with its own defaults, told only to use the CPU, how many steps to take and to save"
            f" nothing: {model_line(facts)} on {args.pairs} pairs of {Path(args.data).name}"
            f" ({facts['mean tokens of the sample']:.0f} tokens a pair), batch 8, after a step to warm up."
            f" Rounds: {args.rounds}."
        ),
        "",
        *table(head, rows),
        "",
        (
            "TRL drops pairs with a text over 1,024 tokens; we cut texts on the left, to 2,048 (done before"
            " for both, so that both get the same ids). A pair that is left out costs no time: tokens a"
            " second are the fair comparison. The whole call begins with the constructor and holds all that"
            " comes before the first step: loading, our plan, the first step. On a CPU that multiplies"
            " bfloat16 both compute in it; where it would be emulated we train in float32 by ourselves, and"
            " TRL is told to (bf16=False), since its default would take a hundred times as long."
        ),
        "",
        versions_line(args.threads),
    ]
    figure, panels = new_figure(1, 2, 5.4, 3.0)
    for axes, key, label in zip(panels.flat, ("speed", "peak_gib"), ("pairs per second", "peak memory, GiB")):
        bars(
            axes,
            ["own defaults, batch 8"],
            {sides[side]: [middle(runs, key)] for side, runs in found.items()},
            {"reward_kit": BLUE, "TRL": ORANGE},
            2,
        )
        axes.set_ylabel(label)
    figure.legend(
        *panels.flat[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=8,
    )
    publish("\n".join(text), args.output, figure, "Speed and peak memory with each side's own defaults")


def shape_table(steps: int, long: int) -> dict:
    "name -> (tokens of the shared prompt, tokens of each response or least and most, batch, timed steps)"
    return {
        "nothing shared, 256 tokens": (0, 256, 8, steps),
        "nothing shared, 16 tokens": (0, 16, 32, steps),
        "nothing shared, 8 to 24 tokens": (0, (8, 24), 32, steps),
        "one-token responses": (255, 1, 8, steps),
        "half shared, all lengths equal": (128, 128, 8, steps),
        f"long ({long:,}), nothing shared, batch 1": (0, long, 1, max(1, steps // 2)),
        f"long ({long:,}), half shared, batch 1": (long // 2, long // 2, 1, max(1, steps // 2)),
        f"long ({long:,}), half shared, batch 2": (long // 2, long // 2, 2, 1),
    }


def shapes(args, workers: Workers) -> None:
    "Lengths at which packing might lose."
    shapes = shape_table(args.steps, args.long)
    facts = workers.ask("made_up", model=args.model, vocabulary=args.vocabulary, shapes=shapes)
    sides, found = {"packed": "reward_kit, packed", "padded": "reward_kit, padded", "theirs": "TRL"}, {}
    for i in range(args.rounds):
        for shape, dtype in alternating([(shape, dtype) for shape in shapes for dtype in args.dtype], i):
            for side in alternating(sides, i):
                run = workers.ask("train", side=side, batches=shape, batch=shapes[shape][2], dtype=dtype)
                found.setdefault((shape, dtype), {}).setdefault(side, []).append(run)
                print(
                    f"round {i + 1} of {args.rounds}, {shape}, {dtype}, {sides[side]:20}:"
                    f" {run['median speed']:7.2f} pairs/s, peak {run['peak_gib']:.2f} GiB",
                    flush=True,
                )
    rows = []
    for shape in shapes:
        for dtype in args.dtype:
            own = found[shape, dtype]
            batch = shapes[shape][2]
            rows.append(
                [
                    shape,
                    batch,
                    DTYPES[dtype],
                    *(f"{middle(own[side], 'median speed'):.2f}" for side in sides),
                    f"{ratio(own, 'packed', 'theirs'):.2f}",
                    f"{ratio(own, 'packed', 'padded'):.2f}",
                    *(f"{middle(own[side], 'peak_gib'):.2f}" for side in sides),
                    f"{ratio(own, 'packed', 'theirs', 'peak_gib'):.0%}",
                ]
            )
    head = [
        "pairs",
        "batch",
        "precision",
        *(f"{name}, pairs/s" for name in sides.values()),
        "packed over TRL",
        "packed over padded",
        *(f"{name}, peak GiB" for name in sides.values()),
        "packed of TRL's memory",
    ]
    text = [
        (
            f"Training {model_line(facts)} on pairs of random tokens whose lengths are all equal but where a"
            " range is given, so that there is nothing to pad; batches without a shared prompt have nothing"
            f" to share either. Speed is that of the median step: {args.steps} timed ones after one to warm"
            " up (half of that for long texts), all of the same work; rounds of processes in alternating"
            f" order: {args.rounds}."
        ),
        "",
        *table(head, rows),
        "",
        (
            "Tokens are those of one text, prompt and response. Everything else is the same on all sides, as"
            " in the comparison on real data."
        ),
        "",
        versions_line(args.threads),
    ]
    figure, panels = new_figure(1, 1, 6.8, 3.6)
    axes = panels.flat[0]
    series = {
        DTYPES[dtype]: [ratio(found[shape, dtype], "packed", "theirs", "median speed") for shape in shapes]
        for dtype in args.dtype
    }
    bars(axes, [shape.replace(", ", ",\n") for shape in shapes], series, dict(zip(series, (BLUE, SKY))), 2)
    axes.axhline(1, color=ORANGE, linestyle="--", linewidth=1)
    axes.set(ylabel="our speed over TRL's (TRL = 1, dashed)")
    axes.tick_params(axis="x", labelsize=6.5)
    axes.legend(frameon=False, fontsize=8)
    publish("\n".join(text), args.output, figure, "Speed of packed batches over TRL's by shape")


def arguments():
    "Of the command."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data",
        help=(
            "a preference file: HH-style transcripts, ShareGPT-style pairs, or any other that reward_kit"
            " reads"
        ),
    )
    parser.add_argument("--defaults", action="store_true", help="each side with its own defaults, batch 8")
    parser.add_argument("--shapes", action="store_true", help="made-up lengths instead of a file")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--pairs", type=int, default=32, help="timed pairs in a process")
    parser.add_argument("--steps", type=int, default=4, help="timed steps in a process, with --shapes")
    parser.add_argument("--long", type=int, default=4096, help="tokens of a long text, with --shapes")
    parser.add_argument(
        "--max-length", type=int, default=2048, help="longer texts of the file are cut on the left"
    )
    parser.add_argument("--rounds", type=int, help="processes of each side; default 3, with --shapes 1")
    common_arguments(parser)
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.shapes else 3)
    if args.defaults:
        args.batch = [8]
    if args.worker is None:
        if not args.data and not args.shapes:
            parser.error("--data is missing: a preference file")
        if not args.shapes and any(args.pairs % batch for batch in args.batch):
            parser.error(f"--pairs {args.pairs} must be a multiple of every --batch")
    return args


def main(args) -> None:
    "Prepare, measure, report."
    with Workers(__file__, args.threads) as workers:
        (shapes if args.shapes else own_defaults if args.defaults else variants)(args, workers)


if __name__ == "__main__":
    args = arguments()
    if args.worker is None:
        main(args)
    else:
        answer(args.worker, {"prepare": prepare, "made_up": made_up, "train": train})
