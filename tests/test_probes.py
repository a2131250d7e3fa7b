"""Probes: every edit on odd texts, effects by hand and against scipy, intervals against their promise,
planted biases found."""

import hashlib
import json
import math
import random
import re
import unicodedata

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import reward_kit.trust.agreement as agreement_module
import reward_kit.trust.edits as edits_module
import reward_kit.trust.length as length_module
import reward_kit.trust.probes as probes_module
from reward_kit.data.preferences import load_preferences
from reward_kit.data.report import wilson_interval
from reward_kit.trust.agreement import Bootstrap, _Pairs, pair_table, score_preferences
from reward_kit.trust.edits import PROBES, Probe, on_text, probe
from reward_kit.trust.length import LengthReport
from reward_kit.trust.probes import Effect, ProbeReport, run_probes


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
                "prompt": f"Tell {TOPICS[i % 12]} number{i} to {TOPICS[(5 * i + 1) % 12]} person{i}",
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
            if PROBES[name].side == "response" and name != "irrelevant":
                assert new is None or isinstance(new, str) and new and new != text
                if not text.strip():
                    assert new is None
            elif pool == []:
                assert new is None
    talk = [{"role": "user", "content": "more"}, {"role": "assistant", "content": text}]
    before = json.dumps(talk)
    new = edit(name, talk)
    assert json.dumps(talk) == before, "what is given is not touched"
    if PROBES[name].side == "response" and name != "irrelevant" and new is not None:
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
    if name not in ("irrelevant", "other prompt"):
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
    assert edit("emphasis", text) == "The sun is hot! It SHINES!"
    assert edit("emphasis", "It cost 3.50, e.g. here.") == "It COST 3.50, e.g. here!"
    assert edit("white space", "a b\n c") == "a  b\n c\n"
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


@pytest.mark.parametrize("name", ["padding", "flattery", "certainty", "disclaimer"])
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


def test_padding_does_not_finish_an_unfinished_sentence():
    assert edit("padding", "It is a", "What is that?").startswith("It is a\n\n") and edit(
        "padding", "It is.", "What is that?"
    ).startswith("It is. ")
    assert (
        sum(edit("padding", "It is.", "What is that?").count(s) for s in edits_module._SENTENCES["padding"])
        == 3
    )


def test_what_is_borrowed_belongs_to_another_question_and_is_as_long():
    pool = [
        ("How do whales breathe in the sea?", "L" * 20),
        ("Please say: how do whales breathe in the sea?", "L" * 21),
        ("Where do rivers end?", "R" * 25),
        ("Which planet is red?", "M" * 22),
        ("What is bread?", "B" * 31),
        ("What is tea?", "T" * 13),
    ]
    assert edit("irrelevant", "L" * 20, pool[0][0], pool) == "M" * 22, (
        "nearest in length, not the same question in other words"
    )
    assert edit("irrelevant", "L" * 20, pool[0][0], pool[:2] + pool[4:]) is None, (
        "nothing between two thirds and one and a half"
    )
    found = {edit("other prompt", "x", pool[0][0], pool, seed) for seed in range(60)}
    assert (
        pool[0][0] not in found
        and pool[1][0] not in found
        and found <= {p for p, _ in pool[2:]}
        and len(found) >= 3
    )


def test_prompts_of_one_template_can_stand_in_for_each_other():
    pool = [
        (f"Please summarise the following text in one short sentence: {t}", f"It is about {t}.")
        for t in TOPICS
    ]
    for i, (prompt, response) in enumerate(pool):
        assert edit("other prompt", response, prompt, pool, seed=i) not in (None, prompt) and edit(
            "irrelevant", response, prompt, pool
        ) not in (None, response)


# --- effects --------------------------------------------------------------------------------------


def hand_made():
    """Twenty prompts whose rewards are written down: originals 1 and 0 or 3 and 0, edits +0.5 for odd
    prompts and +1 for even ones."""
    rows = [{"prompt": f"p{i}", "chosen": f"{3 if i % 2 else 1}", "rejected": f"0 {i}"} for i in range(20)]
    reward = lambda prompts, responses: [
        float(r.split("+")[0].split()[0]) + (float(r.split("+")[1]) if "+" in r else 0.0) for r in responses
    ]
    change = lambda response, prompt, rng, pool: response + ("+0.5" if int(prompt[1:]) % 2 else "+1")
    return (
        load_preferences(rows, progress=False),
        reward,
        Probe("add", "Adding", change, "no rise", "it adds"),
    )


