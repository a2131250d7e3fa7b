"""The trainer: everything TRL's accepts, means and metrics that are exact, LoRA, memory, and a folder
that scores the same."""

import copy
import importlib
import json
import math
import sys
import types
from functools import partial

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from trainer_world import make_base, make_dataset, make_pairs, make_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EarlyStoppingCallback,
)
from trl.trainer.reward_trainer import DataCollatorForPreference

import reward_kit.model.model_folder as model_folder_module
import reward_kit.model.runs as runs_module
from reward_kit.model.loss import bradley_terry_loss
from reward_kit.model.measures import Sums
from reward_kit.model.model_folder import RewardMetadata
from reward_kit.model.runs import CheckpointError, _read_marker
from reward_kit.model.trainer import RewardConfig, RewardTrainer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def config(tmp_path):
    def build(**settings):
        settings = {
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "disable_tqdm": True,
            "show_plan": False,
            "logging_steps": 1,
            "save_strategy": "no",
            **settings,
        }
        return RewardConfig(str(tmp_path / "out"), **settings)

    return build


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def same(a, b, **tolerance):
    return a.keys() == b.keys() and all(
        torch.allclose(a[k], b[k], **tolerance) if tolerance else torch.equal(a[k], b[k]) for k in a
    )


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


CONVERSATION = [
    {"chosen": [user(p["prompt"]), said(p["chosen"])], "rejected": [user(p["prompt"]), said(p["rejected"])]}
    for p in make_pairs(12)
]
FORMATS = {
    "prompt": make_pairs(12),
    "no prompt": [
        {"chosen": p["prompt"] + " " + p["chosen"], "rejected": p["prompt"] + " " + p["rejected"]}
        for p in make_pairs(12)
    ],
    "margin": [{**p, "margin": 0.5} for p in make_pairs(12)],
    "implicit conversation": CONVERSATION,
    "conversation": [
        {"prompt": r["chosen"][:1], "chosen": r["chosen"][1:], "rejected": r["rejected"][1:]}
        for r in CONVERSATION
    ],
    "tools": [
        {
            **r,
            "tools": json.dumps(
                [{"type": "function", "function": {"name": "look", "description": "looks", "parameters": {}}}]
            ),
        }
        for r in CONVERSATION
    ],
    "template arguments": [{**r, "chat_template_kwargs": {"enable_thinking": False}} for r in CONVERSATION],
    "token ids": [{"chosen_ids": [5, 6, 7 + i, 2], "rejected_ids": [5, 6, 2]} for i in range(12)],
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_of_trl_trains(base, config, kind):
    data = Dataset.from_list(FORMATS[kind])
    trainer = RewardTrainer(base, config(), train_dataset=data, eval_dataset=data)
    before = weights(trainer)
    trainer.train()
    assert not any(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1


def test_a_stream_trains_and_evaluates(base, config):
    stream = IterableDataset.from_generator(lambda: iter(make_pairs(12)))
    trainer = RewardTrainer(
        base,
        config(show_plan=True),
        train_dataset=stream,
        eval_dataset=IterableDataset.from_generator(lambda: iter(make_pairs(6, 1))),
    )
    trainer.train()
    metrics = trainer.evaluate()
    whole = RewardTrainer(
        trainer.model,
        config(),
        train_dataset=make_dataset(4),
        eval_dataset=make_dataset(6, 1),
        processing_class=trainer.processing_class,
    )
    assert metrics["eval_accuracy"] == whole.evaluate()["eval_accuracy"]
    assert metrics["eval_loss"] == pytest.approx(whole.evaluate()["eval_loss"], abs=1e-6)


def test_several_evaluation_sets_keep_their_names(base, config):
    sets = {"near": make_dataset(6, 1), "far": make_dataset(5, 2)}
    trainer = RewardTrainer(
        base,
        config(
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_far_accuracy",
        ),
        train_dataset=make_dataset(8),
        eval_dataset=sets,
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert {
        "eval_near_accuracy",
        "eval_far_accuracy",
        "eval_far_margin",
    } <= metrics.keys() and "eval_accuracy" not in metrics
    assert trainer.state.best_metric is not None


def test_compute_metrics_gets_rewards_and_ranks(base, config):
    seen = {}

    def metric(prediction):
        seen["rewards"], seen["ranks"] = prediction.predictions, prediction.label_ids
        return {"first_wins": float((prediction.predictions[:, 0] > prediction.predictions[:, 1]).mean())}

    rankings = [
        {
            "prompt": f"say {i}",
            "responses": ["thank you", "sorry", "no"][: 2 + i % 2],
            "ranks": [1, 2, 3][: 2 + i % 2],
        }
        for i in range(7)
    ]
    trainer = RewardTrainer(
        base,
        config(loss_type="plackett_luce"),
        train_dataset=make_dataset(8),
        eval_dataset=rankings,
        compute_metrics=metric,
    )
    metrics = trainer.evaluate()
    assert metrics["eval_first_wins"] == pytest.approx((seen["rewards"][:, 0] > seen["rewards"][:, 1]).mean())
    assert seen["rewards"].shape == seen["ranks"].shape == (7, 3)
    assert [row.tolist() for row in seen["ranks"][:2]] == [[1, 2, -100], [1, 2, 3]] and seen["rewards"][
        0, 2
    ] == -100


def test_predictions_are_in_order_and_match_the_plain_forward(base, config):
    trainer = RewardTrainer(base, config(), train_dataset=make_dataset(8))
    pairs = make_pairs(9, 3)
    predictions = trainer.predict(Dataset.from_list(pairs)).predictions
    for pair, row in zip(pairs, predictions):
        inputs = trainer.processing_class(pair["prompt"] + " " + pair["chosen"], return_tensors="pt")
        with torch.no_grad():
            assert trainer.model(**inputs).logits.item() == pytest.approx(float(row[0]), abs=1e-5)


def test_a_collator_in_trl_layout_gives_the_same_loss(base, config):
    ours = RewardTrainer(base, config(), train_dataset=make_dataset(8), eval_dataset=make_dataset(8, 1))
    theirs = RewardTrainer(
        base,
        config(),
        train_dataset=make_dataset(8),
        eval_dataset=make_dataset(8, 1),
        data_collator=DataCollatorForPreference(ours.processing_class.pad_token_id),
    )
    assert theirs.evaluate()["eval_loss"] == pytest.approx(ours.evaluate()["eval_loss"], abs=1e-6)
    theirs.train()


def test_new_data_is_evaluated_like_the_own_set(base, config):
    trainer = RewardTrainer(base, config(), train_dataset=make_dataset(4), eval_dataset=make_dataset(6, 1))
    own, new = trainer.evaluate(), trainer.evaluate(make_dataset(6, 1))
    assert (
        new["eval_loss"] == own["eval_loss"]
        and trainer.evaluate({"x": make_pairs(6, 1)})["eval_x_loss"] == own["eval_loss"]
    )


@pytest.mark.parametrize("adapter", [False, True])
def test_bf16_trains_scores_in_float32_and_saves_float32(base, config, tmp_path, adapter):
    trainer = trained(
        base,
        config(bf16=True, use_cpu=True),
        make_dataset(16),
        eval_dataset=make_dataset(6, 1),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]) if adapter else None,
    )
    assert trainer.predict(make_dataset(6, 1)).predictions.dtype == "float32"
    trainer.save_model(str(tmp_path / "final"))
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "final").dtype == torch.float32
    if adapter:
        assert RewardMetadata.load(tmp_path / "final").extra["merge"]["max_score_difference"] < 1e-5


