"""Widgets: annotations that survive anything, agreement and influences against independent references, views
without a screen."""

import html.parser
import itertools
import json
import logging
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn.metrics import cohen_kappa_score
from transformers import BertConfig, BertForSequenceClassification, TrainerControl, TrainerState

from reward_kit.data.playground import Playground
from reward_kit.data.preferences import load_preferences
from reward_kit.data.report import wilson_interval
from reward_kit.model.encoding import prepare_tokenizer
from reward_kit.model.model_folder import RewardMetadata, load_reward_backbone
from reward_kit.model.settings import quiet
from reward_kit.scores.ensembles import RewardEnsemble
from reward_kit.scores.inference import RewardModel
from reward_kit.tools.annotator import _ANSWERS as ANSWERS
from reward_kit.tools.annotator import _KEYS as KEYS
from reward_kit.tools.annotator import (
    AnnotationSession,
    PreferenceAnnotator,
    View,
    annotator_agreement,
)
from reward_kit.tools.annotator import _annotation_items as annotation_items
from reward_kit.tools.annotator import _item_html as item_html
from reward_kit.tools.annotator import _key_script as key_script
from reward_kit.tools.annotator import _pair_id as pair_id
from reward_kit.tools.dashboards import PPODashboard, TrainingDashboard, plot_history
from reward_kit.tools.explorer import RewardExplorer, TokenInfluence, compare_responses, explain_reward
from reward_kit.tools.explorer import _embedding_gradient as embedding_gradient
from reward_kit.tools.explorer import _split_words as split_words
from reward_kit.tools.explorer import _without_word as without_word


def rows(n, start=0):
    return [
        {"prompt": f"question {i}", "responses": [f"good {i}", f"bad {i}"]} for i in range(start, start + n)
    ]


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def on_sides(records, seed):
    return [item.on_sides(seed) for item in annotation_items(records)]


# ---------------------------------------------------------------- what is asked


def test_every_form_of_a_pair_is_the_same_pair():
    forms = [
        {"prompt": "p", "responses": ["x", "y"]},
        {"prompt": "p", "a": "y", "b": "x"},
        {"prompt": "p", "response_a": "x", "response_b": "y"},
        {"prompt": "p", "chosen": "x", "rejected": "y"},
    ]
    items = [on_sides([form], 3)[0] for form in forms]
    assert len({(item.id, item.left, item.right) for item in items}) == 1 and {
        items[0].left,
        items[0].right,
    } == {"x", "y"}


def test_preferences_and_files_are_records(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(3)))
    world = Playground(seed=0).preferences(4)
    assert [item.prompt for item in annotation_items(tmp_path / "pairs.jsonl")] == [
        "question 0",
        "question 1",
        "question 2",
    ]
    assert [item.prompt for item in annotation_items(world)] == [r["prompt"] for r in world]


def test_sides_depend_on_seed_and_pair_only_and_are_fair():
    items = on_sides(rows(1000), 5)
    backwards = {item.id: item for item in on_sides(rows(1000)[::-1], 5)}
    assert all(backwards[item.id] == item for item in items)
    left = sum(item.left.startswith("good") for item in items)
    assert 440 <= left <= 560  # binomial, 3.8 standard deviations
    other = on_sides(rows(1000), 6)
    assert 400 <= sum(a.left == b.left for a, b in zip(items, other, strict=True)) <= 600


def test_a_repeated_pair_is_asked_once_and_said(caplog):
    with caplog.at_level(logging.WARNING):
        assert len(annotation_items([*rows(2), {"prompt": "question 1", "a": "bad 1", "b": "good 1"}])) == 2
    assert "1 of 3 records repeat an earlier pair" in caplog.text


@pytest.mark.parametrize(
    "record,words",
    [
        ({"prompt": "p"}, ["record 2", "keys ['prompt']"]),
        ({"prompt": "p", "responses": ["x"]}, ["record 2", "1 response;"]),
        ({"prompt": "p", "responses": ["x", "x"]}, ["record 2", "identical"]),
        ({"prompt": "p", "responses": ["x", " "]}, ["record 2", "empty"]),
        ({"prompt": "p", "responses": ["x", None]}, ["record 2", "null"]),
        ({"prompt": "p", "responses": ["x", 3]}, ["record 2", "not text"]),
        (
            {
                "prompt": [{"role": "user", "content": "p"}],
                "responses": [[{"role": "user", "content": "x"}], [{"role": "assistant", "content": "y"}]],
            },
            ["record 2", "assistant"],
        ),
    ],
)
def test_records_that_could_not_be_loaded_are_refused_by_name(tmp_path, record, words):
    with pytest.raises(ValueError) as error:
        AnnotationSession([*rows(1), record], tmp_path / "a.jsonl")
    assert all(word in str(error.value) for word in words) and not list(tmp_path.iterdir())


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="record 1 is str"):
        annotation_items(["text"])
    with pytest.raises(ValueError, match="no records"):
        annotation_items([])