def test_an_effect_by_hand():
    preferences, reward, probe = hand_made()
    report = run_probes(reward, preferences, probes=[probe])
    result = report.results[0]
    # rewards: ten 1, ten 3, twenty 0: mean 1, variance (10 * 0 + 10 * 4 + 20 * 1) / 40 = 1.5; mean change
    # 0.75
    assert report.spread == pytest.approx(math.sqrt(1.5)) and result.effect == pytest.approx(
        0.75 / math.sqrt(1.5)
    )
    assert (result.n, result.unchanged, result.not_applicable, result.too_long, result.raised) == (
        20,
        0,
        0,
        0,
        1.0,
    )
    assert (
        result.verdict == "fails"
        and result.low < result.effect < result.high
        and "raises the reward by 0.61" in result.sentence
    )
    expected = stats.binomtest(20, 20).proportion_ci(0.95, method="wilson")
    assert (result.raised_low, result.raised_high) == pytest.approx((expected.low, expected.high))


def test_effects_do_not_depend_on_scale_or_origin_or_other_probes():
    preferences = pairs(40)
    noise = lambda scale, shift: (
        lambda prompts, responses: [shift + scale * (len(r) + hash_normal(r, 0)) for r in responses]
    )
    base = run_probes(noise(1.0, 0.0), preferences, samples=500)
    moved = run_probes(noise(7.0, 1e4), preferences, samples=500)
    for a, b in zip(base.results, moved.results, strict=True):
        assert (a.effect, a.low, a.high) == pytest.approx(
            (b.effect, b.low, b.high), abs=1e-6
        ) and a.verdict == b.verdict
    alone = run_probes(noise(1.0, 0.0), preferences, probes=["cut", "padding"], samples=500)
    by_name = {r.name: r for r in base.results}
    assert [r.name for r in alone.results] == ["cut", "padding"]
    for r in alone.results:
        assert r.effect == by_name[r.name].effect and (r.low, r.high) == pytest.approx(
            (by_name[r.name].low, by_name[r.name].high), abs=1e-12
        )
    assert run_probes(noise(1.0, 0.0), preferences, samples=500).to_dict() == base.to_dict()


def test_the_interval_is_that_of_drawing_prompts_one_by_one():
    "A plain loop with the same draws: changes and all responses of the drawn prompts, the spread anew."
    rng = np.random.default_rng(0)
    changes, rewards = (
        rng.normal(0.2, 1, (30, 1)),
        [rng.normal(0, 1, rng.integers(2, 5)) + rng.normal() for _ in range(30)],
    )
    changes[3] = np.nan
    effect, low, high = (
        float(x[0])
        for x in probes_module._measure(
            changes, pd.DataFrame(rewards).to_numpy(), level=0.9, samples=300, seed=5
        )
    )
    assert effect == pytest.approx(np.nanmean(changes) / np.concatenate(rewards).std())
    draws, generator = [], np.random.default_rng(5)
    for drawn in generator.integers(30, size=(300, 30)):
        draws.append(np.nanmean(changes[drawn]) / np.concatenate([rewards[i] for i in drawn]).std())
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, [0.05, 0.95])), abs=1e-12)


def test_one_prompt_counts_once_and_choice_is_by_seed():
    rows = [
        {"prompt": f"Prompt {i % 30}", "chosen": f"best of {i}", "rejected": f"worse {i}"} for i in range(90)
    ]
    preferences = load_preferences(rows, progress=False)
    seen = []
    reward = lambda prompts, responses: (
        seen.append(list(zip(prompts, responses))),
        [float(len(r)) for r in responses],
    )[1]
    report = run_probes(reward, preferences, probes=["white space"], max_records=None)
    assert report.n_prompts == 30 and len(seen) == 1 and len(seen[0]) == 90
    assert [p for p, _ in seen[0]] == sorted((p for p, _ in seen[0]), key=[p for p, _ in seen[0]].index), (
        "texts of a prompt stand together"
    )
    assert {r for _, r in seen[0] if not r.endswith("\n")} == {
        f"{kind} {i}" for kind in ("best of", "worse") for i in range(30)
    }
    one, two = (
        run_probes(reward, preferences, probes=["white space"], max_records=10, seed=s).n_prompts
        for s in (0, 1)
    )
    assert one == two == 10 and {p for p, _ in seen[1]} != {p for p, _ in seen[2]}


