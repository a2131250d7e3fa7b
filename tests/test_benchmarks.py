"""Public benchmarks: scores against the authors' programs and against brute force, readers, errors,
what a model reads, the report."""

import ast
import gzip
import importlib.util
import itertools
import json
import math
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from reward_kit.beside.benchmark_files import BENCHMARKS, _benchmark_kind, load_benchmark
from reward_kit.beside.benchmarks import (
    _TIES_WEIGHTS,
    BenchmarkReport,
    _best_of_credit,
    _comparison_grid,
    _reads_conversations,
    _style_levels,
    _ties_gap,
    _ties_terms,
    run_benchmark,
    score_benchmark,
)
from reward_kit.data.files import PreferenceDataError
from reward_kit.data.report import wilson_interval
from reward_kit.model.encoding import prepare_tokenizer
from reward_kit.model.model_folder import RewardMetadata, load_reward_backbone
from reward_kit.model.settings import quiet
from reward_kit.scores.ensembles import RewardEnsemble
from reward_kit.scores.inference import RewardModel
from reward_kit.trust.agreement import Bootstrap

PAIR = {"prompt": "Name a prime.", "chosen": "Seven.", "rejected": "Nine.", "subset": "math-prm", "id": 1}
FOUR = {
    "prompt": "Name a prime.",
    "chosen": ["Seven."],
    "rejected": ["Nine.", "One.", "Six."],
    "subset": "Math",
    "id": "1",
    "num_correct": 1,
}
TIED = {
    "prompt": "Name a prime.",
    "chosen": ["7.", "5."],
    "rejected": ["9.", "1."],
    "subset": "Ties",
    "id": "tied:0",
    "num_correct": 2,
}
REFERENCE = {**TIED, "chosen": ["2."], "id": "ref:0", "num_correct": 1}
STYLED = {
    "prompt": "Name a prime.",
    "chosen": ["7.", "It is 7.", "**7**"],
    "rejected": ["9.", "It is 9.", "**9**"],
    "domain": "math",
    "id": "1",
}
LABELLED = {"input": "Name a prime.", "output_1": "Nine.", "output_2": "Seven.", "label": 2}
ROWS = {
    "rewardbench": [PAIR],
    "rewardbench2": [FOUR, TIED, REFERENCE],
    "rm-bench": [STYLED],
    "llmbar": [LABELLED],
}


# --- synthetic benchmarks -------------------------------------------------------------------------


def rewardbench_rows(per_subset=None, prior=False):
    "Rows with RewardBench's subsets and numbers."
    sizes = {name: n for name, n in BENCHMARKS["rewardbench"].published().items() if n}
    if prior:
        sizes |= dict.fromkeys(("anthropic_helpful", "anthropic_hhh", "shp", "summarize"), 40)
    return [
        {"prompt": f"{name} {i}", "chosen": "a", "rejected": "b", "subset": name, "id": i}
        for name, n in sizes.items()
        for i in range(per_subset or n)
    ]


def rewardbench2_rows(rng, per_subset=30, questions=20):
    rows = [
        {
            "prompt": f"{name} {i}",
            "chosen": ["a"],
            "rejected": ["b", "c", "d"],
            "subset": name,
            "id": f"{i}",
            "num_correct": 1,
            "total_completions": 4,
        }
        for name in ("Factuality", "Precise IF", "Math", "Safety", "Focus")
        for i in range(per_subset)
    ]
    for i in range(questions):
        right, wrong = int(rng.integers(2, 7)), int(rng.integers(1, 5))
        for side, n in (("ref", 1), ("tied", right)):
            rows.append(
                {
                    "prompt": f"{side} {i}",
                    "chosen": [f"r{k}" for k in range(n)],
                    "rejected": [f"w{k}" for k in range(wrong)],
                    "subset": "Ties",
                    "id": f"{side}:{i}",
                    "num_correct": n,
                    "total_completions": n + wrong,
                }
            )
    return rows


def rmbench_rows(sizes=None):
    sizes = sizes or {"chat": 13, "math": 53, "code": 23, "safety-refuse": 28, "safety-response": 16}
    return [
        {
            "prompt": f"{name} {i}",
            "chosen": ["a", "b", "c"],
            "rejected": ["d", "e", "f"],
            "domain": name,
            "id": f"{i}",
        }
        for name, n in sizes.items()
        for i in range(n)
    ]


def random_rewards(rng, benchmark, values):
    "Rewards with many ties: integers below `values`; every third draw real numbers."
    draw = (
        (lambda n: rng.normal(size=n))
        if values is None
        else (lambda n: rng.integers(values, size=n).astype(float))
    )
    return [draw(len(row["responses"])).tolist() for row in benchmark.rows]


# --- the authors' programs ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authors():
    if importlib.util.find_spec("rewardbench") is None:
        pytest.skip(
            "the source of package rewardbench (0.1.4) is not on the path; it is no dependency, see the"
            " stored scores and the brute-force tests instead"
        )
    return read_authors()


def read_authors():
    "Constants and scoring functions of package `rewardbench`, read from its source without its dependencies."
    found = importlib.util.find_spec("rewardbench")
    names, space = (
        (
            "calculate_scores_per_section",
            "sample_stats",
            "process_single_model",
            "reroll_and_score_dataset",
        ),
        {},
    )
    folder = Path(found.submodule_search_locations[0])
    exec((folder / "constants.py").read_text(), space)
    tree = ast.parse((folder / "utils.py").read_text())
    space |= {"np": np, "math": math, "pd": pd, "Dataset": datasets.Dataset}
    exec(
        compile(
            ast.Module([n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in names], []),
            "authors",
            "exec",
        ),
        space,
    )
    return space


