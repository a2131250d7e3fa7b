"""Comparing, labels, learning curves: every statistic against an independent reference or brute force, every
interval against its promise in 1,000 simulated experiments."""

import itertools
import json
import math
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

import reward_kit.trust.comparing as comparing
from reward_kit.data.files import PreferenceDataError
from reward_kit.data.preferences import load_preferences
from reward_kit.data.report import wilson_interval
from reward_kit.tools.pipeline import TrainedPolicy
from reward_kit.trust.agreement import Bootstrap
from reward_kit.trust.comparing import (
    _mcnemar_p_value,
    _over_prompts_and_seeds,
    _setting_name,
    _sign_flip_p_value,
    compare_models,
    compare_runs,
    judged_pairs,
)
from reward_kit.trust.labels import (
    CrossValidation,
    _AnnotatorCeiling,
    _ceiling,
    _count_votes,
    _left_out_majority,
    annotator_ceiling,
    cross_validate,
    most_confident_mistakes,
    suspected_label_errors,
    trainer_recipe,
)
from reward_kit.trust.learning_curve import _curve_of_outcomes, _fit_power_law, _power_law, learning_curve

EXPERIMENTS = 1000


def by_length(prompts, responses):
    return [float(len(r)) for r in responses]


def rows(n=120, prompts=40, seed=0):
    "Pairs whose longer response is better in about three of four."
    rng, made = np.random.default_rng(seed), []
    for i in range(n):
        long, short = f"answer {i} " + "x" * int(rng.integers(5, 30)), f"reply {i}"
        better, worse = (long, short) if rng.random() < 0.75 else (short, long)
        made.append({"prompt": f"question {i % prompts}", "chosen": better, "rejected": worse})
    return made


def load(data, **options):
    return load_preferences(data, progress=False, **options)


# --- pairs ----------------------------------------------------------------------------------------


def test_records_without_a_prompt_are_prompts_of_their_own():
    pairs = [{"chosen": a, "rejected": b} for a, b in ("ab", "ba", "cd")]
    data = load(pairs, columns={"prompt": None})
    keys = data.prompt_keys.tolist()
    assert keys[0] == keys[1] != keys[2]
    data = load(
        [
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            {"prompt": " Q", "chosen": "c", "rejected": "b"},
            {"prompt": "r", "chosen": "c", "rejected": "b"},
        ]
    )
    keys = data.prompt_keys.tolist()
    assert keys[0] == keys[1] != keys[2]


def test_only_ties_are_refused():
    ties = [{"prompt": f"q{i}", "responses": ["a", "b"], "ranks": [1, 1]} for i in range(8)]
    with pytest.raises(ValueError, match="no strictly ordered pair in 8 records: all are ties"):
        judged_pairs([by_length], load(ties))

    def train(preferences, seed):
        raise AssertionError("nothing should be trained on ties")

    with pytest.raises(ValueError, match="all are ties"):
        cross_validate(train, ties, folds=2)
    with pytest.raises(ValueError, match="all are ties"):
        learning_curve(train, ties, sizes=[2, 4], repeats=1)


# --- cross-validation -----------------------------------------------------------------------------


def remembering(calls):
    "A recipe whose models refuse prompts that they were trained on."

    def train(part, seed):
        known = {r["prompt"] for r in part}
        calls.append((len(part), seed))

        def score(prompts, responses):
            assert not known & set(prompts), "a model was asked about a prompt that it was trained on"
            return by_length(prompts, responses)

        return score

    return train


def test_every_pair_is_judged_once_by_a_model_of_other_prompts():
    data, calls = load(rows()), []
    found = cross_validate(remembering(calls), data, folds=4, seeds=(0, 5))
    assert [seed for _, seed in calls] == [0] * 4 + [5] * 4 and all(n == 90 for n, _ in calls)
    expected = [[float(len(r)) for r in record["responses"]] for record in data]
    assert found.rewards == [expected, expected] and found.n_pairs == 120 and found.n_prompts == 40
    assert found.accuracy == np.mean([a > b for a, b in expected])
    assert found.wilson == wilson_interval(120 * found.accuracy, 120)
    assert [sum(f["pairs"] for f in found.folds if f["seed"] == seed) for seed in (0, 5)] == [120, 120]


def test_records_without_a_prompt_can_be_cross_validated():
    data = [{"chosen": f"good {i} " + "x" * (i % 5), "rejected": f"bad {i}"} for i in range(30)]
    found = cross_validate(lambda part, seed: by_length, data, folds=3, columns={"prompt": None})
    assert found.n_pairs == found.n_prompts == 30 and None not in found.rewards[0]


def test_seeds_are_averaged_within_a_pair_before_the_interval():
    "Asking twice does not make the interval narrower, and opposite models make halves."
    data = load(rows())
    once, twice = (
        cross_validate(lambda part, seed: by_length, data, seeds=seeds) for seeds in ((0,), (0, 1))
    )
    assert twice.interval == once.interval and twice.n_pairs == once.n_pairs
    sign = lambda part, seed: lambda p, r: [(-1) ** seed * len(x) for x in r]
    assert cross_validate(sign, data, seeds=(0, 1)).accuracy == 0.5


