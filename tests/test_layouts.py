"""Files as people have them: every documented layout, and each kind of fault that was once read wrongly."""

import bz2
import copy
import json
import math
import re
import zipfile
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from reward_kit import playground_base
from reward_kit.beside import published_layouts
from reward_kit.beside.benchmark_files import load_benchmark
from reward_kit.data.files import PreferenceDataError, UnusableRow, read_rows
from reward_kit.data.formats import PreferenceFormat, to_record
from reward_kit.data.preferences import load_preferences
from reward_kit.model.encoding import RewardEncoder
from reward_kit.rl.rollouts import Prompts
from reward_kit.scores import score_files  # noqa: F401
from reward_kit.scores.text_scorer import TextScorer
from reward_kit.tools import serving
from reward_kit.trust.agreement import score_preferences

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "data"
Q, A, B = "Name a colour of {}.", "The sky, {}: blue.", "No idea, {}."


def load(source, **options):
    return load_preferences(source, progress=False, **options)


def reasons(found):
    return {reason: entry["count"] for reason, entry in (found.report.dropped | found.report.noted).items()}


def many(n=12, **cells):
    "Rows whose texts name their number; a cell may be a function of it."
    fill = lambda cell, k: cell(k) if callable(cell) else cell.format(k) if isinstance(cell, str) else cell
    return [{name: fill(cell, k) for name, cell in cells.items()} for k in range(n)]


# ---------------------------------------------------------------- the table of layouts


@pytest.mark.parametrize("layout", published_layouts._LAYOUTS, ids=lambda layout: layout.name)
def test_each_layout_is_read_as_documented_and_saved_again(layout, tmp_path):
    rows = layout.example if isinstance(layout.example, list) else [layout.example]
    found = load(rows, **layout.options)
    text = found[0]["responses"][0]
    text = text if isinstance(text, str) else text[-1]["content"]
    assert text in ("Seven is one.", "Yes.") and found[0]["ranks"][:2] == [1, 2] or layout.name == "RM-Bench"
    assert found[0]["prompt"] and re.match("https?://|.made up.", layout.source)
    assert found.report.rows_read == len(rows) == found.report.rows_kept
    found.save(tmp_path / "a.jsonl")
    assert load(tmp_path / "a.jsonl").fingerprint == found.fingerprint


class Listener(TextScorer):
    "Scores nothing, and remembers what it was given."

    def encode(self, prompts, responses=None, **template):
        empty = [None] * len(prompts)
        self.heard = list(zip(prompts, responses or empty, template.get("tools") or empty))
        return [[0]] * len(prompts)

    def score_ids(self, rows, progress=None):
        return [0.0] * len(rows)

    def fingerprint(self):
        return "listener"


def serve(listener, records):
    "Let a listener hear what a request with these records asks for."
    prompts, responses, given = RewardEncoder.flat_texts(records)
    body = json.loads(json.dumps({"prompts": prompts, "responses": responses, **given}))
    texts = serving._OWN_FORMAT.texts(body)
    tools = [tools and json.dumps(tools) for tools in texts.template.get("tools", [None] * len(prompts))]
    listener.encode(texts.prompts, texts.responses, tools=tools)


@pytest.mark.parametrize("layout", published_layouts._LAYOUTS, ids=lambda layout: layout.name)
def test_each_layout_is_the_same_to_every_reader(layout, tmp_path):
    "Training, `evaluate` and `compare-runs`, a file that is scored, prompts of PPO, requests, benchmarks."
    rows = layout.example if isinstance(layout.example, list) else [layout.example]
    columns = layout.options.get("columns")
    found = list(load(rows, **layout.options))
    trained = [
        [record["prompt"], response, record.get("tools")]
        for record in found
        for response in record["responses"]
    ]
    listener = Listener()
    score_preferences(listener, load(rows, **layout.options))
    order = lambda triples: sorted(json.dumps(triple) for triple in triples)
    assert order(listener.heard) == order(trained)
    serve(listener, found)
    assert order(listener.heard) == order(trained)
    if "OASST" in layout.name:
        with pytest.raises(PreferenceDataError, match="nothing to score"):
            listener.score_file(rows, tmp_path / "a.jsonl")
        with pytest.raises(PreferenceDataError, match="nothing to answer"):
            Prompts.load(rows)
        return
    prompts = Prompts.load(rows, columns)
    assert len(prompts) == len(rows)
    assert {json.dumps(row["prompt"]) for row in prompts} == {
        json.dumps(record["prompt"]) for record in found
    }
    if layout.name in ("RewardBench", "RewardBench 2", "RM-Bench"):
        benchmark = [[prompt, response, None] for prompt, response in zip(*load_benchmark(rows).texts())]
        assert order(benchmark) == order(trained)
    scored = listener.score_file(rows, tmp_path / "a.jsonl", columns=columns, score_column="given")
    assert scored.rows == len(rows) and not scored.failed
    assert order(listener.heard) == order(trained)


@pytest.mark.parametrize("cells", [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"prompt": [{"role": "user", "content": "q"}], "response": "a"},
    {"prompt": "q", "response": ""},
    {"prompt": "q", "chosen": "a", "rejected": "a"},
    {"prompt": "q", "response_a": "", "response_b": "b"},
])  # fmt: skip
def test_what_is_only_scored_has_its_context_too(cells, tmp_path):
    "Also what training sets aside: no answer, or twice the same."
    row = cells | {"system": "Be kind.", "functions": '[{"name": "f"}]'}
    listener = Listener()
    listener.score_file([row], tmp_path / "a.jsonl", columns={"tools": "functions"})
    for prompt, response, tools in listener.heard:
        turns = prompt if response is None else prompt + response
        assert [turn["content"] for turn in turns[:2]] == ["Be kind.", "q"] and tools == row["functions"]
    assert len(listener.heard) == 1 + ("prompt" in cells and "response" not in cells)


def test_a_file_to_be_scored_has_splits_and_rows_of_other_columns(tmp_path):
    for name in ("train", "test"):
        pair, other = {"chosen": "a", "rejected": "b"}, {"question": name, "better": "a", "worse": "b"}
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, [pair | {"prompt": name}, other])))
    listener = Listener()
    assert listener.score_file(tmp_path, tmp_path / "out.jsonl", split="test").rows == 2
    assert listener.heard == [("test", text, None) for text in "abab"]
    with pytest.raises(PreferenceDataError, match="format='pair' is unknown"):
        listener.score_file(tmp_path, tmp_path / "out.jsonl", split="test", format="pair")
    mixed = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "responses": ["a", "b"]}]
    report = listener.score_file(mixed, tmp_path / "mixed.jsonl")
    assert report.errors == {"row in another format than the first rows: ranking": 1}


@pytest.mark.parametrize("cells,said", [
    ({"question": "q"}, ["q"]),
    ({"text": "q"}, ["q"]),
    ({"text": "no", "query": "q"}, ["q"]),
    ({"instruction": "q", "input": "r", "output": "a", "text": "no"}, ["q\nr"]),
    ({"system_prompt": "s", "question": "q", "history": [["h", "i"]]}, ["s", "h", "i", "q"]),
    ({"messages": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}]}, ["s", "q"]),
    ({"prompt": '[{"role": "user", "content": "q"}]', "system": "s"}, ["s", "q"]),
    ({"prompt": "\n\nHuman: q\n\nAssistant:"}, ["q"]),
    ({"question": "q", "chosen": None, "rejected": 7}, ["q"]),
    ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, ["q"]),
])  # fmt: skip
def test_prompts_to_be_answered_are_read_as_those_of_training(cells, said, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(cells))
    (row,) = Prompts.load(path)
    turns = row["prompt"] if isinstance(row["prompt"], list) else [{"content": row["prompt"]}]
    assert [turn["content"] for turn in turns] == said
    assert set(cells) <= set(row)
    assert Prompts.load(Prompts.load(path)) == [row]


def test_prompts_that_may_be_others_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    for cells, message in (
        ({"user_question": "q"}, r"a.jsonl: no column 'prompt', but 'user_question' looks like it; say"),
        ({"prompt": "q", "context": "c"}, "a.jsonl: 'context' stands beside the prompt 'prompt'"),
        ({"text": "q", "context": "c"}, "a.jsonl: 'context' stands beside the prompt 'text'"),
        ({"query": "q", "instruction": "c"}, "could both be the prompt"),
        ({"prompt": " "}, "a.jsonl:1: empty prompt"),
        ({"chosen": "What is this? A", "rejected": "What is this? B"}, "a.jsonl:1: the row has no prompt"),
    ):
        path.write_text(json.dumps(cells))
        with pytest.raises(ValueError, match=message):
            Prompts.load(path)
    path.write_text(json.dumps({"prompt": "q", "context": "c", "role": "s", "functions": "[]"}))
    given = {"context": None, "system": "role", "tools": "functions"}
    (row,) = Prompts.load(path, given)
    assert [turn["content"] for turn in row["prompt"]] == ["s", "q"] and row["tools"] == "[]"
    transcript = "\n\nHuman: q\n\nAssistant:"
    assert Prompts.load([transcript])[0]["prompt"] == transcript  # as it stands


def test_a_benchmark_has_the_names_and_the_context_of_training():
    row = {"question": "q", "system": "s", "better": "a", "worse": "b", "subset": "alpacaeval-easy"}
    (found,) = load_benchmark([row]).rows
    assert [turn["content"] for turn in found["prompt"]] == ["s", "q"] and found["responses"] == ["a", "b"]
    with pytest.raises(PreferenceDataError, match="'context' stands beside the prompt"):
        load_benchmark([row | {"context": "c"}])


def test_there_are_sixty_layouts():
    assert len({layout.name for layout in published_layouts._LAYOUTS}) >= 60


# ---------------------------------------------------------------- no prompt


@pytest.mark.parametrize(
    "cells",
    [
        {"the_question": Q, "response": lambda k: f"{k}", "score": lambda k: k % 3},
        {"asked": Q, "response_a": "Yes", "response_b": "No", "label": "a"},
        {"dialog": lambda k: [{"role": "user", "content": f"{k}?"}], "chosen": A, "rejected": B},
        {"ask": Q, "responses": lambda k: [f"x{k}", "y"], "scores": [1, 2]},
        {"topic": "sums", "user_query": Q, "chosen": "It is the {} there.", "rejected": "It is the {} here."},
    ],
)
def test_a_file_without_a_recognised_prompt_is_refused_with_the_likeliest_column(cells):
    name = next(name for name in cells if name in ("the_question", "asked", "dialog", "ask", "user_query"))
    for judged in (True, False):
        with pytest.raises(
            PreferenceDataError, match=rf"no column 'prompt', but '{name}' looks like it; say"
        ):
            PreferenceFormat.detect(many(**cells), judged=judged)