def rewardbench_by_authors(authors, benchmark, rewards):
    "Accuracy of each subset, score of each section."
    results = {}
    for row, (a, b) in zip(benchmark.rows, rewards):
        results.setdefault(row["subset"], []).append(1 if a > b else 0)
    metrics = {name: sum(own) / len(own) for name, own in results.items()}
    return metrics, authors["calculate_scores_per_section"](
        authors["EXAMPLE_COUNTS"], authors["SUBSET_MAPPING"], metrics
    )


def rewardbench2_by_authors(authors, benchmark, rewards):
    "Score of each subset."
    flat = [
        {"text": "", "scores": r, "subset": row["subset"], "id": row["id"]}
        for row, own in zip(benchmark.rows, rewards)
        for r in own
    ]
    rolled = authors["reroll_and_score_dataset"](
        datasets.Dataset.from_list(flat), [len(own) for own in rewards]
    )
    rolled = list(rolled.add_column("num_correct", [len(row["correct"]) for row in benchmark.rows]))
    found = {}
    for name in dict.fromkeys(row["subset"] for row in rolled):
        own = [row for row in rolled if row["subset"] == name]
        found[name] = float(
            authors["process_single_model"](own)[1]
            if name == "Ties"
            else np.mean([row["results"] for row in own])
        )
    return found


def test_constants_are_the_authors(authors):
    fmt = BENCHMARKS["rewardbench"]
    assert {name: list(subsets) for name, subsets in fmt.sections.items() if name != "Prior Sets"} == authors[
        "SUBSET_MAPPING"
    ]
    assert {name: fmt.weights.get(name) or n for name, n in fmt.published().items() if n} == authors[
        "EXAMPLE_COUNTS"
    ]


