"""Probes: every edit on odd texts, shares by hand and against scipy, planted biases found and no other;
length: measures against scipy, intervals against their promise."""

import hashlib
import json
import math
import random
import re
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import reward_kit.trust.agreement as agreement_module
import reward_kit.trust.edits as edits_module
import reward_kit.trust.length as length_module
import reward_kit.trust.probes as probes_module
from reward_kit.data.playground import Playground
from reward_kit.data.preferences import load_preferences
from reward_kit.data.report import wilson_interval
from reward_kit.trust.agreement import Bootstrap, _Pairs, pair_table, score_preferences
from reward_kit.trust.edits import PROBES, Probe, on_text, probe
from reward_kit.trust.length import LengthReport
from reward_kit.trust.probes import ProbeReport, run_probes


def by_length(prompts, responses):
    return [float(len(r)) for r in responses]


def rows_of(report):
    return report.sections()[0].table.rows


TOPICS = (
    "tides engines poems bridges markets glaciers violins orchids treaties planets recipes castles".split()
)


def pairs(n=60):
    "English pairs over different topics; every response holds its own number."
    rng, rows = random.Random(0), []
    for i in range(n):
        texts = []
        for number in (2 * i, 2 * i + 1):
            extra = " ".join(
                rng.choices(
                    "which is one of the things that you can find in old books and with some luck".split(),
                    k=rng.randint(0, 25),
                )
            )
            texts.append(
                f"This is answer {number} to the question about {TOPICS[i % 12]} {extra}. It is all that can"
                " be said with care."
            )
        rows.append(
            {
                "prompt": (
                    f"Tell {TOPICS[i % 12]} number{i} to {TOPICS[(5 * i + 1) % 12]} person{i}, vexed by jazz"
                ),
                "chosen": texts[0],
                "rejected": texts[1],
            }
        )
    return load_preferences(rows, progress=False)


def messages(n=30):
    rows = []
    for i in range(n):
        turn = lambda role, content: [{"role": role, "content": content}]
        rows.append(
            {
                "prompt": (
                    turn("system", "Be kind.")
                    + turn("user", f"What is the number of {TOPICS[i % 12]} in town{i} street{i}?")
                ),
                "chosen": turn(
                    "assistant", f"The number of {TOPICS[i % 12]} is {i}. That is all you have to know."
                ),
                "rejected": turn("assistant", "No."),
            }
        )
    return load_preferences(rows, progress=False)


# --- edits ----------------------------------------------------------------------------------------

ODD = [
    "",
    " ",
    "\n\n",
    "x",
    ".",
    "...",
    "!!!",
    "42",
    "Yes",
    "Paris.",
    "a b",
    "The cat sat on the mat, and it is what you do.",
    "蜜蜂用花蜜酿造蜂蜜。它们住在蜂巢里！你知道吗？",
    "蜂蜜",
    "「はい。」と彼は言った。それだけ。",
    "النحل يصنع العسل من الرحيق. هل تعرف ذلك؟ نعم.",
    "मधुमक्खियाँ फूलों के रस से शहद बनाती हैं। वे छत्ते में रहती हैं।",
    "ผึ้งทำน้ำผึ้งจากน้ำหวาน",
    "👩‍👩‍👧‍👦👍🏽 🇩🇪",
    "e\u0301" * 12,
    "\u200b\u00a0\ufeff",
    "```python\nprint('the')\n```",
    "- one\n- two",
    "1. first\n2. second",
    "# Title\n\n**bold** of the text",
    'Dr. Who paid 3.50 for it. "Is that so?" she said.',
    "It's the dog's; isn't it?",
    "word " * 3000,
    "\ud7ff\U0010ffff",
    "a\x00b c d e f",
    "No end here and it goes on",
    "tab\tseparated\twords\there\tnow",
]
POOL = [
    ("How do whales breathe?", "They breathe with lungs."),
    ("鲸鱼怎样呼吸？请告诉我", "用肺呼吸。"),
    ("", "no prompt"),
    (
        [{"role": "user", "content": "Where do rivers end?"}],
        [{"role": "assistant", "content": "In the sea."}],
    ),
]
each_probe = pytest.mark.parametrize("name", PROBES)


def edit(name, response, prompt="What is it that you do?", pool=POOL, seed=0):
    return PROBES[name].edit(response, prompt, random.Random(seed), pool)


@each_probe
@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_an_edit_takes_any_text(name, text):
    for prompt in (
        "What is it that you do?",
        "",
        "蜂",
        text,
        [{"role": "user", "content": text}],
        [{"role": "system", "content": "x"}],
    ):
        for pool in (POOL, [], [(prompt, text)]):
            new = edit(name, text, prompt, pool)
            assert new == edit(name, text, prompt, pool), "the seed decides"
            if name != "irrelevant":
                assert new is None or isinstance(new, str) and new and new != text
                if not text.strip():
                    assert new is None
            elif pool == []:
                assert new is None
    talk = [{"role": "user", "content": "more"}, {"role": "assistant", "content": text}]
    before = json.dumps(talk)
    new = edit(name, talk)
    assert json.dumps(talk) == before, "what is given is not touched"
    if name != "irrelevant" and new is not None:
        assert new[:-1] == talk[:-1] and new[-1] == {"role": "assistant", "content": edit(name, text)}


@each_probe
@pytest.mark.parametrize(
    "talk",
    [
        [],
        [{"role": "assistant", "content": None, "tool_calls": [{}]}],
        [{"role": "user", "content": "hello to the world"}],
        [{"role": "assistant", "content": "  "}],
        [{"role": "tool", "content": "42"}],
    ],
)
def test_a_conversation_without_an_answer_is_not_edited(name, talk):
    if name != "irrelevant":
        assert edit(name, talk) is None


def test_the_last_answer_is_edited_and_keeps_its_other_keys():
    talk = [
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b", "tool_calls": [1]},
        {"role": "tool", "content": "c"},
    ]
    upper = on_text(lambda text, *_: text.upper())
    assert upper(talk, "", None, []) == [
        talk[0],
        {"role": "assistant", "content": "B", "tool_calls": [1]},
        talk[2],
    ]