def test_what_is_too_long_is_left_out_and_counted():
    data = load(rows(n=60))
    score = lambda prompts, responses: [None if " 7 " in r else float(len(r)) for r in responses]
    found = cross_validate(lambda part, seed: score, data)
    assert found.n_too_long == 1 and found.n_pairs == 59 and found.rewards[0].count(None) == 1
    with pytest.raises(ValueError, match="could be scored"):
        cross_validate(lambda part, seed: lambda p, r: [None] * len(r), data)


def synthetic_experiment(rng, test_x, test_p, k=5, prompts=150, d=8):
    """Outcomes (P,) of k models, their prompts, and the true accuracy of the models: the mean
    difference of features is the model."""
    prompt = np.repeat(np.arange(prompts), rng.integers(1, 4, prompts))
    shared = rng.standard_normal((prompts, d))[prompt]
    x = np.sqrt(0.5) * shared + np.sqrt(0.5) * rng.standard_normal((len(prompt), d))
    p = 1 / (1 + np.exp(-2 * x[:, 0]))
    x = np.where(rng.random(len(p)) < p, 1, -1)[:, None] * x  # oriented as labelled
    fold = rng.integers(k, size=prompts)[prompt]
    weights = x.sum(0) - np.stack([x[fold == i].sum(0) for i in range(k)])
    outcomes = (np.einsum("pd,pd->p", x, weights[fold]) > 0).astype(float)
    right = np.where(test_x @ weights.T > 0, test_p[:, None], 1 - test_p[:, None]).mean(0)
    return outcomes, prompt, float(right @ np.bincount(fold, minlength=k) / len(prompt))


def test_the_pooled_interval_covers_in_a_thousand_experiments():
    "The accuracy of the very models that were judged, and the expectation of such models."
    rng = np.random.default_rng(0)
    test_x = rng.standard_normal((4000, 8))
    test_p = 1 / (1 + np.exp(-2 * test_x[:, 0]))
    found = []
    for _ in range(EXPERIMENTS):
        outcomes, prompt, truth = synthetic_experiment(rng, test_x, test_p)
        pooled = Bootstrap().accuracy(outcomes, prompt)
        found.append((pooled["accuracy"], *pooled["interval"], truth))
    accuracy, low, high, truth = np.array(found).T
    assert 0.93 < np.mean((low <= truth) & (truth <= high)) < 0.99
    assert 0.92 < np.mean((low <= truth.mean()) & (truth.mean() <= high)) < 0.99
    assert abs(accuracy.mean() - truth.mean()) < 0.005  # Wilson's middle lies nearer to one half


def test_cross_validation_shows_itself(tmp_path):
    found = cross_validate(lambda part, seed: by_length, rows())
    assert (
        "Models trained on 80% of the data" in found.to_markdown()
        and "<table>" in found._repr_html_()
        and "One seed" in repr(found)
    )
    stored = json.loads(found.save(tmp_path / "cv.json").read_text())
    assert stored["rewards"] == found.rewards and stored["verdicts"] == found.verdicts
    assert found.plot().axes


def test_a_recipe_of_the_trainer_returns_models_that_score():
    data = load(rows(n=24, prompts=12))
    train = trainer_recipe(max_steps=1, per_device_train_batch_size=4)
    first, again, other = (
        train(data, seed).score(["question 1"] * 2, ["answer", "reply"]) for seed in (3, 3, 4)
    )
    assert first == again != other
    with pytest.raises(ValueError, match="output_dir itself"):
        trainer_recipe(output_dir="x")


# --- paired tests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("a,b", [(0, 0), (1, 5), (0, 7), (12, 12), (13, 12), (30, 61), (400, 480), (0, 1)])
def test_mcnemar_is_the_exact_binomial_test(a, b):
    expected = stats.binomtest(a, a + b).pvalue if a + b else 1.0
    assert _mcnemar_p_value(a, b) == pytest.approx(expected, rel=1e-9) == _mcnemar_p_value(b, a)


@pytest.mark.parametrize("a,b", [(0.5, 3), (2.5, 9.5), (4, 4.5), (0.5, 0)])
def test_halves_never_make_mcnemar_surer(a, b):
    whole = [
        _mcnemar_p_value(x, y) for x in (math.floor(a), math.ceil(a)) for y in (math.floor(b), math.ceil(b))
    ]
    assert _mcnemar_p_value(a, b) == pytest.approx(max(whole))


@pytest.mark.parametrize("seed", range(6))
def test_sign_flips_are_all_sign_flips(seed):
    rng = np.random.default_rng(seed)
    sums = rng.integers(-4, 6, size=int(rng.integers(1, 13))) / 2
    flipped = np.array(list(itertools.product([-1, 1], repeat=len(sums)))) @ sums
    assert _sign_flip_p_value(sums) == pytest.approx(
        np.mean(np.abs(flipped) >= abs(sums.sum()) - 1e-9), abs=1e-12
    )


