"""How true and proxy reward move with KL on the playground: best-of-n and PPO, reward models of 100, 500 and
2,000 pairs, KL coefficients, ensembles.

    python benchmarks/over_optimisation.py [--seeds 0 1 2 3 4 5 6 7] [--ppo-seeds 0] [--batches 42]
        [--output nbs/tutorials/over_optimisation.json]

A Bradley-Terry reward is a log-odds like the true one, so differences from the start are in the
same unit and can be drawn in one picture. A seed draws the prompts, the labels and the heads. Selection is
cheap, so it has eight seeds; PPO has one, without a KL penalty unless a name says so, and each of its points
is the mean over one response to each of 200 held-out prompts. What is already in the output is kept.
"""

import argparse
import json
import tempfile
from math import comb, log
from pathlib import Path
from statistics import mean

import torch

from reward_kit.data.playground import Playground, load_base
from reward_kit.data.preferences import load_preferences
from reward_kit.rl.ppo import PPOConfig, PPOTrainer
from reward_kit.rl.rollouts import Prompts, Sampling
from reward_kit.scores.ensembles import RewardEnsemble
from reward_kit.scores.inference import RewardModel
from reward_kit.tools.pipeline import train_reward_model

SAMPLES, MEMBERS = 64, 4


def reward_model(pairs: list, held_out, folder: str, seed: int) -> RewardModel:
    "A playground reward model of some pairs."
    train_reward_model(
        "playground",
        load_preferences(pairs, progress=False),
        folder,
        eval_data=held_out,
        progress=False,
        say=lambda *_: None,
        config={"seed": seed},
    )
    return RewardModel.from_pretrained(folder)


def best_of_n(proxy: list[float], true: list[float], n: int) -> tuple[float, float]:
    """Expected proxy and true reward of the best of n of these samples by proxy: every subset of n
    counts the same."""
    order = sorted(range(len(proxy)), key=lambda i: -proxy[i])
    chance = [
        comb(len(proxy) - 1 - place, n - 1) / comb(len(proxy), n) for place in range(len(proxy) - n + 1)
    ]
    return tuple(sum(c * values[i] for c, i in zip(chance, order)) for values in (proxy, true))


def base_samples(prompts: list[str]) -> list[list[str]]:
    "SAMPLES responses of the base to each prompt."
    model, tokenizer = load_base()
    ids = [row for row in Prompts.load(prompts).encode(tokenizer) for _ in range(SAMPLES)]
    how = Sampling(64, stop_ids=(tokenizer.eos_token_id,), rows=256)
    texts = [
        tokenizer.decode(e.response_ids, skip_special_tokens=True)
        for e in how.sample(model, ids, torch.Generator().manual_seed(0))
    ]
    return [texts[i : i + SAMPLES] for i in range(0, len(texts), SAMPLES)]


def selection_curve(score, prompts: list[str], samples: list[list[str]]) -> list[dict]:
    "Proxy and true reward of best-of-n for n = 1, 2, 4, ..., against the exact KL, log n - (n - 1) / n."
    flat = [prompt for prompt, group in zip(prompts, samples) for _ in group]
    texts = [text for group in samples for text in group]
    tables = [
        [values[i : i + SAMPLES] for i in range(0, len(flat), SAMPLES)]
        for values in (score(flat, texts), Playground.true_reward(flat, texts))
    ]
    points = []
    for n in (2**k for k in range(SAMPLES.bit_length())):
        found = [best_of_n(p, t, n) for p, t in zip(*tables)]
        points.append(
            {
                "n": n,
                "kl": log(n) - (n - 1) / n,
                "proxy": mean(p for p, _ in found),
                "true": mean(t for _, t in found),
            }
        )
    return points


def ppo_curve(
    reward, prompts: list[str], held_out: list[str], batches: int, kl_coef: float, seed: int
) -> list[dict]:
    "Proxy and true reward on held-out prompts against the KL, from the start of a run to its end."
    with tempfile.TemporaryDirectory() as folder:
        args = PPOConfig(
            folder,
            total_episodes=64 * batches,
            kl_coef=kl_coef,
            learning_rate=5e-4,
            lr_scheduler_type="constant",
            normalize_reward=False,
            missing_eos_penalty=None,
            eval_steps=3,
            save_steps=0,
            seed=seed,
            disable_tqdm=True,
            num_sample_generations=0,
        )
        trainer, points = PPOTrainer("playground", reward, args, prompts, held_out), []
        original = trainer.evaluate

        def evaluate():
            metrics = original()
            true = Playground.true_reward(
                [held_out[e.row] for e in trainer.eval_episodes],
                [e.completion for e in trainer.eval_episodes],
            )
            points.append(
                {
                    "step": trainer.state.global_step,
                    "kl": max(metrics["eval_kl"], 0.0),
                    "proxy": metrics["eval_score"],
                    "true": mean(true),
                    "length": metrics["eval_length"],
                }
            )
            return metrics

        trainer.evaluate = evaluate
        trainer.evaluate()
        trainer.train()
    return points


