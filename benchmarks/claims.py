"""Which claims of the chapters and tutorials hold with other seeds?

    python benchmarks/claims.py [NOTEBOOK ...] [--seeds 1 2 3 4 5 6 7 8] [--kept claims.json]
        [--minutes 60] [--output benchmarks/results/claims.md]

Every notebook is run again with another number wherever its examples name a seed, and every assertion is
looked at by itself. One that ends in "# in this run" speaks of the stored output alone: it is not asked
here, but it must hold with the seeds as they stand, which `make test` and `make tutorials` see to. The table
lists the notebooks, and every claim that failed with a seed. A notebook whose examples name no seed is
run once. What `--kept` holds of notebooks whose code has not changed since is not run again.
"""

import argparse
import ast
import hashlib
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from common import publish, table, versions_line

NBS = Path(__file__).resolve().parent.parent / "nbs"
PINNED = "# in this run"
SEEDED = {"Playground", "Random", "RandomState", "default_rng", "manual_seed", "seed", "set_seed"}
LOCK = Lock()
SKIPPED = ("slow", "gpu", "hub", "eval: false", "eval:false")


class OtherSeeds(ast.NodeTransformer):
    "Shifts every seed of a cell, and makes of each assertion a note whether it held."

    def __init__(self, shift: int):
        self.shift, self.source, self.is_example, self.n_seeds = shift, "", False, 0

    def visit_Module(self, node):
        return self.generic_visit(node) if self.is_example else node

    def _moved(self, value):
        is_seed = isinstance(value, ast.Constant) and type(value.value) is int
        self.n_seeds += is_seed
        return ast.Constant(value.value + self.shift) if is_seed else value

    def visit_Call(self, node):
        self.generic_visit(node)
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in SEEDED and node.args:
            node.args[0] = self._moved(node.args[0])
        for keyword in node.keywords:
            if keyword.arg == "seed":
                keyword.value = self._moved(keyword.value)
        return node

    def visit_Dict(self, node):
        self.generic_visit(node)
        for i, key in enumerate(node.keys):
            if isinstance(key, ast.Constant) and key.value == "seed":
                node.values[i] = self._moved(node.values[i])
        return node

    def visit_Assert(self, node):
        self.generic_visit(node)
        text = ast.get_source_segment(self.source, node)
        lines = self.source.splitlines()[node.lineno - 1 : node.end_lineno]
        if any(PINNED in line for line in lines):
            return ast.Pass()
        noted = (
            f"try:\n    pass\nexcept Exception as _e:\n    _note({text!r}, False)\n"
            f"else:\n    _note({text!r}, True)"
        )
        attempt = ast.parse(noted).body[0]
        attempt.body = [node]
        return attempt


def is_skipped(source: str) -> bool:
    "Whether a directive of the cell keeps it from being run here."
    directives = [line[2:].strip() for line in source.splitlines() if line.startswith("#|")]
    return any(directive.startswith(SKIPPED) for directive in directives)


def run_once(path: Path, shift: int) -> dict:
    "{claim: whether it held each time it was reached}, and the first error that was no claim."
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    held, error, transformer = {}, None, OtherSeeds(shift)

    def note(text, holds):
        held[text] = held.get(text, True) and holds

    shell = InteractiveShell.instance()
    shell.user_ns.update(_note=note, __name__="__main__")
    shell.ast_transformers.append(transformer)
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "code" or is_skipped(cell.source):
            continue
        transformer.source = shell.transform_cell(cell.source)
        transformer.is_example = "#| export" not in cell.source
        with capture_output():
            result = shell.run_cell(cell.source)
        if not result.success:
            raised = result.error_in_exec or result.error_before_exec
            error = error or f"{type(raised).__name__}: {raised}"[:200]
    return {"held": held, "error": error, "seeds": transformer.n_seeds}


