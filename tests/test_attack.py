"A small version of the campaign that `benchmarks/attack.py` is: kills, hostile input, and nothing silent."

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_nothing_is_silent():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "attack.py"), "--quick", "--seconds", "5"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("kills of ") >= 5 and "| 0 |" in done.stdout
