"""Evaluation: every statistic against an independent reference, intervals against their promise, the report and the card."""

import itertools
import json
import math

import numpy as np
import pytest
from huggingface_hub import ModelCard
from scipy import stats

from reward_kit.data.report import wilson_interval
from reward_kit.trust.agreement import accuracy_by, bootstrap_interval, by_size, correlation, discounted_gain
from reward_kit.trust.agreement import length_preference, midranks, pair_outcomes, pair_table
from reward_kit.trust.agreement import ranking_agreement
from reward_kit.data.preferences import load_preferences
from reward_kit.trust.trust_report import TrustReport, difference_histogram, evaluate_reward_model
from reward_kit.trust.trust_report import evaluation_verdicts, write_model_card


def by_length(prompts, responses):
    return [float(len(r)) for r in responses]


def pairs(n=60, seed=0, prompts=20):
    "Pairs whose better response is the longer one in about two of three."
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        long, short = f"answer {i} " + "x" * int(rng.integers(5, 30)), f"reply {i}"
        better, worse = (long, short) if rng.random() < 0.67 else (short, long)
        rows.append({"prompt": f"question {i % prompts}", "chosen": better, "rejected": worse, "source": "ab"[i % 2]})
    return rows


# --- statistics ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("correct, n", [(0, 1), (1, 1), (8, 10), (50, 100), (713, 1000), (3, 400)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_wilson_is_scipys(correct, n, level):
    expected = stats.binomtest(correct, n).proportion_ci(level, method="wilson")
    assert wilson_interval(correct, n, level) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("n", [20, 100])
@pytest.mark.parametrize("p", [0.55, 0.7, 0.9])
def test_wilson_covers_what_it_says(n, p):
    "Exact coverage, summed over all outcomes."
    covered = sum(stats.binom.pmf(k, n, p) for k in range(n + 1) if wilson_interval(k, n)[0] <= p <= wilson_interval(k, n)[1])
    assert 0.92 < covered < 0.985


def test_ties_do_not_make_wilson_too_narrow():
    "Answers 0, 1/2, 1: the interval covers at least as often as it says."
    rng = np.random.default_rng(0)
    answers = rng.choice([0.0, 0.5, 1.0], p=[0.2, 0.3, 0.5], size=(3000, 80)).sum(1)
    intervals = np.array([wilson_interval(c, 80) for c in answers])
    assert np.mean((intervals[:, 0] <= 0.65) & (0.65 <= intervals[:, 1])) > 0.95


def test_bootstrap_covers_where_wilson_does_not():
    "80 prompts with 1 to 6 pairs that go right or wrong together; 400 such data sets."
    rng = np.random.default_rng(0)
    hits = {"bootstrap": 0, "wilson": 0}
    for _ in range(400):
        total = rng.integers(1, 7, 80)
        correct = rng.binomial(total, np.clip(rng.normal(0.7, 0.25, 80), 0, 1))
        low, high = bootstrap_interval(correct, total, samples=400, seed=int(rng.integers(1e9)))
        hits["bootstrap"] += low <= TRUTH <= high
        low, high = wilson_interval(correct.sum(), total.sum())
        hits["wilson"] += low <= TRUTH <= high
    assert 0.91 <= hits["bootstrap"] / 400 <= 0.98
    assert hits["wilson"] < hits["bootstrap"]


def _clipped_mean():
    "Mean of a normal(0.7, 0.25) clipped to [0, 1]."
    a, b = -0.7 / 0.25, 0.3 / 0.25
    inside = stats.norm.cdf(b) - stats.norm.cdf(a)
    return 0.7 * inside + 0.25 * (stats.norm.pdf(a) - stats.norm.pdf(b)) + stats.norm.sf(b)


TRUTH = _clipped_mean()


def test_bootstrap_standard_error_and_memory():
    "Independent pairs: as wide as the textbook says; many prompts are drawn in steps."
    rng = np.random.default_rng(0)
    right = (rng.random(4000) < 0.7).astype(float)
    low, high = bootstrap_interval(right, np.ones(4000), samples=1500)
    p = right.mean()
    assert (high - low) == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / 4000), rel=0.08)
    assert bootstrap_interval([1, 0, 0], [2, 0, 1], seed=3) == bootstrap_interval([1, 0], [2, 1], seed=3)
    with pytest.raises(ValueError, match="at least one prompt"):
        bootstrap_interval([0.0], [0])


