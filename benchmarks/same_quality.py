"""Whether faster training is the same training: held-out accuracy and loss over steps on the playground, ours
beside TRL's RewardTrainer.

    python benchmarks/same_quality.py [--seeds 0 1 2] [--output benchmarks/results/same_quality.md]

Each seed draws its own pairs, its own split by prompt, its own head and its own order of the pairs.
Both sides begin with the same weights, head included, read the same token ids in the same batches,
and have the same optimizer; ours packs its batches, as it does by default. Every few steps one
function, the model's own forward on padded texts, scores the held-out pairs for both.
"""

import argparse
import json
import random
from math import exp, log1p
from pathlib import Path
from statistics import mean
from time import perf_counter

from common import (
    BLUE,
    ORANGE,
    T_975,
    Workers,
    alternating,
    answer,
    available_threads,
    interval,
    new_figure,
    publish,
    shown,
    table,
    versions_line,
)

SIDES = {"ours": "reward_kit", "theirs": "TRL"}
SAME = {
    "learning_rate": 3e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
}


def prepare(work: Path, seed: int, pairs: int, held_out: float, batch: int, steps: int) -> dict:
    "The base with a new head, and encoded pairs: for training in the order in which they come, and held out."
    from reward_kit.data.playground import Playground
    from reward_kit.data.preferences import split_by_prompt
    from reward_kit.model.encoding import RewardEncoder, prepare_tokenizer
    from reward_kit.model.model_folder import load_reward_backbone

    world = Playground(seed=seed)
    parts = split_by_prompt(world.preferences(pairs), held_out, seed=seed)
    model, tokenizer = load_reward_backbone("playground", new_head=True, seed=seed)
    encoder = RewardEncoder(tokenizer, prepare_tokenizer(tokenizer, model))
    model.save_pretrained(work / f"base-{seed}")
    tokenizer.save_pretrained(work / f"base-{seed}")

    def encoded(rows):
        "Token ids of the chosen and the rejected text of each pair."
        ordered = [
            (row["prompt"], sorted(zip(row["ranks"], row["responses"]), key=lambda pair: pair[0]))
            for row in rows
        ]
        ids = encoder.encode(
            [prompt for prompt, own in ordered for _ in own],
            [response for _, own in ordered for _, response in own],
        ).ids
        return list(zip(ids[::2], ids[1::2]))

    train, test = (encoded(part) for part in parts)
    chance, order = random.Random(seed), []
    while len(order) < batch * steps:
        order += chance.sample(train, len(train))  # an epoch after another, each in an order of its own
    (work / f"data-{seed}.json").write_text(json.dumps({"train": order[: batch * steps], "test": test}))
    return {
        "train": len(train),
        "test": len(test),
        "best": world.best_accuracy(parts[1]),
        "epochs": batch * steps / len(train),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


class Curve:
    "Accuracy and loss on held-out pairs against steps, and the seconds that training took without them."

    def __init__(self, pairs: list, pad: int, every: int, last: int):
        self.pairs, self.pad, self.every, self.last, self.points, self.spent = (
            pairs,
            pad,
            every,
            last,
            [],
            0.0,
        )

    def measure(self, model, step: int) -> None:
        "A point of the curve."
        import torch

        begin, training = perf_counter(), model.training
        texts = [ids for pair in self.pairs for ids in pair]
        order, rewards = sorted(range(len(texts)), key=lambda i: len(texts[i])), [0.0] * len(texts)
        model.eval()
        with torch.no_grad():
            for start in range(0, len(order), 32):
                own = order[start : start + 32]
                width = len(texts[own[-1]])
                ids = torch.tensor([texts[i] + [self.pad] * (width - len(texts[i])) for i in own])
                mask = torch.tensor([[1] * len(texts[i]) + [0] * (width - len(texts[i])) for i in own])
                for i, reward in zip(
                    own, model(input_ids=ids, attention_mask=mask).logits.squeeze(-1).tolist()
                ):
                    rewards[i] = reward
        model.train(training)
        gaps = [a - b for a, b in zip(rewards[::2], rewards[1::2])]
        loss = mean(log1p(exp(-abs(gap))) + max(0.0, -gap) for gap in gaps)
        self.points.append(
            {
                "step": step,
                "accuracy": mean((gap > 0) + 0.5 * (gap == 0) for gap in gaps),
                "loss": loss,
                "rewards": rewards,
            }
        )
        self.spent += perf_counter() - begin

    def callback(self):
        "One that measures every few steps, on both sides."
        from transformers import TrainerCallback

        curve = self

        class Measures(TrainerCallback):
            def on_train_begin(self, args, state, control, model=None, **kwargs):
                curve.measure(model, 0)

            def on_step_end(self, args, state, control, model=None, **kwargs):
                if state.global_step % curve.every == 0 or state.global_step == curve.last:
                    curve.measure(model, state.global_step)

        return Measures()


def train(work: Path, side: str, seed: int, batch: int, steps: int, every: int) -> dict:
    "A whole run of one side with one seed."
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer

    from reward_kit.model.trainer import RewardConfig, RewardTrainer

    data, folder = json.loads((work / f"data-{seed}.json").read_text()), work / f"base-{seed}"
    dataset = Dataset.from_dict(
        {
            "chosen_ids": [pair[0] for pair in data["train"]],
            "rejected_ids": [pair[1] for pair in data["train"]],
        }
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    curve = Curve(data["test"], tokenizer.pad_token_id, every, steps)
    given = SAME | {
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "seed": seed,
    }
    if side == "ours":
        trainer = RewardTrainer(
            str(folder),
            RewardConfig(str(work / "out"), show_plan=False, **given),
            train_dataset=dataset,
            callbacks=[curve.callback()],
        )
    else:
        trainer = trl.RewardTrainer(
            str(folder),
            trl.RewardConfig(str(work / "out"), max_length=None, **given),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[curve.callback()],
        )
    if len(trainer.train_dataset) != batch * steps:
        raise RuntimeError("pairs were left out as too long")
    begin = perf_counter()
    trainer.train()
    seconds, losses = (
        perf_counter() - begin - curve.spent,
        [log["loss"] for log in trainer.state.log_history if "loss" in log],
    )
    return {"points": curve.points, "seconds": seconds, "training losses": losses}


def check_start(runs: dict[str, list[dict]]) -> None:
    "RuntimeError where the sides did not begin with the same model."
    for a, b in zip(runs["ours"], runs["theirs"]):
        gap = max(abs(x - y) for x, y in zip(a["points"][0]["rewards"], b["points"][0]["rewards"]))
        if gap > 1e-4:
            raise RuntimeError(
                f"the sides did not begin with the same model: their rewards differ by {gap:.2g}"
            )


def difference(values: list[float]) -> str:
    "Mean and interval of differences that may be as small as rounding."
    centre, half = interval(values)
    return f"{centre:.1e}" + (f" ± {half:.1e}" if len(values) > 1 else "")


def report(args, runs: dict[str, list[dict]], facts: list[dict]) -> list[str]:
    "Table of the curves and of the differences."
    steps, n = [point["step"] for point in runs["ours"][0]["points"]], len(args.seeds)
    cell = lambda values, digits: shown(values, digits) if n > 1 else f"{values[0]:.{digits}f}"
    rows = []
    for i, step in enumerate(steps):
        row = [step]
        for name, scale, digits in (("accuracy", 100, 1), ("loss", 1, 4)):
            sides = [[scale * run["points"][i][name] for run in runs[side]] for side in SIDES]
            row += [*(cell(values, digits) for values in sides), difference([a - b for a, b in zip(*sides)])]
        rows.append(row)
    head = [
        "step",
        *(f"{what}, {name}" for what in ("accuracy %",) for name in SIDES.values()),
        "difference, points",
        *(f"loss, {name}" for name in SIDES.values()),
        "difference",
    ]
    distance = [
        max(abs(x - y) for x, y in zip(a["points"][-1]["rewards"], b["points"][-1]["rewards"]))
        for a, b in zip(runs["ours"], runs["theirs"])
    ]
    spread = [
        (mean(x * x for x in own) - mean(own) ** 2) ** 0.5
        for own in (run["points"][-1]["rewards"] for run in runs["ours"])
    ]
    losses = [
        max(abs(x - y) for x, y in zip(a["training losses"], b["training losses"], strict=True))
        for a, b in zip(runs["ours"], runs["theirs"])
    ]
    ends = [
        ["largest difference of a training loss", *(f"{value:.1e}" for value in losses)],
        ["largest difference of a held-out reward, at the end", *(f"{value:.1e}" for value in distance)],
        ["standard deviation of the held-out rewards, at the end", *(f"{value:.2f}" for value in spread)],
        ["best reachable accuracy %", *(f"{100 * fact['best']:.1f}" for fact in facts)],
        *(
            [f"training, s (without measuring), {name}", *(f"{run['seconds']:.0f}" for run in runs[side])]
            for side, name in SIDES.items()
        ),
    ]
    same = ", ".join(f"{name} {value}" for name, value in SAME.items())
    return [
        f"Reward models from the playground's base ({facts[0]['parameters'] / 1e6:.1f}M parameters) with the"
        f" same weights, head included: {facts[0]['train']:,} pairs, {facts[0]['epochs']:.1f} epochs in"
        f" batches of {args.batch}, {facts[0]['test']} pairs held out by prompt. Mean of {n} seeds"
        + (
            " and its 95% interval (Student's t over seeds); differences are reward_kit minus TRL within a"
            " seed."
            if n > 1
            else "; differences are reward_kit minus TRL."
        ),
        "",
        *table(head, rows),
        "",
        *table(["by seed", *map(str, args.seeds)], ends),
        "",
        (
            f"The same for both: {same}; float32, the order of the pairs and so the batches. Accuracy is"
            " against noisy labels, of which even the truth misses some; *best reachable* is what the truth"
            " expects to reach."
        ),
        "",
        versions_line(args.threads),
    ]


def figure_of(args, runs: dict[str, list[dict]]):
    "Both curves of both sides: the mean, and each seed thin."
    figure, panels = new_figure(1, 2, 6.8, 3.0)
    for axes, key, scale, label in zip(
        panels.flat, ("accuracy", "loss"), (100, 1), ("held-out accuracy, %", "held-out loss, nats a pair")
    ):
        for side, colour, width, line in (("theirs", ORANGE, 4, "-"), ("ours", BLUE, 1.6, "--")):
            steps = [point["step"] for point in runs[side][0]["points"]]
            seeds = [[scale * point[key] for point in run["points"]] for run in runs[side]]
            for own in seeds:
                axes.plot(steps, own, color=colour, linewidth=width / 4, alpha=0.5, linestyle=line)
            axes.plot(
                steps,
                [interval(list(column))[0] for column in zip(*seeds)],
                color=colour,
                linewidth=width,
                linestyle=line,
                alpha=0.6 if side == "theirs" else 1,
                label=SIDES[side],
            )
        axes.set(xlabel="optimizer step", ylabel=label)
    panels.flat[0].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def arguments():
    "Of the command."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=2400, help="of each seed, held-out ones included")
    parser.add_argument("--held-out", type=float, default=0.15, help="part of the prompts")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--every", type=int, default=25, help="steps between points of the curve")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--output", type=Path, help="Markdown file; the picture goes beside it")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not 1 <= len(args.seeds) <= max(T_975):
        parser.error(f"--seeds takes 1 to {max(T_975)} seeds")
    return args