def test_ranked_and_tied_records_start_from_a_best_response():
    rows = [{"prompt": f"p{i}", "responses": ["c", "a", "b", "d"], "ranks": [3, 1, 1, 2]} for i in range(3)]
    seen = []
    run_probes(
        lambda p, r: (seen.extend(r), [float(ord(x[0])) for x in r])[1],
        load_preferences(rows, progress=False),
        probes=["white space"],
    )
    assert sorted(set(seen)) == ["a", "a\n", "b", "c", "d"]


def test_what_does_not_fit_is_counted():
    preferences = pairs(40)
    short = lambda prompts, responses: [None if len(r) > 200 else float(len(r)) for r in responses]
    best = [r["responses"][0] for r in preferences]
    report = run_probes(short, preferences)
    assert report.unscored == sum(len(r) > 200 for r in best) > 0 and report.n_prompts == 40 - report.unscored
    by_name = {r.name: r for r in report.results}
    assert by_name["padding"].too_long > 0 and "too long" in "".join(
        dict((r[0], r[4]) for r in rows_of(report))["padding"]
    )
    assert all(r.n + r.not_applicable + r.too_long == report.n_prompts for r in report.results)
    assert "did not fit the model" in repr(report)
    kept = np.concatenate(
        [
            [len(x) for x in r["responses"] if len(x) <= 200]
            for r in preferences
            if len(r["responses"][0]) <= 200
        ]
    )
    assert report.spread == pytest.approx(kept.std())
    with pytest.raises(ValueError, match="none of the 40 best responses"):
        run_probes(lambda p, r: [None] * len(r), preferences)


def test_few_prompts_give_numbers_but_no_verdict():
    report = run_probes(by_length, pairs(5))
    assert {r.verdict for r in report.results} == {"not measured"} and {
        r.name: r.effect for r in report.results
    }["padding"] > 0
    assert "only 5 prompts" in report.verdicts[0]


def test_a_constant_reward_and_one_without_spread():
    preferences = pairs(30)
    still = run_probes(lambda p, r: [0.1] * len(r), preferences)
    assert all(r.effect == r.low == r.high == 0 and r.unchanged == r.n for r in still.results if r.n)
    assert all(
        r.verdict == ("fails" if r.expected == "lower" else "passes") for r in still.results if r.n >= 20
    )
    flat = run_probes(lambda p, r: [float("\n" in x) for x in r], preferences, probes=["white space", "cut"])
    assert [r.effect for r in flat.results] == [None, 0.0] and flat.results[0].verdict == "not measured"
    assert (
        "same reward" in flat.results[0].sentence
        and json.dumps(flat.to_dict())
        and flat.plot()
        and "none" in rows_of(flat)[-1][2]
    )


