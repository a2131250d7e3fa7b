"The command line: parsing, help, configuration files, and one clear line for everything that goes wrong."
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from reward_kit import cli
from reward_kit.autotrain import ParameterError
from reward_kit.cli import COMMANDS, CONFIG_OPTIONS, LORA_OPTIONS, main, read_arguments

ENV = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
RUN = [sys.executable, "-c", "from reward_kit.cli import main; raise SystemExit(main())"]
LLM = ["llm", "--train", "--model", "playground", "--trainer", "reward"]
COLUMNS = ["--prompt-text-column", "prompt", "--text-column", "chosen", "--rejected-text-column", "rejected"]


def shell(*argv, **more):
    "The command in a process of its own."
    return subprocess.run([*RUN, *map(str, argv)], capture_output=True, text=True, env=ENV, **more)


def fails(capsys, code, *argv):
    "Runs in this process, checks exit code and that stderr is one line without a traceback; returns the line."
    capsys.readouterr()
    assert main([str(a) for a in argv]) == code
    error = capsys.readouterr().err.strip()
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("reward-kit: ")]
    assert len(lines) == 1 and error.splitlines()[-1] == lines[0], error
    return lines[0]


# --- help and imports


def test_help_and_import_load_nothing_heavy():
    code = (
        "import sys, reward_kit; from reward_kit.cli import COMMANDS, main\n"
        "for c in ['--help', *([c, '--help'] for c in COMMANDS)]: assert main(c if isinstance(c, list) else [c]) == 0\n"
        "heavy = {'torch', 'trl', 'transformers', 'datasets', 'pandas', 'numpy', 'matplotlib', 'yaml', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr
    assert all(f"reward-kit {name}" in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_each_help_shows_every_option_and_an_example(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"example:\n  reward-kit {name}" in text
    for option in COMMANDS[name].options:
        assert option.positional or f"--{option.name.replace('_', '-')}" in text
        assert option.help


def test_examples_parse():
    import shlex

    for command in COMMANDS.values():
        for line in command.example.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            assert words[:2] == ["reward-kit", command.name]
            read_arguments(command, words[2:])


def test_training_options_are_those_of_the_config():
    from reward_kit.trainer import RewardConfig

    config = {f.name: f for f in fields(RewardConfig)}
    for option in CONFIG_OPTIONS:
        default = config[option.name].default
        assert default is not MISSING, option.name
        if option.name != "optim":  # depends on the torch version
            assert getattr(default, "value", default) == option.default, option.name


def test_lora_options_are_those_of_peft():
    peft = pytest.importorskip("peft")
    names = {f.name for f in fields(peft.LoraConfig)} | {"r"}
    assert {o.name if o.name != "lora_r" else "r" for o in LORA_OPTIONS} - {"lora", "quantization"} <= names


# --- reading options


def test_dashes_and_underscores(tmp_path):
    a = read_arguments(COMMANDS["train"], ["--model", "m_m", "--data", "d", "--output", "o", "--num_train_epochs", "2", "--lr=1e-5", "--bf16"])
    assert (a.model, a.num_train_epochs, a.learning_rate, a.bf16, a.seed) == ("m_m", 2.0, 1e-5, True, 42)
    assert {"num_train_epochs", "learning_rate", "bf16"} < a.given and "seed" not in a.given


def test_config_file_is_overridden_by_the_command_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: playground\ndata: d.jsonl\noutput: o\nlearning-rate: 2e-5\nepochs: 4\nseed: 3\ncolumn: [scores=r]\nbf16: no\nsave_strategy: no\n")
    a = read_arguments(COMMANDS["train"], ["--config", str(file), "--seed", "5", "--epochs", "1"])
    assert (a.model, a.learning_rate, a.num_train_epochs, a.seed, a.column) == ("playground", 2e-5, 1.0, 5, ["scores=r"])
    assert (a.bf16, a.save_strategy) == (False, "no")


@pytest.mark.parametrize(
    "text, message",
    [
        ("learing_rate: 1\n", "unknown option learing_rate. Did you mean learning_rate?"),
        ("- a\n- b\n", "option: value"),
        ("a: [\n", "not a YAML file"),
        ("seed: many\n", "--seed must be a whole number, got 'many'"),
    ],
)
def test_bad_config_files(tmp_path, text, message, capsys):
    (tmp_path / "c.yaml").write_text(text)
    assert message in fails(capsys, 2, "train", "--config", tmp_path / "c.yaml", "--model", "m", "--data", "d", "--output", "o")


def test_config_of_llm(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("unsloth: true\n")
    assert "known but not supported" in fails(capsys, 2, *LLM, "--config", tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text(f"data_path: {tmp_path}/none.jsonl\nproject-name: {tmp_path}/out\nprompt_text_column: prompt\ntext_column: chosen\n")
    assert "--rejected-text-column" in fails(capsys, 2, *LLM, "--config", tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["trian"], "unknown command trian. Did you mean train?"),
        (["train", "--data", "d"], "required and missing: --model, --output"),
        (["train", "--modle", "m"], "unknown option --modle. Did you mean --model?"),
        (["train", "--model", "m", "--data", "d", "--output", "o", "--lora-r", "8"], "--lora-r: only with --lora"),
        (["train", "--model", "m", "--data", "d", "--output", "o", "--loss_type", "davidsn"], "Did you mean davidson?"),
        (["train", "--model", "m", "--data", "d", "--output"], "expected one argument"),
        (["evaluate"], "required and missing: MODEL, DATA"),
        (["evaluate", "m", "d", "e"], "unexpected argument 'e'"),
        (["score", "m"], "give either a file to score, or --response"),
        (["score", "m", "f.jsonl", "--response", "r"], "give either a file to score, or --response"),
        (["compare", "m", "--prompt", "p"], "required and missing: --a, --b"),
        (["inspect", "d", "--column", "scores"], "--column must be name=column"),
        (["llm", "--trainer", "reward"], "add --train"),
        (["llm", "--train"], "--model (model), --data-path (data_path), --project-name (project_name), --trainer (trainer)"),
        ([*LLM, "--data-path", "d", "--project-name", "p"], "--prompt-text-column (prompt_text_column), --text-column (text_column)"),
        ([*LLM, "--data-path", "d", "--project-name", "p", *COLUMNS, "--unsloth"], "known but not supported"),
        ([*LLM, "--data-path", "d", "--project-name", "p", *COLUMNS, "--rl-kl-coef", "1"], "belongs to trainer ppo"),
        ([*LLM, "--data-path", "d", "--project-name", "p", *COLUMNS, "--backend", "spaces"], "backend must be local"),
    ],
)
def test_wrong_calls_exit_with_2(argv, message, capsys):
    assert message in fails(capsys, 2, *argv)


def test_debug_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("REWARD_KIT_DEBUG", "1")
    assert main(["trian"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_version_and_overview(capsys):
    from reward_kit import __version__

    assert main(["--version"]) == 0 and main([]) == 0
    text = capsys.readouterr().out
    assert __version__ in text and all(name in text for name in COMMANDS)


def test_write_file_leaves_nothing_half_written(tmp_path):
    def broken(path):
        Path(path).write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        cli.write_file(tmp_path / "r.html", broken)
    assert list(tmp_path.iterdir()) == []