@pytest.mark.parametrize("values", [2, 5, None])
@pytest.mark.parametrize("prior", [False, True])
def test_rewardbench_scores_are_the_authors(authors, values, prior):
    rng, benchmark = np.random.default_rng(0), load_benchmark(rewardbench_rows(prior=prior))
    for _ in range(3):
        rewards = random_rewards(rng, benchmark, values)
        report = score_benchmark(benchmark, rewards, samples=1)
        metrics, expected = rewardbench_by_authors(authors, benchmark, rewards)
        scores = {s["section"]: s["score"] for s in report.section_scores}
        assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)
        sections, weights = list(expected.values()), [2, 2, 2, 2]
        if prior:
            sections.append(
                np.nanmean(
                    [metrics[name] for name in ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")]
                )
            )
            weights.append(1)
        assert report.total == pytest.approx(np.average(sections, weights=weights), abs=1e-12)


@pytest.mark.parametrize("values", [2, 3, 6, None])
def test_rewardbench2_scores_are_the_authors(authors, values):
    rng = np.random.default_rng(1)
    for _ in range(12):
        benchmark = load_benchmark(rewardbench2_rows(rng))
        rewards = random_rewards(rng, benchmark, values)
        got = {s["subset"]: s["score"] for s in score_benchmark(benchmark, rewards, samples=1).subsets}
        assert got == pytest.approx(rewardbench2_by_authors(authors, benchmark, rewards), abs=1e-12)


# Scores that the authors' program gave for rewards that can be drawn again, so that the comparison needs no
# package. Written by
# `python tests/test_benchmarks.py` with the source of rewardbench 0.1.4 on the path.
GOLDEN = Path(__file__).with_name("benchmarks_golden.json")


def golden_cases():
    "Name, benchmark and rewards: whole numbers with many ties, and real ones."
    for values in (2, 5, None):
        rng = np.random.default_rng(100)
        for i in range(3):
            for name, rows in (("rewardbench", rewardbench_rows()), ("rewardbench2", rewardbench2_rows(rng))):
                benchmark = load_benchmark(rows)
                yield (
                    f"{name}, {'real' if values is None else f'below {values}'}, {i}",
                    benchmark,
                    random_rewards(rng, benchmark, values),
                )


def golden_of(authors, name, benchmark, rewards):
    "What the authors' program says."
    return (
        rewardbench_by_authors(authors, benchmark, rewards)[1]
        if name.startswith("rewardbench,")
        else rewardbench2_by_authors(authors, benchmark, rewards)
    )


def test_scores_are_those_that_the_authors_program_gave():
    golden = json.loads(GOLDEN.read_text())
    cases = list(golden_cases())
    assert len(cases) == len(golden) == 18
    for name, benchmark, rewards in cases:
        report = score_benchmark(benchmark, rewards, samples=1)
        got = (
            {s["section"]: s["score"] for s in report.section_scores}
            if name.startswith("rewardbench,")
            else {s["subset"]: s["score"] for s in report.subsets}
        )
        assert {part: got[part] for part in golden[name]} == pytest.approx(golden[name], abs=1e-12), name


def test_what_is_stored_is_what_the_authors_program_gives(authors):
    golden = json.loads(GOLDEN.read_text())
    for name, benchmark, rewards in golden_cases():
        assert golden_of(authors, name, benchmark, rewards) == pytest.approx(golden[name], abs=1e-12)


# --- brute force, written from the papers' words --------------------------------------------------


@pytest.mark.parametrize("values", [2, 5, None])
def test_rewardbench_by_brute_force(values):
    rng, benchmark = np.random.default_rng(2), load_benchmark(rewardbench_rows(per_subset=7))
    rewards = random_rewards(rng, benchmark, values)
    report = score_benchmark(benchmark, rewards, samples=1)
    weight = {"math-prm": 984, "mt-bench-med": 40, "donotanswer": 136, "llmbar-adver-manual": 46}
    accuracy = {}
    for row, (a, b) in zip(benchmark.rows, rewards):
        accuracy.setdefault(row["subset"], []).append(float(a > b))
    for s in report.subsets:
        assert s["score"] == pytest.approx(sum(accuracy[s["subset"]]) / 7)
        assert s["subset"] not in weight or weight[s["subset"]] in (
            984,
            BENCHMARKS["rewardbench"].published()[s["subset"]],
        )
    code = [sum(accuracy[f"hep-{x}"]) / 7 for x in ("cpp", "go", "java", "js", "python", "rust")]
    scores = {s["section"]: s["score"] for s in report.section_scores}
    assert scores["Reasoning"] == pytest.approx(
        (np.mean(code) + sum(accuracy["math-prm"]) / 7) / 2
    )  # math weighs as much as all code
    chat = {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    }
    assert scores["Chat"] == pytest.approx(sum(n * sum(accuracy[name]) / 7 for name, n in chat.items()) / 358)
    assert report.total == pytest.approx(sum(scores.values()) / 4)
    assert report.n_tied == sum(a == b for a, b in rewards)


def ties_by_loops(rows, rewards):
    "The Ties composite, one loop a term."
    good, bad = {}, {}
    for row, own in zip(rows, rewards):
        good[row["id"]], bad[row["id"]] = own[: len(row["correct"])], own[len(row["correct"]) :]
    numbers = sorted({name.split(":")[1] for name in good})
    gap = lambda side, q: min(good[f"{side}:{q}"]) - max(bad[f"{side}:{q}"])
    spread = lambda q: max(good[f"tied:{q}"]) - min(good[f"tied:{q}"])
    terms = [
        [gap("tied", q) > 0 for q in numbers],
        [gap("ref", q) > 0 for q in numbers],
        [gap("tied", q) > spread(q) for q in numbers],
        [gap("tied", q) > spread(q) and gap("ref", q) > spread(q) for q in numbers],
        [math.tanh(min(gap("tied", q), gap("ref", q)) / spread(q) - 1) for q in numbers if spread(q) > 0]
        or [0.0],
    ]
    return sum(w * np.mean(own) for w, own in zip((0.3, 0.3, 0.2, 0.2, 0.01), terms))


@pytest.mark.parametrize("values", [2, 4, None])
def test_rewardbench2_by_brute_force(values):
    rng = np.random.default_rng(3)
    for _ in range(20):
        benchmark = load_benchmark(rewardbench2_rows(rng, per_subset=10, questions=12))
        rewards = random_rewards(rng, benchmark, values)
        report = score_benchmark(benchmark, rewards, samples=1)
        expected = {}
        for name in ("Factuality", "Precise IF", "Math", "Safety", "Focus"):
            own = [r for row, r in zip(benchmark.rows, rewards) if row["subset"] == name]
            expected[name] = np.mean([r.count(max(r)) ** -1 if r[0] == max(r) else 0 for r in own])
        chosen = [(row, r) for row, r in zip(benchmark.rows, rewards) if row["subset"] == "Ties"]
        expected["Ties"] = ties_by_loops(*zip(*chosen))
        assert {s["section"]: s["score"] for s in report.section_scores} == pytest.approx(expected, abs=1e-12)
        assert report.total == pytest.approx(np.mean(list(expected.values())), abs=1e-12)
        assert report.total_ties_half is None and report.ties.keys() == _TIES_WEIGHTS.keys()


@pytest.mark.parametrize("values", [2, 5, None])
def test_rmbench_by_brute_force(values):
    rng, benchmark = np.random.default_rng(4), load_benchmark(rmbench_rows())
    rewards = random_rewards(rng, benchmark, values)
    report = score_benchmark(benchmark, rewards, samples=1)
    domains = {}
    for name in ("chat", "math", "code", "safety"):
        own = [r for row, r in zip(benchmark.rows, rewards) if row["subset"].startswith(name)]
        table = [[sum(r[i] > r[3 + j] for r in own) / len(own) for j in range(3)] for i in range(3)]
        hard, easy = (
            (table[0][1] + table[0][2] + table[1][2]) / 3,
            (table[1][0] + table[2][0] + table[2][1]) / 3,
        )
        domains[name] = (table, easy, (table[0][0] + table[1][1] + table[2][2]) / 3, hard)
    levels = [np.mean([d[k] for d in domains.values()]) for k in (1, 2, 3)]
    assert [s["score"] for s in report.levels] == pytest.approx(levels)
    assert {s["section"].lower(): s["score"] for s in report.section_scores} == pytest.approx(
        {n: np.mean(d[1:]) for n, d in domains.items()}
    )
    assert report.total == pytest.approx(np.mean(levels)) and np.allclose(
        report.matrix, np.mean([d[0] for d in domains.values()], 0)
    )
    equal = np.mean([s["score"] for s in report.subsets if s["section"] == "Safety"])
    assert any(f"plain mean of the two is {100 * equal:.1f}%" in note for note in report.notes)


def test_llmbar_by_brute_force():
    "Judged in both orders, equal ratings are right once and wrong once."
    rng = np.random.default_rng(5)
    rows = [
        {
            "input": f"{name} {i}",
            "output_1": "a",
            "output_2": "b",
            "label": int(rng.integers(1, 3)),
            "subset": name,
        }
        for name, n in (("Natural", 11), ("Neighbor", 13), ("GPTInst", 9), ("GPTOut", 5), ("Manual", 6))
        for i in range(n)
    ]
    rewards = rng.integers(3, size=(len(rows), 2)).astype(float)
    right = {}
    for row, (a, b) in zip(rows, rewards):
        first, swapped = (1 if a > b else 2), (2 if b > a else 1)
        right.setdefault(row["subset"], []).append(((first == row["label"]) + (swapped == row["label"])) / 2)
    report = score_benchmark(rows, rewards, samples=1)
    means = {name: np.mean(own) for name, own in right.items()}
    assert {s["subset"]: s["score"] for s in report.subsets} == pytest.approx(means)
    assert (
        report.total == pytest.approx(np.mean(list(means.values()))) == pytest.approx(report.total_ties_half)
    )
    assert report.section_scores[1]["score"] == pytest.approx(
        np.mean([means[n] for n in ("Neighbor", "GPTInst", "GPTOut", "Manual")])
    )


def test_half_points_for_ties_beside_the_authors_score():
    benchmark = load_benchmark(rewardbench_rows(per_subset=4))
    report = score_benchmark(benchmark, [[1.0, 1.0]] * len(benchmark), samples=1)
    assert (report.total, report.total_ties_half) == (0, 0.5) and report.n_tied == len(benchmark)


# --- one row --------------------------------------------------------------------------------------


def test_grid_and_credit_by_hand():
    won, half, tied = _comparison_grid([1.0, 2.0, 0.0, 2.0], [0, 1])
    assert (won.tolist(), half.tolist(), tied) == ([[1, 0], [1, 0]], [[1, 0], [1, 0.5]], 1)
    assert _comparison_grid([None, 0.0], [0])[1].tolist() == [[0.5]]
    assert [
        _best_of_credit(r, [0])
        for r in ([1, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0], [None, 0, 0, 0], [1, 0, None, 0])
    ] == [1, 1 / 3, 0, 0, 0]


def test_ties_terms_by_hand():
    assert (
        _ties_gap([3, 2, 1.5, 0], [0, 1]) == (0.5, 1.0)
        and _ties_gap([3, 1], [0]) == (2.0, None)
        and _ties_gap([3, None], [0]) == (-math.inf, None)
    )
    value, there = _ties_terms((0.5, 1.0), (2.0, None))
    assert (
        value[:4].tolist() == [1, 1, 0, 0]
        and value[4] == pytest.approx(math.tanh(-0.5))
        and there.tolist() == [1] * 5
    )
    assert _ties_terms((0.5, 0.0), (2.0, None))[1].tolist() == [1, 1, 1, 1, 0]  # no spread, no margin
    assert _ties_terms((0.5, 1.0), None)[1].tolist() == [1, 0, 0, 0, 0] and _ties_terms(None, (1.0, None))[
        1
    ].tolist() == [0, 1, 0, 0, 0]
    value, there = _ties_terms((-math.inf, None), (2.0, None))
    assert value.tolist() == [0, 1, 0, 0, 0] and there.tolist() == [
        1,
        1,
        1,
        1,
        0,
    ]  # a missing reward is not won


def test_levels_are_the_triangles():
    matrix = np.arange(9.0).reshape(3, 3)
    levels = _style_levels(matrix)
    assert [float(levels[k]) for k in ("easy", "normal", "hard")] == [
        (3 + 6 + 7) / 3,
        (0 + 4 + 8) / 3,
        (1 + 2 + 5) / 3,
    ]
    assert np.mean(list(levels.values())) == pytest.approx(matrix.mean())


@pytest.mark.parametrize("kind", ROWS)
def test_a_missing_reward_is_counted(kind):
    benchmark = load_benchmark(ROWS[kind])
    perfect = [
        [1.0 if i in row["correct"] else 0.0 for i in range(len(row["responses"]))] for row in benchmark.rows
    ]
    assert score_benchmark(benchmark, perfect, samples=1).total == pytest.approx(
        1
    )  # Ties: no spread, so no margin term
    missing = [[None, *own[1:]] for own in perfect]
    report = score_benchmark(benchmark, missing, samples=1)
    assert report.n_unscored == len(benchmark) and report.n_rows == len(benchmark)
    assert report.total == pytest.approx(
        {"rewardbench": 0, "rewardbench2": 0, "rm-bench": 6 / 9, "llmbar": 0.5}[kind]
    )
    assert (
        "without a reward" in report.verdicts[-1]
        and ("a half." if kind == "llmbar" else "lost.") in report.verdicts[-1]
    )


# --- intervals ------------------------------------------------------------------------------------


def test_one_subset_has_the_bootstrap_of_agreement():
    rng = np.random.default_rng(6)
    rows = [{**PAIR, "prompt": f"question {i % 40}"} for i in range(100)]
    rewards = rng.integers(3, size=(100, 2))
    report = score_benchmark(rows, rewards.tolist(), seed=5)
    won = np.array([float(a > b) for a, b in rewards])
    by_prompt = [won[i::40].sum() for i in range(40)], [len(won[i::40]) for i in range(40)]
    assert report.interval == pytest.approx(Bootstrap(seed=5).interval(np.transpose(by_prompt)), abs=0.012)
    assert (report.subsets[0]["low"], report.subsets[0]["high"]) == pytest.approx(
        wilson_interval(won.sum(), 100)
    )


def test_the_total_varies_as_theory_says():
    "Variance of a weighted mean of independent subsets."
    rng, benchmark = np.random.default_rng(7), load_benchmark(rewardbench_rows())
    rewards = [[1.0, 0.0] if rng.random() < 0.8 else [0.0, 1.0] for _ in benchmark.rows]
    report = score_benchmark(benchmark, rewards, samples=4000)
    fmt, variance = BENCHMARKS["rewardbench"], 0.0
    for s in report.subsets:
        names = fmt.sections[s["section"]]
        weights = {name: fmt.weights.get(name) or n for name, n in names.items()}
        share = weights[s["subset"]] / sum(weights.values()) / 4
        variance += share**2 * s["score"] * (1 - s["score"]) / s["rows"]
    assert report.interval[1] - report.interval[0] == pytest.approx(
        2 * 1.95996 * math.sqrt(variance), rel=0.06
    )
    assert report.interval[0] < report.total < report.interval[1] and not report.notes


def test_intervals_depend_on_the_seed_only():
    benchmark = load_benchmark(rewardbench2_rows(np.random.default_rng(8)))
    rewards = random_rewards(np.random.default_rng(9), benchmark, 4)
    first, again, other = (score_benchmark(benchmark, rewards, seed=s).interval for s in (0, 0, 1))
    assert first == again != other


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("form", ["json", "jsonl", "jsonl.gz", "csv", "csv.gz", "parquet"])
def test_every_file_form_reads_alike(tmp_path, kind, form):
    rows, path = ROWS[kind], tmp_path / f"rows.{form}"
    if form == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif form.startswith("csv"):
        flat = [{k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
        pd.DataFrame(flat).to_csv(path, index=False)
    else:
        text = json.dumps(rows) if form == "json" else "".join(json.dumps(row) + "\n" for row in rows)
        (gzip.open if form.endswith("gz") else open)(path, "wt").write(text)
    benchmark, expected = load_benchmark(path), load_benchmark(rows)
    assert benchmark.kind == kind and load_benchmark(str(path), kind).kind == kind
    same = ("prompt", "responses", "correct") + (() if kind == "llmbar" else ("subset",))
    assert [[row[k] for k in same] for row in benchmark.rows] == [
        [row[k] for k in same] for row in expected.rows
    ]
    assert all(row["origin"].startswith("rows.") for row in benchmark.rows) and benchmark.name == path.name


def test_datasets_frames_and_splits(monkeypatch):
    rows = [PAIR, {**PAIR, "subset": "hep-go"}]
    table = datasets.Dataset.from_list(rows)
    for data in (
        rows,
        table,
        pd.DataFrame(rows),
        datasets.DatasetDict(raw=datasets.Dataset.from_list(rows * 3), filtered=table),
    ):
        assert load_benchmark(data).subsets() == {"math-prm": 1, "hep-go": 1}
    assert (
        len(
            load_benchmark(
                datasets.DatasetDict(raw=datasets.Dataset.from_list(rows * 3), filtered=table), split="raw"
            )
        )
        == 6
    )
    with pytest.raises(PreferenceDataError, match="has the splits 'train', 'test'; choose one with split="):
        load_benchmark(datasets.DatasetDict(train=table, test=table))
    with pytest.raises(PreferenceDataError, match="no split 'dev' among 'raw'"):
        load_benchmark(datasets.DatasetDict(raw=table), split="dev")
    asked = {}
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, **options: (
            asked.update(options, name=name) or datasets.DatasetDict(filtered=table, raw=table)
        ),
    )
    assert (
        len(load_benchmark("allenai/reward-bench", revision="v1")) == 2
        and asked["name"] == "allenai/reward-bench"
        and asked["revision"] == "v1"
    )


def test_prior_sets_and_llmbar_come_as_splits():
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Name a prime."},
    ]
    own = {"prompt": turns, "chosen": "Seven.", "rejected": "Nine.", "subset": "of its own"}
    splits = {
        name: datasets.Dataset.from_list([own])
        for name in ("anthropic_helpful", "anthropic_hhh", "shp", "summarize", "pku_safer")
    }
    benchmark = load_benchmark(datasets.DatasetDict(splits), "rewardbench")
    assert {row["subset"] for row in benchmark.rows} == {
        "anthropic_helpful",
        "anthropic_hhh",
        "shp",
        "summarize",
        "of its own",
    }
    report = score_benchmark(benchmark, [[1, 0], [1, 0], [0, 1], [0, 1], [1, 0]], samples=1)
    assert [(s["section"], s["score"]) for s in report.section_scores] == [
        ("Prior Sets", 0.5),
        ("Other", 1),
    ] and report.total == 0.5
    assert any("of its own; shown, but not part of the total" in note for note in report.notes)
    named = {"Natural": 2, "Adversarial_Neighbor": 1, "Adversarial_GPTInst": 1}
    benchmark = load_benchmark(
        datasets.DatasetDict({name: datasets.Dataset.from_list([LABELLED] * n) for name, n in named.items()})
    )
    assert benchmark.subsets() == {"Natural": 2, "Neighbor": 1, "GPTInst": 1}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


def test_folders_of_the_repositories(tmp_path):
    for place in ("Natural", "Adversarial/Neighbor", "Adversarial/GPTOut"):
        write(tmp_path / "LLMBar" / place / "dataset.json", [LABELLED])
        write(tmp_path / "LLMBar" / place / "evaluators" / "result.json", [{"anything": 1}])
    benchmark = load_benchmark(tmp_path / "LLMBar")
    assert benchmark.subsets() == {"Natural": 1, "Neighbor": 1, "GPTOut": 1}
    assert {row["origin"] for row in benchmark.rows} == {
        f"{p}/dataset.json row 1" for p in ("Natural", "Adversarial/Neighbor", "Adversarial/GPTOut")
    }
    assert load_benchmark(tmp_path / "LLMBar" / "Natural" / "dataset.json").subsets() == {"Natural": 1}
    bare = {k: v for k, v in STYLED.items() if k != "domain"} | {"subset": "alpacaeval"}
    for name in ("chat_filtered", "safety-refuse_filtered", "safety-response_filtered"):
        write(tmp_path / "RM" / f"{name}.json", [bare])
    assert load_benchmark(tmp_path / "RM").subsets() == {"chat": 1, "safety-refuse": 1, "safety-response": 1}
    write(tmp_path / "RM" / "total_dataset.json", [STYLED])
    with pytest.raises(PreferenceDataError, match="holds total_dataset and the files it is made of"):
        load_benchmark(tmp_path / "RM")
    assert load_benchmark(tmp_path / "RM" / "total_dataset.json").subsets() == {"math": 1}
    for name, rows in (("raw-0", [PAIR] * 3), ("filtered-0", [PAIR])):
        (tmp_path / "RB" / "data").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "RB" / "data" / f"{name}.parquet")
    assert len(load_benchmark(tmp_path / "RB")) == 1
    datasets.DatasetDict(filtered=datasets.Dataset.from_list([PAIR])).save_to_disk(tmp_path / "saved")
    assert len(load_benchmark(tmp_path / "saved")) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(PreferenceDataError, match="no data file found"):
        load_benchmark(tmp_path / "empty")


