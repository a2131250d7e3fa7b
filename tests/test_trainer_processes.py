"Two processes give the weights and the sums of one."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trainer_ddp import run
from trainer_world import make_base


def test_two_processes_equal_one(tmp_path):
    base = make_base(tmp_path / "base")
    env = dict(os.environ, OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    # on a CPU `accelerate launch` needs MPI for several processes; torchrun is what it uses elsewhere
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(Path(__file__).with_name("trainer_ddp.py")),
        base,
        str(tmp_path),
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    threads = torch.get_num_threads()
    run(base, tmp_path, 4, "one")
    torch.set_num_threads(threads)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    for kind in ("set", "stream"):
        assert two["eval"][f"eval_{kind}_accuracy"] == one["eval"][f"eval_{kind}_accuracy"]
        for name in ("loss", "margin", "mean_reward"):
            assert two["eval"][f"eval_{kind}_{name}"] == pytest.approx(
                one["eval"][f"eval_{kind}_{name}"], abs=1e-5
            )
    for name in ("loss", "accuracy", "margin", "num_tokens"):
        assert two["train"][name] == pytest.approx(one["train"][name], rel=1e-5)
    weights = [load_file(tmp_path / name / "final/model.safetensors") for name in ("one", "two")]
    assert all(torch.allclose(value, weights[1][name], atol=1e-6) for name, value in weights[0].items())
    assert done.stdout.count("examples, learning rate") == 1, "the plan is printed once"


# ---- configurations of the tutorial on scaling out; what of them needs GPUs or DeepSpeed itself cannot be
# run here

CONFIGURATIONS = sorted((Path(__file__).parents[1] / "nbs" / "tutorials" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_accelerate_launch_takes_the_configuration(path):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    load_config_from_file(str(path))  # refuses names that it does not know
    args, _, _ = _validate_launch_command(
        launch_command_parser().parse_args(
            ["--config_file", str(path), "train.py", "MODEL", "DATA", "OUTPUT"]
        )
    )
    assert (
        args.use_fsdp is (path.stem == "fsdp2")
        and args.use_deepspeed is path.stem.startswith("zero")
        and (args.num_processes, args.mixed_precision) == (8, "bf16")
    )


def test_what_accelerate_sets_for_fsdp_makes_its_plugin(monkeypatch):
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    args, _, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(CONFIGURATIONS[0]), "train.py"])
    )
    for name, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (
        plugin.fsdp_version == 2
        and plugin.reshard_after_forward is True
        and not plugin.cpu_ram_efficient_loading
        and plugin.state_dict_type.name == "FULL_STATE_DICT"
    )
