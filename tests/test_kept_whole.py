"Kills, full disks and replaced runs: nothing is lost, nothing stays behind, nothing blocks what comes next."

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_autotrain import base, write_pairs  # noqa: F401  (a fixture and a helper)
from trainer_world import make_dataset

from reward_kit.beside import killed_runs
from reward_kit.data.files import append_rows, write_whole
from reward_kit.model.model_folder import CheckpointError, RewardMetadata, saved_whole
from reward_kit.model.runs import Checkpoints, RunRecord, TrainingInterrupted
from reward_kit.model.trainer import RewardConfig, RewardTrainer
from reward_kit.tools import pipeline
from reward_kit.tools.cli import main

ENV = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
RUN = [sys.executable, "-c", "from reward_kit.tools.cli import main; raise SystemExit(main())"]
DEAD = 2**22 + 1  # no process has this number


def hidden(folder):
    return sorted(
        str(path.relative_to(folder)) for path in Path(folder).rglob(".*") if path.name != ".reward_kit"
    )


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "preferences.jsonl", 24)


def learn(base, rows, out, **given):  # noqa: F811
    config = {"num_train_epochs": 1, "per_device_train_batch_size": 6, "report_to": "none"}
    config |= given.pop("config", {})
    said = []
    found = pipeline.train_reward_model(
        base, str(rows), out, config=config, progress=False, say=said.append, **given)  # fmt: skip
    return found, "\n".join(map(str, said))


# ---- hidden copies


@pytest.mark.parametrize("number", [DEAD, os.getpid()], ids=["dead", "a container's own number"])
def test_what_a_kill_left_of_a_file_goes_with_the_next_write(tmp_path, number):
    path = tmp_path / "README.md"
    (tmp_path / f".README.md.{number}-abcd1234.md").write_text("half")
    (tmp_path / ".README.md.swp").write_text("of an editor")
    (tmp_path / f".README.md.{os.getppid()}-abcd1234.md").write_text("being written")
    write_whole(path, "whole")
    assert hidden(tmp_path) == [f".README.md.{os.getppid()}-abcd1234.md", ".README.md.swp"]


def test_two_writers_of_one_path_in_one_process_leave_each_other_alone(tmp_path):
    path = tmp_path / "notes.txt"

    def rows():
        yield "outer\n"
        write_whole(path, "inner\n")
        yield "outer\n"

    write_whole(path, rows())
    assert path.read_text() == "outer\nouter\n" and hidden(tmp_path) == []


def test_what_this_process_is_writing_is_left_alone_by_a_relative_name_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with killed_runs._beside(Path("notes.txt")) as part:
        part.write_text("half")
        killed_runs._sweep("notes.txt")
        assert part.read_text() == "half"


@pytest.mark.parametrize("number", [DEAD, os.getpid()], ids=["dead", "a container's own number"])
def test_what_a_kill_left_of_a_folder_does_not_block_the_next_save(tmp_path, number):
    target = tmp_path / "model"
    for name in (f".model.{number}-abcd1234", f".model.saving-{number}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half")
    with saved_whole(target) as folder:
        (folder / "model.safetensors").write_text("whole")
    assert (target / "model.safetensors").read_text() == "whole"
    assert hidden(tmp_path) == [f".model.saving-{number}"]  # nobody writes this name


def test_a_kill_before_the_record_has_its_name_does_not_block_the_run(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / f".training_run.json.{DEAD}-abcd1234.json").write_text("{")
    run = RunRecord(folder)
    with run.fresh():
        assert run.prepare({"seed": 0}) == "fresh"
    assert list(folder.iterdir()) == []


def test_a_kill_while_a_model_is_moved_in_place_leaves_the_folder_ours(tmp_path):
    RunRecord(tmp_path).start({"seed": 0}, saved=False)
    (tmp_path / "model.safetensors").write_text("new")  # reward_kit.json comes last
    Checkpoints(tmp_path).refuse_foreign()
    (tmp_path / "training_run.json").unlink()
    with pytest.raises(CheckpointError, match="another program wrote"):
        Checkpoints(tmp_path).refuse_foreign()


