"""Reading preferences: every source and format, every fault with its place, bounded memory, splits, and
the real files beside the repository."""

import collections
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import reward_kit.data.preferences as data
from reward_kit.beside import conversation_texts  # noqa: F401
from reward_kit.data.files import PreferenceDataError, UnusableRow
from reward_kit.data.formats import PreferenceFormat, to_record
from reward_kit.data.preferences import (
    Preferences,
    hold_out,
    kfold_by_prompt,
    load_preferences,
    prompt_overlap,
    save_preferences,
    split_by_prompt,
)
from reward_kit.data.records import Row, as_messages, prompt_key, read_column

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
HH, DEMO = REAL / "hh-rlhf-harmless-test.jsonl.gz", REAL / "dpo-en-demo.json.gz"
USER, BOT = (
    (lambda text: {"role": "user", "content": text}),
    (lambda text: {"role": "assistant", "content": text}),
)


def pairs(n, prompts=None):
    "n different pairs on `prompts` different prompts."
    return [
        {"prompt": f"What is {i % (prompts or n)}?", "chosen": f"A number, {i}.", "rejected": f"Nothing {i}"}
        for i in range(n)
    ]


def load(source, **options):
    return load_preferences(source, progress=False, **options)


def reasons(preferences):
    return {reason: entry["count"] for reason, entry in preferences.report.dropped.items()}


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---------------------------------------------------------------- sources


def write_arrow(path, rows, stream):
    table = pa.Table.from_pylist(rows)
    with (
        pa.OSFile(str(path), "wb") as sink,
        (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer,
    ):
        writer.write_table(table)


WRITERS = {
    "a.jsonl": jsonl,
    "a.ndjson": lambda p, r: p.write_text("\n\n".join(map(json.dumps, r))),
    "bom.jsonl": lambda p, r: p.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, r)).encode()),
    "a.json": lambda p, r: p.write_text(json.dumps(r, indent=1)),
    "lines.json": jsonl,
    "columns.json": lambda p, r: p.write_text(json.dumps({k: [row[k] for row in r] for k in r[0]})),
    "named.json": lambda p, r: p.write_text(json.dumps({"data": r, "version": 1})),
    "a.csv": lambda p, r: pd.DataFrame(r).to_csv(p, index=False),
    "a.tsv": lambda p, r: pd.DataFrame(r).to_csv(p, index=False, sep="\t"),
    "a.parquet": lambda p, r: pq.write_table(pa.Table.from_pylist(r), p),
    "a.arrow": lambda p, r: write_arrow(p, r, True),
    "a.feather": lambda p, r: write_arrow(p, r, False),
}


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_file_type_gives_the_same_records(tmp_path, name, compressed):
    rows = pairs(30) + [{"prompt": 'Say "hi",\nplease', "chosen": "hi\tthere, “you”", "rejected": "no, 你好"}]
    WRITERS[name](tmp_path / name, rows)
    path = tmp_path / name
    if compressed:
        path = tmp_path / f"{name}.gz"
        path.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    found = load(path)
    assert found.fingerprint == load(rows).fingerprint
    assert (
        len(found) == 31
        and found[30]["responses"] == ["hi\tthere, “you”", "no, 你好"]
        and found[30]["origin"].startswith(path.name)
    )


def test_json_array_is_read_in_pieces(tmp_path):
    rows = pairs(3000)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    assert path.stat().st_size > 3 * (1 << 16)
    assert load(path).fingerprint == load(rows).fingerprint
    path.write_text(json.dumps(rows)[:-40])
    with pytest.raises(PreferenceDataError, match=r"^a.json:1: malformed JSON"):
        load(path)


def test_sources_in_memory():
    rows = pairs(5)
    frame = pd.DataFrame(rows)
    frame.loc[2, "chosen"] = None
    frame["margin"] = [1.0, float("nan"), 3, 4, 5]
    found = load(frame)
    assert reasons(found) == {"null chosen": 1} and [r["margin"] for r in found] == [1.0, None, 4.0, 5.0]
    dataset = datasets.Dataset.from_list(rows)
    assert (
        load(dataset).fingerprint
        == load(rows).fingerprint
        == load(dataset.to_iterable_dataset()).fingerprint
        == load(tuple(rows)).fingerprint
    )
    preferences = load(rows)
    assert load(preferences) is preferences


def test_folder_glob_and_saved_datasets(tmp_path):
    jsonl(tmp_path / "part-1.jsonl", pairs(3))
    (tmp_path / "deeper").mkdir()
    jsonl(tmp_path / "deeper" / "part-2.jsonl", pairs(6)[3:])
    (tmp_path / "README.md").write_text("not data")
    assert [r["origin"] for r in load(tmp_path)] == [f"deeper/part-2.jsonl:{i}" for i in (1, 2, 3)] + [
        f"part-1.jsonl:{i}" for i in (1, 2, 3)
    ]
    assert len(load(str(tmp_path / "*.jsonl"))) == 3 and len(load(str(tmp_path / "**" / "*.jsonl"))) == 6
    datasets.Dataset.from_list(pairs(4)).save_to_disk(tmp_path / "saved")
    assert len(load(tmp_path / "saved")) == 4
    with pytest.raises(PreferenceDataError, match=r"no data file found"):
        load(str(tmp_path / "*.jsonx"))


def test_splits_are_chosen_and_compared(tmp_path):
    both = datasets.DatasetDict(
        train=datasets.Dataset.from_list(pairs(20)), test=datasets.Dataset.from_list(pairs(25)[18:])
    )
    found = load(both)
    assert len(found) == 20 and any("split 'train'" in note for note in found.report.notes)
    assert found.report.overlaps == {"test": {"shared": 2, "prompts": 7, "records": 2}}
    assert {v.practice: v.status for v in found.report.verdicts}["no prompts across splits"] == "fail"
    assert len(load(both, split="test")) == 7
    with pytest.raises(PreferenceDataError, match=r"no split 'dev' among 'train', 'test'"):
        load(both, split="dev")
    with pytest.raises(PreferenceDataError, match=r"choose one with split="):
        load(datasets.DatasetDict(a=both["train"], b=both["test"]))
    with pytest.raises(PreferenceDataError, match=r"^list: no split 'test' among 'train'"):
        load(pairs(3), split="test")
    both.save_to_disk(tmp_path / "saved")
    assert len(load(tmp_path / "saved", split="test")) == 7
    jsonl(tmp_path / "train-0.jsonl", pairs(5)), jsonl(tmp_path / "test-0.jsonl", pairs(9)[5:])
    found = load(str(tmp_path / "*.jsonl"))
    assert len(found) == 9 == len(load(str(tmp_path / "*.jsonl"), split="*")) and not found.report.overlaps
    (tmp_path / "saved").rename(tmp_path.parent / f"{tmp_path.name}-saved")
    found = load(tmp_path)
    assert len(found) == 5 and found.report.overlaps["test"]["shared"] == 0


def test_what_is_a_path_and_what_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jsonl(Path("preferences.jsonl"), pairs(2))
    with pytest.raises(
        PreferenceDataError,
        match=r"^preference.jsonl: no such file or folder; did you mean 'preferences.jsonl'",
    ):
        load("preference.jsonl")
    for name in ("./owner/name", "/no/such/place", "a/b/c", "nothing", "owner/name.jsonl", "no*.jsonl"):
        with pytest.raises(PreferenceDataError) as error:
            load(name)
        assert (
            str(error.value).startswith(name)
            and "\n" not in str(error.value)
            and "Hugging Face hub (" not in str(error.value)
        )
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, **kw: (_ for _ in ()).throw(ConnectionError(f"no network for {name}\nmore")),
    )
    with pytest.raises(
        PreferenceDataError,
        match=r"^owner/name-v1.5: .*hub \(ConnectionError: no network for owner/name-v1.5\); check the name",
    ) as error:
        load("owner/name-v1.5")
    assert "\n" not in str(error.value)
    asked = {}
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, **kw: (
            asked.update(kw, name=name) or datasets.DatasetDict(train=datasets.Dataset.from_list(pairs(3)))
        ),
    )
    assert len(load("owner/name", revision="abc", cache_dir=str(tmp_path))) == 3
    assert asked == {"name": "owner/name", "revision": "abc", "cache_dir": str(tmp_path)}


# ---------------------------------------------------------------- faults and their places


def test_each_fault_is_counted_with_its_place(tmp_path):
    rows = [
        '{"prompt": "p", "chosen": "a", "rejected": "b"}',
        '{"prompt": "p", "chosen": "a", "rejected": "b"}',
        '{"prompt": "p", "chosen": "b", "rejected": "a"}',
        '{"prompt": "p", "chosen": null, "rejected": "b"}',
        '{"prompt": " ", "chosen": "a", "rejected": "b"}',
        '{"prompt": "p", "chosen": 7, "rejected": "b"}',
        '{"prompt": "p", "chosen": "a", "rejected": "a "}',
        '{"prompt": "p", "chosen": "a"}',
        '{"chosen": "x", "rejected": "y"}',
        "[1, 2]",
        "not json",
        '{"prompt": "p", "chosen": "\\ud800", "rejected": "b"}',
        '{"prompt": "p", "chosen": "c", "rejected": "d", "weight": -1}',
        "",
        '{"prompt": "q", "chosen": "a", "rejected": "b", "margin": Infinity}',
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(rows))
    found = load(path)
    assert reasons(found) == {
        "exact duplicate": 1,
        "null chosen": 1,
        "empty prompt": 1,
        "chosen is not text": 1,
        "chosen is identical to rejected": 1,
        "missing rejected": 1,
        "missing prompt": 1,
        "row is not a dict": 1,
        "malformed JSON": 1,
        "chosen has a broken character": 1,
        "negative weight": 1,
        "margin is not a finite number": 1,
    }
    places = {
        reason: int(entry["examples"][0].split(":")[1]) for reason, entry in found.report.dropped.items()
    }
    assert places == {
        "exact duplicate": 2,
        "null chosen": 4,
        "empty prompt": 5,
        "chosen is not text": 6,
        "chosen is identical to rejected": 7,
        "missing rejected": 8,
        "missing prompt": 9,
        "row is not a dict": 10,
        "malformed JSON": 11,
        "chosen has a broken character": 12,
        "negative weight": 13,
        "margin is not a finite number": 15,
    }
    assert len(found) == 2 and found.report.stats["contradictory"] == 2
    assert [
        entry["count"] for reason, entry in found.report.noted.items() if reason.startswith("contradictory")
    ] == [2]
    with pytest.raises(
        PreferenceDataError,
        match=(
            r"^p.jsonl: strict reading found .*null chosen 1.* in 14 rows; first: p.jsonl:4 \(null chosen\)"
        ),
    ):
        load(path, strict=True)


def test_strict_refuses_contradictions_and_accepts_clean_data():
    assert len(load(pairs(3), strict=True)) == 3
    both_ways = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "b", "rejected": "a"},
    ]
    with pytest.raises(PreferenceDataError, match=r"contradictory pair.* 2 in 2 rows; first: row 1"):
        load(both_ways, strict=True)
    assert len(load(both_ways)) == 2


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("empty.jsonl", b"", "empty.jsonl: empty"),
        ("empty.json", b"[]", "empty.json: empty"),
        ("empty.csv", b"prompt,chosen,rejected\n", "empty.csv: empty"),
        (
            "bad.jsonl",
            b"no\nneither\n",
            r"bad.jsonl: none of 2 rows can be used: malformed JSON 2; first: bad.jsonl:1",
        ),
        (
            "latin.jsonl",
            '{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "caf\xe9", "chosen": "a",'
            ' "rejected": "b"}'.encode("latin-1"),
            r"latin.jsonl:2: not UTF-8",
        ),
        (
            "utf16.jsonl",
            '{"prompt": "p"}\n'.encode("utf-16") + b"x",
            r"utf16.jsonl: begins as UTF-16 but is not",
        ),
        ("latin.json", '[{"prompt": "p",\n"chosen": "\xe9"}]'.encode("latin-1"), r"latin.json:2: not UTF-8"),
        ("utf16.csv", "prompt,chosen\np,a\n".encode("utf-16"), r"utf16.csv: no column for 'rejected'"),
        (
            "twice.json",
            b'[{"chosen": "a", "chosen": "b", "rejected": "c"}]',
            r"twice.json: malformed JSON: the key 'chosen' occurs twice",
        ),
        (
            "twice-in-one.json",
            b'{"chosen": "a", "chosen": "b"}',
            r"twice-in-one.json: malformed JSON: the key 'chosen' occurs twice",
        ),
        (
            "pretty.jsonl",
            b'{\n "prompt": "p",\n "chosen": "a", "rejected": "b"\n}\n{\n}',
            r"pretty.jsonl:1: JSON that is spread over several lines; .*json.dumps",
        ),
        ("array.jsonl", b'[\n{"prompt": "p"}\n]', r"array.jsonl:1: JSON that is spread over several lines"),
        (
            "open.csv",
            b'prompt,chosen,rejected\np,a,b\nq,"a,b\nr,a,b\ns,"a",b\n',
            r"open.csv:3: malformed table \(a quote is not closed\)",
        ),
        ("header.csv", b'"prompt" x,chosen,rejected\np,a,b\n', r"header.csv:1: the header cannot be read"),
        ("object.json", b'{"prompt": "p",\n "chosen": }', r"object.json:2: malformed JSON"),
        ("quote.csv", b'prompt,chosen,rejected\n"open,a,b\n', r"quote.csv:2: malformed table"),
        ("twice.csv", b"chosen,chosen,rejected\na,b,c\n", r"twice.csv:1: two columns have the same name"),
        ("cut.jsonl.gz", gzip.compress(b"{}" * 5000, mtime=0)[:-20], r"cut.jsonl.gz: not a complete gzip"),
        ("not.jsonl.gz", b"plain text", r"not.jsonl.gz: not a complete gzip file"),
        ("not.parquet", b"plain text", r"not.parquet: not a readable Parquet or Arrow file"),
        ("not.arrow", b"plain text", r"not.arrow: not a readable Parquet or Arrow file"),
        ("some.txt", b"plain text", r"some.txt: unknown file type"),
    ],
)
def test_faults_of_whole_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PreferenceDataError, match=message) as error:
        load(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_repeated_key_breaks_its_row(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "p", "chosen": "a", "chosen": "b",'
        ' "rejected": "c"}\n'
    )
    found = load(tmp_path / "a.jsonl")
    assert (
        found.report.broken["malformed JSON"]["examples"]
        == ["a.jsonl:2: the key 'chosen' occurs twice in one object"]
        and len(found) == 1
    )


@pytest.mark.parametrize("separator", ",;\t")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_as_spreadsheets_save_them(tmp_path, separator, encoding):
    rows = [
        *pairs(3),
        {"prompt": "a; b, c\td", "chosen": "über\nzwei\u2028Zeilen", "rejected": 'with "quotes"'},
    ]
    text = pd.DataFrame(rows).to_csv(index=False, sep=separator, lineterminator="\r\n")
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    assert load(tmp_path / "a.csv").fingerprint == load(rows).fingerprint


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_in_utf16(tmp_path, name):
    rows = [*pairs(3), {"prompt": "\u2028 \x0b", "chosen": "über", "rejected": "🙂"}]
    (tmp_path / name).write_bytes(
        (
            "\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
            if name == "a.jsonl"
            else json.dumps(rows)
        ).encode("utf-16")
    )
    assert load(tmp_path / name).fingerprint == load(rows).fingerprint


def test_empty_columns_and_stray_quotes_of_tables(tmp_path):
    (tmp_path / "a.csv").write_text(
        'prompt,chosen,rejected,,\np,a,b,,\nq,"Yes" he said,b,,\nr,a "b" c,b,,\ns,a,b,x,\n'
    )
    found = load(tmp_path / "a.csv")
    assert [r["responses"][0] for r in found] == ["a", 'a "b" c'] and reasons(found) == {
        "malformed table row": 1,
        "wrong number of cells": 1,
    }
    assert found.report.broken["malformed table row"]["examples"] == [
        "a.csv:3: a quote within a quoted cell; it must be doubled"
    ]


@pytest.mark.parametrize("orient", ["columns", "index", "records", "split"])
def test_json_as_pandas_writes_it(tmp_path, orient):
    rows = [*pairs(12), {"prompt": [USER("q")], "chosen": [BOT("a")], "rejected": [BOT("b")]}]
    for part in (rows[:12], rows[12:]):
        pd.DataFrame(part).to_json(tmp_path / "a.json", orient=orient)
        assert load(tmp_path / "a.json").fingerprint == load(part).fingerprint


def test_json_with_splits(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"train": pairs(6), "test": pairs(9)[5:]}, indent=1))
    found = load(tmp_path / "a.json")
    assert (
        len(found) == 6
        and found.report.overlaps["test"]["shared"] == 1
        and found[0]["origin"] == "a.json train row 1"
    )
    assert len(load(tmp_path / "a.json", split="test")) == 4
    with pytest.raises(PreferenceDataError, match="no split 'dev' among 'train', 'test'"):
        load(tmp_path / "a.json", split="dev")
    with pytest.raises(
        PreferenceDataError, match="a.json: holds the splits 'train', 'test'; read this file by itself"
    ):
        load(tmp_path)


