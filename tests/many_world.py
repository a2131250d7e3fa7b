"""Runs for test_many_processes.py, the same under any launcher: python many_world.py DATA FOLDER WORK...

WORK is `full`, `lora`, `given` (a model that was loaded before), `resume`, `resume_lora` or `agree`; what it
gave lies in FOLDER/WORK.json."""

import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, TrainerCallback

from reward_kit import RewardConfig, RewardTrainer, playground_base

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


class Look(TrainerCallback):
    "Notes the weights that the first step begins with, and ends the run at a step."

    def __init__(self, stop_at=None):
        self.stop_at, self.before, self.looked = stop_at, {}, False

    def on_step_begin(self, args, state, control, **kwargs):
        if self.looked:
            return
        trainer, self.looked = self.trainer, True
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        for name, weight in (weights or {}).items():
            if "embed_tokens" in name or "score" in name and "original" not in name:
                self.before[name.rpartition("model.")[2]] = weight.float().norm().item()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.stop_at:
            control.should_training_stop = control.should_save = True


def rows(data, less=False):
    found = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in map(json.loads, open(data))]
    return found[: 95 if less else 96], found[96:117]


def build(data, folder, lora=False, less=False, look=None, given=False, **settings):
    "16 pairs a step, whatever the number of processes."
    peft, model = None, "playground"
    if lora:
        from peft import LoraConfig

        peft = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear")
    values = dict(
        max_steps=6,
        per_device_train_batch_size=16 // WORLD,
        per_device_eval_batch_size=5,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_steps=3,
        disable_tqdm=True,
        seed=1,
    )
    train, held_out = rows(data, less)
    look, args = look or Look(), RewardConfig(str(folder), **(values | settings))
    if given:  # loaded after the settings, which is when transformers knows of ZeRO-3
        model = AutoModelForSequenceClassification.from_pretrained(playground_base(), num_labels=1)
        with torch.no_grad():
            model.score.weight.fill_(0.5) if model.score.weight.numel() else fill_spread(model.score.weight)
    look.trainer = trainer = RewardTrainer(
        model,
        args,
        train_dataset=train,
        eval_dataset=held_out,
        peft_config=peft,
        callbacks=[look],
    )
    return trainer


def fill_spread(weight):
    "The same for a weight that DeepSpeed has spread."
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
        weight.fill_(0.5)


def train(data, folder, work, resume=None, **options):
    look = options.setdefault("look", Look())
    trainer = build(data, Path(folder) / work, **options)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    found = {
        "engine": trainer.accelerator.distributed_type.value,
        "layout": trainer._layout,
        "loss": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "eval": next(log for log in reversed(trainer.state.log_history) if "eval_loss" in log),
        "before": look.before,
    }
    if RANK == 0:
        (Path(folder) / f"{work}.json").write_text(json.dumps(found))


def note(folder, name, act):
    "What this process is told, as a line of its own file."
    try:
        found = f"goes on from {act()}"
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    except SystemExit as error:
        found = f"ends with {error.code}"
    with open(Path(folder) / f"told-{RANK}.jsonl", "a") as file:
        file.write(json.dumps({name: found}) + "\n")


def agree(data, folder):
    "One after another, runs that must not begin, and two that may."
    from reward_kit.beside import many_processes

    many_processes._PATIENCE = 1

    def decide(name, resume=None, own=False, **settings):
        settings.setdefault("save_strategy", "steps")
        out = Path(folder) / (f"own-{RANK}" if own else "out")
        trainer = build(data, out, less=settings.pop("less", False) and RANK == 1, **settings)
        trainer.checkpoints.made_with = trainer._made_with()
        note(folder, name, lambda: many_processes._agree(trainer, resume, trainer._print))

    decide("rows", less=True)
    decide("rate", learning_rate=1e-3 * (1 + RANK))
    decide("folder", own=True)
    decide("no folder needed", own=True, save_strategy="no")
    decide("one process less", resume=str(Path(folder).parent / "one/full/checkpoint-3"))
    decide("fresh", resume=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    data, folder, *works = sys.argv[1:]
    for work in works:
        if work == "agree":
            agree(data, folder)
        elif work.startswith("resume"):
            name, lora = work.replace("resume", "resumed"), work.endswith("lora")
            train(data, folder, name, lora=lora, look=Look(stop_at=3))
            train(data, folder, name, lora=lora, resume=True)
        else:
            train(data, folder, work, lora=work == "lora", given=work == "given")