# ---------------------------------------------------------------- the session


def test_a_session_moves_on_and_back(tmp_path):
    session = AnnotationSession(rows(3), tmp_path / "sub" / "a.jsonl", annotator="ann")
    first, second, third = session.items
    assert (
        session.current == first
        and session.choose("left") == second
        and session.skip() == third
        and session.choose("tie") is None
    )
    assert session.progress() == {"pairs": 3, "labelled": 2, "skipped": 1, "left": 0}
    for act in (session.skip, lambda: session.choose("left")):
        with pytest.raises(ValueError, match="every pair is judged or skipped"):
            act()
    assert session.undo() == third and session.undo() == second and session.undo() == first
    with pytest.raises(ValueError, match="nothing to take back"):
        session.undo()
    with pytest.raises(ValueError, match="left, right, tie, got 'a'"):
        session.choose("a")
    assert session.path.read_text() == "" and session.progress()["left"] == 3


def test_the_file_is_read_as_what_was_chosen(tmp_path):
    session = AnnotationSession(
        [{**row, "source": "web"} for row in rows(30)], tmp_path / "a.jsonl", annotator="ann"
    )
    expected, draw = {}, random.Random(0)
    while item := session.current:
        choice = draw.choice(["left", "right", "tie", "skip"])
        if choice == "skip":
            session.skip()
        else:
            session.choose(choice)
            expected[item.prompt] = {
                "left": [item.left],
                "right": [item.right],
                "tie": [item.left, item.right],
            }[choice]
    loaded = load_preferences(session.path, progress=False)
    best = {
        r["prompt"]: [x for x, rank in zip(r["responses"], r["ranks"], strict=True) if rank == 1]
        for r in loaded
    }
    assert {k: sorted(v) for k, v in best.items()} == {k: sorted(v) for k, v in expected.items()}
    assert {r["source"] for r in loaded} == {"web"} and {r["id"] for r in loaded} <= {
        item.id for item in session.items
    }
    assert loaded.report.rows_dropped == 0
    assert {row["annotator"] for row in lines(session.path)} == {"ann"}


def test_conversations_are_judged_and_read(tmp_path):
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("Hello.", "Good day to you.")]
    session = AnnotationSession([{"prompt": prompt, "responses": answers}], tmp_path / "a.jsonl")
    chosen = session.current.right
    session.choose("right")
    record = load_preferences(session.path, progress=False)[0]
    assert record["prompt"] == prompt and record["responses"][0] == chosen and record["ranks"] == [1, 2]


def test_reopening_continues_and_keeps_the_sides_of_the_first_seed(tmp_path):
    session = AnnotationSession(rows(50), tmp_path / "a.jsonl", seed=1)
    for _ in range(3):
        session.choose("left")
    again = AnnotationSession(rows(60), tmp_path / "a.jsonl", seed=2)
    assert again.current == session.items[3] and again.items[:50] == session.items and len(again.items) == 60
    assert again.undo() == session.items[2]
    fewer = AnnotationSession(rows(10, start=20), tmp_path / "a.jsonl")
    assert (
        fewer.progress()["labelled"] == 0 and len(lines(fewer.path)) == 2
    )  # judged pairs stay, also those not among the records


def test_sessions_in_turn_do_not_overwrite_each_other(tmp_path):
    old = AnnotationSession(rows(5), tmp_path / "a.jsonl")
    new = AnnotationSession(rows(5), tmp_path / "a.jsonl")
    new.choose("left")
    with pytest.raises(RuntimeError, match="changed by another session"):
        old.choose("right")
    assert [row["label"] for row in lines(new.path)] == ["a"] and not old.done


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(ValueError, match="mine.jsonl exists, but its log mine.log.jsonl does not"):
        AnnotationSession(rows(1), tmp_path / "mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_text() == '{"x": 1}\n'
    with pytest.raises(ValueError, match="must end in .jsonl"):
        AnnotationSession(rows(1), tmp_path / "a.csv")
    AnnotationSession(rows(1), tmp_path / "a.jsonl", annotator="ann")
    with pytest.raises(ValueError, match="of annotator 'ann', not 'bob'"):
        AnnotationSession(rows(1), tmp_path / "a.jsonl", annotator="bob")


# ---------------------------------------------------------------- what a death leaves


def state(events):
    "The labels that stand after some events, by an independent reading."
    stack = []
    for event in events:
        if event["event"] == "undo":
            stack.pop()
        elif event["event"] != "start":
            stack.append(event)
    return [event["label"] for event in stack if event["event"] == "choose"]


def test_a_log_cut_anywhere_opens_as_its_whole_lines(tmp_path, caplog):
    session = AnnotationSession(rows(6), tmp_path / "a.jsonl")
    session.choose("left")
    session.skip()
    session.undo()
    session.choose("tie")
    session.choose("right")
    session.undo()
    data = session.log.path.read_bytes()
    assert data.count(b"\n") == 7
    ends = {at + shift for at, byte in enumerate(data) if byte == 10 for shift in range(-1, 3)}
    for size in sorted(ends | set(range(0, len(data), 17)) | {len(data)}):
        if size > len(data):
            continue
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "a.log.jsonl").write_bytes(data[:size])
        caplog.clear()
        again = AnnotationSession(rows(6), folder / "a.jsonl")
        whole = [json.loads(line) for line in data[:size].split(b"\n")[:-1]]
        assert [row["label"] for row in lines(again.path)] == state(whole)
        torn = data[:size].rpartition(b"\n")[2]
        assert bool(torn) == ("ended in the middle of a line" in caplog.text)
        again.choose("right")  # and it goes on
        assert [row["label"] for row in lines(again.path)] == [*state(whole), "b"]
        assert len(lines(again.log.path)) == max(len(whole), 1) + 1