def main(args) -> None:
    "Both sides with each seed, in processes of their own, in alternating order."
    runs, facts = {side: [] for side in SIDES}, []
    with Workers(__file__, args.threads) as workers:
        for i, seed in enumerate(args.seeds):
            facts.append(
                workers.ask(
                    "prepare",
                    seed=seed,
                    pairs=args.pairs,
                    held_out=args.held_out,
                    batch=args.batch,
                    steps=args.steps,
                )
            )
            for side in alternating(SIDES, i):
                runs[side].append(
                    workers.ask(
                        "train", side=side, seed=seed, batch=args.batch, steps=args.steps, every=args.every
                    )
                )
                print(
                    f"seed {seed}, {SIDES[side]:10}: accuracy "
                    + " ".join(f"{100 * p['accuracy']:.1f}" for p in runs[side][-1]["points"])
                    + f"  ({runs[side][-1]['seconds']:.0f} s)",
                    flush=True,
                )
    check_start(runs)
    publish(
        "\n".join(report(args, runs, facts)),
        args.output,
        figure_of(args, runs),
        "Held-out accuracy and loss over steps",
    )


if __name__ == "__main__":
    args = arguments()
    if args.worker is None:
        main(args)
    else:
        answer(args.worker, {"prepare": prepare, "train": train})
