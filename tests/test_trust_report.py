"""The trust report: by hand, its sentences, JSON and files, and the model card."""

import json
import math

import numpy as np
import pytest
from huggingface_hub import ModelCard
from scipy import stats

from reward_kit.data.preferences import load_preferences
from reward_kit.data.report import wilson_interval
from reward_kit.trust.trust_report import (
    TrustReport,
    _difference_histogram,
    _verdicts,
    evaluate_reward_model,
    write_model_card,
)


def by_length(prompts, responses):
    return [float(len(r)) for r in responses]


def pairs(n=60, seed=0, prompts=20):
    "Pairs whose better response is the longer one in about two of three."
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        long, short = f"answer {i} " + "x" * int(rng.integers(5, 30)), f"reply {i}"
        better, worse = (long, short) if rng.random() < 0.67 else (short, long)
        rows.append(
            {"prompt": f"question {i % prompts}", "chosen": better, "rejected": worse, "source": "ab"[i % 2]}
        )
    return rows


def test_histogram_keeps_every_pair_on_its_side():
    rng = np.random.default_rng(0)
    for differences in (
        rng.normal(1, 2, 500),
        rng.standard_cauchy(500),
        [0.3],
        [-2.0, -1.0],
        [0.0, 0.0],
        [1e-9, -1e9],
    ):
        differences = np.asarray(differences)
        found = _difference_histogram(differences)
        edges, counts = np.array(found["edges"]), np.array(found["counts"])
        assert len(edges) == len(counts) + 1 and 0.0 in edges and len(counts) <= 82
        assert counts[edges[:-1] >= 0].sum() == (differences > 0).sum()
        assert counts[edges[:-1] < 0].sum() == (differences < 0).sum()


# --- the report -----------------------------------------------------------------------------------


def test_accuracy_by_hand():
    rows = [
        {"prompt": "a", "chosen": "xxx", "rejected": "y"},
        {"prompt": "b", "chosen": "x", "rejected": "yyy"},
        {"prompt": "b", "chosen": "xx", "rejected": "yy"},
        {"prompt": "c", "chosen": "xxxxx", "rejected": "yyy"},
    ]
    report = evaluate_reward_model(by_length, rows, name="length")
    assert (report.accuracy, report.n_pairs, report.n_prompts, report.n_tied_rewards) == (2.5 / 4, 4, 3, 1)
    assert report.wilson == wilson_interval(2.5, 4)
    lengths = [3, 1, 1, 3, 2, 2, 5, 3]
    assert (report.rewards["mean"], report.rewards["std"]) == (
        pytest.approx(np.mean(lengths)),
        pytest.approx(np.std(lengths)),
    )
    assert report.rewards["mean_difference"] == pytest.approx((2 - 2 + 0 + 2) / 4)
    assert "cannot be told from chance" in report.verdicts[0]


def test_sources_and_interval():
    report = evaluate_reward_model(by_length, pairs(200), seed=4)
    assert {s["source"] for s in report.sources} == {"a", "b"} and sum(
        s["pairs"] for s in report.sources
    ) == report.n_pairs == 200
    assert sum(s["pairs"] * s["accuracy"] for s in report.sources) / 200 == pytest.approx(report.accuracy)
    assert report.interval[0] < report.wilson[0] < report.accuracy < report.wilson[1] < report.interval[1]
    assert evaluate_reward_model(by_length, pairs(200), seed=4).to_dict() == report.to_dict()
    assert evaluate_reward_model(by_length, pairs(200), seed=6).to_dict() != report.to_dict()


def test_prompts_are_the_unit_of_the_interval():
    """The same pairs under one prompt each, or under few prompts that agree within: the second interval
    is wider."""
    rows = [
        {"prompt": f"p{i}", "chosen": "xxx" if i % 10 < 7 else "x", "rejected": "yy", "source": None}
        for i in range(200)
    ]
    rows = [
        {**row, "chosen": row["chosen"] + str(i), "rejected": row["rejected"] + str(i)}
        for i, row in enumerate(rows)
    ]
    alone = evaluate_reward_model(by_length, rows)
    clustered = evaluate_reward_model(
        by_length, [{**row, "prompt": f"p{i % 10}"} for i, row in enumerate(rows)]
    )
    assert alone.accuracy == clustered.accuracy and clustered.n_prompts == 10
    width = [r.interval[1] - r.interval[0] for r in (alone, clustered)]
    assert width[1] > 3 * width[0]


def test_records_without_a_prompt_are_not_one_prompt():
    report = evaluate_reward_model(
        by_length,
        [{"chosen": f"a longer answer {i}", "rejected": f"short {i}"} for i in range(30)],
        columns={"prompt": None},
    )
    assert report.n_prompts == 30 and report.accuracy == 1.0