def test_the_command_line_parser_of_transformers_reads_the_config(tmp_path):
    from transformers import HfArgumentParser

    (args,) = HfArgumentParser(RewardConfig).parse_args_into_dataclasses(
        [
            "--output_dir",
            str(tmp_path),
            "--loss_type",
            "plackett_luce",
            "--loss_kwargs",
            "{}",
            "--learning_rate",
            "2e-5",
        ]
    )
    assert (args.loss_type, args.loss_kwargs, args.learning_rate) == ("plackett_luce", {}, 2e-5)


# ---- exact means


def uneven(n, seed=0):
    "Rankings of 2 to 4 responses, some tied, with weights."
    rows = []
    for i, pair in enumerate(make_pairs(n, seed)):
        responses = [pair["chosen"], pair["rejected"], "on a mat", "no rain fell at all"][: 2 + i % 3]
        ranks = [1, 1, 2, 3][: len(responses)] if i % 4 == 3 else list(range(1, len(responses) + 1))
        rows.append(
            {"prompt": pair["prompt"], "responses": responses, "ranks": ranks, "weight": 0.25 * (1 + i % 5)}
        )
    return rows


@pytest.mark.parametrize("loss_type", ["bradley_terry", "plackett_luce", "davidson"])
def test_accumulation_equals_a_larger_batch(base, config, loss_type):
    results = []
    for settings in (
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    ):
        trainer = RewardTrainer(
            base,
            config(
                max_steps=3,
                optim="sgd",
                learning_rate=0.1,
                max_grad_norm=0,
                loss_type=loss_type,
                center_rewards_coefficient=0.05,
                **settings,
            ),
            train_dataset=uneven(24),
        )
        trainer.train()
        results.append(
            (weights(trainer), [log["loss"] for log in trainer.state.log_history if "loss" in log])
        )
    assert same(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)


def test_evaluation_does_not_depend_on_the_batch_size(base, config):
    totals = []
    for size in (1, 3, 16):
        trainer = RewardTrainer(
            base,
            config(per_device_eval_batch_size=size),
            train_dataset=make_dataset(4),
            eval_dataset=uneven(13),
        )
        totals.append(
            {
                k: v
                for k, v in trainer.evaluate().items()
                if k in ("eval_loss", "eval_accuracy", "eval_margin", "eval_mean_reward")
            }
        )
    assert totals[1] == pytest.approx(totals[0], abs=1e-6) and totals[2] == pytest.approx(totals[0], abs=1e-6)


def test_evaluation_counts_by_hand(base, config):
    trainer = RewardTrainer(
        base,
        config(per_device_eval_batch_size=2),
        train_dataset=make_dataset(4),
        eval_dataset=make_dataset(5, 1),
    )
    rewards = torch.tensor(trainer.predict(make_dataset(5, 1)).predictions).double()
    chosen, rejected = rewards.T
    metrics = trainer.evaluate()
    assert (
        metrics["eval_accuracy"]
        == ((chosen > rejected).double() + (chosen == rejected).double() / 2).mean().item()
    )
    assert metrics["eval_loss"] == pytest.approx(
        torch.log1p(torch.exp(rejected - chosen)).mean().item(), abs=1e-6
    )
    assert metrics["eval_margin"] == pytest.approx((chosen - rejected).mean().item(), abs=1e-6)
    assert metrics["eval_std_reward"] == pytest.approx(rewards.std(unbiased=False).item(), abs=1e-6)


def test_equal_rewards_count_one_half(base, config):
    trainer = RewardTrainer(base, config(), train_dataset=make_dataset(4), eval_dataset=make_dataset(6, 1))
    torch.nn.init.zeros_(trainer.model.score.weight)
    assert trainer.evaluate()["eval_accuracy"] == 0.5


def test_training_metrics_are_pooled_over_the_steps_between_logs(base, config):
    kinds = ("accuracy", "margin", "mean_reward", "min_reward", "max_reward")
    each, all_at_once = (
        [{k: log[k] for k in kinds} for log in run.state.log_history if "loss" in log]
        for run in (
            trained(base, config(max_steps=4, logging_steps=1, learning_rate=1e-9), make_dataset(16)),
            trained(base, config(max_steps=4, logging_steps=4, learning_rate=1e-9), make_dataset(16)),
        )
    )
    assert all_at_once[0]["accuracy"] == pytest.approx(sum(log["accuracy"] for log in each) / 4)
    assert all_at_once[0]["min_reward"] == pytest.approx(min(log["min_reward"] for log in each), abs=1e-6)


def trained(base, args, data, **kwargs):
    trainer = RewardTrainer(base, args, train_dataset=data, **kwargs)
    trainer.train()
    return trainer


