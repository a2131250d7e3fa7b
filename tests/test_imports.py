"`import reward_kit` and every help text stay light; every public name is where the package says."

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import reward_kit

HEAVY = [
    "torch",
    "trl",
    "transformers",
    "datasets",
    "pandas",
    "pyarrow",
    "accelerate",
    "peft",
    "matplotlib",
    "ipywidgets",
    "numpy",
    "fastapi",
    "uvicorn",
]
COMMANDS = [
    [],
    ["quickstart"],
    ["inspect"],
    ["train"],
    ["evaluate"],
    ["calibrate"],
    ["benchmark"],
    ["compare-runs"],
    ["score"],
    ["compare"],
    ["ppo"],
    ["serve"],
    ["llm"],
]
REPORT = f"import sys; print('HEAVY', [m for m in {HEAVY} if m in sys.modules])"


def heavy_after(code):
    "The heavy packages that a fresh interpreter has loaded after running the code, and what it printed."
    result = subprocess.run([sys.executable, "-c", f"{code}\n{REPORT}"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.rsplit("HEAVY ", 1)[1].strip(), result.stdout


def test_the_check_sees_a_heavy_import():
    assert heavy_after("import numpy")[0] == "['numpy']"


@pytest.mark.parametrize(
    "code",
    [
        "import reward_kit",
        "import reward_kit; dir(reward_kit)",
        "import reward_kit.autotrain",
        "import reward_kit.tools.cli",
    ],
)
def test_import_is_light(code):
    assert heavy_after(code)[0] == "[]"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c) or "reward-kit")
def test_help_is_light(command):
    code = (
        f"from reward_kit.tools.cli import main\ntry: status = main({[*command, '--help']})\nexcept"
        " SystemExit as e: status = e.code\nassert not status, status"
    )
    heavy, printed = heavy_after(code)
    assert heavy == "[]"
    assert (
        "usage: reward-kit" in printed and "reward-kit" in printed.split("usage: reward-kit", 1)[1]
    )  # an example follows the usage


def test_console_script():
    script = Path(sys.executable).with_name("reward-kit")
    if not script.exists():
        pytest.skip("reward-kit is not installed in this environment")
    result = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "usage: reward-kit" in result.stdout and not result.stderr


@pytest.mark.parametrize("name", reward_kit.__all__)
def test_public_names_come_from_the_module_that_exports_them(name):
    module = importlib.import_module(f"reward_kit.{reward_kit._EXPORTS[name]}")
    assert name in module.__all__
    assert getattr(reward_kit, name) is getattr(module, name)
    assert name in dir(reward_kit)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="'reward_kit' has no attribute 'RewardModle'"):
        reward_kit.RewardModle  # noqa: B018
