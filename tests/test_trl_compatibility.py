"""What was written for TRL's reward trainer: subclasses, collators, folders, runs that go on; and runs that
go wrong."""

import json
import re
from unittest.mock import Mock

import pytest
import torch
import transformers
import trl
from datasets import Dataset, IterableDataset
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    VeraConfig,
    XLoraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import nn
from trainer_world import make_base, make_pairs, make_tokenizer

import reward_kit
from reward_kit import RewardTrainer
from reward_kit.model.model_folder import CheckpointError, RewardHead, load_reward_backbone
from reward_kit.model.runs import Checkpoints, RunRecord


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "A classifier, so that both libraries begin with the same head."
    folder = tmp_path_factory.mktemp("base")
    model, tokenizer = load_reward_backbone(make_base(folder / "lm"), new_head=True, seed=0)
    model.save_pretrained(folder / "rm")
    tokenizer.save_pretrained(folder / "rm")
    return str(folder / "rm")


def pairs_of_ids(n, **columns):
    tokenizer = make_tokenizer()
    ids = lambda text: [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    rows = [
        {"chosen_ids": ids(p["prompt"] + p["chosen"]), "rejected_ids": ids(p["prompt"] + p["rejected"])}
        for p in make_pairs(n)
    ]
    return Dataset.from_list([row | {k: f(i) for k, f in columns.items()} for i, row in enumerate(rows)])


QUIET = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 1}


def make(base, folder, library=reward_kit, cls=None, data=None, arguments=(), **settings):
    own = {"show_plan": False} if library is reward_kit else {"bf16": False, "gradient_checkpointing": False}
    settings = (
        {"max_steps": 4, "per_device_train_batch_size": 4, "save_strategy": "no"} | QUIET | own | settings
    )
    args = library.RewardConfig(str(folder), **settings)
    if data is None:
        data = make_pairs(16)
    return (cls or library.RewardTrainer)(base, args, train_dataset=data, **dict(arguments))


def losses(trainer):
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


# ---- subclasses