def test_a_broken_line_within_the_log_is_named(tmp_path):
    session = AnnotationSession(rows(2), tmp_path / "a.jsonl")
    with open(session.log.path, "a") as file:
        file.write('{"event": "cho\n')
    with pytest.raises(ValueError, match=r"a.log.jsonl:2 is no line of an annotation log"):
        AnnotationSession(rows(2), tmp_path / "a.jsonl")


def test_a_lost_or_old_preferences_file_is_made_again(tmp_path):
    session = AnnotationSession(rows(3), tmp_path / "a.jsonl")
    session.choose("left")
    session.choose("tie")
    whole = session.path.read_text()
    for damage in (
        lambda: session.path.unlink(),
        lambda: session.path.write_text(whole[:40]),
        lambda: session.path.write_text(""),
    ):
        damage()
        assert AnnotationSession(rows(3), tmp_path / "a.jsonl").path.read_text() == whole


def test_a_log_line_is_on_the_disk_before_the_preferences_change(tmp_path, monkeypatch):
    order = []
    session = AnnotationSession(rows(2), tmp_path / "a.jsonl")
    monkeypatch.setattr("reward_kit.data.files.os.fsync", lambda handle: order.append("fsync"))
    monkeypatch.setattr(session, "_write_preferences", lambda: order.append("write"))
    session.choose("left")
    assert order == ["fsync", "write"]


KILLED = """
import sys, json
from reward_kit.tools.annotator import AnnotationSession
rows = [{"prompt": f"question {i}", "responses": [f"good {i}", f"bad {i}"]} for i in range(400)]
session = AnnotationSession(rows, sys.argv[1])
while session.current:
    session.choose("left")
    print(len(session.done), flush=True)
"""


def test_a_killed_process_loses_no_acknowledged_choice(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "a.jsonl")], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if int(line) >= 37:
            process.kill()
            break
    acknowledged = max([37, *(int(line) for line in process.stdout.read().split("\n")[:-1] if line)])
    process.wait()
    session = AnnotationSession(rows(400), tmp_path / "a.jsonl")
    assert acknowledged <= len(session.done) <= acknowledged + 1
    assert session.current == session.items[len(session.done)] and len(
        load_preferences(session.path, progress=False)
    ) == len(session.done)


# ---------------------------------------------------------------- agreement


def answered(path, answers, flip=()):
    'A file in which both texts are "x" and "y"; `flip` shows "y" on the left.'
    own = []
    for i, answer in enumerate(answers):
        a, b = ("y", "x") if i in flip else ("x", "y")
        label = "tie" if answer == "tie" else "a" if (answer == "first") == (a == "x") else "b"
        own.append({"prompt": f"p{i}", "response_a": a, "response_b": b, "label": label})
    path.write_text("".join(json.dumps(row) + "\n" for row in own))
    return path


@pytest.mark.parametrize("seed", range(5))
def test_kappa_and_interval_against_scikit_learn(tmp_path, seed):
    draw = random.Random(seed)
    mine = [draw.choice(ANSWERS) for _ in range(60)]
    theirs = [answer if draw.random() < 0.6 else draw.choice(ANSWERS) for answer in mine]
    found = annotator_agreement(
        answered(tmp_path / "a.jsonl", mine, flip=set(range(0, 60, 3))),
        answered(tmp_path / "b.jsonl", theirs, flip=set(range(0, 60, 7))),
    )
    equal = sum(a == b for a, b in zip(mine, theirs, strict=True))
    assert (found.pairs, found.equal, found.share) == (
        60,
        equal,
        equal / 60,
    ) and found.interval == wilson_interval(equal, 60)
    assert abs(found.kappa - cohen_kappa_score(mine, theirs, labels=ANSWERS)) < 1e-12
    assert found.table == [
        [sum((a, b) == (x, y) for a, b in zip(mine, theirs, strict=True)) for y in ANSWERS] for x in ANSWERS
    ]
    assert json.loads(json.dumps(found.to_dict()))["pairs"] == 60


