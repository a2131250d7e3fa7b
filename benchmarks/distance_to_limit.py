"""How far a training step is from the matrix products it cannot do without: their bare time over the time of
our whole optimizer step.

    python benchmarks/distance_to_limit.py --data hh-rlhf-harmless-test.jsonl.gz [--output
        benchmarks/results/distance_to_limit.md]

The products are those of every nn.Linear of the layers for the unique tokens of the batch: forward,
and the two of the backward pass (for the input and for the weight). Their time is that of torch.mm
on tensors of those very shapes and that precision, written to memory that is there already, and
measured right after each step, so that both see the same machine. The step is the trainer's own,
from the end of one to the end of the next: collating, forward, backward, clipping, AdamW, logging.
A step that computes its batch in parts (more than 4,096 tokens) is compared with the products of
those parts. The first quarter of a process's steps is not counted: until memory has been taken from
the system once, a step takes up to twice as long. Batches of real transcripts, and made-up pairs
with long responses.
"""

import argparse
import json
import random
from collections import Counter
from math import ceil
from pathlib import Path
from statistics import median
from time import perf_counter

from common import (
    BLUE,
    DTYPES,
    SKY,
    Workers,
    alternating,
    answer,
    bars,
    common_arguments,
    model_line,
    new_figure,
    publish,
    table,
    versions_line,
)
from train_speed import count_tokens, make_trainer, prepare, settings_of

PARTS = ("forward", "backward", "optimizer")