def test_texts_without_a_prompt_are_declared_or_show_it():
    rows = many(chosen=A, rejected=B)
    with pytest.raises(PreferenceDataError, match=r"columns=\{'prompt': None\} for texts without a prompt"):
        load(rows)
    assert load(rows, columns={"prompt": None})[0]["prompt"] == ""
    full = many(chosen="What is {}? A number.", rejected="What is {}? A word.", category="{}")
    assert "full texts" in load(full).report.notes[0]


def test_one_prompt_that_most_rows_have_is_none():
    rows = many(150, prompt="Go on.", response=A, score=lambda k: k)
    with pytest.raises(
        PreferenceDataError, match="150 of 150 rows have the same prompt, in the column 'prompt'"
    ):
        load(rows)
    with pytest.raises(PreferenceDataError, match="no column 'prompt'"):
        load(many(response=A, score=lambda k: k), columns={"prompt": None})


def test_a_large_ranking_takes_no_memory_of_its_square():
    rows = [{"prompt": "q", "responses": [f"a{n}" for n in range(2000)], "scores": list(range(2000))}]
    found = load(rows)
    assert found.report.stats["pairs"] == 2000 * 1999 // 2 and found.measures.table.nbytes < 100_000


# ---------------------------------------------------------------- codes


def test_best_counts_from_where_the_rows_show():
    rows = many(prompt=Q, responses=lambda k: [A.format(k), B.format(k), "?"][:: 1 if k % 2 else -1])
    for start in (0, 1):
        coded = [row | {"best": row["responses"].index(A.format(k)) + start} for k, row in enumerate(rows)]
        found = load(coded)
        assert all(r["responses"][0].startswith("The sky") for r in found) and len(found) == 12
        assert f"'best' counts the responses from {start}" in found.report.notes
    silent = [row | {"best": 1} for row in rows]
    with pytest.raises(PreferenceDataError, match=r"from 0 or from 1; .* labels=\{'\?': 'a'\}"):
        load(silent)
    assert load(silent, labels={"1": "a"})[1]["responses"][0] == A.format(1)


def test_a_strength_needs_a_sign_or_its_ends():
    rows = many(14, prompt=Q, response_1=A, response_2=B, preference_strength=lambda k: k % 7 + 1)
    with pytest.raises(PreferenceDataError, match=r"run from 1 to 7, without a sign; .*'1': '\?', '7': '\?'"):
        load(rows)
    found = load(rows, labels={"1": "a", "7": "b"})
    assert found[0]["responses"][0] == A.format(0) and found[6]["responses"][0] == B.format(6)
    assert found[3]["ranks"] == [1, 1] and found[0]["margin"] == 3
    assert load(rows, labels={"1": "b", "7": "a"})[0]["responses"][0] == B.format(0)
    signed = [row | {"preference_strength": row["preference_strength"] - 4} for row in rows]
    assert "below 0" in load(signed).report.notes[0]


@pytest.mark.parametrize(
    "label,side",
    [
        ("A>B", "a"), ("B>>A", "b"), ("A < B", "b"), ("A=B", "tie"), ("[[A]]", "a"), ("[[C]]", "tie"),
        ("My final verdict is [[B>A]].", "b"), ("[[A>>B]]", "a"), ("both_bad", "tie"), ("Answer 2", "b"),
    ],
)  # fmt: skip
def test_verdicts_as_judges_write_them(label, side):
    record = to_record({"prompt": "q", "answer_1": "x", "answer_2": "y", "verdict": label})
    assert record["ranks"] == ([1, 1] if side == "tie" else [1, 2])
    assert record["responses"][0] == ("y" if side == "b" else "x")


def test_how_verdicts_were_read_is_said():
    rows = many(prompt=Q, response_A=A, response_B=B, label=lambda k: "A>B" if k % 2 else "B>>A")
    assert "labels are read as b>>a = response_B and a>b = response_A" in load(rows).report.notes
    assert load([row | {"label": "model_a"} for row in rows]).report.notes == []
    names = many(prompt=Q, x1=A, x2=B, chosen="x1", rejected="x2")
    assert "name the responses" in load(names).report.notes[0]


# ---------------------------------------------------------------- votes


def voted(labels):
    return [
        {"prompt": "q", "response_a": "x", "response_b": "y", "label": label, "rater": f"r{n}"}
        for n, label in enumerate(labels)
    ]


@pytest.mark.parametrize("labels,best", [("aba", "x"), ("bba", "y"), ("ab", None), ("aaa", "x")])
def test_rows_that_differ_in_who_judged_are_votes(labels, best):
    more = many(prompt=Q, response_a=A, response_b=B, label="a", rater="r0")
    found = load(voted(labels) + more)
    assert len(found) == 13 and not reasons(found) and found.report.rows_kept == 12 + len(labels)
    assert found[0]["ranks"] == ([1, 1] if best is None else [1, 2]) and best in (
        found[0]["responses"][0],
        None,
    )
    assert found.report.votes["votes"] == len(labels) and "kappa" in str(found.report)
    assert found.fingerprint == load(more[:0] + voted(labels) + more).fingerprint


def test_an_overruled_vote_takes_its_margin_along():
    rows = [row | {"margin": margin} for row, margin in zip(voted("abb"), (3, 1, 1))]
    found = load(rows)[0]
    assert (found["responses"], found["ranks"], found["margin"]) == (["y", "x"], [1, 2], None)
    assert load(rows[1:])[0]["margin"] == 1


def test_votes_in_one_row_are_those_of_many_rows():
    panda = {
        "prompt": "q",
        "response1": "x",
        "response2": "y",
        "annotator1": 1,
        "annotator2": 2,
        "annotator3": 2,
    }
    task = {
        "data": {"prompt": "q", "answer1": "x", "answer2": "y"},
        "annotations": [
            {"result": [{"from_name": "pw", "value": {"selected": side}}]}
            for side in ("left", "right", "right")
        ],
    }
    given = [
        {"value": side, "user_id": "u", "status": "submitted"} for side in ("answer1", "answer2", "answer2")
    ]
    argilla = {"prompt": "q", "answer1": "x", "answer2": "y", "pick": given}
    rows = load(voted("abb"))
    for row in (panda, task, argilla):
        found = load([row])
        assert (found[0]["responses"], found[0]["ranks"]) == (rows[0]["responses"], rows[0]["ranks"]), row
        assert found.report.votes["votes"] == 3


def test_two_questions_are_asked_for():
    answer = lambda **words: [
        {"from_name": name, "value": {"selected": word}} for name, word in words.items()
    ]
    rows = [
        {"id": k, "data": {"prompt": f"q{k}", "left": "x", "right": "y"},
         "annotations": [{"result": answer(helpful="left", harmless="right")}]}
        for k in range(4)
    ]  # fmt: skip
    with pytest.raises(PreferenceDataError, match="'helpful' and 'harmless' could each be the verdict"):
        load(rows)
    assert load(rows, columns={"label": "harmless"})[0]["responses"] == ["y", "x"]


# ---------------------------------------------------------------- context, and texts that are none


def test_what_stands_before_a_prompt_belongs_to_it():
    row = {"prompt": "And then?", "chosen": "x", "rejected": "y"}
    for history in (
        [["Hi", "Hello."]],
        ["Hi", "Hello."],
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
    ):
        found = load([row | {"history": history, "system": "s"}])
        assert [turn["content"] for turn in found[0]["prompt"]] == ["s", "Hi", "Hello.", "And then?"]
    assert load([row | {"history": []}]).kind == "text"
    for beside in ("context", "passage", "input"):
        with pytest.raises(PreferenceDataError, match=f"'{beside}' stands beside the prompt 'prompt'"):
            load([row | {beside: "It was a dark night."}])
    assert len(load([row | {"passage": "x"}], columns={"context": None})) == 1
    alpaca = {"instruction": "Sum up.", "input": "A text.", "chosen": "x", "rejected": "y"}
    assert load([alpaca])[0]["prompt"] == "Sum up.\nA text."


def test_a_turn_that_history_and_prompt_share_stands_once():
    turn = lambda role, text: {"role": role, "content": text}
    earlier = [turn("user", "Hi"), turn("assistant", "Hello.")]
    row = {"chosen": "x", "rejected": "y"}
    for history, prompt in (
        ([*earlier, turn("user", "And then?")], "And then?"),
        (earlier, [*earlier, turn("user", "And then?")]),
        (earlier, [turn("user", "And then?")]),
    ):
        found = load([row | {"history": history, "prompt": prompt, "system": "s"}])
        assert [turn["content"] for turn in found[0]["prompt"]] == ["s", "Hi", "Hello.", "And then?"]
    own = {"system": "s", "history": earlier, "prompt": [turn("system", "own"), turn("user", "q")]}
    found = load([row | own | {"system": "own"}])[0]["prompt"]
    assert [t["content"] for t in found] == ["own", "Hi", "Hello.", "q"]
    alone = {"system": "s", "prompt": [turn("system", "s")], "response": "x"}
    assert PreferenceFormat.detect([alone], judged=False).texts(alone)["prompt"] == [turn("system", "s")]
    plain = load([row | {"prompt": "q"}])[0]["prompt"]
    for none in (None, "", " "):
        assert load([row | {"prompt": "q", "system": none}])[0]["prompt"] == plain


def test_rows_are_grouped_by_all_that_stands_before():
    rows = [
        {"system": s, "prompt": "Go on.", "response": f"{s}{n}", "score": n} for s in "ab" for n in (1, 2)
    ]
    assert len(load(rows)) == 2
    fmt = PreferenceFormat.detect(rows, judged=False)
    assert [fmt.texts(row)["prompt"][0]["content"] for row in rows] == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    "chosen,rejected", [("response_2", "response_1"), ("B", "A"), ("model_b", "model_a")]
)
def test_names_in_place_of_texts(chosen, rejected):
    found = load(many(prompt=Q, response_1=B, response_2=A, chosen=chosen, rejected=rejected))
    assert [r["responses"] for r in found] == [[A.format(k), B.format(k)] for k in range(12)]