@pytest.mark.parametrize("seed", range(20))
def test_rank_statistics_are_scipys(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(3, 9))
    rewards, ranks = rng.integers(0, 4, k).astype(float), rng.integers(1, 4, k)
    assert midranks(rewards) == pytest.approx(stats.rankdata(rewards))
    found = ranking_agreement(rewards, ranks)
    constant = len(set(rewards)) == 1 or len(set(ranks)) == 1
    spearman, kendall = (np.nan, np.nan) if constant else (stats.spearmanr(rewards, -ranks).statistic, stats.kendalltau(rewards, -ranks).statistic)
    assert found["spearman"] == pytest.approx(spearman, nan_ok=True)
    assert found["kendall"] == pytest.approx(kendall, nan_ok=True)


@pytest.mark.parametrize("seed", range(20))
def test_discounted_gain_is_the_mean_over_the_orders_that_ties_allow(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 6))
    rewards, gains = rng.integers(0, 3, k).astype(float), rng.integers(0, 4, k).astype(float)
    orders = [o for o in itertools.permutations(range(k)) if all(rewards[a] >= rewards[b] for a, b in itertools.pairwise(o))]
    dcg = lambda order: sum(gains[i] / math.log2(place + 2) for place, i in enumerate(order))
    best = max(map(dcg, itertools.permutations(range(k))))
    expected = np.mean([dcg(o) for o in orders]) / best if best else math.nan
    assert discounted_gain(rewards, gains) == pytest.approx(expected, nan_ok=True)


def test_groups_of_pairs_hold_every_pair_once():
    rng = np.random.default_rng(0)
    values, outcome = rng.integers(0, 40, 300).astype(float), rng.choice([0, 0.5, 1], 300)
    values[:20] = np.nan
    rows = by_size(values, outcome, groups=4)
    assert sum(row["pairs"] for row in rows) == 280 and len(rows) == 4
    for row in rows:
        low, high = map(float, row["group"].split(" to "))
        own = outcome[(values >= low) & (values <= high)]
        assert row["pairs"] == len(own) and row["accuracy"] == pytest.approx(own.mean()) and row["low"] < row["accuracy"] < row["high"]
    assert by_size([np.nan], [1.0]) == [] and by_size([3, 3], [1, 0])[0]["group"] == "3"
    assert [(r["group"], r["pairs"], r["accuracy"]) for r in accuracy_by(["b", "a", "b"], [1, 0.5, 0])] == [("a", 1, 0.5), ("b", 2, 0.5)]


def test_pairs_know_their_lengths_and_margins():
    rows = [{"prompt": "abc", "responses": ["long one", "s", "mid"], "scores": [3.0, 1.0, 2.5]}, {"prompt": "d", "chosen": "x", "rejected": "yy", "margin": 0.7}]
    table = pair_table(preferences := load_preferences(rows[:1], progress=False), [[1.0, 0.0, 0.5]])
    responses, margins = preferences[0]["responses"], dict(zip(preferences[0]["responses"], preferences[0]["scores"]))
    for i in range(3):
        better, worse = responses[table["better"][i]], responses[table["worse"][i]]
        assert table["margin"][i] == margins[better] - margins[worse] > 0
        assert table["length"][i] == (len(better) + len(worse)) / 2 and table["prompt_length"][i] == 3 and table["record"][i] == 0
    assert pair_table(load_preferences(rows[1:], progress=False), [[1.0, 0.0]])["margin"].tolist() == pytest.approx([0.7])
    assert np.isnan(pair_table(load_preferences([{"prompt": "d", "chosen": "x", "rejected": "yy"}], progress=False), [[1.0, 0.0]])["margin"]).all()


def test_best_first_shares_a_tie():
    assert ranking_agreement([2.0, 2.0, 1.0], [1, 3, 2])["best_first"] == 0.5
    assert ranking_agreement([2.0, 2.0, 1.0], [1, 1, 2])["best_first"] == 1.0
    assert ranking_agreement([0.0, 2.0, 1.0], [1, 2, 3])["best_first"] == 0.0
    assert math.isnan(correlation([1.0, 1.0], [1.0, 2.0]))


