"""Trust reports of three reward models: of the playground, of the playground with labels for length alone,
and of real transcripts.

    python benchmarks/trust_reports.py [--transcripts hh-rlhf-harmless-test.jsonl.gz] [--output
        benchmarks/results/trust_reports.md]

The second model is trained on the same pairs with the longer response always called the better one,
and judged by the honest labels of prompts it has not seen: its probes have to say what is wrong
with it. The third is the playground's tiny base trained on transcripts in English it has never
read, so that its accuracy is expected to be near chance. On the playground the probabilities are
also compared with the true ones. No text of the data is written.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from common import available_threads, publish, table, versions_line

from reward_kit.data.playground import Playground
from reward_kit.data.preferences import load_preferences, split_by_prompt
from reward_kit.data.records import response_text
from reward_kit.scores.inference import RewardModel
from reward_kit.tools.pipeline import train_reward_model
from reward_kit.trust.calibration import true_calibration_error
from reward_kit.trust.trust_report import TrustReport

TRANSCRIPTS = {
    "learning_rate": 3e-4,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "max_length": 1024,
}


def longest_first(preferences) -> list[dict]:
    "The same pairs, the longer response called the better one; pairs of one length are left out."
    rows = []
    for row in preferences:
        a, b = sorted(row["responses"], key=lambda response: -len(response_text(response)))
        if len(response_text(a)) > len(response_text(b)):
            rows.append({"prompt": row["prompt"], "chosen": a, "rejected": b})
    return rows


def true_errors(rm: RewardModel, world: Playground, held_out) -> dict:
    "Distances of the model's probabilities from the true ones, without and with its temperature."
    prompts, (first, second) = (
        [row["prompt"] for row in held_out],
        zip(*[row["responses"] for row in held_out]),
    )
    truth = 1 / (
        1
        + np.exp(
            -(
                np.array(world.true_reward(prompts, list(first)))
                - np.array(world.true_reward(prompts, list(second)))
            )
        )
    )
    difference = np.array(rm.score(prompts, list(first))) - np.array(rm.score(prompts, list(second)))
    said = {
        name: 1 / (1 + np.exp(-difference / t)) for name, t in (("before", 1.0), ("after", rm.temperature))
    }
    return {name: true_calibration_error(p, truth) for name, p in said.items()}


def summary_row(name: str, report, errors: dict | None) -> list[str]:
    "What the table says of a model."
    padding = {r.name: r for r in report.probes.results}["padding"]
    change = padding.measures["change"]
    slope, c = report.length_control.correlations["per_doubling_given_label"], report.calibration
    truth = (
        f"{errors['before']['mean_absolute']:.3f}, {errors['after']['mean_absolute']:.3f}"
        if errors
        else "not known"
    )
    return [
        name,
        f"{report.n_pairs:,}",
        f"{report.accuracy:.1%} ({report.interval[0]:.1%} to {report.interval[1]:.1%})",
        f"{c.before['confidence']:.1%}, {c.before['accuracy']:.1%}",
        f"{c.before['ece']:.1%}, {c.after['ece']:.1%}",
        "none" if c.fit is None else f"{c.fit['temperature']:.2f}",
        truth,
        f"{change['difference']:+.2f} ({change['low']:+.2f} to {change['high']:+.2f}), {padding.verdict}",
        f"{slope['value']:+.2f} ({slope['low']:+.2f} to {slope['high']:+.2f})",
        report.probes.verdicts[0].split(".")[0],
        ", ".join(r.name for r in report.probes.results if r.verdict.startswith(("exploit", "fragile")))
        or "none",
    ]


HEAD = [
    "reward model",
    "held-out pairs",
    "accuracy (95% interval)",
    "confidence, share right",
    "calibration error, before and after temperature",
    "temperature",
    "mean distance from the true probability, before and after",
    "padding with empty sentences, median gaps",
    "reward for twice the length at equal label, spreads within a prompt",
    "the prompt",
    "edits that are exploitable or fragile",
]


def main(args) -> None:
    "Trains, evaluates, writes a table and a report of each model."
    world = Playground(seed=args.seed)
    train, held_out = split_by_prompt(world.preferences(args.pairs), 0.25, seed=args.seed)
    runs = {
        "playground": (train, held_out, {}),
        "playground, the longer response always wins": (longest_first(train), held_out, {}),
    }
    if args.transcripts:
        runs["transcripts"] = (
            *split_by_prompt(load_preferences(args.transcripts), 0.25, seed=args.seed),
            TRANSCRIPTS,
        )
    rows, reports = [], []
    with tempfile.TemporaryDirectory() as work:
        for at, (name, (data, test, config)) in enumerate(runs.items()):
            done = train_reward_model(
                "playground",
                data,
                Path(work) / str(at),
                eval_data=test,
                config={**config, "seed": args.seed},
                progress=False,
            )
            done.evaluation.model = done.evaluation.probes.model = name
            rm = RewardModel.from_pretrained(done.path, device="cpu")
            rows.append(
                summary_row(name, done.evaluation, true_errors(rm, world, test) if test is held_out else None)
            )
            reports.append((name, done.evaluation))
    parts = [
        "Reward models trained on the playground's base, judged on prompts they were not trained on.",
        "",
        *table(HEAD, rows),
        "",
    ]
    for name, report in reports:
        parts += [f"## {name}", "", report.to_markdown(mistakes=False)]
        if args.output:
            for figure, picture in report.figures().items():
                file = args.output.with_name(
                    f"{args.output.stem}_{name.split(',')[0]}{'_length' if ',' in name else ''}_{figure}.png"
                )
                picture.savefig(file, dpi=80)
                parts += [f"![{name}: {TrustReport.captions[figure]}]({file.name})", ""]
    publish("\n".join([*parts, versions_line(available_threads())]), args.output, None, "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transcripts", help="a preference file of real conversations")
    parser.add_argument("--pairs", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="Markdown file; the pictures go beside it")
    main(parser.parse_args())
