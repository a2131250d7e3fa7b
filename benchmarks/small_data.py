"""What the answers of the chapter on small data are worth, on the playground, where the truth is known.

    python benchmarks/small_data.py [--worlds 100] [--curves 24] [--seeds 0 1 2] [--pairs 1200] [--output
        benchmarks/results/small_data.md]

1. Cross-validation: how often its interval holds the true expected accuracy of the models it judged, over
many worlds, with a model that trains in
   milliseconds (least squares on sentences).
2. Learning curves of the same model up to 600 records: the predicted gain of 600 more against the
gain that they brought. 3. The same three questions, and the precision of suspected label errors,
with the real trainer: one world a seed, three folds, a curve up to half of the pairs.

Expected accuracy is the mean true probability that a labeller agrees with the model; a label is an error
where it contradicts the sign of the true reward difference.
"""

import argparse
import re
from pathlib import Path
from statistics import mean

import numpy as np
from common import publish, table

from reward_kit.data.playground import Playground
from reward_kit.data.preferences import split_by_prompt
from reward_kit.trust.agreement import score_preferences
from reward_kit.trust.labels import cross_validate, suspected_label_errors, trainer_recipe
from reward_kit.trust.learning_curve import learning_curve

NUMBERS: dict[str, int] = {}


def features(response: str, size: int = 1024) -> np.ndarray:
    "Which sentences a response has; unfinished ones share a place."
    x = np.zeros(size)
    for sentence, end in re.findall(r"([^.!?]+)([.!?]*)", response.lower()):
        x[NUMBERS.setdefault(sentence.strip(), len(NUMBERS) + 1) % size if end else 0] += 1
    return x


def fit_sentences(preferences, seed: int, ridge: float = 3.0):
    "Least squares: the difference of the features of a pair should give 1."
    x = np.array([features(r["responses"][0]) - features(r["responses"][1]) for r in preferences])
    weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.sum(0))
    return lambda prompts, responses: [float(features(response) @ weights) for response in responses]


def cross_validation_coverage(worlds: int, pairs: int = 600) -> list:
    "A row: worlds, how often the interval held the truth, its mean half width, that of a holdout of a tenth."
    held, half = [], []
    for seed in range(worlds):
        world = Playground(seed=seed)
        data = world.preferences(pairs)
        found = cross_validate(fit_sentences, data)
        low, high = found.interval
        held.append(low <= world.expected_accuracy(data, found.rewards[0]) <= high)
        half.append((high - low) / 2)
    return [
        worlds,
        pairs,
        f"{100 * mean(held):.0f}%",
        f"±{100 * mean(half):.1f}",
        f"±{100 * 1.96 * (0.7 * 0.3 / (pairs / 10)) ** 0.5:.1f}",
    ]


def curve_run(train, world, pairs: int, sizes: list[int], repeats: int, held_out: float = 0.4) -> dict:
    """Prediction of a curve up to sizes[-1], and what twice as many records brought: measured on
    labels, and in expected accuracy."""
    pool, held = split_by_prompt(world.preferences(pairs), held_out, seed=0)
    expected: dict[int, list] = {}

    def spy(part, seed):
        model = train(part, seed)
        rewards, _ = score_preferences(model, held)
        expected.setdefault(round(len(part) / sizes[0]), []).append(world.expected_accuracy(held, rewards))
        known = {
            (r["prompt"], text): reward
            for r, own in zip(held, rewards)
            for text, reward in zip(r["responses"], own)
        }
        return lambda prompts, responses: [known[asked] for asked in zip(prompts, responses)]

    curve = learning_curve(spy, pool, sizes=sizes, repeats=repeats, held_out=held)
    expected.clear()
    after = learning_curve(
        spy, pool, sizes=[sizes[0], sizes[-1], min(2 * sizes[-1], len(pool))], repeats=repeats, held_out=held
    )
    levels = [mean(expected[key]) for key in sorted(expected)]
    gain, low, high = curve.gain(sizes[-1])
    return {
        "gain": gain,
        "low": low,
        "high": high,
        "measured": after.accuracy[2] - after.accuracy[1],
        "true": levels[2] - levels[1],
        "says": curve.verdicts[0],
    }


