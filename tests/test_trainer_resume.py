"""Runs killed at any moment go on from the last complete checkpoint and end with the weights of an
uninterrupted run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainer_kill import SCENARIOS, build
from trainer_world import make_base
from transformers import TrainerCallback

from reward_kit.model.runs import Checkpoints


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"), dropout=0.1)


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    "What every scenario left behind."
    folder = tmp_path_factory.mktemp("killed")
    env = dict(os.environ, OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("trainer_kill.py")), base, str(folder)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


@pytest.fixture(scope="module")
def expected(base, tmp_path_factory):
    threads = torch.get_num_threads()
    trainer = build(base, tmp_path_factory.mktemp("whole") / "run")
    trainer.train()
    yield {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    torch.set_num_threads(threads)


# what counts after the kill: at most one interval of two steps is lost
LAST = {
    "first_file": 4,
    "last_file": 4,
    "marker": 4,
    "after_marker": 6,
    "rotation": 6,
    "step_5": 4,
    "interrupt_5": 6,
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_killed_run_ends_with_the_same_weights(base, runs, expected, name, capsys):
    folder, output = runs
    status = 0 if name == "interrupt_5" else -signal.SIGKILL
    assert f"{name} {status}" in output.splitlines()
    assert Checkpoints(folder / name).complete()[-1].name == f"checkpoint-{LAST[name]}"
    trainer = build(base, folder / name)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 9 and trainer._initial_global_step == LAST[name]
    for parameter, value in trainer.model.named_parameters():
        assert torch.equal(value, expected[parameter]), parameter
    assert {path.name for path in (folder / name).glob("checkpoint-*")} == {
        path.name for path in Checkpoints(folder / name).complete()
    }
    assert len(Checkpoints(folder / name).complete()) == 2


def test_ctrl_c_says_how_to_go_on(runs):
    line = next(line for line in runs[1].splitlines() if line.startswith("interrupt_5: "))
    assert "stopped at step 6" in line and "checkpoint-6 with train(resume_from_checkpoint=True)" in line


def test_lora_and_early_stopping_resume(base, tmp_path):
    "The adapter, its head and the patience of early stopping come back from a checkpoint."
    from peft import LoraConfig
    from trainer_world import make_dataset
    from transformers import EarlyStoppingCallback

    from reward_kit.model.trainer import RewardConfig, RewardTrainer

    def run(folder, stop_at=None, resume=False):
        args = RewardConfig(
            str(folder),
            max_steps=24,
            save_steps=1,
            eval_steps=1,
            eval_strategy="steps",
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            per_device_train_batch_size=4,
            learning_rate=0.3,
            disable_tqdm=True,
            show_plan=False,
            logging_steps=1,
        )
        trainer = RewardTrainer(
            base,
            args,
            train_dataset=make_dataset(20),
            eval_dataset=make_dataset(8, 1),
            peft_config=LoraConfig(r=2, lora_dropout=0.2, target_modules=["q_proj"]),
            callbacks=[EarlyStoppingCallback(3), *([StopAt(stop_at)] if stop_at else [])],
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole")
    assert whole.state.global_step < 24
    run(tmp_path / "parts", stop_at=whole.state.global_step - 2)
    parts = run(tmp_path / "parts", resume=True)
    assert (
        parts.state.global_step == whole.state.global_step
        and parts.state.best_global_step == whole.state.best_global_step
    )
    for (name, a), b in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(a, b), name


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_evaluate(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_training_stop = True
