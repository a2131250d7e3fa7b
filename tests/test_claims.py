"The command that runs chapters with other seeds sees what fails, where it fails, and what is pinned."

import json
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

CLAIMS = Path(__file__).resolve().parent.parent / "benchmarks" / "claims.py"
CELLS = [
    "#| export\ndef drawn(seed=0):\n    assert seed < 9\n    return seed",
    "import random\n\nx = random.Random(0).random()\nassert x > 0",
    "assert abs(x - random.Random(0).random()) < 1e-9\nassert abs(x - 0.8444) < 1e-4",
    "assert abs(x - 0.8444) < 1e-4  # in this run\nfor seed in (1, 2):\n    assert dict(seed=3)['seed'] == 3",
    "#| slow\nassert False",
    "{'seed': 1}['none']",
    "assert {'seed': 1} == {'seed': 2}",
    "assert drawn() == 0",
]


def test_each_claim_is_looked_at_by_itself(tmp_path):
    path = tmp_path / "claims.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in CELLS]), path)
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); from claims import *; "
        "print('\\n' + json.dumps([run(Path(sys.argv[2]), shift) for shift in (0, 1)]))"
    )
    command = [sys.executable, "-c", code, str(CLAIMS.parent), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    first, second = json.loads(done.stdout.strip().splitlines()[-1])
    assert first["error"] == second["error"] == "KeyError: 'none'"
    wrong = lambda found: [claim for claim, held in found["held"].items() if not held]
    assert wrong(first) == ["assert {'seed': 1} == {'seed': 2}"]
    assert wrong(second) == [
        "assert abs(x - 0.8444) < 1e-4",
        "assert dict(seed=3)['seed'] == 3",
        "assert {'seed': 1} == {'seed': 2}",
    ]
    assert len(second["held"]) == 6


def test_notebooks_without_seeds_run_once_and_what_is_kept_is_not_run_again(tmp_path):
    cells = {"with": "import random\n\nassert random.Random(0).random() > 0", "without": "assert 1 + 1 == 2"}
    paths = [tmp_path / f"{name}.ipynb" for name in cells]
    for path, cell in zip(paths, cells.values()):
        nbformat.write(new_notebook(cells=[new_code_cell(cell)]), path)
    command = [sys.executable, CLAIMS, *paths, "--kept", tmp_path / "kept.json", "--seeds"]
    rows = lambda seeds, *more: [
        line
        for line in subprocess.run(
            [*map(str, command), *seeds, *more], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        if line.startswith("| with")
    ]
    assert rows("12") == ["| with | 2 | 1 | 1 | 0 | 0 |", "| without | 1 | 1 | 1 | 0 | 0 |"]
    assert rows("123", "--minutes", "0") == rows("12")  # the third would have to be run