def test_a_folder_leaves_out_models_and_records_of_training(tmp_path):
    jsonl(tmp_path / "data.jsonl", pairs(4))
    for name in ("training_run.json", "trainer_state.json.gz", "config.json"):
        (tmp_path / name).write_text("{}")
    for folder, names in {
        "out": ["reward_kit.json", "preferences.json"],
        "hub": ["config.json", "model.safetensors", "labels.json"],
        "adapter": ["adapter_config.json", "a.safetensors"],
        "out/checkpoint-10": ["trainer_state.json", "scores.jsonl"],
    }.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text('{"a": 1}')
    (tmp_path / "trainer_state.json.gz").unlink()
    assert len(load(tmp_path)) == 4 == len(load(str(tmp_path / "*.js*")))
    with pytest.raises(PreferenceDataError, match="no data file found; this is the folder of a model"):
        load(tmp_path / "out")
    for name in ("a.jsonl", "data.jsonl"):
        (tmp_path / name).write_text('{"name": "x"}\n')
    with pytest.raises(
        PreferenceDataError,
        match=rf"^{tmp_path}: a.jsonl: no column for 'chosen' and 'rejected'; present are 'name'",
    ):
        load(tmp_path)


def test_csv_rows_of_the_wrong_width(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\np,a,b\np,a\np,a,b,c\nq,a,\n")
    found = load(tmp_path / "a.csv")
    assert len(found) == 1 and reasons(found) == {"wrong number of cells": 2, "empty rejected": 1}
    assert found.report.dropped["wrong number of cells"]["examples"][0].startswith("a.csv:3")


# ---------------------------------------------------------------- columns and formats


def test_columns_are_mapped_exactly():
    rows = [{"question": "q", "good": "a", "bad": "b", "chosen": "x", "rejected": "y", "strength": "0.5"}]
    found = load(rows, columns={"chosen": "good", "rejected": "bad", "margin": "strength"})
    assert found[0]["prompt"] == "q" and found[0]["responses"] == ["a", "b"] and found[0]["margin"] == 0.5
    assert found.report.unused_columns == ["chosen", "rejected"]
    with pytest.raises(PreferenceDataError, match=r"unknown name 'choosen'"):
        load(rows, columns={"choosen": "good"})
    with pytest.raises(
        PreferenceDataError, match=r"column 'gold' \(for 'chosen'\) is missing; .*did you mean 'good'"
    ):
        load(rows, columns={"chosen": "gold"})
    assert load(rows, columns={"prompt": None})[0]["prompt"] == ""


@pytest.mark.parametrize(
    "row,name",
    [
        ({"prompt": "q", "preferred": "a", "dispreferred": "b"}, "pairs"),
        ({"instruction": "q", "winner": "a", "loser": "b"}, "pairs"),
        ({"Prompt": "q", "Chosen": "a", "Rejected": "b"}, "pairs"),
        ({"prompt": "q", "response_0": "b", "response_1": "a", "better_response_id": 1}, "labelled"),
        ({"prompt": "q", "response_1": "b", "response_2": "a", "preference": 2.0}, "labelled"),
        ({"prompt": "q", "answer_a": "a", "answer_b": "b", "winner": "model_a"}, "labelled"),
        ({"prompt": "q", "response_a": "b", "response_b": "a", "label": "response_b"}, "labelled"),
        ({"prompt": "q", "completions": ["b", "a"], "ratings": [1, 2]}, "ranking"),
        ({"prompt": "q", "responses": ["b", "a"], "ranks": [2, 1]}, "ranking"),
    ],
)
def test_usual_names_are_found(row, name):
    found = load([row])
    assert (
        found.report.format == name
        and found[0]["prompt"] == "q"
        and found[0]["responses"] == ["a", "b"]
        and found[0]["ranks"] == [1, 2]
    )


def test_a_format_can_be_forced():
    text = "\n\nHuman: q\n\nAssistant: "
    row = {"chosen": text + "a", "rejected": text + "b"}
    assert load([row]).kind == "messages" and load([row], format="pairs").kind == "text"
    assert reasons(load([row, {"chosen": "x", "rejected": "y"}], format="transcript")) == {
        "not a transcript": 1
    }
    with pytest.raises(PreferenceDataError, match="format='pair' is unknown"):
        load([row], format="pair")
    with pytest.raises(PreferenceDataError, match="no column for 'responses'"):
        load([row], format="ranking")


@pytest.mark.parametrize(
    "label,ranks", [("a", [1, 2]), ("B", [1, 2]), ("tie", [1, 1]), ("tie (bothbad)", [1, 1])]
)
def test_labels(label, ranks):
    record = to_record({"prompt": "q", "response_a": "x", "response_b": "y", "label": label})
    assert record["ranks"] == ranks and record["responses"] == (["y", "x"] if label == "B" else ["x", "y"])


@pytest.mark.parametrize("label", [0, 1, "1", -1, 0.5, True, "False"])
def test_labels_that_could_mean_either(label):
    with pytest.raises(
        PreferenceDataError,
        match=r"the labels in 'label' are \S+, which could name either response; .*labels=",
    ):
        to_record({"prompt": "q", "response_a": "x", "response_b": "y", "label": label})


@pytest.mark.parametrize("label", [None, "", "c", float("nan")])
def test_labels_that_cannot_be_read(label):
    with pytest.raises(UnusableRow, match="null or unreadable label"):
        to_record({"prompt": "q", "response_a": "x", "response_b": "y", "label": label})


TWO = {"prompt": "q", "response_1": "x", "response_2": "y"}


def labelled(values, **names):
    "Rows with different prompts and one label each; `x` is the first response."
    row = names or TWO
    return [{**row, "prompt": f"q{n}", "preference": value} for n, value in enumerate(values)]


@pytest.mark.parametrize(
    "names",
    [
        ("response_1", "response_2"),
        ("response_a", "response_b"),
        ("response_0", "response_1"),
        ("Answer A", "answer-b"),
    ],
)
@pytest.mark.parametrize(
    "values,expected",
    [
        (("left", "right", "both"), "xy="),
        (("first", "Second", "tie (bothbad)"), "xy="),
        (("model_a", "model_b", "equal"), "xy="),
        (("A", "b", "neither"), "xy="),
        (("answer_a", "option B", "draw"), "xy="),
    ],
)
def test_words_are_clear_beside_any_names(names, values, expected):
    found = load(labelled(values, **dict(zip(names, "xy"))))
    assert ["=" if r["ranks"] == [1, 1] else r["responses"][0] for r in found] == list(expected)


@pytest.mark.parametrize(
    "names,values,expected",
    [
        (("response_1", "response_2"), (1, 2, 1), "xyx"),
        (("response_1", "response_2"), ("2.0", "1.0"), "yx"),
        (("response_a", "response_b"), (2, 1), "yx"),
        (("response_0", "response_1"), (0, 1.0, "0"), "xyx"),
        (("response_0", "response_1"), (1, 1), "yy"),
        (("response_1", "response_2"), (2, 2), "yy"),
        (("response_1", "response_2"), (0, 1), "0, 1"),
        (("response_1", "response_2"), (1, -1), "-1, 1"),
        (("response_1", "response_2"), (0, 1, 2), "0, 1, 2"),
        (("response_a", "response_b"), (0, 1), "0, 1"),
        (("response_a", "response_b"), (True, False), "false, true"),
        (("response_a", "response_b"), (1, 1), "1"),
        (("response_0", "response_1"), (1, 2), "1, 2"),
        (("response_0", "response_1"), (1.0, 0.5, 0.0), "0, 0.5, 1"),
        (("response_1", "response_2"), (1, 1), "1"),
    ],
)
def test_numbers_are_read_by_the_whole_column_or_refused(names, values, expected):
    rows = labelled(values, **dict(zip(names, "xy")))
    if expected.isalpha():
        found = load(rows)
        assert "".join(r["responses"][0] for r in found) == expected and found.report.notes[0].startswith(
            "labels are read as "
        )
    else:
        with pytest.raises(
            PreferenceDataError,
            match=(
                rf"^list: the labels in 'preference' are {expected}, which could name either response; .*'a'"
                rf" is '{names[0]}'"
            ),
        ) as error:
            load(rows)
        assert "labels={" in str(error.value) and "\n" not in str(error.value)


def test_a_coding_is_decided_before_the_first_row_and_then_kept():
    late = load(labelled([2] * 3000 + [1] * 3000))
    assert [late[i]["responses"][0] for i in (0, 3500)] == ["y", "x"]
    with pytest.raises(PreferenceDataError, match="are 0, 1, which"):
        load(labelled([1] * 3000 + [0] * 10))
    odd = labelled([1, 2] * 3000 + [0, -1, None, "c"])
    found = load(odd)
    assert (
        reasons(found)
        == {"null or unreadable label": 4}
        == {k: v["count"] for k, v in found.report.broken.items()}
    )
    assert (
        found.report.dropped["null or unreadable label"]["examples"][0]
        == "row 6001: found 0; say what it means with labels={'0': '?'}"
    )
    with pytest.raises(PreferenceDataError, match="strict reading found null or unreadable label 4"):
        load(odd, strict=True)
    assert load(odd, num_proc=2).fingerprint == found.fingerprint


def test_the_caller_says_what_labels_mean(tmp_path):
    rows = labelled([0, 1, 2, "1"])
    found = load(rows, labels={"0": "b", 1: "a", 2.0: "tie"})
    assert [(r["responses"][0], r["ranks"]) for r in found] == [
        ("y", [1, 2]),
        ("x", [1, 2]),
        ("x", [1, 1]),
        ("x", [1, 2]),
    ]
    assert load(labelled([True, False]), labels={True: "a", False: "b"})[1]["responses"] == ["y", "x"]
    assert reasons(load(labelled(["good", "tie"]), labels={"good": "a"})) == {"null or unreadable label": 1}
    assert to_record(rows[0], labels={"0": "b"})["responses"] == ["y", "x"]
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    assert load(tmp_path / "a.csv", labels={"0": "b", "1": "a", "2": "tie"}).fingerprint == found.fingerprint


FLAGS = {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 0}
PUBLISHED = [
    (
        {"history": "q", "human_ref_A": "b", "human_ref_B": "a", "labels": 0, "score_A": 9, "score_B": 1},
        "labelled",
    ),
    ({"prompt": "q", "response_0": "b", "response_1": "a", "safer_response_id": 1}, "labelled"),
    ({"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": -1}, "labelled"),
    (
        {
            "question": {"full_text": "q", "dataset": "eli5"},
            "answer_0": "b",
            "answer_1": "a",
            "score_0": -1.0,
            "score_1": 1.0,
        },
        "labelled",
    ),
    ({"question": "q", "answer_0": "b", "answer_1": "a", "score_0": "-1", "score_1": "1"}, "labelled"),
    ({"prompt": "q", "response_a": "b", "response_b": "a", **FLAGS, "winner_model_b": 1}, "labelled"),
    (
        {
            "info": {"post": "q", "id": "t3"},
            "summaries": [{"text": "b", "note": None}, {"text": "a", "note": None}],
            "choice": 1,
        },
        "ranking",
    ),
    ({"info": {"article": "q"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0}, "ranking"),
    (
        {
            "instruction": "q",
            "completions": [{"response": "b", "overall_score": 1}, {"response": "a", "overall_score": 4}],
        },
        "ranking",
    ),
    (
        {
            "prompt": "q",
            "answers": [
                {"answer": "b", "rank": 2.0, "model": "m"},
                {"answer": "a", "rank": 1.0, "model": "n"},
            ],
        },
        "ranking",
    ),
    ({"prompt": "q", "chosen": ["a"], "rejected": ["b"]}, "ranking"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "chosen-rating": 5, "rejected-rating": 2}, "pairs"),
    (
        {
            "fields": {"prompt": "q", "response-1": "b", "response-2": "a"},
            "responses": {"best": [{"value": "response-2"}]},
        },
        "labelled",
    ),
    (
        {
            "fields": {"prompt": "q", "response1": "b", "response2": "a"},
            "responses": {},
            "suggestions": {"best": {"value": "response2", "score": None}},
        },
        "labelled",
    ),
    (
        {
            "fields": {"prompt": "q", "x": "b", "y": "a"},
            "responses": {"order": [{"value": [{"value": "y", "rank": 1}, {"value": "x", "rank": 2}]}]},
        },
        "ranking",
    ),
    ({" Prompt": "q", "CHOSEN ": "a", "rejected": "b"}, "pairs"),
    ({"question": "q", "response_j": "a", "response_k": "b"}, "pairs"),
]


@pytest.mark.parametrize("row,name", PUBLISHED, ids=range(len(PUBLISHED)))
def test_published_shapes(row, name, tmp_path):
    found = load(jsonl(tmp_path / "a.jsonl", [row]))
    assert (
        found.report.format == name
        and found[0]["prompt"] == "q"
        and found[0]["responses"] == ["a", "b"]
        and found[0]["ranks"] == [1, 2]
    )
    assert (
        to_record(row)["responses"] == ["a", "b"]
        and load(pd.DataFrame([row])).fingerprint == found.fingerprint
    )


def test_published_shapes_carry_scores_and_margins():
    assert [to_record(PUBLISHED[n][0])["scores"] for n in (3, 8, 11)] == [[1.0, -1.0], [4, 1], [5, 2]]
    strengths = load(
        [
            {"prompt": f"{n}", "response_1": "x", "response_2": "y", "preference_strength": n}
            for n in (-3, 0, 2)
        ]
    )
    assert [(r["responses"][0], r["ranks"], r["margin"]) for r in strengths] == [
        ("x", [1, 2], 3.0),
        ("x", [1, 1], 0.0),
        ("y", [1, 2], 2.0),
    ]
    other = [
        {
            "prompt": "q",
            "completions": [
                {"response": "a", "overall_score": 1, "fine-grained_score": 9},
                {"response": "b", "overall_score": 4, "fine-grained_score": 3},
            ],
        }
    ]
    assert load(other)[0]["responses"] == ["b", "a"] and load(
        other, columns={"scores": "fine-grained_score"}
    )[0]["responses"] == ["a", "b"]
    both = [
        {"prompt": "q", "response_0": "x", "response_1": "y", "better_response_id": 0, "safer_response_id": 1}
    ]
    assert (
        load(both)[0]["responses"][0] == "x"
        and load(both, columns={"label": "safer_response_id"})[0]["responses"][0] == "y"
    )


@pytest.mark.parametrize(
    "row,reason",
    [
        ({"prompt": "q", "response_a": "x", "response_b": "y", **FLAGS}, "null or unreadable label"),
        ({"prompt": "q", "response_a": "x", "response_b": "y", "score_a": 1, "score_b": None}, "null score"),
        (
            {"prompt": "q", "response_1": "x", "response_2": "y", "preference_strength": "much"},
            "strength is not a finite number",
        ),
        ({"prompt": "q", "responses": ["a", "b"], "choice": 5}, "null or unreadable label"),
        ({"prompt": "q", "responses": "['a', 'b']", "scores": [1, 2]}, "responses is not a list"),
        (
            {"fields": {"prompt": "q", "response1": "a", "response2": "b"}, "responses": {}},
            "missing label",
        ),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": -0.5}, "negative margin"),
    ],
)
def test_rows_that_decide_nothing_are_broken(row, reason):
    good = {**row, "prompt": "r"} if "prompt" in row else {**row, "fields": row["fields"] | {"prompt": "r"}}
    good |= {
        k: v
        for k, v in {
            "winner_tie": 1,
            "score_b": 2,
            "preference_strength": -1,
            "choice": 0,
            "margin": 1,
        }.items()
        if k in row
    }
    good |= (
        {"responses": {"best": [{"value": "response1"}]}}
        if "fields" in row
        else {"responses": ["a", "b"]}
        if "responses" in row
        else {}
    )
    found = load([good, row])
    assert len(found) == 1 and {k: v["count"] for k, v in found.report.broken.items()} == {reason: 1}


def test_lists_of_turns_are_conversations():
    row = {
        "id": 1,
        "prompt": '["q", "r"]',
        "response_a": '["a", "c"]',
        "response_b": '["b", null]',
        **FLAGS,
        "winner_tie": 1,
    }
    good = load(
        [
            row | {"response_b": '["b", "d"]'},
            {
                **row,
                "id": 2,
                "prompt": ["s"],
                "response_a": ["a"],
                "response_b": ["b"],
                "winner_model_a": 1,
                "winner_tie": 0,
            },
        ]
    )
    assert (
        good[0]["prompt"] == [USER("q")]
        and good[0]["responses"][0] == [BOT("a"), USER("r"), BOT("c")]
        and good[0]["ranks"] == [1, 1]
    )
    assert good[1]["responses"] == [[BOT("a")], [BOT("b")]]
    assert reasons(load([row, {**row, "response_b": '["b", "d"]'}])) == {"null response_b": 1}
    found = load(
        [
            row | {"response_b": '["b", "d"]'},
            {**row, "prompt": "plain", "response_a": "a", "response_b": "b"},
            row | {"response_b": '["b", "e"]'},
        ]
    )
    assert {k: v["examples"] for k, v in found.report.broken.items()} == {
        "row is not nested as the first rows are": ["row 2: no lists of turns in prompt and responses"]
    }


def test_rows_of_one_response_are_grouped_by_prompt(tmp_path):
    rows = [
        {"prompt": f"q{n // 3}", "response": f"r{n}", "helpfulness": n % 3, "verbosity": 4}
        for n in range(3000)
    ]
    path = jsonl(
        tmp_path / "a.jsonl",
        [
            *rows,
            {"prompt": "alone", "response": "r", "helpfulness": 1},
            {"prompt": "x", "response": "r", "helpfulness": None},
        ],
    )
    found = load(path)
    assert (
        found.report.format == "scored"
        and len(found) == 1000
        and found[999]["responses"] == ["r2999", "r2998", "r2997"]
        and found[999]["scores"] == [2, 1, 0]
    )
    assert (
        reasons(found) == {"only one response to its prompt": 1, "null score": 1}
        and found[1]["origin"] == "a.jsonl:4"
        and "'helpfulness'" in found.report.notes[0]
    )
    assert load(path, num_proc=2).fingerprint == found.fingerprint
    assert load(rows[:3], columns={"score": "verbosity"})[0]["ranks"] == [1, 1, 1]
    assert found.report.rows_read == 3002 and found.report.rows_dropped == 2
    assert "3,000 of 3,002 rows kept in 1,000 records" in str(found.report)


RATED = [{"prompt": f"q {n}", "response": f"r{n}", "score": n / 2} for n in range(40)]


def test_one_rated_response_a_prompt_is_kept_where_nothing_is_compared(tmp_path):
    "And what it is good for is said; among comparisons it is dropped, as before."
    path = jsonl(tmp_path / "a.jsonl", RATED)
    found = load(path)
    assert found.unpaired and len(found) == 40 and not found.report.dropped
    assert found[3] | {"responses": ["r3"], "ranks": [1], "scores": [1.5], "prompt": "q 3"} == found[3]
    stats = found.report.stats
    assert (stats["pairs"], stats["ties"], stats["unpaired"]) == (0, 0, True) and found.select([1]).unpaired
    said = str(found.report)
    assert "no comparison: every prompt has one response" in said and "regression" in said
    verdicts = {verdict.practice: verdict.status for verdict in found.report.verdicts}
    assert verdicts["enough pairs"] == verdicts["clear preference"] == verdicts["length balance"] == "n/a"
    assert found.report.figures() and len(found.to_pairs()) == 0
    assert load(path, num_proc=2).fingerprint == load(RATED).fingerprint == found.fingerprint
    train, held_out = split_by_prompt(found, 0.25)
    assert not set(train.prompt_keys) & set(held_out.prompt_keys) and held_out.unpaired
    found.save(tmp_path / "b.jsonl")
    assert load(tmp_path / "b.jsonl").fingerprint == found.fingerprint
    chat = [row | {"prompt": [USER(row["prompt"])], "response": [BOT(row["response"])]} for row in RATED]
    assert load(chat).unpaired and load(chat)[3]["responses"] == [[BOT("r3")]]
    twice = load([*RATED, RATED[3] | {"score": 2.5}])  # rated by two people
    assert len(twice) == 40 and sorted(record["scores"][0] for record in twice)[4] == 2.0
    mixed = load([*RATED, {"prompt": "q 3", "response": "other", "score": 9}])
    assert len(mixed) == 1 and reasons(mixed) == {"only one response to its prompt": 39}
    assert not mixed.unpaired
    null = load([*RATED, {"prompt": "q", "response": "r", "score": None}])
    assert len(null) == 40 and reasons(null) == {"null score": 1}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "response": "r", "label": True},
        {"prompt": "q", "response": "r", "rank": 1},
        {"prompt": "q", "responses": ["r"], "ranks": [1]},
    ],
)
def test_one_response_without_a_score_teaches_nothing(row):
    with pytest.raises(PreferenceDataError, match="only one response to its prompt|fewer than two responses"):
        load([row | {"prompt": f"q {n}"} for n in range(3)])