def curve_row(runs: list[dict]) -> list:
    "Prediction against what came, over worlds."
    inside = lambda name: f"{100 * mean(r['low'] <= r[name] <= r['high'] for r in runs):.0f}%"
    points = lambda name: f"{100 * mean(r[name] for r in runs):.1f}"
    error = 100 * mean(abs(r["gain"] - r["true"]) for r in runs)
    return [
        len(runs),
        points("gain"),
        f"{points('low')} to {points('high')}",
        points("measured"),
        points("true"),
        inside("measured"),
        inside("true"),
        f"{error:.1f}",
    ]


def trained(seed: int, pairs: int) -> dict:
    "The three questions with the real trainer in one world."
    world, train = Playground(seed=seed), trainer_recipe("playground")
    data = world.preferences(pairs)
    cv = cross_validate(train, data, folds=3)
    rows = [data[i] for i in range(len(data))]
    prompts, chosen, rejected = (
        [r["prompt"] for r in rows],
        [r["responses"][0] for r in rows],
        [r["responses"][1] for r in rows],
    )
    wrong = np.array(world.true_reward(prompts, chosen)) < np.array(world.true_reward(prompts, rejected))
    suspects = suspected_label_errors(cv, data)
    size = int(0.6 * pairs) // 2
    curve = curve_run(train, world, pairs, [size // 8, size // 4, size // 2, size], 2)
    return {
        "seed": seed,
        "low": cv.interval[0],
        "high": cv.interval[1],
        "accuracy": cv.accuracy,
        "true": world.expected_accuracy(data, cv.rewards[0]),
        "precision": suspects.precision_at(wrong, (20, 50, 100)),
        "suspected": suspects.n_suspected,
        "precision_of_all": float(wrong[suspects.order[: suspects.n_suspected]].mean()),
        "curve": curve,
    }


def report(cv_row: list, curves: list[dict], runs: list[dict]) -> str:
    "All tables."
    share = lambda x: f"{100 * x:.1f}%"
    lines = [
        "## Cross-validation, sentence model",
        "",
        *table(
            [
                "worlds",
                "pairs",
                "intervals that hold the truth",
                "half width, points",
                "a holdout of a tenth",
            ],
            [cv_row],
        ),
        "",
    ]
    head = [
        "worlds",
        "predicted, points",
        "95% interval",
        "measured",
        "true",
        "measured in the interval",
        "true in the interval",
        "mean error of the prediction",
    ]
    lines += [
        "## Twice the data, sentence model: 600 to 1,200 records",
        "",
        *table(head, [curve_row(curves)]),
        "",
    ]
    if not runs:
        return "\n".join(lines)
    lines += [
        "## With the trainer",
        "",
        *table(
            ["seed", "cross-validation (3 folds)", "true", "twice the data: predicted", "measured", "true"],
            [
                [
                    r["seed"],
                    f"{share(r['accuracy'])} ({share(r['low'])} to {share(r['high'])})",
                    share(r["true"]),
                    (
                        f"{100 * r['curve']['gain']:.1f} ({100 * r['curve']['low']:.1f} to"
                        f" {100 * r['curve']['high']:.1f})"
                    ),
                    f"{100 * r['curve']['measured']:.1f}",
                    f"{100 * r['curve']['true']:.1f}",
                ]
                for r in runs
            ],
        ),
        "",
    ]
    lines += [
        "## Suspected label errors, with the trainer",
        "",
        *table(
            ["seed", "first", "errors", "precision", "95% interval", "base rate", "all suspected"],
            [
                [
                    r["seed"],
                    p["k"],
                    p["errors"],
                    share(p["precision"]),
                    f"{share(p['low'])} to {share(p['high'])}",
                    share(p["base"]),
                    f"{r['suspected']}, of them {share(r['precision_of_all'])}",
                ]
                for r in runs
                for p in r["precision"]
            ],
        ),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=100, help="of the coverage of cross-validation")
    parser.add_argument("--curves", type=int, default=24, help="worlds of the learning curves")
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[0, 1, 2], help="worlds with the real trainer"
    )
    parser.add_argument("--pairs", type=int, default=1200, help="of each world with the real trainer")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    covered = cross_validation_coverage(args.worlds)
    worlds = [
        Playground(seed=1000 + seed) for seed in range(args.curves)
    ]  # not those on which the range of exponents was chosen
    curves = [curve_run(fit_sentences, world, 2000, [75, 150, 300, 600], 3) for world in worlds]
    publish(report(covered, curves, [trained(seed, args.pairs) for seed in args.seeds]), args.output)