def test_edits_word_by_word():
    text = "The sun is hot. It shines."
    assert edit("repetition", text) == text + " " + text
    assert edit("repetition", "A one. B two. C three.") == "A one. B two. C three. B two. C three."
    assert edit("repetition", "One line\nand another") == "One line\nand another\nOne line\nand another"
    assert edit("repetition", "蜂蜜。很甜。") == "蜂蜜。很甜。蜂蜜。很甜。"
    assert edit("list", text) == "- The sun is hot.\n- It shines." and edit("list", "Only one.") is None
    assert edit("list", "蜂蜜。很甜。") == "- 蜂蜜。\n- 很甜。"
    assert edit("bold", text) == "**The** sun is hot. It **shines**."
    assert edit("bold", "हिन्दी भाषा है।") == "**हिन्दी** भाषा है।", "a word is not cut at a vowel sign"
    assert edit("quotes", text) == '"The" sun is hot. It "shines".'
    assert edit("lines", text) == "The sun is hot.\nIt shines." and edit("lines", "Only one.") is None
    assert edit("emphasis", text) == "THE sun is hot! It SHINES!"
    assert edit("emphasis", "It cost 3.50, e.g. here.") == "It COST 3.50, e.g. HERE!"
    assert edit("white space", "a b\n c") == "a  b\n c "
    assert edit("invisible", "a b c d") == "a\u200b\u00a0b c\u00a0d"
    assert edit("signs", '"It\'s so", he said. 3.5!') == "“It’s so”, he said． 3.5!"
    assert edit("prompt copied", "x") == "What is it that you do?"
    turns = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "second"},
    ]
    assert edit("prompt copied", [{"role": "assistant", "content": "x"}], turns) == [
        {"role": "assistant", "content": "second"}
    ]


def test_the_cut_is_60_percent_and_no_end_of_a_sentence():
    assert edit("cut", "one two three four five six seven eight nine ten.") == "one two three four five six"
    assert edit("cut", "one two three four five six. seven eight nine ten.") == "one two three four five"
    assert edit("cut", "one two three.") == "one two", "three words are cut by characters"
    assert edit("cut", "蜜蜂用花蜜酿造蜂蜜它们") == "蜜蜂用花蜜酿造"
    assert edit("cut", "short") is None
    combined = edit("cut", "e\u0301" * 12)
    assert combined.endswith("\u0301") and unicodedata.category(("e\u0301" * 12)[len(combined)]) != "Mn"


@pytest.mark.parametrize("name", ["padding", "opening", "flattery", "certainty", "disclaimer"])
def test_english_is_added_to_english_only(name):
    for prompt, text in (
        ("Was ist das?", "Das ist ein Haus, und es ist sehr alt."),
        ("这是什么？", "这是蜂蜜。"),
        ("Qu'est-ce ?", "C'est une maison."),
        ("請用 the 寫一句話", "這是一句話"),
        ("Что это?", "Это дом, and it is the old one."),
    ):
        assert edit(name, text, prompt) is None
    added = edit(name, "It is a house.", "What is that?")
    assert "It is a house." in added and any(s in added for s in edits_module._SENTENCES[name])
    assert len({edit(name, "It is a house.", "What is that?", seed=s) for s in range(9)}) > 1


def test_padding_is_about_as_long_as_what_is_repeated():
    asked = "What is that?"
    assert edit("padding", "It is a", asked).startswith("It is a\n\n")
    assert edit("padding", "It is.", asked).startswith("It is. ")
    text = "The first. " + " ".join(["This is the story of the sea, which is old and which is not."] * 4)
    for seed in range(9):
        padded, repeated = (edit(name, text, asked, seed=seed) for name in ("padding", "repetition"))
        assert abs(len(padded) - len(repeated)) <= 30 and len(padded) > len(text)
    assert edit("repetition", "the word " * 100, asked) is None


def test_what_is_borrowed_belongs_to_another_question_and_is_as_long():
    pool = [
        ("How do whales breathe in the sea?", "L" * 20),
        ("Please say: how do whales breathe in the sea?", "L" * 21),
        ("Where do rivers end?", "R" * 25),
        ("Which planet is red?", "M" * 22),
        ("What is bread?", "B" * 31),
        ("What is tea?", "T" * 13),
    ]
    both = Probe.swapped([*pool, ("", "E" * 20)])
    given = {response: edit("irrelevant", response, prompt, both) for prompt, response in both}
    assert given == {
        "T" * 13: None, "L" * 20: None, "L" * 21: "M" * 22, "M" * 22: "L" * 21,
        "R" * 25: "B" * 31, "B" * 31: "R" * 25,
    }  # fmt: skip
    far = Probe.swapped([pool[0], pool[4]])
    assert edit("irrelevant", "L" * 20, pool[0][0], far) is None, "more than one and a half times as long"
    assert edit("irrelevant", "L" * 20, "", both) is None


def test_prompts_of_one_template_can_stand_in_for_each_other():
    pool = [
        (f"Please summarise the following text in one short sentence: {t}", f"It is about {t}.")
        for t in TOPICS
    ]
    both = Probe.swapped(pool)
    for prompt, response in both:
        assert edit("irrelevant", response, prompt, both) not in (None, response)
    assert len(both) > 0.8 * len(pool)


def test_a_reward_that_never_reads_the_prompt_comes_out_at_one_half():
    """Data of two languages, and rewards that like one of them, a length, or anything else: drawn one by
    one, answers of one language stood in for many, and in 8 of 20 such a reward was said to read."""
    german = "Das ist {} und {}, sagt man, und das ist auch gut so.".format
    english = "That is the {} of the {}, and it is what people say.".format
    for seed in range(200):
        rng = np.random.default_rng(seed)
        rows = [
            {
                "prompt": f"{'Was' if i % 3 else 'What'} {rng.integers(1e9)} {rng.integers(1e9)}?",
                "chosen": (german if i % 3 else english)(*rng.integers(10 ** rng.integers(1, 9, 2))),
                "rejected": "x",
            }
            for i in range(60)
        ]
        texts = {}
        blind = lambda ps, rs, seed=seed, texts=texts: [
            len(r) / 40 * (seed % 3 - 1) + ("Das" in r) + texts.setdefault(r, len(texts) % 7) for r in rs
        ]
        found = run_probes(blind, load_preferences(rows, progress=False), probes=["irrelevant"])
        own = found.results[0].measures["preferred"]
        assert own["edited"] == 0.5 and own["n"] > 20 and found.results[0].verdict == "not shown to notice"


# --- what an edit does to a pair -----------------------------------------------------------------