def test_agreement_counts_common_pairs_only_and_says_when_kappa_is_not_defined(tmp_path):
    a, b = answered(tmp_path / "a.jsonl", ["first"] * 4), answered(tmp_path / "b.jsonl", ["first"] * 2)
    found = annotator_agreement(a, b)
    assert (
        found.pairs == 2
        and math.isnan(found.kappa)
        and "not defined" in repr(found)
        and found.to_dict()["kappa"] is None
    )
    (tmp_path / "c.jsonl").write_text(
        json.dumps({"prompt": "other", "response_a": "x", "response_b": "y", "label": "a"}) + "\n"
    )
    with pytest.raises(ValueError, match="no pair of this annotation is judged in c.jsonl"):
        annotator_agreement(a, tmp_path / "c.jsonl")
    (tmp_path / "d.jsonl").write_text(
        json.dumps({"prompt": "p0", "response_a": "x", "response_b": "y", "label": "good"}) + "\n"
    )
    with pytest.raises(ValueError, match="d.jsonl:1: .*unreadable label: found 'good'"):
        annotator_agreement(a, tmp_path / "d.jsonl")
    (tmp_path / "e.jsonl").write_text(
        json.dumps({"prompt": "p0", "response_a": "x", "response_b": "y"}) + "\n"
    )
    with pytest.raises(ValueError, match="e.jsonl:1: no column for 'label'"):
        annotator_agreement(a, tmp_path / "e.jsonl")


def test_one_choice_for_the_same_text_agrees_whatever_the_sides(tmp_path):
    sessions = [
        AnnotationSession(rows(40), tmp_path / f"{name}.jsonl", annotator=name, seed=seed)
        for seed, name in enumerate("ab")
    ]
    for session in sessions:
        while item := session.current:
            session.choose("left" if item.left.startswith("good") else "right")
    assert annotator_agreement(sessions[0].path, sessions[1].path).share == 1
    assert [i.left for i in sessions[0].items] != [i.left for i in sessions[1].items]


# ---------------------------------------------------------------- pages


class Tags(html.parser.HTMLParser):
    "Tags, attributes and text of a page."

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text, self.depth = set(), set(), "", 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.depth += 1

    def handle_endtag(self, tag):
        self.depth -= 1

    def handle_data(self, data):
        self.text += data


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '\'" onmouseover="alert(1)',
    "</div></div><h1>out</h1>",
    "&lt;b&gt; &amp;",
    "`<b>` ```\n<i>\n```",
    "**<u>x</u>** [a](javascript:alert(1)) ![x](http://x)",
    "```py\n<script>\n``` `",
    "\u202eabc",
    "<!-- x",
    "* <style>x</style>",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("markdown", [False, True])
def test_no_text_becomes_a_page(text, markdown):
    messages = [{"role": "user<script>", "content": text, "tool_calls": [{"name": text}]}]
    item = annotation_items([{"prompt": text, "responses": [text, text + "x"]}])[0]._replace(prompt=messages)
    influence = TokenInfluence(
        split_words(text), [1.0] * len(split_words(text)), 0.0, "leave_one_out", "word"
    )
    for page in (
        View.text(text, markdown),
        View.text(messages, markdown),
        item_html(item, markdown=markdown),
        influence.to_html(),
    ):
        found = Tags(page)
        emphasis = {
            "p",
            "strong",
            "em",
            "ul",
            "ol",
            "li",
            "blockquote",
            "hr",
            "br",
            *(f"h{n}" for n in range(1, 7)),
        }
        assert (
            found.tags <= {"div", "span", "pre", "code", "b", "i"} | (emphasis if markdown else set())
            and found.depth == 0
        )
        assert found.attributes <= {"style", "dir", "title", "tabindex"} | ({"class"} if markdown else set())
    if not markdown:
        assert text in Tags(View.text(text)).text


def test_markdown():
    shown = View.text(
        "## Title\n- one\n* *two* and **three** `a*b*`\n\n2 * 3 * 4 and snake_case_x\n\n[a](http://x)",
        markdown=True,
    )
    assert (
        "<h2>Title</h2>" in shown
        and "<li>one</li>" in shown
        and "<em>two</em> and <strong>three</strong> <code>a*b*</code>" in shown
    )
    assert "2 * 3 * 4 and snake_case_x" in shown and "<a" not in shown
    assert "x = 1 &lt; 2\n</code>" in View.text("so:\n```python\nx = 1 < 2\n```\nend", markdown=True)


# ---------------------------------------------------------------- the annotator


def test_buttons_and_keys_do_the_same(tmp_path):
    clicks, keys = (PreferenceAnnotator(rows(6), tmp_path / f"{name}.jsonl") for name in ("clicks", "keys"))
    for action, key in [
        ("left", "1"),
        ("right", "2"),
        ("tie", "="),
        ("tie", "3"),
        ("skip", "S"),
        ("undo", "u"),
        ("undo", "u"),
    ]:
        clicks.buttons[action].click()
        keys.field.value = key
        assert keys.field.value == ""
    assert clicks.session.log.events[1:] == keys.session.log.events[1:] and len(clicks.session.history) == 3
    keys.field.value = "q"
    assert len(keys.session.history) == 3 and keys.field.value == ""


