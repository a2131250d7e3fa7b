"""Metrics: they are the functions of the earlier chapters, they need neither network nor cache, and the best of n is what enumeration gives."""

import itertools
import json
import math
import socket

import evaluate
import numpy as np
import pytest
from scipy import integrate, special, stats
from transformers import EvalPrediction

from reward_kit.trust.agreement import pair_table, score_preferences
from reward_kit.trust.calibration import brier_score, expected_calibration_error, log_loss
from reward_kit.trust.best_of_n import BestOfN, BestOfNCurve, BrierScore, ExpectedCalibrationError
from reward_kit.trust.best_of_n import PairwiseAccuracy, best_of_n_curve, best_of_n_kl, best_of_n_scores
from reward_kit.trust.best_of_n import preference_metrics, shared_places, subset_weights
from reward_kit.data.playground import Playground
from reward_kit.model.trainer import RewardConfig, RewardTrainer


def pairs(n=200, seed=0):
    rng = np.random.default_rng(seed)
    chosen, rejected = rng.normal(0.7, 1, n), rng.normal(0, 1, n)
    chosen[:5] = rejected[:5]
    return chosen, rejected


# --- evaluate ----------------------------------------------------------------------------------------------------------------

def test_metrics_are_the_functions():
    chosen, rejected = pairs()
    d = chosen - rejected
    assert PairwiseAccuracy().compute(chosen=chosen, rejected=rejected)["pairwise_accuracy"] == (np.sum(d > 0) + 0.5 * np.sum(d == 0)) / len(d)
    assert BrierScore().compute(chosen=chosen, rejected=rejected, temperature=2.0)["brier_score"] == brier_score(d, temperature=2.0)
    for options in ({}, {"bins": 5, "scheme": "equal-width", "temperature": 0.5}):
        found = ExpectedCalibrationError().compute(chosen=chosen.tolist(), rejected=rejected.tolist(), **options)
        assert found == {"expected_calibration_error": expected_calibration_error(d, **options)}


@pytest.mark.parametrize("metric", [PairwiseAccuracy, BrierScore, ExpectedCalibrationError])
def test_batches_and_single_pairs_are_the_whole(metric):
    chosen, rejected = pairs(50)
    whole, parts, single = metric().compute(chosen=chosen, rejected=rejected), metric(), metric()
    for start in range(0, 50, 13): parts.add_batch(chosen=chosen[start : start + 13], rejected=rejected[start : start + 13])
    for a, b in zip(chosen, rejected): single.add(chosen=a, rejected=b)
    assert parts.compute() == single.compute() == whole
    assert parts.compute(chosen=chosen, rejected=rejected) == whole  # usable again, nothing left over


def test_metrics_combine():
    chosen, rejected = pairs(50)
    found = evaluate.combine([PairwiseAccuracy(), BrierScore()]).compute(chosen=chosen, rejected=rejected)
    assert found == PairwiseAccuracy().compute(chosen=chosen, rejected=rejected) | BrierScore().compute(chosen=chosen, rejected=rejected)


def test_metrics_need_neither_network_nor_cache(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "file" / "cache"))  # nobody can make a folder in a file

    def refuse(*_): raise AssertionError("a connection was opened")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert PairwiseAccuracy().compute(chosen=[1.0], rejected=[0.0]) == {"pairwise_accuracy": 1.0}
    assert BestOfN().compute(predictions=[[1.0, 0.0]], references=[[2.0, 3.0]])["gold"] == 2.0
    with pytest.raises(OSError): evaluate.Metric._build_data_dir(PairwiseAccuracy())  # what happens without our care
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    shared = PairwiseAccuracy(num_process=2, process_id=1)
    assert shared.data_dir.startswith(str(tmp_path / "reward_kit_metrics")) and not shared.keep_in_memory
    assert PairwiseAccuracy(keep_in_memory=False).compute(chosen=[1.0], rejected=[0.0]) == {"pairwise_accuracy": 1.0}  # through files