def test_names_of_subsets():
    rows = [{**STYLED, "domain": name} for name in ("chat", "safety", "poetry")]
    benchmark = load_benchmark(rows)
    assert [BENCHMARKS["rm-bench"].section(row["subset"]) for row in benchmark.rows] == [
        "Chat",
        "Safety",
        "Other",
    ]
    assert load_benchmark([{**FOUR, "subset": "precise if"}]).rows[0]["subset"] == "Precise IF"
    only = score_benchmark(
        [{**PAIR, "subset": "mine"}, {**PAIR, "subset": "ours", "prompt": "?"}], [[1, 0], [0, 1]], samples=1
    )
    assert only.total == 0.5 and any("so the total is their mean" in note for note in only.notes)


BAD = [
    (PAIR, {"rejected": None}, "rejected is not text: found null"),
    (PAIR, {"chosen": 3}, "chosen is not text: found int"),
    (
        PAIR,
        {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        "prompt does not end with a user message",
    ),
    (PAIR, {"rejected": ...}, "no column rejected: there are prompt, chosen, subset, id"),
    (PAIR, {"subset": ""}, "no subset"),
    (FOUR, {"chosen": ["a", "b"]}, "chosen has 2 texts: 1 is needed"),
    (FOUR, {"rejected": []}, "rejected is not a list of texts"),
    (FOUR, {"num_correct": 2}, "num_correct is 2: chosen has 1 text"),
    (TIED, {"id": "7"}, "id is '7': a row of Ties is called ref:NUMBER or tied:NUMBER"),
    (STYLED, {"rejected": ["a", "b"]}, "rejected has 2 texts: 3 are needed"),
    (STYLED, {"chosen": ["a", None, "b"]}, "chosen is not a list of texts"),
    (LABELLED, {"label": 3}, "label is 3: it must be 1 or 2"),
    (LABELLED, {"output_2": None}, "output_2 is not text: found null"),
]


@pytest.mark.parametrize("good, change, part", BAD, ids=[part[:28] for *_, part in BAD])
def test_a_bad_row_is_named(good, change, part):
    row = {k: v for k, v in {**good, **change}.items() if v is not ...}
    with pytest.raises(PreferenceDataError) as error:
        load_benchmark([good, row, row])
    assert str(error.value).startswith(f"row 2: {part}") and "\n" not in str(error.value)
    assert "correct the row" in str(error.value) and "1 more row cannot be read" in str(error.value)


def test_the_line_of_a_file_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in (PAIR, PAIR, {**PAIR, "chosen": None}))
    )
    with pytest.raises(
        PreferenceDataError, match="^rows.jsonl:3: chosen is not text: found null; every row counts"
    ):
        load_benchmark(tmp_path / "rows.jsonl")