def test_conversations_as_json_text_of_an_object():
    turns = lambda text: json.dumps(
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]}
    )
    assert load([{"chosen": turns("x"), "rejected": turns("y")}])[0]["prompt"] == [
        {"role": "user", "content": "q"}
    ]


# ---------------------------------------------------------------- codes in columns, vectors and probabilities

TWO = {"prompt": Q, "response_a": A, "response_b": B}


@pytest.mark.parametrize("names", ["annotator_{}", "rater{}", "label_{}", "judge {} choice"])
def test_a_column_for_each_annotator_holds_votes(names):
    given = dict(zip(map(names.format, (1, 2, 3)), ("b", "a", "b")))
    found = load(many(**TWO, **given))
    assert [record["responses"][0] for record in found] == [B.format(k) for k in range(12)]
    assert found.report.votes["votes"] == 36 and not reasons(found)
    missing = load(many(**TWO, **given | {names.format(2): None}))
    assert missing.report.votes["votes"] == 24
    decided = load(many(**TWO, winner="a", annotator_1="w7", annotator_2="w9"))
    assert decided[0]["responses"][0] == A.format(0) and not decided.report.votes


def test_answers_that_were_not_handed_in_are_no_votes():
    statuses = ["submitted", "draft", "discarded"]
    options = ["response_b", "response_a", "response_a"]
    answers = [{"value": value, "status": status} for value, status in zip(options, statuses)]
    rows = (
        TWO | {"pick.responses": lambda k: options, "pick.responses.status": lambda k: statuses},
        TWO | {"pick": lambda k: answers},
        {"fields": lambda k: many(k + 1, **TWO)[k], "responses": lambda k: {"pick": answers}},
    )
    for cells in rows:
        found = load(many(**cells))
        assert found[3]["responses"][0] == B.format(3) and found.report.votes["votes"] == 12


@pytest.mark.parametrize(
    "cells",
    [
        {"chosen_is_b": lambda k: k % 2 == 1}, {"a_is_better": lambda k: 1 - k % 2},
        {"chosen_is_first": lambda k: str(k % 2 == 0)}, {"label": lambda k: [1 - k % 2, k % 2]},
        {"label": lambda k: [1.0 - k % 2, k % 2, 0.0]}, {"is_a_preferred": lambda k: k % 2 == 0},
    ],
)  # fmt: skip
def test_a_yes_or_a_vector_says_which_is_better(cells):
    found = load(many(**TWO, **cells))
    assert [record["responses"][0] for record in found] == [(A, B)[k % 2].format(k) for k in range(12)]
    assert {record["weight"] for record in found} == {1.0} and found.report.stats["first_won"] == 6


@pytest.mark.parametrize(
    "cells,labels",
    [
        ({"prob_a": lambda k: (0.8, 0.3, 0.5)[k % 3]}, None),
        ({"probability_b": lambda k: (0.2, 0.7, 0.5)[k % 3]}, None),
        ({"label": lambda k: (0.8, 0.3, 0.5)[k % 3]}, {"0": "b", "1": "a"}),
        ({"preference": lambda k: (1.2, 1.7, 1.5)[k % 3]}, {"1": "a", "1.5": "tie", "2": "b"}),
        ({"label": lambda k: ([0.8, 0.2], [0.3, 0.7], [0.5, 0.5])[k % 3]}, None),
    ],
)
def test_the_probability_of_the_better_one_is_the_weight(cells, labels):
    rows = many(**TWO, **cells)
    found = load(rows, labels=labels)
    assert [round(record["weight"], 6) for record in found][:3] == [0.8, 0.7, 1.0]
    assert [record["ranks"] for record in found][:3] == [[1, 2], [1, 2], [1, 1]]
    assert [record["responses"][0] for record in found][:2] == [A.format(0), B.format(1)]
    if labels:
        with pytest.raises(PreferenceDataError, match="lie between .* say which response each end prefers"):
            load(rows)


def test_many_numbers_are_a_scale_and_few_are_codes():
    with pytest.raises(PreferenceDataError, match=r"between 0 and 11; .*labels=\{'0': '\?', '11': '\?'\}"):
        load(many(**TWO, label=lambda k: k))
    with pytest.raises(PreferenceDataError, match=", ".join(f"'{n}': '.'" for n in range(9))):
        load(many(**TWO, label=lambda k: k % 9))


@pytest.mark.parametrize("column", ["strength", "preference_strength"])
def test_a_strength_beside_a_verdict_is_the_margin(column):
    strong = {column: lambda k: k % 3}
    for cells in (TWO | {"label": "b"}, {"prompt": Q, "chosen": B, "rejected": A}):
        found = load(many(**cells, **strong))
        assert [record["margin"] for record in found][:3] == [0, 1, 2]
        assert found[0]["responses"] == [B.format(0), A.format(0)]
        for other in (lambda k: -1, "slightly"):
            found = load(many(**cells, **{column: other}))
            assert found[0]["margin"] is None and found.report.unused_columns == [column]


def test_a_third_response_is_not_lost():
    three = {"prompt": Q, "answer_1": A, "answer_2": B, "answer_3": "A third, {}."}
    best = lambda found: [record["responses"][0] for record in found]
    third = [f"A third, {k}." for k in range(12)]
    for cells in (
        {"label": "answer_3"}, {"best": lambda k: 3}, {"score_1": 1, "score_2": 2, "score_3": 5},
        {"rank_1": 3, "rank_2": 2, "rank_3": 1},
    ):  # fmt: skip
        found = load(many(**three, **cells))
        assert best(found) == third and {len(record["responses"]) for record in found} == {3}
    lettered = {"response_a": A, "response_b": B, "response_c": lambda k: None if k == 5 else third[k]}
    found = load(many(prompt=Q, **lettered, winner="C"))
    assert best(found) == third[:5] + third[6:] and found.report.rows_dropped == 1
    with pytest.raises(PreferenceDataError, match="from 0 or from 1"):
        load(many(**three, label=1))
    rejected = {"prompt": Q, "chosen": A, "rejected_1": B, "rejected_2": lambda k: third[k] if k else None}
    assert [len(record["responses"]) for record in load(many(**rejected))] == [2] + [3] * 11


@pytest.mark.parametrize("beside", ["article", "post", "story", "document"])
def test_a_text_to_which_a_prompt_belongs_is_not_lost(beside):
    with pytest.raises(PreferenceDataError, match=f"'{beside}' stands beside the prompt 'prompt'"):
        load(many(prompt=Q, chosen=A, rejected=B, **{beside: "Once upon a time, {}."}))
    assert load(many(chosen=A, rejected=B, post=Q))[1]["prompt"] == Q.format(1)


def test_what_a_tree_of_messages_does_not_rank_is_counted():
    message = lambda name, before, role, rank=None: {
        "message_id": name, "parent_id": before, "role": role, "text": f"I am {name}.", "rank": rank,
    }  # fmt: skip
    rows = [
        message("y", "q", "assistant", 1), message("q", None, "prompter"), message("x", "q", "assistant", 0),
        message("r", "x", "prompter"), message("z", "r", "assistant", 0), message("lost", "?", "prompter"),
        message("s", "t", "prompter"), message("t", "s", "prompter"), message("z", "q", "assistant", 1),
    ]  # fmt: skip
    found = load(rows)
    assert found[0]["prompt"][0]["content"] == "I am q."
    assert found[0]["responses"][0][0]["content"] == "I am x."
    missing = {"the message before this one is missing": 3, "row is not a message": 1}
    assert reasons(found) == missing | {"fewer than two ranked answers": 1}
    assert found.report.rows_kept == 4 and len(found) == 1


# ---------------------------------------------------------------- what Python stumbles over


def test_one_bad_row_never_ends_a_file(tmp_path):
    good = many(prompt=Q, responses=lambda k: [A.format(k), B.format(k)], scores=[2, 1])
    bad = [
        {"scores": ["", "3"]}, {"scores": [10**400, 1]}, {"scores": {"a": 1}}, {"scores": [[1], 2]},
        {"id": "\ud800"}, {"responses": [{"role": "assistant"}, None]}, {"tools": "\ud800"},
    ]  # fmt: skip
    found = load(good + [good[0] | {"prompt": "p"} | change for change in bad])
    assert len(found) == 12 and found.report.rows_dropped == len(bad)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(good[0]) + "\n" + json.dumps(good[1])[:-1] + f', "n": {"9" * 5000}}}\n')
    assert len(load(path)) == 2


def places(cell, before=()):
    "Where each value of a row stands."
    inner = cell.items() if isinstance(cell, dict) else enumerate(cell) if isinstance(cell, list) else ()
    for key, value in inner:
        yield (*before, key)
        yield from places(value, (*before, key))


def with_value(row, place, value):
    row = copy.deepcopy(row)
    cell = row
    for key in place[:-1]:
        cell = cell[key]
    cell[place[-1]] = value
    return row


NESTED = reduce(lambda inner, _: [inner], range(60), [])
BROKEN = [
    None,
    "",
    math.nan,
    math.inf,
    10**400,
    "\ud800",
    [],
    {},
    [None],
    {"a": [None]},
    NESTED,
    -1,
    True,
    "x" * 9999,
]


@pytest.mark.parametrize("layout", published_layouts._LAYOUTS, ids=lambda layout: layout.name)
def test_a_row_with_any_value_is_read_or_reported(layout):
    "Each place of a documented example holds what nobody expects: no traceback, and no row is lost."
    rows = layout.example if isinstance(layout.example, list) else [layout.example]
    where = [(n, place) for n, row in enumerate(rows) for place in places(row)]
    for number, (n, place) in enumerate(where):
        value = BROKEN[number % len(BROKEN)]
        broken = [*rows[:n], with_value(rows[n], place, value), *rows[n + 1 :]]
        given = broken if number % 2 else [*rows, *broken]
        try:
            found = load(given, **layout.options)
        except PreferenceDataError as error:
            assert str(error) and "\n" not in str(error)
            continue
        report = found.report
        dropped = sum(entry["count"] for entry in report.dropped.values())
        assert report.rows_read == len(given) == report.rows_kept + dropped and report.rows_kept >= 0
        assert str(report)
        together = report.votes or "OASST" in layout.name  # rows that share a record
        assert together or found.measures["rows"].sum() == report.rows_kept


