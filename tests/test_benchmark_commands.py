"""Every benchmark is one command that runs: its help, and a run as small as it allows. Nothing here
looks at a time."""

import ast
import importlib
import json
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from reward_kit import Playground

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
COMMANDS = sorted(p.name for p in FOLDER.glob("*.py") if "__main__" in p.read_text(encoding="utf-8"))
MODEL = "--model tiny --vocabulary 512 --rounds 1"
SHORT = "--prompt 8 --response 8"
SMALL = {  # {data}: a file of transcripts
    "architectures.py": "--types llama granite gptj",
    "claims.py": "{root}/nbs/1_data/10_files.ipynb --seeds 1 --processes 1",
    "clients.py": "--only reward_kit transformers",
    "data_layouts.py": "",
    "data_million_rows.py": "--rows 300 --processes 1",
    "distance_to_limit.py": (
        f"{MODEL} {SHORT} --data {{data}} --dtype fp32 --batch 2 --long-batch 2 --long-steps 2 --pairs 8"
    ),
    "gpu.py": (
        "--model tiny --vocabulary 512 --families Qwen3 --data {data} --batch 2 --long-batch 1"
        " --steps 1 --texts 8 --episodes 8 --response 4 --threads 1 --output results"
    ),
    "less_memory.py": "--seeds 0 --pairs 40 --steps 2 --ways float32 'bfloat16, plain AdamW'",
    "memory_plan.py": "--sizes 0.6B --layers 1 --vocabulary 512 --pairs 1",
    "over_optimisation.py": "--batches 1 --sizes 10 20 --held-out 4 --seeds 0 1",
    "planted_biases.py": "--experiments 1 --prompts 60 --limit 60",
    "playground_accuracy.py": "--seeds 0 --pairs 60",
    "playground_ppo.py": "--seeds 0 --pairs 60 --episodes 32",
    "same_quality.py": "--seeds 0 --pairs 60 --steps 2 --every 1",
    "scaling.py": f"{MODEL} {SHORT} --pairs 100 --steps 1 --prompts 8 --ks 2 --batches 2",
    "score_speed.py": f"{MODEL} --data {{data}} --pairs 8 --prompts 2 --k 2",
    "serve_speed.py": "--clients 2 --texts 8 --alone 2 --rounds 1",
    "small_data.py": "--worlds 1 --curves 1 --seeds --pairs 60",
    "train_speed.py": f"{MODEL} --data {{data}} --pairs 4 --batch 2 --dtype fp32",
    "transcripts_accuracy.py": "{data} --train-pairs 40",
    "trust_reports.py": "--pairs 80",
    "waiting_threads.py": "--steps 1 --rounds 1",
}
SAYS = {
    "over_optimisation.py": "true reward: best",
    "transcripts_accuracy.py": "95% interval",
}  # the others print a table
ELSEWHERE = {
    "attack.py": "test_attack.py runs it",
    "ppo_curves.py": "needs the last TRL that has PPO, in a folder of its own",
    "ppo_speed.py": "the same",
    "score_machines.py": "needs Ray",
    "trl_tests.py": "needs the source of TRL",
}  # and why


@pytest.fixture(scope="module")
def transcripts(tmp_path_factory):
    "Playground pairs as HH-RLHF writes them."
    path = tmp_path_factory.mktemp("data") / "transcripts.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for record in Playground(seed=0).preferences(80):
            chosen, rejected = (
                f"\n\nHuman: {record['prompt']}\n\nAssistant: {text}" for text in record["responses"]
            )
            file.write(json.dumps({"chosen": chosen, "rejected": rejected}) + "\n")
    return path


def run(name, *arguments, folder):
    command = [sys.executable, FOLDER / name, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_benchmark_is_tried():
    assert set(COMMANDS) == {*SMALL, *ELSEWHERE}


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name, tmp_path):
    assert f"usage: {name}" in run(name, "--help", folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_small_run(name, tmp_path, transcripts):
    words = SMALL[name].format(data=transcripts, root=FOLDER.parent)
    printed = run(name, *shlex.split(words), folder=tmp_path)
    assert SAYS.get(name, "|") in printed


@pytest.mark.parametrize("name", sorted(p.name for p in FOLDER.glob("*.py")))
def test_what_a_benchmark_takes_from_the_package_is_there(name):
    "Also in functions that no small run here reaches, because they need another TRL."
    for node in ast.walk(ast.parse((FOLDER / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "reward_kit":
            module = importlib.import_module(node.module)
            lacking = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not [name for name in lacking if not find_spec(f"{node.module}.{name}")]