def long_pairs(work: Path, vocabulary: int, batch: int, steps: int, prompt: int, response: int) -> dict:
    "Pairs of random tokens whose responses have half to one and a half times the given length."
    draw = random.Random(0)
    tokens = lambda k: [draw.randrange(10, vocabulary) for _ in range(k)]
    pairs = []
    for _ in range(batch * (steps + 1)):
        shared = tokens(prompt)
        pairs.append(
            [shared + tokens(draw.randint(response // 2, response + response // 2)) for _ in range(2)]
        )
    (work / f"long-{batch}.json").write_text(json.dumps(pairs))
    return {}


def product_seconds(rows: int, n_in: int, n_out: int, dtype, repeats: int = 3) -> float:
    """Seconds of the three matrix products of a linear layer for so many tokens; the median of a few
    times each."""
    import torch

    x, w, g = (
        torch.randn(rows, n_in, dtype=dtype),
        torch.randn(n_out, n_in, dtype=dtype),
        torch.randn(rows, n_out, dtype=dtype),
    )
    y, dx, dw = torch.empty_like(g), torch.empty_like(x), torch.empty_like(w)
    total = 0.0
    for a, b, out in ((x, w.t(), y), (g, w, dx), (g.t(), x, dw)):
        torch.mm(a, b, out=out)
        times = []
        for _ in range(repeats):
            begin = perf_counter()
            torch.mm(a, b, out=out)
            times.append(perf_counter() - begin)
        total += median(times)
    return total


class Clock:
    """Seconds of each step and of its parts, the products its linear layers did, and how long those
    take by themselves."""

    def __init__(self, trainer, dtype):
        from torch import nn

        self.dtype, self.now, self.products, self.steps, self.start = dtype, Counter(), Counter(), [], None
        layers = trainer.model.base_model.layers

        def read(module, args, output):
            self.products[args[0].numel() // module.in_features, module.in_features, module.out_features] += 1

        for module in layers.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(read)
        self.linears = sum(isinstance(module, nn.Linear) for module in layers.modules())
        self.time(trainer, "compute_loss", "forward")
        self.time(trainer.accelerator, "backward", "backward")

    def time(self, owner, method: str, part: str) -> None:
        "Adds the seconds of a method to a part."
        original = getattr(owner, method)

        def timed(*args, **kwargs):
            begin = perf_counter()
            found = original(*args, **kwargs)
            self.now[part] += perf_counter() - begin
            return found

        setattr(owner, method, timed)

    def end_step(self) -> None:
        "A step is complete: measure its products, then start the clock again."
        end = perf_counter()
        each = {product: product_seconds(*product, self.dtype) for product in self.products}
        if self.start is not None:
            flops = sum(
                count * 6 * rows * n_in * n_out for (rows, n_in, n_out), count in self.products.items()
            )
            bare = sum(count * each[product] for product, count in self.products.items())
            rows = [[*product, count] for product, count in self.products.items()]
            self.steps.append(
                {"step": end - self.start, "products": bare, "flops": flops, "rows": rows}
                | {part: self.now[part] for part in PARTS}
            )
        self.now, self.products = Counter(), Counter()
        self.start = perf_counter()

    def callback(self):
        "One that tells this clock when a step ends and how long its optimizer took."
        from transformers import TrainerCallback

        clock = self

        class Ends(TrainerCallback):
            def on_pre_optimizer_step(self, *args, **kwargs):
                clock.before = perf_counter()

            def on_optimizer_step(self, *args, **kwargs):
                clock.now["optimizer"] += perf_counter() - clock.before

            def on_step_end(self, *args, **kwargs):
                clock.end_step()

        return Ends()


def check_rows(step: dict, unique: int, responses: int, linears: int) -> None:
    """RuntimeError where the layers did not compute each unique token once, and the end of the last
    layer one place a response; in parts or at once."""
    read, needed = (
        sum(rows * count for rows, _, _, count in step["rows"]),
        unique * (linears - 3) + 3 * responses,
    )
    if read != needed:
        raise RuntimeError(
            f"{unique} unique tokens and {responses} responses are {needed} rows of {linears} linear layers,"
            f" which read {read}"
        )


def measure(work: Path, batches: str, batch: int, dtype: str) -> dict:
    "Steps of our trainer with its products beside them."
    import torch

    pairs = json.loads((work / f"{batches}.json").read_text())
    steps = len(pairs) // batch
    settings = settings_of("packed", batch, dtype, steps, False) | {
        "optim": "adamw_torch_fused"
    }  # the default of the trainer
    trainer = make_trainer("packed", work / "model", work / "out", pairs, settings, False, [])
    clock = Clock(trainer, torch.bfloat16 if dtype == "bf16" else torch.float32)
    trainer.add_callback(clock.callback())
    trainer.train()
    counts = count_tokens(pairs, batch)[1:]
    for step, count in zip(clock.steps, counts, strict=True):
        check_rows(step, count["unique"], 2 * batch, clock.linears)
    cold = ceil(len(clock.steps) / 4)
    counted = clock.steps[cold:]
    total = {key: sum(step[key] for step in counted) for key in ("step", "products", "flops", *PARTS)}
    return total | {
        "share": total["products"] / total["step"],
        "seconds": [step["step"] for step in counted],
        "shares": [step["products"] / step["step"] for step in counted],
        "cold": (
            sum(step["products"] for step in clock.steps[:cold])
            / sum(step["step"] for step in clock.steps[:cold])
        ),
        "unique": sum(count["unique"] for count in counts[cold:]) / len(counted),
    }


NOTES = """*Share* is the time of the products over that of the steps, sums over a process; the median of the
rounds, with each round and the smallest and largest step. *Cold* is the same of the first quarter
of the steps, which the others leave out. The end of the last layer (its feed-forward part) is
needed at the last token of each response alone, and counted so in the products. What they leave out
is needed too: attention between tokens, normalisation, activations, the embeddings' gradient, the
weights' conversion to bfloat16 under autocast, and AdamW, which reads and writes every weight
whatever the batch. *Rest* is collating, clipping, logging and the trainer's loop."""


def report(args, facts: dict, configurations: dict, found: dict) -> list[str]:
    "The table and what it rests on."
    rows = []
    for key, (title, batch, dtype, _) in configurations.items():
        runs = found[key]
        steps, shares = ([value for run in runs for value in run[name]] for name in ("seconds", "shares"))
        parts = [f"{median(run[part] / run['step'] for run in runs):.0%}" for part in PARTS]
        each = ", ".join(f"{run['share']:.0%}" for run in runs)
        rest = median(1 - sum(run[part] for part in PARTS) / run["step"] for run in runs)
        rows.append(
            [
                title,
                batch,
                DTYPES[dtype],
                f"{runs[0]['unique']:,.0f}",
                f"{median(steps):.3f}",
                f"{median(run['flops'] / run['products'] for run in runs) / 1e9:.0f}",
                (
                    f"{median(run['share'] for run in runs):.0%} ({each}; steps {min(shares):.0%} to"
                    f" {max(shares):.0%})"
                ),
                *parts,
                f"{rest:.0%}",
                f"{median(run['cold'] for run in runs):.0%}",
            ]
        )
    head = [
        "",
        "batch",
        "precision",
        "unique tokens, a batch",
        "s a step, median",
        "GFLOP/s of the products",
        "share of the products",
        *(f"{part}, of the step" for part in PARTS),
        "rest",
        "share, cold",
    ]
    return [
        (
            f"Bare matrix products of the unique tokens over our whole optimizer step: {model_line(facts)},"
            f" packed batches of {Path(args.data).name} ({args.pairs} pairs a process) and of made-up pairs"
            f" with a prompt of {args.prompt} and responses of {args.response // 2} to"
            f" {args.response + args.response // 2} tokens ({args.long_steps} batches). Rounds of processes"
            f" in alternating order: {args.rounds}."
        ),
        "",
        *table(head, rows),
        "",
        NOTES,
        "",
        versions_line(args.threads),
    ]


def figure_of(configurations: dict, found: dict, args):
    "Shares, a group a kind of batch."
    figure, panels = new_figure(1, 1, 5.6, 3.2)
    axes, kinds = (
        panels.flat[0],
        list(dict.fromkeys((title, batch) for title, batch, _, _ in configurations.values())),
    )
    share = lambda title, batch, dtype: (
        100
        * median(
            run["share"]
            for key, own in found.items()
            for run in own
            if configurations[key][:3] == (title, batch, dtype)
        )
    )
    series = {DTYPES[dtype]: [share(*kind, dtype) for kind in kinds] for dtype in args.dtype}
    bars(
        axes,
        [f"{title},\nbatch {batch}" for title, batch in kinds],
        series,
        dict(zip(series, (BLUE, SKY))),
        0,
    )
    axes.set(ylabel="bare products, % of the whole step", ylim=(0, 100))
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    return figure


def arguments():
    "Of the command."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a preference file")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32], help="of the file's pairs")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument(
        "--pairs", type=int, default=128, help="pairs of the file in a process, after those that warm it up"
    )
    parser.add_argument("--long-batch", type=int, default=8)
    parser.add_argument(
        "--long-steps",
        type=int,
        default=4,
        help="batches with long responses in a process, after the one that warms it up",
    )
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompts of long responses")
    parser.add_argument("--response", type=int, default=512, help="tokens of long responses, on average")
    parser.add_argument(
        "--max-length", type=int, default=2048, help="longer texts of the file are cut on the left"
    )
    parser.add_argument("--rounds", type=int, default=3)
    common_arguments(parser)
    args = parser.parse_args()
    if args.worker is None and not args.data:
        parser.error("--data is missing: a preference file")
    if args.worker is None and any(args.pairs % batch for batch in args.batch):
        parser.error(f"--pairs {args.pairs} must be a multiple of every --batch")
    if args.worker is None and (min(args.pairs // batch for batch in args.batch) < 2 or args.long_steps < 2):
        parser.error("a process needs two steps or more: the first quarter is not counted")
    return args


def main(args) -> None:
    "Prepare, measure, report."
    transcripts = [("transcripts", batch, f"random-{batch}") for batch in args.batch]
    configurations = {
        f"{title} {batch} {dtype}": (title, batch, dtype, name)
        for dtype in args.dtype
        for title, batch, name in [
            *transcripts,
            ("long responses", args.long_batch, f"long-{args.long_batch}"),
        ]
    }
    found = {key: [] for key in configurations}
    with Workers(__file__, args.threads) as workers:
        facts = workers.ask(
            "prepare",
            data=args.data,
            model=args.model,
            vocabulary=args.vocabulary,
            batches=args.batch,
            n=args.pairs,
            max_length=args.max_length,
        )
        workers.ask(
            "long_pairs",
            vocabulary=facts["vocabulary"],
            batch=args.long_batch,
            steps=args.long_steps,
            prompt=args.prompt,
            response=args.response,
        )
        for i in range(args.rounds):
            for key in alternating(configurations, i):
                _, batch, dtype, name = configurations[key]
                found[key].append(workers.ask("measure", batches=name, batch=batch, dtype=dtype))
                print(
                    f"round {i + 1} of {args.rounds}, {key:24}: products {found[key][-1]['share']:.0%} of the"
                    " step",
                    flush=True,
                )
    publish(
        "\n".join(report(args, facts, configurations, found)),
        args.output,
        figure_of(configurations, found, args),
        "Bare matrix products as a share of the whole step",
    )


if __name__ == "__main__":
    args = arguments()
    if args.worker is None:
        main(args)
    else:
        answer(args.worker, {"prepare": prepare, "long_pairs": long_pairs, "measure": measure})