def test_a_key_that_reaches_the_kernel_late_counts_once(tmp_path):
    annotator = PreferenceAnnotator(rows(6), tmp_path / "a.jsonl")
    annotator.field.value = "1"  # the kernel empties the field
    annotator.field.value = "12"  # the page had not yet seen that
    assert [event["label"] for event in annotator.session.history] == ["a", "b"]


def test_the_page_follows_the_session(tmp_path):
    annotator = PreferenceAnnotator(rows(2), tmp_path / "a.jsonl")
    assert (
        annotator.buttons["undo"].disabled
        and not annotator.buttons["left"].disabled
        and "question 0" in annotator.page.value
    )
    annotator.act("tie")
    assert (
        "question 1" in annotator.page.value
        and not annotator.buttons["undo"].disabled
        and (annotator.bar.value, annotator.bar.max) == (1, 2)
    )
    annotator.act("left")
    assert (
        "Every pair is judged or skipped" in annotator.page.value
        and annotator.buttons["left"].disabled
        and annotator.buttons["skip"].disabled
    )
    annotator.act("left")
    assert "every pair is judged" in annotator.status.value
    annotator.act("undo")
    assert "question 1" in annotator.page.value and "1 of 2 judged" in annotator.status.value


def test_what_fails_at_a_click_is_shown(tmp_path):
    old, new = (PreferenceAnnotator(rows(5), tmp_path / "a.jsonl") for _ in range(2))
    new.act("left")
    old.act("left")
    assert "changed by another session" in old.status.value and "question 0" in old.page.value


def test_agreement_is_shown_as_one_goes(tmp_path):
    other = AnnotationSession(rows(3), tmp_path / "b.jsonl", annotator="bob")
    for _ in range(3):
        other.choose("left")
    annotator = PreferenceAnnotator(rows(3), tmp_path / "a.jsonl", compare_with=tmp_path / "b.jsonl")
    assert "no pair of this annotation" in annotator.status.value
    annotator.act("left")
    assert "with b.jsonl: 1 of 1 answer equal" in annotator.status.value


def test_the_key_script_names_every_action_and_its_class(tmp_path):
    annotator = PreferenceAnnotator(rows(1), tmp_path / "a.jsonl")
    assert json.dumps(KEYS) in key_script("rk-x") and '"rk-x"' in key_script("rk-x")
    assert all(f"rk-{action}" in annotator.buttons[action]._dom_classes for action in set(KEYS.values()))
    assert "application/vnd.jupyter.widget-view+json" in annotator._repr_mimebundle_()


# ---------------------------------------------------------------- influences


@pytest.fixture(scope="module")
def rm(tmp_path_factory):
    "A reward model of random weights, in float64 so that derivatives can be checked."
    torch.manual_seed(0)
    model, tokenizer = load_reward_backbone("playground", new_head=True)
    folder = tmp_path_factory.mktemp("model")
    metadata = RewardMetadata(
        encoding=prepare_tokenizer(tokenizer, model, max_length=256),
        normalization={"mean": 0.5, "std": 2.0, "n": 100},
    )
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        metadata.save(folder)
    return RewardModel.from_pretrained(folder, device="cpu", dtype=torch.float64)


PROMPT, RESPONSE = "Why is the sky blue?", "The air scatters  blue light.\nMore than red light, that is. "


def test_words_join_to_the_text():
    for text in (RESPONSE, "", "  ", "a", " a b ", "\n\nx\ty"):
        assert "".join(split_words(text)) == (text if text.strip() else "")
    words = split_words(" a b  c ")
    assert [without_word(words, i) for i in range(3)] == [" b  c ", " a  c ", " a b"]


def test_leaving_words_out_gives_differences_of_scores(rm):
    found = explain_reward(rm, PROMPT, RESPONSE)
    words = [
        "The",
        " air",
        " scatters",
        "  blue",
        " light.",
        "\nMore",
        " than",
        " red",
        " light,",
        " that",
        " is. ",
    ]
    assert found.tokens == words and abs(found.reward - rm.score(PROMPT, RESPONSE)) < 1e-5
    for i, value in enumerate(found.values):
        text = "air" + "".join(words[2:]) if i == 0 else "".join(words[:i] + words[i + 1 :])
        assert abs(value - (rm.score(PROMPT, RESPONSE) - rm.score(PROMPT, text))) < 1e-5
    assert len(set(found.values)) > 5


def test_leaving_tokens_out_gives_differences_of_scores_of_ids(rm):
    found = explain_reward(rm, PROMPT, RESPONSE, unit="token")
    ids = rm.encode([PROMPT], [RESPONSE])[0]
    assert len(found.values) == len(ids) - 2  # neither BOS nor EOS
    for i in (0, 5, len(ids) - 3):
        assert (
            abs(found.values[i] - (rm.score_ids([ids])[0] - rm.score_ids([ids[: i + 1] + ids[i + 2 :]])[0]))
            < 1e-5
        )
    assert "".join(found.tokens) == f"{PROMPT} {RESPONSE}"