def numbered(n=40):
    """Pairs whose rewards are written down: the better 2, the worse 1; every fourth the other way
    round; tied never."""
    rows = [
        {
            "prompt": f"p{i} #+-.5",
            "chosen": f"{1 if i % 4 == 3 else 2} a{i}",
            "rejected": f"{2 if i % 4 == 3 else 1} b{i}",
        }
        for i in range(n)
    ]
    reward = lambda prompts, responses: [
        float(r.split(" ")[0]) + float(r.partition("#")[2] or 0) for r in responses
    ]
    return load_preferences(rows, progress=False), reward


def adding(amount, **options):
    "A probe that writes a number behind a response, which the reward adds."
    return Probe("add", "A number", lambda response, *_: f"{response}#{amount:+}", **options)


def test_shares_by_hand():
    preferences, reward = numbered(80)
    found = {
        amount: run_probes(reward, preferences, probes=[adding(amount, expected="no change")]).results[0]
        for amount in (1.5, 1.0, 0.5, -1.5)
    }
    share = lambda amount, name, key="edited": found[amount].measures[name][key]
    # 60 of 80 pairs are right, all by a gap of 1: adding 1.5 to the worse turns all, 1 ties them, 0.5 none
    assert [share(x, "exploit") for x in (1.5, 1.0, 0.5, -1.5)] == [1, 0.5, 0, 0]
    assert [share(x, "fragile") for x in (1.5, 1.0, 0.5, -1.5)] == [0, 0, 0, 1]
    assert share(1.5, "exploit", "n") == 60 and found[1.5].n == 80
    assert [share(x, "robust") for x in found] == [0.75] * 4 and share(1.5, "robust", "before") == 0.75
    assert [share(x, "change") for x in found] == list(found) and share(1.5, "change", "spread") == 0
    assert [found[x].verdict for x in found] == ["exploitable", "exploitable", "no effect", "disliked"]
    assert "100.0%" in found[1.5].sentence and "75.0% to 75.0%" in found[1.5].sentence


def test_everything_is_beyond_the_placebo():
    "The placebo adds 0.6, the edit 1.2: alone the edit turns every pair of gap 1, the placebo none."
    preferences, reward = numbered(80)
    probe("neutral", "A neutral number")(adding(0.6).edit)
    try:
        probes = [adding(1.2, placebo="neutral"), PROBES["neutral"]]
        added, neutral = run_probes(reward, preferences, probes=probes).results
        same = Probe("same", "The same", adding(0.6).edit, placebo="neutral")
        nothing = run_probes(reward, preferences, probes=[same]).results[0]
    finally:
        del PROBES["neutral"]
    exploit, change = added.measures["exploit"], added.measures["change"]
    assert (exploit["placebo"], exploit["edited"], exploit["difference"]) == (0, 1, 1)
    assert change["difference"] == pytest.approx(0.6) and added.verdict == "exploitable"
    assert neutral.verdict == nothing.verdict == "no effect", "nothing beyond the placebo"
    assert nothing.measures["change"]["difference"] == 0 and "beyond neutral" in added.sentence


def test_measures_do_not_depend_on_scale_or_a_constant_of_each_prompt():
    preferences = pairs(40)
    rewards = lambda scale, own: (
        lambda ps, rs: [
            scale * (len(r) + 9 * hash_normal(r, 0)) + own * hash_normal(p, 1) for p, r in zip(ps, rs)
        ]
    )
    base, moved = (run_probes(rewards(*x), preferences) for x in ((1.0, 0.0), (7.0, 1e3)))
    for a, b in zip(base.results, moved.results, strict=True):
        assert a.verdict == b.verdict
        for name in a.measures:
            for key in ("edited", "difference", "low", "high"):
                assert a.measures[name][key] == pytest.approx(b.measures[name][key], abs=1e-9, nan_ok=True)
    assert moved.gap == pytest.approx(7 * base.gap)
    alone = run_probes(rewards(1.0, 0.0), preferences, probes=["flattery", "cut"])
    assert [r.name for r in alone.results] == ["flattery", "cut"]
    by_name = {r.name: r.measures for r in base.results}
    for r in alone.results:
        assert r.measures["robust"]["difference"] == by_name[r.name]["robust"]["difference"]
    assert run_probes(rewards(1.0, 0.0), preferences).to_dict() == base.to_dict()


@pytest.mark.parametrize("b, c", [(0, 0), (5, 0), (12, 3), (20, 20), (30, 1)])
def test_the_interval_is_agresti_and_mins(b, c, n=60):
    "b pairs turned by the edit alone, c by the placebo alone; the plus-two interval, by hand."
    edited = np.array([1.0] * b + [0.0] * (n - b))
    placebo = np.array([0.0] * b + [1.0] * c + [0.0] * (n - b - c))
    frame = lambda values: pd.DataFrame({name: values for name in probes_module._MEASURES})
    found = probes_module._compared(frame(edited), frame(placebo), frame(edited), 0.95, 42).loc["exploit"]
    centre = (b - c) / (n + 2)
    error = math.sqrt(((b + c + 2) / (n + 2) - centre**2) / (n + 1))
    t = stats.t.ppf(0.975, n + 1)
    assert found["difference"] == pytest.approx((b - c) / n)
    assert found["low"] == pytest.approx(max(centre - t * error, -c / n))
    assert found["high"] == pytest.approx(min(centre + t * error, 1 - c / n))
    assert found["p"] == pytest.approx(stats.t.sf(centre / error, n + 1))
    if b > 4 and c == 0:  # close to McNemar's exact test
        assert found["p"] == pytest.approx(stats.binomtest(b, b + c, alternative="greater").pvalue, abs=0.02)


def test_holm_by_hand():
    p = pd.Series([0.04, 0.01, np.nan, 0.03, 0.5])
    adjusted = Bootstrap.holm(p)
    assert adjusted.dropna().to_dict() == {0: 0.09, 1: 0.04, 3: 0.09, 4: 0.5} and np.isnan(adjusted[2])


def test_what_would_be_found_is_found_in_four_of_five_or_more():
    "A true share of `least`, at 200 pairs: at the first step of Holm's correction at least 80% are shown."
    rng, n, tests = np.random.default_rng(0), 200, 42
    frame = lambda values: pd.DataFrame({name: values for name in probes_module._MEASURES})
    nothing = frame(np.zeros(n))
    least = probes_module._compared(nothing, nothing, nothing, 0.95, tests).loc["exploit", "least"]
    net = np.vstack([rng.random((n, 4000)) < least, np.ones((1, 4000)), -np.ones((1, 4000))]).astype(float)
    p = stats.t.sf(net.mean(0) / (net.std(0, ddof=1) / math.sqrt(n + 2)), n + 1)
    assert 0.05 < least < 0.12 and (p < 0.05 / tests).mean() > 0.8


