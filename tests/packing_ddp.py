"Packed training, in one process or two (torchrun), for test_packing.py: python packing_ddp.py BASE FOLDER."

import json
import random
import sys
from pathlib import Path

import torch
from trainer_world import WORDS, make_pairs
from transformers import TrainerCallback

from reward_kit.model.trainer import RewardConfig, RewardTrainer

RUNS = {  # name -> settings of two processes
    "whole": {"per_device_train_batch_size": 2},
    "parts": {"per_device_train_batch_size": 2, "batch_tokens": 100},
    "accumulated": {"per_device_train_batch_size": 2, "batch_tokens": 100, "gradient_accumulation_steps": 2},
    "compiled": {"per_device_train_batch_size": 2, "torch_compile_backend": "aot_eager"},
}


def make_rows(n, seed=0):
    "Pairs, and rankings of two to four: prompts of very different lengths, a weight each."
    rng, rows = random.Random(seed), []
    say = lambda k: " ".join(rng.choice(WORDS) for _ in range(k))
    for i, pair in enumerate(make_pairs(n, seed)):
        count = 2 + i % 3
        responses = (
            [f"{say(rng.randint(1, 9))} {k}" for k in range(count)]
            if i % 2
            else [pair["chosen"], pair["rejected"]]
        )
        rows.append(
            {
                "prompt": pair["prompt"] + " " + say(rng.choice((0, 3, 25))),
                "responses": responses,
                "ranks": list(range(1, len(responses) + 1)),
                "weight": 0.5 + i % 3,
            }
        )
    return rows


class Record(TrainerCallback):
    "For each optimizer step: whether each backward pass shared its gradients with the other process."

    def __init__(self):
        self.steps = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.steps.append([])


def make_trainer(base, folder, **settings):
    "Sequential, so that the examples of a step are the same whatever the number of processes."
    settings = (
        dict(
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0,
            max_steps=3,
            per_device_train_batch_size=4,
            layout="packed",
        )
        | settings
    )
    args = RewardConfig(
        str(folder),
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        estimate_time=False,
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
        **settings,
    )
    return RewardTrainer(base, args, train_dataset=make_rows(24))


def train(trainer):
    "Losses, weights, and what `Record` keeps."
    record, backward = Record(), trainer.accelerator.backward

    def recorded(*args, **kwargs):
        record.steps[-1].append(getattr(trainer.model_wrapped, "require_backward_grad_sync", None))
        return backward(*args, **kwargs)

    trainer.accelerator.backward = recorded
    trainer.add_callback(record)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return losses, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}, record.steps


if __name__ == "__main__":
    base, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    for name, settings in RUNS.items():
        trainer = make_trainer(base, folder / name, **settings)
        losses, weights, steps = train(trainer)
        rank = trainer.args.process_index
        torch.save(weights, folder / f"{name}-{rank}.pt")
        (folder / f"{name}-{rank}.json").write_text(
            json.dumps({"losses": losses, "steps": steps, "compiled": trainer._compiled})
        )
