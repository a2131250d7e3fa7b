"""A policy of a few thousand weights, prompts and fixed episodes, for tests of PPO, also from
subprocesses: python ppo_world.py BASE FOLDER."""

import json
import random
import sys
from pathlib import Path

import torch
from trainer_world import WORDS, make_base

from reward_kit.rl.ppo import PPOConfig, PPOTrainer
from reward_kit.rl.rollouts import Episode

__all__ = ["make_base"]


def vowels(completions, **columns):
    "A reward that any text has."
    return [sum(text.count(v) for v in "aeiou") / 10 for text in completions]


def prompts(n, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 9))) for _ in range(n)]


def config(folder, **settings):
    "Small, quiet, in float32 on the CPU."
    given = dict(
        total_episodes=24,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        num_mini_batches=2,
        num_ppo_epochs=2,
        response_length=8,
        temperature=1.0,
        learning_rate=1e-3,
        disable_tqdm=True,
        save_steps=0,
        num_sample_generations=0,
        use_cpu=True,
        bf16=False,
    )
    return PPOConfig(str(folder), **(given | settings))


def make_trainer(base, folder, reward=vowels, data=None, **settings):
    own = {
        name: settings.pop(name)
        for name in ("eval_dataset", "processing_class", "ref_model", "peft_config", "callbacks")
        if name in settings
    }
    return PPOTrainer(
        base,
        reward,
        config(folder, **settings),
        train_dataset=data if data is not None else prompts(16),
        **own,
    )


def fixed_episodes(n=8, seed=0, vocabulary=300):
    "Complete episodes of different lengths."
    rng = random.Random(seed)
    numbers = lambda k, low, high: [rng.uniform(low, high) for _ in range(k)]
    made = []
    for row in range(n):
        p, k = rng.randint(2, 9), rng.randint(1, 8)
        ids = lambda m: [rng.randrange(5, vocabulary) for _ in range(m)]
        made.append(
            Episode(
                row,
                ids(p),
                ids(k),
                bool(row % 2),
                numbers(k, -7, -5),
                numbers(k, -0.2, 0.2),
                numbers(k, -7, -5),
                rng.uniform(-1, 1),
                0.0,
            )
        )
    return made


def weights(trainer):
    return {
        name: p.detach().clone()
        for part in (trainer.policy, trainer.critic)
        for name, p in part.named_parameters()
    }


def run_processes(base, folder):
    """One update on the same episodes, in as many processes as there are; then a batch of rollouts that
    processes share."""
    torch.set_num_threads(1)
    trainer = make_trainer(
        base,
        Path(folder) / "run",
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        num_mini_batches=1,
        critic="shared",
        eval_dataset=prompts(1, 3),
    )
    metrics = trainer.update(fixed_episodes())
    if trainer.is_world_process_zero():
        torch.save(weights(trainer), Path(folder) / f"weights_{trainer.accelerator.num_processes}.pt")
        (Path(folder) / f"metrics_{trainer.accelerator.num_processes}.json").write_text(json.dumps(metrics))
    episodes, rollout = trainer.collect(0)
    rows = [e.row for e in episodes]
    assert sorted(rows) == sorted(trainer.rows_of(0)) and rollout["response/length"] > 0
    trainer.train()  # with one held-out prompt, so that a second process has none
    trainer.update(fixed_episodes(1))  # nor an episode
    return trainer


if __name__ == "__main__":
    run_processes(sys.argv[1], sys.argv[2])