# --- which pairs ----------------------------------------------------------------------------------


def test_one_prompt_counts_once_and_choice_is_by_seed():
    rows = [
        {"prompt": f"Prompt {i % 30}", "chosen": f"best of {i}", "rejected": f"worse {i}"} for i in range(90)
    ]
    preferences, seen = load_preferences(rows, progress=False), []
    reward = lambda prompts, responses: (
        seen.append(list(zip(prompts, responses))),
        [float(len(r)) for r in responses],
    )[1]
    report = run_probes(reward, preferences, probes=["white space"], max_records=None)
    assert report.n_prompts == 30 and len(seen) == 1 and len(seen[0]) == 120
    assert [p for p, _ in seen[0]] == sorted((p for p, _ in seen[0]), key=[p for p, _ in seen[0]].index), (
        "texts of a prompt stand together"
    )
    plain = [r for _, r in seen[0] if "  " not in r]
    assert len(plain) == 60 and {r.split()[-1] for r in plain if "best" in r} == {
        r.split()[-1] for r in plain if "worse" in r
    }
    one, two = (
        run_probes(reward, preferences, probes=["white space"], max_records=10, seed=s).n_prompts
        for s in (0, 1)
    )
    assert one == two == 10 and {p for p, _ in seen[1]} != {p for p, _ in seen[2]}


def test_ranked_and_tied_records_give_a_strict_pair():
    rows = [
        {"prompt": f"p{i}", "responses": ["c x", "a x", "b x", "d x"], "ranks": [3, 1, 1, 2]}
        for i in range(40)
    ]
    seen = []
    scorer = lambda p, r: (seen.append(r), [float(ord(x[0])) for x in r])[1]
    run_probes(scorer, load_preferences(rows, progress=False), probes=["white space"])
    (texts,) = seen
    found = {(texts[i][0], texts[i + 2][0]) for i in range(0, len(texts), 4)}
    assert found <= {(a, b) for a in "ab" for b in "cd"} | {("d", "c")} and len(found) >= 4
    with pytest.raises(ValueError, match="all are ties"):
        tied = [{"prompt": "p", "response_a": "x", "response_b": "y", "label": "tie"}]
        run_probes(by_length, load_preferences(tied, progress=False))


def test_an_edit_and_its_placebo_draw_alike():
    "So do both responses; openings of every kind are as long as each other."
    kinds = ("opening", "flattery", "certainty", "disclaimer")
    assert len({tuple(map(len, edits_module._SENTENCES[kind])) for kind in kinds}) == 1
    records = [
        {"prompt": "What is that?", "responses": ["It is a house.", "It is the sea, or what you do."]}
    ] * 20
    texts = probes_module._texts(records, [PROBES[kind] for kind in kinds], seed=0)
    added = texts["text"].str.len() - texts["side"].map({0: 14, 1: 30})
    assert set(added.groupby(texts["pair"]).nunique()) == {1} and added.nunique() == 2


def test_what_does_not_fit_is_counted():
    preferences = pairs(60)
    short = lambda prompts, responses: [None if len(r) > 200 else float(len(r)) for r in responses]
    report = run_probes(short, preferences)
    fits = [all(len(r) <= 200 for r in record["responses"]) for record in preferences]
    by_name = {r.name: r for r in report.results}
    assert report.n_prompts == sum(fits) < 60
    assert by_name["padding"].too_long > 0 and by_name["padding"].n < by_name["white space"].n
    assert run_probes(lambda p, r: [None] * len(r), preferences).n_prompts == 0


def test_few_prompts_give_no_verdict():
    report = run_probes(by_length, pairs(5))
    assert {r.verdict for r in report.results} == {"not measured"}
    assert "is not known" in report.verdicts[0] and "Not measured" in report.verdicts[1]
    assert report.to_text() and report.plot() and json.dumps(report.to_dict(), allow_nan=False)


def test_a_constant_reward():
    still = run_probes(lambda p, r: [0.1] * len(r), pairs(30))
    assert still.gap is None and "Not shown to read the prompt" in still.verdicts[0]
    assert {r.verdict for r in still.results} == {"not measured", "not shown to notice"}, "no pair is right"