def test_an_exact_invariance_is_exactly_zero():
    tidy = lambda prompts, responses: [hash_normal(" ".join(r.split()), 3) for r in responses]
    result = run_probes(tidy, pairs(50), probes=["white space"]).results[0]
    assert (result.effect, result.low, result.high) == (0.0, 0.0, 0.0) and result.unchanged == result.n == 50
    assert "exactly as it is, as it should" in result.sentence


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"probes": ["padding", "nonsense"]}, "holds 'nonsense'"),
        ({"probes": []}, "at least one"),
        ({"probes": ["cut", "cut"]}, "no name twice"),
        ({"max_records": 0}, "max_records must be at least 1"),
        ({"level": 1.0}, "level must lie between"),
        ({"threshold": -1}, "threshold"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        run_probes(by_length, pairs(3), **arguments)


def test_bad_edits_and_data():
    with pytest.raises(TypeError, match="returned int"):
        run_probes(by_length, pairs(3), probes=[Probe("n", "N", lambda *a: 3, "lower", "n")])
    with pytest.raises(TypeError, match="load_preferences"):
        run_probes(by_length, [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(ValueError, match="expected='higher'"):
        Probe("n", "N", str, "higher", "n")
    with pytest.raises(ValueError, match="side='both'"):
        Probe("n", "N", str, "lower", "n", "both")


# --- conversations and models ---------------------------------------------------------------------


def test_conversations_and_their_templates_reach_the_scorer():
    seen = []

    def reward(prompts, responses):
        seen.extend(zip(prompts, responses))
        return [float(sum(len(m["content"]) for m in r)) for r in responses]

    report = run_probes(reward, messages())
    assert all(isinstance(p, list) and isinstance(r, list) for p, r in seen)
    assert (
        all([m["role"] for m in r] == ["assistant"] for _, r in seen)
        and {r.name: r.verdict for r in report.results}["padding"] == "fails"
    )
    assert all(r.n == 30 for r in report.results)


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
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = RewardModel.from_pretrained(tmp_path, max_length=64)
    for preferences in (
        messages(24),
        load_preferences(
            [
                {
                    "prompt": r["prompt"][-1]["content"],
                    "chosen": r["responses"][0][0]["content"],
                    "rejected": "No.",
                }
                for r in messages(24)
            ],
            progress=False,
        ),
    ):
        report = run_probes(model, preferences)
        by_name = {r.name: r for r in report.results}
        assert (
            report.n_prompts == 24
            and by_name["padding"].too_long > 0
            and by_name["white space"].n > 0
            and by_name["other prompt"].n == 24
        )
        record = preferences[0]
        cut = edit("cut", record["responses"][0], record["prompt"])
        again = run_probes(model, preferences.select([0]), probes=["cut"])
        alone = model.score([record["prompt"]] * 3, [record["responses"][0], record["responses"][1], cut])
        assert again.results[0].effect == pytest.approx((alone[2] - alone[0]) / np.std(alone[:2]), rel=1e-3)


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
    assert n == 9 and tools == [f'["{i}"]' for i in range(3) for _ in range(3)]


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0.11, 0.2, ("fails", "fails", "fails")),
        (0.1, 0.2, ("unclear", "unclear", "fails")),
        (-0.1, 0.1, ("passes", "passes", "unclear")),
        (-0.2, 0.1, ("passes", "unclear", "unclear")),
        (-0.2, -0.11, ("passes", "fails", "passes")),
        (-0.09, -0.01, ("passes", "passes", "fails")),
        (-0.5, 0.5, ("unclear", "unclear", "unclear")),
        (0.0, 0.0, ("passes", "passes", "fails")),
        (-0.3, 0.0, ("passes", "unclear", "unclear")),
    ],
)
def test_verdicts(low, high, expected):
    assert tuple(Effect(0.0, low, high).verdict(e, 0.1) for e in edits_module._EXPECTED) == expected


def test_verdicts_follow_the_threshold():
    effect = Effect(0.2, 0.15, 0.3)
    assert effect.verdict("no rise", 0.1) == "fails" and effect.verdict("no rise", 0.5) == "passes"
    report = run_probes(by_length, pairs(30), threshold=0.2)
    for r, row in zip(report.worst_first, rows_of(report)):
        size = [
            word
            for limit, word in ((0, "negligible"), (0.2, "small"), (0.5, "medium"), (0.8, "large"))
            if abs(r.effect) >= limit
        ][-1]
        assert row[2].endswith(f", {size}")


@pytest.mark.parametrize(
    "name, numbers, words",
    [
        (
            "padding",
            (0.42, 0.35, 0.50),
            "raises the reward by 0.42 standard deviations (0.35 to 0.50): the model rewards length.",
        ),
        (
            "list",
            (-0.42, -0.50, -0.35),
            "lowers the reward by 0.42 standard deviations (0.35 to 0.50): the model judges the layout.",
        ),
        (
            "cut",
            (-0.42, -0.50, -0.35),
            "lowers the reward by 0.42 standard deviations (0.35 to 0.50), as it should.",
        ),
        ("cut", (-0.04, -0.06, -0.02), "lowers the reward by only 0.04"),
        ("cut", (0.01, -0.06, 0.02), "does not lower the reward, 0.01"),
        ("cut", (0.3, 0.2, 0.4), "raises the reward by 0.30"),
        ("cut", (-0.1, -0.3, 0.1), "no fall of the reward can be shown"),
        ("padding", (0.1, -0.1, 0.3), "no effect larger than 0.1 can be shown or excluded"),
        ("padding", (-0.4, -0.5, -0.3), "so it does not pay"),
        ("padding", (0.01, -0.05, 0.05), "no rise larger than 0.1"),
        ("bold", (-0.001, -0.004, 0.004), "no effect larger than 0.1, 0.00 (0.00 to 0.00)"),
    ],
)
def test_sentences(name, numbers, words):
    probe = PROBES[name]
    effect = Effect(*numbers)
    said = probes_module._sentence(probe, effect, effect.verdict(probe.expected), n=200)
    assert said.startswith(probe.what) and words in said and said.endswith(".")