def test_a_single_process_leaves_no_files(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    BrierScore().compute(chosen=[1.0], rejected=[0.0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("chosen, rejected, said", [([math.inf], [0.0], "finite"), ([], [], "at least one pair"), ([1.0, 2.0], [0.0], "Mismatch")])
def test_bad_pairs_are_told(chosen, rejected, said):
    with pytest.raises(ValueError, match=said): PairwiseAccuracy().compute(chosen=chosen, rejected=rejected)


# --- trainers ----------------------------------------------------------------------------------------------------------------

def ragged(seed=0):
    "Rewards and ranks of records of two to four responses, some tied, padded with -100; and as lists."
    rng, rows = np.random.default_rng(seed), []
    for _ in range(80):
        k = rng.integers(2, 5)
        rows.append((rng.normal(size=k).round(1), rng.integers(1, 4, k)))
    pad = lambda values: np.array([[*v, *[-100] * (4 - len(v))] for v in values])
    return EvalPrediction(predictions=pad([r for r, _ in rows]).astype(float), label_ids=pad([k for _, k in rows])), rows


def test_trainer_metrics_by_brute_force():
    prediction, rows = ragged()
    d = np.array([r[i] - r[j] for r, k in rows for i, j in itertools.permutations(range(len(r)), 2) if k[i] < k[j]])
    found = preference_metrics(prediction, temperature=1.7, bins=5)
    assert found["pairs"] == len(d) and (d == 0).any()
    assert found["pairwise_accuracy"] == pytest.approx(np.mean(np.where(d == 0, 0.5, d > 0)))
    assert found["brier_score"] == pytest.approx(brier_score(d, temperature=1.7)) and found["log_loss"] == pytest.approx(log_loss(d, temperature=1.7))
    assert found["expected_calibration_error"] == pytest.approx(expected_calibration_error(d, None, 1.7, 5)) and found["mean_difference"] == pytest.approx(d.mean())
    assert preference_metrics(EvalPrediction(predictions=(prediction.predictions, None), label_ids=(prediction.label_ids,)))["pairs"] == len(d)


def test_trainer_metrics_are_those_of_the_table():
    data = Playground(0).rankings(40, k=3, seed=5)
    rewards, _ = score_preferences(Playground.true_reward, data)
    table = pair_table(data, rewards)
    found = preference_metrics(EvalPrediction(predictions=np.array(rewards), label_ids=np.array([r["ranks"] for r in data])))
    assert found["pairs"] == len(table["outcome"]) and found["pairwise_accuracy"] == pytest.approx(table["outcome"].mean())
    assert found["mean_difference"] == pytest.approx(table["difference"].mean())


def test_labels_may_name_the_preferred_column():
    rewards = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    found = preference_metrics(EvalPrediction(predictions=rewards, label_ids=np.array([0, 1, 1])))
    assert (found["pairs"], found["pairwise_accuracy"]) == (3, pytest.approx(2 / 3)) and found["mean_difference"] == 1.0


def test_only_ties_are_no_reason_to_stop_training():
    assert preference_metrics(EvalPrediction(predictions=np.ones((2, 2)), label_ids=np.ones((2, 2)))) == {"pairs": 0}


@pytest.mark.parametrize("rewards, ranks", [(np.ones(3), np.ones(3)), (np.ones((3, 2)), np.ones((3, 3))), (np.ones((3, 2, 1)), np.ones((3, 2)))])
def test_shapes_that_do_not_fit_are_told(rewards, ranks):
    with pytest.raises(ValueError, match="rewards \\(n, K\\) and ranks \\(n, K\\)"): preference_metrics(EvalPrediction(predictions=rewards, label_ids=ranks))


def test_in_the_reward_trainer(tmp_path):
    world = Playground(0)
    held_out = world.rankings(12, k=3, seed=2)
    args = RewardConfig(output_dir=str(tmp_path), per_device_eval_batch_size=5, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no")
    trainer = RewardTrainer("playground", args, train_dataset=world.rankings(4, k=3), eval_dataset=held_out, compute_metrics=preference_metrics)
    found = trainer.evaluate()
    assert found["eval_pairs"] == 36 and found["eval_pairwise_accuracy"] == pytest.approx(found["eval_accuracy"])
    assert found["eval_mean_difference"] == pytest.approx(found["eval_margin"], abs=1e-5)
    assert 0 <= found["eval_expected_calibration_error"] <= 1 and found["eval_brier_score"] > 0


# --- best of n ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n, total", [(1, 1), (1, 7), (7, 7), (3, 10), (20, 64), (300, 1000), (1000, 1000)])
def test_subset_weights_are_the_binomial_ratio(n, total):
    i = np.arange(1, total + 1)
    log_ratio = special.gammaln(i[n - 1 :]) - special.gammaln(n) - special.gammaln(i[n - 1 :] - n + 1) - math.log(special.comb(total, n, exact=True))
    found = subset_weights(n, total)
    assert found.sum() == pytest.approx(1) and (found[: n - 1] == 0).all() and np.allclose(found[n - 1 :], np.exp(log_ratio), rtol=1e-6, atol=1e-300)


@pytest.mark.parametrize("n, total", [(0, 4), (5, 4), (-1, 3)])
def test_subsets_cannot_be_larger_than_the_whole(n, total):
    with pytest.raises(ValueError, match="between 1 and"): subset_weights(n, total)


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
    assert shared_places([1.0, 0.0, 1.0], [3.0, 7.0, 5.0]).tolist() == [7.0, 4.0, 4.0]


def test_curve_of_gaussian_rewards_is_order_statistics():
    "gold = rho * proxy + rest: the best of n gains rho times the expected largest of n normal numbers."
    rng, rho = np.random.default_rng(4), 0.6
    proxy = rng.normal(size=(4000, 16))
    gold = rho * proxy + math.sqrt(1 - rho**2) * rng.normal(size=proxy.shape)
    curve = best_of_n_curve(proxy, gold, max_n=10)
    for n in (1, 2, 5, 10):
        largest = integrate.quad(lambda x, n=n: x * n * stats.norm.cdf(x) ** (n - 1) * stats.norm.pdf(x), -10, 10)[0]
        assert curve.gold[n - 1] == pytest.approx(rho * largest, abs=0.03) and curve.proxy[n - 1] == pytest.approx(largest, abs=0.03)
        assert curve.gold_interval[n - 1][0] < rho * largest + 0.01 and curve.gold_interval[n - 1][1] > rho * largest - 0.01
    assert curve.gold_std == pytest.approx(1, abs=0.02) and len(curve.verdicts) == 1 and "better than a random response" in curve.verdicts[0]


def test_intervals_of_the_curve_cover_what_they_say():
    rng, trials, hit = np.random.default_rng(5), 400, 0
    truth = integrate.quad(lambda x: x * 4 * stats.norm.cdf(x) ** 3 * stats.norm.pdf(x), -10, 10)[0]
    for trial in range(trials):
        level = rng.normal(size=(60, 1))  # prompts differ in level
        proxy = rng.normal(size=(60, 4))
        low, high = best_of_n_curve(proxy, proxy + level, samples=300, seed=trial).gold_interval[3]
        hit += low <= truth <= high
    assert stats.binom.ppf(0.0005, trials, 0.94) <= hit <= stats.binom.ppf(0.9995, trials, 0.95)


def test_verdicts():
    rng = np.random.default_rng(6)
    gold = rng.normal(size=(80, 32))
    assert "worse than a random response" in best_of_n_curve(-gold, gold).verdicts[0]
    assert "cannot be told from a random" in best_of_n_curve(rng.normal(size=gold.shape), gold).verdicts[0]
    flawed = np.where(rng.random(gold.shape) < 0.04, 10 - gold, gold)  # a few bad responses are overrated
    curve = best_of_n_curve(flawed, gold)
    assert 2 <= curve.peak < 20 and "Over-optimised: gold is highest at n =" in curve.verdicts[1]
    again = BestOfNCurve(**json.loads(json.dumps(curve.to_dict(), allow_nan=False)))
    assert repr(again) == repr(curve) and len(curve.plot().axes) == 1


@pytest.mark.parametrize("n", [1, 2, 3, 17])
def test_divergence_of_the_best_of_n(n):
    "Exact for distinct responses in the limit, too large for few or tied ones: summed over the distribution of the pick."
    def divergence(probabilities):
        cumulated = np.cumsum(probabilities)
        best = np.diff(np.concatenate([[0], cumulated]) ** n)
        return (best * np.log(best / probabilities)).sum()

    fine, coarse = np.full(20_000, 1 / 20_000), np.array([0.5, 0.3, 0.2])
    assert divergence(fine) == pytest.approx(float(best_of_n_kl(n)), abs=1e-3)
    assert divergence(coarse) <= best_of_n_kl(n) + 1e-12 and (n == 1 or divergence(coarse) < best_of_n_kl(n) - 0.01)


def test_scores_by_hand_and_the_metric():
    proxy, gold = [[3.0, 1.0, 2.0], [0.0, 0.0]], [[1.0, 5.0, 1.0], [2.0, 4.0]]
    found = best_of_n_scores(proxy, gold)  # pick 1.0, ties with one other and loses to one: 1/4; the second picks half of each: (0 + 1) / 2
    assert found == {"gold": 2.0, "gold_of_random": pytest.approx((7 / 3 + 3) / 2), "gold_of_best": 4.5, "win_rate": pytest.approx((0.25 + 0.5) / 2)}
    metric = BestOfN()
    for p, g in zip(proxy, gold): metric.add(prediction=p, reference=g)
    assert metric.compute() == found
    assert best_of_n_scores([[1.0]], [[2.0]])["win_rate"] == 0.5


BAD = [([], [], "0 prompts"), ([[1.0]], [], "1 prompts and gold 0"), ([[1.0, 2.0]], [[1.0]], "prompt 0"), ([[]], [[]], "prompt 0"),
       ([[1.0], [math.nan]], [[1.0], [1.0]], "prompt 1 has a reward that is not finite")]


@pytest.mark.parametrize("proxy, gold, said", BAD)
@pytest.mark.parametrize("function", [best_of_n_curve, best_of_n_scores])
def test_rewards_that_do_not_fit_are_told(function, proxy, gold, said):
    with pytest.raises(ValueError, match=said): function(proxy, gold)


def test_other_bad_arguments():
    for max_n in (0, 3):
        with pytest.raises(ValueError, match=f"max_n={max_n} must be between 1 and 2"): best_of_n_curve([[1.0, 2.0]], [[1.0, 2.0]], max_n)
    with pytest.raises(ValueError, match="1 or more"): best_of_n_kl([1, 0])
