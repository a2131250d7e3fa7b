"""The training script of the tutorial on scaling out: python train.py MODEL DATA OUTPUT, or the same after `accelerate launch`, `torchrun`."""
import sys

from reward_kit.autotrain import train_reward_model

model, data, output = sys.argv[1:]
rate = None if model == "playground" else 1e-5  # None: what suits the model; DeepSpeed wants a number before the model is known
train_reward_model(model, data, output, eval_fraction=0.1, config={"per_device_train_batch_size": 8, "learning_rate": rate}, progress=False)