def run(path: Path, shift: int) -> dict:
    "The same in a process of its own, in the folder of the notebook."
    code = "import sys, json; sys.path.insert(0, sys.argv[1]); from claims import *; " + (
        "out = run_once(Path(sys.argv[2]), int(sys.argv[3])); print('\\n' + json.dumps(out))"
    )
    begun = time.perf_counter()
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(path), str(shift)]
    env = {**os.environ, "MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=path.parent, env=env, capture_output=True, text=True)
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        error = (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
        found = {"held": {}, "error": error, "seeds": 1}
    print(f"{path.stem}, seed {shift}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    return found


def keep(file: Path | None, more=()) -> dict:
    "What a file of results holds, and now `more`."
    with LOCK:
        known = json.loads(file.read_text()) if file and file.exists() else {}
        if file and more:
            file.write_text(json.dumps(known | more))
        return known


def run_kept(path: Path, seed: int, kept: Path | None, ends: float) -> dict | None:
    "What is kept of this very code, else what `run` finds; None where time is over."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = repr([cell["source"] for cell in cells if cell["cell_type"] == "code"])
    key = f"{path.stem} {hashlib.sha256(code.encode()).hexdigest()[:16]} {seed}"
    found = keep(kept).get(key)
    if found is None and time.monotonic() < ends:
        found = run(path, seed)
        keep(kept, {key: found})
    return found


def run_all(paths: list[Path], args) -> dict:
    "Path -> what was found with each seed, or with the first alone if no example names one."
    found, ends = {path: [] for path in paths}, time.monotonic() + 60 * args.minutes
    with ThreadPoolExecutor(args.processes) as pool:
        for seed in args.seeds:  # round by round: where time ends, notebooks differ by a run at most
            asked = [path for path in paths if not found[path] or found[path][0]["seeds"]]
            jobs = [pool.submit(run_kept, path, seed, args.kept, ends) for path in asked]
            for path, job in zip(asked, jobs):
                found[path] += [one for one in [job.result()] if one]
    return found


def one_line(text: str, width=150) -> str:
    "A claim as a cell of the table."
    text = " ".join(text.removeprefix("assert ").split()).replace("|", "\\|")
    return text if len(text) <= width else text[: width - 3] + "..."


def main(args) -> None:
    "Prints the tables."
    paths = args.notebooks or sorted(NBS.rglob("*.ipynb"))
    paths = [path.resolve() for path in paths if not path.name.startswith(("_", "."))]
    rows, failed = [], []
    for path, runs in run_all(paths, args).items():
        if not runs:
            continue
        claims = {text: [one["held"].get(text) for one in runs] for one in runs for text in one["held"]}
        errors = [one["error"] for one in runs if one["error"]]
        broken = {text: results for text, results in claims.items() if False in results}
        whole = sum(None not in results and False not in results for results in claims.values())
        rows.append([path.stem, *map(str, (len(runs), len(claims), whole, len(broken), len(errors)))])
        failed += [
            [path.stem, one_line(text), f"{results.count(False)} of {len(runs)}"]
            for text, results in broken.items()
        ]
        failed += [[path.stem, one_line(error), "an error"] for error in dict.fromkeys(errors)]
    total = [sum(int(row[k]) for row in rows) for k in range(2, 6)]
    head = (
        f"{len(rows)} of {len(paths)} notebooks, with up to {len(args.seeds)} other seeds: "
        f"{total[0]:,} assertions, {total[1]:,} "
        f"held in every run, {total[2]} did not; {total[3]} runs met an error."
    )
    text = [head, ""]
    if failed:
        text += [*table(["notebook", "claim", "failed with"], failed), ""]
    text += [
        *table(["notebook", "runs", "assertions", "held in each", "failed", "runs with errors"], rows),
        "",
    ]
    publish("\n".join([*text, versions_line(1)]), args.output, None, "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", type=Path, nargs="*", help="default: all of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 9)), help="added to every seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kept", type=Path, help="JSON file of what was found; new results are added")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then no further run is begun")
    parser.add_argument("--output", type=Path, help="Markdown file")
    main(parser.parse_args())