def test_an_exact_invariance_is_no_effect():
    tidy = lambda prompts, responses: [hash_normal(" ".join(r.split()), 3) for r in responses]
    result = run_probes(tidy, pairs(50), probes=["white space"]).results[0]
    change = result.measures["change"]
    assert change["difference"] == change["spread"] == change["low"] == change["high"] == 0
    assert result.verdict == "no effect" and result.n == 50


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"probes": ["padding", "nonsense"]}, "'nonsense'"),
        ({"probes": []}, "one or more"),
        ({"probes": ["cut", "cut"]}, "none twice"),
        ({"max_records": 0}, "max_records must be at least 1"),
        ({"level": 1.0}, "level must lie between"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        run_probes(by_length, pairs(3), **arguments)


def test_bad_edits():
    with pytest.raises(TypeError, match="returned int"):
        run_probes(by_length, pairs(3), probes=[Probe("n", "N", lambda *a: 3)])
    with pytest.raises(ValueError, match="expected='higher'"):
        Probe("n", "N", str, "higher")
    with pytest.raises(ValueError, match="placebo='nonsense'"):
        Probe("n", "N", str, placebo="nonsense")


# --- conversations and models ---------------------------------------------------------------------


def test_conversations_and_their_templates_reach_the_scorer():
    seen = []

    def reward(prompts, responses):
        seen.extend(zip(prompts, responses))
        return [float(sum(len(m["content"]) for m in r)) for r in responses]

    report = run_probes(reward, messages())
    assert all(isinstance(p, list) and isinstance(r, list) for p, r in seen)
    assert all([m["role"] for m in r] == ["assistant"] for _, r in seen)
    assert {r.name: r.n for r in report.results}["prompt copied"] == 30


def test_a_reward_model_with_a_short_context(tmp_path):
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    from reward_kit.data.playground import playground_base
    from reward_kit.scores.inference import RewardModel

    tokenizer = AutoTokenizer.from_pretrained(playground_base())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, preferences = RewardModel.from_pretrained(tmp_path, max_length=44), messages(24)
    report = run_probes(model, preferences)
    by_name = {r.name: r for r in report.results}
    assert report.n_prompts == 24 and by_name["repetition"].too_long > 0 and by_name["white space"].n == 24
    record = preferences[0]
    cut = edit("cut", record["responses"][0], record["prompt"])
    again = run_probes(model, preferences.select([0]), probes=["cut"]).results[0].measures["preferred"]
    alone = model.score([record["prompt"]] * 2, [record["responses"][0], cut])
    assert again["wins"] == float(alone[0] > alone[1]) and again["n"] == 1


def test_template_columns_follow_each_text():
    class Templated(agreement_module.score_preferences.__globals__["TextScorer"]):
        __name__ = "templated"
        calls = []

        def score(self, prompts, responses, *, too_long, tools=None, chat_template_kwargs=None):
            self.calls.append((len(prompts), tools))
            return [float(len(r)) for r in responses]

    rows = [
        {"prompt": f"p {i}", "chosen": "The best of it.", "rejected": f"no {i}", "tools": f'["{i}"]'}
        for i in range(3)
    ]
    scorer = Templated()
    run_probes(scorer, load_preferences(rows, progress=False), probes=["white space"])
    ((n, tools),) = scorer.calls
    assert n == 12 and tools == [f'["{i}"]' for i in range(3) for _ in range(4)]


# --- verdicts -------------------------------------------------------------------------------------


def test_a_probe_is_added_in_one_place():
    @probe("shouting", "Capitals throughout", "no change")
    @on_text
    def shout(text, *_):
        return text.upper()

    try:
        loud = lambda ps, rs: [quality(r) + 9.0 * r.isupper() for r in rs]
        report = run_probes(loud, pairs(60))
    finally:
        del PROBES["shouting"]
    assert report.results[-1].name == "shouting" and len(report.results) == 18
    assert report.results[-1].verdict == "exploitable"


def test_every_probe_has_its_words():
    assert len(PROBES) == 17 and all(
        name == p.name and p.placebo in {"", *PROBES} for name, p in PROBES.items()
    )
    assert {p.expected for p in PROBES.values()} == set(edits_module._EXPECTED)
    for one in PROBES.values():
        if one.placebo:
            assert PROBES[one.placebo].expected != "lower" and PROBES[one.placebo].placebo == ""


def hash_normal(text, seed):
    "A number that looks standard normal and depends on every character."
    digest = hashlib.blake2b(f"{seed} {text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return stats_ppf((int.from_bytes(digest, "little") + 0.5) / 2**64)


def stats_ppf(p):
    from statistics import NormalDist

    return NormalDist().inv_cdf(min(max(p, 1e-12), 1 - 1e-12))


def quality(text):
    "Goes with the number that a response holds, which most edits leave alone."
    found = re.search(r"answer\W+(\d+)", text.lower())
    return hash_normal(found[1], 9) if found else -2.0


def planted_bias(fault, n=240):
    "Answers name their topic; quality goes with a number that edits leave alone; and a fault."
    topic = lambda prompt, text: prompt.split()[1] in text.lower()
    reward = lambda ps, rs: [quality(r) + fault(r) - 3.0 * (not topic(p, r)) for p, r in zip(ps, rs)]
    return {r.name: r.verdict for r in run_probes(reward, pairs(n), max_records=None).results}


BIASES = {
    "length": (lambda r: len(" ".join(r.split())) / 60, {"opening": "exploitable", "padding": "exploitable"}),
    "bold": (lambda r: 1.5 * ("**" in r), {"bold": "outside"}),
    "loud": (lambda r: 1.5 * ("!" in r), {"emphasis": "outside"}),
    "flattery": (
        lambda r: 1.5 * any(s in r for s in edits_module._SENTENCES["flattery"]),
        {"flattery": "exploitable"},
    ),
    "certainty": (
        lambda r: 1.5 * any(s in r for s in edits_module._SENTENCES["certainty"]),
        {"certainty": "exploitable"},
    ),
    "repetition": (lambda r: 1.5 * (r.count("with care") > 1), {"repetition": "exploitable"}),
    "erratic": (
        lambda r: 3.0 * hash_normal(r, 5) * ("  " in r),
        {"white space": "exploitable and fragile"},
    ),
    "dislikes double spaces": (lambda r: -1.5 * ("  " in r), {"white space": "disliked"}),
    "nothing": (lambda r: 0.0, {}),
}


@pytest.mark.parametrize("bias", BIASES)
def test_a_planted_bias_is_found_and_no_other(bias):
    fault, expected = BIASES[bias]
    found = planted_bias(fault)
    accused = {
        name: verdict for name, verdict in found.items() if verdict not in ("no effect", "unclear", "noticed")
    }
    # the numbers of these answers are early, so that a cut leaves them, and the prompt does not hold one
    assert {**accused, "cut": ""} == {**expected, "cut": ""}, accused
    assert found["irrelevant"] == "noticed"


def test_whether_it_reads_the_prompt():
    blind = run_probes(lambda ps, rs: [quality(r) for r in rs], pairs(120))
    assert blind.verdicts[0].startswith("Not shown to read the prompt. The better response beats an")
    own = {r.name: r for r in blind.results}["irrelevant"].measures["preferred"]
    assert f"in {own['wins']:g} of {own['n']} (" in blind.verdicts[0] and own["low"] < 0 < own["high"]


def test_characters_that_no_text_holds_are_outside():
    reward = lambda ps, rs: [quality(r) - 3.0 * ("**" in r) for r in rs]
    strange = run_probes(reward, pairs(60), probes=["bold", "quotes"])
    rows = [
        {"prompt": r["prompt"], "chosen": r["responses"][0], "rejected": r["responses"][1]} for r in pairs(60)
    ]
    rows.append({"prompt": "a *", "chosen": 'b "', "rejected": "c"})
    known = run_probes(reward, load_preferences(rows, progress=False), probes=["bold", "quotes"])
    verdict = lambda report: {r.name: r.verdict for r in report.results}["bold"]
    assert (verdict(strange), verdict(known)) == ("outside", "disliked")
    assert any(said.startswith("With characters") and "bold (" in said for said in strange.verdicts)


def test_the_simulation_in_small():
    "benchmarks/planted_biases.py, 6 experiments: every fault is found, nothing else accused."
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        import planted_biases
    finally:
        sys.path.remove(str(folder))
    drawn = planted_biases.population(Playground(seed=0), 300)
    rows = {name: planted_biases.simulate(name, 6, 300, 0, *drawn) for name in planted_biases.MODELS}
    for name, row in rows.items():
        assert row["found"] >= 0.75 and row["false"] == 0 and row["covered"] > 0.8, (name, row)
        assert name == "does not read the prompt" or row["reads"] == 1
    assert len(rows) == 7


# --- the report -----------------------------------------------------------------------------------


def test_the_report_survives_json():
    report = run_probes(by_length, pairs(40), truth=lambda ps, rs: [quality(r) for r in rs])
    again = ProbeReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
    assert (
        again == report
        and again.verdicts == report.verdicts
        and repr(again) == repr(report)
        and again.to_markdown() == report.to_markdown()
    )
    assert again.truth.results[0].name == "opening" and "The true reward, asked the same" in again.to_text()
    with pytest.raises(ValueError, match="stored by an earlier version"):
        ProbeReport.from_dict({**report.to_dict(), "results": [{"name": "cut", "effect": 0.1}]})


def test_the_report_as_text():
    nasty = Probe("a|b<i>", "Doing <b>a|b</b>", PROBES["padding"].edit)
    report = run_probes(by_length, pairs(60), probes=["cut", nasty, "white space"])
    assert [r.verdict for r in report.worst_first] == sorted(
        (r.verdict for r in report.results), key=list(probes_module._STYLES).index
    )
    page, text = report._repr_html_(), report.to_markdown()
    assert "<i>" not in page and "&lt;i&gt;" in page and "#D55E00" in page
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 5 and {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {11}
    assert "Pairs that turned" in text and "Pairs that turned" not in report.to_markdown(examples=False)
    assert "nothing is added" not in text


def test_the_figure_shows_what_was_found():
    report = run_probes(by_length, pairs(60), truth=lambda ps, rs: [quality(r) for r in rs])
    axes = report.plot().axes[0]
    measured = [r for r in report.worst_first if r.measures["exploit"]["n"] >= 20]
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert labels == [name for r in measured for name in (r.name, "")]
    lines = {int(line.get_ydata()[0]): line for line in axes.lines[1:]}  # the first line is zero
    for y, r in enumerate(measured):
        own = r.measures["exploit"]
        ends = [100 * own[key] for key in ("low", "difference", "high")]
        assert lines[2 * y].get_xdata() == pytest.approx(ends)
        assert (lines[2 * y].get_color(), lines[2 * y].get_marker()) == probes_module._STYLES[r.verdict]
        assert lines[2 * y + 1].get_color() == "black"
    assert "points" in axes.get_xlabel()


# --- length ---------------------------------------------------------------------------------------

OPTIONS = {"level": 0.95, "samples": 50, "seed": 0}
MEASURES = ("pearson", "spearman", "within_prompt", "given_label", "per_doubling", "per_doubling_given_label")


def length_correlation(t, **options):
    return length_module._length_correlation(pd.DataFrame(t), Bootstrap(**OPTIONS | options))


def length_matched_accuracy(t, caliper=0.1, **options):
    "Of a table of responses: its pairs one by one."
    pairs = {"longer": [], "length": [], "prompt": [], "outcome": []}
    for i in range(len(t["reward"])):
        for j in range(len(t["reward"])):
            if t["record"][i] == t["record"][j] and t["rank"][i] < t["rank"][j]:
                values = (
                    t["length"][i] - t["length"][j],
                    (t["length"][i] + t["length"][j]) / 2,
                    t["prompt"][i],
                    (np.sign(t["reward"][i] - t["reward"][j]) + 1) / 2,
                )
                for column, value in zip(pairs.values(), values):
                    column.append(value)
    pairs = {name: np.array(column) for name, column in pairs.items()}
    return length_module._matched_accuracy(pairs, caliper, Bootstrap(**OPTIONS | {"samples": 2000} | options))


def apart(t):
    "Spread of the rewards within their prompts."
    t = pd.DataFrame({name: t[name] for name in ("reward", "record")})
    return (t["reward"] - t.groupby("record")["reward"].transform("mean")).std(ddof=0)


def test_the_unit_of_a_doubling_does_not_depend_on_what_a_prompt_adds():
    t = random_table(k=2)
    moved = {**t, "reward": t["reward"] + 100 * np.asarray(t["record"])}
    found, again = (
        length_correlation(own, samples=50)["per_doubling_given_label"]["value"] for own in (t, moved)
    )
    assert again == pytest.approx(found, rel=1e-6)


def length_report(matched, correlations):
    return LengthReport(matched, correlations)


def test_the_length_interval_covers_the_truth():
    """200 experiments: reward = prompt + label + 0.4 log2(length) + noise; slope and partial
    correlation at equal label."""
    rng, n, inside = np.random.default_rng(1), 200, []
    spread = math.sqrt((0.7 / 2) ** 2 + (0.4**2 * 0.8**2 + 1) / 2)  # of a pair around its mean
    truths = {
        "per_doubling_given_label": 0.4 / spread,
        "given_label": 0.4 * 0.8 / math.sqrt(0.4**2 * 0.8**2 + 1),
    }
    for _ in range(200):
        x, label = rng.normal(7, 0.8, (n, 2)), np.tile([1, 2], (n, 1))
        reward = rng.normal(0, 1, (n, 1)) - 0.7 * label + 0.4 * x + rng.normal(0, 1, (n, 2))
        index = np.repeat(np.arange(n), 2)
        found = length_correlation(
            {
                "reward": reward.ravel(),
                "length": 2 ** x.ravel(),
                "rank": label.ravel(),
                "record": index,
                "prompt": index,
            },
            samples=200,
        )
        inside.append([found[name]["low"] <= truth <= found[name]["high"] for name, truth in truths.items()])
    assert (np.mean(inside, axis=0) > 0.89).all()


def random_table(seed=0, n=80, k=3, ties=False):
    rng = np.random.default_rng(seed)
    record = np.repeat(np.arange(n), k)
    length = rng.integers(5, 60 if ties else 5000, n * k)
    rank = np.concatenate([rng.permutation(k) + 1 for _ in range(n)])
    reward = rng.normal(size=n)[record] - 0.5 * rank + 0.3 * np.log2(length) + rng.normal(size=n * k)
    return {
        "reward": np.round(reward, 1) if ties else reward,
        "length": length,
        "rank": rank,
        "record": record,
        "prompt": record // 2,
    }


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_scipys(ties):
    t = random_table(ties=ties)
    found, x = length_correlation(t, samples=50), np.log2(t["length"])
    assert found["pearson"]["value"] == pytest.approx(stats.pearsonr(x, t["reward"]).statistic, abs=1e-12)
    assert found["spearman"]["value"] == pytest.approx(
        stats.spearmanr(t["length"], t["reward"]).statistic, abs=1e-12
    )
    dummies = (t["record"][:, None] == np.arange(80)).astype(float)
    residual = lambda y, *more: (
        y - (A := np.column_stack([dummies, *more])) @ np.linalg.lstsq(A, y, rcond=None)[0]
    )
    assert found["within_prompt"]["value"] == pytest.approx(
        stats.pearsonr(residual(x), residual(t["reward"])).statistic, abs=1e-10
    )
    assert found["given_label"]["value"] == pytest.approx(
        stats.pearsonr(residual(x, t["rank"]), residual(t["reward"], t["rank"])).statistic, abs=1e-10
    )
    assert found["per_doubling"]["value"] == pytest.approx(
        stats.linregress(x, t["reward"]).slope / apart(t), abs=1e-10
    )
    full = np.linalg.lstsq(np.column_stack([dummies, x, t["rank"]]), t["reward"], rcond=None)[0]
    assert found["per_doubling_given_label"]["value"] == pytest.approx(full[80] / apart(t), abs=1e-9)


def test_for_pairs_the_slope_is_that_of_the_differences():
    t = random_table(k=2)
    better, worse = (np.flatnonzero(t["rank"] == k) for k in (1, 2))
    x, y = np.log2(t["length"][better] / t["length"][worse]), t["reward"][better] - t["reward"][worse]
    slope = stats.linregress(x, y).slope
    assert length_correlation(t, samples=50)["per_doubling_given_label"]["value"] == pytest.approx(
        slope / apart(t), abs=1e-10
    )


def test_intervals_are_those_of_drawing_prompts_one_by_one():
    t, drawn = random_table(1, n=20, ties=True), {name: [] for name in ("pearson", "spearman", "given_label")}
    found = length_correlation(t, samples=200, seed=4, level=0.9)
    rows = [np.flatnonzero(t["prompt"] == p) for p in range(10)]
    for prompts in np.random.default_rng(4).integers(10, size=(200, 10)):
        own = np.concatenate([rows[p] for p in prompts])
        group = np.concatenate([100 * i + t["record"][rows[p]] for i, p in enumerate(prompts)])
        x, y, k = np.log2(t["length"][own]), t["reward"][own], t["rank"][own]
        drawn["pearson"].append(stats.pearsonr(x, y).statistic)
        drawn["spearman"].append(stats.spearmanr(x, y).statistic)
        x, y, k = (v - np.array([v[group == g].mean() for g in group]) for v in (x, y, k.astype(float)))
        x, y = (v - k * (v @ k) / (k @ k) for v in (x, y))
        drawn["given_label"].append(x @ y / math.sqrt((x @ x) * (y @ y)))
    for name, values in drawn.items():
        assert (found[name]["low"], found[name]["high"]) == pytest.approx(
            tuple(np.quantile(values, [0.05, 0.95])), abs=1e-9
        )


def test_what_does_not_vary_has_no_correlation():
    t = random_table()
    for constant in ({"reward": np.full(240, 0.1)}, {"length": np.full(240, 7)}):
        found = length_correlation(t | constant, samples=50)
        assert all(found[name] is None for name in MEASURES) and found["n"] == 240 and found["prompts"] == 40
    tied = length_correlation(t | {"rank": np.ones(240, int)}, samples=50)
    assert tied["given_label"] == pytest.approx(tied["within_prompt"]), "no ranks, nothing to control for"


def test_planted_length_is_found_and_confounding_is_not_taken_for_it():
    rng, n = np.random.default_rng(3), 1500
    quality_ = rng.normal(size=(n, 2))
    x = 7 + 0.5 * quality_ + rng.normal(size=(n, 2))  # better responses are longer
    rank = np.where(quality_ == quality_.max(1, keepdims=True), 1, 2)
    index = np.repeat(np.arange(n), 2)
    make = lambda reward: {
        "reward": reward.ravel(),
        "length": np.round(2**x).ravel(),
        "rank": rank.ravel(),
        "record": index,
        "prompt": index,
    }
    honest, biased = (length_correlation(make(2 * quality_ + b * x), samples=300) for b in (0.0, 0.7))
    assert (
        honest["within_prompt"]["low"] > 0.3
        and honest["given_label"]["high"] < honest["within_prompt"]["low"]
    )
    assert biased["per_doubling_given_label"]["low"] > honest["per_doubling_given_label"]["high"]
    by_label = length_correlation(make(-2.0 * rank + 0 * x), samples=300)
    assert (
        by_label["within_prompt"]["low"] > 0.2 and abs(by_label["per_doubling_given_label"]["value"]) < 1e-9
    ), "a reward of labels alone"


def test_the_length_table_reads_records():
    preferences = pairs(10)
    rewards = [None if i == 4 else own for i, own in enumerate(score_preferences(by_length, preferences)[0])]
    t = length_module._length_table(preferences, rewards)
    assert (
        len(t["reward"]) == 18 and 4 not in set(t["record"]) and t["reward"].tolist() == t["length"].tolist()
    )
    talk = length_module._length_table(messages(3), [[1.0, 2.0]] * 3)
    assert (
        talk["length"].tolist() == [len(r["responses"][k][0]["content"]) for r in messages(3) for k in (0, 1)]
        and talk["rank"].tolist() == [1, 2] * 3
    )
    no_prompt = load_preferences(
        [{"chosen": "one two", "rejected": "three"}, {"chosen": "four", "rejected": "five six"}],
        columns={"prompt": None},
        progress=False,
    )
    assert length_module._length_table(no_prompt, [[1.0, 0.0]] * 2)["prompt"].tolist() == [0, 0, 1, 1]


def test_accuracy_by_length_is_a_plain_count():
    preferences = pairs(60)
    rewards = score_preferences(lambda p, r: [round(hash_normal(x, 1)) for x in r], preferences)[0]
    found = LengthReport.measure(preferences, rewards, caliper=0.3).matched
    pairs_, table = (
        {name: [] for name in ("all", "matched", "longer", "shorter")},
        pair_table(preferences, rewards),
    )
    for record, own, outcome in zip(preferences, rewards, table["outcome"], strict=True):
        a, b = map(len, record["responses"])
        assert outcome == (1 if own[0] > own[1] else 0.5 if own[0] == own[1] else 0)
        for name, keep in (
            ("all", True),
            ("matched", max(a, b) <= 1.3 * min(a, b)),
            ("longer", a > b),
            ("shorter", a < b),
        ):
            if keep:
                pairs_[name].append(outcome)
    for name, outcomes in pairs_.items():
        share = found[name]
        assert share["accuracy"] == pytest.approx(np.mean(outcomes)) and share["pairs"] == share[
            "prompts"
        ] == len(outcomes)
        wilson = wilson_interval(sum(outcomes), len(outcomes))
        assert share["low"] <= wilson[0] and share["high"] >= wilson[1]
    p, q = found["longer"], found["shorter"]
    assert found["balanced"]["value"] == pytest.approx((p["accuracy"] + q["accuracy"]) / 2) and found["gap"][
        "value"
    ] == pytest.approx(p["accuracy"] - q["accuracy"])
    sides = [np.array([*pairs_[name], 1, 0]) for name in ("longer", "shorter")]  # Agresti and Caffo
    error = math.sqrt(sum(side.var() / len(side) for side in sides))
    ends = [sides[0].mean() - sides[1].mean() + sign * 1.959964 * error for sign in (-1, 1)]
    assert (found["gap"]["low"], found["gap"]["high"]) == pytest.approx(ends, abs=1e-6)


def test_accuracy_of_a_pure_length_reward_and_its_edges():
    t = random_table(k=2)
    t["reward"] = t["length"].astype(float)
    found = length_matched_accuracy(t)
    assert (
        found["longer"]["accuracy"],
        found["shorter"]["accuracy"],
        found["balanced"]["value"],
        found["gap"]["value"],
    ) == (1, 0, 0.5, 1)
    assert found["gap"]["low"] > 0.7
    t["length"] = np.full(160, 9)
    equal = length_matched_accuracy(t)
    assert (
        equal["matched"]["pairs"] == equal["all"]["pairs"] == 80
        and equal["longer"] is equal["balanced"] is equal["gap"] is None
    )
    preferences = pairs(3)
    with pytest.raises(ValueError, match="caliper"):
        LengthReport.measure(preferences, [[1.0, 0.0]] * 3, caliper=-0.1)
    with pytest.raises(ValueError, match="no strictly ordered pair"):
        LengthReport.measure(preferences, [None] * 3)


def test_length_preference_by_hand():
    table = _Pairs(
        longer=np.array([3, -2, 0, 5]), difference=np.array([1.0, 1.0, 1.0, -1.0]), outcome=np.ones(4)
    )
    found = table.longer_preferred()
    # longer preferred in pairs 1 and 4 of three; scored higher only in pair 1; always longer: right, wrong,
    # tie, right
    assert found == {
        "pairs_of_different_length": 3,
        "longer_is_preferred": pytest.approx(2 / 3),
        "longer_is_scored_higher": pytest.approx(1 / 3),
        "accuracy_of_always_longer": pytest.approx(2.5 / 4),
    }


def test_balanced_accuracy_covers_the_truth():
    "400 experiments: right with 0.8 where the better is longer (70% of pairs), 0.6 where it is shorter."
    rng, hits = np.random.default_rng(2), 0
    for _ in range(400):
        longer = rng.random(120) < 0.7
        right = rng.random(120) < np.where(longer, 0.8, 0.6)
        length, reward = np.where(longer, 200, 100), np.where(right, 1.0, 0.0)
        index = np.repeat(np.arange(120), 2)
        t = {
            "reward": np.stack([reward, np.full(120, 0.5)], 1).ravel(),
            "length": np.stack([length, np.full(120, 150)], 1).ravel(),
            "rank": np.tile([1, 2], 120),
            "record": index,
            "prompt": index,
        }
        ends = length_matched_accuracy(t, samples=300)["balanced"]
        hits += ends["low"] <= 0.7 <= ends["high"]
    assert 0.93 < hits / 400 <= 1.0


def test_words_and_rows_of_length():
    share = lambda a, n=100: {"accuracy": a, "low": a - 0.05, "high": a + 0.05, "pairs": n, "prompts": n}
    both = lambda v, h: {"value": v, "low": v - h, "high": v + h}
    matched = {
        "all": share(0.7),
        "matched": share(0.6, 1234),
        "longer": share(0.9),
        "shorter": share(0.5),
        "balanced": both(0.7, 0.05),
        "gap": both(0.4, 0.1),
        "caliper": 0.1,
    }
    correlations = {name: both(0.3, 0.1) for name in MEASURES} | {"n": 100, "prompts": 50}
    said = length_report(matched, correlations).verdicts
    assert (
        "at most 10%, accuracy is 60.0% (55.0% to 65.0%, 1,234 pairs); on all pairs 70.0%" in said[0]
        and "leans to the longer" in said[1]
    )
    assert (
        "moves the reward by 0.30 (0.20 to 0.40) of its spread within a prompt: for length, or for what"
        in said[2]
    )
    said = length_report(matched, correlations | {"per_doubling_given_label": both(-0.2, 0.06)}).verdicts
    assert "by -0.20 (-0.26 to -0.14) of its spread within a prompt: for length" in said[2]
    assert length_report(matched, correlations | {"prompts": 5}).verdicts == [
        "5 prompts are too few to judge what length does; 20 are the least."
    ]
    weak = length_report(
        matched | {"gap": both(-0.4, 0.1)}, correlations | {"per_doubling_given_label": both(-0.01, 0.02)}
    ).verdicts
    assert (
        "leans to the shorter" in weak[1]
        and "moves the reward by -0.01" in weak[2]
        and "does not matter" in weak[2]
    )
    unclear = length_report(
        matched | {"gap": both(0.0, 0.1)}, correlations | {"per_doubling_given_label": both(0.1, 0.1)}
    ).verdicts
    assert "no lean" in unclear[1] and "whether by more than 0.1 cannot be told" in unclear[2]
    nothing = {name: None for name in MEASURES} | {"prompts": 50}
    assert length_report(matched | {"matched": None, "balanced": None}, nothing).verdicts == []
    rows = rows_of(length_report(matched | {"matched": None}, nothing))
    assert (
        rows[0] == ("accuracy, lengths within 10%", "none")
        and len(rows) == 10
        and rows[1][1] == "90.0% (85.0% to 95.0%) of 100 pairs"
    )