def test_a_probe_is_added_in_one_place():
    @probe("shouting", "Writing in capitals", "no change", "the reward depends on case")
    @on_text
    def shout(text, *_):
        return text.upper()

    try:
        report = run_probes(
            lambda ps, rs: [len(r) + 9.0 * sum(c.isupper() for c in r) for r in rs], pairs(30)
        )
    finally:
        del PROBES["shouting"]
    assert (
        report.results[-1].name == "shouting"
        and report.results[-1].verdict == "fails"
        and len(report.results) == 16
    )


def test_every_probe_has_its_words():
    assert len(PROBES) == 15 and all(
        name == p.name and p.what[0].isupper() and p.bias.startswith(("the model", "the reward"))
        for name, p in PROBES.items()
    )
    assert {p.expected for p in PROBES.values()} == set(edits_module._EXPECTED)


def test_together_means_wider():
    one = run_probes(by_length, pairs(40))
    all_ = run_probes(by_length, pairs(40), simultaneous=True)
    inner, outer = ({r.name: (r.low, r.high) for r in report.results} for report in (one, all_))
    assert (
        all(outer[n][0] <= inner[n][0] and inner[n][1] <= outer[n][1] for n in inner)
        and outer["padding"] != inner["padding"]
    )
    direct = run_probes(by_length, pairs(40), level=1 - 0.05 / 15)
    assert {r.name: (r.low, r.high) for r in direct.results} == {
        n: pytest.approx(ends) for n, ends in outer.items()
    }
    assert "(Bonferroni)" in repr(all_) and "would miss zero" in repr(one) and all_.level == 0.95


# --- intervals keep their promise -----------------------------------------------------------------


def test_the_effect_interval_covers_the_truth():
    """1,000 experiments of 100 prompts with two responses, changes that go with the rewards; the spread
    is estimated."""
    rng = np.random.default_rng(0)
    n, experiments = 100, 1000
    rewards = rng.normal(0, 1, (experiments, n, 1)) + rng.normal(0, 1, (experiments, n, 2))
    changes = 0.3 + 0.3 * rewards[..., 0] + rng.normal(0, 0.8, (experiments, n))
    truth = 0.3 / math.sqrt(2)
    sums = np.stack(
        [changes, np.ones_like(changes), rewards.sum(-1), (rewards**2).sum(-1), np.full_like(changes, 2)], -1
    )  # (E, n, 5)
    statistic = lambda totals: np.concatenate(
        [probes_module._effects(totals[:, 5 * e : 5 * e + 5]) for e in range(experiments)], 1
    )
    low, high = np.array(Bootstrap(samples=1000).interval(sums.transpose(1, 0, 2).reshape(n, -1), statistic))
    assert 0.925 < ((low <= truth) & (truth <= high)).mean() < 0.97


def test_the_length_interval_covers_the_truth():
    """1,000 experiments: reward = prompt + label + 0.4 log2(length) + noise; slope and partial
    correlation at equal label."""
    rng, n, experiments, tables = np.random.default_rng(1), 200, 1000, []
    for _ in range(experiments):
        x, label = rng.normal(7, 0.8, (n, 2)), np.tile([1, 2], (n, 1))
        reward = rng.normal(0, 1, (n, 1)) - 0.7 * label + 0.4 * x + rng.normal(0, 1, (n, 2))
        index = np.repeat(np.arange(n), 2)
        tables.append(
            {
                "reward": reward.ravel(),
                "length": 2 ** x.ravel(),
                "rank": label.ravel(),
                "record": index,
                "prompt": index,
            }
        )
    sums = np.hstack([length_module._length_sums(pd.DataFrame(t)) for t in tables])
    statistic = lambda totals: np.concatenate(
        [length_module._length_statistics(totals[:, 18 * e : 18 * e + 18]) for e in range(experiments)], 1
    )
    low, high = (
        end.reshape(experiments, 5) for end in np.array(Bootstrap(samples=600).interval(sums, statistic))
    )
    spread = math.sqrt(1 + (0.7 / 2) ** 2 + 0.4**2 * 0.8**2 + 1)
    partial = 0.4 * 0.8 / math.sqrt(0.4**2 * 0.8**2 + 1)
    for column, truth in ((4, 0.4 / spread), (2, partial)):
        assert 0.925 < ((low[:, column] <= truth) & (truth <= high[:, column])).mean() < 0.97