def test_regression_reads_scores(base, config):
    rows = [
        {"prompt": p["prompt"], "responses": [p["chosen"], p["rejected"]], "scores": [1.0, -1.0]}
        for p in make_pairs(16)
    ]
    trainer = trained(
        base, config(loss_type="regression", max_steps=60, learning_rate=3e-3), rows, eval_dataset=rows
    )
    assert trainer.evaluate()["eval_loss"] < 0.1


def test_single_scores_in_a_data_set_are_regressed_on(base, config):
    scored = [
        {"prompt": p["prompt"], "responses": [p[side]], "scores": [score]}
        for n, p in enumerate(make_pairs(16))
        for side, score in [(("chosen", 1.0), ("rejected", -1.0))[n % 2]]
    ]
    args = config(loss_type="regression", max_steps=60, learning_rate=3e-3)
    data = Dataset.from_list(scored)
    trainer = trained(base, args, data, eval_dataset=data)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] < 0.1 and "eval_accuracy" not in metrics
    with pytest.raises(ValueError, match="one scored response a prompt is for regression"):
        trained(base, config(), data)


@pytest.mark.parametrize("kind", ["list", "data set", "stream"])
def test_one_score_a_row_is_regressed_on_wherever_it_lies(base, config, kind):
    rows = [
        {"prompt": p["prompt"], "response": p["chosen"], "score": n % 2} for n, p in enumerate(make_pairs(16))
    ]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    data = {"list": rows, "data set": Dataset.from_list(rows), "stream": stream}[kind]
    trainer = trained(base, config(loss_type="regression", max_steps=60, learning_rate=3e-3), data)
    assert trainer.state.log_history[-2]["loss"] < 0.1
    assert "accuracy" not in trainer.state.log_history[-2]


def test_head_learning_rate_moves_only_the_head(base, config):
    trainer = trained(base, config(learning_rate=1e-12, head_learning_rate=1e-2), make_dataset(8))
    start = RewardTrainer(base, config(), train_dataset=make_dataset(4))
    moved = {
        n: (p - q).abs().max().item()
        for (n, p), q in zip(trainer.model.named_parameters(), start.model.parameters())
    }
    assert moved.pop("score.weight") > 1e-3 and max(moved.values()) < 1e-6


def test_the_plan_changes_nothing(base, config):
    runs = [trained(base, config(show_plan=show), make_dataset(8)) for show in (True, False)]
    assert same(weights(runs[0]), weights(runs[1]))
    plan = RewardTrainer(base, config(), train_dataset=make_dataset(8)).plan()
    assert (
        (plan.examples, plan.steps, plan.batch_size) == (8, 2, 4)
        and plan.memory["optimizer"] == 8 * plan.parameters
        and plan.seconds is None  # two batches, of which none is spent on timing
    )
    runs = [trained(base, config(show_plan=show, max_steps=100), make_dataset(8)) for show in (True, False)]
    assert same(weights(runs[0]), weights(runs[1]))
    assert RewardTrainer(base, config(max_steps=100), train_dataset=make_dataset(8)).plan().seconds > 0


# ---- memory


def test_activations_of_the_shape_of_a_weight_are_not_counted_as_weights(base, config):
    ids = {"chosen_ids": [list(range(10, 42))], "rejected_ids": [list(range(50, 82))]}
    trainer = RewardTrainer(base, config(), train_dataset=Dataset.from_dict(ids))
    plan = trainer.plan()
    assert trainer.model.config.intermediate_size == 64, "as many as tokens"
    assert plan.memory["weights"] == 4 * plan.parameters


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_out_of_memory_halves_and_gives_the_same_weights(base, config, monkeypatch, capsys, where):
    settings = {
        "max_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.1,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0,
    }
    expected = trained(base, config(**settings), uneven(24))
    trainer = RewardTrainer(base, config(**settings), train_dataset=uneven(24))
    rows_allowed, failures = 9, []

    def limit(rows):
        if rows > rows_allowed:
            failures.append(rows)
            raise (
                torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
                if where == "forward"
                else RuntimeError("DefaultCPUAllocator: can't allocate memory")
            )

    if where == "forward":
        loss = trainer.compute_loss
        monkeypatch.setattr(
            trainer,
            "compute_loss",
            lambda model, inputs, **how: (limit(int(inputs["mask"].sum())), loss(model, inputs, **how))[1],
        )
    else:
        backward, record, size = trainer.accelerator.backward, trainer._record, []
        monkeypatch.setattr(
            trainer,
            "_record",
            lambda rows, *names: (
                size.append(int(rows[:, Sums.NAMES.index("rewards")].sum())),
                record(rows, *names),
            ),
        )
        monkeypatch.setattr(
            trainer.accelerator, "backward", lambda loss, **kw: (backward(loss, **kw), limit(size[-1]))
        )
    trainer.train()
    assert failures and trainer.micro_batches.count == 4 and "4 micro-batches" in capsys.readouterr().out
    assert same(weights(expected), weights(trainer), rtol=1e-5, atol=1e-6)
    pooled = [[log["accuracy"] for log in t.state.log_history if "loss" in log] for t in (expected, trainer)]
    assert pooled[0] == pytest.approx(pooled[1])


def test_out_of_memory_with_one_example_is_one_clear_line(base, config, monkeypatch):
    trainer = RewardTrainer(base, config(), train_dataset=make_dataset(8))

    def fail(*args, **how):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trainer, "compute_loss", fail)
    with pytest.raises(torch.OutOfMemoryError, match="one example at a time; lower max_length"):
        trainer.train()