def test_sign_flips_are_scipys_permutation_test():
    sums = np.random.default_rng(1).integers(-3, 5, size=60) / 2
    found = stats.permutation_test(
        (sums, np.zeros(60)),
        lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    assert _sign_flip_p_value(sums) == pytest.approx(found.pvalue, abs=0.01)


def test_the_interval_of_a_difference_by_its_definition():
    "One pair a prompt: Student's interval of the mean, and two pairs more in its variance."
    d = np.repeat([0.0, -1.0, 1.0], [70, 10, 20])
    error = math.sqrt(d.var(ddof=1) / 100 + 2 / 100**2)
    reach = stats.t(99).ppf(0.975) * error
    found = compare_models((d < 0).astype(float), (d > 0).astype(float))
    assert found.interval == pytest.approx((0.1 - reach, 0.1 + reach), rel=1e-3)


@pytest.mark.parametrize(
    "p,expected",
    [
        ([0.01, 0.02, 0.03, 0.04], [0.04, 0.06, 0.06, 0.06]),
        ([0.5], [0.5]),
        ([0.04, 0.001, 0.9], [0.08, 0.003, 0.9]),
        ([], []),
    ],
)
def test_holm_by_hand(p, expected):
    assert Bootstrap.holm(p).tolist() == pytest.approx(expected)


def correlated(rng, a, b, prompts, ties=0.1):
    """Outcomes of two models of true accuracies a and b that find the same prompts and pairs hard, and
    their prompts."""
    prompt = np.repeat(np.arange(prompts), rng.integers(1, 4, prompts))
    n, z = len(prompt), NormalDist()
    hard = math.sqrt(0.3) * rng.standard_normal(prompts)[prompt] + math.sqrt(0.4) * rng.standard_normal(n)
    draw = lambda share: np.where(
        rng.random(n) < ties, 0.5, hard + math.sqrt(0.3) * rng.standard_normal(n) < z.inv_cdf(share)
    )
    return draw(a).astype(float), draw(b).astype(float), prompt


def test_the_interval_of_a_difference_covers_in_a_thousand_experiments():
    rng, covered = np.random.default_rng(0), []
    for _ in range(EXPERIMENTS):
        a, b, prompt = correlated(rng, 0.70, 0.75, 120)
        low, high = compare_models(a, b, prompt).interval
        covered.append(low <= 0.9 * 0.05 <= high)  # a tenth of the answers are ties
    assert 0.93 < np.mean(covered) < 0.99


def test_equal_models_are_called_different_as_rarely_as_the_level_says():
    rng, p = np.random.default_rng(1), []
    for _ in range(EXPERIMENTS):
        a, b, prompt = correlated(rng, 0.72, 0.72, 120)
        p.append(compare_models(a, b, prompt).p_value)
    assert (
        0.02 < np.mean(np.array(p) < 0.05) < 0.066
    )  # exact, so at most the level; the steps of the sum keep it below


def test_dependence_within_prompts_is_seen():
    "All pairs of a prompt come out alike: McNemar counts them as separate evidence, the sign flips do not."
    difference = np.repeat([1.0] * 8 + [-1.0] * 3, 10)
    a, b = (difference < 0).astype(float), (difference > 0).astype(float)
    found = compare_models(a, b, np.repeat(np.arange(11), 10))
    assert found.mcnemar < 1e-4 and found.p_value == pytest.approx(stats.binomtest(3, 11).pvalue)
    assert found.interval[0] < 0 < compare_models(a, b).interval[0]
    assert "cannot be told apart" in found.verdicts[0]


def test_differences_stay_possible_and_one_prompt_shows_nothing():
    rng = np.random.default_rng(0)
    a, b = (rng.random(500) < 0.7).astype(float), (rng.random(500) < 0.9).astype(float)
    one = compare_models(a, b, np.zeros(500))
    assert one.interval == (-1, 1) and one.difference == pytest.approx(b.mean() - a.mean())
    assert "cannot be told apart" in one.verdicts[0]
    few = compare_models(a[:3], a[:3])
    assert few.interval == (-1, 1) and type(few.interval[0]) is float


def test_sentences_name_the_better_model_first():
    a, b = np.zeros(40), np.ones(40)
    for first, second in ((a, b), (b, a)):
        found = compare_models(first, second, names=("old", "new") if first is a else ("new", "old"))
        assert found.verdicts[0].startswith("new is better than old by 100.0 points (")


# --- runs -----------------------------------------------------------------------------------------


def runs_of(rng, seeds, between, pairs=300, each=1, seed_noise=1.0):
    "Outcomes (seeds, pairs) of two equal settings, and the prompts of the pairs."
    prompt = np.arange(pairs) // each
    hard = (rng.standard_normal(pairs)[prompt] + rng.standard_normal(pairs)) / math.sqrt(2)
    level = 1.0 + between * rng.standard_normal((2, seeds, 1))
    return (hard + seed_noise * rng.standard_normal((2, seeds, pairs)) < level).astype(float), prompt


@pytest.mark.parametrize(
    "seeds,between,each", [(2, 0.0, 1), (3, 0.0, 3), (5, 0.0, 1), (2, 0.3, 1), (3, 0.3, 1), (5, 0.3, 3)]
)
def test_equal_settings_of_several_seeds_are_told_apart_at_the_level(seeds, between, each):
    """With what a seed does to single pairs counted once over prompts and once over seeds, of settings
    whose seeds do not differ fewer than one in a hundred were called different."""
    rng, p = np.random.default_rng(seeds), []
    for _ in range(800):
        (a, b), prompt = runs_of(rng, seeds, between, each=each)
        p.append(_over_prompts_and_seeds([b, -a], prompt, 0.95)[3])
    assert 0.015 < np.mean(np.array(p) < 0.05) < 0.075


def test_the_interval_of_several_seeds_covers_the_difference():
    "A setting that is better on average over seeds; of two seeds, 91% instead of 95%."
    rng, z = np.random.default_rng(0), NormalDist(sigma=math.sqrt(1 + 1 + 0.2**2))
    truth = z.cdf(1.3) - z.cdf(1.0)
    for seeds in (2, 3, 5):
        covered = []
        for _ in range(500):
            hard = rng.standard_normal(300)
            level = np.array([1.0, 1.3])[:, None, None] + 0.2 * rng.standard_normal((2, seeds, 1))
            a, b = (hard + rng.standard_normal((2, seeds, 300)) < level).astype(float)
            _, low, high, _ = _over_prompts_and_seeds([b, -a], np.arange(300), 0.95)
            covered.append(low <= truth <= high)
        assert (0.89 if seeds == 2 else 0.925) < np.mean(covered) < 0.99


def test_one_setting_by_hand():
    "Seeds that differ, prompts that do not: the variance is s^2 / S, of two degrees of freedom."
    outcomes = np.repeat([[0.2], [0.5], [0.8]], 2000, axis=1)
    value, low, high, p = _over_prompts_and_seeds([outcomes], np.arange(2000), 0.95)
    reach = stats.t(2).ppf(0.975) * 0.3 / math.sqrt(3)
    assert (value, low, high) == pytest.approx((0.5, 0.5 - reach, min(1, 0.5 + reach)), rel=1e-3)


@pytest.mark.parametrize(
    "name,setting",
    [
        ("lora-seed0", "lora"),
        ("lora_seed=12", "lora"),
        ("full.s3", "full"),
        ("Base Seed 4", "Base"),
        ("rms3", "rms3"),
        ("seed1", "seed1"),
        ("llama-3", "llama-3"),
    ],
)
def test_a_seed_at_the_end_is_not_part_of_the_setting(name, setting):
    assert _setting_name(name) == setting


def noisy(noise, seed):
    "Length with noise, the same for the same text."

    def score(prompts, responses):
        return [
            len(r) + noise * np.random.default_rng([seed, *r.encode()]).standard_normal() for r in responses
        ]

    return score


def test_folders_are_named_and_grouped(monkeypatch):
    loaded = []

    class Loads:
        "In place of a reward model: its folder, and with what it was loaded."

        new_prompts = comparing.RewardModel.new_prompts

        @staticmethod
        def from_pretrained(name, **options):
            return loaded.append(options) or name

    monkeypatch.setattr(comparing, "RewardModel", Loads)
    monkeypatch.setattr(
        comparing,
        "score_preferences",
        lambda run, data, progress=False: (
            [[float(len(r)) if "good" in str(run) else 0.0 for r in record["responses"]] for record in data],
            "rm",
        ),
    )
    found = compare_runs(["a/good-seed0", "a/good-seed1", "b/flat"], rows())
    assert {(s["name"], s["seeds"]) for s in found.settings} == {("good", 2), ("flat", 1)}
    found = compare_runs(["a/good/rm", "b/other/rm"], rows())
    assert {s["name"] for s in found.settings} == {"good/rm", "other/rm"} and found.comparisons[0][
        "b"
    ] == "good/rm"
    assert not loaded
    compare_runs(["a/good", "b/flat"], rows(), model_options={"device": "cpu"})
    assert loaded == [{"device": "cpu"}] * 2
    with pytest.raises(ValueError, match="tell them apart"):
        compare_runs(["a/rm", "a/rm"], rows())


def test_runs_are_compared_in_pairs_and_corrected():
    data = rows(n=400, prompts=200)
    found = compare_runs(
        {"exact": by_length, "close": noisy(3, 0), "coin": [noisy(1000, s) for s in range(4)]}, data
    )
    assert [s["accuracy"] for s in found.settings] == sorted(
        (s["accuracy"] for s in found.settings), reverse=True
    )
    p_values = [c["p"] for c in found.comparisons]
    assert [c["corrected"] for c in found.comparisons] == Bootstrap.holm(p_values).tolist()
    tests = {frozenset((c["a"], c["b"])): c["test"] for c in found.comparisons}
    assert tests[frozenset(("exact", "close"))].startswith("sign flips") and tests[
        frozenset(("exact", "coin"))
    ].startswith("t over")
    single = next(c for c in found.comparisons if {c["a"], c["b"]} == {"exact", "close"})
    pairs = judged_pairs([noisy(3, 0), by_length], load(data))
    direct = compare_models(*pairs["outcome"], pairs["prompt"])
    assert pairs["n_left_out"] == 0
    assert (
        (single["low"], single["high"], single["p"]) == (*direct.interval, direct.p_value)
        or single["difference"] == 0
        or single["b"] == "close"
    )
    assert (
        any("coin" in s and "better than" in s for s in found.verdicts)
        and "exact" in found.to_markdown()
        and found.plot().axes
    )
    json.dumps(found.to_dict())


def test_cross_validations_and_their_files_are_runs(tmp_path):
    data = rows()
    cv = cross_validate(lambda part, seed: by_length, data, seeds=(0, 1))
    found = compare_runs(
        {"cv": cv, "file": cv.save(tmp_path / "cv.json"), "rewards": [[0.0, 0.0]] * 120}, data
    )
    assert [(s["name"], s["seeds"]) for s in found.settings] == [("cv", 2), ("file", 2), ("rewards", 1)]
    assert found.settings[0]["accuracy"] == cv.accuracy and found.settings[2]["accuracy"] == 0.5
    with pytest.raises(ValueError, match="other data"):
        compare_runs({"cv": cv, "x": by_length}, rows(seed=3))
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no rewards"):
        compare_runs({"cv": cv, "x": tmp_path / "report.json"}, data)


def test_pairs_that_a_run_cannot_score_are_left_out_for_all():
    half = lambda prompts, responses: [None if p.endswith("1") else 1.0 for p in prompts]
    found = compare_runs({"all": by_length, "half": half}, rows())
    assert (
        found.n_left_out == sum(r["prompt"].endswith("1") for r in rows())
        and found.n_pairs + found.n_left_out == 120
    )
    with pytest.raises(ValueError, match="scored by every run"):
        compare_runs({"all": by_length, "none": lambda p, r: [None] * len(r)}, rows())


def test_one_seed_is_said():
    assert "One seed of each" in compare_runs({"a": by_length, "b": noisy(5, 1)}, rows()).verdicts[-1]


def test_a_score_before_and_after_by_hand(tmp_path):
    before, after = (
        [{"score": score} for score in scores] for scores in ((1, 2, 4), (2, 2, 6))
    )  # changes 1, 0, 2: mean 1, standard deviation 1
    policy = TrainedPolicy(tmp_path, before, after, [], False, False)
    assert policy.difference == pytest.approx((1, 1 - 1.96 / math.sqrt(3), 1 + 1.96 / math.sqrt(3)))
    assert policy.change("score") == pytest.approx((7 / 3, 10 / 3, *policy.difference))


# --- learning curve -------------------------------------------------------------------------------


def by_definition(parameters, n):
    "a - b n^-c"
    a, b, c = parameters
    return a - b * np.asarray(n, dtype=float) ** -c


def test_the_fit_is_scipys_least_squares():
    rng = np.random.default_rng(0)
    n = np.array([100, 200, 400, 800, 1600.0])
    accuracy = by_definition((0.8, 2, 0.5), n) + 0.002 * rng.standard_normal(5)
    (ours,) = _fit_power_law(n, [accuracy])
    theirs, _ = optimize.curve_fit(
        lambda x, a, b, c: by_definition((a, b, c), x), n, accuracy, p0=[0.8, 2, 0.5], maxfev=20_000
    )
    assert _power_law(ours, n, 1600) == pytest.approx(by_definition(theirs, n), abs=2e-4)
    assert _power_law(ours, 3200, 1600) == pytest.approx(by_definition(theirs, 3200), abs=1e-3)


@pytest.mark.parametrize(
    "parameters", [(0.8, 2, 0.5), (0.75, 1, 0.3), (1.0, 3, 0.4), (0.7, 0.0, 0.1), (0.2, -0.1, -0.2)]
)
def test_an_exact_curve_is_recovered(parameters):
    n = np.array([100, 200, 400, 800])
    (found,) = _fit_power_law(n, [by_definition(parameters, n)])
    assert _power_law(found, np.array([100, 1600]), 800) == pytest.approx(
        by_definition(parameters, [100, 1600]), abs=1e-6
    )
    assert found[2] == pytest.approx(parameters[2]) or parameters[1] == 0


def test_a_straight_line_over_the_logarithm_is_in_the_family():
    n = np.array([100, 200, 400, 800])
    assert _fit_power_law(n, [0.3 + 0.05 * np.log(n)])[0] == pytest.approx(
        [0.3 + 0.05 * math.log(800), 0.05, 0], abs=1e-9
    )
    assert _power_law([0.9, 0.5, 0.0], 1600, 800) == 1  # no accuracy above 1


def test_fits_of_many_draws_are_the_fits_of_each():
    drawn = np.random.default_rng(0).uniform(0.5, 0.9, (20, 4))
    n = [10, 20, 40, 80]
    assert np.allclose(_fit_power_law(n, drawn), [_fit_power_law(n, [row])[0] for row in drawn])
    found = _fit_power_law(n, drawn)
    assert (found[:, 1] >= 0).all() and (found[:, 1] == 0).any()


def simulated_curve(rng, accuracy, sizes, repeats, seed):
    "A curve of outcomes of known expected accuracies; pairs, repeats and trainings vary."
    prompt, delta = rng.integers(200, size=300), 0.04
    cut = np.array([NormalDist().inv_cdf(a) for a in accuracy]) * math.sqrt(1 + delta**2)
    hard = math.sqrt(0.3) * rng.standard_normal(200)[prompt] + math.sqrt(0.7) * rng.standard_normal(300)
    z = math.sqrt(0.6) * hard + math.sqrt(0.4) * rng.standard_normal((len(sizes), repeats, 300))
    return _curve_of_outcomes(
        sizes,
        z < cut[:, None, None] + delta * rng.standard_normal((len(sizes), repeats, 1)),
        prompt,
        Bootstrap(200, seed=seed),
    )


@pytest.mark.parametrize(
    "parameters", [(0.8, 0.7, 0.35), (0.75, 30, 1.0), (0.75, 0.0, 0.5), (0.3, -0.1, -0.2)]
)
def test_the_interval_of_the_gain_covers(parameters):
    rng, sizes, covered, accuracy = np.random.default_rng(0), [125, 250, 500, 1000], [], []
    levels = by_definition(parameters, [*sizes, 2000])
    for i in range(150):
        curve = simulated_curve(rng, levels[:-1], sizes, 3, i)
        _, low, high = curve.gain(1000)
        covered.append(low - 1e-9 <= levels[-1] - levels[-2] <= high + 1e-9)
        accuracy.append(curve.low[-1] <= levels[-2] <= curve.high[-1])
    assert np.mean(covered) > 0.92 and np.mean(accuracy) > 0.90


SATURATED = {
    "stops": lambda n: np.minimum(0.76, 0.60 + 0.08 * np.log2(n / 125)),
    "exponential": lambda n: 0.75 - 0.2 * np.exp(-n / 180),
    "flat": lambda n: 0.7 + 0 * n,
}


@pytest.mark.parametrize("name", SATURATED)
def test_more_labels_are_not_promised_to_help_where_accuracy_has_reached_its_limit(name):
    "The fitted family has no such limit and rises on; a promise needs the last step to rise, too."
    sizes, rng, promised = np.array([125.0, 210, 354, 595, 1000]), np.random.default_rng(0), 0
    for i in range(60):
        curve = simulated_curve(rng, SATURATED[name](sizes), sizes.tolist(), 3, i)
        promised += "would raise" in curve.verdicts[0]
    assert promised <= 8  # of 60; at 5% 9 or more come once in 500


def test_the_sentences_of_a_curve():
    prompt, sizes = np.arange(2000), [250, 500, 1000]
    steps = lambda *shares: np.array([[np.arange(2000) < 2000 * share] * 2 for share in shares], dtype=float)
    rising, flat = (
        _curve_of_outcomes(sizes, steps(*shares), prompt) for shares in ((0.60, 0.65, 0.70), (0.7, 0.7, 0.7))
    )
    assert rising.verdicts[0].startswith("1,000 more labels would raise accuracy, by") and flat.verdicts[
        0
    ].startswith("1,000 more labels would hardly help")
    few = _curve_of_outcomes(
        sizes,
        np.random.default_rng(0).random((3, 1, 100)) < np.array([0.60, 0.65, 0.70])[:, None, None],
        prompt[:100],
    )
    assert "cannot be told" in few.verdicts[0] and "One repeat" in few.verdicts[1]
    with pytest.raises(ValueError, match="at most 1,000 more"):
        rising.gain(1100)
    assert rising.predict(2000)[0] - rising.predict(1000)[0] == pytest.approx(rising.gain(1000)[0], abs=0.003)
    assert "_draws" not in rising.to_dict() and rising.plot().axes and "<table>" in rising._repr_html_()


def test_subsets_are_nested_by_prompt_and_judged_on_the_same_pairs():
    data, seen, asked = load(rows(n=300, prompts=100)), [], []

    def train(part, seed):
        seen.append((seed, {r["prompt"] for r in part}, len(part)))

        def score(prompts, responses):
            asked.append(tuple(prompts))
            return by_length(prompts, responses)

        return score

    curve = learning_curve(train, data, sizes=[30, 60, 120, 225], repeats=2)
    by_prompt = {r["prompt"]: 0 for r in data} | {
        p: sum(r["prompt"] == p for r in data) for p in {r["prompt"] for r in data}
    }
    for seed in (0, 1):
        own = [(prompts, n) for s, prompts, n in seen if s == seed]
        assert all(a[0] < b[0] for a, b in itertools.pairwise(own))  # nested
        assert all(n == sum(by_prompt[p] for p in prompts) for prompts, n in own)  # whole prompts
        assert [n for _, n in own] == pytest.approx([30, 60, 120, 225], abs=3)
    assert len(set(asked)) == 1 and not set(asked[0]) & seen[-1][1] and curve.n_pairs == 75
    assert seen[0][1] != seen[4][1]  # another repeat, other prompts


# --- annotators -----------------------------------------------------------------------------------


def votes_of(p, n, rng):
    "Rows of n votes on each of len(p) pairs, half of them with the responses in the other order."
    made = []
    for i, share in enumerate(p):
        for _ in range(n):
            a, b = f"first {i}", f"second {i}"
            made.append(
                {"prompt": f"q {i}", "chosen": a, "rejected": b}
                if rng.random() < share
                else {"prompt": f"q {i}", "chosen": b, "rejected": a}
            )
    return made


@pytest.mark.parametrize("alpha,beta", [(1, 1), (5, 2), (0.3, 0.3)])
def test_the_bounds_hold_for_a_known_distribution(alpha, beta):
    p = np.random.default_rng(0).beta(alpha, beta, 200_000)
    agreement, best = np.mean(p**2 + (1 - p) ** 2), np.maximum(p, 1 - p).mean()
    assert agreement <= best <= _ceiling(agreement)


def test_the_bounds_are_reached():
    assert _ceiling(0.8**2 + 0.2**2) == pytest.approx(0.8)  # all pairs equally clear
    certain = np.array([1.0] * 3 + [0.5] * 7)  # certain or a coin flip: the lower bound
    assert np.mean(certain**2 + (1 - certain) ** 2) == pytest.approx(np.maximum(certain, 1 - certain).mean())


@pytest.mark.parametrize("n", [2, 3, 5])
def test_agreement_is_estimated_without_bias_and_its_interval_covers(n):
    """Votes are drawn as counts, so that 300 experiments are cheap; the truth is that of the
    distribution of p."""
    rng, found, covered = np.random.default_rng(n), [], []
    expected = 1 - 2 * 4 * 2 / (6 * 7)  # 1 - 2 E[p (1 - p)] of a Beta(4, 2)
    for i in range(300):
        votes = rng.binomial(n, rng.beta(4, 2, 80)).tolist()
        made = (
            [
                {"prompt": f"q {j}", "chosen": "a", "rejected": "b", "votes": [v, n - v]}
                for j, v in enumerate(votes)
            ]
            if i < 3
            else None
        )
        if made:  # the shipped function on rows, and its formula on counts
            result = annotator_ceiling(made)
            share = np.mean([(v * (v - 1) + (n - v) * (n - v - 1)) / (n * (n - 1)) for v in votes])
            assert result.agreement == pytest.approx(share) and result.n_votes == 80 * n
        share = np.array([(v * (v - 1) + (n - v) * (n - v - 1)) / (n * (n - 1)) for v in votes])
        low, high = Bootstrap(seed=i).interval(np.stack([share, np.ones(80)], 1))
        found.append(share.mean())
        covered.append(low <= expected <= high)
    assert np.mean(found) == pytest.approx(expected, abs=0.01) and np.mean(covered) > 0.90


def test_the_majority_of_the_others_by_brute_force():
    first, second = np.array([3, 2, 4, 0, 1]), np.array([0, 1, 1, 5, 1])

    def brute(a, b):
        votes, hits = [1] * a + [0] * b, []
        for i, vote in enumerate(votes):
            others = votes[:i] + votes[i + 1 :]
            mean = np.mean(others)
            hits.append(0.5 if mean == 0.5 else float((mean > 0.5) == vote))
        return np.mean(hits)

    assert _left_out_majority(first, second) == pytest.approx(
        np.mean([brute(a, b) for a, b in zip(first[:4].tolist(), second[:4].tolist())])
    )


def test_repeated_votes_are_counted_in_every_form(tmp_path):
    made = votes_of([0.9, 0.5, 0.2] * 5, 3, np.random.default_rng(0))
    assert len(load(made)) < len(made) == 45
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    results = [annotator_ceiling(data) for data in (made, path, str(path), pd.DataFrame(made))]
    assert (
        all(r.to_dict() == results[0].to_dict() for r in results)
        and results[0].n_pairs == 15
        and results[0].n_votes == 45
    )
    swapped = [
        {
            "prompt": r["prompt"],
            "response_a": min(r["chosen"], r["rejected"]),
            "response_b": max(r["chosen"], r["rejected"]),
            "label": "a" if r["chosen"] < r["rejected"] else "b",
        }
        for r in made
    ]
    assert annotator_ceiling(swapped).agreement == results[0].agreement


def test_ties_and_broken_rows_are_counted_apart():
    pair = {"prompt": "q", "responses": ["a", "b"]}
    counts, unusable = _count_votes(
        [
            pair | {"ranks": [1, 2]},
            pair | {"ranks": [2, 1]},
            pair | {"ranks": [1, 1]},
            pair | {"responses": ["a", None], "ranks": [1, 2]},
        ]
    )
    assert [votes.tolist() for votes in counts.values()] == [[1, 1, 1]] and unusable == 1


def test_what_cannot_be_counted_is_refused(tmp_path):
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(PreferenceDataError, match="judged twice"):
        annotator_ceiling([pair])
    with pytest.raises(PreferenceDataError, match="no rows"):
        annotator_ceiling([])
    with pytest.raises(PreferenceDataError, match="no such file"):
        annotator_ceiling("nowhere/votes.jsonl")
    with pytest.raises(TypeError, match="raw rows"):
        annotator_ceiling(load([pair]))
    with pytest.raises(PreferenceDataError, match="row 1: votes is 'many'"):
        annotator_ceiling([pair | {"votes": "many"}])


def test_the_sentence_of_the_ceiling():
    found = _AnnotatorCeiling(
        0.74, (0.70, 0.78), _ceiling(0.74), tuple(map(_ceiling, (0.70, 0.78))), None, 500, 400, 1000, 0, 0, 0
    )
    assert (
        "74.0% (70.0% to 78.0%)" in found.verdicts[0] and "about 84.6% (81.6% to 87.4%)" in found.verdicts[0]
    )


# --- mistakes -------------------------------------------------------------------------------------


def test_mistakes_come_surest_first_with_texts_and_origin():
    data = [
        {"prompt": "a | b", "chosen": "x" * 3, "rejected": "<b>" + "y" * 200},
        {"prompt": "c", "chosen": "xxxx", "rejected": "y"},
        {"prompt": "d", "chosen": "x", "rejected": "yy"},
    ]
    found = most_confident_mistakes(by_length, data, 5, temperature=10)
    assert [m["record"] for m in found.mistakes] == [0, 2] and found.n_wrong == 2 and found.n_pairs == 3
    assert found.mistakes[1]["probability"] == pytest.approx(1 / (1 + math.exp(0.1)))
    assert (
        "a \\| b" in found.to_markdown()
        and "&lt;b&gt;" in found._repr_html_()
        and "<b>y" not in found._repr_html_()
    )
    assert most_confident_mistakes([[1.0, 2.0], None, [1.0, 0.0]], data).n_pairs == 2
    with pytest.raises(ValueError, match="could be scored"):
        most_confident_mistakes([None] * 3, data)


def test_flipped_labels_are_found():
    """A tenth of clear labels are turned round; the list begins with them, the measured precision says
    so, and the base rate is known."""
    rng = np.random.default_rng(0)
    clear = [
        {
            "prompt": f"q {i}",
            "chosen": f"{i} " + "x" * int(rng.integers(20, 40)),
            "rejected": f"{i} " + "y" * int(rng.integers(1, 15)),
        }
        for i in range(300)
    ]
    wrong = rng.random(300) < 0.1
    data = load(
        [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} if w else r for r, w in zip(clear, wrong)]
    )
    cv = cross_validate(lambda part, seed: by_length, data)
    found = suspected_label_errors(cv, data, 500)
    assert (
        set(found.order[: wrong.sum()]) == set(np.flatnonzero(wrong).tolist())
        and found.n_wrong == wrong.sum()
    )
    assert 15 <= found.n_suspected == len(found.mistakes) <= wrong.sum()
    row = found.precision_at(wrong, [20])[0]
    assert (
        row["precision"] == 1
        and row["base"] == wrong.mean()
        and (row["low"], row["high"]) == wilson_interval(20, 20)
    )
    assert [m["probability"] for m in found.mistakes] == sorted(m["probability"] for m in found.mistakes)
    p = 1 / (1 + np.exp(-np.array([a - b for a, b in cv.rewards[0]]) / found.temperature))
    assert found.threshold == pytest.approx(p.mean())
    with pytest.raises(ValueError, match="one value for each record"):
        found.precision_at(wrong[:10])


def test_out_of_fold_rewards_are_asked_for(tmp_path):
    data = load(rows())
    with pytest.raises(TypeError, match="out-of-fold"):
        suspected_label_errors(by_length, data)
    cv = cross_validate(lambda part, seed: by_length, data)
    assert isinstance(cv, CrossValidation)
    assert (
        suspected_label_errors(cv.save(tmp_path / "cv.json"), data).order
        == suspected_label_errors(cv, data).order
    )
    with pytest.raises(ValueError, match="other data"):
        suspected_label_errors(cv, rows(seed=9))