def short(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    "As people write it."
    outputs = model(**inputs)
    chosen, rejected = torch.chunk(outputs.logits.squeeze(-1), 2)
    loss = -nn.functional.logsigmoid(chosen - rejected).mean()
    return (loss, outputs) if return_outputs else loss


def with_penalty(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    "Around what the library computes."
    loss, outputs = super(type(self), self).compute_loss(model, inputs, True, num_items_in_batch)
    loss = loss + 0.1 * outputs.logits.square().mean()
    return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize(
    "body", [short, with_penalty, trl.RewardTrainer.compute_loss], ids=["short", "super", "full"]
)
def test_a_subclass_with_its_own_loss_trains_as_in_trl(base, tmp_path, body, accumulated):
    data, found = pairs_of_ids(32, margin=lambda i: 0.1 * (i % 3)), {}
    for library in (trl, reward_kit):
        cls = type("Mine", (library.RewardTrainer,), {"compute_loss": body})
        trainer = make(
            base, tmp_path / library.__name__, library, cls, data, {"eval_dataset": data}.items(),
            gradient_accumulation_steps=accumulated, train_sampling_strategy="sequential",
            learning_rate=1e-2, lr_scheduler_type="constant", disable_dropout=True,
        )  # fmt: skip
        found[library] = [*losses(trainer), trainer.evaluate()["eval_loss"]]
    assert found[reward_kit] == pytest.approx(found[trl], abs=1e-5)
    assert len(found[trl]) == 5 and len(set(found[trl])) == 5


def test_what_a_loss_or_collator_of_ones_own_cannot_get_is_refused(base, tmp_path):
    Mine = type("Mine", (RewardTrainer,), {"compute_loss": short})
    ranking = {"prompt": "say", "responses": ["thank you", "sorry", "no"], "ranks": [1, 2, 3]}
    tie = {"prompt": "say", "responses": ["thank you", "sorry"], "ranks": [1, 1]}
    heavy = make_pairs(1)[0] | {"weight": 2.0}
    collate = trl.trainer.reward_trainer.DataCollatorForPreference(0)
    for cls, arguments in ((Mine, {}), (RewardTrainer, {"data_collator": collate})):
        for row in (ranking, tie, heavy):
            data = [row | {"prompt": f"say {i}"} for i in range(4)]
            with pytest.raises(ValueError, match="no pair of a better and a worse response.*register_loss"):
                make(base, tmp_path / "out", cls=cls, data=data, arguments=arguments.items()).train()
        with pytest.raises(ValueError, match="of your own gets TRL's loss, not loss_type='plackett_luce'"):
            make(base, tmp_path / "out", cls=cls, arguments=arguments.items(), loss_type="plackett_luce")
    Prepares = type("Prepares", (RewardTrainer,), {"_prepare_dataset": lambda self, dataset, *_: dataset})
    with pytest.raises(ValueError, match="_prepare_dataset of your own is not called.*chosen_ids"):
        make(base, tmp_path / "out", cls=Prepares)
    plan = make(base, tmp_path / "out", cls=Mine).plan()
    assert "padded (as TRL's, for your compute_loss)" in str(plan)
    with pytest.raises(ValueError, match="packed"):
        make(base, tmp_path / "out", cls=Mine, layout="packed")


def test_other_methods_that_people_override_are_called_and_change_nothing_else(base, tmp_path):
    called = set()

    def around(name):
        def method(self, *args, **keywords):
            called.add(name)
            return getattr(super(Mine, self), name)(*args, **keywords)

        return method

    names = "training_step prediction_step log evaluate create_optimizer create_scheduler save_model".split()
    Mine = type("Mine", (RewardTrainer,), {name: around(name) for name in names})
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    found = []
    for cls in (RewardTrainer, Mine):
        arguments = {"eval_dataset": make_pairs(6, 1)}.items()
        trainer = make(base, tmp_path / cls.__name__, cls=cls, arguments=arguments, **settings)
        found.append([*losses(trainer), trainer.evaluate()["eval_accuracy"]])
    assert found[0] == found[1] and called == set(names)


def test_own_collators_train_as_in_trl_and_keep_columns(base, tmp_path):
    seen = []

    class Keeps(trl.trainer.reward_trainer.DataCollatorForPreference):
        def torch_call(self, examples):
            seen.extend(example["teacher"] for example in examples)
            return super().torch_call(examples)

    found = {}
    for library in (trl, reward_kit):
        trainer = make(
            base, tmp_path / library.__name__, library, data=pairs_of_ids(16, teacher=str),
            arguments={"data_collator": Keeps(0)}.items(), remove_unused_columns=False,
            train_sampling_strategy="sequential",
            learning_rate=1e-2, lr_scheduler_type="constant", disable_dropout=True,
        )  # fmt: skip
        found[library] = losses(trainer)
    assert found[reward_kit] == pytest.approx(found[trl], abs=1e-5) and set(seen) == set(map(str, range(16)))


@pytest.mark.parametrize("kind", ["list", "data set", "stream", "file"])
def test_own_collators_get_the_columns_beside_texts(base, tmp_path, kind):
    "Whatever the rows lie in, and whichever of them are left out."
    seen, rows = [], [pair | {"teacher": str(n)} for n, pair in enumerate(make_pairs(16))]
    rows[3] |= {"rejected": rows[3]["chosen"]}  # of no use
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "list": rows,
        "data set": Dataset.from_list(rows),
        "stream": IterableDataset.from_generator(lambda: iter(rows)),
        "file": str(path),
    }[kind]

    def collate(examples):
        seen.extend((example["teacher"], example["chosen_ids"]) for example in examples)
        return trl.trainer.reward_trainer.DataCollatorForPreference(0)(examples)

    trainer = make(
        base, tmp_path / "out", reward_kit, data=data, arguments={"data_collator": collate}.items(),
        remove_unused_columns=False, max_steps=4,
    )  # fmt: skip
    trainer.train()
    assert {teacher for teacher, _ in seen} <= set(map(str, range(16))) - {"3"} and len(seen) > 12
    for teacher, ids in seen:
        text = trainer.processing_class.decode(ids)
        assert rows[int(teacher)]["chosen"] in text


# ---- runs that go on, and folders of others


def stopped_run(base, folder, **settings):
    return make(base, folder, **{"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3} | settings)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"data": make_pairs(16, 9)}, "other data"),
        ({"learning_rate": 1e-2}, "learning_rate 0.001 -> 0.01"),
        ({"loss_type": "plackett_luce"}, "loss bradley_terry -> plackett_luce"),
        ({"loss_kwargs": {"label_smoothing": 0.1}}, "loss_kwargs None -> {'label_smoothing': 0.1}"),
        ({"center_rewards_coefficient": 0.1}, "center_rewards_coefficient None -> 0.1"),
        ({"max_length": 48}, "max_length 256 -> 48"),
        ({"overflow": "drop"}, "overflow truncate_left -> drop"),
        ({"per_device_train_batch_size": 2}, "batch_size 4 -> 2"),
        ({"seed": 7}, "seed 42 -> 7"),
        ({"separator": "\n"}, "separator None -> \n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_run_does_not_go_on_as_another(base, tmp_path_factory, changed, message):
    folder = tmp_path_factory.getbasetemp() / "goes_on"
    if not folder.exists():
        stopped_run(base, folder).train()
    settings = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3, "max_steps": 6} | changed
    with pytest.raises(CheckpointError, match="of a run with other settings") as refused:
        make(base, folder, **settings).train(resume_from_checkpoint=True)
    assert message in str(refused.value)


@pytest.mark.parametrize("change", ["missing", "renamed", "cut"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_checkpoint_without_a_weight_of_the_model_is_refused_by_name(base, tmp_path, lora, change):
    arguments = {"peft_config": LoraConfig(target_modules=["q_proj"])} if lora else {}
    run = {"max_steps": 2, "arguments": arguments.items()}
    stopped_run(base, tmp_path / "out", **run).train()
    (checkpoint,) = Checkpoints(tmp_path / "out").complete()
    (path,) = checkpoint.glob("*.safetensors")
    weights = load_file(path)
    name = next(name for name in weights if "layers.1.self_attn.q_proj" in name)
    weight = weights.pop(name)
    new = {"missing": {}, "renamed": {name + "s": weight}, "cut": {name: weight[:2].contiguous()}}
    save_file(weights | new[change], path, {"format": "pt"})
    again = stopped_run(base, tmp_path / "out", **run | {"max_steps": 3})
    again.checkpoints.begin(checkpoint)
    again.checkpoints.made_with = again._made_with()
    again.checkpoints.finish(checkpoint, 2)  # complete, as far as its list knows
    with pytest.raises(CheckpointError, match=f"not hold the weights.*missing, unknown.*{re.escape(name)}"):
        again.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("best", [False, True], ids=["goes on", "best"])
def test_experts_are_read_back_from_a_checkpoint(mixture, tmp_path, best):
    run = {"lr_scheduler_type": "constant", "max_steps": 4, "learning_rate": 1e-2}
    whole = stopped_run(mixture, tmp_path / "out", **run)
    whole.train()
    folder = tmp_path / "out" / "checkpoint-2"
    if best:
        whole.state.best_model_checkpoint = str(folder)
        whole._load_best_model()
        stored, _ = load_reward_backbone(str(folder))
    else:
        again = stopped_run(mixture, tmp_path / "out", **run)
        again.train(resume_from_checkpoint=str(folder))
        stored = again.model
    for (name, weight), other in zip(whole.model.state_dict().items(), stored.state_dict().values()):
        torch.testing.assert_close(weight, other, msg=name)


def test_a_longer_run_goes_on(base, tmp_path):
    stopped_run(base, tmp_path / "out").train()
    longer = stopped_run(base, tmp_path / "out", max_steps=6, logging_steps=2)
    assert longer.train(resume_from_checkpoint=True).global_step == 6


def test_a_folder_of_trl_is_not_written_over(base, tmp_path):
    theirs = make(
        base, tmp_path / "out", trl, data=pairs_of_ids(16), save_strategy="steps", save_steps=2, max_steps=2
    )
    theirs.train()
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for resume in (None, True):
        with pytest.raises(CheckpointError, match="weights that another program wrote"):
            stopped_run(base, tmp_path / "out").train(resume_from_checkpoint=resume)
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_that_replaces_another_keeps_it_until_it_is_saved(tmp_path):
    folder = tmp_path / "model"
    for name in ("checkpoint-5/theirs.txt", "model.safetensors.mine", "model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    run, files = RunRecord(folder), lambda: {str(p): p.read_text() for p in folder.rglob("*") if p.is_file()}
    run.start({"learning_rate": 1e-5}, finished=True)
    before = files()
    assert run.prepare({"learning_rate": 2e-5}, overwrite=True) == "fresh" and files() == before
    with pytest.raises(ValueError, match="chosen is identical to rejected"):
        reward_kit.train_reward_model(
            "playground", [{"prompt": "a", "chosen": "b", "rejected": "b"}], folder, overwrite=True,
            progress=False, say=lambda line: None, config={"report_to": "none"},
        )  # fmt: skip
    assert files() == before


# ---- runs that go wrong


def broken(**columns):
    rows = make_pairs(16)
    rows[9] |= columns
    return rows


@pytest.mark.parametrize("settings", [{}, {"layout": "padded"}, {"gradient_accumulation_steps": 2}], ids=str)
@pytest.mark.parametrize("columns", [{"margin": 1e300}, {"weight": 1e300}], ids=str)
def test_a_row_that_makes_the_loss_infinite_ends_the_run(base, tmp_path, columns, settings):
    settings = {"max_steps": 20, "logging_steps": 7, "save_strategy": "steps", "save_steps": 3} | settings
    trainer = make(base, tmp_path / "out", data=broken(**columns), **settings)
    with pytest.raises(FloatingPointError, match=r"the loss of step \d+ is not finite") as error:
        trainer.train()
    assert "row 10, learning rate" in str(error.value)
    step = int(str(error.value).split("step ")[1].split()[0])
    kept = Checkpoints(tmp_path / "out").complete()
    assert all(int(path.name.split("-")[1]) < step for path in kept)
    for path in kept:
        weights = load_file(path / "model.safetensors")
        assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize("settings", [{"max_grad_norm": 0}, {}], ids=str)
def test_weights_that_are_no_numbers_are_never_saved(base, tmp_path, settings):
    trainer = make(
        base, tmp_path / "out", optim="sgd", learning_rate=1e38, lr_scheduler_type="constant", warmup_steps=0,
        save_strategy="steps", save_steps=1, logging_strategy="no", **settings,
    )  # fmt: skip
    with pytest.raises(FloatingPointError, match="not finite"):
        trainer.train()
    kept = [torch.load(path / "optimizer.pt") for path in Checkpoints(tmp_path / "out").complete()]
    assert len(kept) <= 1  # of the step before, whose weights are numbers still
    trainer.model.score.weight.data[:] = torch.nan
    with pytest.raises(FloatingPointError, match="weights of .* are not finite"):
        trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final").exists()


def test_a_gradient_that_is_no_number_is_named_with_its_step_and_rows(base, tmp_path):
    trainer = make(base, tmp_path / "out", data=make_pairs(4), max_steps=3, logging_steps=3)
    step = trainer.training_step

    def spoils(*args, **keywords):
        loss = step(*args, **keywords)
        if trainer.state.global_step == 1:
            trainer.model.score.weight.grad[0, 0] = torch.inf
        return loss

    trainer.training_step = spoils
    with pytest.raises(FloatingPointError, match="the gradient of step 2 is not finite .row [1-4], row"):
        trainer.train()


def test_logs_of_a_run_are_json_without_nan(base, tmp_path):
    trainer = make(base, tmp_path / "out", logging_steps=2)
    trainer.train()
    json.loads(json.dumps(trainer.state.log_history, allow_nan=False))


def test_a_stream_names_its_rows(base, tmp_path):
    stream = IterableDataset.from_generator(lambda: iter(broken(margin=1e300)))
    with pytest.raises(FloatingPointError, match="row 9, learning rate"):
        make(base, tmp_path / "out", data=stream).train()


# ---- what is asked for is there, or named before anything is encoded


def test_pairs_have_the_columns_of_trl(base, tmp_path):
    ranking = {"prompt": "say", "responses": ["thank you", "sorry", "no"], "ranks": [1, 2, 3]}
    pairs = [{"prompt": p["prompt"], "chosen": p["chosen"], "rejected": p["rejected"]} for p in make_pairs(3)]
    trainer = make(base, tmp_path / "out", data=pairs)
    theirs = make(base, tmp_path / "theirs", trl, data=Dataset.from_list(pairs))
    for name in ("chosen_ids", "rejected_ids"):
        assert name in trainer.train_dataset.column_names
        found, lengths = trainer.train_dataset[name], trainer.train_dataset["lengths"]
        assert [len(ids) for ids in found] == [both["cr".index(name[0])] for both in lengths]
        assert trainer.train_dataset[0][name][-1] == theirs.train_dataset[0][name][-1]
    ranked = make(base, tmp_path / "out", data=[ranking, ranking | {"prompt": "tell"}])
    assert ranked.train_dataset["chosen_ids"][:] == ranked.train_dataset["rejected_ids"][:] == [None, None]
    given = pairs_of_ids(4)
    assert make(base, tmp_path / "out", data=given).train_dataset["chosen_ids"][:] == given["chosen_ids"][:]


@pytest.mark.parametrize(
    "settings, arguments, error",
    [
        ({"eos_token": "<nope>"}, {}, "eos_token '<nope>' is not in the vocabulary"),
        ({"pad_token": "<nope>"}, {}, "pad_token '<nope>' is not in the vocabulary"),
        ({}, {"processing_class": "gpt2"}, "processing_class must be a tokenizer, got str"),
        ({}, {"processing_class": {"a": 1}}, "processing_class must be a tokenizer, got dict"),
        ({}, {"processing_class": make_pairs}, "processing_class must be a tokenizer, got function"),
    ],
    ids=["eos", "pad", "name", "dict", "function"],
)
def test_a_wrong_tokenizer_or_token_is_named_before_encoding(
    base, tmp_path, monkeypatch, settings, arguments, error
):
    monkeypatch.setattr(reward_kit.model.training_data.TrainingData, "encode", None)
    with pytest.raises((TypeError, ValueError), match=error) as refused:
        make(base, tmp_path / "out", arguments=arguments.items(), **settings)
    assert "\n" not in str(refused.value)


def test_data_without_any_weight_are_refused(base, tmp_path):
    nothing = [row | {"weight": 0.0} for row in make_pairs(8)]
    with pytest.raises(ValueError, match="every weight of the train data is 0"):
        make(base, tmp_path / "out", data=nothing)
    with pytest.raises(ValueError, match="every weight of the eval data is 0"):
        make(base, tmp_path / "out", arguments={"eval_dataset": nothing}.items())
    some = make_pairs(8)[:4] + nothing[4:]
    assert len(make(base, tmp_path / "out", data=some).train_dataset) == 8


# ---- what TRL expects of its own trainer, with what is documented as better here


def unmoved(trainer):
    "Names of weights that training does not move."
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    losses(trainer)
    after = dict(trainer.model.named_parameters())
    return [name for name, p in before.items() if torch.equal(p, after[name])]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("mixture"), make_tokenizer()
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=4)
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, mlp_only_layers=[0])
    config = transformers.Qwen3MoeConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes, **experts)
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "kind, reentrant",
    [
        ("all", True),
        ("all", False),
        ("lora", True),
        ("lora", False),
        ("mixture", None),
        ("mixture, lora", None),
    ],
    ids=str,
)
def test_weights_move_and_those_under_an_adapter_do_not(base, mixture, tmp_path, kind, reentrant):
    settings, arguments = {"learning_rate": 1e-2}, {}
    if reentrant is not None:
        how = {"use_reentrant": reentrant}
        settings |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": how}
    if "lora" in kind:
        modules = ["gate_proj", "up_proj", "down_proj", "score"] if "mixture" in kind else None
        arguments["peft_config"] = LoraConfig(target_modules=modules)
    model = mixture if "mixture" in kind else base
    still = unmoved(make(model, tmp_path / "out", arguments=arguments.items(), **settings))
    # TRL leaves a new head as it was drawn under LoRA
    frozen = lambda name: "lora_" not in name and "modules_to_save" not in name
    assert not [name for name in still if not (arguments and frozen(name))]
    assert bool(still) == bool(arguments)


def test_templates_are_read_from_a_folder_or_a_file_and_saved_as_they_render(base, tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": p["prompt"]}]}
        | {side: [{"role": "assistant", "content": p[side]}] for side in ("chosen", "rejected")}
        for p in make_pairs(8)
    ]
    own = "{% for m in messages %}{{ m.role }}{% if loud %}!{% endif %} {{ m.content }}\n{% endfor %}"
    (tmp_path / "own.jinja").write_text(own)
    other = make_tokenizer()
    other.chat_template = own
    other.save_pretrained(tmp_path / "other")
    kwargs = [{"loud": bool(i % 2)} for i in range(8)]
    data = Dataset.from_list(rows).add_column("chat_template_kwargs", kwargs)
    for path in ("own.jinja", "other"):
        settings = {"chat_template_path": str(tmp_path / path), "save_strategy": "steps", "save_steps": 2}
        trainer = make(base, tmp_path / f"{path}-out", data=data, max_steps=2, **settings)
        trainer.train()
        saved = transformers.AutoTokenizer.from_pretrained(tmp_path / f"{path}-out" / "checkpoint-2")
        plain = make_tokenizer()
        for row, kept, found in zip(rows, kwargs, trainer.train_dataset["chosen_ids"]):
            chat = row["prompt"] + row["chosen"]
            text = plain.apply_chat_template(chat, chat_template=own, tokenize=False, **kept)
            assert saved.apply_chat_template(chat, tokenize=False, **kept) == text + "</s>"
            assert plain.decode(found) == text + "</s>"


def test_logs_bear_the_names_of_evaluation_sets_and_of_own_metrics(base, tmp_path):
    sets = {"first": make_pairs(4, 1), "second": make_pairs(4, 2)}
    arguments = {"eval_dataset": sets, "compute_metrics": lambda prediction: {"mine": 0.25}}
    trainer = make(base, tmp_path / "out", arguments=arguments.items(), eval_strategy="steps", eval_steps=4)
    trainer.train()
    *_, first, second, last = trainer.state.log_history
    assert first["eval_first_loss"] > 0 < second["eval_second_loss"] and last["train_loss"] > 0
    assert first["eval_first_mine"] == second["eval_second_mine"] == 0.25
    assert trainer.evaluate(make_pairs(4, 3))["eval_loss"] > 0  # texts, which the trainer did not see
    assert {"reward-trainer", "trl"} <= set(trainer.model.model_tags)


def test_old_names_of_columns_of_ids_are_read(base, tmp_path):
    old = {"chosen_ids": "chosen_input_ids", "rejected_ids": "rejected_input_ids"}
    data = pairs_of_ids(8)
    trainer = make(base, tmp_path / "out", data=data.rename_columns(old))
    assert not set(old.values()) & set(trainer.train_dataset.column_names)
    assert trainer.train_dataset["chosen_ids"][:] == data["chosen_ids"][:] and not unmoved(trainer)


def test_two_labels_are_refused_and_float16_is_trained_in_float32(base, tmp_path, caplog):
    two = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=2, ignore_mismatched_sizes=True
    )
    with pytest.raises(ValueError, match="reward models require `num_labels=1`"):
        make(two, tmp_path / "out")
    half = {"model_init_kwargs": {"dtype": torch.float16}, "optim": "adamw_torch"}
    assert not unmoved(make(base, tmp_path / "out", **half))
    assert "16 bits lose most steps" in caplog.text


@pytest.mark.parametrize("which", ["compute_loss", "data_collator"])
def test_the_card_says_what_was_evaluated_with_your_own(base, tmp_path, which):
    arguments = {"eval_dataset": make_pairs(4, 1)}
    if which == "data_collator":
        arguments["data_collator"] = trl.trainer.reward_trainer.DataCollatorForPreference(0)
    cls = type("Mine", (RewardTrainer,), {"compute_loss": short} if which == "compute_loss" else {})
    trainer = make(base, tmp_path / "out", cls=cls, arguments=arguments.items(), max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "before"))  # which evaluates, as nobody has
    trainer.save_model(str(tmp_path / "after"))
    for name in ("before", "after"):
        card = (tmp_path / name / "README.md").read_text()
        assert f"With your {which}: the run's log" in card and "Not evaluated" not in card