def test_other_errors_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "broken.jsonl").write_text(json.dumps(PAIR) + "\n{oops\n")
    (tmp_path / "empty.jsonl").write_text("")

    def offline(name, **options):
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    cases = [
        (tmp_path / "broken.jsonl", "broken.jsonl:2: malformed JSON"),
        (tmp_path / "empty.jsonl", "empty, there are no rows"),
        ([], "empty, there are no rows"),
        (tmp_path / "none.jsonl", "no such file or folder"),
        ("somebody/something", r"not readable from the Hugging Face hub \(ConnectionError: no network\)"),
        ([PAIR, 3], "row 2: row is not a dict: found int"),
        (3, "data has the type int"),
        ([{"a": 1}], "columns a are of no known benchmark"),
        ([TIED, TIED], "the subset Ties has 1 id more than once, the first is 'tied:0'"),
    ]
    for data, part in cases:
        with pytest.raises(PreferenceDataError, match=part) as error:
            load_benchmark(data)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="choose one of rewardbench, rewardbench2, rm-bench, llmbar"):
        load_benchmark([PAIR], "mteb")
    with pytest.raises(PreferenceDataError, match="row 1: no column input"):
        load_benchmark([PAIR], "llmbar")


def test_kinds_are_told_apart():
    assert [_benchmark_kind(rows[0]) for rows in ROWS.values()] == list(ROWS)
    assert (
        _benchmark_kind({**FOUR, "chosen": list("abc"), "rejected": list("def")}) == "rewardbench2"
    )  # num_correct says so
    assert _benchmark_kind({k: v for k, v in STYLED.items() if k != "domain"}) == "rm-bench"
    assert _benchmark_kind({**PAIR, "chosen": '["a"]'}) == "rewardbench"  # a text that looks like a list