@pytest.mark.parametrize("seed", range(10))
def test_outcomes_are_those_of_the_trainer(seed):
    import torch

    from reward_kit.model.loss import pairwise_accuracy
    rng = np.random.default_rng(seed)
    rewards, ranks = rng.integers(0, 3, 5).astype(np.float32), rng.integers(1, 4, 5)
    outcome = pair_outcomes(rewards, ranks)[2]
    correct, total = pairwise_accuracy(torch.tensor(rewards[None]), ranks=torch.tensor(ranks[None]))
    assert (outcome.sum(), len(outcome)) == (pytest.approx(float(correct)), int(total))
    brute = [1.0 if a > b else 0.5 if a == b else 0.0 for a, i in zip(rewards, ranks) for b, j in zip(rewards, ranks) if i < j]
    assert sorted(outcome) == sorted(brute)


def test_histogram_keeps_every_pair_on_its_side():
    rng = np.random.default_rng(0)
    for differences in (rng.normal(1, 2, 500), rng.standard_cauchy(500), [0.3], [-2.0, -1.0], [0.0, 0.0], [1e-9, -1e9]):
        differences = np.asarray(differences)
        found = difference_histogram(differences)
        edges, counts = np.array(found["edges"]), np.array(found["counts"])
        assert len(edges) == len(counts) + 1 and 0.0 in edges and len(counts) <= 82
        assert counts[edges[:-1] >= 0].sum() == (differences > 0).sum()
        assert counts[edges[:-1] < 0].sum() == (differences < 0).sum()


def test_length_preference_by_hand():
    table = {"longer": np.array([3, -2, 0, 5]), "difference": np.array([1.0, 1.0, 1.0, -1.0]), "outcome": np.ones(4)}
    found = length_preference(table)
    # longer preferred in pairs 1 and 4 of three; scored higher only in pair 1; always longer: right, wrong, tie, right
    assert found == {"pairs_of_different_length": 3, "longer_is_preferred": pytest.approx(2 / 3), "longer_is_scored_higher": pytest.approx(1 / 3),
                     "accuracy_of_always_longer": pytest.approx(2.5 / 4)}


# --- the report -------------------------------------------------------------------------------------------------------------

def test_accuracy_by_hand():
    rows = [{"prompt": "a", "chosen": "xxx", "rejected": "y"}, {"prompt": "b", "chosen": "x", "rejected": "yyy"},
            {"prompt": "b", "chosen": "xx", "rejected": "yy"}, {"prompt": "c", "chosen": "xxxxx", "rejected": "yyy"}]
    report = evaluate_reward_model(by_length, rows, name="length")
    assert (report.accuracy, report.n_pairs, report.n_prompts, report.n_tied_rewards) == (2.5 / 4, 4, 3, 1)
    assert report.wilson == wilson_interval(2.5, 4)
    lengths = [3, 1, 1, 3, 2, 2, 5, 3]
    assert (report.rewards["mean"], report.rewards["std"]) == (pytest.approx(np.mean(lengths)), pytest.approx(np.std(lengths)))
    assert report.rewards["mean_difference"] == pytest.approx((2 - 2 + 0 + 2) / 4)
    assert "cannot be told from chance" in report.verdicts[0]


def test_sources_and_interval():
    report = evaluate_reward_model(by_length, pairs(200), seed=4)
    assert {s["source"] for s in report.sources} == {"a", "b"} and sum(s["pairs"] for s in report.sources) == report.n_pairs == 200
    assert sum(s["pairs"] * s["accuracy"] for s in report.sources) / 200 == pytest.approx(report.accuracy)
    assert report.interval == (min(report.wilson[0], report.bootstrap[0]), max(report.wilson[1], report.bootstrap[1]))
    assert evaluate_reward_model(by_length, pairs(200), seed=4).to_dict() == report.to_dict()
    assert evaluate_reward_model(by_length, pairs(200), seed=6).bootstrap != report.bootstrap