def test_other_errors_pass_through(base, config, monkeypatch):
    trainer = RewardTrainer(base, config(), train_dataset=make_dataset(8))

    def fail(*args, **how):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(trainer, "compute_loss", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        trainer.train()


# ---- LoRA


def test_lora_trains_and_saves_the_head_and_leaves_the_config_alone(base, config, tmp_path):
    lora = LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])
    before = copy.deepcopy(lora)
    trainer = RewardTrainer(
        base,
        config(max_steps=6, learning_rate=None),
        train_dataset=make_dataset(24),
        eval_dataset=make_dataset(8, 1),
        peft_config=lora,
    )
    assert trainer.args.learning_rate == 1e-4
    trainer.args.learning_rate = 1e-2
    head = trainer.model.get_base_model().score.modules_to_save["default"].weight
    start = head.detach().clone()
    trainer.train()
    assert lora == before and not torch.equal(head, start)
    assert {m.p for n, m in trainer.model.named_modules() if n.endswith("lora_dropout.default")} == {0.1}
    trainer.save_model(str(tmp_path / "final"))
    meta = RewardMetadata.load(tmp_path / "final")
    assert (
        meta.extra["merge"]["max_score_difference"] < 1e-5
        and (tmp_path / "final/adapter/adapter_model.safetensors").exists()
    )
    assert not list((tmp_path / "final").rglob("*.bin"))
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "final")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "final")
    trainer.model.eval()
    for pair in make_pairs(5, 4):
        inputs = tokenizer(pair["prompt"] + " " + pair["chosen"], return_tensors="pt")
        with torch.no_grad():
            assert merged(**inputs).logits.item() == pytest.approx(
                trainer.model(**inputs).logits.item(), abs=1e-5
            )


def test_a_peft_model_with_a_frozen_head_is_refused(base, config):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    frozen = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(
        ValueError, match=r"head score of this PeftModel is frozen.*modules_to_save=\['score'\]"
    ):
        RewardTrainer(frozen, config(), train_dataset=make_dataset(4), processing_class=make_tokenizer())
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    trained(
        get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])),
        config(),
        make_dataset(8),
        processing_class=make_tokenizer(),
    )


def test_gradient_checkpointing_gives_the_same_weights(base, config):
    plain, saving = (
        trained(base, config(gradient_checkpointing=on), make_dataset(8)) for on in (False, True)
    )
    assert same(weights(plain), weights(saving), rtol=1e-5, atol=1e-7)
    trained(
        base,
        config(gradient_checkpointing=True),
        make_dataset(8),
        peft_config=LoraConfig(target_modules=["q_proj"]),
    )


def test_an_encoder_trains(config, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = make_tokenizer(unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]")
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    trainer = trained(
        model, config(), make_dataset(8), processing_class=tokenizer, eval_dataset=make_dataset(6, 1)
    )
    trainer.save_model(str(tmp_path / "bert"))
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert").config.num_labels == 1


# ---- saved folder


@pytest.mark.parametrize(
    "special",
    [
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"},
    ],
)
def test_reload_gives_the_same_scores(config, tmp_path, special):
    trainer = trained(
        make_base(tmp_path / "base", **special),
        config(max_steps=4),
        make_dataset(16),
        eval_dataset=make_dataset(6, 1),
    )
    trainer.save_model(str(tmp_path / "final"))
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "final"),
        AutoTokenizer.from_pretrained(tmp_path / "final"),
    )
    assert (model.dtype, model.config.num_labels, model.config.problem_type) == (
        torch.float32,
        1,
        "regression",
    )
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    texts = [p["prompt"] + " " + p["chosen"] for p in make_pairs(7, 5)]
    trainer.model.eval()
    with torch.no_grad():
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        assert torch.equal(model(**batch).logits, trainer.model(**batch).logits)
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    assert torch.allclose(alone, model(**batch).logits, atol=1e-6)
    predicted = trainer.predict(Dataset.from_list(make_pairs(7, 5))).predictions[:, 0]
    assert alone.squeeze(1).tolist() == pytest.approx(predicted.tolist(), abs=1e-6)


def test_the_folder_is_whole_and_replaces_the_former_one(base, config, tmp_path):
    trainer = trained(base, config(), make_dataset(16), eval_dataset=make_dataset(6, 1))
    final = tmp_path / "final"
    (final / "adapter").mkdir(parents=True)
    for stale in (
        "reward_kit.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "training_args.bin",
        "adapter/adapter_model.safetensors",
        "notes.txt",
    ):
        (final / stale).write_text("{}")
    trainer.save_model(str(final))
    names = {path.relative_to(final).as_posix() for path in final.rglob("*") if path.is_file()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "reward_kit.json",
        "README.md",
        "training_curve.png",
        "notes.txt",
    } <= names
    assert not any(name.endswith(".bin") or "0000" in name or name.startswith("adapter") for name in names)
    assert [p.name for p in tmp_path.iterdir() if "saving" in p.name] == []
    meta = RewardMetadata.load(final)
    rewards = trainer.predict(make_dataset(6, 1)).predictions
    assert (
        meta.normalization["mean"] == pytest.approx(rewards.mean(), abs=1e-6)
        and meta.normalization["n"] == 12
        and meta.normalization["std"] == pytest.approx(rewards.std(), abs=1e-6)
    )
    card = (final / "README.md").read_text()
    assert (
        all(f"<!-- reward_kit:{name} -->" in card for name in ("training", "data", "evaluation"))
        and "training_curve.png" in card
    )


def test_a_full_disk_leaves_the_former_model(base, config, tmp_path, monkeypatch):
    trainer = trained(base, config(), make_dataset(8))
    trainer.save_model(str(tmp_path / "final"))
    before = (tmp_path / "final/model.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer.processing_class, "save_pretrained", full)
    with pytest.raises(CheckpointError, match="could not be saved to .*: the disk is full"):
        trainer.save_model(str(tmp_path / "final"))
    assert (tmp_path / "final/model.safetensors").read_bytes() == before and (
        tmp_path / "final/reward_kit.json"
    ).exists()
    assert [p.name for p in tmp_path.iterdir() if "saving" in p.name] == []


def test_everybody_may_read_the_saved_model(base, config, tmp_path):
    trainer = RewardTrainer(base, config(max_steps=1), train_dataset=make_dataset(8))
    trainer.save_model(str(tmp_path / "final"))
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "final").iterdir() if p.is_file()} == {0o644}


def test_a_causal_language_model_is_called_so(base, config):
    with pytest.raises(
        ValueError, match="LlamaForCausalLM is a causal language model, which has no reward head"
    ):
        RewardTrainer(
            AutoModelForCausalLM.from_pretrained(base),
            config(),
            processing_class=AutoTokenizer.from_pretrained(base),
            train_dataset=make_dataset(8),
        )


# ---- checkpoints


