"""What a training step would hold on a GPU, from 0.6B to 8B parameters, without one: the plan's estimate
beside what an independent loop holds.

    python benchmarks/memory_plan.py [--sizes 0.6B 4B 8B] [--pairs 8] [--layers 4] [--vocabulary 151936]
        [--output benchmarks/results/memory_plan.md]

Tensors have a shape only, so nothing is computed and a laptop is enough. The loop knows nothing of the
plan: it takes two steps of torch's fused AdamW, whose second has its moments, and every storage that is made
and freed is counted. AdamW of 8 bits and weights of 4 bits need their own kernels: there the plan stands
alone. What CUDA itself takes, and what its allocator cannot use, comes on top.
"""

import argparse
import dataclasses
import warnings
import weakref
from pathlib import Path
from unittest import mock

import torch
import transformers
from common import publish, table, versions_line
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

QWEN = {  # width, feed-forward, layers, heads; head size 128, 8 heads of keys
    "0.6B": (1024, 3072, 28, 16),
    "4B": (2560, 9728, 36, 32),
    "8B": (4096, 12288, 36, 32),
}
WAYS = {  # name -> optimizer of torch, of the plan
    "float32 weights, bf16 autocast": ("adamw_torch_fused", "adamw_torch_fused"),
    "bf16 weights, AdamW": ("adamw_torch_fused", "adamw_torch_fused"),
    "bf16 weights, AdamW of 8 bits": (None, "adamw_torch_8bit"),
    "LoRA of bf16 weights": ("adamw_torch_fused", "adamw_torch_fused"),
    "QLoRA": (None, "adamw_torch_fused"),
}
CARDS = (24, 80, 141)  # GB, of the manufacturer


class Living(TorchDispatchMode):
    "The most bytes of storages that live at one time, whoever holds them."

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.sizes = 0, 0, {}

    def born(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self.died, storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def died(self, key):
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.born(tensor)
        return out


class Attention(torch.autograd.Function):
    "What flash attention keeps for its backward pass, and what it makes there."

    @staticmethod
    def forward(ctx, query, key, value, *_):
        out = torch.empty_like(query)
        sums = query.new_empty(query.shape[:2], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx, gradient):
        return *map(torch.empty_like, ctx.saved_tensors[:3]), *[None] * 4


def make_model(size: str, layers: int | None, vocabulary: int, way: str):
    "Of tensors without numbers; adapters are float32."
    from reward_kit.model.batches import bind_reward_forward
    from reward_kit.model.packing import _read_segments

    width, inner, own, heads = QWEN[size]
    config = transformers.Qwen3Config(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers or own,
        num_attention_heads=heads, num_key_value_heads=8, head_dim=128, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        model = bind_reward_forward(transformers.Qwen3ForSequenceClassification(config)).train()
    _read_segments(model.model)
    if not way.startswith("float32"):
        model = model.to(torch.bfloat16)
    if "LoRA" in way:
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules="all-linear"))
        for p in model.parameters():
            p.data = p.data.float() if p.requires_grad else p.data
    return model


def step(size: str, way: str, pairs: int, recomputes: bool, layers: int | None, vocabulary: int) -> dict:
    "Bytes of a step of so many pairs: planned, and held (None: there is no loop for it)."
    import reward_kit.model.packing as packing
    from reward_kit.model.batches import RewardCollator
    from reward_kit.model.measures import TrainingPlan

    made, planned = WAYS[way]
    model = make_model(size, layers, vocabulary, way)
    sequences = [[*range(120), *[9] * 60], [*range(120), *[8] * 60]]  # 240 unique tokens
    batch = RewardCollator(0, "packed")([{"sequences": sequences}] * pairs)
    as_on_a_gpu = {
        "_flash_fits": lambda *_: True,
        "varlen_attn": lambda *args, **_: Attention.apply(*args),
        "_CPU_16_BIT_FROM": 0,
    }

    def forward():
        with torch.autocast("cpu", torch.bfloat16, enabled=way.startswith("float32")):
            return model(**batch.model_inputs()).logits.sum()

    with mock.patch.multiple(packing, **as_on_a_gpu), FakeTensorMode(allow_non_fake_inputs=True):
        model, batch = model.to_empty(device="cpu"), batch.to("cpu")
        memory = TrainingPlan.step_memory(model, planned, forward, batch.positions())
        if way == "QLoRA":  # four bits and a scale of 64, as bitsandbytes stores a layer's matrices
            matrices = [p for p in model.parameters() if p.ndim == 2 and p.dtype == torch.bfloat16]
            quantised = [p for p in matrices if p.shape[0] not in (1, vocabulary)]
            saved = sum(p.nbytes - p.numel() * (4 + 8 / 64) / 8 for p in quantised)
            memory = dataclasses.replace(memory, weights=memory.weights - int(saved))
        if recomputes:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
            memory.recomputes = True
        held = made and hold(model, forward)
    return {"tokens": batch.positions(), "planned": memory.peak(batch.positions()), "held": held}


def hold(model, forward) -> int:
    "Bytes at the peak of the second step of a loop of its own."
    trained, living = [p for p in model.parameters() if p.requires_grad], Living()
    optimizer = torch.optim.AdamW(trained, fused=True)
    for tensor in (*model.parameters(), *model.buffers()):
        living.born(tensor)
    with living:
        for _ in range(2):
            living.peak = living.now
            forward().backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return living.peak


def fits(size: int) -> str:
    "The smallest card with a tenth to spare."
    card = next((card for card in CARDS if size <= 0.9 * card * 1e9), None)
    return f"{card} GB" if card else f"none of {max(CARDS)} GB"


def main(args) -> None:
    "A row for each size, way and whether activations are recomputed."
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries among themselves
    rows = []
    for size in args.sizes:
        for way in WAYS:
            for recomputes in (False, True):
                found = step(size, way, args.pairs, recomputes, args.layers, args.vocabulary)
                planned, held = found["planned"], found["held"]
                apart = f"{held / 2**30:.1f} | {planned / held - 1:+.1%}" if held else " | "
                activations = "recomputed" if recomputes else "kept"
                cells = [f"{planned / 2**30:.1f}", *apart.split(" | "), fits(planned)]
                rows.append([size, way, activations, *cells])
                print(*rows[-1], sep="  ", flush=True)
    head = ["", "way", "activations", "planned, GiB", "held by a loop, GiB", "planned minus held", "fits"]
    text = (
        f"A training step of {args.pairs} pairs ({found['tokens']:,} unique tokens, packed), Qwen3's shapes,"
        f" vocabulary {args.vocabulary:,}{f', {args.layers} layers' if args.layers else ''}; tensors without"
        " numbers, so no card was used. A card is named where a tenth of it stays free."
    )
    notes = (
        "The loop is torch's own: forward, backward, clipping, fused AdamW. AdamW of 8 bits and QLoRA have no"
        " such loop without their kernels, so only the plan speaks. QLoRA counts half a byte a weight and a"
        " scale of a byte for 64 of them."
    )
    publish("\n".join([text, "", *table(head, rows), "", notes, "", versions_line(1)]), args.output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=QWEN, default=list(QWEN))
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--layers", type=int, help="of the model; default: its own")
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--output", type=Path, help="Markdown file")
    main(parser.parse_args())