@pytest.mark.parametrize("overflow", ["drop", "truncate_left"])
def test_a_stream_of_which_nothing_is_left_says_how_many_and_what_to_set(base, tmp_path, overflow):
    long = [{"prompt": "say", "chosen": "thank " * 90 + end, "rejected": "sorry " * 90} for end in "abc"]
    stream = IterableDataset.from_generator(lambda: iter(long))
    remedy = "; raise max_length" + ", or set overflow=truncate_left" * (overflow == "drop") + "$"
    with pytest.raises(ValueError, match=f"nothing is left of 3 examples of the train data.*{remedy}"):
        make(base, tmp_path / "out", data=stream, max_length=16, overflow=overflow)
    trainer = make(base, tmp_path / "out", max_length=64, overflow=overflow)
    with pytest.raises(ValueError, match=f"nothing is left of 3 examples of the eval data.*{remedy}"):
        trainer.evaluate(stream)


@pytest.mark.parametrize(
    "adapter",
    [
        LoraConfig(init_lora_weights="gaussian", target_modules=["q_proj", "embed_tokens"]),
        LoraConfig(use_dora=True, target_modules=["q_proj"], trainable_token_indices=[3, 4]),
        LoHaConfig(target_modules=["q_proj"], init_weights=False),
        LoKrConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
        VeraConfig(r=4, target_modules=["q_proj"]),
        IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
        OFTConfig(oft_block_size=8, target_modules=["q_proj"]),
    ],
    ids=["gaussian", "dora", "loha", "lokr", "vera", "ia3", "oft"],
)
def test_models_whose_adapters_began_at_random_have_one_base(adapter, base, tmp_path):
    hashes = set()
    for seed in (1, 2, None):
        torch.manual_seed(seed or 0)
        model, _ = load_reward_backbone(base)
        if seed:
            model = get_peft_model(model, RewardHead(model).trained_by(adapter))
        hashes.add(make(model, tmp_path / "out")._base["weights"])
    assert len(hashes) == 1


