"The command line: parsing, help, configuration files, and one clear line for everything that goes wrong."

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
from test_autotrain import base, write_pairs, write_prompts  # noqa: F401  (a fixture and helpers)

from reward_kit.data import preferences as preferences_module
from reward_kit.model.runs import RunRecord
from reward_kit.model.settings import DataSettings, LoraSettings, PPOSettings, RewardSettings, settings_of
from reward_kit.scores.inference import RewardModel
from reward_kit.tools import options as command_options
from reward_kit.tools import quickstart
from reward_kit.tools.cli import main
from reward_kit.tools.commands import commands

COMMANDS = commands()
ENV = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
RUN = [sys.executable, "-c", "from reward_kit.tools.cli import main; raise SystemExit(main())"]
LLM = ["llm", "--train", "--model", "playground", "--trainer", "reward"]
PPO_LLM = [
    "llm",
    "--train",
    "--model",
    "m",
    "--trainer",
    "ppo",
    "--data-path",
    "d",
    "--project-name",
    "p",
    "--rl-reward-model-path",
    "r",
]
TRAIN_WORDS = ["train", "--model", "m", "--data", "d", "--output", "o"]
COLUMNS = ["--prompt-text-column", "prompt", "--text-column", "chosen", "--rejected-text-column", "rejected"]


def fails(capsys, code, *argv):
    """Runs in this process, checks exit code and that stderr is one line without a traceback; returns
    the line."""
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
        "import sys, reward_kit; from reward_kit.tools.cli import commands, main\nfor c in ['--help', *([c,"
        " '--help'] for c in commands())]: assert main(c if isinstance(c, list) else [c]) == 0\nheavy ="
        " {'torch', 'trl', 'transformers', 'datasets', 'pandas', 'numpy', 'matplotlib', 'yaml', 'pyarrow'} &"
        " set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr
    assert all(f"reward-kit {name}" in done.stdout for name in COMMANDS)


def test_the_environment_is_set_before_what_reads_it_is_imported():
    code = (
        "import os, sys; from reward_kit.tools import cli\n"
        "class Command:\n"
        "    def read(self, words):\n"
        "        assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE' and 'torch' not in sys.modules\n"
        "        raise SystemExit(7)\n"
        "cli.commands = lambda: {'x': Command()}\n"
        "assert cli.main(['x']) == 7"
    )
    unset = {name: value for name, value in ENV.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=unset)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", list(COMMANDS))
def test_each_help_shows_every_option_and_an_example(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"example:\n  reward-kit {name}" in text
    for option in COMMANDS[name].options().values():
        assert option.more.get("positional") or f"--{option.name.replace('_', '-')}" in text
        assert option.help
        words = option.help.partition("None: ")[0].split()
        assert " ".join(words)[:-1] in " ".join(text.split()), option.name  # whole and word by word


def test_examples_parse():
    import shlex

    for command in COMMANDS.values():
        for line in command.example.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            assert words[:2] == ["reward-kit", command.name]
            command.read(words[2:])


@pytest.mark.parametrize(
    "name, kinds", [("train", (RewardSettings, LoraSettings, DataSettings)), ("ppo", (PPOSettings,))]
)
def test_options_are_the_settings(name, kinds):
    options = COMMANDS[name].options()
    for known in (known for kind in kinds for known in settings_of(kind).values() if known.on_command_line):
        assert options[known.name] is known


def test_every_setting_of_ppo_is_an_option():
    by_another_name = {
        "output_dir",
        "disable_tqdm",
        "reward_weights",
        "model_init_kwargs",
        "vllm_kwargs",
        "torch_compile",
    }  # --output, --progress, --reward-weight; Python only
    assert settings_of(PPOSettings).keys() - COMMANDS["ppo"].options().keys() == by_another_name


def test_the_losses_in_the_help_are_all():
    from reward_kit.model.loss import LOSSES

    assert all(name in settings_of(RewardSettings)["loss_type"].help for name in LOSSES)


def test_the_default_in_the_help_is_the_setting():
    options = COMMANDS["train"].options()
    assert command_options._help(options["num_train_epochs"]) == "Passes over the data (default: 3.0)"
    assert command_options._help(options["weight_decay"]).endswith("(default: 0.0)")
    assert command_options._help(options["learning_rate"]).startswith("Peak learning rate. Default: 1e-5")
    assert (
        "all" not in command_options._help(options["save_total_limit"]).split("(default: 2)")[-1]
    )  # what None would mean is no default there


def test_lora_options_are_those_of_peft():
    peft = pytest.importorskip("peft")
    names = {f.name for f in fields(peft.LoraConfig)} | {"lora_r"}
    assert settings_of(LoraSettings).keys() - {"lora", "quantization"} <= names


# --- reading options


def test_dashes_and_underscores(tmp_path):
    a = COMMANDS["train"].read(
        ["--model", "m_m", "--data", "d", "--output", "o", "--num_train_epochs", "2", "--lr=1e-5", "--bf16"]
    )
    assert (a.model, a.num_train_epochs, a.learning_rate, a.bf16, a.seed) == ("m_m", 2.0, 1e-5, True, 42)
    assert {"num_train_epochs", "learning_rate", "bf16"} < a.given.keys() and "seed" not in a.given


def test_config_file_is_overridden_by_the_command_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: playground\ndata: d.jsonl\noutput: o\nlearning-rate: 2e-5\nepochs: 4\nseed: 3\ncolumn:"
        " [scores=r]\nbf16: no\nsave_strategy: no\n"
    )
    a = COMMANDS["train"].read(["--config", str(file), "--seed", "5", "--epochs", "1"])
    assert (a.model, a.learning_rate, a.num_train_epochs, a.seed, a.column) == (
        "playground",
        2e-5,
        1.0,
        5,
        ["scores=r"],
    )
    assert (a.bf16, a.save_strategy) == (False, "no")


