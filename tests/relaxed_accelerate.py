"""A copy of accelerate under which FSDP2 and DeepSpeed files act on a CPU: `make(folder)`, then
PYTHONPATH=folder.

Without an accelerator accelerate makes plain data parallelism of such files. Two conditions in
its `state.py` decide that; in the copy both are relaxed. It exercises the code path of the package, not a
GPU."""

import shutil
from pathlib import Path

import accelerate

CHANGES = (
    (
        '"ACCELERATE_USE_DEEPSPEED", "false").lower() == "true" and not cpu:',
        '"ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":',
    ),
    (
        "in [\n                DistributedType.MULTI_GPU,\n",
        "in [\n                DistributedType.MULTI_GPU, DistributedType.MULTI_CPU,\n",
    ),
)


def make(folder):
    "The folder. RuntimeError: another accelerate, in which these conditions do not stand."
    source, target = Path(accelerate.__file__).parent, Path(folder) / "accelerate"
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    state = target / "state.py"
    text = state.read_text(encoding="utf-8")
    for old, new in CHANGES:
        if text.count(old) != 1:
            raise RuntimeError(f"accelerate {accelerate.__version__} has not {old!r} once")
        text = text.replace(old, new)
    state.write_text(text, encoding="utf-8")
    return str(folder)