def test_a_stream_is_counted_once_however_often_it_is_read(base, tmp_path):
    rows = [*make_pairs(6), {"prompt": "say", "chosen": "thank " * 99, "rejected": "sorry"}]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    trainer = make(base, tmp_path / "out", data=stream, max_length=64, max_steps=6)
    trainer.train()
    assert trainer.state.epoch > 2
    assert (trainer.overflow_report.rows, trainer.overflow_report.dropped_rows) == (7, 1)


def mine(model, inputs, return_outputs=False, num_items_in_batch=None):
    chosen, rejected = model(**inputs).logits.squeeze(-1).chunk(2)
    loss = -nn.functional.logsigmoid(chosen - rejected).mean()
    return (loss, {}) if return_outputs else loss


@pytest.mark.parametrize("name", ["compute_loss", "data_collator"])
def test_what_is_put_on_a_finished_trainer_is_refused(base, tmp_path, name):
    trainer = make(base, tmp_path / "out", max_steps=1)
    value = mine if name == "compute_loss" else trl.trainer.reward_trainer.DataCollatorForPreference(0)
    setattr(trainer, name, value)
    with pytest.raises(ValueError, match=f"^{name} was put on the trainer after it was made.*subclass"):
        trainer.train()


def test_a_loss_around_the_trainer_s_own_may_be_put_on_it(base, tmp_path):
    found = []
    for spied in (False, True):
        trainer = make(base, tmp_path / f"{spied}", max_steps=2, logging_steps=1, eval_strategy="steps",
                       arguments={"eval_dataset": make_pairs(4, 1)}.items())  # fmt: skip
        if spied:
            trainer.compute_loss = spy = Mock(side_effect=trainer.compute_loss)
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == found[1] and spy.call_count >= 3