def test_a_kill_while_a_checkpoint_is_removed_leaves_it_ours(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    for step in (2, 4):
        checkpoints.write(
            step, lambda folder: [(folder / n).write_text("x") for n in ("a.safetensors", "z.pt")]
        )
    unlink = Path.unlink

    class Killed(BaseException):
        pass

    def killed(path, **more):
        if path.suffix in (".safetensors", ".pt"):
            raise Killed
        unlink(path, **more)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(Killed):
        checkpoints._delete([tmp_path / "checkpoint-2"])
    monkeypatch.undo()
    assert (tmp_path / "checkpoint-2" / ".reward_kit").exists()
    checkpoints.refuse_foreign()
    assert checkpoints.remove(unfinished_only=True) == ["checkpoint-2"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


# ---- a run that replaces another


def test_a_kill_after_the_end_of_a_run_is_cleared_by_the_same_call(tmp_path):
    "Its checkpoints and hidden copies are of no use any more; what came later, or was to be kept, stays."
    run, points = RunRecord(tmp_path / "out"), Checkpoints(tmp_path / "out")
    run.folder.mkdir()
    run.start({"a": 1})
    points.write(1, lambda folder: (folder / "weights").write_text("1"))
    (run.folder / "checkpoint-of-others").mkdir()
    for keep in (True, False):
        run.finish(keep)
        points.write(2, lambda folder: (folder / "weights").write_text("2"))  # by somebody else
        (tmp_path / ".out.lock").touch()
        (run.folder / f".training_run.json.{DEAD}-abcd1234").mkdir()
        with pytest.raises(FileExistsError, match="this very run, finished"), run.fresh():
            run.prepare({"a": 1})
        there = ["checkpoint-1"] * keep + ["checkpoint-2", "checkpoint-of-others", "training_run.json"]
        assert sorted(path.name for path in run.folder.iterdir()) == there
        assert not (tmp_path / ".out.lock").exists()


def test_a_kill_when_the_new_model_is_in_place_leaves_nothing_of_the_old_run(tmp_path):
    run = RunRecord(tmp_path / "out")
    run.folder.mkdir()
    run.start({"a": 1}, finished=True)
    killed_runs._set_aside(run, {"a": 2})
    run.start({"a": 2}, saved=True)
    assert (run.folder / "replaced-1").exists()
    with run.fresh():
        assert run.prepare({"a": 2}, overwrite=True) == "resume"
    assert not (run.folder / "replaced-1").exists()


def test_files_of_others_stay_when_a_model_is_replaced(tmp_path):
    target = tmp_path / "model"
    foreign = ("notes.safetensors.txt", "model.safetensors.mine", "mine.safetensors",
               "checkpoint-7/theirs.txt", "pytorch_model.bin")  # fmt: skip
    old = ("model.safetensors.index.json", "model-00001-of-00002.safetensors", "reward_kit.json",
           "evaluation/report.md", "adapter/adapter_config.json")  # fmt: skip
    for name in foreign + old:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(name)
    with saved_whole(target) as folder:
        (folder / "model.safetensors").write_text("new")
        (folder / "reward_kit.json").write_text("{}")
    assert tree(target) == {name: name.encode() for name in foreign} | {
        "model.safetensors": b"new", "reward_kit.json": b"{}"}  # fmt: skip


@pytest.fixture(scope="module")
def finished(base, rows, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("finished") / "model"
    learn(base, rows, out, keep_checkpoints=True, config={"save_steps": 2, "save_total_limit": 2})
    (out / "checkpoint-mine").mkdir()
    (out / "checkpoint-mine" / "notes.txt").write_text("mine")
    return out


def copied(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "model"))


FAILING = {
    "while it trains": (RewardTrainer, "train"),
    "while it is loaded": (pipeline, "RewardTrainer"),
    "while it is saved": (RewardTrainer, "_trained_model"),
}


@pytest.mark.parametrize("when", ["while it trains", "while it is loaded"])
def test_a_run_that_fails_before_a_checkpoint_leaves_the_one_it_replaces(
    base,  # noqa: F811
    rows,
    finished,
    tmp_path,
    monkeypatch,
    when,
):
    out = copied(finished, tmp_path)
    before = tree(out)

    def fail(*args, **kwargs):
        raise ValueError("this learning rate is no good")

    monkeypatch.setattr(*FAILING[when], fail)
    with pytest.raises(ValueError, match="no good"):
        learn(base, rows, out, overwrite=True, config={"learning_rate": 1e-2})
    assert tree(out) == before and hidden(tmp_path) == []


def test_a_run_that_is_killed_before_a_checkpoint_leaves_the_one_it_replaces(base, rows, finished, tmp_path):  # noqa: F811
    out = copied(finished, tmp_path)
    before = tree(out)
    run = RunRecord(out)
    killed_runs._set_aside(run, {"seed": 1})  # and then it is killed, before or after its record
    for begun in (False, True):
        if begun:
            killed_runs._set_aside(run, {"seed": 1})
            run.start({"seed": 1})
            (out / "checkpoint-1").mkdir()
            (out / "checkpoint-1" / ".reward_kit").touch()
        with pytest.raises(FileExistsError, match="other settings"):
            learn(base, rows, out, config={"learning_rate": 1e-2})
        assert tree(out) == before and hidden(tmp_path) == []


def test_a_run_that_stops_after_a_checkpoint_goes_on_and_then_what_it_replaced_goes(
    base, rows, finished, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    out = copied(finished, tmp_path)
    old = {name: data for name, data in tree(out).items() if name.startswith("checkpoint-")}
    given = {"overwrite": True, "config": {"learning_rate": 1e-2, "save_steps": 1}}
    weights = (out / "model.safetensors").read_bytes()
    monkeypatch.setattr(*FAILING["while it is saved"], lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        learn(base, rows, out, **given)
    monkeypatch.undo()
    assert (out / "model.safetensors").read_bytes() == weights and RewardMetadata.load(out)
    aside = tree(out / "replaced-1")
    assert {name: aside[name] for name in old if "mine" not in name} == {
        name: data for name, data in old.items() if "mine" not in name}  # fmt: skip
    found, said = learn(base, rows, out, **given)
    assert found.resumed and "Resuming from" in said
    assert (out / "model.safetensors").read_bytes() != weights
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["checkpoint-mine", "evaluation"]
    assert hidden(tmp_path) == []


def test_an_unfinished_run_goes_on_with_overwrite_too(tmp_path):
    run = RunRecord(tmp_path / "model")
    run.start({"seed": 0})
    assert run.prepare({"seed": 0}, overwrite=True) == "resume"
    assert run.prepare({"seed": 1}, overwrite=True) == "fresh"
    run.finish()
    assert run.prepare({"seed": 0}, overwrite=True) == "fresh"


def test_several_runs_that_replace_one_another_wait_for_the_last(tmp_path):
    run, checkpoints = RunRecord(tmp_path / "model"), Checkpoints(tmp_path / "model")
    for seed in range(3):
        killed_runs._set_aside(run, {"seed": seed})
        run.start({"seed": seed})
        checkpoints.write(4, lambda folder, seed=seed: (folder / "weights").write_text(str(seed)))
    found = sorted(tmp_path.rglob("weights"))
    assert [path.read_text() for path in found] == ["2", "0", "1"]
    killed_runs._forget(run)
    assert [path.read_text() for path in tmp_path.rglob("weights")] == ["2"]


# ---- SIGTERM


@pytest.mark.parametrize("asked", [{}, {"enable_jit_checkpoint": True}], ids=["as it is", "asked for"])
def test_sigterm_writes_a_checkpoint_and_says_how_to_go_on(base, tmp_path, asked):  # noqa: F811
    from transformers import TrainerCallback

    class Ends(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    args = RewardConfig(
        str(tmp_path / "run"), max_steps=9, save_steps=100, per_device_train_batch_size=2, show_plan=False,
        disable_tqdm=True, report_to="none", **asked)  # fmt: skip
    before = signal.getsignal(signal.SIGTERM)
    trainer = RewardTrainer(base, args, train_dataset=make_dataset(8), callbacks=[Ends()])
    with pytest.raises(
        TrainingInterrupted, match="stopped at step 3; continue from .*checkpoint-3"
    ) as stopped:
        trainer.train()
    assert stopped.value.number == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == before
    assert Checkpoints(tmp_path / "run").newest().name == "checkpoint-3"


def ended(argv, ready, number=signal.SIGTERM):
    "Exit code and last line of a command that gets a signal once it is ready."
    process = subprocess.Popen(
        [*RUN, *map(str, argv)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV
    )
    try:
        while process.poll() is None and not ready():
            time.sleep(0.02)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, (error.strip().splitlines() or [""])[-1]


def test_a_command_that_is_terminated_leaves_a_checkpoint_and_a_line(base, rows, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    argv = ["train", "--model", base, "--data", rows, "--output", out, "--epochs", "4000",
            "--save-steps", "20", "--save-total-limit", "2", "--no-progress"]  # fmt: skip
    code, line = ended(argv, lambda: list(out.glob("checkpoint-*/reward_kit_checkpoint.json")))
    assert code == 143 and line.startswith("reward-kit: interrupted; run the same command again to go on")
    assert Checkpoints(out).newest() and hidden(tmp_path) == []


def test_a_command_that_is_terminated_before_it_trains_leaves_nothing(monkeypatch, rows, tmp_path, capsys):
    def end(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(pipeline, "RewardTrainer", end)
    out = tmp_path / "out"
    before = signal.getsignal(signal.SIGTERM)
    assert main(["train", "--model", "playground", "--data", str(rows), "--output", str(out)]) == 143
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("reward-kit: interrupted")
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) == before


# ---- a full disk


def full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_named_with_the_file(tmp_path, monkeypatch):
    write_whole(tmp_path / "report.md", "old")
    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda path: write_whole(path, "new"), lambda path: append_rows(path, [{"a": 1}])):
        with pytest.raises(OSError, match="No space left.*report.md") as error:
            write(tmp_path / "report.md")
        assert error.value.filename == str(tmp_path / "report.md")
    monkeypatch.undo()
    assert hidden(tmp_path) == []


def test_a_report_that_failed_is_made_from_the_saved_weights(base, rows, tmp_path, monkeypatch):  # noqa: F811
    out, config = tmp_path / "model", {"save_strategy": "no"}
    monkeypatch.setattr(pipeline, "write_model_card", full)
    with pytest.raises(
        CheckpointError,
        match="the report of .*model could not be written: the disk is full; the model is whole",
    ):
        learn(base, rows, out, config=config)
    monkeypatch.undo()
    weights = (out / "model.safetensors").read_bytes()
    monkeypatch.setattr(RewardTrainer, "train", None)
    found, said = learn(base, rows, out, config=config)
    assert "The model of this very run is there; its report is made now" in said and found.evaluation
    assert (out / "evaluation" / "report.md").exists() and (out / "model.safetensors").read_bytes() == weights
    assert RunRecord(out).read()["finished"]
    with pytest.raises(FileExistsError, match="this very run, finished"):
        learn(base, rows, out, config=config)


def test_what_is_written_twice_reads_as_json(tmp_path):
    run = RunRecord(tmp_path / "model")
    run.start({"seed": 0}, saved=True)
    assert json.loads((tmp_path / "model" / "training_run.json").read_text())["saved"] is True
    assert run.is_finished({"seed": 0}, "saved") and not run.is_finished({"seed": 1}, "saved")
    run.finish()
    assert run.is_finished({"seed": 0}) and not run.is_finished({"seed": 0}, "saved")
