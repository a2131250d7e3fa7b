"""The best of n is what enumeration gives, its intervals cover, and its divergence bounds the true one."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import integrate, special, stats

from reward_kit.trust.best_of_n import (
    BestOfNCurve,
    _best_of_n_kl,
    _gold_by_proxy,
    _subset_weights,
    best_of_n_curve,
    best_of_n_scores,
)


@pytest.mark.parametrize("n, total", [(1, 1), (1, 7), (7, 7), (3, 10), (20, 64), (300, 1000), (1000, 1000)])
def test_subset_weights_are_the_binomial_ratio(n, total):
    i = np.arange(1, total + 1)
    log_ratio = (
        special.gammaln(i[n - 1 :])
        - special.gammaln(n)
        - special.gammaln(i[n - 1 :] - n + 1)
        - math.log(special.comb(total, n, exact=True))
    )
    found = _subset_weights(n, total)[-1]
    assert (
        found.sum() == pytest.approx(1)
        and (found[: n - 1] == 0).all()
        and np.allclose(found[n - 1 :], np.exp(log_ratio), rtol=1e-6, atol=1e-300)
    )


@pytest.mark.parametrize("tied", [False, True])
def test_curve_is_the_mean_over_all_subsets(tied):
    "Prompts with different numbers of responses; among tied proxy rewards the pick is drawn."
    rng, proxy, gold = np.random.default_rng(3), [], []
    for size in (5, 6, 8):
        proxy.append(rng.integers(0, 3, size).astype(float) if tied else rng.normal(size=size))
        gold.append(rng.normal(size=size))
    curve = best_of_n_curve(proxy, gold)
    assert curve.n == [1, 2, 3, 4, 5]
    for n in curve.n:
        means, best = [], []
        for p, g in zip(proxy, gold):
            subsets = [np.array(s) for s in itertools.combinations(range(len(p)), n)]
            means.append(np.mean([g[s][p[s] == p[s].max()].mean() for s in subsets]))
            best.append(np.mean([p[s].max() for s in subsets]))
        assert curve.proxy[n - 1] == pytest.approx(np.mean(best))
        assert curve.gold[n - 1] == pytest.approx(np.mean(means), abs=1e-9)


def test_equal_rewards_choose_at_random():
    gold = np.random.default_rng(0).normal(size=(4, 9))
    assert np.allclose(best_of_n_curve(np.zeros((4, 9)), gold).gold, gold.mean())
    assert _gold_by_proxy([1.0, 0.0, 1.0], [3.0, 7.0, 5.0]).tolist() == [7.0, 4.0, 4.0]


def test_curve_of_gaussian_rewards_is_order_statistics():
    "gold = rho * proxy + rest: the best of n gains rho times the expected largest of n normal numbers."
    rng, rho = np.random.default_rng(4), 0.6
    proxy = rng.normal(size=(4000, 16))
    gold = rho * proxy + math.sqrt(1 - rho**2) * rng.normal(size=proxy.shape)
    curve = best_of_n_curve(proxy, gold, max_n=10)
    for n in (1, 2, 5, 10):
        largest = integrate.quad(
            lambda x, n=n: x * n * stats.norm.cdf(x) ** (n - 1) * stats.norm.pdf(x), -10, 10
        )[0]
        assert curve.gold[n - 1] == pytest.approx(rho * largest, abs=0.03) and curve.proxy[
            n - 1
        ] == pytest.approx(largest, abs=0.03)
        assert (
            curve.gold_interval[n - 1][0] < rho * largest + 0.01
            and curve.gold_interval[n - 1][1] > rho * largest - 0.01
        )
    assert (
        curve.gold_std == pytest.approx(1, abs=0.02)
        and len(curve.verdicts) == 1
        and "better than a random response" in curve.verdicts[0]
    )


@pytest.mark.parametrize("prompts", [4, 8, 60])
def test_intervals_of_the_curve_cover_what_they_say(prompts):
    "Draws of the prompts cover 80% with four, 88% with eight."
    rng, trials, hit = np.random.default_rng(5), 400, 0
    truth = integrate.quad(lambda x: x * 4 * stats.norm.cdf(x) ** 3 * stats.norm.pdf(x), -10, 10)[0]
    for _ in range(trials):
        level = rng.normal(size=(prompts, 1))  # prompts differ in level
        proxy = rng.normal(size=(prompts, 4))
        low, high = best_of_n_curve(proxy, proxy + level).gold_interval[3]
        hit += low <= truth <= high
    assert stats.binom.ppf(0.0005, trials, 0.94) <= hit <= stats.binom.ppf(0.9995, trials, 0.95)


def test_one_prompt_has_no_interval():
    with pytest.raises(ValueError, match="two prompts or more"):
        best_of_n_curve([[1.0, 2.0]], [[1.0, 2.0]])


def test_verdicts():
    rng = np.random.default_rng(6)
    gold = rng.normal(size=(80, 32))
    assert "worse than a random response" in best_of_n_curve(-gold, gold).verdicts[0]
    assert "cannot be told from a random" in best_of_n_curve(rng.normal(size=gold.shape), gold).verdicts[0]
    flawed = np.where(rng.random(gold.shape) < 0.04, 10 - gold, gold)  # a few bad responses are overrated
    curve = best_of_n_curve(flawed, gold)
    assert 2 <= curve.peak < 20 and "Over-optimised: gold is highest at n =" in curve.verdicts[1]
    again = BestOfNCurve.from_dict(json.loads(json.dumps(curve.to_dict(), allow_nan=False)))
    assert repr(again) == repr(curve) and len(curve.plot().axes) == 1


@pytest.mark.parametrize("n", [1, 2, 3, 17])
def test_divergence_of_the_best_of_n(n):
    """Exact for distinct responses in the limit, too large for few or tied ones: summed over the
    distribution of the pick."""

    def divergence(probabilities):
        cumulated = np.cumsum(probabilities)
        best = np.diff(np.concatenate([[0], cumulated]) ** n)
        return (best * np.log(best / probabilities)).sum()

    fine, coarse = np.full(20_000, 1 / 20_000), np.array([0.5, 0.3, 0.2])
    assert divergence(fine) == pytest.approx(float(_best_of_n_kl(n)), abs=1e-3)
    assert divergence(coarse) <= _best_of_n_kl(n) + 1e-12 and (
        n == 1 or divergence(coarse) < _best_of_n_kl(n) - 0.01
    )


def test_scores_by_hand():
    proxy, gold = [[3.0, 1.0, 2.0], [0.0, 0.0]], [[1.0, 5.0, 1.0], [2.0, 4.0]]
    found = best_of_n_scores(
        proxy, gold
    )  # pick 1.0, ties with one other and loses to one: 1/4; the second picks half of each: (0 + 1) / 2
    assert found == {
        "gold": 2.0,
        "gold_of_random": pytest.approx((7 / 3 + 3) / 2),
        "gold_of_best": 4.5,
        "win_rate": pytest.approx((0.25 + 0.5) / 2),
    }
    assert best_of_n_scores([[1.0]], [[2.0]])["win_rate"] == 0.5


BAD = [
    ([], [], "0 prompts"),
    ([[1.0]], [], "1 prompt and gold 0"),
    ([[1.0, 2.0]], [[1.0]], "prompt 0"),
    ([[]], [[]], "prompt 0"),
    ([[1.0], [math.nan]], [[1.0], [1.0]], "prompt 1 needs a finite"),
]


@pytest.mark.parametrize("proxy, gold, said", BAD)
@pytest.mark.parametrize("function", [best_of_n_curve, best_of_n_scores])
def test_rewards_that_do_not_fit_are_told(function, proxy, gold, said):
    with pytest.raises(ValueError, match=said):
        function(proxy, gold)


def test_other_bad_arguments():
    for max_n in (0, 3):
        with pytest.raises(ValueError, match=f"max_n={max_n} must be between 1 and 2"):
            best_of_n_curve([[1.0, 2.0]], [[1.0, 2.0]], max_n)