@pytest.mark.parametrize("method", ["leave_one_out", "gradient"])
def test_tokens_of_one_character_are_shown_as_it_with_their_sum(rm, method):
    "Letters of several bytes, ideographs, emoji of several code points."
    text = "naïve Zoë: 雨が降る 👩‍👩‍👧 ok — ¿qué?"
    found = explain_reward(rm, PROMPT, text, method, unit="token")
    assert "".join(found.tokens) == f"{PROMPT} {text}" and "\ufffd" not in "".join(found.tokens)
    ids = rm.encode([PROMPT], [text])[0]
    assert len(found.tokens) < len(ids) - 2  # some characters are several tokens
    whole = explain_reward(rm, PROMPT, "plain words", method, unit="token")
    assert len(whole.tokens) == len(rm.encode([PROMPT], ["plain words"])[0]) - 2
    if method == "gradient":
        embeddings, gradient, _ = embedding_gradient(rm, ids)
        total = (embeddings.double() * gradient.double()).sum(-1)[1:-1].sum().item()
    else:
        rewards = rm.score_ids([ids, *(ids[:i] + ids[i + 1 :] for i in range(1, len(ids) - 1))])
        total = sum(rewards[0] - other for other in rewards[1:])
    assert sum(found.values) == pytest.approx(total, abs=1e-4)