@pytest.mark.parametrize(
    "text, message",
    [
        ("learing_rate: 1\n", "unknown option learing_rate. Did you mean learning_rate?"),
        ("- a\n- b\n", "option: value"),
        ("a: [\n", "cannot be read"),
        ("seed: many\n", "--seed must be a whole number, got 'many'"),
    ],
)
def test_bad_config_files(tmp_path, text, message, capsys):
    (tmp_path / "c.yaml").write_text(text)
    assert message in fails(
        capsys, 2, "train", "--config", tmp_path / "c.yaml", "--model", "m", "--data", "d", "--output", "o"
    )


def test_config_of_llm(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("unsloth: true\n")
    assert "known but not supported" in fails(capsys, 2, *LLM, "--config", tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text(
        f"data_path: {tmp_path}/none.jsonl\nproject-name: {tmp_path}/out\nprompt_text_column:"
        " prompt\ntext_column: chosen\n"
    )
    assert "--rejected-text-column" in fails(capsys, 2, *LLM, "--config", tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["trian"], "unknown command trian. Did you mean train?"),
        (["train", "--data", "d"], "required and missing: --model, --output"),
        (["train", "--modle", "m"], "unknown option --modle. Did you mean --model?"),
        (
            ["train", "--model", "m", "--data", "d", "--output", "o", "--lora-r", "8"],
            "--lora-r: only with --lora",
        ),
        (
            ["train", "--model", "m", "--data", "d", "--output", "o", "--loss_type", "davidsn"],
            "choose one of bradley_terry",
        ),
        (["train", "--model", "m", "--data", "d", "--output"], "expected one argument"),
        (["evaluate"], "required and missing: MODEL, DATA"),
        (["evaluate", "m", "d", "e"], "unexpected argument 'e'"),
        (["score", "m"], "give either a file to score, or --response"),
        (["score", "m", "f.jsonl", "--response", "r"], "give either a file to score, or --response"),
        (["compare", "m", "--prompt", "p"], "required and missing: --a, --b"),
        (["inspect", "d", "--column", "scores"], "--column must be name=column"),
        (["llm", "--trainer", "reward"], "add --train"),
        (
            ["llm", "--train"],
            "--model (model), --data-path (data_path), --project-name (project_name), --trainer (trainer)",
        ),
        (
            [*LLM, "--data-path", "d", "--project-name", "p"],
            "--prompt-text-column (prompt_text_column), --text-column (text_column)",
        ),
        ([*LLM, "--data-path", "d", "--project-name", "p", *COLUMNS, "--unsloth"], "known but not supported"),
        (
            [*LLM, "--data-path", "d", "--project-name", "p", *COLUMNS, "--rl-kl-coef", "1"],
            "belongs to trainer ppo",
        ),
        (
            [*LLM, "--data-path", "d", "--project-name", "p", *COLUMNS, "--backend", "spaces"],
            "backend must be local",
        ),
        (["ppo", "--model", "m", "--data", "d"], "required and missing: --output, --reward"),
        (
            ["ppo", "--model", "m", "--reward", "r", "--data", "d", "--output", "o", "--kl-coeff", "1"],
            "Did you mean --kl-coef?",
        ),
        (
            "ppo --model m --reward r --data d --output o --lora --lora-dropout 0.1".split(),
            "unknown option --lora-dropout",
        ),
        (
            ["ppo", "--model", "m", "--reward", "r", "--data", "d", "--output", "o", "--critic", "big"],
            "separate, shared, reward",
        ),
        (
            [
                "ppo",
                "--model",
                "m",
                "--reward",
                "r",
                "--data",
                "d",
                "--output",
                "o",
                "--quantization",
                "int4",
            ],
            "unknown option --quantization",
        ),
        ([*PPO_LLM, "--rl-mini-batch-size", "48"], "--rl-mini-batch-size=48 does not divide"),
        ([*PPO_LLM, "--block-size", "512"], "--block-size is not supported by trainer ppo"),
        (
            [*PPO_LLM, "--lora-r", "8"],
            "only with --peft (peft), which trains LoRA adapters: --lora-r (lora_r)",
        ),
        (
            [*LLM, "--data-path", "d", "--project-name", "p", *COLUMNS, "--lora-r", "8", "--lora-alpha", "4"],
            "--lora-r (lora_r), --lora-alpha (lora_alpha)",
        ),
        (
            [
                *LLM,
                "--data-path",
                "d",
                "--project-name",
                "p",
                *COLUMNS[:4],
                "--rejected-text-column",
                "chosen",
            ],
            "--text-column and --rejected-text-column name the same column",
        ),
        (["score", "m", "--response", "r", "--score-column", "s"], "--score-column: only with a file"),
        (
            ["ppo", "--model", "m", "--reward", "r", "--data", "d", "--output", "o", "--lora-r", "8"],
            "--lora-r: only with --lora",
        ),
    ],
)
def test_wrong_calls_exit_with_2(argv, message, capsys):
    assert message in fails(capsys, 2, *argv)