def test_prompts_are_the_unit_of_the_bootstrap():
    "The same pairs under one prompt each, or under few prompts that agree within: the second interval is wider."
    rows = [{"prompt": f"p{i}", "chosen": "xxx" if i % 10 < 7 else "x", "rejected": "yy", "source": None} for i in range(200)]
    rows = [{**row, "chosen": row["chosen"] + str(i), "rejected": row["rejected"] + str(i)} for i, row in enumerate(rows)]
    alone = evaluate_reward_model(by_length, rows)
    clustered = evaluate_reward_model(by_length, [{**row, "prompt": f"p{i % 10}"} for i, row in enumerate(rows)])
    assert alone.accuracy == clustered.accuracy and clustered.n_prompts == 10
    width = [r.bootstrap[1] - r.bootstrap[0] for r in (alone, clustered)]
    assert width[1] > 3 * width[0]


def test_records_without_a_prompt_are_not_one_prompt():
    report = evaluate_reward_model(by_length, [{"chosen": f"a longer answer {i}", "rejected": f"short {i}"} for i in range(30)])
    assert report.n_prompts == 30 and report.accuracy == 1.0


def test_rankings_and_ties():
    rows = [{"prompt": f"p{i}", "responses": ["a" * (i + 2), "b" * (i + 1), "c" * (i + 5)], "ranks": [1, 1, 2]} for i in range(5)]
    report = evaluate_reward_model(by_length, rows)
    assert (report.n_pairs, report.n_prompts, report.accuracy) == (10, 5, 0.0)
    assert report.rankings["n"] == 5 and report.rankings["best_first"] == 0.0
    assert report.rankings["kendall"] == pytest.approx(stats.kendalltau([2, 1, 5], [-1, -1, -2]).statistic)
    assert "Worse than chance" in report.verdicts[0]
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
    with pytest.raises(ValueError, match="returned 1 rewards"):
        evaluate_reward_model(lambda p, r: [1.0], pairs())
    with pytest.raises(ValueError, match="inf .* must be finite"):
        evaluate_reward_model(lambda p, r: [math.inf] * len(p), pairs())


def test_too_long_is_left_out_and_counted():
    scorer = lambda p, r: [None if "x" * 20 in text else float(len(text)) for text in r]
    preferences = load_preferences(pairs(), progress=False)
    long = sum(any("x" * 20 in r for r in preferences[i]["responses"]) for i in range(len(preferences)))
    report = evaluate_reward_model(scorer, preferences)
    assert 0 < long == report.n_too_long == report.n_records - report.n_pairs
    with pytest.raises(ValueError, match="60 with a response too long"):
        evaluate_reward_model(lambda p, r: [None] * len(p), pairs())


def test_verdicts_compare_with_the_length_rule():
    said = evaluation_verdicts(0.66, (0.62, 0.7), 0.3, 400)
    assert "always picking the shorter response, which reaches 70.0%" in said[1]
    assert len(evaluation_verdicts(0.9, (0.88, 0.92), 0.6, 4000)) == 1


def test_numbers_of_pairs_for_a_narrow_interval():
    "The promised number of pairs gives plus or minus 3 points."
    low, high = wilson_interval(60, 100)
    said = evaluation_verdicts(0.6, (low, high), 0.5, 100)[-1]
    n = int(said.split("about ")[1].split(" pairs")[0].replace(",", ""))
    low, high = wilson_interval(0.6 * n, n)
    assert (high - low) / 2 == pytest.approx(0.03, abs=0.0035)


