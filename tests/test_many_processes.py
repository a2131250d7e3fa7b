"""A run of several processes equals that of one, or stops with a sentence: launchers, DDP, FSDP2, ZeRO-3,
adapters, checkpoints."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import relaxed_accelerate
import torch
from many_world import rows

from reward_kit import Playground, RewardConfig, RewardModel, RewardTrainer
from reward_kit.rl.policies import PPOConfig
from reward_kit.rl.ppo import PPOTrainer

ROOT, HERE = Path(__file__).resolve().parents[1], Path(__file__).parent
TUTORIAL = ROOT / "nbs" / "tutorials" / "accelerate"
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PATH = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"


def environment(**more):
    own = ("ACCELERATE_", "FSDP_", "WORLD_SIZE", "RANK", "LOCAL_", "MASTER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return kept | QUIET | {"PYTHONPATH": PATH} | more


def call(command, timeout=400, **env):
    command = list(map(str, command))
    return subprocess.run(command, env=environment(**env), capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "A folder with data, and what one process gives."
    folder = tmp_path_factory.mktemp("many")
    names = ("prompt", "chosen", "rejected")
    pairs = [dict(zip(names, (r["prompt"], *r["responses"]))) for r in Playground(seed=0).preferences(120)]
    (folder / "data.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    done = run(folder, "one", [sys.executable], "full", "lora", "given")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def run(world, name, launcher, *works, **env):
    (world / name).mkdir(exist_ok=True)
    return call([*launcher, HERE / "many_world.py", world / "data.jsonl", world / name, *works], **env)


def result(world, name, work):
    return json.loads((world / name / f"{work}.json").read_text())


def scores(world, name, work):
    held_out = rows(world / "data.jsonl")[1]
    model = RewardModel.from_pretrained(world / name / work, device="cpu", dtype=torch.float32)
    return torch.tensor(model.score([r["prompt"] for r in held_out], [r["chosen"] for r in held_out]))


def check_equal(world, name, work, engine, one=None, tolerance=1e-3):
    "Weights before the first step, losses, metrics, scale and the saved model are those of one process."
    found, expected = result(world, name, work), result(world, "one", one or work)
    assert engine in found["layout"] and "2 processes" in found["layout"], found["layout"]
    if "resumed" not in work:
        assert found["before"] and found["before"] == pytest.approx(expected["before"], rel=1e-5)
    assert found["loss"] == pytest.approx(expected["loss"], abs=tolerance)
    assert found["eval"]["eval_loss"] == pytest.approx(expected["eval"]["eval_loss"], abs=tolerance)
    a, b = scores(world, name, work), scores(world, "one", one or work)
    assert (a - b).abs().max() < tolerance * 5, (a - b).abs().max()
    scales = [
        json.loads((world / where / what / "reward_kit.json").read_text())["normalization"]
        for where, what in ((name, work), ("one", one or work))
    ]
    for key in ("mean", "std"):
        assert scales[0][key] == pytest.approx(scales[1][key], abs=tolerance)
    assert (world / name / work / "adapter" / "adapter_model.safetensors").exists() is work.endswith("lora")


# ---------------------------------------------------------------- engines


def test_ddp_equals_one_process(world):
    "With nothing said about the CPU: it is found."
    done = run(world, "ddp", TORCHRUN, "full", "resume")
    assert done.returncode == 0, done.stderr[-3000:]
    check_equal(world, "ddp", "full", "DDP", tolerance=1e-4)
    check_equal(world, "ddp", "resumed", "DDP", one="full", tolerance=1e-4)


@pytest.fixture(scope="module")
def relaxed(tmp_path_factory):
    "PYTHONPATH with an accelerate under which FSDP2 and DeepSpeed run on a CPU."
    return f"{relaxed_accelerate.make(tmp_path_factory.mktemp('relaxed'))}{os.pathsep}{PATH}"


def accelerate_launch(world, name):
    "The tutorial's own file, for two processes in float32."
    text = (TUTORIAL / f"{name}.yaml").read_text()
    for old, new in {"num_processes: 8": "num_processes: 2", "precision: bf16": 'precision: "no"'}.items():
        assert old in text
        text = text.replace(old, new)
    (world / f"{name}.yaml").write_text(text)
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", world / f"{name}.yaml"]


def test_fsdp2_equals_one_process(world, relaxed):
    launcher = accelerate_launch(world, "fsdp2")
    done = run(
        world,
        "fsdp2",
        launcher,
        *("full", "lora", "resume", "resume_lora"),
        PYTHONPATH=relaxed,
        ACCELERATE_USE_CPU="true",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for work in ("full", "lora"):
        check_equal(world, "fsdp2", work, "FSDP2")
    check_equal(world, "fsdp2", "resumed", "FSDP2", one="full")
    check_equal(world, "fsdp2", "resumed_lora", "FSDP2", one="lora")


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_deepspeed_equals_one_process(world, relaxed, stage):
    launcher = accelerate_launch(world, stage)
    done = run(
        world,
        stage,
        launcher,
        *("full", "lora", "given", "resume", "resume_lora"),
        PYTHONPATH=relaxed,
        ACCELERATE_USE_CPU="true",
        DS_ACCELERATOR="cpu",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for work in ("full", "lora", "given"):
        check_equal(world, stage, work, f"DeepSpeed ZeRO-{stage[-1]}")
    for work, one in (("resumed", "full"), ("resumed_lora", "lora")):
        check_equal(world, stage, work, f"DeepSpeed ZeRO-{stage[-1]}", one=one)


def test_a_file_that_accelerate_ignores_is_in_the_plan(world):
    done = run(world, "ignored", accelerate_launch(world, "fsdp2"), "full", ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "DDP (accelerate ignores the settings of FSDP" in result(world, "ignored", "full")["layout"]


# ---------------------------------------------------------------- of one mind


def test_all_begin_or_none(world):
    done = run(world, "agree", TORCHRUN, "agree")
    assert done.returncode == 0, done.stderr[-3000:]
    told = []
    for number in range(2):
        lines = (world / "agree" / f"told-{number}.jsonl").read_text().splitlines()
        told.append({name: text for line in lines for name, text in json.loads(line).items()})
    reasons = {
        "rows": "process 1 of 2 is about another run than process 0 (other data)",
        "rate": "learning_rate 0.001 -> 0.002",
        "folder": "process 1 does not see",
        "one process less": "checkpoint-3 is of a run with other settings (processes 1 -> 2)",
    }
    for name, reason in reasons.items():
        assert reason in told[0][name], told[0][name]
        assert told[1][name] == "ends with 1"
    for name in ("no folder needed", "fresh"):
        assert told[0][name] == told[1][name] == "goes on from None"
    assert not list((world / "agree").rglob(".seen-*"))


# ---------------------------------------------------------------- launching


def test_torchrun_runs_the_command_as_one(world):
    out = world / "command"
    words = f"train --model playground --data {world / 'data.jsonl'} --max-steps 3 --output {out}".split()
    done = call([*TORCHRUN, "-m", "reward_kit", *words])
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout
    assert "2 processes of DDP" in said and said.count("The reward model is in") == 1
    assert said.count("Training on") == 1 and said.count("step 3/3  loss") == 1
    card = (out / "README.md").read_text()
    assert "| processes | 2 |" in " ".join(card.split())
    assert RewardModel.from_pretrained(out).has_scale
    # a second run there is refused once, and with another number of processes as well
    again = call([*TORCHRUN, "-m", "reward_kit", *words])
    assert again.returncode and again.stderr.count("this very run, finished") == 1
    alone = call([sys.executable, "-m", "reward_kit", *words])
    assert alone.returncode == 1 and "processes 2 -> 1" in alone.stderr


@pytest.mark.parametrize("module", ["reward_kit", "reward_kit.tools.cli"])
def test_the_command_is_a_module(module):
    done = call([sys.executable, "-m", module, "--version"])
    assert done.returncode == 0 and done.stdout.startswith("reward-kit "), done.stderr
    assert call([sys.executable, "-m", module, "trian"]).returncode == 2


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_processes_end_with_their_launcher(tmp_path):
    program = tmp_path / "sleeper.py"
    program.write_text(
        "import os, time\nfrom types import SimpleNamespace as Args\n"
        "from reward_kit.beside import many_processes\nmany_processes._begin(Args(use_cpu=False))\n"
        "print(os.getpid(), flush=True)\ntime.sleep(300)\n"
    )
    launcher = subprocess.Popen(
        [*TORCHRUN, str(program)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = [int(launcher.stdout.readline()) for _ in range(2)]
    assert all(map(alive, workers))
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    end = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.2)
    left = [pid for pid in workers if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


# ---------------------------------------------------------------- refused by name

PAIRS = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4
SWITCH = "ACCELERATE_USE_PARALLELISM_CONFIG"


@pytest.mark.parametrize(
    "environ, reason",
    [
        ({SWITCH: "true", "PARALLELISM_CONFIG_TP_SIZE": "2"}, "tensor parallelism, here over 2 processes"),
        ({SWITCH: "true", "PARALLELISM_CONFIG_CP_SIZE": "4"}, "context parallelism, here over 4 processes"),
        ({SWITCH: "true", "PARALLELISM_CONFIG_SP_SIZE": "2"}, "sequence parallelism, here over 2 processes"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP1 .fsdp_version: 1. is not supported"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP1 .fsdp_version: 1. is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not supported"),
        ({"WORLD_SIZE": "2"}, "2 processes were started, and this one sees 1"),
    ],
)
def test_what_is_not_supported_is_refused(environ, reason, monkeypatch, tmp_path):
    args = RewardConfig(str(tmp_path), use_cpu=True)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=reason):
        RewardTrainer("playground", args, train_dataset=PAIRS)


def test_a_plan_for_tensors_is_refused(tmp_path):
    args = RewardConfig(str(tmp_path), use_cpu=True, model_init_kwargs={"tp_plan": "auto", "tp_size": 2})
    with pytest.raises(ValueError, match="tensor parallelism"):
        RewardTrainer("playground", args, train_dataset=PAIRS)


def test_ppo_is_refused_where_weights_are_spread(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="PPO holds whole models"):
        PPOTrainer("playground", len, PPOConfig(str(tmp_path), use_cpu=True), train_dataset=["a"])


# ---------------------------------------------------------------- a model in another process

QUESTION = "What do bees make honey from, and where do they keep it in winter, when nothing blooms?"
ASKED = (QUESTION, ["From nectar.", "No idea."])


def ask(model, answers):
    answers.put((model.rank(*ASKED), model.model.config._attn_implementation))


def test_a_model_survives_pickle_and_a_spawned_process(world):
    model = RewardModel.from_pretrained(world / "one" / "full")
    expected = model.rank(*ASKED)
    assert pickle.loads(pickle.dumps(model)).rank(*ASKED) == expected
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=ask, args=(model, answers))
    process.start()
    found, attention = answers.get(timeout=120)
    process.join()
    assert found == expected and attention == model.model.config._attn_implementation