@pytest.mark.parametrize(
    "words, message",
    [
        ("--eval-fraction 2", "--eval-fraction must be in (0, 1), got 2.0"),
        ("--eval-fraction 0", "--eval-fraction must be in (0, 1), got 0.0"),
        ("--lr-scheduler-type foo", "--lr-scheduler-type must be one of linear, cosine"),
        ("--seed -1", "--seed must be in [0, 2**32), got -1"),
        ("--max-length 1", "--max-length must be 3 or more, got 1"),
        ("--batch-size 0", "--per-device-train-batch-size must be above 0, got 0"),
        ("--learning-rate -1", "--learning-rate must be above 0, got -1.0"),
        ("--epochs -3", "--num-train-epochs must be above 0, got -3.0"),
        ("--max-samples 0", "--max-samples must be above 0, got 0"),
        ("--max-steps 0", "--max-steps must be above 0, or -1, got 0"),
        ("--optim foo", "foo"),
        ("--load-best-model-at-end", "--load_best_model_at_end requires"),
        ("--chat-template foo", "--chat-template must be tokenizer, chatml, zephyr"),
        ("--lora", "LoRA needs peft"),
        ("--lora --lora-dropout 1", "--lora-dropout must be in [0, 1), got 1.0"),
    ],
)
def test_bad_values_are_found_before_anything_is_read(base, tmp_path, capsys, monkeypatch, words, message):  # noqa: F811
    if words == "--lora":
        monkeypatch.setitem(sys.modules, "peft", None)
    said = fails(
        capsys,
        2,
        "train",
        "--model",
        base,
        "--data",
        tmp_path / "none.jsonl",
        "--output",
        tmp_path / "out",
        *words.split(),
    )
    assert message in said and not list(tmp_path.iterdir())


def test_bad_values_of_ppo_and_the_interface_are_found_before_anything_is_read(base, tmp_path, capsys):  # noqa: F811
    none, out = tmp_path / "none.jsonl", tmp_path / "out"
    for words, message in (
        ("--eval-fraction 1", "--eval-fraction must be in [0, 1)"),
        ("--seed -1", "--seed must be"),
        ("--gamma 2", "gamma must be between 0 and 1"),
        ("--lr-scheduler-type foo", "must be one of linear"),
        ("--lr-scheduler-type reduce_lr_on_plateau", "must be one of linear"),
        ("--max-samples 0", "--max-samples must be above 0, got 0"),
        ("--max-samples -3", "--max-samples must be above 0, got -3"),
        ("--max-samples 2.5", "--max-samples must be a whole number, got '2.5'"),
        ("--eval-samples 3", "unknown option --eval-samples"),
        ("--reward-weight inf", "--reward-weight must be a finite number"),
        ("--stop-token eos", "unknown option --stop-token"),
    ):
        assert message in fails(
            capsys,
            2,
            "ppo",
            "--model",
            base,
            "--reward",
            base,
            "--data",
            none,
            "--output",
            out,
            *words.split(),
        )
    llm = [
        "llm",
        "--train",
        "--model",
        base,
        "--data-path",
        none,
        "--project-name",
        out,
        "--trainer",
        "reward",
        *COLUMNS,
    ]
    ppo_llm = [*PPO_LLM, "--scheduler", "cosine_with_min_lr"]
    assert "scheduler=cosine_with_min_lr is not supported by trainer ppo" in fails(capsys, 2, *ppo_llm)
    for words, message in (
        ("--scheduler foo", "scheduler must be one of linear"),
        ("--block-size 1", "--max-length must be 3 or more"),
        ("--optimizer foo", "foo"),
    ):
        assert message in fails(capsys, 2, *llm, *words.split())


CALLS = {
    "train": ["--model", "playground", "--data", "none.jsonl", "--output", "out"],
    "ppo": ["--model", "playground", "--reward", "playground", "--data", "none.jsonl", "--output", "out"],
    "quickstart": ["--output", "out"],
}