def test_a_row_by_itself_is_one_rating_or_nothing():
    "As a stream has it."
    assert to_record(RATED[3])["responses"] == ["r3"] and to_record(RATED[3])["scores"] == [1.5]
    for row in ({"prompt": "q", "response": "r", "label": True}, {"prompt": "q", "response": "r", "rank": 1}):
        with pytest.raises(UnusableRow, match="only one response to its prompt"):
            to_record(row)
    answers = [{"role": "assistant", "text": f"a{n}", "rank": n, "replies": []} for n in range(2)]
    tree = {"role": "prompter", "text": "q", "replies": answers}
    assert to_record({"prompt": tree})["ranks"] == [1, 2]
    answers[0]["replies"] = [{"role": "prompter", "text": "why?", "replies": answers[1:] * 2}]
    with pytest.raises(UnusableRow, match="row is not one ranking by itself"):
        to_record({"prompt": tree | {"replies": [answers[0], answers[1]]}})


def test_lists_of_one_rated_response_are_kept_where_there_are_no_others():
    alone = [{"prompt": f"q {n}", "responses": [f"r{n}"], "scores": [n]} for n in range(5)]
    assert load(alone).unpaired and load(alone)[2]["scores"] == [2]
    two = {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]}
    mixed = load([*alone, two])
    assert len(mixed) == 1 and reasons(mixed) == {"fewer than two responses": 5}
    null = load([*alone, {"prompt": "q", "responses": ["a"], "scores": [None]}])
    assert len(null) == 5 and reasons(null) == {"null score": 1}


def test_the_same_answer_twice_in_a_ranking_is_one_answer():
    "In the data report as in a training: a pair of it counts once, and that is said."
    row = {"responses": ["b", "a", " b", "b"], "ranks": [2, 1, 2, 2], "scores": [1, 3, 1, 1]}
    rows = [row | {"prompt": f"q {n}"} for n in range(3)]
    found = load(rows)
    assert found[0]["responses"] == ["a", "b"] and found[0]["ranks"] == [1, 2]
    assert found[0]["scores"] == [3, 1]
    assert found.report.stats["pairs"] == 3 and len(found.to_pairs()) == 3
    noted = found.report.noted["row with the same response twice, which counts once (kept)"]
    assert noted["count"] == 3
    assert to_record(rows[0])["ranks"] == [1, 2] and "repeated" not in to_record(rows[0])
    chat = to_record(rows[0] | {"prompt": [USER("q")]})
    assert chat["responses"] == [[BOT("a")], [BOT("b")]]
    wrong = rows[0] | {"ranks": [1, 2, 3, 3], "scores": None}
    with pytest.raises(UnusableRow, match="identical responses with different ranks"):
        to_record(wrong)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "data": {}, "annotations": []},
        {"prompt": "q", "response_1": "x", "response_2": "y", "remarks": "z"},
        {"prompt": "q", "text": "a"},
        {"question": "q", "essay": "a", "grade": 1},
    ],
)
def test_a_shape_that_is_not_understood_gets_no_made_up_column(row):
    with pytest.raises(
        PreferenceDataError, match=r"no column for .*; present are .* say columns=\{'\w+': '...'\}"
    ):
        load([row])


def test_one_column_cannot_be_two():
    with pytest.raises(
        PreferenceDataError, match="column 'text' is named twice, for 'prompt' and for 'chosen'"
    ):
        load([{"text": "q", "rejected": "b"}], columns={"prompt": "text", "chosen": "text"})