@pytest.mark.parametrize(
    "rewards, part",
    [
        ([[1, 0]], "got rewards for 1 row; the benchmark has 2 rows with 4 responses"),
        ([[1, 0], [1]], r"row 2: got the rewards \[1.0\]; needed are 2 finite numbers"),
        ([[1, 0], [1, math.inf]], "row 2: got the rewards"),
        ([1, 0, 1], "got rewards for 3 rows"),
    ],
)
def test_bad_rewards(rewards, part):
    with pytest.raises(ValueError, match=part):
        score_benchmark([PAIR, {**PAIR, "prompt": "?"}], rewards)


def test_flat_and_nested_rewards_are_the_same():
    benchmark = load_benchmark(rewardbench2_rows(np.random.default_rng(1), 3, 3))
    prompts, responses = benchmark.texts()
    flat = np.random.default_rng(2).normal(size=len(responses))
    ends = np.cumsum([0, *(len(row["responses"]) for row in benchmark.rows)])
    nested = [flat[a:b] for a, b in itertools.pairwise(ends)]
    assert (
        score_benchmark(benchmark, flat).to_dict()
        == score_benchmark(benchmark, nested).to_dict()
        == score_benchmark(benchmark, flat.tolist()).to_dict()
    )
    assert prompts[:4] == [benchmark.rows[0]["prompt"]] * 4
    with pytest.raises(ValueError, match="samples=0 must be at least 1"):
        score_benchmark(benchmark, flat, samples=0)