@pytest.mark.parametrize("judges", [("x", "y"), ("x", None)])
def test_votes_on_conversations_are_counted(judges):
    talk = lambda text: [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
    row = {"conversation_a": talk("a"), "conversation_b": talk("b"), "turn": 1}
    for winners in (("model_b", "model_b"), ("model_a", "model_b")):
        found = load([row | {"judge": j, "winner": w} for j, w in zip(judges, winners)])
        assert len(found) == 1 and found.report.votes["votes"] == 2
        assert found[0]["ranks"] == ([1, 2] if len(set(winners)) == 1 else [1, 1])


def test_a_conversation_without_a_shared_turn_is_dropped():
    turn = lambda role, text: {"role": role, "content": text}
    end = lambda text: turn("assistant", text)
    pair = lambda *start: {"chosen": [*start, end("x")], "rejected": [*start, end("y")]}
    found = load([*(pair(turn("user", f"q{n}")) for n in range(3)), pair()])
    assert reasons(found) == {"no prompt: the conversations share no turn": 1} and len(found) == 3


def test_null_ratings_leave_their_response_out():
    found = load(many(prompt=Q, responses=["x", "y", "z"], ratings=[5, None, 1]))
    unrated = "row with an unrated response, which is left out (kept)"
    assert found[0]["responses"] == ["x", "z"] and reasons(found) == {unrated: 12}


def test_a_missing_number_of_a_table_is_none(tmp_path):
    rows = many(prompt=Q, chosen=A, rejected=B)
    table = pa.Table.from_pylist(rows).append_column("margin", pa.array([np.nan, *range(11)], pa.float64()))
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    assert [record["margin"] for record in load(tmp_path / "a.parquet")][:2] == [None, 0.0]


def test_files_of_other_programs(tmp_path):
    rows = many(prompt=Q, chosen=A, rejected=B)
    lines = "\n".join(map(json.dumps, rows)).encode()
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(lines))
    (tmp_path / "a.jsonl.zst").write_bytes(pa.compress(lines, codec="zstd", asbytes=True))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jsonl", lines)
    table = "prompt,chosen,rejected\r" + "\r".join(
        f'"{r["prompt"]}","{r["chosen"]}","{r["rejected"]}"' for r in rows
    )
    (tmp_path / "a.csv").write_text(table, newline="")
    for path in tmp_path.iterdir():
        assert load(path).fingerprint == load(rows).fingerprint, path
    for name in ("b.jsonl", "b.parquet", "b.csv"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        with pytest.raises(PreferenceDataError, match=f"{name}: this is a Git LFS pointer"):
            load(tmp_path / name)


def test_a_table_may_name_its_separator(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("sep=;\nprompt;chosen;rejected\nq, or r?;a, b;c\nq;a;a\n", encoding="utf-8-sig")
    found = load(path)
    assert found[0]["responses"] == ["a, b", "c"] and found[0]["origin"] == "a.csv:3"
    assert found.report.dropped["chosen is identical to rejected"]["examples"] == ["a.csv:4"]


def test_words_in_the_cells_of_a_workbook_are_texts(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl reads workbooks")
    book = openpyxl.Workbook()
    for row in (["prompt", "chosen", "rejected"], ["q", "NA", "null"], [None] * 3, ["r", 7, "None"]):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    found = load(tmp_path / "a.xlsx")
    assert [record["responses"] for record in found] == [["NA", "null"], ["7", "None"]]
    assert found[1]["origin"] == "a.xlsx row 3"
    (tmp_path / "b.xlsx").write_text("no workbook")
    with pytest.raises(PreferenceDataError, match="b.xlsx: not a readable workbook"):
        load(tmp_path / "b.xlsx")


def test_splits_of_different_trainings_are_kept_apart(tmp_path):
    for name in ("train_prefs", "train_sft", "test_prefs"):
        (tmp_path / f"{name}-00000.jsonl").write_text(
            json.dumps(many(1, prompt=name, chosen=A, rejected=B)[0])
        )
    with pytest.raises(PreferenceDataError, match="among 'test_prefs', 'train_prefs', 'train_sft'"):
        read_rows(tmp_path)
    assert list(load(tmp_path, split="train_prefs").report.overlaps) == ["test_prefs"]


def test_good_and_bad_are_paired_by_prompt():
    rows = many(prompt=Q, completion=A, label=True) + many(10, prompt=Q, completion=B, label=False)
    found = load(rows)
    assert len(found) == 10 and reasons(found) == {"only one response to its prompt": 2}
    assert all(record["responses"][0].startswith("The sky") for record in found)
    with pytest.raises(PreferenceDataError, match="none of 12 rows can be used: only one response"):
        load(rows[:12])


# ---------------------------------------------------------------- the files beside the repository

RIGHT = {  # name -> rows kept and records, or what the refusal says
    "alpaca": (40, 40), "choice_from_one": (40, 40), "chosen_by_name": (40, 40), "empty_score": (29, 29),
    "helpsteer3": (50, 50), "history": (40, 40), "huge_integer": (31, 31), "judge_arrows": (30, 30),
    "kto": (60, 30), "label_studio_two_questions": "columns={'label': 'helpful'}",
    "labelled_unknown_prompt": "{'prompt': 'user_question'}", "labels_one_and_a_half": "'1': '?', '1.5': '?'",
    "lfs_pointer": "Git LFS pointer", "ms_swift": (40, 40), "no_shared_turn": (30, 30),
    "null": "null.json row 1",
    "old_mac": (30, 30), "openai_dpo": (40, 40), "pairs_trajectory": "{'prompt': 'trajectory'}",
    "post_and_null_article": (40, 40), "rating_with_null": (20, 20), "scored_by_system": (4, 2),
    "scored_unknown_prompt": "{'prompt': 'user_question'}", "strength_likert": "run from 1 to 7",
    "votes": (70, 21),
}  # fmt: skip


@pytest.mark.skipif(not CASES.exists(), reason="the small inputs are not beside this repository")
@pytest.mark.parametrize("name", RIGHT)
def test_the_small_inputs(name):
    (path,), right = CASES.glob(f"{name}.*"), RIGHT[name]
    if isinstance(right, str):
        with pytest.raises(PreferenceDataError, match=re.escape(right)):
            load(path)
        return
    found = load(path)
    assert (found.report.rows_kept, len(found)) == right


def test_reasons_are_rows_that_can_be_looked_up():
    with pytest.raises(UnusableRow, match="row cannot be read|is not text"):
        to_record({"prompt": "q", "chosen": object(), "rejected": "b"})


# ---------------------------------------------------------------- what looks like a verdict or a response

ASKED, PAIR = {"prompt": "Which is prime, {}?"}, {"response_a": "Seven, {}.", "response_b": "Nine, {}."}
OPTIONS = {"option_a": "two", "option_b": "nine", "option_c": "ten", "option_d": "one"}
CODES = {"0": "b", "0.25": "b", "0.5": "tie", "0.75": "a", "1": "a"}


@pytest.mark.parametrize(
    "cells,options,better",
    [
        ({**PAIR, "label": "a", **OPTIONS}, {}, "Seven, 0."),
        ({"answers": ["7", "9"], "best": 0, "text_1": "x", "text_2": "y", "text_3": "z"}, {}, "7"),
        ({**PAIR, "decision": "a", "annotator_1": "u1", "annotator_2": "u3"}, {}, "Seven, 0."),
        ({**PAIR, "score_a": 3, "score_b": 1, "annotator_1": "u1", "annotator_2": "u3"}, {}, "Seven, 0."),
        ({**PAIR, "gold": "b", "judge_1": "gpt4", "judge_2": "claude"}, {}, "Nine, 0."),
        (
            {**PAIR, "overall_preference": lambda k: (-1, 3)[k % 2], "worker_1": 1, "worker_2": 2},
            {},
            "Seven, 0.",
        ),
        ({**PAIR, "overall": "a", "annotator_1_confidence": 1, "annotator_2_confidence": 2}, {}, "Seven, 0."),
        ({**PAIR, "decision": "a", "prob_a": 0.1}, {}, "Seven, 0."),
        ({"chosen": "7, {}", "rejected": "9, {}", "rejected_1_model": "x"}, {}, "7, 0"),
        ({**PAIR, "label": lambda k: (0, 0.25, 0.5, 0.75, 1)[k % 5]}, {"labels": CODES}, "Nine, 0."),
        ({**PAIR, "prob_b": 0.5, "prob_a": 0.4, "prob_tie": 0.1}, {}, "Nine, 0."),
        ({**PAIR, "a_wins": 1, "b_wins": 2}, {}, None),
        ({**PAIR, "a_is_better": False, "b_is_better": False}, {}, None),
        ({**PAIR, "prob_a_correct": 0.9, "prob_b_correct": 0.95}, {}, None),
        ({**PAIR, "label": [1, 0, 0]}, {"labels": {"0": "a", "1": "b"}}, None),
    ],
    ids=lambda value: "-".join(value)[:60] if isinstance(value, dict) else None,
)
def test_what_only_looks_like_a_verdict_is_none(cells, options, better):
    rows = many(**ASKED, **cells)
    if better is None:
        with pytest.raises(PreferenceDataError):
            load(rows, **options)
        return
    found = load(rows, **options)
    assert (len(found), found[0]["responses"][0], found[0]["ranks"]) == (12, better, [1, 2])


def test_counted_columns_of_rejected_texts():
    cells = {
        "rejected_1": "9, {}",
        "rejected_1_model": "gpt",
        "rejected_2": "10, {}",
        "rejected_2_model": "x",
    }
    found = load(many(**ASKED, chosen="7, {}", **cells))
    assert found[0]["responses"] == ["7, 0", "9, 0", "10, 0"] and found[0]["ranks"] == [1, 2, 2]
    found = load(many(**ASKED, chosen="7, {}", rejected="9, {}", rejected_2="10, {}"))
    assert found[0]["responses"] == ["7, 0", "9, 0", "10, 0"]


def test_a_strength_beside_a_label_is_a_margin_on_the_scale_of_margins():
    rows = lambda size: many(**ASKED, **PAIR, label="b", strength=size)
    strong = lambda size, **options: load(rows(size), **options)[0]["margin"]
    assert (strong(2), strong(90), strong(2, columns={"margin": None})) == (2, None, None)


def test_a_conversation_of_any_depth_and_empty_cells_in_a_table_of_messages():
    row = lambda k, before, rank: {
        "message_id": f"m{k}",
        "parent_id": before,
        "text": f"t{k}",
        "role": ("prompter", "assistant")[k % 2],
        "rank": rank,
    }
    deep = [row(k, f"m{k - 1}" if k else None, 0 if k % 2 else None) for k in range(1500)]
    assert len(load([*deep, row(1501, "m0", 1)])) == 1
    table = [row(0, "", ""), row(1, "m0", "1"), row(3, "m0", "0")]
    assert load(table)[0]["responses"][0][-1]["content"] == "t3"


# ---------------------------------------------------------------- what the caller says, what would be lost

SWIFT = {"query": Q, "response": A, "rejected_response": B}
SCALED = {**TWO, "label": "b", "grade_a": 5, "grade_b": 1, "pref": -2}
LISTED = {
    "prompt": Q,
    "responses": lambda k: [A.format(k), B.format(k)],
    "scores": [1, 5],
    "order": [1, 2],
    "pick": 0,
}
MANY = {"prompt": Q, "response_1": A, "response_2": "x {}", "response_3": B, "mark": "a"}


@pytest.mark.parametrize("cells,columns,labels", [
    (SWIFT, {"prompt": "query", "chosen": "response", "rejected": "rejected_response"}, None),
    ({"history": Q, "human_ref_A": A, "human_ref_B": B, "labels": 1}, {"prompt": "history"}, None),
    ({"instruction": Q, "response1": A, "response2": B, "annotator1": 1, "annotator2": 2, "annotator3": 2},
     {"label": "annotator1"}, {"1": "a", "2": "b"}),
    ({**TWO, "rater_1": "b", "rater_2": "a", "rater_3": "b"}, {"label": "rater_2"}, None),
    (MANY, {"response_a": "response_1", "response_b": "response_3", "label": "mark"}, None),
    ({"prompt": Q, "chosen": A, "rejected_1": "x", "rejected_2": B}, {"rejected": "rejected_2"}, None),
    ({"prompt": Q, "chosen": lambda k: [A.format(k)], "rejected": lambda k: [B.format(k)]},
     {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}, None),
    ({"instruction": "x", "input": Q, "chosen": A, "rejected": B}, {"prompt": "input"}, None),
    (SCALED, {"score_a": "grade_a", "score_b": "grade_b"}, None),
    (SCALED, {"strength": "pref"}, None),
    ({**TWO, "chosen": "x", "rejected": "y", "mark": "a"},
     {"response_a": "response_a", "label": "mark"}, None),
    ({"prompt": Q, "response_a": "x", "response_b": "y", "label": "b", "fine": A, "poor": B},
     {"chosen": "fine", "rejected": "poor"}, None),
    (LISTED, {"ranks": "order"}, None),
    (LISTED, {"best": "pick"}, {"0": "a"}),
    ({**LISTED, "ranks": [2, 1], "stars": [5, 1]}, {"scores": "stars"}, None),
])  # fmt: skip
def test_a_column_that_the_caller_names_is_meant_in_every_layout(cells, columns, labels):
    found = load(many(**cells), columns=columns, labels=labels)
    assert [record["prompt"] for record in found] == [Q.format(k) for k in range(12)]
    assert [record["responses"] for record in found] == [[A.format(k), B.format(k)] for k in range(12)]
    assert {tuple(record["ranks"]) for record in found} == {(1, 2)}


def test_what_a_layout_reads_alike_may_be_named():
    turns = lambda k: [
        {"role": "user", "content": Q.format(k)},
        {"role": "assistant", "content": A.format(k)},
    ]
    for columns in ({"prompt": "messages"}, {"prompt": "messages", "rejected": "rejected_response"}):
        found = load(many(messages=turns, rejected_response=B), columns=columns)
        assert [record["responses"][0][0]["content"] for record in found] == [A.format(k) for k in range(12)]


@pytest.mark.parametrize("beside", [
    {"retrieved_context": "It was a dark night."}, {"image": "cat.png"}, {"images": [{"bytes": "x"}]},
    {"persona": "You are a pirate."}, {"dialog": [{"role": "user", "content": "Hi"}]},
    {"earlier_messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
    {"code": "print(1, 2)"},
])  # fmt: skip
def test_nothing_that_belongs_to_a_prompt_is_lost(beside):
    rows = many(prompt=Q, chosen=A, rejected=B, **beside)
    for judged in (True, False, None):
        with pytest.raises(PreferenceDataError, match=f"'{next(iter(beside))}' stands beside the prompt"):
            PreferenceFormat.detect(rows, judged=judged)
    assert len(load(rows, columns={"context": None})) == 12
    plain = {
        "document_id": "d 7",
        "code": "en",
        "table": None,
        "context_length": 7,
        "messages": lambda k: [
            {"role": "user", "content": Q.format(k)},
            {"role": "assistant", "content": A.format(k)},
        ],
    }
    assert len(load(many(prompt=Q, chosen=A, rejected=B, **plain))) == 12


@pytest.mark.parametrize("cells", [
    {"prompt": Q, "y_w": A, "y_l": B},
    {"user_prompt": Q, "chosen_answer": A, "rejected_answer": B},
    {"prompt": Q, "chosen": lambda k: {"text": A.format(k), "score": 5},
     "rejected": lambda k: {"text": B.format(k), "score": 1}},
    {"prompt": Q, "responses": lambda k: {"x": A.format(k), "y": B.format(k)}, "scores": {"x": 5, "y": 1}},
    {"prompt": Q, "responses": lambda k: {"x": B.format(k), "y": A.format(k)}, "winner": "y"},
    {"row_idx": 0, "row": lambda k: {"prompt": Q.format(k), "chosen": A.format(k), "rejected": B.format(k)}},
    {"input": lambda k: {"prompt": Q.format(k)},
     "output": lambda k: {"chosen": A.format(k), "rejected": B.format(k)}},
    {**TWO, "votes_a": 5, "votes_b": 2},
    {**TWO, "label": "Response A is better"},
    {**TWO, "winner": A},
    {"prompt": Q, "response_1": B, "response_2": A, "better_response": A},
    {"prompt": Q, "response_1": B, "response_2": A, "response_3": "x", "winner": A},
    {"prompt": Q, "responses": lambda k: [A.format(k), B.format(k)], "best": "A"},
    {"prompt": Q, "responses": lambda k: [B.format(k), A.format(k)], "best": A},
    {**TWO, "overall_preference": "response_a"},
    {**TWO, "label": '["a", "b", "a"]'},
    {**TWO, "votes": [{"rater": 1, "label": "a"}, {"rater": 2, "label": "a"}]},
    {**TWO, "votes": {"a": 3, "b": 1}},
])  # fmt: skip
def test_more_ways_to_write_a_pair(cells, tmp_path):
    found = load(many(**cells))
    assert len(found) == 12
    assert [record["responses"][0] for record in found] == [A.format(k) for k in range(12)]
    assert [record["prompt"] for record in found] == [Q.format(k) for k in range(12)]
    assert {record["ranks"][0] < record["ranks"][-1] for record in found} == {True}
    listener = Listener()
    listener.score_file(many(**cells), tmp_path / "a.jsonl", score_column="given")
    assert {text for _, text, _ in listener.heard} == {
        text for record in found for text in record["responses"]
    }


@pytest.mark.parametrize("name,good,bad", [
    ("label", "desirable", "undesirable"), ("label", "Good", "bad"), ("thumbs_up", 1, 0),
    ("is_chosen", True, False), ("label", "thumbs up", "thumbs down"),
])  # fmt: skip
def test_good_and_bad_have_many_words(name, good, bad):
    rows = many(prompt=Q, completion=A, **{name: good}) + many(prompt=Q, completion=B, **{name: bad})
    assert [record["responses"] for record in load(rows)] == [[A.format(k), B.format(k)] for k in range(12)]


def test_a_label_is_no_text_of_a_response():
    "Also where a response says what a label would."
    found = load([{"prompt": "q", "response_a": "b", "response_b": "a", "label": "b"}])
    assert found[0]["responses"] == ["a", "b"]


@pytest.mark.parametrize("start,said", [
    (b"PAR1\x15\x04\x15\xff", "this is a Parquet file; name it .parquet"),
    (b"\x1f\x8b\x08\x00", "compressed by gzip; let its name end with .gz"),
    (b"\x89PNG\r\n", "this is a picture"), (b"PK\x03\x04\xff", "this is a workbook or an archive"),
    (b"caf\xe9", "not UTF-8; save it as UTF-8"),
])  # fmt: skip
def test_a_file_of_another_kind_is_named(start, said, tmp_path):
    for name in ("a.jsonl", "a.csv", "a.json"):
        (tmp_path / name).write_bytes(start)
        with pytest.raises(
            PreferenceDataError, match=re.escape(f"{name}:1: {said}" if "UTF" in said else said)
        ):
            load(tmp_path / name)


def test_tables_with_bars_and_utf16_without_a_mark(tmp_path):
    rows = many(prompt=Q, chosen=A, rejected=B)
    lines = ["|".join(rows[0]), *("|".join(row.values()) for row in rows)]
    for n, encoding in enumerate(("utf-8", "utf-16-le", "utf-16-be")):
        (tmp_path / f"{n}.csv").write_bytes("\n".join(lines).encode(encoding))
        assert load(tmp_path / f"{n}.csv").fingerprint == load(rows).fingerprint
    (tmp_path / "a.json").write_text(json.dumps({f"id{n}": row for n, row in enumerate(rows)}))
    assert load(tmp_path / "a.json").fingerprint == load(rows).fingerprint


def test_an_alpaca_row_in_capitals():
    found = load(many(Instruction="Sum up.", Input=Q, Chosen=A, Rejected=B))
    assert found[1]["prompt"] == "Sum up.\n" + Q.format(1)


def test_json_named_as_a_table_and_rows_without_a_score(tmp_path):
    (tmp_path / "a.csv").write_text("\n".join(map(json.dumps, many(prompt=Q, chosen=A, rejected=B))))
    with pytest.raises(PreferenceDataError, match="a.csv:1: this is JSON, not a table; name it .jsonl"):
        load(tmp_path / "a.csv")
    with pytest.raises(
        PreferenceDataError, match=r"no column for 'score'; .* say columns=\{'score': '\.\.\.'\}"
    ):
        load(many(prompt=Q, response=A, toxicity=0.1))


def test_a_policy_without_a_template_continues_a_transcript_and_no_other_text(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(playground_base())
    tokenizer.chat_template = None
    path, transcript = tmp_path / "a.jsonl", "\n\nHuman: q\n\nAssistant:"
    path.write_text(json.dumps({"prompt": transcript}))
    found = Prompts.load(path)
    (ids,) = found.encode(tokenizer)
    assert tokenizer.decode(ids, skip_special_tokens=True) == transcript == found[0]["prompt"]
    messages = json.dumps([{"role": "user", "content": "q"}])  # as a table has them
    for cells in ({"prompt": messages}, {"prompt": transcript, "system": "s"}):
        path.write_text(json.dumps(cells))
        with pytest.raises(ValueError, match="a.jsonl:1: a conversation, but .* no chat template"):
            Prompts.load(path).encode(tokenizer)


# ---------------------------------------------------------------- sides and verdicts under names of their own


def judged(first, second, verdict, one, two, n=12, **more):
    "Rows whose better response stands first or second; the verdict says which."
    return [
        {"prompt": Q.format(k), **dict(zip((first, second), texts if k % 3 else texts[::-1]))}
        | {verdict: one if k % 3 else two} | more
        for k in range(n) for texts in [(A.format(k), B.format(k))]
    ]  # fmt: skip


def assert_sorted(found, n=12):
    assert [record["responses"] for record in found] == [[A.format(k), B.format(k)] for k in range(n)]
    assert [record["prompt"] for record in found] == [Q.format(k) for k in range(n)]
    assert all(record["ranks"] == [1, 2] for record in found)


@pytest.mark.parametrize("sides", [
    ("response_left", "response_right", "label", "left", "right"),
    ("left_answer", "right_answer", "label", "left_answer", "right_answer"),
    ("first_output", "second_output", "winner", "first", "second"),
    ("model_a_response", "model_b_response", "winner", "model_a", "model_b"),
    ("model_1_output", "model_2_output", "preferred_model", "model_1", "model_2"),
    ("A", "B", "winner", "A", "B"),
    ("claude", "gpt4", "winner", "claude", "gpt4"),
    ("response_claude", "response_gpt4", "winner", "Claude", "gpt-4"),
    ("option_a", "option_b", "label", "A", "B"),
    ("responseLeft", "responseRight", "label", "left", "right"),
])  # fmt: skip
def test_two_responses_are_found_by_their_sides_or_by_the_verdict(sides, tmp_path):
    rows = judged(*sides)
    assert_sorted(load(rows))
    assert_sorted(load(judged(*sides, model_a="x", model_b="y")))
    assert PreferenceFormat.detect(rows, judged=None).texts(rows[0])["prompt"] == Q.format(0)
    if sides[0] not in ("A", "claude", "option_a", "response_claude"):
        assert len(PreferenceFormat.detect(rows, judged=False).texts(rows[0])["responses"]) == 2
    ties = [row | {sides[2]: "tie"} for row in rows[:2]]
    assert [record["ranks"] for record in load(ties + rows[2:])][:3] == [[1, 1], [1, 1], [1, 2]]


def test_names_of_models_are_no_responses_and_a_word_is_no_chosen_text():
    rows = judged("g", "h", "winner", "model_1", "model_2", model_1="x", model_2="y")
    with pytest.raises(PreferenceDataError, match="no column for"):
        load(
            [
                {"prompt": row["prompt"], "model_1": "x", "model_2": "y", "winner": row["winner"]}
                for row in rows
            ]
        )
    odd = judged("this", "that", "winner", "1st", "2nd")
    advice = "say columns={'response_a': 'this', 'response_b': 'that', 'label': 'winner'}"
    with pytest.raises(PreferenceDataError, match=re.escape(advice)):
        load(odd)
    columns = {"response_a": "this", "response_b": "that", "label": "winner"}
    with pytest.raises(PreferenceDataError, match=re.escape("labels={'1st': '?', '2nd': '?'}")):
        load(odd, columns=columns)
    assert_sorted(load(odd, columns=columns, labels={"1st": "a", "2nd": "b"}))


@pytest.mark.parametrize("one,two", [
    ("Response 1 is slightly better", "Response 2 is much better"),
    ("A is significantly better than B", "B is slightly better than A"),
    ("Response 2 is worse", "Response 1 is far worse than Response 2"),
    ("strongly prefer A", "I prefer Response 2"), ("1 is better", "2 is better"),
    ("A (much better)", "B: clearly the better response"),
])  # fmt: skip
def test_a_verdict_may_be_a_sentence(one, two):
    assert_sorted(load(judged("response_1", "response_2", "preference", one, two)))
    rows = judged("response_1", "response_2", "Which response is better?", one, two)
    rows += [row | {"Which response is better?": "They are about the same"} for row in rows[:1]]
    assert load(rows)[0]["ranks"] in ([1, 1], [1, 2])


def test_words_that_are_not_clear_are_asked_for_all_at_once():
    rows = judged("response_1", "response_2", "label", "Fine: yes", "not A")
    with pytest.raises(PreferenceDataError, match=re.escape("labels={'fine: yes': '?', 'not_a': '?'}")):
        load(rows)
    assert_sorted(load(rows, labels={"fine: yes": "a", "not_a": "b"}))


def single(name, good, bad, **more):
    rows = many(prompt=Q, response=A, **{name: good}, **more)
    return rows + many(prompt=Q, response=B, **{name: bad}, **more)


@pytest.mark.parametrize("name,good,bad", [
    ("is_safe", True, False), ("correct", True, False), ("reward", True, False), ("chosen", True, False),
    ("accepted", "True", "False"), ("passed", "yes", "no"), ("won", 1, 0), ("feedback", "up", "down"),
    ("feedback", "👍", "👎"), ("type", "chosen", "rejected"), ("outcome", "pass", "fail"),
    ("result", "Correct", "Incorrect"), ("label", "safe", "unsafe"), ("reaction", "thumbs up", "thumbs down"),
])  # fmt: skip
def test_whether_one_response_is_good_is_said_in_many_columns(name, good, bad):
    assert_sorted(load(single(name, good, bad)))


def test_what_true_means_is_asked_where_the_column_asks_for_what_is_bad():
    for name in "is_toxic", "flagged", "seen":
        with pytest.raises(PreferenceDataError, match=re.escape(f"columns={{'label': {name!r}}} and")):
            load(single(name, False, True))
    named = {"columns": {"label": "is_toxic"}}
    with pytest.raises(PreferenceDataError, match=re.escape("labels={'true': '?', 'false': '?'}")):
        load(single("is_toxic", False, True), **named)
    found = load(single("is_toxic", False, True), **named, labels={"true": "bad", "false": "good"})
    assert_sorted(found)
    with pytest.raises(PreferenceDataError, match="means 'good' or 'bad'"):
        load(single("label", "x", "y"), labels={"x": "a", "y": "b"})
    assert_sorted(load(single("label", "x", "y"), labels={"x": "good", "y": "bad"}))
    with pytest.raises(PreferenceDataError, match=re.escape("or columns={'score': 'label'} if a higher")):
        load(single("label", 1, -1))
    assert_sorted(load(single("label", 1, -1), columns={"score": "label"}))


def test_a_table_without_a_header_is_told_so(tmp_path):
    rows = many(prompt=Q, chosen=A, rejected=B)
    texts = (
        [[f"Well, {cell}" for cell in row.values()] for row in rows],
        [["2 + 2?", "4", "5"], ["3?", "3", "4"]],
    )
    for lines in texts:
        (tmp_path / "a.csv").write_text("\n".join(",".join(map(json.dumps, line)) for line in lines))
        with pytest.raises(PreferenceDataError, match="a.csv: .* this file seems to have no header; write"):
            load(tmp_path / "a.csv")
        with pytest.raises(PreferenceDataError, match="this file seems to have no header"):
            Prompts.load(tmp_path / "a.csv")


@pytest.mark.parametrize("name,text,said", [
    ("a.csv", "Export of 2026,,\n\nprompt,chosen,rejected\nq,a,b\n", "seems to be a title or a comment"),
    ("a.csv", "# exported\nprompt,chosen,rejected\nq,a,b\n", "'# exported' seems to be a title or a comment"),
    ("a.csv", "prompt,chosen,chosen,rejected\nq,a,b,c\n", "'chosen'; rename one of them"),
    ("a.jsonl", '[{"prompt": "q", "chosen": "a"}]', "a.jsonl:1: JSON of all rows in one line; name it .json"),
    ("a.jsonl", '[{"prompt": "q"},\n{"prompt": "r"}]', "spread over several lines; .* or name it .json"),
    ("a.jsonl", "prompt,chosen\nq,a\n", "this is not JSON; a table is named .csv"),
    ("a.jsonl", '"prompt","chosen"\n"q","a"\n', "this is not JSON; a table is named .csv"),
    ("a.jsonl", '{"prompt": "q"},\n{"prompt": "r"},\n', "the lines end with commas; remove these"),
])  # fmt: skip
def test_how_a_file_begins_tells_what_is_wrong_with_it(name, text, said, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(PreferenceDataError, match=said):
        load(tmp_path / name)


def test_rows_beside_other_facts_and_a_table_of_one_column(tmp_path):
    rows = many(prompt=Q, chosen=A, rejected=B)
    for whole in (
        {
            "rows": [{"row_idx": k, "row": row} for k, row in enumerate(rows)],
            "features": [{"name": "prompt"}],
        },
        {"annotators": ["x", "y"], "data": rows},
    ):
        (tmp_path / "a.json").write_text(json.dumps(whole))
        assert load(tmp_path / "a.json").fingerprint == load(rows).fingerprint
    (tmp_path / "a.csv").write_text("prompt\nOne, two?\nThree; four?\n")
    assert [prompt["prompt"] for prompt in Prompts.load(tmp_path / "a.csv")] == ["One, two?", "Three; four?"]


def swapped(first, second, n=12):
    "(number, cells of two responses, whether the better one is first)."
    for k in range(n):
        texts = (A.format(k), B.format(k))
        yield k, dict(zip((first, second), texts if k % 3 else texts[::-1])), bool(k % 3)


@pytest.mark.parametrize("cells", [
    lambda won: {"scores": [8, 2] if won else [2, 8]}, lambda won: {"scores": [won, not won]},
    lambda won: {"response_1_rating": 2 + won, "response_2_rating": 3 - won},
    lambda won: {"rank_1": 2 - won, "rank_2": 1 + won},
    lambda won: {"ranking": ["response_1", "response_2"] if won else ["response_2", "response_1"]},
    lambda won: {"ranking": "1>2" if won else "2 > 1"},
])  # fmt: skip
def test_two_scores_and_two_ranks_are_read_in_many_places(cells):
    rows = [{"prompt": Q.format(k)} | two | cells(won) for k, two, won in swapped("response_1", "response_2")]
    assert_sorted(load(rows))
    with_label = [row | {"label": "a" if won else "b"} for row, (*_, won) in zip(rows, swapped("a", "b"))]
    assert_sorted(load(with_label))
    sides = {"response_1": "left_response", "response_2": "right_response"}
    renamed = [{sides.get(name, name): cell for name, cell in row.items()} for row in rows]
    if "scores" in rows[0]:
        assert_sorted(load(renamed))


def test_two_annotators_are_no_scores():
    rows = [
        {"prompt": Q.format(k)} | two | {"rank_1": 1, "rank_2": 2}
        for k, two, _ in swapped("answer_a", "answer_b")
    ]
    with pytest.raises(PreferenceDataError, match="no column for 'label'"):
        load(rows)


@pytest.mark.parametrize("ranking", [
    ["answer_b", "answer_c", "answer_a"], "B > C > A", "answer_b, answer_c, answer_a",
    ["B", "C", "A"], "B>C=A",
])  # fmt: skip
def test_a_ranking_names_three_columns(ranking):
    found = load(many(prompt=Q, answer_a=B, answer_b=A, answer_c="So so.", ranking=lambda k: ranking))
    assert found[1]["responses"][0] == A.format(1)
    assert found[1]["ranks"] == ([1, 2, 2] if "=" in ranking else [1, 2, 3])
    assert found[1]["responses"][1] == "So so." or "=" in ranking


def test_numbers_under_names_or_in_a_text_are_asked_for():
    rows = many(
        prompt=Q, answer_a=B, answer_b=A, answer_c="So so.", ranking=lambda k: {"A": 3, "B": 1, "C": 2}
    )
    with pytest.raises(
        PreferenceDataError, match=re.escape("say columns={'ranks': 'ranking'} if 1 is the best")
    ):
        load(rows)
    assert load(rows, columns={"ranks": "ranking"})[0]["responses"][0] == A.format(0)
    assert load(rows, columns={"scores": "ranking"})[0]["responses"][0] == B.format(0)
    rows = many(prompt=Q, response_1=B, response_2=A, response_3="So so.", ranking="2,3,1")
    with pytest.raises(
        PreferenceDataError, match="'ranking' may hold the rank of each response, or the resp"
    ):
        load(rows)
    assert load(rows, columns={"best_first": "ranking"})[0]["responses"][0] == A.format(0)


def test_the_number_of_the_best_response_may_be_called_chosen():
    rows = [{"prompt": Q.format(k), "responses": [*two.values()], "chosen": int(not won)}
            for k, two, won in swapped("a", "b")]  # fmt: skip
    assert_sorted(load(rows))
    with pytest.raises(PreferenceDataError, match="'chosen' and 'rejected' hold numbers of responses"):
        load([row | {"responses": [*row["responses"], "x"], "rejected": 0} for row in rows])


# ---------------------------------------------------------------- what platforms export


def test_tables_of_crowd_platforms(tmp_path):
    prefixes = [("Input.", "Answer.", "WorkerId"), ("INPUT:", "OUTPUT:", "ASSIGNMENT:worker_id")]
    for given, said, worker in prefixes:
        rows = []
        for k, two, won in swapped("response_a", "response_b"):
            for n, vote in enumerate("aab" if won else "bba"):
                cells = {f"{given}{name}": cell for name, cell in ({"prompt": Q.format(k)} | two).items()}
                rows.append(
                    cells | {f"{said}preference": vote, worker: f"w{n}", "Reward": "$0.10", "HITId": "h"}
                )
        found = load(rows)
        assert_sorted(found)
        assert found[0]["ranks"] == [1, 2] and "Reward" not in found.report.columns.values()
        assert PreferenceFormat.detect(rows, judged=None).texts(rows[0])["prompt"] == Q.format(0)
        flat = [{name.replace("preference", "choice.b"): cell for name, cell in row.items()} for row in rows]
        for row in flat:
            row[f"{said}choice.a"] = str(row[f"{said}choice.b"] == "a").lower()
            row[f"{said}choice.b"] = str(row[f"{said}choice.b"] == "b").lower()
        assert_sorted(load(flat))
    turned = {name: cell for name, cell in rows[0].items()} | {"ASSIGNMENT:status": "REJECTED"}
    assert reasons(load([turned, *rows[1:]]))["its assignment was rejected"] == 1


def test_answers_of_annotation_tools_in_objects():
    rows = [{"prompt": Q.format(k)} | two | {"better": json.dumps([{"selected": "left" if won else "right"}])}
            for k, two, won in swapped("answer1", "answer2")]  # fmt: skip
    assert_sorted(load(rows))
    second = '[{"rating": 2}, {"rating": 3}]'
    rated = [{"prompt": Q.format(k), "rating_a": [{"rating": 2 + won}], "rating_b": second} | two
             for k, two, won in swapped("response_a", "response_b")]  # fmt: skip
    assert_sorted(load(rated))
    records = [
        {"fields": {"prompt": Q.format(k)} | two, "metadata": {}, "suggestions": [], "responses": [
            {"user_id": n, "status": status, "values": {"preference": {"value": "1" if own else "2"}}}
            for n, (status, own) in enumerate(
                (("submitted", won), ("submitted", won), ("discarded", not won)))]}
        for k, two, won in swapped("response-1", "response-2")
    ]  # fmt: skip
    assert_sorted(load(records))
    guess = [{"question_name": "preference", "value": "2"}]
    alone = records[0] | {"responses": [], "suggestions": guess}
    assert len(load([alone, *records[1:]])) == 11
    assert_sorted(load([alone]), 1)
    flat = [{"prompt": Q.format(k), "response": text, "quality.responses": [n, n]}
            for k in range(12) for text, n in ((A.format(k), 5), (B.format(k), 1))]  # fmt: skip
    with pytest.raises(PreferenceDataError, match=re.escape("say columns={'score': 'quality.responses'}")):
        load(flat)
    assert_sorted(load(flat, columns={"score": "quality.responses"}))


def test_options_of_which_some_were_accepted():
    rows = [
        {
            "text": Q.format(k),
            "options": [{"id": n, "text": text} for n, text in enumerate(two.values())],
            "accept": [int(not won)],
            "answer": "accept",
            "_session_id": "x",
        }
        for k, two, won in swapped("a", "b")
    ]
    assert_sorted(load(rows))
    left = [row | {"answer": answer} for row, answer in zip(rows, ("reject", "ignore"))]
    found = load(rows[2:] + left)
    assert reasons(found) == {"its task was rejected or ignored": 2} and len(found) == 10


def test_turns_and_lists_under_other_keys():
    for who, said, role in ("sender", "text", "assistant"), ("speaker", "message", "Chatbot"):
        turn = lambda one, text, who=who, said=said: {who: one, said: text}
        rows = [{"conversation": [turn("user", Q.format(k))], "better": turn(role, A.format(k)),
                 "worse": turn(role, B.format(k))} for k in range(12)]  # fmt: skip
        found = load(rows)
        assert [record["responses"][0][0]["content"] for record in found] == [A.format(k) for k in range(12)]
        assert found[0]["prompt"] == [{"role": "user", "content": Q.format(0)}]
    call = lambda name: {
        "role": "assistant",
        "content": None,
        "function_call": {"name": name, "arguments": "{}"},
    }
    found = load(many(prompt=Q, chosen=lambda k: [call(f"f{k}")], rejected=lambda k: [call("no")]))
    assert found[1]["responses"][0][0]["tool_calls"][0]["function"]["name"] == "f1" and len(found) == 12
    lists = {"text": [B, A], "score": [1, 5], "model": ["x", "y"]}
    found = load(many(prompt=Q, completions=lambda k: lists | {"text": [B.format(k), A.format(k)]}))
    assert_sorted(found)


def test_an_instruction_mostly_has_no_input():
    rows = many(24, instruction=Q, chosen=A, rejected=B)
    rows = [row | {"input": "In short."} if k > 20 else row for k, row in enumerate(rows)]
    found = load(rows)
    assert found[0]["prompt"] == Q.format(0) and found[23]["prompt"] == Q.format(23) + "\nIn short."


def test_what_cannot_be_read_so_is_told_what_can(tmp_path):
    turns = lambda text: (
        lambda k: [{"role": "user", "content": Q.format(k)}, {"role": "assistant", "content": text.format(k)}]
    )
    rows = many(prompt="another", chosen=turns(A), rejected=turns(B))
    with pytest.raises(PreferenceDataError, match=re.escape("say columns={'prompt': None}")):
        load(rows)
    assert len(load(rows, columns={"prompt": None})) == 12
    tree = {"message_id": "m", "parent_id": None, "text": "Name a prime.", "role": "prompter"}
    with pytest.raises(PreferenceDataError, match="save them as rankings first"):
        PreferenceFormat.detect([tree], judged=False)
    answer = {"parent_id": "m", "role": "assistant"}
    load(
        [tree, *(answer | {"message_id": text, "text": text, "rank": n} for n, text in enumerate("79"))]
    ).save(tmp_path / "rankings.jsonl")
    (row,) = (row for _, row in read_rows(tmp_path / "rankings.jsonl"))
    assert len(PreferenceFormat.detect([row], judged=False).texts(row)["responses"]) == 2


# ---------------------------------------------------------------- what stood beside, and what two numbers say


def system_of(found):
    return found[0]["prompt"][0] == {"role": "system", "content": "Be brief."}


def test_an_export_keeps_the_columns_that_are_not_its_own():
    options = lambda k: [{"id": 0, "text": A.format(k)}, {"id": 1, "text": B.format(k)}]
    task = many(text=Q, options=options, accept=[0], answer="accept", _session_id="x", config={})
    assert_sorted(load(task))
    assert system_of(load([row | {"system": "Be brief."} for row in task]))
    for name in "passage", "context":
        with pytest.raises(PreferenceDataError, match=f"'{name}' stands beside the prompt"):
            load([row | {name: "A long text about colours."} for row in task])
    assert "note" in load([row | {"note": "x"} for row in task]).report.unused_columns
    flat = many(**{"id": "n{}", "input.prompt": Q, "output.chosen": A, "output.rejected": B})
    assert_sorted(load(flat))
    assert load(flat)[3]["id"] == "n3" and system_of(load([row | {"system": "Be brief."} for row in flat]))
    rated = [{"id": f"{k}{n}", "input.prompt": Q.format(k), "output.response": text.format(k), "score": n}
             for k in range(12) for text, n in ((A, 5), (B, 1))]  # fmt: skip
    assert_sorted(load(rated))
    both = many(**{"input.prompt": Q, "input.chosen": "x", "output.chosen": A, "output.rejected": B})
    found = load(both)
    assert_sorted(found)
    assert "input.chosen" in found.report.unused_columns


def test_what_stands_once_beside_the_rows_belongs_to_each(tmp_path):
    rows, path = many(prompt=Q, chosen=A, rejected=B), tmp_path / "a.json"
    write = lambda **cells: path.write_text(json.dumps(cells))
    for name in "examples", "rows", "comparisons":
        write(name="colours", title="Of all colours", system="Be brief.", **{name: rows})
        assert system_of(load(path))
        write(name="colours", context="A long passage about colours.", **{name: rows})
        with pytest.raises(PreferenceDataError, match="'context' stands beside the prompt"):
            load(path)
    write(name="colours", title="Of all colours", description="From people.", examples=rows)
    assert_sorted(load(path))
    write(prompt="Name a colour.", data=many(chosen=A, rejected=B))
    assert {record["prompt"] for record in load(path)} == {"Name a colour."}


@pytest.mark.parametrize("noun", ["response", "answer"])
def test_two_numbers_of_whom(noun):
    two = {f"{noun}_1": A, f"{noun}_2": B}
    for ratings in [5, 1], [2, 1]:
        with pytest.raises(PreferenceDataError, match="'ratings' has two numbers, which may rate"):
            load(many(prompt=Q, ratings=ratings, **two))
    found = load(many(prompt=Q, scores=[5, 1], **two))
    assert_sorted(found)
    assert any("two numbers score or rank" in note for note in found.report.notes)
    assert_sorted(load(many(prompt=Q, ratings=[1, 2], winner="1", **two), labels={"1": "a"}))
    for name in "label", "vote":
        rows = many(prompt=Q, **two, **{f"{name}_1": 1, f"{name}_2": lambda k: k % 2})
        with pytest.raises(PreferenceDataError, match="may be the votes of two people, or numbers of"):
            load(rows)
        rows = [row | {f"{name}_2": 0} for row in rows]
        assert_sorted(load(rows, columns={"score_a": f"{name}_1", "score_b": f"{name}_2"}))
        words = many(prompt=Q, **two, **{f"{name}_1": f"{noun}_1", f"{name}_2": f"{noun}_1"})
        assert_sorted(load(words))
    decided = many(prompt=Q, **two, ratings=[1, 2], label_1=1, label_2=0, decision=f"{noun}_1")
    assert_sorted(load(decided))
    people = many(prompt=Q, **two, annotator_1=1, annotator_2=lambda k: 1 + (k > 10))
    assert load(people)[0]["ranks"] == [1, 2]


def test_a_label_beside_a_response_is_about_this_one():
    for good, bad in ("correct", "incorrect"), ("right", "wrong"):
        gold = lambda k, good=good, bad=bad: {good: f"gold {k}", bad: f"no {k}"}
        rows = [{"question": Q.format(k), "response": text.format(k), "label": label} | gold(f"{k}{label}")
                for k in range(12) for text, label in ((A, good), (B, bad))]  # fmt: skip
        assert_sorted(load(rows))


def test_which_words_are_good_is_said():
    judged = lambda name, good, bad: [
        {"prompt": Q.format(k), "response": text.format(k), name: label}
        for k in range(12) for text, label in ((A, good), (B, bad))]  # fmt: skip
    for name in "sentiment", "tone", "emotion_label":
        rows = judged(name, "positive", "negative")
        with pytest.raises(PreferenceDataError, match=f"'{name}' may say whether a response is good"):
            load(rows)
        assert_sorted(load(rows, columns={"label": name}))
    for good, bad in ("positive", "negative"), ("yes", "no"), (True, False), ("up", "down"):
        found = load(judged("label", good, bad))
        assert_sorted(found)
        words = [repr(str(word).lower()) for word in (good, bad)]
        assert f"'label' is read with {words[0]} as good and {words[1]} as bad" in found.report.notes


def test_a_tie_with_a_but_is_none():
    forms = PreferenceFormat.clear({"response_a": "response_1", "response_b": "response_2"})
    said = lambda text: PreferenceFormat.meaning(forms, re.sub(r"(?<=\w)[\s-]+", "_", text.lower()))
    unsure = """almost tied, slight edge to A, but B is not bad/nearly all of A is bad/Tie, but A is shorter
        /A and B are not the same/both are good, although B is longer/about half of B is good"""
    ties = """About the same/A and B are equally good/they are both bad/nearly equal/tie/equally good
        /roughly the same quality/both bad/Almost tied./no preference/They are about the same/similar/A = B
        /[[C]]/neither is better/Both responses are good"""
    assert {text for text in unsure.split("/") if said(text.strip())} == set()
    assert {text for text in ties.split("/") if said(text.strip()) != "tie"} == set()


def test_a_verdict_with_its_reason_is_told_in_few_words():
    reason = "Response A is better, since it names the sky in row {} and says of what colour it is"
    for winner in reason, '{{"winner": "A", "reason": "It names the sky in row {}, as asked."}}':
        with pytest.raises(PreferenceDataError, match="put the verdict alone into a column") as error:
            load(many(prompt=Q, response_a=A, response_b=B, winner=winner))
        assert len(str(error.value)) < 250
    for winner in lambda k: {"winner": "A", "reason": "so"}, lambda k: {"choice": "A"}:
        with pytest.raises(PreferenceDataError, match="put the verdict alone into a column"):
            load(many(prompt=Q, response_a=A, response_b=B, winner=winner))
    words = "The first of the two is the one that I like more", "The second of the two is the one I like more"
    rows = [{"prompt": Q.format(k), "winner": words[not won]} | two for k, two, won in swapped("a1", "a2")]
    rows = [{name.replace("a1", "answer_1").replace("a2", "answer_2"): cell for name, cell in row.items()}
            for row in rows]  # fmt: skip
    assert_sorted(load(rows, labels=dict(zip(words, "ab"))))
    with pytest.raises(PreferenceDataError) as error:
        load(many(prompt=Q, response=A, label=reason))
    assert len(str(error.value)) < 900


@pytest.mark.parametrize("name", ["winner", "preference", "best", "chosen"])
@pytest.mark.parametrize("words", ["A B", "model_a model_b", "response_1 response_2", "x gpt-4"])
def test_the_best_of_a_list_by_a_name(name, words):
    rows = [{"prompt": Q.format(k), "responses": [*two.values()], "models": ["x", "gpt-4"],
             name: words.split()[not won]} for k, two, won in swapped("a", "b")]  # fmt: skip
    assert_sorted(load(rows))
    third = [row | {"responses": [*row["responses"], "Red."], "models": ["x", "gpt-4", "z"]} for row in rows]
    found = load(third, labels={"1": "a"} if "1" in words else None)
    assert [record["ranks"] for record in found] == [[1, 2, 2]] * 12


def test_the_best_of_a_list_by_an_unknown_name_is_asked_for():
    rows = [{"prompt": Q.format(k), "responses": [*two.values()], "winner": A.format(k)}
            for k, two, _ in swapped("a", "b")]  # fmt: skip
    assert_sorted(load(rows))
    rows = many(prompt=Q, responses=lambda k: [A.format(k), B.format(k)], winner="claude")
    with pytest.raises(PreferenceDataError, match=re.escape("say columns={'best': 'winner'}")):
        load(rows)


def test_a_list_of_facts_is_no_prompt():
    facts = lambda k: [{"evaluator": f"e{k}", "time": 3}]
    with pytest.raises(PreferenceDataError) as error:
        load(many(all_annotations=facts, chosen="Red, {}.", rejected="It is {}."))
    assert "say columns={'prompt': '...'}" in str(error.value) or "all_annotations" not in str(error.value)


def test_headers_of_three_words_and_of_none(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('User prompt text\n"Hello, what is red?"\n"And blue, or green?"\n')
    assert [row for _, row in read_rows(path)][0] == {"User prompt text": "Hello, what is red?"}
    path.write_text("Export of May\nprompt,chosen text,rejected\nq,a,b\n")
    with pytest.raises(PreferenceDataError, match="seems to be a title"):
        load(path)
    lines = [f"{k},{k},{Q.format(k)},\"{A.format(k)}\",\"{B.format(k)}\"" for k in range(12)]
    path.write_text("\n".join([",,prompt,chosen,rejected", *lines]))
    assert_sorted(load(path))
    path.write_text("prompt,chosen,chosen\nq,a,b\n")
    with pytest.raises(PreferenceDataError, match="two columns have the same name, 'chosen'"):
        load(path)


@pytest.mark.parametrize("name", ["toxicity_score", "harm_score"])
def test_a_score_of_what_is_bad_is_no_score_unasked(name):
    rows = [{"prompt": Q.format(k), "response": text.format(k), name: n}
            for k in range(12) for text, n in ((A, 5), (B, 1))]  # fmt: skip
    with pytest.raises(PreferenceDataError, match="if a higher number in it is better"):
        load(rows)
    assert_sorted(load(rows, columns={"score": name}))
