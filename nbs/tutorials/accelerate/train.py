"""The training script of the tutorial on scaling out.

    python train.py MODEL DATA OUTPUT

or the same after `accelerate launch` or `torchrun`.
"""
import sys

from reward_kit import train_reward_model

model, data, output = sys.argv[1:]
config = {"per_device_train_batch_size": 8}
train_reward_model(model, data, output, eval_fraction=0.1, config=config, keep_finished=True, progress=False)