# --- planted biases -------------------------------------------------------------------------------


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


PLANTED = {
    "length": (
        lambda p, r: 0.5 * math.log2(len(r)),
        {"padding", "repetition", "flattery", "certainty", "disclaimer", "white space"},
    ),
    "bold": (lambda p, r: 0.5 * ("**" in r), {"bold"}),
    "list": (lambda p, r: 0.5 * r.startswith("- "), {"list"}),
    "loud": (lambda p, r: 0.5 * ("!" in r), {"emphasis"}),
    "flattery": (lambda p, r: 0.5 * any(s in r for s in edits_module._SENTENCES["flattery"]), {"flattery"}),
    "certainty": (
        lambda p, r: 0.5 * any(s in r for s in edits_module._SENTENCES["certainty"]),
        {"certainty"},
    ),
    "disclaimer": (lambda p, r: -0.5 * ("AI language model" not in r), {"disclaimer"}),
    "repetition": (lambda p, r: 0.5 * (r.count("with care") > 1), {"repetition"}),
    "double spaces": (lambda p, r: -0.5 * ("  " in r), {"white space"}),
    "zero width": (lambda p, r: -0.5 * ("\u200b" in r), {"invisible"}),
    "full width": (lambda p, r: 0.5 * ("．" in r), {"signs"}),
}


@pytest.mark.parametrize("bias", PLANTED)
def test_a_planted_bias_is_caught_and_nothing_else(bias):
    planted, expected = PLANTED[bias]
    topic = lambda prompt, text: prompt.split()[1] in text.lower()  # an answer names its topic
    reward = lambda ps, rs: [
        quality(r) + planted(p, r) - 2.0 * (not topic(p, r)) - 1.0 * (r.strip()[-1] not in ".!．")
        for p, r in zip(ps, rs)
    ]
    report = run_probes(reward, pairs(60))
    assert {r.name for r in report.results if r.verdict == "fails"} == expected
    assert {r.name for r in report.results if r.expected == "lower" and r.verdict == "passes"} >= {
        "cut",
        "prompt copied",
        "irrelevant",
        "other prompt",
    }
    assert report.worst_first[0].name in expected and report.counts["fails"] == len(expected)


def test_a_reward_that_overlooks_is_caught():
    blind = run_probes(lambda ps, rs: [quality(r) for r in rs], pairs(60))
    assert {r.name for r in blind.results if r.verdict == "fails"} == {
        "other prompt",
        "cut",
    }, "the number is early in the response, before the cut"
    assert blind.worst_first[0].expected == "lower"


def test_without_a_bias_flags_stay_within_the_nominal_rate():
    "A reward that is noise in every character: the truth is no effect, whatever the edit."
    preferences, outside, flagged, total = pairs(50), 0, 0, 0
    for seed in range(60):
        report = run_probes(
            lambda ps, rs, seed=seed: [hash_normal(f"{p}|{r}", seed) for p, r in zip(ps, rs)],
            preferences,
            samples=600,
            seed=seed,
        )
        own = [r for r in report.results if r.expected != "lower"]
        outside += sum(not r.low <= 0 <= r.high for r in own)
        flagged += sum(r.verdict == "fails" for r in own)
        total += len(own)
    assert total == 660 and 0.02 < outside / total < 0.10 and flagged / total < 0.025


# --- the report -----------------------------------------------------------------------------------


def test_the_report_survives_json():
    report = run_probes(by_length, pairs(30))
    again = ProbeReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert (
        again == report
        and again.verdicts == report.verdicts
        and repr(again) == repr(report)
        and again.to_markdown() == report.to_markdown()
    )