def test_rankings():
    record = to_record({"prompt": "q", "responses": '["d", "a", "b", "c"]', "scores": "[0, 9.5, 3, 3]"})
    assert (
        record["responses"] == ["a", "b", "c", "d"]
        and record["ranks"] == [1, 2, 2, 3]
        and record["scores"] == [9.5, 3, 3, 0]
    )
    assert to_record({"prompt": "q", "responses": ["a", "b", "c"], "ranks": [0, 4, 4]})["ranks"] == [1, 2, 2]
    for change, reason in [
        ({"responses": ["a"]}, "fewer than two"),
        ({"ranks": [1]}, "differ in number"),
        ({"responses": ["a", None]}, "null response"),
        ({"responses": ["a", "a"]}, "identical responses"),
        ({"responses": "a"}, "not a list"),
        ({"ranks": [1, "x"]}, "rank is not a finite number"),
        ({"responses": None}, "null responses"),
        ({"ranks": None}, "null ranks"),
    ]:
        row = {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]} | change
        if change == {"responses": ["a"]}:
            row["ranks"] = [1]
        with pytest.raises(UnusableRow, match=reason):
            to_record(row)
    disagreeing = load([{"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2], "scores": [0, 1]}])
    assert len(disagreeing) == 1 and any(
        reason.startswith("scores disagree") for reason in disagreeing.report.noted
    )


# ---------------------------------------------------------------- conversations


def test_turns_begin_only_after_a_blank_line():
    text = '\n\nHuman: She wrote "Human: no"\nAssistant: this is a quote\n\nAssistant: Human: yes'
    assert Row.parse_transcript(text) == [
        USER('She wrote "Human: no"\nAssistant: this is a quote'),
        BOT("Human: yes"),
    ]
    with pytest.raises(UnusableRow, match="not a transcript"):
        Row.parse_transcript("Hello\n\nHuman: a\n\nAssistant: b")
    with pytest.raises(UnusableRow, match="not a transcript"):
        Row.parse_transcript("")


@pytest.mark.parametrize(
    "template",
    [
        "Human: {q}\nAssistant: {a}",
        "\r\n\r\nHuman: {q}\r\n\r\nAssistant: {a}\r\n",
        "\n\nHuman: {q} \n\n  Assistant: {a}",
        "\n\nHuman: {q}\n\n\n\nAssistant: {a}",
        "Human:{q}\n \nAssistant :{a}",
        "  Human: {q}\r\nAssistant: {a}",
    ],
)
def test_transcripts_as_people_type_them(template):
    found = load(
        [
            {"chosen": template.format(q=q, a="a"), "rejected": template.format(q=q, a="b")}
            for q in ("q", 'Is it "Human: x"?')
        ]
    )
    assert (
        found.report.format == "transcript"
        and found[0]["prompt"] == [USER("q")]
        and found[0]["responses"] == [[BOT("a")], [BOT("b")]]
    )
    assert found[1]["prompt"] == [USER('Is it "Human: x"?')] and found.report.notes == []


def test_a_transcript_may_begin_with_a_system_turn():
    found = load(
        [
            {
                "chosen": f"System: Be {n}.\n\nHuman: q\n\nAssistant: a",
                "rejected": f"System: Be {n}.\n\nHuman: q\n\nAssistant: b",
            }
            for n in range(2)
        ]
    )
    assert found[1]["prompt"] == [{"role": "system", "content": "Be 1."}, USER("q")] and found[1][
        "responses"
    ][0] == [BOT("a")]
    late = Row.parse_transcript("\n\nHuman: q\n\nSystem: x\n\nAssistant: a")
    assert late == [USER("q\n\nSystem: x"), BOT("a")]


def test_a_transcript_as_the_prompt_of_a_ranking():
    record = to_record(
        {
            "prompt": "\n\nHuman: q\n\nAssistant: ",
            "answers": [{"answer": "b", "rank": 2}, {"answer": "a", "rank": 1}],
        }
    )
    assert record["prompt"] == [USER("q")] and record["responses"] == [[BOT("a")], [BOT("b")]]


def transcript(*turns):
    return "".join(
        f"\n\n{speaker}: {text}" for speaker, text in zip(["Human", "Assistant"] * 9, turns, strict=False)
    )


@pytest.mark.parametrize(
    "chosen,rejected,prompt,responses",
    [
        (transcript("q", "a"), transcript("q", "b"), [USER("q")], [[BOT("a")], [BOT("b")]]),
        (
            transcript("q", "a", "r", "c"),
            transcript("q", "a", "r", "d"),
            [USER("q"), BOT("a"), USER("r")],
            [[BOT("c")], [BOT("d")]],
        ),
        (
            transcript("q", "a", "r", "c"),
            transcript("q", "b"),
            [USER("q")],
            [[BOT("a"), USER("r"), BOT("c")], [BOT("b")]],
        ),
        (
            transcript("q", "a", "r", "c"),
            transcript("q", "a"),
            [USER("q")],
            [[BOT("a"), USER("r"), BOT("c")], [BOT("a")]],
        ),
        (transcript("q", "a", ""), transcript("q", "b"), [USER("q")], [[BOT("a")], [BOT("b")]]),
    ],
)
def test_transcript_pairs(chosen, rejected, prompt, responses):
    record = to_record({"chosen": chosen, "rejected": rejected})
    assert record["prompt"] == prompt and record["responses"] == responses


@pytest.mark.parametrize(
    "chosen,rejected,reason",
    [
        (transcript("q", ""), transcript("q", "b"), "empty chosen"),
        (
            transcript("q", "a", "thanks"),
            transcript("q", "b"),
            "chosen does not end with the assistant's turn",
        ),
        (transcript("q", "a"), transcript("other", "b"), "the responses answer different prompts"),
        (
            transcript("q", "a", "r", "b"),
            transcript("q", "a", "s", "c"),
            "the responses answer different prompts",
        ),
        (transcript("q", "a"), transcript("q", "a "), "chosen is identical to rejected"),
    ],
)
def test_transcript_pairs_that_cannot_be_used(chosen, rejected, reason):
    with pytest.raises(UnusableRow) as error:
        to_record({"chosen": chosen, "rejected": rejected})
    assert error.value.reason == reason


def test_a_transcript_as_prompt_with_bare_responses():
    record = to_record(
        {"prompt": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:", "chosen": " x", "rejected": " y"}
    )
    assert record["prompt"] == [USER("q"), BOT("a"), USER("r")] and record["responses"] == [
        [BOT("x")],
        [BOT("y")],
    ]


CONVERSATIONAL = [
    {"prompt": [USER("q")], "chosen": [BOT("a")], "rejected": [BOT("b")]},
    {"prompt": [USER("q")], "chosen": [USER("q"), BOT("a")], "rejected": [USER("q"), BOT("b")]},
    {"chosen": [USER("q"), BOT("a")], "rejected": [USER("q"), BOT("b")]},
    {"prompt": "q", "chosen": [USER("q"), BOT("a")], "rejected": [USER("q"), BOT("b")]},
    {"prompt": "q", "chosen": [BOT("a")], "rejected": [BOT("b")]},
    {"prompt": [USER("q")], "chosen": "a", "rejected": "b"},
    {"prompt": [USER("q")], "chosen": BOT("a"), "rejected": BOT("b")},
    {"messages": [USER("q")], "chosen": BOT("a"), "rejected": BOT("b")},
    {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
    {"prompt": [USER("q")], "responses": [[BOT("b")], [BOT("a")]], "scores": [1, 2]},
    {"conversation_a": [USER("q"), BOT("b")], "conversation_b": [USER("q"), BOT("a")], "winner": "model_b"},
]


@pytest.mark.parametrize("row", CONVERSATIONAL, ids=range(len(CONVERSATIONAL)))
def test_conversations_in_every_shape_are_the_same_record(row, tmp_path):
    record = to_record(row)
    assert (
        record["prompt"] == [USER("q")]
        and record["responses"] == [[BOT("a")], [BOT("b")]]
        and record["ranks"] == [1, 2]
    )
    cells = {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}
    pd.DataFrame([cells]).to_csv(tmp_path / "a.csv", index=False)
    assert load(tmp_path / "a.csv")[0]["responses"] == record["responses"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.json"])
def test_messages_stored_as_text(tmp_path, name):
    rows = [
        {
            "prompt": f"q{n}",
            "chosen": json.dumps([USER(f"q{n}"), BOT("a")]),
            "rejected": json.dumps([USER(f"q{n}"), BOT("b")]),
        }
        for n in range(3)
    ]
    WRITERS[name](tmp_path / name, rows)
    found = load(tmp_path / name)
    assert (
        found.report.format == "messages"
        and found[2]["prompt"] == [USER("q2")]
        and found[2]["responses"] == [[BOT("a")], [BOT("b")]]
    )


def test_text_that_only_looks_like_messages_stays_text():
    for text in (
        '[{"role": "user"}]',
        '{"role": "user", "content": "x"',
        '[{"role": "user", "content": "x"}] is JSON',
        "[{'role': 1}",
        "{'a': 'b'}",
        '[{"role": "user", "content": "x"}, 1]',
    ):
        try:
            assert to_record({"prompt": "q", "chosen": text, "rejected": "b"})["responses"][0] == text
        except UnusableRow as error:
            assert error.reason.endswith("not as JSON") and text.startswith("[{'role'")


def test_messages_written_by_str_are_refused_never_evaluated(tmp_path):
    bad = pd.DataFrame(
        [{"prompt": "q", "chosen": [USER("q"), BOT("it's")], "rejected": [USER("q"), BOT("b")]}] * 2
    )
    bad.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(
        PreferenceDataError,
        match=(
            r"^a.csv: none .* chosen is written by Python's str\(\), not as JSON 2; first: a.csv:2: write"
            r" messages with json.dumps"
        ),
    ) as error:
        load(tmp_path / "a.csv")
    assert "\n" not in str(error.value)
    found = load([*pairs(3), {"prompt": "q", "chosen": f"[{BOT('x')}\n {BOT('y')}]", "rejected": "b"}])
    assert (
        list(found.report.broken) == ["chosen is written by Python's str(), not as JSON"] and len(found) == 3
    )


@pytest.mark.parametrize(
    "row",
    [
        {"system": "s", "prompt": "q", "chosen": "a", "rejected": "b"},
        {"system_prompt": "s", "chosen": [USER("q"), BOT("a")], "rejected": [USER("q"), BOT("b")]},
        {
            "system": " s ",
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        {"system": "s", "chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {
            "system": "s",
            "prompt": [{"role": "System", "content": "s"}, {"role": "User", "content": "q"}],
            "chosen": "a",
            "rejected": "b",
        },
        {"system": "s", "question": "q", "response_a": "a", "response_b": "b", "label": "a"},
    ],
)
def test_a_system_column_is_the_first_turn(row):
    found = load([row])
    assert found[0]["prompt"] == [{"role": "system", "content": "s"}, USER("q")] and found[0][
        "responses"
    ] == [[BOT("a")], [BOT("b")]]
    assert "first turn" in found.report.notes[-1]


def test_a_system_column_without_use():
    row = {"system": "", "prompt": "q", "chosen": "a", "rejected": "b"}
    found = load([row])
    assert found.kind == "text" and found.report.notes == [
        "the column 'system' is not used, since it is empty in the first rows"
    ]
    mixed = load([row, row | {"system": "s"}])
    assert mixed[0]["prompt"] == [USER("q")] and mixed[1]["prompt"][0]["role"] == "system"
    full = load([{"system": "s", "chosen": "a text", "rejected": "b text"}], columns={"prompt": None})
    assert (
        full.kind == "text"
        and full.report.notes[-1] == "the column 'system' is not used: full texts have no place for it"
    )


@pytest.mark.parametrize(
    "user,bot", [("User", "Assistant"), ("Human", "ASSISTANT"), ("human", "GPT"), (" user", "Bot")]
)
def test_roles_in_any_case(user, bot):
    record = to_record(
        {
            "chosen": [{"role": user, "content": "q"}, {"role": bot, "content": "a"}],
            "rejected": [{"role": user, "content": "q"}, {"role": bot, "content": "b"}],
        }
    )
    assert record["prompt"] == [USER("q")] and record["responses"] == [[BOT("a")], [BOT("b")]]


def test_the_note_about_full_texts_is_true():
    for row in CONVERSATIONAL:
        assert load([row]).report.notes == []
    full = [{"chosen": "Name a prime. a", "rejected": "Name a prime. b"}]
    assert "full texts" in load(full).report.notes[0]


@pytest.mark.parametrize(
    "change,reason",
    [
        ({"prompt": "another"}, "the prompt is not among the shared turns"),
        ({"chosen": [USER("q"), BOT(" ")]}, "empty chosen"),
        ({"chosen": []}, "empty chosen"),
        ({"chosen": ["a"]}, "chosen is not a list of messages"),
        (
            {"chosen": [USER("q"), {"role": "assistant", "content": [{"type": "image"}]}]},
            "chosen has content that is not text",
        ),
        ({"chosen": [USER("q"), {"role": "assistant", "content": None}]}, "null chosen"),
        ({"chosen": [USER("q"), BOT("a"), USER("r")]}, "chosen does not end with the assistant's turn"),
    ],
)
def test_conversations_that_cannot_be_used(change, reason):
    row = {"prompt": "q", "chosen": [USER("q"), BOT("a")], "rejected": [USER("q"), BOT("b")]} | change
    with pytest.raises(UnusableRow) as error:
        to_record(row, origin="row 3")
    assert error.value.reason == reason and str(error.value).startswith("row 3: ")


def test_text_among_conversations_is_lifted_and_the_other_way_round_set_aside():
    text, chat = {"prompt": "r", "chosen": "x", "rejected": "y"}, CONVERSATIONAL[0]
    found = load([chat, text])
    assert found[1]["prompt"] == [USER("r")] and found[1]["responses"] == [[BOT("x")], [BOT("y")]]
    assert any(reason.startswith("plain text turned into messages") for reason in found.report.noted)
    found = load(pairs(1200) + [chat])
    assert found.kind == "text" and reasons(found) == {"conversation in plain-text data": 1}


def test_tool_calls_and_template_arguments_survive(tmp_path):
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
    }
    rows = [
        {
            "prompt": [USER("1 + 1?")],
            "chosen": [call],
            "rejected": [BOT("3")],
            "tools": [{"name": "add"}],
            "chat_template_kwargs": {"enable_thinking": False},
        },
        {"prompt": [USER("2 + 1?")], "chosen": [BOT("3")], "rejected": [BOT("4")]},
    ]
    found = load(rows)
    assert found[0]["responses"][0] == [
        {"role": "assistant", "content": "", "tool_calls": call["tool_calls"]}
    ]
    assert json.loads(found[0]["tools"]) == [{"name": "add"}] and json.loads(
        found[0]["chat_template_kwargs"]
    ) == {"enable_thinking": False}
    assert "tools" not in found[1] and found[1]["responses"][0] == [BOT("3")]
    found.save(tmp_path / "a.jsonl")
    again = load(tmp_path / "a.jsonl")
    assert list(again)[0]["responses"] == found[0]["responses"] and again.fingerprint == found.fingerprint
    assert found.to_pairs()[0]["chosen"][0]["tool_calls"][0]["function"]["arguments"] == {"a": 1}


def test_system_and_unknown_roles():
    assert as_messages(
        [
            {"role": "system", "content": "s"},
            {"from": "human", "value": ""},
            {"role": "narrator", "content": "n"},
        ]
    ) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": ""},
        {"role": "narrator", "content": "n"},
    ]


# ---------------------------------------------------------------- Preferences


def test_pairs_for_trl():
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2, "weight": 0.5, "source": "s"},
        {"prompt": "r", "chosen": "a", "rejected": "b"},
    ]
    found = load(rows).to_pairs()
    assert found[0] == {
        "prompt": "q",
        "chosen": "a",
        "rejected": "b",
        "weight": 0.5,
        "id": load(rows)[0]["id"],
        "margin": 2.0,
        "source": "s",
    }
    assert found[1]["margin"] == 0.0
    assert set(load(pairs(2)).to_pairs().column_names) == {"prompt", "chosen", "rejected", "weight", "id"}
    chat = load(CONVERSATIONAL[:1]).to_pairs()
    assert chat[0]["prompt"] == [USER("q")] and chat[0]["chosen"] == [BOT("a")]


def test_selecting_keeps_the_measures():
    found = load(pairs(50, prompts=7))
    part = found.select([40, 3, 3, 12])
    fresh = Preferences(part.dataset)
    assert part.fingerprint == fresh.fingerprint and np.array_equal(part.prompt_keys, fresh.prompt_keys)
    assert part.report.lengths == fresh.report.lengths and part.report.stats == fresh.report.stats
    assert (
        [r["origin"] for r in part]
        == ["row 41", "row 4", "row 4", "row 13"]
        == [part[i]["origin"] for i in range(4)]
    )
    ranked = load(
        [
            {"prompt": f"{i}", "responses": list("abcde")[: 2 + i], "scores": list(range(2 + i))}
            for i in range(4)
        ]
    ).select([3, 1])
    assert len(ranked.measures["responses"]) == 5 + 3 and ranked.measures["pairs"].sum() == 10 + 3


def test_ids_and_fingerprints_depend_on_content_only(tmp_path):
    rows = pairs(5)
    path = jsonl(tmp_path / "a.jsonl", rows)
    a, b = load(rows), load(path)
    assert a.fingerprint == b.fingerprint and [r["id"] for r in a] == [r["id"] for r in b]
    assert (
        load(rows[::-1]).fingerprint
        != a.fingerprint
        != load([rows[0] | {"weight": 2}, *rows[1:]]).fingerprint
    )
    code = (
        "from reward_kit.data.preferences import load_preferences; import sys;"
        " print(load_preferences(sys.argv[1]).fingerprint)"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, path],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert other.stdout.strip() == a.fingerprint, other.stderr
    assert load([rows[0] | {"id": 17}])[0]["id"] == "17"


def test_large_data_moves_to_a_file_and_stays_the_same(tmp_path, monkeypatch):
    rows = pairs(2500)
    expected = load(rows)
    monkeypatch.setattr(data, "_IN_MEMORY", 1 << 16)
    found = load(rows, cache_dir=tmp_path)
    assert len(list(tmp_path.rglob("*.arrow"))) == 1 and list(found) == list(expected)
    assert found.fingerprint == expected.fingerprint
    for wrong in ({"prompt": None, "chosen": "a", "rejected": "b"}, "no row"):
        with pytest.raises(PreferenceDataError):
            load([*rows, wrong], cache_dir=tmp_path / "other", strict=True)


def test_large_data_leaves_nothing_behind(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", pairs(2500))
    code = (
        "import sys; from pathlib import Path; from reward_kit.data import preferences as data;"
        " data._IN_MEMORY = 1 << 16; found = data.load_preferences(sys.argv[1], cache_dir=sys.argv[2]);"
        " print(len(found), len(list(Path(sys.argv[2]).rglob('*.arrow'))))"
    )
    command = [sys.executable, "-c", code, path, tmp_path / "cache"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["2500", "1"]
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.name != "reward_kit"]


def test_several_processes_give_the_same(tmp_path):
    rng = random.Random(0)
    lines = [json.dumps(row) for row in pairs(5000)]
    for n in range(0, 5000, 97):
        lines[n] = rng.choice(["{broken", '{"prompt": "p", "chosen": "", "rejected": "b"}', lines[n - 1]])
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    one, two = load(path), load(path, num_proc=2)
    assert (
        one.fingerprint == two.fingerprint
        and one.report.dropped == two.report.dropped
        and list(one)[77] == list(two)[77]
    )
    (tmp_path / "bad.jsonl").write_bytes(path.read_bytes() + b"\n\xff\n")
    with pytest.raises(PreferenceDataError, match="bad.jsonl:5001: not UTF-8"):
        load(tmp_path / "bad.jsonl", num_proc=2)


def test_memory_does_not_grow_with_the_texts(tmp_path):
    "Reading 180 MB of text must take far less than that on top of the imports."
    path = tmp_path / "big.jsonl"
    with open(path, "w") as file:
        for n in range(12_000):
            file.write(
                json.dumps(
                    {
                        "prompt": f"p{n} " + "x" * 5000,
                        "chosen": f"c{n} " + "y" * 5000,
                        "rejected": f"r{n} " + "z" * 5000,
                    }
                )
                + "\n"
            )
    assert path.stat().st_size > 180e6
    code = (
        "import sys; from reward_kit.data.preferences import load_preferences\ndef used(): return int([l for"
        " l in open('/proc/self/status') if l.startswith('RssAnon')][0].split()[1]) / 1024\nbefore = used();"
        " p = load_preferences(sys.argv[1], cache_dir=sys.argv[2], progress=False); print(len(p), used() -"
        " before)"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc to read the memory from")
    out = subprocess.run(
        [sys.executable, "-c", code, path, tmp_path], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(out[0]) == 12_000 and float(out[1]) < 110


# ---------------------------------------------------------------- the report


def test_report_shows_itself():
    found = load(pairs(30) + [{"prompt": "<b>|", "chosen": None, "rejected": "x"}] * 4)
    report = found.report
    text, markdown, page = str(report), report.to_markdown(), report._repr_html_()
    assert (
        "threshold" in markdown
        and "threshold" in page
        and "threshold" not in text
        and max(map(len, text.split("Practices")[1].splitlines())) < 110
    )
    for part in ("rows dropped", "null chosen", "row 31; row 32; row 33", "enough pairs"):
        assert part in text and part in markdown and part in page
    assert "<script" not in page and page.count("<table") == page.count("</table>") >= 4
    tables = [[row for row in block.splitlines() if row.startswith("|")] for block in markdown.split("\n\n")]
    assert all(len({len(re.findall(r"(?<!\\)\|", row)) for row in table}) == 1 for table in tables if table)
    assert json.loads(json.dumps(report.to_dict()))["rows_dropped"] == 4
    axes = report.plot().axes[0]
    assert axes.get_xlabel() == "longer one chosen (%)" and len(axes.get_yticks()) == 5


def test_report_of_ties_only_and_of_one_record():
    for rows in ([{"prompt": "q", "response_a": "x", "response_b": "y", "label": "tie"}], pairs(1)):
        report = load(rows).report
        assert str(report) and report.plot() and report.to_dict()
    assert (
        load([{"prompt": "q", "response_a": "x", "response_b": "y", "label": "tie"}]).report.longer_is_chosen
        is None
    )


@pytest.mark.parametrize(
    "practice,rows,status",
    [
        ("enough pairs", pairs(1000), "ok"),
        ("enough pairs", pairs(999), "warn"),
        ("enough pairs", pairs(199), "fail"),
        ("diverse prompts", pairs(400, 100), "ok"),
        ("diverse prompts", pairs(400, 50), "warn"),
        ("diverse prompts", pairs(400, 20), "fail"),
        ("diverse responses", pairs(100), "ok"),
        (
            "diverse responses",
            [{"prompt": f"q{i}", "chosen": "Yes, it is.", "rejected": "No, it is not."} for i in range(100)],
            "fail",
        ),
        (
            "no repeated response",
            [{"prompt": f"q{i}", "chosen": f"Yes {i}", "rejected": "No."} for i in range(100)],
            "fail",
        ),
        (
            "clear preference",
            [
                {
                    "prompt": f"q{i}",
                    "chosen": " ".join("abcdefghij") + f" {i}",
                    "rejected": " ".join("abcdefghij") + f" -{i}",
                }
                for i in range(9)
            ],
            "fail",
        ),
        (
            "length balance",
            [{"prompt": f"q{i}", "chosen": f"a longer one {i}", "rejected": f"{i}"} for i in range(100)],
            "fail",
        ),
        (
            "length balance",
            [{"prompt": f"q{i}", "chosen": f"a longer one {i}", "rejected": f"{i}"} for i in range(3)],
            "ok",
        ),
        (
            "position balance",
            [{"prompt": f"q{i}", "response_a": "x", "response_b": "y", "label": "a"} for i in range(100)],
            "fail",
        ),
        (
            "position balance",
            [
                {"prompt": f"q{i}", "response_a": "x", "response_b": "y", "label": "ab"[i % 2]}
                for i in range(100)
            ],
            "ok",
        ),
        ("position balance", pairs(50), "n/a"),
        ("source balance", [row | {"source": "ab"[n % 2]} for n, row in enumerate(pairs(50))], "ok"),
        (
            "source balance",
            [row | {"source": "b" if n == 7 else "a"} for n, row in enumerate(pairs(50))],
            "fail",
        ),
        ("no duplicates", pairs(80) + pairs(20), "fail"),
        (
            "no contradictions",
            pairs(80)
            + [{"prompt": r["prompt"], "chosen": r["rejected"], "rejected": r["chosen"]} for r in pairs(3)],
            "fail",
        ),
        ("no dropped rows", pairs(80) + [{"prompt": "q", "chosen": "", "rejected": ""}] * 2, "warn"),
    ],
)
def test_each_verdict_turns(practice, rows, status):
    assert {v.practice: v.status for v in load(rows).report.verdicts}[practice] == status


def test_lengths_with_a_tokenizer():
    def characters(texts, add_special_tokens):
        return {"input_ids": [list(t) for t in texts]}

    report = load([{"prompt": "abc", "chosen": "abcde", "rejected": "ab"}], tokenizer=characters).report
    assert [report.lengths[k]["max"] for k in ("prompt", "chosen", "rejected")] == [
        3,
        5,
        2,
    ] and "tokens of" in report.token_unit


# ---------------------------------------------------------------- splits


def test_splits_share_no_prompt_and_depend_on_the_seed_only():
    rows = [
        row | {"prompt": row["prompt"].upper() if n % 3 else f"  {row['prompt']} "}
        for n, row in enumerate(pairs(600, prompts=90))
    ]
    found, shuffled = load(rows), load(random.Random(1).sample(rows, len(rows)))
    for fraction in (0.05, 0.3, 0.9):
        train, held = split_by_prompt(found, fraction, seed=3)
        assert len(train) + len(held) == 600 and abs(len(held) - 600 * fraction) <= 7
        assert prompt_overlap(train, held)["shared"] == 0 == prompt_overlap(held, train)["records"]
        assert {prompt_key(r["prompt"]) for r in split_by_prompt(shuffled, fraction, seed=3)[1]} == {
            prompt_key(r["prompt"]) for r in held
        }
    counts = collections.Counter(r["id"] for _, held in kfold_by_prompt(found, 5, seed=1) for r in held)
    assert len(counts) == 600 and set(counts.values()) == {1}


def test_a_dominant_prompt_does_not_break_the_split():
    found = load([{"prompt": "same", "chosen": f"a{i}", "rejected": "b"} for i in range(95)] + pairs(5))
    train, held = split_by_prompt(found, 0.1)
    assert 1 <= len(held) <= 5 and prompt_overlap(train, held)["shared"] == 0
    train, held = split_by_prompt(
        load([{"prompt": p, "chosen": f"a{i}", "rejected": "b"} for i in range(9) for p in "xy"]), 0.1
    )
    assert len(train) == len(held) == 9


def test_texts_without_prompt_are_split_by_their_responses():
    rows = [{"chosen": f"{i} a", "rejected": f"{i} b"} for i in range(40)] + [
        {"chosen": f"{i} b", "rejected": f"{i} a"} for i in range(40)
    ]
    train, held = split_by_prompt(load(rows, columns={"prompt": None}), 0.25)
    number = lambda part: {r["responses"][0].split()[0] for r in part}
    assert len(held) == 20 and not number(train) & number(held)


def test_full_texts_are_split_by_what_both_sides_begin_with():
    "Also where the responses to one prompt share more words in one record than in another."
    ends = [
        ("It is good.", "No idea."),
        ("It is good.", "It is bad."),
        ("The best of all is it.", "The worst is it."),
        ("no IDEA at all", "It is fine"),
    ]
    questions = [f"Tell me about {noun} number {n}" for n in range(30) for noun in ("rivers", "kilns")]
    rows = [{"chosen": f"{q} {a}", "rejected": f"{q} {b}"} for q in questions for a, b in ends]
    found = load(random.Random(0).sample(rows, len(rows)))
    number = lambda part: {" ".join(r["responses"][0].split()[:6]) for r in part}
    train, held = split_by_prompt(found, 0.25)
    assert (
        found.report.stats["prompts"] == 60
        and len(held) == 60
        and len(number(held)) == 15
        and not number(train) & number(held)
    )
    assert prompt_overlap(train, held)["shared"] == 0 and prompt_overlap(found, held) == {
        "shared": 15,
        "prompts": 15,
        "records": 60,
    }
    assert "begin with" in found.report.notes[0]


def test_a_common_preamble_is_not_a_prompt():
    preamble = "Below is an instruction. Write an answer."
    rows = [
        {"chosen": f"{preamble} Count to {n}. {n}", "rejected": f"{preamble} Count to {n}. No."}
        for n in range(100)
    ]
    rows.append({"chosen": f"{preamble} One", "rejected": f"{preamble} Two"})
    assert load(rows).report.stats["prompts"] == 101 and len(split_by_prompt(load(rows), 0.1)[1]) == 10


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize(
    "rows",
    [
        pairs(4),
        CONVERSATIONAL[:1],
        [{"chosen": "Name a prime. a", "rejected": "Name a prime. b"}],
        [{"prompt": "q", "responses": ["c", "a", "b"], "scores": [1, 2, 2]}, *pairs(2)],
        [
            {
                "prompt": "q",
                "chosen": "a",
                "rejected": "b",
                "margin": 1.5,
                "weight": 0.25,
                "source": "s",
                "score_chosen": 5,
                "score_rejected": 4,
            }
        ],
        [{"chosen": transcript("q", "a", "r", "c"), "rejected": transcript("q", "b")}],
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_round_trip(tmp_path, rows, name):
    found = load(rows)
    assert found.save(tmp_path / name) == len(found) == save_preferences(iter(rows), tmp_path / f"b{name}")
    again = load(tmp_path / name, strict=True)
    strip = lambda records: [{k: v for k, v in r.items() if k != "origin"} for r in records]
    assert (
        strip(again) == strip(found) == strip(load(tmp_path / f"b{name}"))
        and again.fingerprint == found.fingerprint
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_append(tmp_path, name):
    for row in pairs(4):
        assert save_preferences([row], tmp_path / name, append=True) == 1
    assert load(tmp_path / name).fingerprint == load(pairs(4)).fingerprint


def test_append_after_an_interrupted_write(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", pairs(2))
    path.write_bytes(path.read_bytes() + b'{"prompt": "half')
    save_preferences(pairs(4)[3:], path, append=True)
    found = load(path)
    assert len(found) == 3 and found.report.dropped["malformed JSON"]["examples"][0].startswith("a.jsonl:3")


def test_nothing_is_written_when_a_row_is_wrong(tmp_path):
    path = tmp_path / "a.jsonl"
    with pytest.raises(PreferenceDataError, match="^row 3: chosen is identical"):
        save_preferences([*pairs(2), {"prompt": "q", "chosen": "a", "rejected": "a"}], path)
    with pytest.raises(PreferenceDataError, match="^row 1: not a dict"):
        save_preferences(["a"], path)
    with pytest.raises(PreferenceDataError, match="^row 2: no column for 'rejected'"):
        save_preferences([*pairs(1), {"prompt": "q", "chosen": "a"}], path, append=True)
    assert list(tmp_path.iterdir()) == []
    path.write_text("")
    with pytest.raises(PreferenceDataError, match="cannot be written"):
        save_preferences(pairs(1), path / "b.jsonl")


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", pairs(3))
    code = (
        "import sys, time; from reward_kit.data.preferences import save_preferences\n"
        "def rows():\n"
        "    for n in range(10**9):\n"
        "        if n == 2000: print('half', flush=True)\n"
        "        yield {'prompt': f'{n}', 'chosen': f'a{n}', 'rejected': 'b'}\n"
        "save_preferences(rows(), sys.argv[1])"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "half\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    time.sleep(0.1)
    assert load(path, strict=True).fingerprint == load(pairs(3)).fingerprint


# ---------------------------------------------------------------- real files


@pytest.mark.skipif(not HH.exists(), reason="the real transcripts are not beside this repository")
def test_real_transcripts():
    found = load(HH)
    assert found.report.format == "transcript" and found.kind == "messages" and found.report.rows_read == 2312
    assert len(found) == 2308 and reasons(found) == {"empty chosen": 4}
    assert all(r["prompt"] and r["prompt"][0]["role"] == "user" for r in found)
    assert all(t[-1]["role"] == "assistant" and t[-1]["content"] for r in found for t in r["responses"])
    assert all(
        a["role"] != b["role"]
        for r in found
        for t in r["responses"]
        for a, b in zip([*r["prompt"], *t], [*r["prompt"], *t][1:], strict=False)
    )
    with gzip.open(HH, "rt") as lines:
        first = json.loads(next(lines))
    text = lambda turns: "".join(
        f"\n\n{'Human' if t['role'] == 'user' else 'Assistant'}: {t['content']}" for t in turns
    )
    assert [text(found[0]["prompt"] + r) for r in found[0]["responses"]] == [
        first["chosen"],
        first["rejected"],
    ]
    train, held = split_by_prompt(found, 0.2, seed=0)
    assert prompt_overlap(train, held)["shared"] == 0 and 400 < len(held) < 520


@pytest.mark.skipif(not DEMO.exists(), reason="the real conversations are not beside this repository")
def test_real_sharegpt():
    found = load(DEMO)
    assert (
        found.report.format == "sharegpt"
        and found.report.rows_read == 300
        and reasons(found) == {"exact duplicate": 5}
    )
    assert {t["role"] for r in found for t in r["prompt"]} == {"system", "user", "assistant"}


# ---------------------------------------------------------------- Label Studio


def task(*selected, **control):
    "A Label Studio task with one annotation for each answer; an annotation without an answer was cancelled."
    results = [
        {
            "was_cancelled": word is None,
            "result": [
                control | {"from_name": "pw", "type": "pairwise", "value": {"selected": word or "left"}}
            ],
        }
        for word in selected
    ]
    return {
        "id": 7,
        "data": {"prompt": "Name a prime.", "answer1": "Nine.", "answer2": "Seven.", "topic": "numbers"},
        "annotations": results,
        "predictions": [],
    }


@pytest.mark.parametrize(
    ("selected", "best", "ranks"),
    [
        (["right"], "Seven.", [1, 2]),
        (["left", None, None], "Nine.", [1, 2]),
        (["right", "left", "right"], "Seven.", [1, 2]),
        (["left", "right"], "Nine.", [1, 1]),
    ],
)
def test_label_studio_tasks(selected, best, ranks):
    record = to_record(task(*selected))
    assert (record["prompt"], record["responses"][0], record["ranks"], record["id"]) == (
        "Name a prime.",
        best,
        ranks,
        "7",
    )


def test_label_studio_other_controls_and_the_short_export():
    choice = lambda name, word: {"from_name": name, "type": "choices", "value": {"choices": [word]}}
    row = task("left") | {"annotations": [{"result": [choice("better", "tie")]}]}
    assert to_record(row)["ranks"] == [1, 1]
    row["annotations"][0]["result"].append(choice("polite", "answer2"))
    with pytest.raises(PreferenceDataError):
        to_record(row)  # two questions: which one is meant?
    assert to_record(row, columns={"label": "polite"})["responses"] == ["Seven.", "Nine."]
    row["annotations"][0]["result"].append({"from_name": "pw", "value": {"selected": "left"}})
    assert to_record(row, columns={"label": "pw"})["responses"] == ["Nine.", "Seven."]
    assert to_record({"id": 1, "prompt": "p", "text1": "x", "text2": "y", "pw": [{"selected": "right"}]})[
        "responses"
    ] == ["y", "x"]


def test_label_studio_tasks_that_nobody_answered_are_counted(tmp_path):
    path = tmp_path / "export.json"
    path.write_text(
        json.dumps(
            [
                task("right"),
                task(),
                task(None),
                task("left") | {"data": {"prompt": "q", "answer1": "x", "answer2": "y"}},
            ]
        ),
        encoding="utf-8",
    )
    preferences = load_preferences(path, progress=False)
    assert len(preferences) == 2 and preferences.report.rows_read == 4, preferences.report


# --- conversations and groups that do not fit together --------------------------------------------

USER_A, USER_B, YES, NO = (
    {"role": "user", "content": "A?"},
    {"role": "user", "content": "B?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "assistant", "content": "No."},
)


@pytest.mark.parametrize(
    "chosen, rejected", (([USER_B, YES], [USER_B, NO]), ([USER_A, YES], [USER_B, NO]), ([USER_B, YES], [NO]))
)
def test_a_prompt_of_messages_must_begin_the_conversations(chosen, rejected):
    with pytest.raises(UnusableRow, match="the prompt is not at the start of the responses"):
        to_record({"prompt": [USER_A], "chosen": chosen, "rejected": rejected})


def test_a_system_prompt_beside_full_conversations_is_joined_with_what_they_share():
    system = {"role": "system", "content": "Be brief."}
    record = to_record({"prompt": [system], "chosen": [USER_A, YES], "rejected": [USER_A, NO]})
    assert record["prompt"] == [system, USER_A] and record["responses"] == [[YES], [NO]]
    assert record == to_record(
        {"prompt": [system, USER_A], "chosen": [system, USER_A, YES], "rejected": [system, USER_A, NO]}
    ) | {"id": record["id"]}


@pytest.mark.parametrize("cell", (5, True, 1.5))
def test_a_number_for_a_conversation_sets_its_row_aside(cell):
    good = {"prompt": [USER_A], "chosen": [YES], "rejected": [NO]}
    report = load_preferences([good, good | {"prompt": [USER_B], "rejected": cell}], progress=False).report
    assert report.rows_kept == 1 and report.dropped["rejected is not text"]["count"] == 1 and report.broken


def test_weight_and_margin_of_scored_rows_are_those_of_their_prompt():
    rows = [
        {"prompt": p, "response": f"{p} {s}", "score": s, "weight": w}
        for p, s, w in (("a", 1, 2.0), ("a", 3, 2.0), ("b", 1, 0.5), ("b", 2, 4.0))
    ]
    preferences = load_preferences(rows, progress=False)
    assert [record["weight"] for record in preferences] == [2.0]
    assert preferences.report.dropped["rows of one prompt have different weights"]["count"] == 2


# ---------------------------------------------------------------- one truth, one reading, one registry

CARRIED = {
    "tool_calls": [
        {"id": "c", "function": {"name": "add", "arguments": {"a": 0.12345678901234566, "b": [None, {}]}}}
    ],
    "reasoning_content": "é\u2028",
    "name": "Ada",
}
ANSWER = {"role": "tool", "content": "2", "tool_call_id": "c"}


def test_a_message_keeps_all_it_carries_wherever_it_lies(tmp_path):
    rows = [
        {"prompt": [USER("1 + 1?")], "chosen": [BOT("") | CARRIED, ANSWER, BOT("2")], "rejected": [BOT("3")]},
        {"prompt": [USER("q")], "chosen": "a", "rejected": "b"},
    ]
    found = load(jsonl(tmp_path / "a.jsonl", rows))
    best = [BOT("") | CARRIED, ANSWER, BOT("2")]
    assert (
        found[0]["responses"][0]
        == best
        == to_record(rows[0])["responses"][0]
        == next(iter(found))["responses"][0]
    )
    assert found.select([1, 0])[1]["responses"][0] == best and found[1]["responses"] == [
        [BOT("a")],
        [BOT("b")],
    ]
    kept = found.dataset[0]["responses"][0]
    assert [set(turn) for turn in kept] == [set(turn) for turn in best], "no key is added, none is lost"
    table = found.dataset.with_format("arrow")[:]
    assert read_column(table["responses"])[0][0] == best and read_column(table["ranks"]) == [[1, 2], [1, 2]]
    assert read_column(found.to_pairs().with_format("arrow")[:]["chosen"])[0] == best
    found.save(tmp_path / "b.jsonl")
    assert list(load(tmp_path / "b.jsonl"))[0]["responses"][0] == best
    found.dataset.save_to_disk(tmp_path / "saved")
    assert Preferences(datasets.load_from_disk(tmp_path / "saved"))[0] == found[0]


def test_a_chunk_of_nothing_but_duplicates():
    rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(1000)]
    found = load(rows * 2)
    assert len(found) == 1000 and reasons(found) == {"exact duplicate": 1000}


def test_a_row_is_parsed_and_flattened_once(tmp_path, monkeypatch):
    "The first ones are flattened before: some to see how they are nested, all to see the format."
    from reward_kit.beside import published_layouts
    from reward_kit.data import files, preferences

    rows = [
        {"question": {"full_text": f"q{n}"}, "answer_0": "a", "answer_1": "b", "score_0": 1, "score_1": 0}
        for n in range(50)
    ]
    path, counts, decode = jsonl(tmp_path / "a.jsonl", rows), collections.Counter(), files._JSON.decode

    def parse(text):
        counts["parsed"] += 1
        return decode(text)

    flat = published_layouts._Layout.flat

    def flatten(layout, row):
        found = flat(layout, row)
        counts["flattened"] += found is not None
        return found

    monkeypatch.setattr(files, "_JSON", type("Decoder", (), {"decode": staticmethod(parse)}))
    monkeypatch.setattr(published_layouts._Layout, "flat", flatten)
    monkeypatch.setattr(preferences, "_ROWS", 2)
    assert len(load(path)) == 50 and counts == {"parsed": 50, "flattened": 5 * 2 + 5 * 2 + 50}


def test_a_format_of_your_own_takes_one_class(tmp_path):
    from reward_kit.data import columns, formats

    @formats.preference_format
    class Votes(formats._Pairs):
        name, verdicts = "votes", (("margin", "weight"),)

        def judge(self, row, count):
            return ([1, 2] if row.number("margin") > row.number("weight") else [2, 1]), None

    @columns.nested_export
    class Boxed:
        note = "a box"

        @staticmethod
        def flat(row):
            return row["box"] if "box" in row else None

    try:
        found = load([{"box": {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1, "weight": 3}}])
        assert found.report.format == "votes" and found[0]["responses"] == ["b", "a"]
        assert to_record({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 4, "weight": 3})[
            "responses"
        ] == ["a", "b"]
    finally:
        del formats._FORMATS["votes"]
        columns._EXPORTS.remove(Boxed)


@pytest.mark.parametrize(
    "row,name,texts,scores",
    [
        (
            {"question": "q", "better": "a", "worse": "b"},
            "pairs",
            ("q", ["a", "b"]),
            ["chosen_s", "rejected_s"],
        ),
        ({"prompt": "q", "completions": ["a", ""]}, "ranking", ("q", ["a", ""]), ["ss"]),
        ({"prompt": "q", "answer_1": "a", "answer_2": "b"}, "labelled", ("q", ["a", "b"]), ["s_a", "s_b"]),
        ({"prompt": [USER("q")], "output": "a"}, "scored", ([USER("q")], [[BOT("a")]]), ["s"]),
        (
            {"messages": [USER("q"), BOT("a") | CARRIED]},
            "conversation",
            (None, [[USER("q"), BOT("a") | CARRIED]]),
            ["s"],
        ),
        ({"text": "all of it"}, "text", (None, ["all of it"]), ["s"]),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
            "transcript",
            ([USER("q")], [[BOT("a")], [BOT("b")]]),
            ["chosen_s", "rejected_s"],
        ),
    ],
)
def test_files_to_be_scored_are_told_apart_by_the_same_formats(row, name, texts, scores):
    found = PreferenceFormat.detect([row], judged=False)
    assert tuple(found.texts(row).values()) == texts
    assert (found.name, found.score_columns("s")) == (name, scores)


def test_what_is_only_scored_teaches_nothing():
    for row in (
        {"messages": [USER("q"), BOT("a")]},
        {"text": "all of it"},
        {"prompt": "q", "answer_1": "a", "answer_2": "b"},
    ):
        with pytest.raises(PreferenceDataError, match="no column for"):
            load([row])
    with pytest.raises(PreferenceDataError, match="nothing to score: the file has 'essay'"):
        PreferenceFormat.detect([{"essay": "a"}], judged=False)


def test_hold_out_is_the_rule_of_every_split():
    found = load(pairs(200, prompts=40))
    held = hold_out(found.prompt_keys, 0.25, seed=5)
    assert np.array_equal(
        held, hold_out([prompt_key(f"  {r['prompt'].upper()}") for r in found], 0.25, seed=5)
    )
    assert (
        split_by_prompt(found, 0.25, seed=5)[1].fingerprint == found.select(np.flatnonzero(held)).fingerprint
    )
    assert len(np.unique(found.prompt_keys[hold_out(found.prompt_keys, 0.5, most=3)])) == 3
    with pytest.raises(PreferenceDataError, match="1 record with one prompt"):
        hold_out([7], 0.5)


# ---------------------------------------------------------------- what is beside a verdict is none


SIDES = {"prompt": "Q {}?", "response_a": "good {}", "response_b": "bad {}", "winner": "model_a"}


def rows_with(extra, row=SIDES, n=12):
    return [{k: v.format(i) if isinstance(v, str) else v for k, v in (row | extra).items()} for i in range(n)]


@pytest.mark.parametrize(
    "extra",
    [
        {"latency": {"model_a": 2, "model_b": 9}},
        {"n_errors": {"a": 0, "b": 3}},
        {"evaluation_order": ["model_b", "model_a"]},
        {"evaluation_order": '["model_b", "model_a"]'},
        {"swapped_verdicts": ["B", "B"]},
    ],
)
def test_a_cell_that_names_the_sides_is_no_vote_beside_a_label(extra):
    found = load_preferences(rows_with(extra), progress=False)[0]
    assert found["responses"][found["ranks"].index(1)] == "good 0"


def test_ranks_under_the_sides_are_no_votes():
    rows = [{k: v for k, v in row.items() if k != "winner"} for row in rows_with({"ranks": {"a": 1, "b": 2}})]
    with pytest.raises(PreferenceDataError, match="'ranks' has a number for each response"):
        load_preferences(rows, progress=False)


@pytest.mark.parametrize("judged", [{"scores": [1, 5]}, {"ratings": [1, 5]}, {"ranks": [2, 1]}])
def test_a_list_of_candidates_that_something_judges_is_no_pair(judged):
    row = {"prompt": "Q {}?", "output": ["bad", "good"]}
    for columns in (None, {"responses": "output"}):
        found = load_preferences(rows_with(judged, row), columns=columns, progress=False)
        assert found[0]["responses"][found[0]["ranks"].index(min(found[0]["ranks"]))] == "good"


def test_earlier_turns_beside_their_last_are_refused():
    turns = [("user", "I have a dog."), ("assistant", "OK."), ("user", "And {}?")]
    rows = [
        {
            "messages": [{"role": role, "content": text.format(i)} for role, text in turns],
            "prompt": f"And {i}?",
            "chosen": "g",
            "rejected": "b",
        }
        for i in range(12)
    ]
    with pytest.raises(PreferenceDataError, match="'messages' stands beside the prompt"):
        load_preferences(rows, progress=False)


def test_a_passage_beside_conversations_is_refused():
    def talk(i, answer):
        return [{"role": "user", "content": f"Q {i}"}, {"role": "assistant", "content": answer}]

    rows = [{"chosen": talk(i, "g"), "rejected": talk(i, "b"), "passage": "A long one."} for i in range(12)]
    with pytest.raises(PreferenceDataError, match="'passage' stands beside the texts"):
        load_preferences(rows, progress=False)
    load_preferences(rows, columns={"context": None}, progress=False)


def test_an_answer_in_a_box_is_not_put_behind_a_conversation():
    from reward_kit.data.formats import PreferenceFormat

    talk = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "5"}]
    rows = [{"messages": talk, "metadata": {"answer": "4"}}] * 12
    texts = PreferenceFormat.detect(rows, judged=False).texts(rows[0])
    assert "4" not in str(texts["responses"]) and "5" in str(texts["responses"])


def test_a_column_that_appears_late_is_read():
    from reward_kit.data.formats import PreferenceFormat

    rows = [{"prompt": f"Q {i}?", "response": "A."} for i in range(12)]
    fmt = PreferenceFormat.detect(rows, judged=False)
    late = fmt.texts(rows[0] | {"system": "Be brief."})
    assert "Be brief." in str(late["prompt"]) and "Be brief." not in str(fmt.texts(rows[0])["prompt"])


def test_evaluation_data_are_read_as_the_caller_said_of_the_training_data():
    rows = rows_with({"better": "a", "safer": "b", "label": "a"})
    rows = [{k: v for k, v in row.items() if k != "winner"} for row in rows]
    trained = load_preferences(rows, columns={"label": "safer"}, progress=False)
    found = load_preferences(rows[:3], like=trained.fmt, progress=False)
    assert found[0]["responses"][found[0]["ranks"].index(1)] == "bad 0"


def test_columns_that_mean_nothing_to_us_make_no_row_another_kind():
    rows = [{"prompt": f"Q {i}?", "chosen": "g", "rejected": "b"} for i in range(12)]
    fmt = PreferenceFormat.detect(rows)
    for i in range(50):
        fmt.record(rows[0] | {f"note_{i}": "x"})
    assert not fmt.others
    fmt.record(rows[0] | {"system": "Be brief."})
    assert len(fmt.others) == 1


# ---------------------------------------------------------------- what belongs to a prompt


ASKED = {"prompt": "How do I do thing {}?", "chosen": "good {}", "rejected": "bad {}"}


@pytest.mark.parametrize("name", ["context", "knowledge", "retrieved_docs", "passage"])
def test_a_passage_that_begins_late_is_found(name):
    rows = rows_with({name: ""}, ASKED, 400)
    rows[300][name] = "A passage that the question is about."
    with pytest.raises(PreferenceDataError, match=f"'{name}' stands beside the prompt"):
        load_preferences(rows, progress=False)
    fmt = load_preferences(rows[:300], progress=False).fmt
    for late in (rows[300], {k: v for k, v in rows[300].items() if k != name} | {"background": "Long ago."}):
        with pytest.raises(PreferenceDataError, match="would be lost"):
            fmt.record(late)
    found = load_preferences(rows, columns={"context": None}, progress=False)
    assert len(found) == 400


@pytest.mark.parametrize(
    "beside",
    [
        {"dialog_history": ["Hi {}", "Hello, what is it?"]},
        {"previous_utterances": ["Hi", "Hello"]},
        {"retrieved_docs": ["One", "Two"]},
        {"instruction": "Answer like pirate {}."},
        {"question": "Is it true?"},
        {"query": [{"role": "user", "content": "And what else is there?"}]},
    ],
)
def test_what_asks_more_beside_a_prompt_is_not_dropped(beside):
    with pytest.raises(PreferenceDataError, match="stands beside the prompt"):
        load_preferences(rows_with(beside, ASKED), progress=False)


@pytest.mark.parametrize(
    "beside",
    [
        {"question": "How do I do thing {}?"},
        {"question": "Human: how do I do thing {}?".replace("how", "How")},
        {"instruction": ""},
        {"query": "{}"},
        {
            "messages": [
                {"role": "user", "content": "How do I do thing 0?"},
                {"role": "assistant", "content": "good 0"},
            ]
        },
    ],
)
def test_what_says_the_prompt_once_more_is_no_other_prompt(beside):
    assert len(load_preferences(rows_with(beside, ASKED, 1), progress=False)) == 1


HISTORIES = [
    [{"user": "earlier q", "assistant": "earlier a"}],
    [["earlier q", "earlier a"]],
    ["earlier q", "earlier a"],
    '[["earlier q", "earlier a"]]',
    "Human: earlier q\n\nAssistant: earlier a",
    [{"role": "user", "content": "earlier q"}, {"role": "assistant", "content": "earlier a"}],
]


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("name", ["history", "earlier"])
def test_earlier_turns_are_read_where_most_rows_have_none(history, name):
    rows = rows_with({name: None}, ASKED)
    for row in rows[::5]:
        row[name] = history
    columns = None if name == "history" else {"history": name}
    found = load_preferences(rows, columns=columns, progress=False)
    assert len(found) == len(rows)
    assert [turn["content"] for turn in found[5]["prompt"]] == [
        "earlier q",
        "earlier a",
        ASKED["prompt"].format(5),
    ]


def test_nobody_guesses_who_spoke_first():
    with pytest.raises(PreferenceDataError, match="odd number of texts"):
        load_preferences(rows_with({"history": ["one"]}, ASKED), progress=False)


# ---------------------------------------------------------------- verdicts on lists


THREE = {"prompt": "Q {}?", "responses": ["one {}", "two", "three"]}


def rows_of_three(extra):
    return [
        row | {"responses": [f"one {i}", "two", "three"]} for i, row in enumerate(rows_with(extra, THREE))
    ]


@pytest.mark.parametrize("ranking", [[3, 1, 2], [1, 2, 0], ["2", "3", "1"]])
def test_a_ranking_that_may_be_an_order_is_asked_for(ranking):
    rows = rows_of_three({"ranking": ranking})
    with pytest.raises(PreferenceDataError, match="'ranks': 'ranking'.*'best_first': 'ranking'"):
        load_preferences(rows, progress=False)
    least, texts = min(map(int, ranking)), rows[0]["responses"]
    ordered = load_preferences(rows, columns={"best_first": "ranking"}, progress=False)[0]
    assert ordered["responses"] == [texts[int(n) - least] for n in ranking]
    ranked = load_preferences(rows, columns={"ranks": "ranking"}, progress=False)[0]
    assert ranked["responses"] == [texts[ranking.index(n)] for n in sorted(ranking)]


@pytest.mark.parametrize(
    "ranking, best",
    [([2, 1, 2], "two"), ([3, 2, 1], "three"), (["C", "A", "B"], "three"), ([1, 3, 2], "one")],
)
def test_a_ranking_that_says_one_thing_is_read(ranking, best):
    assert load_preferences(rows_of_three({"ranking": ranking}), progress=False)[0]["responses"][
        0
    ].startswith(best)


@pytest.mark.parametrize("label, best", [("B", "two"), ("c", "three"), ("two", "two")])
def test_a_label_beside_a_list_names_the_best(label, best):
    found = load_preferences(rows_of_three({"label": label}), progress=False)[0]
    assert found["responses"][0] == best and found["ranks"] == [1, 2, 2]


def test_numbers_beside_a_list_are_asked_for_where_they_may_count_from_0_or_1():
    with pytest.raises(PreferenceDataError, match="count the responses from 0 or from 1"):
        load_preferences(rows_of_three({"label": 1}), progress=False)


def test_what_was_thought_stays_with_its_answer():
    box = {"content": "good {}", "reasoning_content": "let me see"}
    rows = rows_with({}, {"prompt": "Q?", "chosen": box, "rejected": {"content": "bad"}})
    found = load_preferences(rows, progress=False)[0]
    assert found["responses"][0] == [{"role": "assistant"} | box]


@pytest.mark.parametrize("name", ["shown_first", "position", "left_side"])
def test_which_was_shown_first_is_no_verdict(name):
    rows = [{k: v for k, v in row.items() if k != "winner"} for row in rows_with({name: "a"})]
    with pytest.raises(PreferenceDataError, match=f"'{name}' names the responses, but not by its name"):
        load_preferences(rows, progress=False)
    found = load_preferences(rows, columns={"label": name}, progress=False)
    assert found[0]["responses"][0] == "good 0"
    assert load_preferences(rows_with({name: "b"}), progress=False)[0]["responses"][0] == "good 0"


def test_a_verdict_that_its_cells_show_is_said():
    rows = [{k: v for k, v in row.items() if k != "winner"} for row in rows_with({"human_opinion": "b"})]
    found = load_preferences(rows, progress=False)
    assert found[0]["responses"][0] == "bad 0" and any("'human_opinion'" in n for n in found.report.notes)


def test_two_system_messages_are_not_made_one():
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}]
    row = {"system": "Answer in French.", "prompt": talk, "chosen": "a", "rejected": "b"}
    with pytest.raises(PreferenceDataError, match="two system messages"):
        load_preferences([row] * 3, progress=False)
    same = load_preferences([row | {"system": "Be kind."}], progress=False)[0]["prompt"]
    assert same == talk


@pytest.mark.parametrize(
    "beside", [{"images": ["a.png"]}, {"attachments": [{"file": "a"}]}, {"audio": "a.wav"}]
)
def test_pictures_in_a_message_are_not_left_out(beside):
    asked = {"role": "user", "content": "What is it?"}
    with pytest.raises(PreferenceDataError, match="pictures or sound, which are not read"):
        load_preferences([{"prompt": [asked | beside], "chosen": "a", "rejected": "b"}], progress=False)


@pytest.mark.parametrize("name", ["image_path", "img", "audio_url", "screenshot"])
def test_pictures_beside_a_prompt_are_not_left_out(name):
    with pytest.raises(PreferenceDataError, match="pictures and sound are not read"):
        load_preferences(rows_with({name: "a.png"}, ASKED), progress=False)


LONG = {
    name: "Some words about number {}."
    for name in ("title", "body", "web_page", "sys_prompt", "ctx", "parent_comment", "problem")
}
LONG |= {"options": ["One", "Two"], "functions": [{"name": "add"}], "few_shot": "Like this: 1 + 1 = 2"}


@pytest.mark.parametrize("name", LONG)
def test_texts_beside_a_prompt_are_asked_for(name):
    rows = rows_with({name: LONG[name]}, ASKED)
    with pytest.raises(PreferenceDataError, match=f"'{name}' stands beside the prompt"):
        load_preferences(rows, progress=False)
    assert len(load_preferences(rows, columns={"context": None}, progress=False)) == len(rows)


@pytest.mark.parametrize(
    "name",
    [
        "explanation",
        "labelling_prompt",
        "original_response",
        "reference_answer",
        "chosen_model",
        "feedback",
        "preference_statement",
        "topic",
        "created_at",
        "comment",
        "prompt_source",
        "raw_output",
    ],
)
def test_what_tells_of_a_row_is_no_part_of_its_prompt(name):
    rows = rows_with({name: "The first is better because of {}."}, ASKED)
    assert len(load_preferences(rows, progress=False)) == len(rows)


def test_a_header_in_the_middle_is_no_row():
    rows = rows_with({}, ASKED) + [{name: name for name in ASKED}]
    found = load_preferences(rows, progress=False)
    assert len(found) == len(rows) - 1 and found.report.dropped["the header once more"]["count"] == 1


# ---------------------------------------------------------------- who said what


@pytest.mark.parametrize(
    "who",
    ["WorkerId", "evaluator", "Email Address", "rated_by", "PROLIFIC_PID", "expert_name", "reviewer_id"],
)
def test_rows_of_several_people_are_votes_whatever_they_are_called(who):
    rows = [
        row | {who: f"{name}@x", "winner": won}
        for row in rows_with({}, SIDES)
        for name, won in (("ann", "model_a"), ("bob", "model_a"), ("eve", "model_b"))
    ]
    found = load_preferences(rows, progress=False)
    assert len(found) == 12 and found.report.votes
    assert all(record["responses"][0].startswith("good") for record in found)


@pytest.mark.parametrize("votes, best", [([0, 0, 1], "r 0"), ([1, 1, 0], "s")])
def test_lists_of_noughts_and_ones_are_votes_unless_each_adds_up_to_one(votes, best):
    row = {"prompt": "q {}", "response_0": "r {}", "response_1": "s"}
    rows = rows_with({"labels": [0, 0, 1]}, row) + rows_with({"labels": [1, 1, 0]}, row)
    rows = [row | {"labels": votes} if not n else row for n, row in enumerate(rows)]
    assert load_preferences(rows, progress=False)[0]["responses"][0] == best


def test_vectors_stay_vectors():
    row = {"prompt": "q {}", "response_0": "r {}", "response_1": "s", "labels": [0, 1, 0]}
    assert load_preferences(rows_with({}, row), progress=False)[0]["responses"][0] == "s"


@pytest.mark.parametrize("ends", ["12", "01"])
def test_what_two_people_say_of_both_is_no_score_of_each(ends):
    said = {f"rating_{end}": n for n, end in enumerate(ends, 1)}
    rows = [{k: v for k, v in row.items() if k != "winner"} for row in rows_with(said)]
    with pytest.raises(PreferenceDataError, match="what two people say of both"):
        load_preferences(rows, progress=False)
    first, second = said
    found = load_preferences(rows, columns={"score_a": first, "score_b": second}, progress=False)
    assert found[0]["responses"][0] == "bad 0"


def test_two_pairs_of_scores_are_asked_for():
    scores = {"score_a": 1, "score_b": 2, "rating_a": 5, "rating_b": 1}
    rows = [{k: v for k, v in row.items() if k != "winner"} for row in rows_with(scores)]
    with pytest.raises(PreferenceDataError, match="could each be the scores"):
        load_preferences(rows, progress=False)
    named = {"score_a": "rating_a", "score_b": "rating_b"}
    assert load_preferences(rows, columns=named, progress=False)[0]["responses"][0] == "good 0"


@pytest.mark.parametrize(
    "row",
    [
        {"gpt": "good {}", "llama": "bad {}", "chosen": "gpt", "rejected": "llama"},
        {"gpt": "good {}", "llama": "bad {}", "winner": "gpt", "loser": "llama"},
        {"gpt_response": "good {}", "llama_response": "bad {}", "chosen": "gpt", "rejected": "llama"},
        {"responses": {"r1": "bad {}", "r2": "good {}"}, "chosen": "r2", "rejected": "r1"},
        {
            "response_a": "bad {}",
            "response_b": "good {}",
            "model_a": "x",
            "model_b": "y",
            "chosen": "y",
            "rejected": "x",
        },
        {"winner": "gpt", "loser": "llama", "winner_text": "good {}", "loser_text": "bad {}"},
    ],
)
def test_names_in_chosen_and_rejected_are_looked_up(row):
    from reward_kit.data.formats import PreferenceFormat

    rows = rows_with({"prompt": "Q {}?"}, row)
    if isinstance(row.get("responses"), dict):
        rows = [each | {"responses": {"r1": f"bad {n}", "r2": f"good {n}"}} for n, each in enumerate(rows)]
    found = load_preferences(rows, progress=False)
    assert found[3]["responses"] == ["good 3", "bad 3"]
    texts = PreferenceFormat.detect(rows, judged=False).texts(rows[3])["responses"]
    assert sorted(texts) == ["bad 3", "good 3"]


def test_names_of_candidates_are_looked_up():
    items = [{"id": "x", "text": "good"}, {"id": "y", "text": "bad"}]
    rows = [{"prompt": f"Q {n}?", "candidates": items, "chosen": "x", "rejected": "y"} for n in range(12)]
    assert load_preferences(rows, progress=False)[0]["responses"] == ["good", "bad"]


def test_a_side_that_nobody_named_may_hold_names():
    row = {
        "prompt": "Q {}?",
        "x": "A long answer to {} here",
        "y": "Another long answer to {}",
        "winner": "x",
    }
    with pytest.raises(PreferenceDataError, match="few short texts"):
        load_preferences(rows_with({}, row), columns={"rejected": "y"}, progress=False)


def test_names_that_lead_nowhere_are_no_texts():
    row = {"prompt": "Q {}?", "chosen": "gpt", "rejected": "llama", "first": "A long answer to {} here"}
    rows = rows_with({"second": "Another long answer to {}"}, row)
    with pytest.raises(PreferenceDataError, match="few short texts"):
        load_preferences(rows, columns={"context": None}, progress=False)
    given = {"chosen": "chosen", "rejected": "rejected", "context": None}
    assert load_preferences(rows, columns=given, progress=False)[0]["responses"] == ["gpt", "llama"]
    short = rows_with({}, {"prompt": "Is {} even?", "chosen": "Yes", "rejected": "No"}, 40)
    assert load_preferences(short, progress=False)[0]["responses"] == ["Yes", "No"]


@pytest.mark.parametrize("sides", [("A", "B"), ("1", "2"), ("response_a", "response_b"), (1, 2)])
def test_sides_that_name_responses_are_not_scored(sides):
    from reward_kit.data.formats import PreferenceFormat

    named = dict(zip(("chosen", "rejected"), sides))
    rows = [{k: v for k, v in row.items() if k != "winner"} for row in rows_with(named)]
    assert PreferenceFormat.detect(rows, judged=False).texts(rows[0])["responses"] == ["good 0", "bad 0"]


@pytest.mark.parametrize(
    "row, match",
    [
        (
            {"prompt": [{"role": "user", "content": "Q"}], "generated_text": "a {}"},
            "'response': 'generated_text'",
        ),
        (
            {"messages": [{"role": "user", "content": "Q"}], "model_output": "a {}"},
            "'response': 'model_output'",
        ),
        ({"prompt": "Q {}?", "text": "a {}"}, "'response': 'text'"),
        ({"question": "Q {}?", "text": "note", "reply": "a {}"}, "'response': 'reply'"),
    ],
)
def test_a_prompt_without_its_response_is_not_scored(row, match):
    from reward_kit.data.formats import PreferenceFormat

    rows = rows_with({}, row)
    with pytest.raises(PreferenceDataError, match=match):
        PreferenceFormat.detect(rows, judged=False)
    name = match.split("'")[3]
    texts = PreferenceFormat.detect(rows, {"response": name, "context": None}, judged=False).texts(rows[0])
    assert "a" in str(texts["responses"][0])


def test_suggestions_of_a_model_are_no_answers_of_people():
    fields = {"prompt": "q", "response1": "bad", "response2": "good"}
    said = {"preference": [{"value": "response2", "user_id": "u"}]}
    suggested = {"suggestions": {"preference": {"value": "response1", "score": None}}, "fields": fields}
    rows = [suggested | {"id": str(n), "responses": said if n == 2 else {}} for n in range(12)]
    found = load_preferences(rows, progress=False)
    assert len(found) == 1 and found[0]["responses"][0] == "good" and found.report.rows_dropped == 11
    alone = load_preferences([row | {"responses": {}} for row in rows[:1]], progress=False)
    assert alone[0]["responses"][0] == "bad" and "suggestions of a model" in alone.report.notes[0]


def test_prompts_of_ppo_are_of_one_kind():
    from reward_kit.rl.rollouts import Prompts

    rows = [{"prompt": f"Q {n}?", "system": "Be brief." if n % 2 else None} for n in range(12)]
    kinds = {type(row["prompt"]) for row in Prompts.load(rows)}
    assert kinds == {list}


def test_broken_prompts_are_left_out_where_told_to(tmp_path):
    from reward_kit.rl.rollouts import Prompts

    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": ""}\n{"prompt": null}\n{broken\n{"prompt": "b"}\n')
    broken = []
    assert [row["prompt"] for row in Prompts.load(path, broken=broken)] == ["a", "b"]
    assert [text.split(":")[1] for text in broken] == ["4", "2", "3"]
    with pytest.raises(PreferenceDataError, match=":4: malformed JSON"):
        Prompts.load(path)
    path.write_text('{"prompt": ""}\n')
    with pytest.raises(PreferenceDataError, match="no row can be used; first: p.jsonl:1: empty prompt"):
        Prompts.load(path, broken=[])


def test_nan_is_a_missing_score_in_json_too(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text('{"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 0, NaN]}\n')
    found = load_preferences(path, progress=False)
    assert found[0]["responses"] == ["a", "b"] and list(found.report.noted.values())[0]["count"] == 1


@pytest.mark.parametrize(
    "form", ["{}\n{}", "{} {}", "User: {}\nAssistant: {}", "### Instruction:\n{}\n\n### Response:\n{}"]
)
def test_a_prompt_in_front_of_its_responses_is_read_once(form):
    rows = rows_with({}, ASKED)
    for row in rows:
        row["chosen"], row["rejected"] = (form.format(row["prompt"], row[k]) for k in ("chosen", "rejected"))
    found = load_preferences(rows, progress=False)
    assert found[3]["responses"] == ["good 3", "bad 3"] and "read once" in found.report.notes[0]


def test_a_title_belongs_to_its_post():
    info = {
        "id": "x",
        "post": "Long ago.",
        "title": "A tale",
        "subreddit": "tales",
        "site": None,
        "article": None,
    }
    summaries = [{"text": "bad", "policy": "p", "note": ""}, {"text": "good", "policy": "q", "note": ""}]
    rows = [{"info": info, "summaries": summaries, "choice": n % 2, "worker": "w"} for n in range(4)]
    prompt = load_preferences(rows, progress=False)[0]["prompt"]
    assert prompt == "SUBREDDIT: r/tales\nTITLE: A tale\nPOST: Long ago.\nTL;DR:"


@pytest.mark.parametrize("name", ["pair", "prompt_id", "conversation_id"])
def test_rows_of_one_prompt_are_apart_where_a_column_says_so(name):
    rows = [
        {"prompt": "Continue.", name: n, "response": f"{said} {n}", "score": score}
        for n in range(4)
        for said, score in (("good", 1), ("bad", 0))
    ]
    assert len(load_preferences(rows, progress=False)) == 4
    alone = [row | {name: n} for n, row in enumerate(rows)]  # a number of the row
    assert len(load_preferences(alone, progress=False)) == 1


@pytest.mark.parametrize("name", ["email", "user"])
def test_a_text_is_not_who_said_something(name):
    rows = rows_with({name: "Dear all, the meeting is on day {}."}, ASKED)
    if name == "email":
        with pytest.raises(PreferenceDataError, match="'email' stands beside the prompt"):
            load_preferences(rows, progress=False)
    else:
        assert (
            "'user' holds texts that are not used" in load_preferences(rows, progress=False).report.notes[0]
        )
    assert len(load_preferences(rows_with({name: "ann{}@x.org"}, ASKED), progress=False)) == 12


@pytest.mark.parametrize("name", ["unheard_of", "source", "description", "user_agent", "german"])
def test_long_texts_of_another_name_are_noted(name):
    rows = rows_with({name: "Some words about number {}."}, ASKED)
    found = load_preferences(rows, progress=False)
    assert len(found) == len(rows)
    assert any(f"'{name}' holds texts that are not used" in note for note in found.report.notes)


def test_what_is_said_of_each_response_is_no_part_of_the_prompt():
    items = [{"response": said, "overall_score": n, "custom_system_prompt": f"Be {said}."}
             for n, said in enumerate(("bad", "good"))]  # fmt: skip
    rows = [{"instruction": f"Q {n}?", "completions": items} for n in range(12)]
    assert load_preferences(rows, progress=False)[0]["responses"] == ["good", "bad"]


@pytest.mark.parametrize(
    "names", [("model_b", "model_a"), ("model_2", "model_1"), ("generator_2", "generator_1")]
)
def test_winners_by_name_do_not_depend_on_the_order_of_columns(names):
    base = {k: v for k, v in SIDES.items() if k != "winner"}
    rows = rows_with(dict(zip(names, ("llama", "GPT"))) | {"winner": "gpt"}, base)
    assert load_preferences(rows, progress=False)[0]["responses"] == ["good 0", "bad 0"]


SIDED = {"prompt": "Q {}?", "response_a": "good {}", "response_b": "bad {}"}


@pytest.mark.parametrize(
    "row",
    [
        SIDED | {"models": {"A": "gpt-4", "B": "llama"}, "chosen": "A", "rejected": "B"},
        SIDED | {"notes": {"A": "fine then", "B": "no"}, "chosen": "A", "rejected": "B"},
        SIDED | {"A": "gpt-4", "B": "llama", "chosen": "A", "rejected": "B"},
        SIDED | {"summary_a": "short", "summary_b": "long", "chosen": "a", "rejected": "b"},
        SIDED
        | {"model_a": "x", "model_b": "y", "winner": "x", "loser": "y", "versions": {"x": "v7", "y": "v9"}},
    ],
)
def test_what_is_named_alike_is_no_response(row):
    assert load_preferences(rows_with({}, row), progress=False)[0]["responses"] == ["good 0", "bad 0"]


@pytest.mark.parametrize(
    "beside", [{"latency": {"gpt": "3s", "claude": "4s"}}, {"prompts": {"gpt": "x", "claude": "y"}}]
)
def test_other_facts_by_model_are_no_responses(beside):
    rows = [
        {
            "prompt": f"Q {n}?",
            "responses": {"gpt": "good", "claude": "bad"},
            "chosen": "gpt",
            "rejected": "claude",
        }
        | beside
        for n in range(12)
    ]
    assert load_preferences(rows, progress=False)[0]["responses"] == ["good", "bad"]


@pytest.mark.parametrize("values", [("control", "treatment"), ("x-y", "y-x")])
@pytest.mark.parametrize("name", ["group", "pair"])
def test_a_column_that_leaves_each_row_alone_parts_nothing(name, values):
    rows = [
        {"prompt": f"Q {n}?", "response": f"{said} {n}", "score": score, name: value}
        for n in range(12)
        for said, score, value in (("good", 1, values[0]), ("bad", 0, values[1]))
    ]
    assert len(load_preferences(rows, progress=False)) == 12


def test_a_person_may_have_a_long_name():
    rows = [
        row | {"annotator": who, "winner": won}
        for row in rows_with({}, SIDES)
        for who, won in (
            ("Maria del Carmen Lopez", "model_a"),
            ("gpt-4 with rubric v2", "model_a"),
            ("Ann de la Tour", "model_b"),
        )
    ]
    assert len(load_preferences(rows, progress=False)) == 12


def test_code_behind_its_prompt_keeps_its_shape():
    code = "def add(a, b):\n    # case {}"
    row = {"prompt": code, "chosen": code + "\n    return a + b", "rejected": code + "\n    return a"}
    assert load_preferences(rows_with({}, row), progress=False)[0]["responses"][0] == "    return a + b"
    row = {
        "prompt": "Continue the tale {}",
        "chosen": "Continue the tale {}'s hero",
        "rejected": "Continue the tale {}s",
    }
    assert "tale" in load_preferences(rows_with({}, row), progress=False)[0]["responses"][0]


def test_an_empty_prompt_is_read_from_another_column_of_prompts():
    rows = rows_with({}, ASKED)
    for row in rows[::2]:
        row["question"], row["prompt"] = row["prompt"], None
    found = load_preferences(rows, progress=False)
    assert [record["prompt"] for record in found] == [ASKED["prompt"].format(n) for n in range(12)]
