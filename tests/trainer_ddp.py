"""Two processes (torchrun), for test_trainer_processes.py: python trainer_ddp.py BASE FOLDER PROCESSES."""

import json
import sys
from pathlib import Path

import torch
from datasets import IterableDataset
from trainer_world import make_dataset, make_pairs

from reward_kit.model.trainer import RewardConfig, RewardTrainer


def rows(n, seed=0):
    return [{**pair, "weight": 0.5 + (i % 3)} for i, pair in enumerate(make_pairs(n, seed))]


def run(base, folder, size, name):
    "The same optimizer steps whatever the number of processes: `size` examples in each."
    torch.set_num_threads(1)
    args = RewardConfig(
        str(Path(folder) / name),
        use_cpu=True,
        max_steps=2,
        save_strategy="no",
        per_device_train_batch_size=size,
        per_device_eval_batch_size=3,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0,
        disable_tqdm=True,
        logging_steps=2,
        train_sampling_strategy="sequential",
    )
    stream = IterableDataset.from_generator(lambda: iter(make_pairs(7, 2)))
    trainer = RewardTrainer(
        base, args, train_dataset=rows(16), eval_dataset={"set": make_dataset(11, 1), "stream": stream}
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model(str(Path(folder) / name / "final"))
    logs = next(log for log in trainer.state.log_history if "loss" in log)
    if trainer.is_world_process_zero():
        (Path(folder) / f"{name}.json").write_text(json.dumps({"eval": metrics, "train": logs, "out": name}))
    return trainer


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], 2, "two")