def check_against_finite_differences(rm, prompt, response):
    found = explain_reward(rm, prompt, response, "gradient")
    ids = rm.encode([prompt], [response])[0]
    embeddings, gradient, reward = embedding_gradient(rm, ids)
    assert abs(reward - rm.score(prompt, response)) < 1e-5 and abs(found.reward - reward) < 1e-9
    kept = [i for i, token in enumerate(ids) if token not in rm.tokenizer.all_special_ids]
    extra = {}
    if rm.scorer.segment_token_id is not None:
        first = ids.index(rm.scorer.segment_token_id) + 1
        extra["token_type_ids"] = torch.tensor([[0] * first + [1] * (len(ids) - first)])
    for place, value in list(zip(kept, found.values, strict=True))[:: max(1, len(kept) // 6)]:
        slopes = []
        for factor in (1 + 1e-2, 1 - 1e-2):
            moved = embeddings.clone()
            moved[place] *= factor
            with torch.no_grad():
                slopes.append(
                    rm.model(
                        inputs_embeds=moved[None],
                        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                        **extra,
                    )
                    .logits.double()
                    .item()
                )
        assert abs((slopes[0] - slopes[1]) / 2e-2 - value) < 1e-4 + 1e-3 * abs(
            value
        )  # the norms of a decoder compute in float32
    assert max(map(abs, found.values)) > 0.02
    return found


def test_the_gradient_against_finite_differences(rm):
    found = check_against_finite_differences(rm, PROMPT, RESPONSE)
    assert found.unit == "token" and len({round(v, 6) for v in found.values}) > 10


def test_the_gradient_of_an_encoder_with_segments(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        word: i
        for i, word in enumerate(
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "why", "is", "the", "sky", "blue", "air", "light"]
        )
    }
    raw = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = Whitespace()
    raw.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    torch.manual_seed(0)
    size = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }
    config = BertConfig(
        vocab_size=len(vocabulary), num_labels=1, initializer_range=0.5, pad_token_id=0, **size
    )
    with quiet():
        BertForSequenceClassification(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
    encoder = RewardModel.from_pretrained(tmp_path, device="cpu", dtype=torch.float64)
    assert encoder.scorer.segment_token_id == 3
    found = check_against_finite_differences(encoder, "why is the sky blue", "the air")
    assert len(found.values) == 7
    assert (
        abs(
            explain_reward(encoder, "why is the sky blue", "the air").values[1]
            - (encoder.score("why is the sky blue", "the air") - encoder.score("why is the sky blue", "the"))
        )
        < 1e-5
    )


def test_a_conversation_is_taken_apart_at_its_last_message(rm):
    prompt, response = (
        [{"role": "user", "content": PROMPT}],
        [{"role": "assistant", "content": "Blue light."}],
    )
    found = explain_reward(rm, prompt, response)
    assert found.tokens == ["Blue", " light."]
    assert (
        abs(
            found.values[1]
            - (rm.score(prompt, response) - rm.score(prompt, [{"role": "assistant", "content": "Blue"}]))
        )
        < 1e-5
    )


def test_explaining_changes_nothing_in_the_model(rm):
    before = rm.score(PROMPT, RESPONSE)
    explain_reward(rm, PROMPT, RESPONSE, "gradient")
    assert abs(rm.score(PROMPT, RESPONSE) - before) < 1e-6 and all(
        p.grad is None for p in rm.model.parameters()
    )


def test_anything_that_scores_is_explained_by_words(rm):
    ensemble = RewardEnsemble([rm, rm], normalize_members=False)
    assert (
        max(
            abs(a - b)
            for a, b in zip(
                explain_reward(ensemble, PROMPT, RESPONSE).values,
                explain_reward(rm, PROMPT, RESPONSE).values,
                strict=True,
            )
        )
        < 1e-5
    )
    with pytest.raises(TypeError, match="RewardEnsemble.*unit='word'"):
        explain_reward(ensemble, PROMPT, RESPONSE, "gradient")
    short = lambda prompts, responses: [None] * len(prompts)
    with pytest.raises(ValueError, match="too long for the model"):
        explain_reward(short, PROMPT, RESPONSE)
    with pytest.raises(ValueError, match="does not fit"):
        explain_reward(rm, PROMPT, "word " * 400, "gradient")


@pytest.mark.parametrize(
    "options,words",
    [
        ({"method": "shap"}, "method must be one of"),
        ({"unit": "letter"}, "unit must be one of"),
        ({"method": "gradient", "unit": "word"}, "by token"),
    ],
)
def test_wrong_options(rm, options, words):
    with pytest.raises(ValueError, match=words):
        explain_reward(rm, PROMPT, RESPONSE, **options)


def test_an_influence_on_the_page():
    found = TokenInfluence(["Up", " down", " same"], [2.0, -1.0, 0.0], 1.5, "leave_one_out", "word")
    page = found._repr_html_()
    up, down, same = page[page.index("line-height:1.9") :].split("<span ")[1:]
    assert "0,114,178,0.55" in up and "underline solid" in up and "+2.000" in up
    assert (
        "213,94,0,0.32" in down and "underline dotted" in down and "-1.000" in down
    )  # 0.08 + 0.47 / 2 = 0.315
    assert "style" not in same
    assert TokenInfluence(**json.loads(json.dumps(found.to_dict()))) == found
    assert found.top(2) == [("Up", 2.0), (" down", -1.0)] and repr(found).startswith(
        "reward 1.50; by leave_one_out, most moved by: 'Up' +2.00"
    )
    assert (
        "0,114,178,0.08" not in TokenInfluence(["a"], [0.0], 0.0, "gradient", "token")._repr_html_()
    )  # nothing moved: no division by zero


def contrast(one, other):
    "Contrast of two colours (0..255), as WCAG 2 defines it."

    def luminance(colour):
        parts = [c / 255 for c in colour]
        return sum(
            w * (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4)
            for w, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("ground,ink", [((255, 255, 255), (33, 33, 33)), ((17, 17, 17), (230, 230, 230))])
@pytest.mark.parametrize("colour", [(0, 114, 178), (213, 94, 0)])
def test_coloured_words_are_readable_in_light_and_dark(ground, ink, colour):
    strongest = 0.55
    assert (
        contrast([strongest * c + (1 - strongest) * g for c, g in zip(colour, ground, strict=True)], ink)
        > 4.5
    )


# ---------------------------------------------------------------- comparison and explorer


def test_comparison(rm):
    responses = ["Blue light.", "No.", "The air scatters blue light."]
    found = compare_responses(rm, PROMPT, responses, "leave_one_out")
    assert found.scores == pytest.approx(rm.score(PROMPT, responses)) and found.ranking == [
        r.index for r in rm.rank(PROMPT, responses)
    ]
    for i, j in itertools.product(range(3), repeat=2):
        assert found.probabilities[i][j] == pytest.approx(
            1 / (1 + math.exp(found.scores[j] - found.scores[i]))
        )
    assert json.loads(json.dumps(found.to_dict()))["scores"] == found.scores
    with pytest.raises(ValueError, match="no response"):
        compare_responses(rm, PROMPT, [])
    with pytest.raises(ValueError, match="response 2 alone is too long"):
        compare_responses(rm, PROMPT, ["a", "word " * 400])


def test_probabilities_use_the_models_temperature():
    class Calibrated:
        temperature = 2.0

        def score(self, prompts, responses):
            return [float(len(r)) for r in responses]

    found = compare_responses(Calibrated(), "p", ["aaaa", "aa"])
    assert found.probabilities[0][1] == pytest.approx(1 / (1 + math.exp(-1))) and found.influences is None


def test_the_explorer_shows_results_and_errors(rm):
    explorer = RewardExplorer(rm, PROMPT, ["Blue light.", ""])
    explorer.score()
    assert len(explorer.comparison.scores) == 1 and "response 1" in explorer.result.value
    explorer.add("No.")
    explorer.method.value = "gradient"
    explorer.buttons["score"].click()
    assert len(explorer.comparison.scores) == 2 and "gradient" in explorer.result.value
    explorer.boxes.children[0].value = "word " * 400
    explorer.score()
    assert "too long" in explorer.result.value and explorer.comparison is None

    def broken(prompts, responses):
        raise RuntimeError("no <b>GPU</b>")

    failing = RewardExplorer(broken, "p", ["a"])
    failing.score()
    assert (
        "no &lt;b&gt;GPU&lt;/b&gt;" in failing.result.value
        and "gradient" not in dict(failing.method.options).values()
    )


# ---------------------------------------------------------------- dashboards


def run(dashboard, logs, **kwargs):
    "A run as transformers and PPOTrainer call it."
    state, control = TrainerState(max_steps=len(logs), **kwargs), TrainerControl()
    dashboard.on_train_begin(None, state, control)
    for state.global_step, log in enumerate(logs, 1):
        dashboard.on_log(None, state, control, logs=log)
    dashboard.on_train_end(None, state, control)
    return dashboard


def test_a_line_for_each_log(capsys):
    logs = [
        {"loss": 0.6934, "accuracy": 0.5, "learning_rate": 1e-4},
        {"eval_loss": 0.5, "eval_accuracy": 0.75},
        {"train_runtime": 3.0},
    ]
    watch = run(TrainingDashboard("text"), logs)
    assert (
        capsys.readouterr().out
        == "step 1/3  loss 0.693  accuracy 0.50  learning_rate 1.0e-04\nstep 2/3  eval_loss 0.500 "
        " eval_accuracy 0.75\n"
    )
    assert [log["step"] for log in watch.history] == [1, 2] and watch.image is None
    run(PPODashboard("text"), [{"objective/scores": 1.0, "objective/kl": 2.0, "rewards/true_reward": 0.25}])
    assert (
        capsys.readouterr().out
        == "step 1/1  objective/scores 1.000  rewards/true_reward 0.250  objective/kl 2.00\n"
    )


def test_other_processes_are_silent(capsys):
    watch = run(TrainingDashboard("text"), [{"loss": 1.0}], is_world_process_zero=False)
    assert capsys.readouterr().out == "" and watch.history == []


def test_a_resumed_run_keeps_its_curves():
    watch = TrainingDashboard("text")
    watch.on_train_begin(None, TrainerState(log_history=[{"step": 3, "loss": 0.4}]), TrainerControl())
    assert watch.history == [{"step": 3, "loss": 0.4}]


def test_the_widget_draws_at_most_so_often_and_at_the_end(monkeypatch, capsys):
    monkeypatch.setattr("IPython.display.display", lambda *things: None)
    drawn = []
    watch = TrainingDashboard("widget", min_interval=1e6)
    original = watch.plot
    monkeypatch.setattr(watch, "plot", lambda: drawn.append(len(watch.history)) or original())
    run(watch, [{"loss": 1.0 / i} for i in range(1, 9)])
    assert (
        drawn == [1, 8]
        and bytes(watch.image.value).startswith(b"\x89PNG")
        and "step 8" in watch.status.value
        and capsys.readouterr().out == ""
    )


def test_curves_are_the_logs():
    watch = run(
        PPODashboard("text", true_reward="gold"),
        [
            {"objective/scores": 1.0, "gold": 0.5, "objective/kl": 0.1},
            {"objective/scores": 2.0, "gold": 0.25, "objective/kl": 0.3},
            {"eval_score": 3.0},
        ],
    )
    reward, kl = watch.plot().axes
    assert {line.get_label(): line.get_xydata().tolist() for line in reward.lines} == {
        "score": [[1, 1.0], [2, 2.0]],
        "true reward": [[1, 0.5], [2, 0.25]],
        "score, held out": [[3, 3.0]],
    }
    assert (
        kl.lines[0].get_xydata().tolist() == [[1, 0.1], [2, 0.3]]
        and reward.get_xlabel() == "batch of rollouts"
    )
    assert plot_history([], TrainingDashboard.panels).axes[0].lines[:] == []


def test_display_is_checked():
    with pytest.raises(ValueError, match="display must be auto, widget or text, got 'web'"):
        TrainingDashboard("web")
    assert TrainingDashboard().display == "text"  # no kernel here


def test_pair_ids_tell_messages_from_texts():
    assert pair_id("p", ["x", "y"]) != pair_id("p", [[{"role": "assistant", "content": "x"}], "y"])
    assert pair_id("p", ["x", "y"]) == pair_id("p", ["y", "x"]) and len(pair_id("p", ["x", "y"])) == 16


def test_messages_in_another_form_are_shown_and_saved_as_they_are_read(tmp_path):
    records = [
        {
            "prompt": [{"from": "human", "value": "Why?"}],
            "a": [{"from": "gpt", "value": "Because."}],
            "b": [{"role": "assistant", "content": [{"type": "text", "text": "No."}]}],
        }
    ]
    annotator = PreferenceAnnotator(records, tmp_path / "a.jsonl")
    assert (
        "Why?" in annotator.page.value
        and "Because." in annotator.page.value
        and "No." in annotator.page.value
    )
    annotator.act("left")
    assert PreferenceAnnotator(records, tmp_path / "a.jsonl").session.current is None
    assert [record["prompt"] for record in load_preferences(tmp_path / "a.jsonl", progress=False)] == [
        [{"role": "user", "content": "Why?"}]
    ]
