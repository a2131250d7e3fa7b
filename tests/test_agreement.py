"""Agreement: every statistic against an independent reference, intervals against their promise."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from reward_kit.data.preferences import load_preferences
from reward_kit.data.report import wilson_interval
from reward_kit.trust.agreement import (
    Bootstrap,
    _Pairs,
    as_scorer,
    pair_table,
    ranking_agreement,
    score_preferences,
)


@pytest.mark.parametrize("correct, n", [(0, 1), (1, 1), (8, 10), (50, 100), (713, 1000), (3, 400)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_wilson_is_scipys(correct, n, level):
    expected = stats.binomtest(correct, n).proportion_ci(level, method="wilson")
    assert wilson_interval(correct, n, level) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("n", [20, 100])
@pytest.mark.parametrize("p", [0.55, 0.7, 0.9])
def test_wilson_covers_what_it_says(n, p):
    "Exact coverage, summed over all outcomes."
    covered = sum(
        stats.binom.pmf(k, n, p)
        for k in range(n + 1)
        if wilson_interval(k, n)[0] <= p <= wilson_interval(k, n)[1]
    )
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


CORRELATED = [
    (2, 6, 0.5, 0.3),
    (3, 6, 0.5, 1.0),
    (5, 6, 0.5, 1.0),
    (10, 6, 0.7, 0.3),
    (20, 10, 0.8, 0.3),
    (20, 10, 0.9, 1.0),
]


@pytest.mark.parametrize("prompts,each,share,together", CORRELATED)
def test_accuracy_with_few_prompts_covers_what_it_says(prompts, each, share, together):
    """A part of the prompts has all its pairs right or wrong at once; the wider of Wilson's interval and
    the bootstrap covered 51% to 91% of these."""
    rng, prompt, hits = np.random.default_rng(0), np.arange(prompts * each) // each, 0
    for _ in range(500):
        one = (rng.random(prompts) < share)[prompt]
        joint = (rng.random(prompts) < together)[prompt]
        right = np.where(joint, one, rng.random(len(prompt)) < share).astype(float)
        low, high = Bootstrap().accuracy(right, prompt)["interval"]
        hits += low <= share <= high
    assert hits >= 460  # 92%


def test_intervals_by_prompt_are_wilsons_where_every_prompt_has_a_pair():
    found = Bootstrap().accuracy(np.arange(500) < 350, np.arange(500))
    assert found["interval"] == pytest.approx(found["wilson"], abs=0.0005)


def _clipped_mean():
    "Mean of a normal(0.7, 0.25) clipped to [0, 1]."
    a, b = -0.7 / 0.25, 0.3 / 0.25
    inside = stats.norm.cdf(b) - stats.norm.cdf(a)
    return 0.7 * inside + 0.25 * (stats.norm.pdf(a) - stats.norm.pdf(b)) + stats.norm.sf(b)


TRUTH = _clipped_mean()


def bootstrap_interval(correct, total, **drawing):
    return Bootstrap(**drawing).interval(np.stack([correct, total], 1))


def test_bootstrap_standard_error_and_memory():
    "Independent pairs: as wide as the textbook says; many prompts are drawn in steps."
    rng = np.random.default_rng(0)
    right = (rng.random(4000) < 0.7).astype(float)
    low, high = bootstrap_interval(right, np.ones(4000), samples=1500)
    p = right.mean()
    assert (high - low) == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / 4000), rel=0.08)
    assert bootstrap_interval([1, 0], [2, 1], seed=3) == bootstrap_interval([1, 0], [2, 1], seed=3)
    with pytest.raises(ValueError, match="at least one prompt"):
        bootstrap_interval([], [])


@pytest.mark.parametrize("seed", range(20))
def test_rank_statistics_are_scipys(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(3, 9))
    rewards, ranks = rng.integers(0, 4, k).astype(float), rng.integers(1, 4, k)
    found = ranking_agreement(rewards, ranks)
    constant = len(set(rewards)) == 1 or len(set(ranks)) == 1
    spearman, kendall = (
        (np.nan, np.nan)
        if constant
        else (stats.spearmanr(rewards, -ranks).statistic, stats.kendalltau(rewards, -ranks).statistic)
    )
    assert found["spearman"] == pytest.approx(spearman, nan_ok=True)
    assert found["kendall"] == pytest.approx(kendall, nan_ok=True)


@pytest.mark.parametrize("seed", range(20))
def test_discounted_gain_is_the_mean_over_the_orders_that_ties_allow(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 6))
    rewards, ranks = rng.integers(0, 3, k).astype(float), rng.integers(1, 4, k)
    gains = [sum(ranks > rank) for rank in ranks]
    orders = [
        o
        for o in itertools.permutations(range(k))
        if all(rewards[a] >= rewards[b] for a, b in itertools.pairwise(o))
    ]
    dcg = lambda order: sum(gains[i] / math.log2(position + 2) for position, i in enumerate(order))
    best = max(map(dcg, itertools.permutations(range(k))))
    expected = np.mean([dcg(o) for o in orders]) / best if best else math.nan
    assert ranking_agreement(rewards, ranks)["ndcg"] == pytest.approx(expected, nan_ok=True)


def test_groups_of_pairs_hold_every_pair_once():
    rng = np.random.default_rng(0)
    values, outcome = rng.integers(0, 40, 300).astype(float), rng.choice([0, 0.5, 1], 300)
    values[:20] = np.nan
    pairs = _Pairs(size=values, outcome=outcome, prompt=np.arange(300))
    rows = pairs.accuracy_by("size")
    assert sum(row["pairs"] for row in rows) == 280 and len(rows) == 4
    for row in rows:
        low, high = map(float, row["group"].split(" to "))
        own = outcome[(values >= low) & (values <= high)]
        assert (
            row["pairs"] == len(own)
            and row["accuracy"] == pytest.approx(own.mean())
            and row["low"] < row["accuracy"] < row["high"]
        )
    assert _Pairs({name: column[:20] for name, column in pairs.items()}).accuracy_by("size") == []
    equal = _Pairs(size=np.array([3, 3]), outcome=np.array([1, 0]), prompt=np.arange(2))
    assert [row["group"] for row in equal.accuracy_by("size")] == ["3"]
    table = _Pairs(source=np.array(["b", "a", "b"]), outcome=np.array([1, 0.5, 0]), prompt=np.arange(3))
    assert [(r["group"], r["pairs"], r["accuracy"]) for r in table.accuracy_by("source")] == [
        ("b", 2, 0.5),
        ("a", 1, 0.5),
    ]


def test_pairs_know_their_lengths_and_margins():
    rows = [
        {"prompt": "abc", "responses": ["long one", "s", "mid"], "scores": [3.0, 1.0, 2.5]},
        {"prompt": "d", "chosen": "x", "rejected": "yy", "margin": 0.7},
    ]
    table = pair_table(preferences := load_preferences(rows[:1], progress=False), [[1.0, 0.0, 0.5]])
    responses, margins = (
        preferences[0]["responses"],
        dict(zip(preferences[0]["responses"], preferences[0]["scores"])),
    )
    for i in range(3):
        better, worse = responses[table["better"][i]], responses[table["worse"][i]]
        assert table["margin"][i] == margins[better] - margins[worse] > 0
        assert (
            table["length"][i] == (len(better) + len(worse)) / 2
            and table["prompt_length"][i] == 3
            and table["record"][i] == 0
        )
    assert pair_table(load_preferences(rows[1:], progress=False), [[1.0, 0.0]])[
        "margin"
    ].tolist() == pytest.approx([0.7])
    assert np.isnan(
        pair_table(
            load_preferences([{"prompt": "d", "chosen": "x", "rejected": "yy"}], progress=False), [[1.0, 0.0]]
        )["margin"]
    ).all()


def test_best_first_shares_a_tie():
    assert ranking_agreement([2.0, 2.0, 1.0], [1, 3, 2])["best_first"] == 0.5
    assert ranking_agreement([2.0, 2.0, 1.0], [1, 1, 2])["best_first"] == 1.0
    assert ranking_agreement([0.0, 2.0, 1.0], [1, 2, 3])["best_first"] == 0.0
    assert math.isnan(ranking_agreement([1.0, 1.0], [1, 2])["spearman"]) and math.isnan(
        ranking_agreement([1.0, 2.0], [1, 1])["ndcg"]
    )


@pytest.mark.parametrize("seed", range(10))
def test_outcomes_are_those_of_the_trainer(seed):
    import torch

    from reward_kit.model.loss import pairwise_accuracy

    rng = np.random.default_rng(seed)
    rewards, ranks = rng.integers(0, 3, 5).astype(np.float32), rng.integers(1, 4, 5)
    row = {"prompt": "q", "responses": list("abcde"), "ranks": ranks.tolist()}
    preferences = load_preferences([row], progress=False)
    by_response = dict(zip(row["responses"], rewards.tolist()))
    outcome = pair_table(preferences, [[by_response[r] for r in preferences[0]["responses"]]])["outcome"]
    correct, total = pairwise_accuracy(torch.tensor(rewards[None]), ranks=torch.tensor(ranks[None]))
    assert (outcome.sum(), len(outcome)) == (pytest.approx(float(correct)), int(total))
    brute = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, i in zip(rewards, ranks)
        for b, j in zip(rewards, ranks)
        if i < j
    ]
    assert sorted(outcome) == sorted(brute)


def test_groups_of_pairs_that_go_right_together_get_wider_intervals():
    rng, covered = np.random.default_rng(0), {"alone": 0, "by prompt": 0}
    for _ in range(300):
        prompts = np.repeat(np.arange(40), 6)
        outcome = np.where(
            rng.random(240) < 0.6, np.repeat(rng.random(40) < 0.7, 6), rng.random(240) < 0.7
        ).astype(float)
        for name, own in (("alone", np.arange(240)), ("by prompt", prompts)):
            (row,) = _Pairs(source=np.full(240, "one"), outcome=outcome, prompt=own).accuracy_by("source")
            covered[name] += row["low"] <= 0.7 <= row["high"]
    assert covered["by prompt"] / 300 > 0.9 > covered["alone"] / 300


def test_data_without_an_ordered_pair_are_refused():
    ties = load_preferences(
        [{"prompt": "p", "response_a": "x", "response_b": "y", "label": "tie"}], progress=False
    )
    with pytest.raises(ValueError, match="no strictly ordered pair in 1 record: all are ties"):
        pair_table(ties, [[1.0, 0.0]])


def test_seeds_are_averaged_and_templates_follow_each_response():
    assert Bootstrap().accuracy([[1, 0], [0.5, 1]], [0, 1])["accuracy"] == 0.625
    with pytest.raises(TypeError, match="cannot score with int"):
        as_scorer(3)
    with pytest.raises(ValueError, match="1 reward for 2 responses"):
        score_preferences(lambda p, r: [0.0], [{"prompt": "a", "responses": ["b", "c"]}])
    with pytest.raises(ValueError, match="must be finite"):
        score_preferences(lambda p, r: [0.0, float("nan")], [{"prompt": "a", "responses": ["b", "c"]}])
    assert (Bootstrap(samples=3).totals([[1.0, 2.0]]) == [1, 2]).all()
