"""Time and memory of `load_preferences` on a synthetic file of preferences, by number of processes.

python benchmarks/data_million_rows.py [--rows 1000000] [--processes 1 2]
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = (
    "the a one some many what why how can should river city number word answer reason light water music"
    " history small large old new first".split()
)


def write(path, rows):
    """Pairs of about 20, 40 and 40 words; one in a hundred repeats the one before, one in a thousand is
    broken."""
    rng = random.Random(0)
    sentence = lambda n: " ".join(rng.choices(WORDS, k=rng.randint(n // 2, 3 * n // 2)))
    line = ""
    with open(path, "w") as file:
        for n in range(rows):
            if n % 1000 == 999:
                line = '{"prompt": "broken\n'
            elif n % 100 != 50:
                line = (
                    json.dumps({"prompt": sentence(20), "chosen": sentence(40), "rejected": sentence(40)})
                    + "\n"
                )
            file.write(line)


def measure(path, processes):
    "Run in a process of its own: seconds and peak memory of loading, splitting and reporting."
    from reward_kit.data.preferences import load_preferences, split_by_prompt

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    preferences = load_preferences(path, num_proc=processes, cache_dir=Path(path).parent, progress=False)
    loaded = time.perf_counter()
    train, evaluation = split_by_prompt(preferences)
    peak, worker = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(
        json.dumps(
            {
                "processes": processes,
                "rows": preferences.report.rows_read,
                "kept": len(preferences),
                "eval": len(evaluation),
                "load_s": loaded - start,
                "split_s": time.perf_counter() - loaded,
                "imports_mib": before / 1024,
                "peak_mib": peak,
                "worker_mib": worker,
            }
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(args.measure[0], int(args.measure[1]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "preferences.jsonl"
        write(path, args.rows)
        print(f"{args.rows:,} rows, {path.stat().st_size / 2**20:,.0f} MiB of JSON lines\n")
        print(
            "| processes | kept | load | rows/s | split | after imports | peak memory | largest worker"
            " |\n|---|---|---|---|---|---|---|---|"
        )
        for processes in args.processes:
            out = subprocess.run(
                [sys.executable, __file__, "--measure", path, str(processes)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            r = json.loads(out.splitlines()[-1])
            print(
                f"| {processes} | {r['kept']:,} | {r['load_s']:.0f} s | {r['rows'] / r['load_s']:,.0f} |"
                f" {r['split_s']:.1f} s | {r['imports_mib']:.0f} MiB | {r['peak_mib']:.0f} MiB |"
                f" {r['worker_mib']:.0f} MiB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
