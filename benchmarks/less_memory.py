"""Training with less memory: whether weights in bfloat16, an optimizer of 8 bits and recomputed activations
learn what float32 learns, and what each costs.

    python benchmarks/less_memory.py [--seeds 0 1 2] [--pairs 1200] [--steps 150]
        [--output benchmarks/results/less_memory.md]

Each seed draws its own playground pairs, its own split by prompt, its own head and its own order; all
ways of a seed share them. Weights in bfloat16 keep 8 bits, so that most steps of plain AdamW are smaller
than what a weight can change by; stochastic rounding (torchao's AdamW of 8 bits) keeps their mean. Counted
are the bytes of weights and optimizer after the last step; what recomputed activations save, the plan
of a run says. It takes a quarter of an hour on two cores, most of it the compiler's.
"""

import argparse
import tempfile
from pathlib import Path

from common import BLUE, GREEN, GREY, ORANGE, SKY, new_figure, publish, shown, table, versions_line

EIGHT_BITS = {"optim": "adamw_torch_8bit", "optim_args": "bf16_stochastic_round=True"}
WAYS = {  # name -> settings, whether weights are loaded in bfloat16, colour
    "float32": ({}, False, BLUE),
    "float32, activations recomputed": ({"gradient_checkpointing": True}, False, SKY),
    "float32, AdamW of 8 bits": ({"optim": "adamw_torch_8bit"}, False, GREEN),
    "bfloat16, AdamW of 8 bits, rounded at random": (EIGHT_BITS, True, ORANGE),
    "bfloat16, plain AdamW": ({"optim": "adamw_torch"}, True, GREY),
}


def state_bytes(optimizer) -> int:
    "Bytes of an optimizer's tensors; those of torchao say their parts."
    total = 0
    for state in optimizer.state.values():
        for value in state.values():
            parts = [getattr(value, name) for name in ("codes", "scale") if hasattr(value, name)] or [value]
            total += sum(part.nbytes for part in parts if getattr(part, "ndim", 0))
    return total


def train(way: str, seed: int, pairs: int, steps: int) -> dict:
    "One way of one seed: curve of the loss on held-out pairs, and bytes."
    import torch
    import transformers

    from reward_kit import Playground, RewardConfig, RewardTrainer
    from reward_kit.data.preferences import split_by_prompt

    settings, short, _ = WAYS[way]
    if short:
        settings = settings | {"model_init_kwargs": {"dtype": torch.bfloat16}}
    known, held_out = split_by_prompt(Playground(seed=seed).preferences(pairs), 0.2, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        args = RewardConfig(
            folder, seed=seed, max_steps=steps, eval_strategy="steps", eval_steps=max(1, steps // 6),
            logging_steps=steps, save_strategy="no", show_plan=False, use_cpu=True, disable_tqdm=True,
            **settings,
        )  # fmt: skip
        trainer = RewardTrainer("playground", args, train_dataset=known, eval_dataset=held_out)
        if short:
            trainer.model.bfloat16()  # the trainer would not leave them so beside plain AdamW
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        log = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        weights = list(trainer.model.parameters())
        return {
            "steps": [entry["step"] for entry in log],
            "loss": [entry["eval_loss"] for entry in log],
            "accuracy": 100 * log[-1]["eval_accuracy"],
            "bytes": (2 * sum(p.nbytes for p in weights) + state_bytes(trainer.optimizer))
            / sum(p.numel() for p in weights),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS))
    parser.add_argument("--output", type=Path, help="Markdown file; the picture goes beside it")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    runs = {
        way: [train(way, seed, args.pairs, args.steps) for seed in args.seeds] for way in args.ways
    }
    first, rows = runs[args.ways[0]], []
    for way, found in runs.items():
        apart = [run["loss"][-1] - same["loss"][-1] for run, same in zip(found, first)]
        rows.append([
            way, f"{found[0]['bytes']:.1f}", shown([run["loss"][-1] for run in found], 4),
            shown(apart, 4) if found is not first else "", shown([run["accuracy"] for run in found], 1),
        ])  # fmt: skip
    head = ["way", "bytes a weight", "held-out loss", "minus the first", "accuracy %"]
    figure, ((axes,),) = new_figure()
    for way, found in runs.items():
        for n, run in enumerate(found):
            axes.plot(run["steps"], run["loss"], color=WAYS[way][2], label=way if n == 0 else None)
    axes.set(xlabel="optimizer step", ylabel="held-out loss (nats per pair)")
    axes.legend(fontsize=7)
    seeds = f"mean over seeds {', '.join(map(str, args.seeds))} and its 95% interval (Student's t)"
    text = [
        f"The playground's base, {args.pairs} pairs, {args.steps} steps; {seeds}. Bytes a weight: the weight,"
        " its gradient, and the optimizer's own numbers.", "", *table(head, rows), "", versions_line(1),
    ]  # fmt: skip
    caption = "Held-out loss over steps, one line a seed"
    publish("\n".join(text), args.output, figure, caption)


if __name__ == "__main__":
    main()
