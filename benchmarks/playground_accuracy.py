"""Expected accuracy on held-out playground prompts against the best reachable one, over seeds.

    python benchmarks/playground_accuracy.py [--seeds 0 1 2] [--pairs 2400] [--output benchmarks/results/playground_accuracy.md]

Each seed draws its own pairs, its own split by prompt and its own head. Expected accuracy is the mean, over held-out pairs, of the true
probability that a labeller agrees with the model's choice; best reachable is the mean of max(p, 1 - p) over the same pairs.
"""
import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter

from reward_kit.autotrain import train_reward_model
from reward_kit.data import split_by_prompt
from reward_kit.inference import RewardModel
from reward_kit.playground import PLAYGROUND_TRAINING, Playground


def measure(seed: int, n_pairs: int) -> dict:
    "Train on one seed's world of labels; accuracies on its held-out prompts, in percent, and seconds."
    world = Playground(seed=seed)
    train, held_out = split_by_prompt(world.preferences(n_pairs), 0.15, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        started = perf_counter()
        result = train_reward_model("playground", train, f"{folder}/rm", eval_data=held_out, progress=False, say=lambda *_: None,
                                    config={**PLAYGROUND_TRAINING, "seed": seed})
        seconds = perf_counter() - started
        rm = RewardModel.from_pretrained(result.path)
        rows = [held_out[i] for i in range(len(held_out))]
        chosen, rejected = (rm.score([r["prompt"] for r in rows], [r["responses"][k] for r in rows]) for k in (0, 1))
    return {"pairs": len(train), "held out": len(held_out), "expected": 100 * world.expected_accuracy(held_out, list(zip(chosen, rejected))),
            "best": 100 * world.best_accuracy(held_out), "against labels": 100 * result.evaluation.accuracy, "seconds": seconds}


def table(runs: dict[int, dict]) -> str:
    "Markdown, one row a seed, and the mean."
    lines = ["| seed | pairs | held out | expected accuracy % | best reachable % | gap, points | accuracy against noisy labels % | train and evaluate, s |",
             "|---|---|---|---|---|---|---|---|"]
    for seed, r in runs.items():
        lines.append(f"| {seed} | {r['pairs']} | {r['held out']} | {r['expected']:.1f} | {r['best']:.1f} | {r['best'] - r['expected']:.1f} "
                     f"| {r['against labels']:.1f} | {r['seconds']:.0f} |")
    gaps = [r["best"] - r["expected"] for r in runs.values()]
    spread = f" (standard deviation {stdev(gaps):.1f})" if len(gaps) > 1 else ""
    return "\n".join([*lines, "", f"Mean gap to the best reachable accuracy: {mean(gaps):.1f} points{spread}."])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=2400)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    text = table({seed: measure(seed, args.pairs) for seed in args.seeds})
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")
