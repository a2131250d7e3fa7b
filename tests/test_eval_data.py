"An evaluation set is read as the training set was, where its few rows do not tell."

import json

import pytest
from datasets import Dataset

from reward_kit import RewardConfig, RewardTrainer, load_preferences
from reward_kit.data.files import PreferenceDataError
from reward_kit.tools.commands import commands
from reward_kit.tools.pipeline import train_reward_model

STARTS = [
    f"The {noun} of the {owner} is" for noun in ("name", "colour", "age") for owner in ("cat", "ship", "king")
]
FULL = [{"chosen": f"{start} known.", "rejected": f"{start} not known."} for start in STARTS]
TINY = [{"chosen": "Yes.", "rejected": "No."}]
SIDES = [
    {"prompt": f"Is {n} prime?", "response_1": "Yes.", "response_2": "No.", "label": 1 + n % 2}
    for n in range(8)
]
CONFIG = {"max_steps": 1, "use_cpu": True, "show_plan": False, "report_to": "none"}


def trainer(tmp_path, train, evaluated):
    args = RewardConfig(str(tmp_path / "run"), **CONFIG)
    return RewardTrainer("playground", args, train_dataset=train, eval_dataset=evaluated)


def test_alone_such_rows_are_refused():
    for rows in (TINY, SIDES[:1]):
        with pytest.raises(PreferenceDataError):
            load_preferences(rows, progress=False)


def test_full_texts_are_read_as_those_of_the_training(tmp_path):
    found = trainer(tmp_path, FULL, TINY)
    assert len(found.eval_dataset) == 1 and found.data.encoder.encoding.kind == "text"
    assert found.evaluate()["eval_loss"] > 0
    assert found.evaluate(Dataset.from_list(TINY))["eval_loss"] > 0
    assert set(trainer(tmp_path, FULL, {"one": TINY, "two": FULL}).eval_dataset) == {"one", "two"}


@pytest.mark.parametrize("streams", [(True, False), (False, True), (True, True)])
def test_of_streams_too(tmp_path, streams):
    train, evaluated = (
        Dataset.from_list(rows).to_iterable_dataset() if stream else rows
        for rows, stream in zip((FULL, TINY), streams)
    )
    assert trainer(tmp_path, train, evaluated).evaluate()["eval_loss"] > 0


def test_labels_mean_what_they_meant_in_the_training(tmp_path):
    data = load_preferences(SIDES, progress=False)
    few = load_preferences(SIDES[:1], like=data.fmt, progress=False)
    assert few[0]["responses"] == ["Yes.", "No."] and few[0]["ranks"] == [1, 2]
    few = load_preferences(SIDES[1:2], like=data.select([0]).fmt, progress=False)
    assert few[0]["responses"][few[0]["ranks"].index(1)] == "No."
    assert len(trainer(tmp_path, data, SIDES[:1]).eval_dataset) == 1


@pytest.mark.parametrize(
    "like, rows",
    [
        (SIDES, [SIDES[0] | {"label": 0}]),  # a code that the training did not have
        (FULL, [TINY[0] | {"remark": "Is 7 prime?"}]),  # a column that the training did not have
        (FULL, [*TINY, {"chosen": "Yes."}]),  # not all of them can be read so
        (SIDES, TINY),
    ],
)
def test_other_rows_are_refused_as_before(like, rows):
    like = load_preferences(like, progress=False)
    with pytest.raises(PreferenceDataError) as alone:
        load_preferences(rows, progress=False)
    with pytest.raises(PreferenceDataError) as beside:
        load_preferences(rows, like=like.fmt, progress=False)
    assert str(alone.value) == str(beside.value)


def test_rows_that_tell_are_read_by_themselves():
    like = load_preferences(FULL, progress=False)
    rows = [{"prompt": "Is 7 prime?", "chosen": "Yes.", "rejected": "No."}]
    assert load_preferences(rows, like=like.fmt, progress=False)[0]["prompt"] == "Is 7 prime?"


def test_one_call_and_the_command(tmp_path, capsys):
    quiet = {"progress": False, "say": lambda line: None}
    done = train_reward_model(
        "playground", FULL, tmp_path / "one", eval_data=TINY, config=CONFIG, **quiet)  # fmt: skip
    assert len(done.held_out) == 1
    for name, rows in (("train", FULL), ("few", TINY)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = [
        "--model",
        "playground",
        "--data",
        tmp_path / "train.jsonl",
        "--eval-data",
        tmp_path / "few.jsonl",
    ]
    words += ["--output", tmp_path / "two", "--max-steps", "1"]
    commands()["train"].read(list(map(str, words))).run()
    assert "evaluating on 1 given ones" in capsys.readouterr().out


def test_a_stream_may_begin_with_a_short_or_a_broken_row(tmp_path):
    rows = [{"chosen": None, "rejected": "No."}, *TINY, *FULL]
    found = trainer(tmp_path, Dataset.from_list(rows).to_iterable_dataset(), None)
    assert found.encoder.encoding.kind == "text"
    assert sum(1 for _ in found.train_dataset) == len(FULL) + 1