def raw_mean(members: list[RewardModel]):
    "The mean of raw rewards: members trained alike are on one scale already."
    return RewardEnsemble(members, combine="mean", normalize_members=False)


def reward_models(pairs: list, judged, sizes: list[int], folder: str, seed: int) -> dict:
    "Name -> reward: of each number of pairs, of each member and of all members together."
    few = sizes[0]
    models = {f"{n} pairs": reward_model(pairs[:n], judged, f"{folder}/{n}", seed) for n in sizes}
    members = [models[f"{few} pairs"]]
    for k in range(1, MEMBERS):
        members.append(reward_model(pairs[:few], judged, f"{folder}/{few}-{k}", seed + 100 * k))
    models |= {f"{few} pairs, member {k + 1}": member for k, member in enumerate(members)}
    lower = RewardEnsemble(members, combine="lower_bound", k=1.0, normalize_members=False)
    return models | {
        f"{MEMBERS} x {few} pairs, mean": raw_mean(members),
        f"{MEMBERS} x {few} pairs, mean - sd": lower,
    }


def measure(seed: int, sizes: list[int], held_out: int, batches: int | None) -> tuple[dict, dict]:
    """Curves of best-of-n, and with `batches` of PPO, by name; `sizes` are the pairs of the reward models,
    smallest first, `held_out` the prompts that are judged."""
    world, most = Playground(seed=seed), sizes[-1]
    prompts, rows = world.prompts(), world.preferences(round(1.3 * most))
    held_out, prompts = prompts[:held_out], prompts[held_out:]
    pairs = [rows[i] for i in range(most)]
    judged = load_preferences([rows[i] for i in range(most, round(1.2 * most))], progress=False)
    asked, ppo = held_out[:100], {}
    samples = base_samples(asked)
    with tempfile.TemporaryDirectory() as folder:
        models = reward_models(pairs, judged, sizes, folder, seed)
        selection = {name: selection_curve(rm.score, asked, samples) for name, rm in models.items()}
        if batches:
            few = f"{sizes[0]} pairs"
            runs = {name: (rm, 0.0) for name, rm in models.items() if "member" not in name}
            runs |= {f"{few}, KL coefficient {c:g}": (models[few], c) for c in (0.05, 0.2)}
            for name, (reward, kl_coef) in runs.items():
                ppo[name] = ppo_curve(reward, prompts, held_out, batches, kl_coef, seed)
    return selection, ppo


def last(curves: dict) -> str:
    "Of each curve the true reward at its best and at its end, a line each."
    lines = [
        f"{name:28} true reward: best {max(p['true'] for p in curve):.2f}, at the end {curve[-1]['true']:.2f}"
        for name, curve in curves.items()
    ]
    return "\n".join(lines)


def rounded(found: dict) -> str:
    "As JSON, with three digits."
    text = json.loads(json.dumps(found), parse_float=lambda number: round(float(number), 3))
    return json.dumps(text, separators=(",", ":")).replace('"seed', '\n"seed') + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=42, help="of a PPO run")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[100, 500, 2000], help="pairs of the reward models"
    )
    parser.add_argument("--held-out", type=int, default=200, help="prompts that are judged")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)), help="of best of n")
    parser.add_argument("--ppo-seeds", type=int, nargs="*", default=[0], help="those of them with PPO runs")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    kept = args.output and args.output.exists()
    found = json.loads(args.output.read_text()) if kept else {"best_of_n": {}, "ppo": {}}
    for seed in args.seeds:
        name, batches = f"seed {seed}", args.batches if seed in args.ppo_seeds else None
        if name in found["best_of_n"] and (not batches or name in found["ppo"]):
            continue
        selection, ppo = measure(seed, sorted(args.sizes), args.held_out, batches)
        found["best_of_n"][name] = selection
        if ppo:
            found["ppo"][name] = ppo
        print(
            f"seed {seed}, best of n\n{last(selection)}\n" + (ppo and f"PPO\n{last(ppo)}" or ""), flush=True
        )
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(rounded(found))