def test_a_full_disk_leaves_the_former_checkpoint(base, config, tmp_path, monkeypatch):
    trainer = RewardTrainer(
        base,
        config(max_steps=4, save_strategy="steps", save_steps=2, save_total_limit=1),
        train_dataset=make_dataset(16),
    )
    write, calls = torch.save, []

    def limited(*args, **kwargs):
        calls.append(1)
        if trainer.state.global_step == 4:
            raise RuntimeError(
                "[enforce fail at inline_container.cc:672] . unexpected pos 11421056 vs 11420944"
            )
        return write(*args, **kwargs)

    monkeypatch.setattr(torch, "save", limited)
    with pytest.raises(
        CheckpointError,
        match="checkpoint-4 could not be written .*the disk is full; checkpoint-2 is complete",
    ) as caught:
        trainer.train()
    assert (
        "\n" not in str(caught.value)
        and _read_marker(tmp_path / "out/checkpoint-2")
        and not (tmp_path / "out/checkpoint-4").exists()
    )
    monkeypatch.setattr(torch, "save", write)
    resumed = RewardTrainer(
        base, config(max_steps=4, save_strategy="steps", save_steps=2), train_dataset=make_dataset(16)
    )
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), weights(trained(base, config(max_steps=4), make_dataset(16))))


def test_rotation_keeps_the_newest_and_the_best(base, config, tmp_path):
    trainer = RewardTrainer(
        base,
        config(
            max_steps=5,
            save_strategy="steps",
            save_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            learning_rate=0.3,
        ),
        train_dataset=make_dataset(16),
        eval_dataset=make_dataset(8, 1),
    )
    trainer.train()
    best = trainer.state.best_global_step
    kept = sorted(p.name for p in (tmp_path / "out").glob("checkpoint-*"))
    assert f"checkpoint-{best}" in kept and len(kept) <= 2
    evals = {log["step"]: log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log}
    assert evals[best] == min(evals.values()) and trainer.evaluate()["eval_loss"] == pytest.approx(
        evals[best], abs=1e-6
    )
    trainer.save_model(str(tmp_path / "final"))
    assert f"| steps | {best} of 5 |" in (tmp_path / "final/README.md").read_text()


def test_early_stopping(base, config):
    trainer = RewardTrainer(
        base,
        config(
            max_steps=30,
            learning_rate=0.5,
            save_strategy="steps",
            save_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_accuracy",
            save_total_limit=1,
        ),
        train_dataset=make_dataset(16),
        eval_dataset=make_dataset(8, 1),
        callbacks=[EarlyStoppingCallback(2)],
    )
    trainer.train()
    assert trainer.state.global_step < 30


def test_foreign_checkpoints_are_neither_used_nor_removed(base, config, tmp_path, capsys):
    (tmp_path / "out/checkpoint-9").mkdir(parents=True)
    (tmp_path / "out/checkpoint-9/trainer_state.json").write_text("{}")
    trainer = RewardTrainer(base, config(), train_dataset=make_dataset(8))
    trainer.train(resume_from_checkpoint=True)
    assert "starts from the beginning" in capsys.readouterr().out and (tmp_path / "out/checkpoint-9").exists()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-9"))


def test_weights_only_checkpoints_cannot_be_resumed(base, config, tmp_path):
    trained(base, config(save_strategy="steps", save_steps=1, save_only_model=True), make_dataset(8))
    with pytest.raises(CheckpointError, match="save_only_model=True"):
        RewardTrainer(base, config(), train_dataset=make_dataset(8)).train(resume_from_checkpoint=True)


def checkpoints(folder):
    return sorted((p.name for p in folder.glob("checkpoint-*")), key=lambda name: int(name.split("-")[1]))


@pytest.mark.parametrize("stream", [False, True])
def test_a_short_run_saves_every_tenth_and_logs_at_least_twenty_times(base, tmp_path, stream):
    args = RewardConfig(
        str(tmp_path / "out"), max_steps=30, per_device_train_batch_size=2, disable_tqdm=True, show_plan=False
    )
    data = IterableDataset.from_generator(lambda: iter(make_pairs(12))) if stream else make_dataset(12)
    trainer = trained(base, args, data)
    every = trainer.state.save_steps
    assert every in (3, 4) and trainer.args.save_steps == every and args.save_steps == 0.1
    assert checkpoints(tmp_path / "out") == [
        f"checkpoint-{step}" for step in (30 // every * every - (30 % every == 0) * every, 30)
    ]
    assert [log["step"] for log in trainer.state.log_history if "loss" in log] == list(range(1, 31))


def test_given_steps_stay(base, tmp_path):
    args = RewardConfig(
        str(tmp_path / "out"),
        max_steps=6,
        per_device_train_batch_size=2,
        disable_tqdm=True,
        show_plan=False,
        logging_steps=5,
        save_steps=4,
        save_total_limit=None,
    )
    trainer = trained(base, args, make_dataset(12))
    assert checkpoints(tmp_path / "out") == ["checkpoint-4", "checkpoint-6"] and [
        log["step"] for log in trainer.state.log_history if "loss" in log
    ] == [5]


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"eval_strategy": "steps", "eval_steps": 7}, ("steps", 7)),
        ({"eval_strategy": "steps"}, ("steps", 10)),
        ({"eval_strategy": "steps", "eval_steps": 0.25}, ("steps", 0.25)),
        ({"eval_strategy": "steps", "eval_steps": 7, "save_steps": 14}, ("steps", 14)),
        ({"eval_strategy": "epoch"}, ("epoch", 0.1)),
    ],
)
def test_the_best_model_is_saved_when_it_is_evaluated(given, expected):
    args = RewardConfig("out", load_best_model_at_end=True, **given)
    assert (args.save_strategy.value, args.save_steps) == expected


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"eval_strategy": "epoch", "save_strategy": "steps"},
        {"eval_strategy": "steps", "eval_steps": 7, "save_steps": 10},
    ],
)
def test_a_best_model_that_cannot_be_saved_is_refused(given):
    with pytest.raises(ValueError, match="load_best_model_at_end requires"):
        RewardConfig("out", load_best_model_at_end=True, **given)


# ---- settings