def test_a_loss_put_in_place_of_the_class_s_own_gets_trl_s_batches(base, tmp_path, monkeypatch):
    monkeypatch.setattr(RewardTrainer, "compute_loss", lambda self, *given, **named: mine(*given, **named))
    trainer = make(base, tmp_path / "out", max_steps=2, logging_steps=1)
    assert "as TRL's, for your compute_loss" in str(trainer.plan())
    trainer.train()
    found = losses(trainer)
    monkeypatch.undo()
    theirs = type("Mine", (RewardTrainer,), {"compute_loss": short})
    other = make(base, tmp_path / "other", cls=theirs, max_steps=2, logging_steps=1)
    other.train()
    assert found == pytest.approx(losses(other), abs=1e-5)


@pytest.mark.parametrize(
    "adapter, error, said",
    [
        (XLoraConfig(hidden_size=8, adapters={}), ValueError, "XLORA cannot be merged.*: use LoRA$"),
        ({"r": 8}, TypeError, "peft_config must be one of PEFT's, as LoraConfig.., got dict$"),
        ("lora", TypeError, "got str$"),
    ],
)
def test_no_adapter_to_train_with_is_one_line_before_the_training(base, tmp_path, adapter, error, said):
    with pytest.raises(error, match=said) as found:
        make(base, tmp_path / "out", arguments={"peft_config": adapter}.items())
    assert "\n" not in str(found.value)


def test_a_model_of_no_folder_has_seen_nothing(base, tmp_path):
    model, tokenizer = load_reward_backbone(base)
    model.config._name_or_path = model.name_or_path = ""
    trainer = make(model, tmp_path / "out", arguments={"processing_class": tokenizer}.items())
    assert len(trainer._seen) == 0