# --- models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "The same untrained model, told that it was trained on text, on conversations, or not told."
    made = {}
    for kind in ("text", "messages", None):
        folder = tmp_path_factory.mktemp(str(kind)) / f"of_{kind}"
        torch.manual_seed(0)
        model, tokenizer = load_reward_backbone("playground", new_head=True)
        with torch.no_grad():
            model.score.weight.normal_()
        encoding = prepare_tokenizer(tokenizer, model, max_length=64)
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        RewardMetadata(encoding=encoding, data_kind=kind).save(folder)
        made[kind] = RewardModel.from_pretrained(folder, device="cpu")
    return made


def test_text_is_read_as_in_training(models):
    benchmark = load_benchmark(
        [{**PAIR, "prompt": p} for p in ("Name a prime.", "What does a drummer play?")]
    )
    prompts, responses = benchmark.texts()
    plain = models["text"].score(prompts, responses)
    chat = models["messages"].score(
        [[{"role": "user", "content": p}] for p in prompts],
        [[{"role": "assistant", "content": r}] for r in responses],
    )
    assert plain != pytest.approx(chat)
    for kind, expected in (("text", plain), ("messages", chat), (None, chat)):
        seen = []
        scorer = models[kind]
        original = scorer.score
        scorer.score = lambda *args, original=original, seen=seen, **options: (
            seen.append(original(*args, **options)) or seen[-1]
        )
        try:
            report = run_benchmark(scorer, benchmark, samples=1)
        finally:
            del scorer.score
        assert seen == [pytest.approx(expected, abs=1e-5)]  # all responses in one call
        assert (
            report.to_dict()["subsets"]
            == score_benchmark(benchmark, expected, samples=1).to_dict()["subsets"]
        )
        assert ("chat template" in report.read_as) == (kind != "text") and report.model == f"of_{kind}"


def test_turns_of_a_prompt(models):
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Name a prime."},
    ]
    one = load_benchmark([{**PAIR, "prompt": turns[2:]}])
    assert (
        run_benchmark(models["text"], one, samples=1).total
        == run_benchmark(models["text"], [PAIR], samples=1).total
    )
    several = load_benchmark([{**PAIR, "prompt": turns}])
    rewards = models["messages"].score(
        [turns] * 2, [[{"role": "assistant", "content": r}] for r in ("Seven.", "Nine.")]
    )
    assert run_benchmark(models["messages"], several, samples=1).total == float(rewards[0] > rewards[1])
    assert run_benchmark(models["text"], several, samples=1).n_unscored == 0
    got = []
    run_benchmark(lambda prompts, responses: got.extend(prompts) or [1.0, 0.0], several, samples=1)
    assert got == [turns, turns]