def test_a_given_tokenizer_serves_a_base_without_one(config, tmp_path):
    folder = tmp_path / "base"
    make_base(folder)
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(ValueError, match="tokenizer"):
        RewardTrainer(str(folder), config(), train_dataset=make_dataset(4))
    tokenizer = make_tokenizer()
    trainer = trained(str(folder), config(), make_dataset(8), processing_class=tokenizer)
    assert trainer.processing_class is tokenizer


def test_published_names_of_the_base(base, config, tmp_path):
    from pathlib import Path

    from reward_kit.model.model_folder import resolve_model

    names = {
        "playground": "playground",
        resolve_model("playground"): "playground",
        "owner/model": "owner/model",
        base: Path(base).name,
        "/gone/since/model": "model",
        "./m": "m",
    }
    assert {name: model_folder_module.base_name(name) for name in names} == names
    trainer = trained(
        base,
        config(),
        make_dataset(8),
        eval_dataset=make_dataset(6, 1),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
    )
    trainer.save_model(str(tmp_path / "final"))
    assert RewardMetadata.load(tmp_path / "final").base["id"] == Path(base).name
    texts = [path.read_text() for path in (tmp_path / "final").rglob("*") if path.suffix in (".json", ".md")]
    assert len(texts) > 5 and not [text for text in texts if str(tmp_path.parent) in text]
    assert "| loss | bradley_terry |" in (tmp_path / "final/README.md").read_text()


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("prompt", "text"),
        ("no prompt", "text"),
        ("conversation", "messages"),
        ("implicit conversation", "messages"),
        ("token ids", None),
    ],
)
def test_the_kind_of_the_training_data_is_recorded(base, config, tmp_path, kind, expected):
    trainer = RewardTrainer(
        base,
        config(),
        train_dataset=Dataset.from_list(FORMATS[kind]),
        eval_dataset=Dataset.from_list(FORMATS["prompt"]),
    )
    trainer.save_model(str(tmp_path / "final"))
    assert RewardMetadata.load(tmp_path / "final").data_kind == expected


def test_defaults_of_the_model_fill_only_what_was_not_given(base, config):
    assert (
        RewardTrainer(base, config(learning_rate=None), train_dataset=make_dataset(4)).args.learning_rate
        == 1e-5
    )
    given = config(learning_rate=None)
    RewardTrainer(base, given, train_dataset=make_dataset(4))
    assert given.learning_rate is None


def test_a_trl_config_is_taken_as_it_is(base, tmp_path):
    import trl

    args = trl.RewardConfig(
        str(tmp_path / "out"),
        max_steps=1,
        bf16=False,
        disable_tqdm=True,
        gradient_checkpointing=False,
        save_strategy="no",
        learning_rate=2e-4,
    )
    trainer = trained(base, args, make_dataset(8))
    assert trainer.args.learning_rate == 2e-4 and trainer.encoding.max_length == 256