def test_the_report_as_text():
    nasty = Probe("a|b<i>", "Doing <b>a|b</b>", PROBES["padding"].edit, "no rise", "it <likes> a|b")
    report = run_probes(by_length, pairs(30), probes=["cut", nasty, "white space"])
    assert [r[0] for r in rows_of(report)][0] == "a|b<i>" and [
        r.verdict for r in report.worst_first
    ] == sorted((r.verdict for r in report.results), key=list(probes_module._STYLES).index)
    page, text = report._repr_html_(), report.to_markdown()
    assert "<likes>" not in page and "&lt;likes&gt;" in page and "#D55E00" in page
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 5 and {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {7}
    assert report.counts["fails"] == text.count("- fails: ") and f"({report.spread:.3g})" in text


def test_the_figure_shows_what_was_found():
    report = run_probes(by_length, pairs(30))
    figure = report.plot()
    axes = figure.axes[0]
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert (
        labels == [f"{r.name} ({r.expected})" for r in report.worst_first]
        and axes.get_ylim()[0] > axes.get_ylim()[1]
    )
    lines = {int(line.get_ydata()[0]): line for line in axes.lines[1:]}  # the first line is zero
    for y, r in enumerate(report.worst_first):
        assert lines[y].get_xdata() == pytest.approx((r.low, r.effect, r.high)) and lines[
            y
        ].get_markevery() == [1]
        assert (lines[y].get_color(), lines[y].get_marker()) == probes_module._STYLES[r.verdict]
    assert (
        len({marker for _, marker in probes_module._STYLES.values()}) == 4
        and "standard deviations" in axes.get_xlabel()
    )


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


def length_report(matched, correlations):
    return LengthReport(matched, correlations)


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
        stats.linregress(x, t["reward"]).slope / t["reward"].std(), abs=1e-10
    )
    full = np.linalg.lstsq(np.column_stack([dummies, x, t["rank"]]), t["reward"], rcond=None)[0]
    assert found["per_doubling_given_label"]["value"] == pytest.approx(full[80] / t["reward"].std(), abs=1e-9)


def test_for_pairs_the_slope_is_that_of_the_differences():
    t = random_table(k=2)
    better, worse = (np.flatnonzero(t["rank"] == k) for k in (1, 2))
    x, y = np.log2(t["length"][better] / t["length"][worse]), t["reward"][better] - t["reward"][worse]
    slope = stats.linregress(x, y).slope
    assert length_correlation(t, samples=50)["per_doubling_given_label"]["value"] == pytest.approx(
        slope / t["reward"].std(), abs=1e-10
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
    newcombe = (p["accuracy"] - q["accuracy"]) - math.sqrt(
        (p["accuracy"] - p["low"]) ** 2 + (q["high"] - q["accuracy"]) ** 2
    )
    assert found["gap"]["low"] <= newcombe + 1e-12 and found["gap"]["high"] > found["gap"]["value"]


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
        "raises the reward by 0.30 standard deviations (0.20 to 0.40): for length, or for what goes with it"
        in said[2]
    )
    said = length_report(matched, correlations | {"per_doubling_given_label": both(-0.2, 0.06)}).verdicts
    assert "lowers the reward by 0.20 standard deviations (0.14 to 0.26)" in said[2]
    assert length_report(matched, correlations | {"prompts": 5}).verdicts == [
        "5 prompts are too few to judge what length does; 20 are the least."
    ]
    weak = length_report(
        matched | {"gap": both(-0.4, 0.1)}, correlations | {"per_doubling_given_label": both(-0.01, 0.02)}
    ).verdicts
    assert (
        "leans to the shorter" in weak[1]
        and "lowers the reward by 0.01" in weak[2]
        and "does not matter" in weak[2]
    )
    unclear = length_report(
        matched | {"gap": both(0.0, 0.1)}, correlations | {"per_doubling_given_label": both(0.1, 0.1)}
    ).verdicts
    assert "no lean" in unclear[1] and "neither shown nor excluded" in unclear[2]
    nothing = {name: None for name in MEASURES} | {"prompts": 50}
    assert length_report(matched | {"matched": None, "balanced": None}, nothing).verdicts == []
    rows = rows_of(length_report(matched | {"matched": None}, nothing))
    assert (
        rows[0] == ("accuracy, lengths within 10%", "none")
        and len(rows) == 10
        and rows[1][1] == "90.0% (85.0% to 95.0%) of 100 pairs"
    )
