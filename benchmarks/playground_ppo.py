"""True reward before and after PPO on the playground, over seeds: reward model from noisy pairs, then PPO
from the tiny base.

    python benchmarks/playground_ppo.py [--seeds 0 1 2] [--pairs 2400] [--episodes 2560] [--output
        benchmarks/results/playground_ppo.md]

Each seed draws its own pairs, its own reward model and its own order of prompts. 200 prompts are
held out of PPO; one response to each is sampled before and after, and the true reward, which no
model has seen, is averaged. Intervals are 95%, of the mean and of the paired difference (Student's
t).
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean
from time import perf_counter

import torch
from scipy import stats

from reward_kit.data.playground import Playground
from reward_kit.data.preferences import split_by_prompt
from reward_kit.rl.ppo import PPOConfig, PPOTrainer
from reward_kit.scores.inference import RewardModel
from reward_kit.tools.pipeline import train_reward_model


def interval(values: list[float]) -> tuple[float, float]:
    "95% interval of a mean."
    return stats.t.interval(0.95, len(values) - 1, loc=mean(values), scale=stats.sem(values))


def true_rewards(trainer: PPOTrainer) -> list[float]:
    "Of one sampled response to each held-out prompt."
    trainer.evaluate()
    return Playground.true_reward(
        [trainer.eval_rows[e.row]["prompt"] for e in trainer.eval_episodes],
        [e.completion for e in trainer.eval_episodes],
    )


def measure(seed: int, n_pairs: int, episodes: int) -> dict:
    "One seed: rewards before and after, what the model thought of them, KL, and seconds."
    world, started = Playground(seed=seed), perf_counter()
    prompts = world.prompts()
    train, held_out = split_by_prompt(world.preferences(n_pairs), 0.15, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        train_reward_model(
            "playground",
            train,
            f"{folder}/rm",
            eval_data=held_out,
            progress=False,
            say=lambda *_: None,
            config={"seed": seed},
        )
        reward_seconds = perf_counter() - started
        args = PPOConfig(f"{folder}/ppo", total_episodes=episodes, disable_tqdm=True, save_steps=0, seed=seed)
        trainer = PPOTrainer(
            "playground", RewardModel.from_pretrained(f"{folder}/rm"), args, prompts[200:], prompts[:200]
        )
        before = true_rewards(trainer)
        started = perf_counter()
        history = trainer.train().log_history
        seconds = perf_counter() - started
        after = true_rewards(trainer)
    evaluations = [log for log in history if "eval_score" in log]
    return {
        "before": before,
        "after": after,
        "score": evaluations[-1]["eval_score"],
        "kl": evaluations[-1]["eval_kl"],
        "length": evaluations[-1]["eval_length"],
        "largest kl": max(log["objective/kl"] for log in history if "objective/kl" in log),
        "reward seconds": reward_seconds,
        "seconds": seconds,
    }


def row(seed: int, run: dict) -> str:
    "One line of the table."
    bounds = lambda values: f"{mean(values):.2f} ({interval(values)[0]:.2f} to {interval(values)[1]:.2f})"
    change = [b - a for a, b in zip(run["before"], run["after"], strict=True)]
    return (
        f"| {seed} | {bounds(run['before'])} | {bounds(run['after'])} | {bounds(change)} | {run['score']:.2f}"
        f" | {run['kl']:.1f} | {run['largest kl']:.1f} | {run['length']:.0f} | {run['reward seconds']:.0f} +"
        f" {run['seconds']:.0f} |"
    )


HEAD = (
    "| seed | true reward before | after | change | model's score after | KL after, nats | largest KL |"
    " tokens after | reward model + PPO, s |\n|---|---|---|---|---|---|---|---|---|"
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=2400)
    parser.add_argument("--episodes", type=int, default=2560)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    print(HEAD, flush=True)
    lines = [HEAD]
    for seed in args.seeds:
        lines.append(row(seed, measure(seed, args.pairs, args.episodes)))
        print(lines[-1], flush=True)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(
            "\n".join(
                [
                    *lines,
                    "",
                    (
                        f"{args.pairs:,} pairs, {args.episodes:,} episodes, threads:"
                        f" {torch.get_num_threads()}, 200 held-out prompts."
                    ),
                ]
            )
            + "\n"
        )