def test_gemma3_stays_in_float32_where_only_fp16_is_left(monkeypatch):
    monkeypatch.setattr(runs_module, "is_torch_bf16_gpu_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [runs_module.default_precision(model_type=t) for t in ("llama", "gemma3_text")] == ["fp16", "no"]


def test_a_cpu_that_multiplies_bf16_trains_large_models_in_it(base, config, monkeypatch):
    "Where the precision was left to us; the environment of a launcher counts as asked."
    large, own = 10**7, [{"avx512_bf16": True}, {"amx_bf16": True}, {"bf16": True}, {"avx2": True}, {}]
    found = []
    for capabilities in own:
        monkeypatch.setattr(torch.cpu, "get_capabilities", partial(dict, capabilities), raising=False)
        found.append([runs_module.default_precision(True, "", n) for n in (large, large - 1)])
    assert found == [["bf16", "no"]] * 3 + [["no", "no"]] * 2
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(runs_module, "_WORTH_CASTING", 1000)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    trainer = RewardTrainer(base, config(max_steps=1), train_dataset=make_dataset(8))
    assert trainer.args.bf16 and trainer.accelerator.mixed_precision == "bf16"
    assert trainer._precision() == "bf16, weights in float32"
    trainer.train()
    asked = RewardTrainer(base, config(bf16=False), train_dataset=make_dataset(8))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    launched = RewardTrainer(base, config(), train_dataset=make_dataset(8))
    assert [t._precision() for t in (asked, launched)] == ["float32", "float32"]


def test_groups_of_equal_length_resume_by_epoch(base, config):
    trainer = RewardTrainer(
        base, config(train_sampling_strategy="group_by_length"), train_dataset=make_dataset(40)
    )
    sampler = trainer._get_train_sampler()
    first = list(sampler)
    torch.manual_seed(99)
    assert list(trainer._get_train_sampler()) == first
    sampler.epoch = lambda: 1
    assert list(sampler) != first and sorted(sampler) == list(range(40))


def test_long_prompts_are_cut_and_counted(base, config):
    data = Dataset.from_list(
        [{"prompt": "the cat sat on a mat " * 40, "chosen": "thank you", "rejected": "sorry"}] + make_pairs(6)
    )
    trainer = RewardTrainer(base, config(max_length=64), train_dataset=data)
    assert trainer.overflow_report.truncated == 2 and max(map(max, trainer.train_dataset["lengths"])) == 64
    dropped = RewardTrainer(base, config(max_length=64, overflow="drop"), train_dataset=data)
    assert len(dropped.train_dataset) == 6 and dropped.overflow_report.dropped_rows == 1


def test_nan_losses_do_not_reach_the_accuracy():
    rewards = torch.tensor([[math.nan, 0.0]])
    labels = {"ranks": torch.tensor([[1, 2]]), "mask": torch.ones(1, 2, dtype=torch.bool)}
    rows = Sums.of_rows(rewards, bradley_terry_loss.terms(rewards, **labels), **labels)
    assert math.isnan(Sums(rows).metrics()["accuracy"])


def test_one_process_computes_what_it_would_accumulate_at_once(base, config):
    "Four pieces of two pairs are one forward pass of eight."
    args = config(max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    trainer, sizes = RewardTrainer(base, args, train_dataset=make_dataset(16)), []
    trainer.model.register_forward_hook(lambda model, given, output: sizes.append(len(output.logits)))
    trainer.train()
    assert sizes[-2:] == [8, 8] and trainer.state.global_step == 2
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 4), "yours is left"


# ---- weights of 16 bits


@pytest.mark.parametrize("installed", [True, False])
def test_weights_in_bfloat16_get_an_optimizer_that_keeps_small_steps(installed, monkeypatch, caplog):
    "Or become float32, and that is said."
    monkeypatch.setattr("reward_kit.model.training_data.is_torchao_available", lambda: installed)
    found, eight_bits = {}, "bf16_stochastic_round=True"
    for name, kind, adapted, given in (
        ("short", torch.bfloat16, False, {}),
        ("half", torch.float16, False, {"optim": "sgd"}),
        ("exact", torch.float32, False, {}),
        ("adapted", torch.bfloat16, True, {}),
        ("given", torch.bfloat16, False, {"optim": "adamw_torch"}),
        ("random", torch.bfloat16, False, {"optim": "adamw_torch_8bit", "optim_args": eight_bits}),
        ("loud", torch.bfloat16, False, {"optim": "sgd", "optim_args": eight_bits}),
        ("float16", torch.float16, False, {}),
    ):
        model, args = torch.nn.Linear(4, 4).to(kind), RewardConfig("out", use_cpu=True, **given)
        model.config = types.SimpleNamespace(model_type="llama")
        args.complete(model, adapted)
        found[name] = args.optim, args.optim_args, model.weight.dtype
        mine = name in ("half", "given", "loud")
        said = mine or name == "float16" or name == "short" and not installed
        assert ("weights are trained in float32" in caplog.text) is said, name
        assert ("leave optim to us" in caplog.text) is mine, name
        assert ("pip install torchao" in caplog.text) is (said and not installed), name
        assert ("load bfloat16" in caplog.text) is (name in ("half", "float16")), name
        caplog.clear()
    usual = RewardConfig("out", use_cpu=True).optim
    theirs = ("adamw_torch_8bit", eight_bits, torch.bfloat16)
    assert found["short"] == (theirs if installed else (usual, None, torch.float32))
    assert found["half"] == ("sgd", None, torch.float32) and found["exact"] == (usual, None, torch.float32)
    assert found["adapted"] == (usual, None, torch.bfloat16) and found["random"] == theirs
    assert found["given"] == ("adamw_torch", None, torch.float32)
    assert found["loud"] == ("sgd", eight_bits, torch.float32)
    assert found["float16"] == (usual, None, torch.float32)


@pytest.mark.parametrize("theirs", [False, True])
def test_weights_in_bfloat16_move_at_a_small_rate(theirs, base, config, monkeypatch):
    "Thirty steps at 1e-6, as settings of ours or of TRL's; AdamW's are smaller than a bit of most weights."
    monkeypatch.setattr("reward_kit.model.training_data.is_torchao_available", lambda: False)
    how = dict(max_steps=30, learning_rate=1e-6, lr_scheduler_type="constant", max_grad_norm=0)
    args = config(model_init_kwargs={"dtype": "bfloat16"}, **how)
    if theirs:
        args = trl.RewardConfig(
            args.output_dir, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
            gradient_checkpointing=False, model_init_kwargs={"dtype": "bfloat16"}, **how,
        )  # fmt: skip
    trainer = RewardTrainer(base, args, train_dataset=make_dataset(64))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    assert trainer.plan().precision == "float32" and "float32" in str(trainer.plan())
    trainer.train()
    moved = {n: (p != before[n]).float().mean().item() for n, p in trainer.model.named_parameters()}
    unused = {"model.embed_tokens.weight"}  # tokens that do not occur
    assert min(share for name, share in moved.items() if name not in unused) > 0.95, moved
    assert moved["score.weight"] == 1


def test_the_plan_says_the_precision_of_computation_and_weights(base, config):
    for given, precision in (({}, "float32"), ({"bf16": True, "use_cpu": True}, "bf16, weights in float32")):
        assert RewardTrainer(base, config(**given), train_dataset=make_dataset(8))._precision() == precision
    args = config(model_init_kwargs={"dtype": "bfloat16"})
    trainer = RewardTrainer(base, args, train_dataset=make_dataset(8), peft_config=LoraConfig())
    assert trainer.plan().precision == "bfloat16 and float32"


def test_a_trained_head_that_is_frozen_on_purpose_is_accepted(base, config, tmp_path):
    "That of a reward model, not that of a base."
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
    lora.modules_to_save = []
    trained = RewardTrainer(base, config(max_steps=1), train_dataset=make_dataset(8))
    trained.train()
    trained.save_model(str(tmp_path / "first"))
    models = {}
    for name in (base, str(tmp_path / "first")):
        model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1)
        models[name] = get_peft_model(model, lora)
        models[name].base_model.model.score.requires_grad_(False)
    new, known = models.values()
    tokenizer = AutoTokenizer.from_pretrained(base)
    with pytest.raises(ValueError, match="is frozen and would stay random"):
        RewardTrainer(new, config(), train_dataset=make_dataset(8), processing_class=tokenizer)
    args = config(max_steps=2, learning_rate=1e-2)
    trainer = RewardTrainer(known, args, train_dataset=make_dataset(8), processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(tmp_path / "second"))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert torch.equal(first["score.weight"], second["score.weight"])
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(first[name], second[name])


def test_adapters_that_cannot_be_merged_are_refused_before_training(base, config):
    import peft

    virtual, layers = {"num_virtual_tokens": 2}, {"target_modules": ["q_proj", "v_proj"]}
    for name, given, why in (
        ("PromptTuning", virtual, "adds virtual tokens"),
        ("PrefixTuning", virtual, "adds virtual tokens"),
        ("PromptEncoder", virtual, "adds virtual tokens"),
        ("Beft", layers, "no bias"),
        ("AdaptionPrompt", {"adapter_len": 2, "adapter_layers": 1}, "no merge"),
        ("Lily", layers, "not supported"),
        ("Poly", layers, "task_ids"),
        ("Shadow", {}, "Shadow"),
    ):
        adapter = getattr(peft, f"{name}Config")(task_type="SEQ_CLS", **given)
        with pytest.raises(ValueError, match=f"cannot be merged into the weights.*{why}.*use LoRA"):
            RewardTrainer(base, config(), train_dataset=make_dataset(8), peft_config=adapter)


