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
