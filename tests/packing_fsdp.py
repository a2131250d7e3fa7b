"""Packed batches through torch's `fully_shard`, in two processes (torchrun), for test_packing.py:
python packing_fsdp.py FOLDER."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_packing import EVERYTHING, make_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import reward_kit.model.batches as module
from reward_kit.model.batches import RewardCollator


def rewards_and_gradients(model, groups):
    """What the packed batch of some groups gives, and the gradients of a weighted sum of its rewards;
    pieces of sharded ones are put together."""
    batch = RewardCollator(0, "packed")([{"sequences": group} for group in groups])
    assert batch.segments
    rewards = model(**batch.model_inputs()).logits[batch["mask"]].flatten()
    (rewards * torch.linspace(-1, 1, len(rewards))).sum().backward()
    whole = lambda gradient: gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return rewards.detach(), {
        name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None
    }


def main(folder):
    "Each process has half of the groups; sharded gradients are the mean of both."
    module._PAYS_BELOW = float("inf")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    model = make_model("Qwen3")
    for layer in model.model.layers:
        fully_shard(layer, mesh=init_device_mesh("cpu", (world,)))
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    assert all(hasattr(p, "full_tensor") for p in model.parameters())
    torch.save(rewards_and_gradients(model, EVERYTHING[rank::world]), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