def test_rankings_and_ties():
    rows = [
        {"prompt": f"p{i}", "responses": ["a" * (i + 2), "b" * (i + 1), "c" * (i + 5)], "ranks": [1, 1, 2]}
        for i in range(5)
    ]
    report = evaluate_reward_model(by_length, rows)
    assert (report.n_pairs, report.n_prompts, report.accuracy) == (10, 5, 0.0)
    assert report.rankings["n"] == 5 and report.rankings["best_first"] == 0.0
    assert report.rankings["kendall"] == pytest.approx(stats.kendalltau([2, 1, 5], [-1, -1, -2]).statistic)
    assert "cannot be told from chance" in report.verdicts[0]  # five prompts, all wrong
    only_ties = [{"prompt": "p", "response_a": "x", "response_b": "y", "label": "tie"}]
    with pytest.raises(ValueError, match="no strictly ordered pair"):
        evaluate_reward_model(by_length, only_ties)


def test_objects_and_bad_scorers():
    class Scorer:
        def score(self, prompts, responses):
            return by_length(prompts, responses)

    assert evaluate_reward_model(Scorer(), pairs()).model == "Scorer"
    assert evaluate_reward_model(by_length, pairs()).model == "by_length"
    with pytest.raises(TypeError, match="cannot score with dict"):
        evaluate_reward_model({}, pairs())
    with pytest.raises(ValueError, match="returned 1 reward for"):
        evaluate_reward_model(lambda p, r: [1.0], pairs())
    with pytest.raises(ValueError, match="inf .* must be finite"):
        evaluate_reward_model(lambda p, r: [math.inf] * len(p), pairs())


def test_too_long_is_left_out_and_counted():
    scorer = lambda p, r: [None if "x" * 20 in text else float(len(text)) for text in r]
    preferences = load_preferences(pairs(), progress=False)
    long = sum(any("x" * 20 in r for r in preferences[i]["responses"]) for i in range(len(preferences)))
    report = evaluate_reward_model(scorer, preferences)
    assert 0 < long == report.n_too_long == report.n_records - report.n_pairs
    with pytest.raises(ValueError, match="in 60 records was scored"):
        evaluate_reward_model(lambda p, r: [None] * len(p), pairs())


def test_verdicts_compare_with_the_length_rule():
    said = _verdicts((0.62, 0.7), 0.3, 400, (-0.08, 0.0))
    assert "always picking the shorter response, which reaches 70.0%" in said[1]
    assert len(_verdicts((0.88, 0.92), 0.6, 4000, (0.28, 0.32))) == 1


def test_numbers_of_pairs_for_a_narrow_interval():
    "The promised number of pairs gives plus or minus 3 points."
    low, high = wilson_interval(60, 100)
    said = _verdicts((low, high), 0.5, 100, (0.0, 0.2))[-1]
    n = int(said.split("about ")[1].split(" pairs")[0].replace(",", ""))
    low, high = wilson_interval(0.6 * n, n)
    assert (high - low) / 2 == pytest.approx(0.03, abs=0.0035)


def test_save_and_read_again(tmp_path):
    report = evaluate_reward_model(by_length, pairs(200))
    folder = report.save(tmp_path / "a" / "b")
    assert sorted(p.name for p in folder.iterdir()) == [
        "accuracy.png",
        "calibration.png",
        "groups.png",
        "probes.png",
        "report.json",
        "report.md",
    ]
    again = TrustReport(**json.loads((folder / "report.json").read_text()))
    assert again.to_dict() == report.to_dict() and str(again) == str(report)
    assert (folder / "accuracy.png").read_bytes()[:4] == b"\x89PNG"
    assert report.to_markdown() in (folder / "report.md").read_text()
    assert "<script>" not in evaluate_reward_model(by_length, pairs(), name="<script>")._repr_html_()


def test_json_without_nan(tmp_path):
    "A constant reward has no rank correlation; the file must still be JSON for everyone."
    rows = [{"prompt": f"p{i}", "responses": ["aa", "bb", "cc"], "ranks": [1, 2, 3]} for i in range(4)]
    report = evaluate_reward_model(lambda p, r: [0.0] * len(p), rows)
    folder = report.save(tmp_path)
    found = json.loads(
        (folder / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON")
    )
    assert found["rankings"]["kendall"] is None and report.accuracy == 0.5


def test_plot_says_what_the_report_says():
    report = evaluate_reward_model(by_length, pairs(300))
    axes = report.plot().axes[0]
    heights = {c.get_label(): sum(p.get_height() for p in c) for c in axes.containers}
    assert sum(heights.values()) == report.n_pairs - report.n_tied_rewards
    right = next(h for label, h in heights.items() if label.startswith("right order"))
    assert (right + report.n_tied_rewards / 2) / report.n_pairs == pytest.approx(report.accuracy)
    assert "reward units" in axes.get_xlabel() and axes.get_ylabel() == "pairs"


# --- the card -------------------------------------------------------------------------------------


def test_card_is_valid_and_keeps_the_rest(tmp_path):
    report = evaluate_reward_model(by_length, pairs(200))
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\ntags:\n- mine\n---\n\n# My model\n\nMy words.\n", encoding="utf-8"
    )
    write_model_card(tmp_path, report)
    first = (tmp_path / "README.md").read_text()
    write_model_card(tmp_path, report)
    assert (tmp_path / "README.md").read_text() == first
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"], data["license"]) == (
        "transformers",
        "text-classification",
        "mit",
    )
    assert data["tags"] == ["mine", "reward-model"] and "My words." in card.text
    assert "<!-- reward_kit:evaluation -->" in card.text and f"{100 * report.accuracy:.1f}%" in card.text
    assert (tmp_path / "trust_accuracy.png").exists()