def test_too_long_responses_stay_in_the_denominator(models):
    long = "word " * 200
    rows = [PAIR, {**PAIR, "prompt": "?", "chosen": long}, {**PAIR, "prompt": "!", "rejected": long}]
    report = run_benchmark(models["text"], rows, samples=1)
    first = models["text"].score("Name a prime.", ["Seven.", "Nine."])
    assert report.n_unscored == 2 and report.subsets[0]["rows"] == 3
    assert report.total == pytest.approx(
        (first[0] > first[1]) / 3
    ) and report.total_ties_half == pytest.approx(((first[0] > first[1]) + 1) / 3)
    assert any(v.startswith("2 of 3 rows have a response without a reward") for v in report.verdicts)


def test_ensembles(models):
    same = RewardEnsemble([models["text"], models["text"]], normalize_members=False)
    assert (
        _reads_conversations(same) is False
        and _reads_conversations(models["messages"]) is True
        and _reads_conversations(len) is None
    )
    assert (
        run_benchmark(same, [PAIR], samples=1).total == run_benchmark(models["text"], [PAIR], samples=1).total
    )
    with pytest.raises(
        ValueError, match="members read different text: of_messages conversations, of_text plain text"
    ):
        run_benchmark(RewardEnsemble([models["text"], models["messages"]], normalize_members=False), [PAIR])


def test_other_scorers():
    class Judge:
        def score(self, prompts, responses):
            return [len(r) for r in responses]

    assert run_benchmark(Judge(), [PAIR], samples=1, name="J").model == "J"
    with pytest.raises(ValueError, match="the scorer returned 1 reward for 2 responses"):
        run_benchmark(lambda prompts, responses: [0.0], [PAIR])
    with pytest.raises(ValueError, match=r"row 1: got the rewards \[nan, 0.0\]"):
        run_benchmark(lambda prompts, responses: [math.nan, 0.0], [PAIR])
    with pytest.raises(TypeError, match="cannot score with int"):
        run_benchmark(3, [PAIR])


# --- the report -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ROWS)
def test_the_report_shows_itself(kind):
    report = score_benchmark(
        ROWS[kind],
        random_rewards(np.random.default_rng(0), load_benchmark(ROWS[kind]), None),
        model="<m>|x",
        samples=50,
    )
    again = BenchmarkReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again.to_dict() == report.to_dict() and again.to_markdown() == report.to_markdown()
    page, text = report._repr_html_(), str(report)
    assert "&lt;m&gt;" in page and "<m>" not in page and text.startswith(f"{BENCHMARKS[kind].title}: <m>|x")
    assert all(s["subset"] in text and s["subset"] in report.to_markdown() for s in report.subsets)
    assert ("markdown" in text) == (kind == "rm-bench") == (report.matrix is not None) and (
        report.ties is not None
    ) == (kind == "rewardbench2")
    assert list(report.figures()) == ["benchmark"] + ["styles"] * (kind == "rm-bench")
    axes = report.plot().axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        *(s["section"] for s in report.section_scores),
        "total",
    ]
    points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() in ("o", "s")]
    assert points == pytest.approx([*(100 * s["score"] for s in report.section_scores), 100 * report.total])


def test_files_keep_their_names(tmp_path):
    report = score_benchmark([PAIR], [[1, 0]], samples=1)
    assert sorted(p.name for p in report.save(tmp_path / "report").iterdir()) == [
        "benchmark.json",
        "benchmark.md",
        "benchmark.png",
    ]
    stored = json.loads((tmp_path / "report" / "benchmark.json").read_text())
    assert (
        stored["sections"] == report.section_scores
        and BenchmarkReport.from_dict(stored).to_dict() == report.to_dict()
    )


def test_verdicts_name_style_and_guessing():
    benchmark = load_benchmark(
        rmbench_rows({"chat": 40, "math": 40, "code": 40, "safety-refuse": 20, "safety-response": 20})
    )
    rng = np.random.default_rng(0)
    swayed = [[1 + 0.1 * rng.normal(), 2, 3, 0.5, 1.5, 2.5] for _ in benchmark.rows]  # style before content
    report = score_benchmark(benchmark, swayed)
    assert any(
        v.startswith("Style sways it: 100.0% where the right answer has the richer style, 100.0%")
        for v in report.verdicts
    )
    assert report.levels[2]["score"] == 0
    guess = score_benchmark(benchmark, random_rewards(rng, benchmark, None))
    assert any(
        v.startswith("Not shown to be better than guessing in 5 of 5 subsets: chat, math, code")
        for v in guess.verdicts
    )
    perfect = score_benchmark(benchmark, [[1, 1, 1, 0, 0, 0]] * len(benchmark))
    assert len(perfect.verdicts) == 1 and "all rows alike" in perfect.verdicts[0]


def test_the_published_size_is_told():
    assert load_benchmark(rewardbench_rows()).notes == []
    notes = load_benchmark(rewardbench_rows(per_subset=2)).notes
    assert len(notes) == 1 and "23 of 23 subsets of another size (alpacaeval-easy 2 rows for 100" in notes[0]
    assert "22 of 23 subsets absent" in load_benchmark([PAIR]).notes[0]
    assert "2,985 rows, 5,970 responses" in repr(load_benchmark(rewardbench_rows()))


if __name__ == "__main__":
    GOLDEN.write_text(
        json.dumps(
            {
                name: golden_of(read_authors(), name, benchmark, rewards)
                for name, benchmark, rewards in golden_cases()
            },
            indent=1,
        )
        + "\n"
    )
