"A model is not praised on prompts that it was trained on, whatever asks it."

import json
import shutil

import numpy as np
import pytest
from datasets import Dataset

from reward_kit import (
    Playground,
    RewardConfig,
    RewardEnsemble,
    RewardModel,
    RewardTrainer,
    average_reward_models,
    compare_runs,
    evaluate_reward_model,
    load_preferences,
    save_preferences,
)
from reward_kit.model.model_folder import RewardMetadata
from reward_kit.tools.commands import commands
from reward_kit.tools.pipeline import train_reward_model
from reward_kit.trust.calibration import store_calibration

CONFIG = {"max_steps": 2, "show_plan": False, "use_cpu": True}
QUIET = {"progress": False, "say": lambda line: None}
WORLD = Playground(seed=0)


def rows(start, stop):
    preferences = WORLD.preferences(stop)
    return load_preferences([preferences[i] for i in range(start, stop)], progress=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Trained on 90 of 100 pairs, and on other 90."
    folder = tmp_path_factory.mktemp("trained")
    for name, data in (("a", rows(0, 100)), ("b", rows(400, 500))):
        train_reward_model("playground", data, folder / name, config=CONFIG, **QUIET)
    return folder


def test_the_folder_knows_what_it_was_trained_on_and_keeps_what_was_held_out(trained):
    held_out = load_preferences(trained / "a.held_out.jsonl", progress=False)
    keys = np.frombuffer((trained / "a" / "trained_prompts.u64").read_bytes(), np.uint64)
    whole = rows(0, 100)
    assert set(keys) | set(held_out.prompt_keys) == set(whole.prompt_keys)
    assert not set(keys) & set(held_out.prompt_keys) and len(held_out) + len(keys) <= 100
    assert RewardMetadata.load(trained / "a").trained_prompts == keys.tobytes()
    assert "trained_prompts" not in json.loads((trained / "a" / "reward_kit.json").read_text())


def test_prompts_of_the_training_are_left_out_of_an_evaluation(trained):
    report = evaluate_reward_model(trained / "a", rows(0, 200), probe_prompts=0)
    new = ~np.isin(
        rows(0, 200).prompt_keys, np.frombuffer(RewardMetadata.load(trained / "a").trained_prompts, np.uint64)
    )
    assert report.n_records == new.sum() < 200
    assert (
        report.summary[0]
        == f"{200 - new.sum()} of 200 records have prompts that were trained on, and are left out."
    )
    every = evaluate_reward_model(trained / "a", rows(0, 200), probe_prompts=0, include_trained=True)
    assert every.n_records == 200 and "not what to expect on new ones" in every.summary[0]
    strangers = evaluate_reward_model(Playground.true_reward, rows(0, 200), probe_prompts=0)
    assert strangers.n_records == 200 and "trained on" not in strangers.summary[0]


def test_data_of_nothing_but_trained_prompts_is_refused(trained):
    model = RewardModel.from_pretrained(trained / "a", device="cpu")
    keys = np.frombuffer(model.metadata.trained_prompts, np.uint64)
    whole = rows(0, 100)
    seen = whole.select(np.flatnonzero(np.isin(whole.prompt_keys, keys)))
    for judge in (evaluate_reward_model, store_calibration):
        with pytest.raises(
            ValueError, match="have prompts that were trained on: give data with other prompts"
        ):
            judge(model, seen)
    ensemble = RewardEnsemble.from_pretrained([trained / "a", trained / "b"])
    with pytest.raises(ValueError, match="trained on"):
        evaluate_reward_model(ensemble, seen, probe_prompts=0)


def test_runs_are_compared_on_prompts_that_are_new_to_all(trained):
    data = load_preferences([*rows(0, 100), *rows(400, 500), *rows(700, 760)], progress=False)
    comparison = compare_runs([trained / "a", trained / "b"], data)
    known = b"".join(RewardMetadata.load(trained / name).trained_prompts for name in "ab")
    new = ~np.isin(data.prompt_keys, np.frombuffer(known, np.uint64))
    assert comparison.n_pairs == new.sum() and comparison.verdicts[0].startswith(
        f"{(~new).sum()} of {len(data)} pairs"
    )
    assert compare_runs([trained / "a", trained / "b"], data, include_trained=True).n_pairs == len(data)


def test_a_temperature_is_fitted_on_new_prompts(trained):
    model = RewardModel.from_pretrained(trained / "a", device="cpu")
    kept = store_calibration(model, rows(0, 200)).metadata.calibration
    assert kept["n_pairs"] < 200 and "are left out" in kept["trained"][0]
    assert f"{kept['n_pairs']} pairs of {kept['n_prompts']} prompts" in model.measured_on
    assert store_calibration(model, rows(0, 200), include_trained=True).metadata.calibration["n_pairs"] == 200


def test_commands_speak_of_trained_prompts(trained, tmp_path, capsys):
    save_preferences(rows(0, 200), tmp_path / "data.jsonl")
    words = [str(trained / "a"), str(tmp_path / "data.jsonl"), "--probe-prompts", "0"]
    for extra, said in (([], "are left out"), (["--include-trained"], "not what to expect")):
        commands()["evaluate"].read(words + extra).run()
        assert said in capsys.readouterr().out.split("\n\n")[0]


def test_split_writes_two_files_that_share_no_prompt(tmp_path, capsys):
    save_preferences(rows(0, 100), tmp_path / "data.jsonl")
    words = [str(tmp_path / "data.jsonl"), "--output", str(tmp_path / "parts"), "--eval-fraction", "0.2"]
    commands()["split"].read(words).run()
    train, held_out = (
        load_preferences(tmp_path / "parts" / f"{name}.jsonl") for name in ("train", "held_out")
    )
    assert len(train) + len(held_out) == 100 and not set(train.prompt_keys) & set(held_out.prompt_keys)
    assert f"{len(train)} preferences in {tmp_path / 'parts' / 'train.jsonl'}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="train.jsonl exists: give another --output"):
        commands()["split"].read(words).run()


def test_a_second_training_leaves_out_what_judged_the_first(trained, tmp_path):
    held_out = trained / "a.held_out.jsonl"
    said = []
    found = train_reward_model(
        "playground", rows(0, 100), tmp_path / "second", eval_data=held_out, without_eval_prompts=True,
        config=CONFIG, progress=False, say=said.append)  # fmt: skip
    kept = np.frombuffer((tmp_path / "second" / "trained_prompts.u64").read_bytes(), np.uint64)
    assert not set(kept) & set(found.held_out.prompt_keys)
    assert any("with a prompt of the evaluation data left out" in line for line in said)
    assert found.data_report.rows_read == 100 and not any("Warning" in line for line in said)


def test_a_report_that_leaves_much_out_says_so_first():
    few = [{"prompt": f"What is {n}?", "chosen": "A number.", "rejected": "No."} for n in range(40)]
    data = few + [{"prompt": "?", "chosen": None, "rejected": "No."}] * 4
    report = evaluate_reward_model(lambda p, r: [float(len(x)) for x in r], data, probe_prompts=0)
    assert report.summary[0].startswith(
        "Much is not judged: 0 of 40 records do not fit the model, and 4 of 44 rows"
    )
    fewer = evaluate_reward_model(lambda p, r: [float(len(x)) for x in r], few, probe_prompts=0)
    assert "not judged" not in " ".join(fewer.summary)


def test_ratings_of_trained_prompts_are_left_out_and_said(trained):
    model = RewardModel.from_pretrained(trained / "a", device="cpu")
    model.metadata.trained_prompts = load_preferences(ratings(30), progress=False).prompt_keys.tobytes()
    report = evaluate_reward_model(model, ratings(60))
    assert report.verdicts[0] == "30 of 60 records have prompts that were trained on, and are left out."
    assert (
        report.n_responses == 30
        and "trained on" not in evaluate_reward_model(len_of, ratings(60)).verdicts[0]
    )


def ratings(n):
    return [
        {"prompt": f"What is {i}?", "response": "A number. " * (1 + i % 7), "score": i % 5} for i in range(n)
    ]


def len_of(prompts, responses):
    return [float(len(response)) for response in responses]


def keys_of(folder):
    return set(np.fromfile(folder / "trained_prompts.u64", np.uint64).tolist())


@pytest.fixture(scope="module")
def second(trained):
    "Trained further from the first, on other pairs."
    said = []
    train_reward_model(
        trained / "a", rows(200, 260), trained / "second", config=CONFIG | {"show_plan": True},
        progress=False, say=said.append)  # fmt: skip
    return trained / "second"


def test_prompts_of_the_base_count_as_trained_on(trained, second):
    own = set(rows(200, 260).prompt_keys.tolist())
    assert keys_of(trained / "a") < keys_of(second) <= keys_of(trained / "a") | own
    assert f"{len(keys_of(trained / 'a')):,} that the base was trained on count" in (
        second / "README.md"
    ).read_text(encoding="utf-8")
    assert "trained on count" not in (trained / "a" / "README.md").read_text(encoding="utf-8")
    data = rows(0, 100)
    seen = np.isin(data.prompt_keys, [*keys_of(trained / "a")]).sum()
    report = evaluate_reward_model(second, data, probe_prompts=0)
    assert report.n_records == 100 - seen and f"{seen} of 100 records" in report.summary[0]


@pytest.mark.parametrize("how", ["object", "lora", "stream", "ids"])
def test_prompts_are_inherited_however_the_base_is_given(trained, tmp_path, how, capsys):
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification

    base, data = trained / "a", rows(200, 210)
    given = {"model": str(base), "train_dataset": data}
    if how == "object":
        given["model"] = AutoModelForSequenceClassification.from_pretrained(base)
    if how == "lora":
        given["peft_config"] = LoraConfig(r=2)
    if how == "stream":
        given["train_dataset"] = data.to_pairs().to_iterable_dataset()
    if how == "ids":
        given["train_dataset"] = Dataset.from_list([{"chosen_ids": [5, 6, 7], "rejected_ids": [5, 8]}] * 2)
    trainer = RewardTrainer(args=RewardConfig(str(tmp_path / "run"), max_steps=1, use_cpu=True), **given)
    trainer.train()
    assert "count as trained on" in capsys.readouterr().out
    trainer.save_model(tmp_path / "model")
    assert keys_of(base) <= keys_of(tmp_path / "model")


def test_averages_and_ensembles_know_what_the_bases_of_their_members_were_trained_on(
    trained, second, tmp_path
):
    train_reward_model(trained / "a", rows(300, 330), trained / "third", config=CONFIG, **QUIET)
    average = average_reward_models([second, trained / "third"], tmp_path / "average")
    assert keys_of(average) == keys_of(second) | keys_of(trained / "third")
    ensemble = RewardEnsemble.from_pretrained([second, trained / "third"])
    for judge in (average, ensemble):
        report = evaluate_reward_model(judge, rows(0, 100), probe_prompts=0)
        assert report.n_records == (~np.isin(rows(0, 100).prompt_keys, [*keys_of(trained / "a")])).sum()


def test_a_pipeline_that_trains_further_says_what_its_base_had_seen(trained, tmp_path):
    found = train_reward_model(
        trained / "a", rows(0, 100), tmp_path / "again", config=CONFIG | {"seed": 3}, **QUIET)  # fmt: skip
    seen = np.isin(found.held_out.prompt_keys, [*keys_of(trained / "a")]).sum()
    assert seen and f"{seen} of {len(found.held_out)} records have prompts that were trained on" in str(
        found.evaluation
    )


def test_torn_prompts_are_named_with_their_file(trained, tmp_path):
    shutil.copytree(trained / "a", tmp_path / "torn")
    (tmp_path / "torn" / "trained_prompts.u64").write_bytes(b"12345")
    for ask in (
        lambda: evaluate_reward_model(tmp_path / "torn", rows(0, 10), probe_prompts=0),
        lambda: RewardTrainer(
            str(tmp_path / "torn"), RewardConfig(str(tmp_path / "run")), train_dataset=rows(0, 10)
        ),
    ):
        with pytest.raises(ValueError, match=r"torn.trained_prompts.u64 cannot be used: "):
            ask()


def test_records_as_a_data_set_are_remembered_as_trained_on(tmp_path):
    preferences = Playground(seed=3).preferences(24)
    args = RewardConfig(str(tmp_path / "m"), max_steps=1, use_cpu=True, report_to="none", show_plan=False)
    trainer = RewardTrainer("playground", args, train_dataset=preferences.dataset)
    assert set(trainer.data.prompts) == set(preferences.prompt_keys)


@pytest.mark.parametrize(
    "more",
    [{"scores": [1.0, 5.0]}, {"ratings": [1.0, 5.0]}, {"chosen": "good", "rejected": "bad"}],
)
def test_a_data_set_with_a_column_responses_is_read(tmp_path, more):
    "It trained the first response as the better one, whatever stood beside."
    rows = [{"prompt": f"Q {i}?", "responses": ["bad", "good"]} | more for i in range(8)]
    args = RewardConfig(str(tmp_path / "m"), max_steps=1, use_cpu=True, report_to="none", show_plan=False)
    for data in (Dataset.from_list(rows), Dataset.from_list(rows).to_iterable_dataset()):
        trainer = RewardTrainer("playground", args, train_dataset=data)
        row = next(iter(trainer.train_dataset))
        best = row["sequences"][list(row["ranks"]).index(min(row["ranks"]))]
        assert "good" in trainer.processing_class.decode(best)