def test_card_for_a_folder_without_one(tmp_path):
    write_model_card(tmp_path, evaluate_reward_model(by_length, pairs(200)))
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert data["tags"] == ["reward-model"] and data["library_name"] == "transformers"
    with pytest.raises(FileNotFoundError, match="no model folder"):
        write_model_card(tmp_path / "none", evaluate_reward_model(by_length, pairs()))


def test_few_prompts_that_came_out_alike_promise_little():
    report = evaluate_reward_model(
        by_length,
        load_preferences(
            [
                {"prompt": f"question {i}", "chosen": f"a long answer {i}", "rejected": f"no {i}"}
                for i in range(6)
            ],
            progress=False,
        ),
    )
    assert report.accuracy == 1 and report.interval == pytest.approx((1 / (1 + 2.570582**2 / 6), 1))
    assert dict(report.rows())["95% interval, whole prompts independent"] == "47.6% to 100.0%"
    assert "cannot be told from chance" in report.verdicts[0]


def test_probes_that_measured_nothing_are_not_called_passed():
    report = evaluate_reward_model(by_length, pairs(12, prompts=1))
    assert "Whether it reads the prompt is not known" in report.summary[0]
    assert report.summary[-1].startswith("Not measured, as too few pairs can be edited: opening, flattery")
    assert report.interval[0] < 0.5 < report.interval[1]  # one prompt is worth one pair
    assert "too few to judge what length does" in report.to_text()


def test_the_first_sentence_says_whether_the_prompt_is_read():
    topic = lambda i: "abcdefghij"[i % 10] * 4
    rows = [{**row, "prompt": f"question {i} of {topic(i)}"} for i, row in enumerate(pairs(200))]
    report = evaluate_reward_model(by_length, rows)
    assert report.summary[0].startswith("Not shown to read the prompt. The better response beats")
    assert "chance" in report.summary[1] and report.probes.truth is None
    assert "Not shown to read the prompt" in report.to_markdown() and not any(
        row["chosen"] in report.to_markdown(mistakes=False) for row in rows
    )


def test_on_the_playground_the_truth_stands_beside():
    from reward_kit import Playground

    report = evaluate_reward_model(by_length, Playground(seed=0).preferences(100), probe_prompts=60)
    assert report.probes.truth.model == "true_reward"
    assert "The true reward, asked the same:" in report.to_text()
    again = TrustReport(**json.loads(json.dumps(report.to_dict())))
    assert again.to_text() == report.to_text()


def test_the_rule_of_length_is_compared_on_the_same_pairs():
    "60% against 57%: few discordant pairs show a difference, many do not."
    said = _verdicts((0.56, 0.64), 0.57, 600, over_rule=(0.015, 0.045))
    assert not any("Not shown to be better" in s for s in said)
    said = _verdicts((0.56, 0.64), 0.555, 600, over_rule=(-0.011, 0.1))
    assert (
        "always picking the longer response, which reaches 55.5% here (difference on the same pairs -1.1 to"
        " 10.0 points)" in said[1]
    )


def test_probes_are_made_of_what_fits():
    "Most best responses are too long; those that are scored are probed."
    rows = pairs(400, prompts=400)
    scorer = RewardScorer(
        lambda prompts, responses: [
            None if "question 3" not in p else float(len(r)) for p, r in zip(prompts, responses)
        ]
    )
    report = evaluate_reward_model(scorer, rows)
    assert report.n_too_long > 200 and report.probes.n_prompts == 100
    assert (
        TrustReport(**json.loads(json.dumps(report.to_dict(), allow_nan=False))).to_text() == report.to_text()
    )


class RewardScorer:
    "An object that scores."

    def __init__(self, score):
        self.score = score


def test_reports_of_before_still_load():
    "They had no threshold in `length_control`, and bars only where there were differences."
    report = evaluate_reward_model(by_length, pairs(200), probe_prompts=20)
    stored = json.loads(json.dumps(report.to_dict()))
    del stored["length_control"]["threshold"]
    stored["histogram"] = {"edges": [-1.0, 0.0, 1.0, 2.0], "counts": [3, 5, 2]}
    again = TrustReport(**stored)
    assert again.to_text() == report.to_text() and again.plot().axes
    old = {**stored["probes"], "results": [{"name": "cut", "effect": 0.1}]}
    with pytest.raises(ValueError, match="stored by an earlier version; evaluate the model again"):
        TrustReport(**{**stored, "probes": old})
    assert TrustReport(**{**stored, "length_control": None, "probes": None, "calibration": None}).to_text()
