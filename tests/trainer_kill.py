"""Runs that are killed, for test_trainer_resume.py: python trainer_kill.py BASE FOLDER, one forked process a
scenario."""

import os
import signal
import sys
from pathlib import Path

import torch
from trainer_world import make_dataset
from transformers import TrainerCallback

from reward_kit.beside import killed_runs
from reward_kit.model.runs import Checkpoints, TrainingInterrupted
from reward_kit.model.trainer import RewardConfig, RewardTrainer

STEPS, INTERVAL = 9, 2
SCENARIOS = ("first_file", "last_file", "marker", "after_marker", "rotation", "step_5", "interrupt_5")


def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


class At(TrainerCallback):
    def __init__(self, step, number):
        self.step, self.number = step, number

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def build(base, folder, callbacks=None):
    "Dropout, accumulation and several epochs: a resumed run must find its place in all of them."
    torch.set_num_threads(1)
    args = RewardConfig(
        str(folder),
        max_steps=STEPS,
        save_steps=INTERVAL,
        save_total_limit=2,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        disable_tqdm=True,
        show_plan=False,
        disable_dropout=False,
        logging_steps=3,
    )
    return RewardTrainer(base, args, train_dataset=make_dataset(22), callbacks=callbacks)


def break_at(scenario, trainer):
    "Kills the process while it writes checkpoint-6, when 2 and 4 stand."
    here = lambda: trainer.state.global_step == 6
    save, finish, calls = torch.save, Checkpoints.finish, []
    if scenario in ("first_file", "last_file"):

        def saving(value, path, *rest, **kwargs):
            if not here():
                return save(value, path, *rest, **kwargs)
            calls.append(path)
            if len(calls) == (1 if scenario == "first_file" else 4):
                Path(path).write_bytes(b"half")
                kill()
            save(value, path, *rest, **kwargs)

        torch.save = saving
    if scenario == "marker":
        Checkpoints.finish = lambda *args: kill() if here() else finish(*args)
    if scenario == "after_marker":
        Checkpoints.finish = lambda *args: (finish(*args), here() and kill())
    if scenario == "rotation":
        killed_runs._remove = lambda folder, mark: ((folder / "optimizer.pt").unlink(), kill())


def scenario(name, base, folder):
    callbacks = [At(5, signal.SIGKILL if name == "step_5" else signal.SIGINT)] if name.endswith("5") else None
    trainer = build(base, folder, callbacks)
    break_at(name, trainer)
    trainer.train()


if __name__ == "__main__":
    for name in SCENARIOS:
        if os.fork() == 0:
            try:
                scenario(name, sys.argv[1], Path(sys.argv[2]) / name)
            except TrainingInterrupted as stopped:
                print(f"{name}: {stopped}", flush=True)
            os._exit(0)
        print(name, os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