@pytest.mark.parametrize("value", ["-3", "inf"])
@pytest.mark.parametrize("name", list(CALLS))
def test_every_number_out_of_range_is_one_line_before_anything_is_read(
    name, value, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for option in COMMANDS[name].options().values():
        numbers = {int, float} & set(option.kinds)
        if not numbers or (option.name, value) == ("reward_weight", "-3"):
            continue  # a reward may count against
        said = fails(capsys, 2, name, *CALLS[name], f"--{option.name.replace('_', '-')}={value}")
        assert option.name in said.replace("-", "_"), said
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_there_is_found_before_the_data_is_read(pairs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["train", "--model", "./nope", "--data", str(pairs), "--output", "out"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "./nope does not exist" in said.err and len(said.err.splitlines()) == 1


def test_the_schedules_are_those_of_transformers():
    from transformers.trainer_utils import SchedulerType

    assert set(settings_of(RewardSettings)["lr_scheduler_type"].choices) == {
        kind.value for kind in SchedulerType
    }


def test_debug_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("REWARD_KIT_DEBUG", "1")
    assert main(["trian"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_version_and_overview(capsys):
    from reward_kit import __version__

    assert main(["--version"]) == 0 and main([]) == 0
    text = capsys.readouterr().out
    assert __version__ in text and all(name in text for name in COMMANDS)


# --- commands on a small model


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "preferences.jsonl", 30)


@pytest.fixture(scope="module")
def model(base, pairs, tmp_path_factory):  # noqa: F811
    "A reward model trained through the command."
    folder = tmp_path_factory.mktemp("models") / "reward-model"
    argv = [
        "train",
        "--model",
        base,
        "--data",
        pairs,
        "--output",
        folder,
        "--epochs",
        "1",
        "--lr",
        "1e-3",
        "--seed",
        "3",
        "--batch_size",
        "4",
    ]
    assert main([str(a) for a in argv]) == 0
    assert json.loads((folder / "training_run.json").read_text())["settings"]["seed"] == 3
    assert not list(folder.glob("checkpoint-*")) and not list(folder.parent.glob(".*"))
    return str(folder)


def output(capsys, *argv):
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 0
    return capsys.readouterr().out


def test_score_and_compare_agree(model, capsys):
    import math

    text = output(capsys, "score", model, "--prompt", "Q?", "--response", "Yes it is.", "--response", "No.")
    assert "Prompt: Q?" in text and "Yes it is." in text
    scores = {
        row["response"]: row["score"]
        for row in json.loads(
            output(capsys, "score", model, "--prompt", "Q?", "--response", "A", "--response", "B", "--json")
        )
    }
    found = json.loads(output(capsys, "compare", model, "--prompt", "Q?", "--a", "A", "--b", "B", "--json"))
    assert (found["a"], found["b"]) == (scores["A"], scores["B"])
    assert found["a_preferred"] == pytest.approx(1 / (1 + math.exp(found["b"] - found["a"])), abs=1e-6)
    assert f"{found['a_preferred']:.1%}" in output(
        capsys, "compare", model, "--prompt", "Q?", "--a", "A", "--b", "B"
    )
    single = json.loads(output(capsys, "score", model, "--response", "Q? A", "--json"))
    assert single[0]["score"] == pytest.approx(scores["A"], abs=1e-5)


def test_score_a_file(model, tmp_path, capsys):
    rows = [{"question": "Q?", "answer": f"A {i}"} for i in range(5)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output(
        capsys,
        "score",
        model,
        tmp_path / "in.jsonl",
        "--column",
        "prompt=question",
        "--column",
        "response=answer",
    )
    scored = [json.loads(line) for line in (tmp_path / "in.reward-model.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in scored] == [row["answer"] for row in rows] and all(
        isinstance(row["score"], float) for row in scored
    )
    assert "no file" in fails(capsys, 1, "score", model, tmp_path / "none.jsonl")


def test_a_file_of_which_no_row_can_be_scored_is_a_failure(model, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": null}\n{"text": 3}\n')
    said = fails(capsys, 1, "score", model, tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    assert "no row could be scored" in said and "out.jsonl says why beside each" in said
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == [None, None] and "in.jsonl:2: " in rows[1]["error"]


def test_the_score_column_can_be_named(model, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"question": "Q?", "answer": "A", "score": 5}\n')
    said = fails(capsys, 1, "score", model, tmp_path / "in.jsonl")
    assert "already has a column 'score'; rename it, or" in said and "name with --score-column" in said
    output(capsys, "score", model, tmp_path / "in.jsonl", "--score-column", "reward")
    row = json.loads((tmp_path / "in.reward-model.jsonl").read_text())
    assert row["score"] == 5 and isinstance(row["reward"], float)
    single = json.loads(output(capsys, "score", model, "--prompt", "Q?", "--response", "A", "--json"))
    assert row["reward"] == pytest.approx(single[0]["score"], abs=1e-5)
    (tmp_path / "other.jsonl").write_text('{"frage": "Q?", "antwort": "A"}\n')
    assert "--prompt-column question" in fails(capsys, 1, "score", model, tmp_path / "other.jsonl")


def conversations(path, n=24):
    turn = lambda role, text: [{"role": role, "content": text}]
    rows = [
        {
            "prompt": turn("user", f"Question {i}?"),
            "chosen": turn("assistant", f"It is {i}."),
            "rejected": turn("assistant", "No."),
        }
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_model_of_conversations_reads_texts_as_messages(base, tmp_path, capsys, caplog):  # noqa: F811
    from reward_kit.scores.inference import RewardModel

    argv = [
        "train",
        "--model",
        base,
        "--data",
        conversations(tmp_path / "c.jsonl"),
        "--output",
        tmp_path / "rm",
        "--epochs",
        "1",
        "--chat-template",
        "chatml",
    ]
    output(capsys, *argv)
    caplog.clear()
    scored = json.loads(
        output(
            capsys,
            "score",
            tmp_path / "rm",
            "--prompt",
            "Q?",
            "--response",
            "A",
            "--response",
            "No.",
            "--json",
        )
    )
    compared = json.loads(
        output(capsys, "compare", tmp_path / "rm", "--prompt", "Q?", "--a", "A", "--b", "No.", "--json")
    )
    assert "plain strings" not in caplog.text
    rm, prompt = RewardModel.from_pretrained(tmp_path / "rm"), [{"role": "user", "content": "Q?"}]
    expected = rm.score([prompt] * 2, [[{"role": "assistant", "content": text}] for text in ("A", "No.")])
    assert [
        {row["response"]: row["score"] for row in scored}[text] for text in ("A", "No.")
    ] == pytest.approx(expected, abs=1e-5)
    assert [compared["a"], compared["b"]] == pytest.approx(expected, abs=1e-5)
    assert rm.score("Q?", "A") == pytest.approx(expected[0], abs=1e-5)


def test_the_same_data_for_training_and_evaluation_is_said(base, pairs, tmp_path, capsys):  # noqa: F811
    text = output(capsys, *train(base, pairs, tmp_path / "out"), "--eval-data", pairs, "--max-steps", "1")
    assert "Warning: 30 of the 30 evaluation prompts (100.0%) are trained on" in text
    assert any(
        "no prompts across splits" in line and "fail" in line and "30 of 30" in line
        for line in text.splitlines()
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert any(
        "no prompts across splits" in line and "fail" in line and "100.0%" in line
        for line in card.splitlines()
    )


def commands_in(text):
    "The reward-kit commands that a text tells its reader to run, as their words."
    import shlex

    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("  reward-kit ")]


def test_printed_next_steps_work_as_printed(base, tmp_path, capsys, monkeypatch):  # noqa: F811
    "Also in a folder whose name needs quotes, and with columns under other names."
    monkeypatch.chdir(tmp_path)
    rows = [
        {"q": f"Question {i}?", "good": f"It is {i}.", "chosen": "x", "rejected": "No."} for i in range(20)
    ]
    for name in ("a.jsonl", "it's b.jsonl"):
        Path(name).write_text("".join(json.dumps(row | {"q": name + row["q"]}) + "\n" for row in rows))
    columns = ["--prompt-column", "q", "--column", "chosen=good"]
    text = output(
        capsys,
        "train",
        "--model",
        base,
        "--data",
        "a.jsonl",
        "--eval-data",
        "it's b.jsonl",
        "--output",
        "my $model",
        "--max-steps",
        "1",
        *columns,
    )
    commands = commands_in(text)
    assert [words[:2] for words in commands] == [
        ["score", "my $model"],
        ["compare", "my $model"],
        ["evaluate", "my $model"],
    ]
    for words in commands:
        assert output(capsys, *words)
    interface = ["--prompt-text-column", "q", "--text-column", "good", "--rejected-text-column", "rejected"]
    llm = [
        "llm",
        "--train",
        "--model",
        base,
        "--data-path",
        "a.jsonl",
        "--eval-dataset-path",
        "it's b.jsonl",
        "--project-name",
        "other",
        "--trainer",
        "reward",
    ]
    commands = commands_in(output(capsys, *llm, *interface, "--epochs", "0.1"))
    assert [words[0] for words in commands] == ["score", "compare", "evaluate"] and output(
        capsys, *commands[2]
    )


def test_half_precision_on_a_cpu(base, pairs, tmp_path, capsys):  # noqa: F811
    import torch

    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    output(capsys, *train(base, pairs, tmp_path / "a"), "--bf16", "--max-steps", "1")
    llm = ["llm", "--train", "--model", base, "--data-path", pairs, "--trainer", "reward", *COLUMNS]
    output(capsys, *llm, "--project-name", tmp_path / "b", "--mixed-precision", "bf16", "--epochs", "0.1")
    for argv in (
        [*train(base, pairs, tmp_path / "c"), "--fp16"],
        [*llm, "--project-name", tmp_path / "c", "--mixed-precision", "fp16"],
    ):
        assert "fp16 needs a GPU" in fails(capsys, 1, *argv) and not (tmp_path / "c").exists()


def test_regression_on_pairs_says_what_to_do(base, pairs, tmp_path, capsys):  # noqa: F811
    said = fails(capsys, 1, *train(base, pairs, tmp_path / "out"), "--loss-type", "regression")
    assert (
        "--loss-type=regression learns from scores" in said
        and "--column scores=..." in said
        and "choose another --loss-type" in said
    )
    assert not (tmp_path / "out").exists()


def test_one_score_a_prompt_is_inspected_learned_and_evaluated(base, tmp_path, capsys):  # noqa: F811
    "From a file of ratings to a model and a report that says what can be said."
    from reward_kit.data.playground import Playground

    world = Playground(seed=1)
    texts = {row["prompt"]: row["responses"][0] for row in world.preferences(120)}
    truth = world.true_reward(list(texts), list(texts.values()))
    rows = [{"prompt": q, "response": a, "score": r} for (q, a), r in zip(texts.items(), truth)]
    path, out = tmp_path / "one_score.jsonl", tmp_path / "out"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = output(capsys, "inspect", path)
    assert "no comparison: every prompt has one response" in said and "--loss-type" in said
    assert "enough pairs: fail" not in said
    refused = fails(capsys, 1, *train(base, path, out))
    assert "compares responses, and here every prompt has one" in refused
    assert "--loss-type=regression" in refused
    assert not out.exists()
    text = output(capsys, *train(base, path, out), "--loss-type", "regression", "--eval-fraction", "0.4")
    assert "Every prompt has one response, so nothing is compared" in text and "correlation" in text
    report = json.loads((out / "evaluation" / "report.json").read_text())
    assert -1 <= report["measures"]["pearson"]["value"] <= 1 and "accuracy" not in report
    card = (out / "README.md").read_text()
    assert "## Trust report" in card and "trust_scores.png" in card and (out / "trust_scores.png").exists()
    found = output(capsys, "evaluate", out, path, "--report", tmp_path / "report")
    assert "correlation of reward and score" in found and (tmp_path / "report" / "scores.png").exists()
    shutil.copytree(out, tmp_path / "other")
    for command in (["calibrate", out, path], ["compare-runs", out, tmp_path / "other", "--data", path]):
        assert "every prompt has one response" in fails(capsys, 1, *command)


def test_evaluate_writes_a_report(model, pairs, tmp_path, capsys):
    text = output(capsys, "evaluate", model, pairs, "--report", tmp_path / "report")
    assert (
        "95% interval" in text
        and "Bias probes" in text
        and {"report.json", "report.md", "accuracy.png", "probes.png"}
        <= {p.name for p in (tmp_path / "report").iterdir()}
    )
    assert json.loads(output(capsys, "evaluate", model, pairs, "--json"))


def test_evaluate_without_probes(model, pairs, capsys):
    words = [pairs, "--json", "--probe-prompts", "0", "--include-trained"]
    report = json.loads(output(capsys, "evaluate", model, *words))
    assert (
        report["probes"] is None
        and report["calibration"]["n_pairs"] == report["n_pairs"]
        and report["length_control"]
        and report["mistakes"]
    )
    assert "--probe-prompts must be 0 or more, got -1" in fails(
        capsys, 2, "evaluate", model, pairs, "--probe-prompts", "-1"
    )


def test_calibrate_keeps_a_temperature_that_compare_uses(model, tmp_path, capsys):
    copy = shutil.copytree(model, tmp_path / "model")
    first, second = RewardModel.from_pretrained(copy).score(["question 1?"] * 2, ["Good answer 1", "no"])
    swapped = first < second
    rows = [{"prompt": f"question {i}?", "chosen": "Good answer 1", "rejected": "no"} for i in range(40)]
    for i, row in enumerate(rows):  # three in four the way the model has it
        if (i % 4 == 0) != swapped:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    data = tmp_path / "held-out.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = json.loads(output(capsys, "calibrate", copy, data, "--json", "--include-trained"))
    assert (
        json.loads((copy / "reward_kit.json").read_text())["calibration"] == kept and kept["n_prompts"] == 40
    )
    again = output(capsys, "calibrate", copy, data, "--include-trained")
    assert f"Temperature {kept['temperature']:.3f}" in again
    rm = RewardModel.from_pretrained(copy)
    a, b = rm.score(["question 1?"] * 2, ["Good answer 1", "no"])
    assert rm.compare("question 1?", "Good answer 1", "no") == pytest.approx(
        1 / (1 + math.exp((b - a) / kept["temperature"])), abs=1e-6
    )


def test_benchmark_writes_what_the_authors_count(model, tmp_path, capsys):
    rows = [
        {
            "prompt": f"question {i}?",
            "chosen": f"good {i}",
            "rejected": f"bad {i}",
            "subset": "alpacaeval-easy",
            "id": i,
        }
        for i in range(8)
    ]
    file = tmp_path / "bench.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = output(capsys, "benchmark", model, file, "--report", tmp_path / "report")
    assert "RewardBench" in text and "alpacaeval-easy" in text
    assert {p.name for p in (tmp_path / "report").iterdir()} == {
        "benchmark.json",
        "benchmark.md",
        "benchmark.png",
    }
    assert json.loads((tmp_path / "report" / "benchmark.json").read_text())["n_rows"] == 8
    (tmp_path / "text.jsonl").write_text('{"text": "a question and an answer"}\n')
    assert "chosen" in fails(capsys, 1, "benchmark", model, tmp_path / "text.jsonl")


def test_runs_are_compared_on_the_same_pairs(model, pairs, tmp_path, capsys):
    other = shutil.copytree(model, tmp_path / "other")
    text = output(capsys, "compare-runs", model, other, "--data", pairs)
    assert "other" in text and "reward-model" in text and "p = 1" in text
    found = json.loads(output(capsys, "compare-runs", model, other, "--data", pairs, "--json"))
    assert len(found["settings"]) == 2 and found["comparisons"][0]["difference"] == 0
    assert "two or more settings are needed" in fails(capsys, 1, "compare-runs", model, "--data", pairs)
    assert "--data" in fails(capsys, 2, "compare-runs", model, other)


def test_labels_that_could_mean_either_response_are_explained_by_options(tmp_path, capsys):
    file = tmp_path / "labelled.jsonl"
    file.write_text(
        "".join(
            json.dumps(
                {
                    "prompt": f"question {i} about tea?",
                    "response_a": f"a long answer {i}",
                    "response_b": f"short {i}",
                    "preference": i % 2,
                }
            )
            + "\n"
            for i in range(10)
        )
    )
    assert '--label 0="?" --label 1="?" (' in fails(capsys, 1, "inspect", file)
    assert "--label must be VALUE=a, b, tie, good or bad, got '0=x'" in fails(
        capsys, 2, "inspect", file, "--label", "0=x"
    )
    assert main(["inspect", str(file), "--json", "--label", "0=b", "--label", "1=a"]) == 0
    assert json.loads(capsys.readouterr().out)["rows_kept"] == 10


def test_inspect_writes_a_page_and_a_picture(pairs, tmp_path, capsys):
    text = output(capsys, "inspect", pairs, "--html", tmp_path / "r.html", "--plot", tmp_path / "r.png")
    assert (
        "rows kept" in text
        and "<table" in (tmp_path / "r.html").read_text()
        and (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"
    )
    assert json.loads(output(capsys, "inspect", pairs, "--json"))["rows_kept"] == 30
    again = output(capsys, "inspect", pairs, "--json", "--num-proc", 2)
    assert json.loads(again)["rows_kept"] == 30
    assert "--num-proc must be above 0" in fails(capsys, 2, "inspect", pairs, "--num-proc", 0)


def test_inspect_reads_in_as_many_processes_as_asked_for(pairs, capsys, monkeypatch):
    given = []
    load = preferences_module.load_preferences
    monkeypatch.setattr(
        preferences_module, "load_preferences", lambda *data, **how: given.append(how) or load(*data, **how)
    )
    output(capsys, "inspect", pairs, "--num-proc", 3)
    assert given[0]["num_proc"] == 3


def test_llm_through_the_command(base, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "preferences.jsonl", 20)
    argv = [
        "llm",
        "--train",
        "--model",
        base,
        "--data-path",
        "./preferences.jsonl",
        "--project-name",
        "reward-model",
        "--trainer",
        "reward",
        *COLUMNS,
    ]
    assert "reward-kit score reward-model" in output(capsys, *argv, "--lr", "1e-3")
    assert (tmp_path / "reward-model" / "reward_kit.json").exists()


def test_the_documented_ppo_command(base, model, tmp_path):  # noqa: F811
    "In a process of its own, with the interface's defaults."
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "reward-model").symlink_to(model)
    write_prompts(tmp_path / "prompts.jsonl", 12, "text")
    argv = [
        "llm",
        "--train",
        "--model",
        base,
        "--data-path",
        "./prompts.jsonl",
        "--project-name",
        "ppo-model",
        "--trainer",
        "ppo",
        "--rl-reward-model-path",
        "./reward-model",
    ]
    done = subprocess.run([*RUN, *argv], capture_output=True, text=True, env=ENV, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in (
        "judged by reward-model (folder ",
        "11 prompts to train on, 1 held out",
        "1 batch of 128 responses of at most 128 tokens, 4 passes of 16 steps",
        "batch 1/1  score",
        "95% interval",
        "The policy is in ppo-model",
        "from transformers import pipeline",
    ):
        assert line in done.stdout, done.stdout
    policy, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "ppo-model"),
        AutoTokenizer.from_pretrained(tmp_path / "ppo-model"),
    )
    ids = tokenizer("Question 1?", return_tensors="pt")
    assert (
        policy.generate(**ids, max_new_tokens=3, min_new_tokens=3).shape[1] == ids["input_ids"].shape[1] + 3
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ppo-model", "prompts.jsonl", "reward-model"]


def ppo(base, model, data, out, *more):  # noqa: F811
    small = [
        "--batch-size",
        "4",
        "--gradient-accumulation",
        "2",
        "--total-episodes",
        "16",
        "--max-new-tokens",
        "6",
        "--num-ppo-epochs",
        "1",
        "--no-progress",
    ]
    return ["ppo", "--model", base, "--reward", model, "--data", data, "--output", out, *small, *more]


def test_ppo_through_the_command(base, model, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    rows = [{"question": [{"role": "user", "content": f"Question {i}?"}]} for i in range(10)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(
        "chat-template: chatml\nprompt-column: question\nlr: 1e-3\nkl_coef: 0.3\nseed: 4\n"
    )
    text = output(
        capsys,
        *ppo(
            base,
            model,
            "chat.jsonl",
            "policy",
            "--config",
            "run.yaml",
            "--kl-coef",
            "0.2",
            "--lora",
            "--lora-r",
            "2",
        ),
    )
    assert (
        (tmp_path / "policy" / "adapter").is_dir()
        and "KL coefficient 0.2, learning rate 0.001" in text
        and "2 batches of 8 responses of at most 6 tokens" in text
    )
    code = [line.strip() for line in text.splitlines() if "pipeline" in line]
    assert len(code) == 2 and '[{"role": "user"' in code[1]
    exec("\n".join(code), {})  # the two lines it prints
    record = json.loads((tmp_path / "policy" / "training_run.json").read_text())
    assert record["finished"] and record["settings"]["seed"] == 4 and record["settings"]["kl_coef"] == 0.2
    assert "holds this very run, finished" in fails(
        capsys,
        1,
        *ppo(
            base,
            model,
            "chat.jsonl",
            "policy",
            "--config",
            "run.yaml",
            "--kl-coef",
            "0.2",
            "--lora",
            "--lora-r",
            "2",
        ),
    )
    assert "holds no unfinished run" in fails(
        capsys, 2, *ppo(base, model, "chat.jsonl", "policy", "--config", "run.yaml", "--resume")
    )


def test_bad_input_of_ppo(base, model, pairs, tmp_path, capsys):  # noqa: F811
    data, out = write_prompts(tmp_path / "p.jsonl", 4), tmp_path / "out"
    write_prompts(tmp_path / "q.jsonl", 4, "the_question")
    for name, text in (
        ("empty", ""),
        ("null", '{"prompt": null}\n'),
        ("broken", "once upon a time\n"),
        ("blank", '{"prompt": "A?"}\n{"prompt": ""}\n'),
    ):
        (tmp_path / f"{name}.jsonl").write_text(text)
    for code, model_, reward, prompts, message in (
        (1, base, tmp_path / "none", data, "does not exist"),
        (1, base, base, data, "not a reward model"),
        (1, model, model, data, "is a reward model, which writes no text"),
        (1, tmp_path / "none", model, data, "does not exist"),
        (1, base, model, tmp_path / "q.jsonl", "looks like it; say --prompt-column the_question"),
        (1, base, model, tmp_path / "none.jsonl", "no such file"),
        (1, base, model, tmp_path / "empty.jsonl", "empty.jsonl has no rows"),
        (1, base, model, tmp_path / "null.jsonl", "null.jsonl"),
        (1, base, model, tmp_path / "blank.jsonl", "blank.jsonl:2: empty prompt"),
        (1, base, model, tmp_path / "broken.jsonl", "broken.jsonl:1: "),
    ):
        assert message in fails(capsys, code, *ppo(model_, reward, prompts, out))
    (tmp_path / "file").write_text("")
    assert "is a file" in fails(capsys, 1, *ppo(base, model, data, tmp_path / "file" / "out"))
    assert (
        "column 'question' (for 'prompt') is missing"
        in fails(capsys, 1, *ppo(base, model, data, out, "--prompt-text-column", "question"))
        and not out.exists()
    )
    assert "gamma must be between 0 and 1" in fails(capsys, 2, *ppo(base, model, data, out, "--gamma", "2"))
    llm = ["llm", "--train", "--model", base, "--data-path", data, "--project-name", out, "--trainer", "ppo"]
    assert "--rl-reward-model-path" in fails(capsys, 2, *llm)
    assert "does not exist" in fails(capsys, 1, *llm, "--rl-reward-model-path", tmp_path / "none")
    assert "column 'question' (for 'prompt') is missing" in fails(
        capsys, 1, *llm, "--rl-reward-model-path", model, "--prompt-text-column", "question"
    )
    assert not out.exists()


@pytest.mark.slow
def test_quickstart_twice(tmp_path, capsys):
    "The quickstart on a tenth of its data; `make quickstart` runs all of it."
    argv = [
        "quickstart",
        "--output",
        tmp_path / "q",
        "--pairs",
        "240",
        "--epochs",
        "0.1",
        "--ppo-batches",
        "1",
    ]
    for _ in range(2):
        text = output(capsys, *argv)
    for part in (
        "the best any model can reach",
        "Scored:",
        "preferences.jsonl",
        "reward-model/README.md",
        "reward-kit train --model",
        "true reward",
        "KL from the base",
        "before",
        "ppo-model/README.md",
        "6. In ",
    ):
        assert part in text
    commands = commands_in(text)
    assert [words[0] for words in commands] == ["score", "compare", "inspect", "train", "ppo"]
    for words in commands:
        assert output(capsys, *words)
    assert sum(1 for _ in open(tmp_path / "q" / "preferences.jsonl")) == 240
    assert sum(1 for _ in open(tmp_path / "q" / "ppo-model" / "held_out.jsonl")) == quickstart._HELD_OUT
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    assert "holds other files" in fails(capsys, 1, "quickstart", "--output", tmp_path / "other")


# --- bad input: one line, exit code 1, nothing half-written


def train(base, data, out):  # noqa: F811
    return ["train", "--model", base, "--data", data, "--output", out, "--prompt-column", "prompt"]


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"prompt": "p", "text": "a", "rejected": "r"}\n', "chosen"),
        ("", "p.jsonl"),
        ('{"prompt": "p", "chosen": null, "rejected": "r"}\n' * 3, "none of 3 rows"),
        ('{"prompt": "p", "chosen": "c", "rejected": "r"}\nnot json\n', "p.jsonl:2"),
        (
            (
                '{"prompt": "p", "chosen": "c", "rejected": "r"}\n{"prompt": "p", "chosen": null, "rejected":'
                ' "r"}\n'
            ),
            "p.jsonl:2",
        ),
        (None, "no such file"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "train"])
def test_bad_data(base, tmp_path, capsys, text, message, command):  # noqa: F811
    data, out = tmp_path / "p.jsonl", tmp_path / "out"
    if text is not None:
        data.write_text(text)
    argv = train(base, data, out) if command == "train" else ["inspect", data, "--html", tmp_path / "r.html"]
    strict = (
        ["--strict"] if command == "inspect" and message == "p.jsonl:2" else []
    )  # training refuses broken rows by itself
    assert message in fails(capsys, 1, *argv, *strict)
    assert not out.exists() and not (tmp_path / "r.html").exists()


def test_null_rows_are_dropped_and_counted(tmp_path, capsys):
    data = write_pairs(tmp_path / "p.jsonl", 5)
    with open(data, "a") as file:
        file.write('{"prompt": "p", "chosen": null, "rejected": "r"}\n' * 2)
    report = json.loads(output(capsys, "inspect", data, "--json"))
    assert (report["rows_read"], report["rows_kept"], report["rows_dropped"]) == (7, 5, 2)


def test_messages_name_options_not_python(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"prompt": "p", "chosen": "c"}\n')
    said = fails(capsys, 1, "inspect", tmp_path / "p.jsonl")
    assert "--rejected-column ..." in said and "columns=" not in said
    (tmp_path / "q.jsonl").write_text('{"promt": "p", "chosen": "c", "rejected": "r"}\n')
    assert "say --prompt-column promt, or --prompt-column '' for texts" in fails(
        capsys, 1, "inspect", tmp_path / "q.jsonl"
    )
    assert "1 row kept" in output(capsys, "inspect", tmp_path / "q.jsonl", "--prompt-column", "")
    assert (
        COMMANDS["score"].in_options('name them with columns={"prompt": "my question"}')
        == 'name them with --prompt-column "my question"'
    )
    assert (
        COMMANDS["llm"].in_options("columns={'chosen': 'c', 'rejected': 'r'}")
        == "--text-column c --rejected-text-column r"
    )
    assert (
        COMMANDS["train"].in_options("say columns={'scores': 'ratings'} or skip_broken_rows=True")
        == "say --column scores=ratings or --skip-broken-rows"
    )


def test_output_that_cannot_be_written(base, pairs, model, tmp_path, capsys):  # noqa: F811
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "out"
    assert "is a file" in fails(capsys, 1, *train(base, pairs, below))
    assert "is a file" in fails(capsys, 1, "quickstart", "--output", below)
    assert "is a file" in fails(capsys, 1, "evaluate", model, pairs, "--report", below)
    assert "is a file" in fails(capsys, 1, "score", model, pairs, "--output", below / "s.jsonl")
    llm = ["--model", base, "--data-path", pairs, "--project-name", below, "--trainer", "reward", *COLUMNS]
    assert "is a file" in fails(capsys, 1, "llm", "--train", *llm)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    assert "holds other files" in fails(capsys, 1, *train(base, pairs, tmp_path / "full"), "--overwrite")


def test_models_that_cannot_be_used(base, pairs, tmp_path, capsys):  # noqa: F811
    for name, message in (
        (base, "not a reward model"),
        (tmp_path / "none", "does not exist"),
        (pairs, "is a file"),
    ):
        assert message in fails(capsys, 1, "evaluate", name, pairs)
        assert message in fails(capsys, 1, "score", name, "--response", "x")
    assert "does not exist" in fails(capsys, 1, *train(tmp_path / "none", pairs, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_hub_model_without_network(pairs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "some-owner/some-model" in fails(
        capsys, 1, *train("some-owner/some-model", pairs, tmp_path / "out")
    )
    assert not (tmp_path / "out").exists()


def test_a_second_run_in_one_folder_is_refused(base, pairs, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "out"
    argv = ["train", "--model", base, "--data", pairs, "--output", out, "--epochs", "1"]
    with RunRecord.only_writer(out):
        assert "another process is writing" in fails(capsys, 1, *argv)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_saves_and_says_how_to_resume(base, pairs, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    argv = train(base, pairs, out) + [
        "--epochs",
        "4000",
        "--save-steps",
        "20",
        "--save-total-limit",
        "2",
        "--no-progress",
    ]
    process = subprocess.Popen(
        [*RUN, *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
    )
    try:
        while process.poll() is None and not list(out.glob("checkpoint-*/reward_kit_checkpoint.json")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, error
    last = error.strip().splitlines()[-1]
    assert last.startswith("reward-kit: interrupted") and "again" in last and "Traceback" not in error
    assert [p for p in out.iterdir() if p.name.startswith("checkpoint-")]
