"""Expected accuracy on held-out playground prompts against the best reachable one, over seeds.

    python benchmarks/playground_accuracy.py [--seeds 0 1 2] [--pairs 2400] [--output
        benchmarks/results/playground_accuracy.md] [--picture P.png]

Each seed draws its own pairs, its own split by prompt and its own head. Expected accuracy is the
mean, over held-out pairs, of the true probability that a labeller agrees with the model's choice;
best reachable is the mean of max(p, 1 - p) over the same pairs.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter

from reward_kit.data.playground import Playground
from reward_kit.data.preferences import split_by_prompt
from reward_kit.scores.inference import RewardModel
from reward_kit.tools.pipeline import train_reward_model


def measure(seed: int, n_pairs: int) -> dict:
    "Train on one seed's world of labels; accuracies on its held-out prompts, in percent, and seconds."
    world = Playground(seed=seed)
    train, held_out = split_by_prompt(world.preferences(n_pairs), 0.15, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        started = perf_counter()
        result = train_reward_model(
            "playground",
            train,
            f"{folder}/rm",
            eval_data=held_out,
            progress=False,
            say=lambda *_: None,
            config={"seed": seed},
        )
        seconds = perf_counter() - started
        rm = RewardModel.from_pretrained(result.path)
        rows = [held_out[i] for i in range(len(held_out))]
        chosen, rejected = (
            rm.score([r["prompt"] for r in rows], [r["responses"][k] for r in rows]) for k in (0, 1)
        )
    prompts, responses = (
        [r["prompt"] for r in rows] * 2,
        [r["responses"][0] for r in rows] + [r["responses"][1] for r in rows],
    )
    return {
        "truth": world.true_reward(prompts, responses),
        "scores": chosen + rejected,
        "pairs": len(train),
        "held out": len(held_out),
        "expected": 100 * world.expected_accuracy(held_out, list(zip(chosen, rejected))),
        "best": 100 * world.best_accuracy(held_out),
        "against labels": 100 * result.evaluation.accuracy,
        "seconds": seconds,
    }


def picture(run: dict, path: Path):
    "Scores against true rewards of the held-out responses; what a reward model is for, on one page."
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.4), dpi=110, layout="constrained")
    axes.scatter(run["truth"], run["scores"], s=9, alpha=0.35, color="#0072B2", edgecolors="none")
    axes.set_xlabel("true reward (known only on the playground)")
    axes.set_ylabel("reward model's score")
    axes.set_title(
        f"{run['pairs']:,} noisy choices later: {run['expected']:.0f}% expected accuracy on new prompts,\n"
        f"{run['best']:.0f}% is the best any model can reach",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def table(runs: dict[int, dict]) -> str:
    "Markdown, one row a seed, and the mean."
    lines = [
        (
            "| seed | pairs | held out | expected accuracy % | best reachable % | gap, points | accuracy"
            " against noisy labels % | train and evaluate, s |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for seed, r in runs.items():
        lines.append(
            f"| {seed} | {r['pairs']} | {r['held out']} | {r['expected']:.1f} | {r['best']:.1f} |"
            f" {r['best'] - r['expected']:.1f} | {r['against labels']:.1f} | {r['seconds']:.0f} |"
        )
    gaps = [r["best"] - r["expected"] for r in runs.values()]
    spread = f" (standard deviation {stdev(gaps):.1f})" if len(gaps) > 1 else ""
    return "\n".join(
        [*lines, "", f"Mean gap to the best reachable accuracy: {mean(gaps):.1f} points{spread}."]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=2400)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--picture", type=Path, help="scores of the first seed against the truth")
    args = parser.parse_args()
    runs = {seed: measure(seed, args.pairs) for seed in args.seeds}
    text = table(runs)
    print(text)
    if args.picture:
        picture(runs[args.seeds[0]], args.picture)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")
