"""Texts per second of several processes on one machine: two parts of `reward-kit score` beside two actors of
the Ray Data program of the tutorial, and two parts of its twin, on the same file.

    python benchmarks/score_machines.py --data hh-rlhf-harmless-test.jsonl.gz [--output
        benchmarks/results/score_machines.md]

Needs Ray (`pip install "ray[data]"`). Each process has one thread; from the first start to the last row
written, so with what it takes to start: the more rows, the less that is. All give the same scores, which is
checked in the run. In alternating order.
"""

import argparse
import os
import subprocess
import sys
from operator import truediv
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from common import (
    SHAPES,
    alternating,
    build_tokenizer,
    model_line,
    publish,
    read_pairs,
    save_reward_model,
    table,
    texts_of,
)

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "nbs" / "tutorials" / "score_many"
SIDES = {
    "command": "`reward-kit score --shard 0/2` and `1/2`",
    "map": "`score_map.py`, parts `0/2` and `1/2`",
    "ray": "`score_ray.py` with 2 actors",
}


def prepare(work: Path, args) -> dict:
    "The model and a file of texts with ids; facts about the model."
    import pandas as pd

    pairs = read_pairs(args.data)
    facts = save_reward_model(
        work / "model", build_tokenizer(texts_of(pairs), args.vocabulary), args.model, 4096, 2048
    )
    spoken = [
        {"prompt": "\n".join(message["content"] for message in prompt), "response": response[0]["content"]}
        for prompt, responses in pairs
        for response in responses
    ]
    rows = [spoken[i % len(spoken)] | {"id": i} for i in range(args.rows)]
    (work / "in").mkdir()
    pd.DataFrame(rows).to_parquet(work / "in" / "texts.parquet", row_group_size=1024)
    return facts


def commands(side: str, work: Path, out: Path) -> list[list]:
    "What is started at once."
    model, source = work / "model", work / "in"
    parts = [f"{i}/2" for i in range(2)]
    return {
        "command": [
            [
                *("-m", "reward_kit", "score", model, source / "texts.parquet", "--shard", part),
                *("--output", out / f"{part[0]}.parquet", "--device", "cpu"),
            ]
            for part in parts
        ],
        "map": [
            [PROGRAMS / "score_map.py", model, source, out / f"{part[0]}.parquet", part] for part in parts
        ],
        "ray": [[PROGRAMS / "score_ray.py", model, source, out, 2]],
    }[side]


def run(side: str, work: Path, number: int) -> tuple[float, dict]:
    "Seconds, and {id: score}."
    import pandas as pd

    out = work / f"{side}-{number}"
    out.mkdir()
    own = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "RAY_USAGE_STATS_ENABLED": "0"}
    own["RAY_memory_monitor_refresh_ms"] = "0"  # in a container it may count the cache of files, too
    own |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HOME": str(out / "cache")}
    env = os.environ | own | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    begin = perf_counter()
    with open(work / f"{out.name}.log", "w") as log:
        started = [
            subprocess.Popen([sys.executable, *map(str, words)], env=env, stdout=log, stderr=log)
            for words in commands(side, work, out)
        ]
        if any([process.wait() for process in started]):
            raise RuntimeError(Path(log.name).read_text()[-3000:])
    seconds = perf_counter() - begin
    found = pd.concat(map(pd.read_parquet, sorted(out.glob("*.parquet"))))
    return seconds, dict(zip(found["id"], found["score"]))


def main() -> None:
    "Measure, and print a table."
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", choices=SHAPES, default="33m", help="'tiny' is for trying the command out")
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with TemporaryDirectory(prefix="score-machines-") as folder:
        work = Path(folder)
        facts, seconds, scores = prepare(work, args), {side: [] for side in SIDES}, {}
        for number in range(args.rounds):
            for side in alternating(SIDES, number):
                took, found = run(side, work, number)
                seconds[side].append(took)
                print(f"round {number + 1} of {args.rounds}, {SIDES[side]}: {took:.1f} s", flush=True)
                scores = scores or found
                if found.keys() != scores.keys() or len(found) != args.rows:
                    raise RuntimeError(f"{side} scored {len(found)} of {args.rows} rows")
                worst = max(abs(found[i] - scores[i]) for i in scores)
                if not worst < 1e-4:
                    raise RuntimeError(f"scores of the same texts differ by {worst}")
    base = seconds["command"]
    rows = []
    for side, name in SIDES.items():
        speeds, ratio = [args.rows / s for s in seconds[side]], median(map(truediv, base, seconds[side]))
        each = ", ".join(f"{speed:.1f}" for speed in speeds)
        rows.append([name, f"{median(speeds):.1f} ({each})", f"{ratio:.2f}"])
    import ray

    lines = [
        f"{args.rows:,} texts of {Path(args.data).name}, {model_line(facts)}; two processes of one thread.",
        "",
        *table(["", "texts/s, median (each round)", "of the command's speed"], rows),
        "",
        "From the first start to the last row written. All scores of a text are the same to 1e-4 "
        f"(checked in the run). CPU; Ray {ray.__version__}.",
    ]
    publish("\n".join(lines), args.output)


if __name__ == "__main__":
    main()