def test_save_and_read_again(tmp_path):
    report = evaluate_reward_model(by_length, pairs(200))
    folder = report.save(tmp_path / "a" / "b")
    assert sorted(p.name for p in folder.iterdir()) == ["accuracy.png", "calibration.png", "groups.png", "probes.png", "report.json", "report.md"]
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
    found = json.loads((folder / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert found["rankings"]["kendall"] is None and report.accuracy == 0.5


def test_plot_says_what_the_report_says():
    report = evaluate_reward_model(by_length, pairs(300))
    axes = report.plot().axes[0]
    heights = {c.get_label(): sum(p.get_height() for p in c) for c in axes.containers}
    assert sum(heights.values()) == report.n_pairs - report.n_tied_rewards
    right = next(h for label, h in heights.items() if label.startswith("right order"))
    assert (right + report.n_tied_rewards / 2) / report.n_pairs == pytest.approx(report.accuracy)
    assert "reward units" in axes.get_xlabel() and axes.get_ylabel() == "pairs"


# --- the card ------------------------------------------------------------------------------------------------------------------

def test_card_is_valid_and_keeps_the_rest(tmp_path):
    report = evaluate_reward_model(by_length, pairs(200))
    (tmp_path / "README.md").write_text("---\nlicense: mit\ntags:\n- mine\n---\n\n# My model\n\nMy words.\n", encoding="utf-8")
    write_model_card(tmp_path, report)
    first = (tmp_path / "README.md").read_text()
    write_model_card(tmp_path, report)
    assert (tmp_path / "README.md").read_text() == first
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"], data["license"]) == ("transformers", "text-classification", "mit")
    assert data["tags"] == ["mine", "reward-model"] and "My words." in card.text
    assert "<!-- reward_kit:evaluation -->" in card.text and f"{100 * report.accuracy:.1f}%" in card.text
    assert (tmp_path / "trust_accuracy.png").exists()


def test_card_for_a_folder_without_one(tmp_path):
    write_model_card(tmp_path, evaluate_reward_model(by_length, pairs(200)))
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert data["tags"] == ["reward-model"] and data["library_name"] == "transformers"
    with pytest.raises(FileNotFoundError, match="no model folder"):
        write_model_card(tmp_path / "none", evaluate_reward_model(by_length, pairs()))


def test_a_bootstrap_without_variation_says_so():
    report = evaluate_reward_model(by_length, load_preferences([{"prompt": f"question {i}", "chosen": f"a long answer {i}", "rejected": f"no {i}"} for i in range(6)], progress=False))
    assert report.accuracy == 1 and dict(report.rows())["95% interval, prompts drawn anew (bootstrap)"] == "says nothing where all prompts came out alike"


def test_groups_of_pairs_that_go_right_together_get_wider_intervals():
    rng, covered = np.random.default_rng(0), {"alone": 0, "by prompt": 0}
    for _ in range(300):
        prompts = np.repeat(np.arange(40), 6)
        outcome = np.where(rng.random(240) < 0.6, np.repeat(rng.random(40) < 0.7, 6), rng.random(240) < 0.7).astype(float)
        for name, own in (("alone", None), ("by prompt", prompts)):
            row = accuracy_by(np.zeros(240), outcome, prompts=own)[0]
            covered[name] += row["low"] <= 0.7 <= row["high"]
    assert covered["by prompt"] / 300 > 0.9 > covered["alone"] / 300


def test_probes_that_measured_nothing_are_not_called_passed():
    report = evaluate_reward_model(by_length, pairs(12, prompts=1))
    assert report.summary[-1] == "No bias probe is shown to fail (15 not measured)."
    assert dict(report.rows())["95% interval, prompts drawn anew (bootstrap)"] == "says nothing with one prompt"
    assert "too few to judge what length does" in report.to_text()


def test_the_rule_of_length_is_compared_on_the_same_pairs():
    "60% against 57%: few discordant pairs show a difference, many do not."
    said = evaluation_verdicts(0.60, (0.56, 0.64), 0.57, 600, over_rule=(0.015, 0.045))
    assert not any("Not shown to be better" in s for s in said)
    said = evaluation_verdicts(0.60, (0.56, 0.64), 0.555, 600, over_rule=(-0.011, 0.1))
    assert "always picking the longer response, which reaches 55.5% here (difference on the same pairs -1.1 to 10.0 points)" in said[1]


def test_probes_are_made_of_what_fits():
    "Most best responses are too long; those that are scored are probed."
    rows = pairs(400, prompts=400)
    scorer = RewardScorer(lambda prompts, responses: [None if "question 3" not in p else float(len(r)) for p, r in zip(prompts, responses)])
    report = evaluate_reward_model(scorer, rows)
    assert report.n_too_long > 200 and report.probes.n_prompts == 100
    assert TrustReport(**json.loads(json.dumps(report.to_dict(), allow_nan=False))).to_text() == report.to_text()


class RewardScorer:
    "An object that scores."
    def __init__(self, score): self.score = score
