"""Steps of training when the threads that compute wait for one another spinning, as OpenMP does by
itself, and asleep, as the command `reward-kit` asks for (OMP_WAIT_POLICY=PASSIVE).

    python benchmarks/waiting_threads.py [--steps 20] [--rounds 5] [--output FILE.md]

A loop of torch's own: a decoder of random weights, forward and backward pass over 600 tokens, in a
process of its own; alone, and beside a process that keeps one processor busy. Rounds in alternating order.
"""

import argparse
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

from common import Workers, alternating, answer, available_threads, publish, table, versions_line

SIDES = {"spinning": "", "asleep": "PASSIVE"}


def steps(work: Path, count: int) -> list:
    "Seconds of each step."
    import torch
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64}
    model = Qwen3Model(Qwen3Config(vocab_size=1000, **sizes, **heads))
    ids, seconds = torch.randint(1000, (4, 150)), []
    for _ in range(count + 2):  # two to warm up
        start = perf_counter()
        model(ids).last_hidden_state.square().mean().backward()
        seconds.append(perf_counter() - start)
    return seconds[2:]


@contextmanager
def beside(busy: bool):
    "A process that does nothing, without a pause."
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if process:
            process.kill()
            process.wait()


def main(args) -> None:
    "All rounds."
    times = {(busy, side): [] for busy in (False, True) for side in SIDES}
    with Workers(__file__, args.threads) as workers:
        for i in range(args.rounds):
            for busy in (False, True):
                for side in alternating(SIDES, i):
                    os.environ.pop("OMP_WAIT_POLICY", None)
                    if SIDES[side]:
                        os.environ["OMP_WAIT_POLICY"] = SIDES[side]
                    with beside(busy):
                        times[busy, side].append(median(workers.ask("steps", count=args.steps)))
    rows = [
        [
            "beside a busy process" if busy else "alone",
            *(
                f"{median(times[busy, side]) * 1e3:,.0f} ({min(times[busy, side]) * 1e3:,.0f} to "
                f"{max(times[busy, side]) * 1e3:,.0f})"
                for side in SIDES
            ),
            f"{median(times[busy, 'spinning']) / median(times[busy, 'asleep']):.2f}",
        ]
        for busy in (False, True)
    ]
    head = ["", *(f"{side}, ms a step" for side in SIDES), "ratio"]
    said = f"Median step of each of {args.rounds} runs: their median, and the range of the runs."
    lines = [said, "", *table(head, rows), "", versions_line(args.threads)]
    publish("\n".join(lines), args.output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--output", type=Path, help="Markdown file")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    answer(args.worker, {"steps": steps}) if args.worker else main(args)
