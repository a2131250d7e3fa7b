"""TRL 1.12's PPOTrainer (its last release with one) for the benchmarks beside it; no benchmark by itself.

It is read from a folder of its own, so that the installed TRL stays as it is:

    pip install --no-deps --target FOLDER trl==1.12.0
"""

import argparse
import os
import sys
from importlib.metadata import distributions
from pathlib import Path

VERSION = "1.12.0"


def trl_folder(value: str) -> Path:
    "A folder that holds that release, as an argument of a command."
    folder = Path(value).resolve()
    found = (
        {d.version for d in distributions(path=[str(folder)]) if d.metadata["Name"] == "trl"}
        if folder.is_dir()
        else set()
    )
    if VERSION in found:
        return folder
    what = f"holds trl {found.pop()}" if found else "holds no trl"
    raise argparse.ArgumentTypeError(
        f"{value} {what}; make it with: pip install --no-deps --target {value} trl=={VERSION}"
    )


def use_folder(folder: Path):
    """That release is what `import trl` finds in this process. RuntimeError where another one was
    imported before."""
    sys.path.insert(0, str(folder))
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import trl

    if trl.__version__ != VERSION:
        raise RuntimeError(f"trl {trl.__version__} was imported instead of {VERSION}")


def peer_trainer(
    policy_folder, reward_folder, prompts: list[list[int]], settings: dict, output_dir, callbacks
):
    """Their trainer in the state that our settings describe; `use_folder` comes first.

    A setting has the same name on both sides. The critic starts as a copy of the policy with a head of zeros
    and the batches hold
    the prompts in the order given, both as on our side; the rest is as released."""
    import torch
    import transformers
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = transformers.AutoTokenizer.from_pretrained(policy_folder, padding_side="left")
    read = {"dtype": torch.float32}
    policy, reference = (
        transformers.AutoModelForCausalLM.from_pretrained(policy_folder, **read) for _ in range(2)
    )
    value = transformers.AutoModelForSequenceClassification.from_pretrained(
        policy_folder, num_labels=1, **read
    )
    torch.nn.init.zeros_(value.score.weight)
    reward = transformers.AutoModelForSequenceClassification.from_pretrained(
        reward_folder, num_labels=1, **read
    )
    args = PPOConfig(
        str(output_dir),
        stop_token="eos",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        num_sample_generations=0,
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        **settings,
    )
    trainer = PPOTrainer(
        args,
        tokenizer,
        policy,
        reference,
        reward,
        Dataset.from_dict({"input_ids": prompts}),
        value,
        callbacks=callbacks,
    )
    in_order = torch.utils.data.DataLoader(
        trainer.train_dataset, args.local_batch_size, collate_fn=trainer.data_collator, drop_last=True
    )
    trainer.dataloader = trainer.accelerator.prepare(in_order)
    return trainer


def in_order(trainer):
    "Gives a PPOTrainer its prompts in the order of the data, in place of its shuffle."
    size = trainer.batch_size()
    trainer.rows_of = lambda step: list(range(step * size, (step + 1) * size))