@pytest.mark.parametrize("name", ["LNTuning", "IA3", "AdaLora", "LoHa", "Vera", "OFT", "Miss", "VBLoRA"])
def test_adapters_of_other_kinds_are_saved_as_they_were_trained(name, base, config, tmp_path):
    "The folder gives the rewards of what was trained."
    import peft

    given = {
        "IA3": {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
        "LNTuning": {},
        "AdaLora": {"target_modules": ["q_proj"], "total_step": 20},
        "OFT": {"target_modules": ["q_proj"], "oft_block_size": 4},
        "VBLoRA": {"target_modules": ["q_proj"], "num_vectors": 8, "vector_length": 8},
        "Miss": {"target_modules": ["q_proj"], "r": 8},
    }.get(name, {"target_modules": ["q_proj", "v_proj"]})
    adapter = getattr(peft, f"{name}Config")(task_type="SEQ_CLS", **given)
    trainer = RewardTrainer(
        base, config(learning_rate=1e-2, max_steps=3), train_dataset=make_dataset(8), peft_config=adapter
    )
    trainer.train()
    ids = [ids for row in trainer.train_dataset for ids in row["sequences"]]
    trainer.model.eval()
    batches = [trainer._collator([{"sequences": [each]}]).model_inputs() for each in ids]
    with torch.no_grad():
        before = [trainer.model(**batch).logits.item() for batch in batches]
    trainer.save_model(str(tmp_path / "saved"))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        after = [model(torch.tensor([each])).logits.item() for each in ids]
    assert np.allclose(before, after, atol=1e-5) and np.std(before) > 1e-3


# ---- streams that the constructor has not seen, collators of one's own, data of which nothing is left


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_streams_that_the_constructor_has_not_seen_are_measured(base, config, layout):
    trainer = RewardTrainer(
        base, config(layout=layout, per_device_eval_batch_size=3), train_dataset=make_dataset(8)
    )
    stream = lambda: IterableDataset.from_generator(lambda: iter(make_pairs(7, 2)))
    expected = trainer.evaluate(make_dataset(7, 2))
    rewards = trainer.predict(make_dataset(7, 2)).predictions
    for found in (trainer.evaluate(stream()), trainer.evaluate({"far": stream()}, metric_key_prefix="eval")):
        loss = next(value for name, value in found.items() if name.endswith("_loss"))
        assert loss == pytest.approx(expected["eval_loss"], abs=1e-6)
    assert np.allclose(trainer.predict(stream()).predictions, rewards, atol=1e-6)


def test_where_nothing_is_left_how_many_why_and_what_to_set_is_said(base, config, tmp_path):
    long = config(max_length=4, overflow="drop")
    with pytest.raises(ValueError, match="nothing is left of 8 examples of the train data: .*16 dropped.*"
                       "raise max_length, or set overflow=truncate_left"):  # fmt: skip
        RewardTrainer(base, long, train_dataset=make_pairs(8))
    ids = Dataset.from_list([{"chosen_ids": [5] * 9, "rejected_ids": [6]}] * 3)
    with pytest.raises(ValueError, match="nothing is left of 3 examples of the train data: .*3 dropped"):
        RewardTrainer(base, long, train_dataset=ids)


# ---- Liger's kernels


def test_ligers_kernels_leave_the_head_alone_or_are_refused_before_anything_is_loaded(
    base, config, monkeypatch
):
    "A stand-in: the real ones need a GPU."
    with pytest.raises(ValueError, match="use_liger_kernel needs a GPU and liger-kernel"):
        RewardTrainer("no-such-model", config(use_liger_kernel=True), train_dataset=make_dataset(8))
    calls = []

    def patch_instance(model, **kernels):
        calls.append((type(model).__name__, kernels))
        if kernels["fused_linear_cross_entropy"]:
            raise AttributeError(f"{type(model).__name__} has no lm_head")  # as the real one

    stand_in = types.ModuleType("liger_kernel.transformers")
    stand_in._apply_liger_kernel_to_instance = patch_instance
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", stand_in)
    for place in ("reward_kit.beside.bits_and_kernels.has_triton",
                  "reward_kit.beside.bits_and_kernels.is_liger_kernel_available",
                  "transformers.integrations.liger.is_liger_kernel_available",
                  "transformers.training_args.is_liger_kernel_available"):  # fmt: skip
        if hasattr(importlib.import_module(place.rpartition(".")[0]), place.rpartition(".")[2]):
            monkeypatch.setattr(place, lambda: True)
    args = config(use_liger_kernel=True, liger_kernel_config={"rope": False}, max_steps=300, logging_steps=1)
    args.max_steps = 301  # from 300 on layers would be compiled
    trainer = RewardTrainer(base, args, train_dataset=make_dataset(8))
    monkeypatch.setattr("reward_kit.model.trainer.compile_layers", lambda *_, **__: pytest.fail("compiled"))
    trainer.plan(timed=False)
    trainer.args.max_steps = 2
    trainer.train()
    off = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    assert calls == [("LlamaForSequenceClassification", {"rope": False} | off)]
    assert trainer.evaluate(make_dataset(8))["eval_loss"] > 0


def test_an_adapter_of_a_model_in_bfloat16_is_trained_in_float32(base, config):
    trainer = RewardTrainer(
        base,
        config(model_init_kwargs={"dtype": "bfloat16"}),
        train_dataset=make_dataset(8),
        peft_config=LoraConfig(),
    )
    trained = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
    kept = {p.dtype for p in trainer.model.parameters() if not p.requires_grad}
    assert trained == {torch.float32} and kept == {torch.bfloat16}
    trainer.train()
    trainer.save_model()


@pytest.mark.slow
def test_weights_in_bfloat16_learn(base, config):
    pytest.importorskip("torchao")
    trainer = RewardTrainer(
        base, config(model_init_kwargs={"dtype": "bfloat16"}, max_steps=20), train_dataset=make_dataset(64)
    )
    with torch.compiler.set_stance("force_eager"):
        trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert type(trainer.optimizer.optimizer).__name__ == "AdamW8bit" and losses[-1] < losses[0]
