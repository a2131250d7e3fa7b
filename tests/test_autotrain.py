"The aitraining-compatible interface: every parameter takes effect or is refused, and a run works end to end."

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import reward_kit.autotrain as autotrain_module
import reward_kit.tools.pipeline as pipeline_module
from reward_kit.autotrain import AutoTrainProject, LLMTrainingParams
from reward_kit.beside import bits_and_kernels
from reward_kit.model.runs import RunRecord
from reward_kit.model.settings import ParameterError, PPOSettings, RewardSettings, settings_of

PARAMETERS = settings_of(LLMTrainingParams)
REFUSED = [name for name, parameter in PARAMETERS.items() if parameter.more["refused"]]  # by trainer ppo
COLUMNS = {"prompt_text_column": "prompt", "text_column": "chosen", "rejected_text_column": "rejected"}
BASE = {
    "model": "some/model",
    "data_path": "data.jsonl",
    "project_name": "out",
    "trainer": "reward",
    **COLUMNS,
}
PPO = {
    "model": "some/model",
    "project_name": "out",
    "trainer": "ppo",
    "rl_reward_model_path": "org/reward-model",
}


def params(**more):
    return LLMTrainingParams(**(BASE | more))


def arguments(given):
    "What a training with these LLMTrainingParams is called with."
    return AutoTrainProject(params=given).arguments


def config(**more):
    "The RewardConfig a run with these parameters would use."
    from reward_kit.model.trainer import RewardConfig

    return RewardConfig(**{**arguments(params(**more))["config"], "output_dir": "unused", "use_cpu": True})


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"epochs": 3}, {"num_train_epochs": 3}),
        ({"epochs": "0.5"}, {"num_train_epochs": 0.5}),
        ({"batch_size": 5}, {"per_device_train_batch_size": 5}),
        ({"eval_batch_size": 7}, {"per_device_eval_batch_size": 7}),
        ({"gradient_accumulation": 6}, {"gradient_accumulation_steps": 6}),
        ({"lr": "2e-4"}, {"learning_rate": 2e-4}),
        ({"warmup_ratio": 0.25}, {"warmup_steps": 0.25}),
        ({"scheduler": "cosine"}, {"lr_scheduler_type": "cosine"}),
        ({"optimizer": "adafactor"}, {"optim": "adafactor"}),
        ({"weight_decay": 0.05}, {"weight_decay": 0.05}),
        ({"max_grad_norm": 0.3}, {"max_grad_norm": 0.3}),
        ({"seed": 7}, {"seed": 7}),
        ({"block_size": 300}, {"max_length": 300}),
        ({"max_length": 301}, {"max_length": 301}),
        ({"model_max_length": 302}, {"max_length": 302}),
        ({"block_size": 400, "model_max_length": 302}, {"max_length": 302}),
        ({}, {"max_length": None, "report_to": [], "gradient_checkpointing": True, "push_to_hub": False}),
        ({"mixed_precision": "bf16"}, {"bf16": True, "fp16": False}),
        ({"mixed_precision": "no"}, {"bf16": False, "fp16": False}),
        ({"mixed_precision": "none"}, {"bf16": False, "fp16": False}),
        ({"disable_gradient_checkpointing": True}, {"gradient_checkpointing": False}),
        ({"auto_find_batch_size": True}, {"auto_find_batch_size": True}),
        (
            {"use_flash_attention_2": True},
            {"model_init_kwargs": {"attn_implementation": "flash_attention_2"}},
        ),
        ({"attn_implementation": "eager"}, {"model_init_kwargs": {"attn_implementation": "eager"}}),
        ({"logging_steps": 3}, {"logging_steps": 3}),
        ({"eval_strategy": "no"}, {"eval_strategy": "no"}),
        (
            {"eval_strategy": "steps", "save_steps": 20},
            {"eval_strategy": "steps", "eval_steps": 20, "save_steps": 20},
        ),
        ({"eval_strategy": "steps"}, {"eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.1}),
        ({"save_strategy": "no"}, {"save_strategy": "no"}),
        ({"save_strategy": "epoch"}, {"save_strategy": "epoch"}),
        ({"save_steps": 7}, {"save_strategy": "steps", "save_steps": 7}),
        (
            {},
            {
                "save_strategy": "steps",
                "save_steps": 0.1,
                "save_total_limit": 1,
                "load_best_model_at_end": False,
            },
        ),
        ({"save_total_limit": 4}, {"save_total_limit": 4}),
        ({"log": "tensorboard"}, {"report_to": ["tensorboard"]}),
        (
            {"valid_split": "v", "epochs": 2},
            {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "save_strategy": "epoch"},
        ),
        (
            {"valid_split": "v", "eval_strategy": "steps"},
            {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 0.1},
        ),
        (
            {"valid_split": "v"},
            {"load_best_model_at_end": False, "save_strategy": "steps", "save_steps": 0.1},
        ),
        (
            {"valid_split": "v", "epochs": 2, "save_strategy": "steps"},
            {"load_best_model_at_end": False, "save_strategy": "steps"},
        ),
        ({"eval_dataset_path": "e.jsonl", "save_strategy": "no"}, {"load_best_model_at_end": False}),
    ],
)
def test_training_parameters_reach_the_config(given, expected):
    made = config(**given)
    assert {name: getattr(made, name) for name in expected} == expected


def test_fp16_reaches_the_config():
    assert {k: arguments(params(mixed_precision="fp16"))["config"][k] for k in ("bf16", "fp16")} == {
        "bf16": False,
        "fp16": True,
    }


def test_the_config_accepts_every_field_the_parameters_name():
    from reward_kit.model.trainer import RewardConfig

    assert set(arguments(params(attn_implementation="eager", valid_split="v"))["config"]) <= {
        f.name for f in fields(RewardConfig)
    }


def test_the_playground_keeps_its_own_settings_unless_they_are_given():
    values = arguments(params(model="playground", lr=3e-5, seed=5))["config"]
    assert values["learning_rate"] == 3e-5 and values["seed"] == 5 and values["report_to"] == "none"
    assert not {
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_checkpointing",
        "warmup_steps",
    } & set(values)


def test_lora_parameters_reach_the_lora_config():
    pytest.importorskip("peft")
    assert arguments(params())["peft_config"] is None
    made = pipeline_module._lora_config(
        arguments(
            params(peft=True, lora_r=4, lora_alpha=9, lora_dropout=0.2, target_modules="q_proj, v_proj")
        )["peft_config"],
        "SEQ_CLS",
    )
    assert (made.r, made.lora_alpha, made.lora_dropout, made.target_modules) == (
        4,
        9,
        0.2,
        {"q_proj", "v_proj"},
    )
    assert made.task_type == "SEQ_CLS"
    assert (
        pipeline_module._lora_config(arguments(params(peft=True))["peft_config"], "SEQ_CLS").target_modules
        == "all-linear"
    )


def test_data_parameters_reach_the_pipeline():
    given = arguments(
        params(data_path="folder", valid_split="dev", max_samples=9, chat_template="chatml", overwrite=True)
    )
    assert (given["data"], given["split"], given["eval_data"], given["eval_split"]) == (
        "folder",
        None,
        "folder",
        "dev",
    )
    assert (given["max_samples"], given["chat_template"], given["overwrite"], given["quantization"]) == (
        9,
        "chatml",
        True,
        None,
    )
    one = arguments(params(data_path="file.jsonl", eval_dataset_path="other.jsonl"))
    assert (one["data"], one["eval_data"], one["eval_split"]) == ("file.jsonl", "other.jsonl", None)
    assert arguments(params(data_path="org/dataset", train_split="t"))["split"] == "t"
    assert arguments(params(peft=True, quantization="int8"))["quantization"] == "int8"


def test_splits_are_files_of_a_folder(base, tmp_path):
    write_pairs(tmp_path / "train.jsonl", 12)
    write_pairs(tmp_path / "dev.jsonl", 3)
    given = {"model": base, "data_path": str(tmp_path), "project_name": str(tmp_path / "out"), "epochs": 0.1}
    lines = []
    AutoTrainProject(params=params(**given, valid_split="dev")).create(
        progress=False, say=lambda text: lines.append(str(text))
    )
    assert "Training on 12 preferences, evaluating on 3 given ones." in "\n".join(lines)
    for path, more in (
        (tmp_path, {"valid_split": "tset"}),
        (tmp_path / "dev.jsonl", {"valid_split": "test"}),
    ):
        with pytest.raises(ValueError, match=f"split.*{more['valid_split']}"):
            AutoTrainProject(params=params(**given | {"data_path": str(path)}, **more)).create(
                progress=False, say=lambda text: None
            )


def test_every_parameter_is_mapped_or_belongs_to_ppo():
    for name, parameter in PARAMETERS.items():
        assert name.startswith("rl_") or parameter.more["reward"], name
        assert parameter.more["ppo"] or parameter.more["refused"], name
        assert parameter.help, name
    assert not LLMTrainingParams.unsupported.keys() & PARAMETERS.keys()


def test_a_parameter_that_a_setting_takes_has_its_help_and_limits():
    reward, ppo = settings_of(RewardSettings), settings_of(PPOSettings)
    assert PARAMETERS["epochs"].help == reward["num_train_epochs"].help
    assert PARAMETERS["scheduler"].choices == reward["lr_scheduler_type"].choices
    assert (
        PARAMETERS["rl_gamma"].help == ppo["gamma"].help
        and PARAMETERS["rl_gamma"].limits is ppo["gamma"].limits
    )


@pytest.mark.parametrize("missing", list(COLUMNS))
def test_each_missing_column_parameter_is_named(missing):
    with pytest.raises(ParameterError, match=f"--{missing.replace('_', '-')} \\({missing}\\)"):
        LLMTrainingParams(**{k: v for k, v in BASE.items() if k != missing})


@pytest.mark.parametrize(
    "given, message",
    [
        ({"text_colum": "x"}, "unknown parameter text_colum. Did you mean text_column?"),
        ({"qqq": 1}, "unknown parameter qqq."),
        ({"unsloth": True}, "unsloth is known but not supported"),
        ({"learning_rate": 1e-5}, "this interface calls it lr"),
        ({"rl_gamma": 0.5}, "belongs to trainer ppo"),
        ({"trainer": "sft"}, "known but not supported"),
        ({"trainer": "rewrd"}, "Did you mean reward?"),
        ({"trainer": None, "model": None}, "--model .*--trainer"),
        ({"batch_size": 0}, "batch_size must be above 0"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"block_size": [1, 2]}, "block_size must be a whole number"),
        ({"block_size": 0}, "block_size must be above 0"),
        ({"block_size": 5, "max_length": 6}, "name the same limit"),
        ({"warmup_ratio": 1.5}, "in \\[0, 1\\)"),
        ({"log": "mlflow"}, "none, tensorboard, wandb"),
        ({"padding": "left"}, "padding side"),
        ({"add_eos_token": "false"}, "exactly one EOS"),
        ({"merge_adapter": False}, "adapter/"),
        ({"quantization": "int4"}, "needs peft"),
        ({"push_to_hub": True}, "--username"),
        ({"valid_split": "v", "eval_dataset_path": "e"}, "not both"),
        ({"logging_steps": 0}, "logging_steps"),
        ({"lora_r": 99}, "only with --peft \\(peft\\), .*: --lora-r \\(lora_r\\)"),
        (
            {"lora_alpha": 2, "lora_dropout": 0.1, "target_modules": "q_proj"},
            "lora_alpha.*lora_dropout.*target_modules",
        ),
        ({"text_column": "prompt"}, "prompt_text_column and text_column name the same column 'prompt'"),
        ({"scheduler": "cosin"}, "Did you mean cosine"),
    ],
)
def test_what_cannot_be_honoured_is_refused(given, message):
    with pytest.raises(ParameterError, match=message):
        params(**given)


def test_quantization_without_cuda_says_so():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ValueError, match="CUDA"):
        bits_and_kernels._quantized("int4")


def test_signature_and_secrets():
    import inspect

    assert set(inspect.signature(LLMTrainingParams).parameters) == set(PARAMETERS)
    assert "hf_secret" not in repr(params(token="hf_secret"))


def test_the_token_is_set_for_the_run_only(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "before")
    with autotrain_module._hub_token("mine"):
        assert os.environ["HF_TOKEN"] == "mine"
    assert os.environ["HF_TOKEN"] == "before"


def test_push_uploads_without_checkpoints(monkeypatch, tmp_path):
    calls = {}

    class Api:
        def __init__(self, token):
            calls["token"] = token

        def create_repo(self, repo_id, **more):
            calls["repo"] = (repo_id, more["private"])
            return f"https://hub/{repo_id}"

        def upload_folder(self, **more):
            calls["upload"] = more

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    address = autotrain_module._push(
        tmp_path / "rm", params(push_to_hub=True, username="me", token="t", hub_private=False)
    )
    assert address == "https://hub/me/rm" and calls["token"] == "t" and calls["repo"] == ("me/rm", False)
    assert "checkpoint-*" in calls["upload"]["ignore_patterns"]

    def refuse(self, **more):
        raise RuntimeError("403\nforbidden")

    monkeypatch.setattr(Api, "upload_folder", refuse)
    with pytest.raises(OSError, match="the model is in .* 403 forbidden"):
        autotrain_module._push(tmp_path / "rm", params(push_to_hub=True, repo_id="org/rm"))


# --- what the parameters become with trainer ppo


def ppo_params(**more):
    return LLMTrainingParams(**(PPO | {"data_path": "org/prompts"} | more))


def ppo_config(**more):
    from reward_kit.rl.policies import PPOConfig

    return PPOConfig(**arguments(ppo_params(**more))["config"])


@pytest.mark.parametrize(
    "given, expected",
    [
        (
            {},
            {
                "gamma": 0.99,
                "lam": 0.95,
                "kl_coef": 0.1,
                "vf_coef": 1.0,
                "cliprange": 0.2,
                "cliprange_value": 0.2,
                "num_ppo_epochs": 4,
            },
        ),
        (
            {},
            {
                "local_batch_size": 128,
                "num_mini_batches": 16,
                "response_length": 128,
                "top_k": 50,
                "top_p": 1.0,
                "temperature": 1.0,
                "report_to": "none",
            },
        ),
        (
            {},
            {
                "per_device_train_batch_size": 2,
                "learning_rate": 3e-5,
                "warmup_steps": 0.1,
                "bf16": None,
                "gradient_checkpointing": True,
                "logging_steps": 1,
            },
        ),
        (
            {},
            {
                "save_steps": 0.1,
                "eval_steps": 0.9999,
                "save_total_limit": 1,
                "local_rollout_forward_batch_size": 64,
            },
        ),
        ({"rl_gamma": 0.9}, {"gamma": 0.9}),
        ({"rl_gae_lambda": 0.8}, {"lam": 0.8}),
        ({"rl_kl_coef": "0.3"}, {"kl_coef": 0.3}),
        ({"rl_value_loss_coef": 0.4}, {"vf_coef": 0.4}),
        ({"rl_clip_range": 0.1}, {"cliprange": 0.1}),
        ({"rl_value_clip_range": 0.3}, {"cliprange_value": 0.3}),
        ({"rl_num_ppo_epochs": 2}, {"num_ppo_epochs": 2}),
        ({"rl_max_new_tokens": 17}, {"response_length": 17}),
        ({"rl_top_k": 5}, {"top_k": 5}),
        ({"rl_top_p": 0.9}, {"top_p": 0.9}),
        ({"rl_temperature": 0.5}, {"temperature": 0.5}),
        (
            {"rl_chunk_size": 32},
            {
                "local_batch_size": 32,
                "num_mini_batches": 4,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 16,
            },
        ),
        ({"rl_mini_batch_size": 64}, {"local_batch_size": 128, "num_mini_batches": 2}),
        (
            {"rl_chunk_size": 12, "rl_mini_batch_size": 6, "batch_size": 3},
            {"gradient_accumulation_steps": 4, "num_mini_batches": 2},
        ),
        (
            {"rl_chunk_size": 21},
            {"per_device_train_batch_size": 1, "num_mini_batches": 21},
        ),  # what is not named adapts
        ({"batch_size": 16}, {"per_device_train_batch_size": 16, "local_batch_size": 128}),
        ({"eval_batch_size": 32}, {"local_rollout_forward_batch_size": 32}),
        ({"epochs": 4}, {"num_train_epochs": 4, "eval_steps": 0.25}),
        ({"lr": 1e-6}, {"learning_rate": 1e-6}),
        ({"warmup_ratio": 0.2}, {"warmup_steps": 0.2}),
        ({"scheduler": "cosine"}, {"lr_scheduler_type": "cosine"}),
        ({"weight_decay": 0.1}, {"weight_decay": 0.1}),
        ({"max_grad_norm": 0.5}, {"max_grad_norm": 0.5}),
        ({"seed": 9}, {"seed": 9}),
        ({"logging_steps": 5}, {"logging_steps": 5}),
        ({"save_total_limit": 3}, {"save_total_limit": 3}),
        ({"log": "tensorboard"}, {"report_to": "tensorboard"}),
        ({"mixed_precision": "bf16"}, {"bf16": True}),
        ({"mixed_precision": "no"}, {"bf16": False}),
        ({"disable_gradient_checkpointing": True}, {"gradient_checkpointing": False}),
        (
            {"use_flash_attention_2": True},
            {"model_init_kwargs": {"attn_implementation": "flash_attention_2"}},
        ),
        ({"attn_implementation": "eager"}, {"model_init_kwargs": {"attn_implementation": "eager"}}),
        ({"eval_strategy": "no"}, {"eval_steps": None}),
        ({"eval_strategy": "steps", "save_steps": 3}, {"eval_steps": 3, "save_steps": 3}),
        ({"save_strategy": "no"}, {"save_steps": 0}),
        ({"save_strategy": "epoch", "epochs": 2}, {"save_steps": 0.5}),
    ],
)
def test_parameters_reach_the_ppo_config(given, expected):
    made = ppo_config(**given)
    assert {name: getattr(made, name) for name in expected} == expected


# parameters that do the same with either trainer, and are tested there or are refused for both
SHARED = {
    "add_eos_token",
    "padding",
    "merge_adapter",
    "push_to_hub",
    "username",
    "repo_id",
    "hub_private",
    "token",
}
OTHER_VALUE = {
    "model": "m",
    "project_name": "o",
    "data_path": "d",
    "train_split": "t",
    "valid_split": "v",
    "eval_dataset_path": "e",
    "max_samples": 3,
    "prompt_text_column": "q",
    "text_column": "c",
    "rejected_text_column": "r",
    "block_size": 99,
    "model_max_length": 99,
    "max_length": 99,
    "chat_template": "chatml",
    "epochs": 2,
    "batch_size": 4,
    "eval_batch_size": 4,
    "gradient_accumulation": 2,
    "lr": 1e-6,
    "warmup_ratio": 0.2,
    "scheduler": "cosine",
    "optimizer": "adafactor",
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "seed": 1,
    "mixed_precision": "no",
    "disable_gradient_checkpointing": True,
    "auto_find_batch_size": True,
    "use_flash_attention_2": True,
    "attn_implementation": "eager",
    "logging_steps": 7,
    "eval_strategy": "no",
    "save_strategy": "no",
    "save_steps": 7,
    "save_total_limit": 2,
    "skip_broken_rows": True,
    "keep_checkpoints": True,
    "log": "wandb",
    "overwrite": True,
    "peft": True,
    "lora_r": 2,
    "lora_alpha": 3,
    "lora_dropout": 0.3,
    "target_modules": "q_proj",
    "quantization": "int8",
    "rl_reward_model_path": "r",
    "rl_gamma": 0.5,
    "rl_gae_lambda": 0.5,
    "rl_kl_coef": 0.5,
    "rl_value_loss_coef": 0.5,
    "rl_clip_range": 0.5,
    "rl_value_clip_range": 0.5,
    "rl_num_ppo_epochs": 2,
    "rl_chunk_size": 64,
    "rl_mini_batch_size": 4,
    "rl_max_new_tokens": 9,
    "rl_temperature": 0.5,
    "rl_top_k": 3,
    "rl_top_p": 0.5,
}


@pytest.mark.parametrize("name", sorted(set(PARAMETERS) - SHARED - {"trainer"}))
def test_every_parameter_changes_a_ppo_run_or_is_refused(name):
    more = {"peft": True} if name.startswith("lora_") or name in ("target_modules", "quantization") else {}
    if name in REFUSED:
        with pytest.raises(ParameterError, match=f"{name} is not supported by trainer ppo: "):
            ppo_params(**more, **{name: OTHER_VALUE[name]})
    else:
        assert arguments(ppo_params(**more)) != arguments(ppo_params(**more, **{name: OTHER_VALUE[name]}))


def test_the_playground_keeps_its_own_ppo_settings_unless_they_are_named():
    from reward_kit.rl.policies import _PLAYGROUND_PPO as PLAYGROUND_PPO
    from reward_kit.rl.policies import PPOConfig

    values = arguments(ppo_params(model="playground"))["config"]
    assert not PLAYGROUND_PPO.keys() & values.keys()
    own = PPOConfig(**values).fill(PLAYGROUND_PPO)
    assert {name: getattr(own, name) for name in PLAYGROUND_PPO} == PLAYGROUND_PPO
    named = PPOConfig(
        **arguments(ppo_params(model="playground", rl_kl_coef=0.1, lr=3e-5, rl_mini_batch_size=8))["config"]
    ).fill(PLAYGROUND_PPO)
    assert (named.kl_coef, named.learning_rate, named.local_batch_size // named.num_mini_batches) == (
        0.1,
        3e-5,
        8,
    )
    assert named.local_batch_size == own.local_batch_size and named.temperature == own.temperature


def test_lora_of_a_policy():
    pytest.importorskip("peft")
    made = pipeline_module._lora_config(
        arguments(ppo_params(peft=True, lora_r=3))["peft_config"], "CAUSAL_LM"
    )
    assert (made.task_type, made.r) == ("CAUSAL_LM", 3)
    assert pipeline_module._lora_config({"target_modules": "q_proj"}, "CAUSAL_LM").target_modules == {
        "q_proj"
    }


@pytest.mark.parametrize(
    "given, message",
    [
        ({"rl_reward_model_path": None}, "--rl-reward-model-path"),
        ({"rl_mini_batch_size": 48}, "rl_mini_batch_size=48 does not divide the 128 responses"),
        ({"rl_chunk_size": 10, "batch_size": 4}, "batch_size=4 does not divide the 10 responses"),
        ({"model": "playground", "batch_size": 7}, "batch_size=7 does not divide"),
        (
            {"gradient_accumulation": 4},
            "gradient_accumulation is not supported by trainer ppo: rl_chunk_size",
        ),
        ({"mixed_precision": "fp16"}, "choose bf16 or no"),
        ({"text_column": "chosen"}, "reads prompts only"),
        ({"rl_temperature": 0}, "rl_temperature must be above 0"),
        ({"rl_reward_fn": "f"}, "the reward of PPO is rl_reward_model_path"),
        ({"lora_r": 2}, "only with --peft"),
    ],
)
def test_what_ppo_cannot_honour_is_refused(given, message):
    with pytest.raises(ParameterError, match=message):
        ppo_params(**given)


@pytest.mark.parametrize(
    "name, text",
    [("a.csv", "prompt,x\n1,2\n"), ("a.tsv", "prompt\tx\n1\t2\n"), ("a.json", '[{"prompt": "a", "x": 1}]')],
)
def test_prompts_of_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    for path in (tmp_path / name, tmp_path):
        rows = pipeline_module._read_prompts(str(path), None, None)
        assert len(rows) == 1 and rows[0]["prompt"] in ("1", "a") and name in rows[0]["origin"]


def test_prompts_of_what_cannot_be_read(tmp_path):
    (tmp_path / "a.jsonl").write_text("not json\n")
    (tmp_path / "b.jsonl").write_text("")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("a.jsonl", "a.jsonl:1: "),
        ("b.jsonl", "no rows|empty"),
        ("none.jsonl", "no such file"),
        ("empty", "empty"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline_module._read_prompts(str(tmp_path / name), None, None)
    with pytest.raises(ValueError, match="no split.*test"):
        pipeline_module._read_prompts(str(tmp_path), "test", None)


# --- a run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "A tiny decoder with a byte-level tokenizer, made here."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("base")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [],
        trainers.BpeTrainer(vocab_size=300, special_tokens=list(special.values()), initial_alphabet=alphabet),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **special)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
    }
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=2, **sizes)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_pairs(path, n=40, names=("prompt", "chosen", "rejected")):
    rows = [(f"Question {i}?", f"Answer {i} is right.", f"No {i}.") for i in range(n)]
    path.write_text("".join(json.dumps(dict(zip(names, row))) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def documented(base, tmp_path_factory):
    "The documented Python, with other column names, in a folder of its own."
    folder = tmp_path_factory.mktemp("work")
    write_pairs(folder / "preferences.jsonl", names=("question", "good", "bad"))
    before = os.getcwd()
    os.chdir(folder)
    said = []
    try:
        given = LLMTrainingParams(
            model=base,
            data_path="./preferences.jsonl",
            project_name="reward-model",
            trainer="reward",
            prompt_text_column="question",
            text_column="good",
            rejected_text_column="bad",
            epochs=2,
            batch_size=4,
            gradient_accumulation=1,
            lr=1e-3,
            save_strategy="steps",
            save_steps=10,
        )
        project = AutoTrainProject(params=given, backend="local", process=True)
        code = project.create(progress=False, say=lambda text: said.append(str(text)))
    finally:
        os.chdir(before)
    return {"folder": folder, "project": project, "code": code, "said": "\n".join(said), "params": given}


def test_create_returns_the_process_id_and_leaves_a_folder(documented):
    assert documented["code"] == os.getpid()
    assert documented["project"].path == Path("reward-model")
    names = {p.name for p in (documented["folder"] / "reward-model").iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "reward_kit.json",
        "README.md",
        "training_curve.png",
        "trust_accuracy.png",
        "data_report.png",
    } <= names
    assert not [name for name in names if name.startswith("checkpoint-")]
    assert {p.name for p in documented["folder"].iterdir()} == {
        "preferences.jsonl",
        "reward-model",
        "reward-model.held_out.jsonl",
    }
    card = (documented["folder"] / "reward-model" / "README.md").read_text()
    assert "95% interval" in card and "preferences.jsonl" in card and "data_report.png" in card
    rows = [
        json.loads(line) for line in (documented["folder"] / "preferences.jsonl").read_text().splitlines()
    ]
    files = {
        p: p.read_text()
        for p in (documented["folder"] / "reward-model").rglob("*")
        if p.suffix in (".md", ".json", ".jsonl") and "tokenizer" not in p.name
    }
    leaked = [
        p.name for p, text in files.items() for row in rows if row["good"] in text or row["bad"] in text
    ]
    assert len(files) > 4 and not leaked, "a folder that may be published holds no text of the data"
    assert documented["said"].count("\nstep ") >= 18 - 1, "a short run is logged at every step"
    for line in ("rows kept", "Training on 36 preferences, evaluating on 4", "Starting a new run", "step "):
        assert line in documented["said"]


def test_the_documented_snippet_works_and_agrees_with_score(documented):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from reward_kit.scores.inference import RewardModel

    folder = str(documented["folder"] / "reward-model")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "What is AI? AI is artificial intelligence..."
    with torch.no_grad():
        score = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=512)).logits.item()
    assert score == pytest.approx(RewardModel.from_pretrained(folder).score(text), abs=1e-5)


def test_a_finished_run_is_kept_and_can_be_overwritten(documented, monkeypatch):
    monkeypatch.chdir(documented["folder"])
    with pytest.raises(FileExistsError, match="finished.*--overwrite"):
        AutoTrainProject(params=documented["params"]).create(progress=False, say=lambda text: None)
    changed = LLMTrainingParams(
        **{n: getattr(documented["params"], n) for n in documented["params"].given} | {"lr": 2e-3}
    )
    with pytest.raises(FileExistsError, match="learning_rate 0.001 -> 0.002"):
        AutoTrainProject(params=changed).create(progress=False, say=lambda text: None)
    record = json.loads((documented["folder"] / "reward-model" / "training_run.json").read_text())
    assert record["finished"] and record["settings"]["learning_rate"] == 1e-3


def run(model, data, output, **more):
    said = []
    config = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "estimate_time": False,
    }
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    options = {
        "columns": columns,
        "progress": False,
        "say": lambda text: said.append(str(text)),
        "config": config,
    } | more
    return pipeline_module.train_reward_model(model, data, output, **options), "\n".join(said)


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_a_run_whose_held_out_part_cannot_be_evaluated_does_not_begin(base, tmp_path):
    data, said = write_pairs(tmp_path / "p.jsonl"), []
    ties = [{"prompt": f"t{n}", "response_a": "x", "response_b": "y", "label": "tie"} for n in range(4)]
    with pytest.raises(ValueError, match="4 held out: both need at least one, and of those .* no tie"):
        run(base, data, tmp_path / "out", eval_data=ties, columns=None, say=said.append)
    assert not [line for line in said if str(line).startswith("step")]


def test_a_short_run_that_is_killed_loses_one_interval(base, tmp_path):
    data, out = write_pairs(tmp_path / "p.jsonl"), tmp_path / "out"

    def die(text):
        if str(text).startswith("step 6/9"):
            raise SystemExit("killed")

    with pytest.raises(SystemExit):
        run(base, data, out, say=die)
    assert not RunRecord(out).read()["finished"] and checkpoints(out) == ["checkpoint-4", "checkpoint-5"]
    result, said = run(base, data, out)
    assert (
        result.resumed
        and "Resuming from checkpoint-5" in said
        and "step 6/9" in said
        and "step 5/9" not in said
    )
    assert RunRecord(out).read()["finished"] and checkpoints(out) == []
    whole, _ = run(base, data, tmp_path / "whole")
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_a_finished_run_is_evaluated_where_it_is_asked_for(base, tmp_path):
    data, out = write_pairs(tmp_path / "p.jsonl"), tmp_path / "out"
    first, _ = run(base, data, out)
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again, said = run(base, data, out, keep_finished=True)
    assert "not trained again" in said and not again.resumed and again.path == first.path
    assert (
        again.evaluation.accuracy == first.evaluation.accuracy
        and again.held_out.fingerprint == first.held_out.fingerprint
    )
    assert files == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="other settings"):
        run(base, data, out, keep_finished=True, chat_template="zephyr")
    new, said = run(base, data, tmp_path / "new", keep_finished=True)
    assert (
        "Starting a new run" in said
        and (new.path / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    )


def test_a_run_stopped_in_its_evaluation_resumes_and_can_keep_its_checkpoints(base, tmp_path, monkeypatch):
    data, out = write_pairs(tmp_path / "p.jsonl", 24), tmp_path / "out"

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline_module, "evaluate_reward_model", stop)
    with pytest.raises(KeyboardInterrupt):
        run(base, data, out)
    monkeypatch.undo()
    (out / "checkpoint-of-mine").mkdir()
    result, said = run(base, data, out, keep_checkpoints=True)
    assert result.resumed and "its report is made now" in said and len(checkpoints(out)) == 3
    assert checkpoints(out)[-1] == "checkpoint-of-mine"
    result, said = run(base, data, out, overwrite=True)
    assert not result.resumed and "Starting a new run" in said and "checkpoint-6" not in checkpoints(out)


def test_the_folder_names_no_path_of_this_machine(documented, base):
    folder = documented["folder"] / "reward-model"
    texts = {
        path.name: path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".md", ".jinja")
    }
    assert {"README.md", "reward_kit.json", "training_run.json", "report.md"} <= set(texts)
    assert not [
        name
        for name, text in texts.items()
        if str(Path(base).parent) in text or str(documented["folder"]) in text
    ]
    assert f"| base model | {Path(base).name} |" in texts["README.md"] and "null" not in texts["README.md"]


def test_lora_given_evaluation_data_and_a_chat_template(base, tmp_path):
    pytest.importorskip("peft")
    data, other = write_pairs(tmp_path / "p.jsonl", 24), write_pairs(tmp_path / "e.jsonl", 6)
    lora = arguments(params(peft=True, lora_r=2, target_modules="q_proj,v_proj"))["peft_config"]
    result, said = run(
        base,
        data,
        tmp_path / "out",
        eval_data=other,
        peft_config=lora,
        chat_template="chatml",
        max_samples=20,
    )
    assert "Training on 20 preferences, evaluating on 6 given ones" in said
    adapter = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert (
        adapter["r"] == 2
        and sorted(adapter["target_modules"]) == ["q_proj", "v_proj"]
        and "score" in adapter["modules_to_save"]
    )
    assert "<|im_start|>" in (tmp_path / "out" / "chat_template.jinja").read_text()
    assert result.evaluation.to_dict()


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "empty|no rows"),
        ('{"prompt": "p", "chosen": null, "rejected": "r"}\n', "p.jsonl"),
        ("not json\n", "p.jsonl:1"),
        ('{"prompt": "p", "text": "a"}\n', "chosen"),
    ],
)
def test_data_that_cannot_be_used_leaves_nothing_behind(base, tmp_path, text, message):
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        run(base, tmp_path / "p.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_row_stops_the_run_unless_it_may_be_left_out(base, tmp_path):
    data = write_pairs(tmp_path / "p.jsonl", 12)
    with open(data, "a") as file:
        file.write(
            '{"prompt": "p", "chosen": null, "rejected": "r"}\nnot json\n{"prompt": "p", "chosen": "",'
            ' "rejected": "r"}\n'
        )
    with pytest.raises(
        ValueError, match=r"p.jsonl:13: null chosen; p.jsonl:14.*malformed JSON.*skip_broken_rows=True"
    ) as caught:
        run(base, data, tmp_path / "out")
    assert (
        "\n" not in str(caught.value) and "empty" not in str(caught.value) and not (tmp_path / "out").exists()
    )
    result, _ = run(base, data, tmp_path / "out", skip_broken_rows=True, config={"max_steps": 1})
    assert result.data_report.rows_dropped == 3


def test_shared_prompts_are_counted_said_and_written_into_the_card(base, tmp_path):
    data = write_pairs(tmp_path / "p.jsonl", 24)
    lines = Path(data).read_text().splitlines(keepends=True)
    (tmp_path / "e.jsonl").write_text("".join(lines[:2]) + lines[2].replace("Question", "Another question"))
    result, said = run(
        base, data, tmp_path / "out", eval_data=str(tmp_path / "e.jsonl"), config={"max_steps": 1}
    )
    overlap = result.data_report.overlaps["e.jsonl"]
    assert overlap["prompts"] == 3 and f"Warning: {overlap['shared']} of the 3 evaluation prompts" in said
    verdict = next(v for v in result.data_report.verdicts if v.practice == "no prompts across splits")
    assert verdict.status == "fail" and verdict.measured in (tmp_path / "out" / "README.md").read_text()


def test_the_same_full_texts_are_noticed():
    from reward_kit.data.preferences import load_preferences

    rows = [{"chosen": f"Text {i} is good.", "rejected": f"Text {i}."} for i in range(3)]
    train = load_preferences(rows, columns={"prompt": None}, progress=False)
    assert "3 of the 3 evaluation prompts" in pipeline_module._with_overlap(train.report, train, train)[1]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"eval_fraction": 2}, "eval_fraction must be in \\(0, 1\\), got 2"),
        ({"max_samples": 0}, "max_samples must be above 0"),
        ({"config": {"learning_rate": -1}}, "learning_rate must be above 0, got -1"),
        ({"config": {"learning_rat": 1}}, "RewardConfig has no learning_rat. Did you mean learning_rate"),
        ({"config": {"lr_scheduler_type": "foo"}}, "foo"),
        ({"chat_template": "foo"}, "chat_template must be"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_read(base, tmp_path, given, message):
    with pytest.raises(ParameterError, match=message):
        run(base, str(tmp_path / "none.jsonl"), tmp_path / "out", **given)
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_loaded_leaves_nothing_behind(tmp_path):
    data = write_pairs(tmp_path / "p.jsonl")
    with pytest.raises(ValueError, match="does not exist"):
        run(str(tmp_path / "no-model"), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_process_false_makes_one_bad_row_an_error(base, tmp_path):
    data = write_pairs(tmp_path / "p.jsonl", 12)
    with open(data, "a") as file:
        file.write('{"prompt": "p", "chosen": null, "rejected": "r"}\n')
    strict = params(model=base, data_path=data, project_name=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="strict"):
        AutoTrainProject(params=strict, process=False).create(progress=False, say=lambda text: None)


# --- a run of PPO


def write_prompts(path, n=24, name="prompt"):
    path.write_text("".join(json.dumps({name: f"Question {i}?"}) + "\n" for i in range(n)))
    return str(path)


@pytest.fixture(scope="module")
def reward_model(documented):
    return str(documented["folder"] / "reward-model")


SMALL = {
    "total_episodes": 40,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_ppo_epochs": 1,
    "response_length": 8,
    "learning_rate": 1e-3,
}


def teach(base, reward, prompts, out, **more):
    said = []
    options = {"progress": False, "say": lambda text: said.append(str(text)), "config": SMALL} | more
    return pipeline_module.train_ppo_policy(base, reward, prompts, out, **options), "\n".join(said)


def test_ppo_leaves_a_policy_that_writes(base, reward_model, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result, said = teach(base, reward_model, write_prompts(tmp_path / "p.jsonl"), tmp_path / "out")
    for line in (
        "22 prompts to train on, 2 held out",
        "5 batches of 8 responses of at most 8 tokens",
        "batch 0/5  held-out score",
        "batch 5/5  score",
        "95% interval",
    ):
        assert line in said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "README.md",
        "ppo_curve.png",
        "held_out.jsonl",
        "training_run.json",
    } <= names
    assert not any(name.startswith("checkpoint-") for name in names) and not list(tmp_path.glob(".*"))
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(result.path),
        AutoTokenizer.from_pretrained(result.path),
    )
    ids = tokenizer("Question 1?", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=4, min_new_tokens=4).shape[1] == ids["input_ids"].shape[1] + 4
    assert not torch.equal(
        model.get_input_embeddings().weight,
        AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight,
    )
    assert [a["row"] for a in result.before] == [a["row"] for a in result.after] == [0, 1] and abs(
        result.before[0]["kl"]
    ) < 1e-4
    rows = [json.loads(line) for line in (tmp_path / "out" / "held_out.jsonl").read_text().splitlines()]
    assert [row["score_after"] - row["score_before"] for row in rows] == pytest.approx(
        [b["score"] - a["score"] for a, b in zip(result.before, result.after)]
    )
    assert "## Held-out prompts" in (tmp_path / "out" / "README.md").read_text() and [
        log["step"] for log in result.history if "eval_score" in log
    ] == [0, 5]
    texts = [
        path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix in (".json", ".md", ".jsonl")
    ]
    assert not any(str(Path(base).parent) in text or str(Path(reward_model).parent) in text for text in texts)
    with pytest.raises(FileExistsError, match="finished.*--overwrite"):
        teach(base, reward_model, str(tmp_path / "p.jsonl"), tmp_path / "out")
    with pytest.raises(FileExistsError, match="kl_coef None -> 0.2"):
        teach(
            base, reward_model, str(tmp_path / "p.jsonl"), tmp_path / "out", config=SMALL | {"kl_coef": 0.2}
        )
    with pytest.raises(ParameterError, match="no unfinished run"):
        teach(base, reward_model, str(tmp_path / "p.jsonl"), tmp_path / "out", resume=True)


def test_a_killed_ppo_run_ends_with_the_same_policy(base, reward_model, tmp_path):
    import torch

    data, threads = write_prompts(tmp_path / "p.jsonl"), torch.get_num_threads()
    code = (
        "import os, signal, torch; torch.set_num_threads(1)\nfrom reward_kit.tools.pipeline import"
        " train_ppo_policy\ndie = lambda text: str(text).startswith('batch 4/5') and os.kill(os.getpid(),"
        f" signal.SIGKILL)\ntrain_ppo_policy({base!r}, {reward_model!r}, {data!r}, {str(tmp_path / 'out')!r},"
        f" config={SMALL!r}, progress=False, say=die)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (
        checkpoints(tmp_path / "out")[-1] == "checkpoint-3"
        and not RunRecord(tmp_path / "out").read()["finished"]
    )
    torch.set_num_threads(1)
    try:
        parts, said = teach(base, reward_model, data, tmp_path / "out", resume=True)
        whole, _ = teach(base, reward_model, data, tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert parts.resumed and "Resuming from checkpoint-3" in said and checkpoints(tmp_path / "out") == []
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    assert (parts.before, parts.after) == (whole.before, whole.after)


def test_conversations_lora_and_two_weighted_rewards(base, reward_model, tmp_path):
    pytest.importorskip("peft")
    from transformers import AutoTokenizer

    rows = [{"text": [{"role": "user", "content": f"Question {i}?"}]} for i in range(12)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = []

    def brevity(prompts, completions, **columns):
        seen.append((prompts[0], completions[0]))
        return [-len(c[0]["content"]) / 10 for c in completions]

    more = {
        "peft_config": {"r": 2, "target_modules": ["q_proj"]},
        "config": SMALL | {"total_episodes": 8},
        "reward_weights": [1.0, 0.5],
        "keep_checkpoints": True,
    }
    with pytest.raises(ValueError, match="chat template"):
        teach(base, reward_model, str(tmp_path / "p.jsonl"), tmp_path / "none", config=SMALL)
    result, said = teach(
        base,
        [reward_model, brevity],
        str(tmp_path / "p.jsonl"),
        tmp_path / "out",
        chat_template="chatml",
        **more,
    )
    assert result.chat and "judged by" in said and "brevity" in said and not (tmp_path / "none").exists()
    assert seen[0][0][0]["role"] == "user" and seen[0][1][0]["role"] == "assistant"
    assert (
        "<|im_start|>" in AutoTokenizer.from_pretrained(result.path).chat_template
        and (tmp_path / "out" / "adapter").is_dir()
    )
    assert checkpoints(tmp_path / "out") == ["checkpoint-1"]


def test_the_rates_that_lora_is_given_are_said(base, reward_model, tmp_path):
    pytest.importorskip("peft")
    lora, unnamed = (
        {"r": 2, "target_modules": ["q_proj"]},
        {name: value for name, value in SMALL.items() if name != "learning_rate"} | {"total_episodes": 8},
    )
    for name, more, line in (
        ("a", {"peft_config": lora}, "learning rate 0.0001 (critic 3e-06)."),
        ("b", {}, "learning rate 3e-06."),
        ("c", {"peft_config": lora, "config": unnamed | {"critic": "shared"}}, "learning rate 0.0001."),
    ):
        _, said = teach(base, reward_model, ["A?", "B?", "C?"], tmp_path / name, **{"config": unnamed} | more)
        assert line in said, said
    assert (
        "| learning rate | 0.0001 |\n| critic learning rate | 3e-06 |"
        in (tmp_path / "a" / "README.md").read_text()
    )


def test_given_held_out_prompts_and_none(base, reward_model, tmp_path):
    one_batch = SMALL | {"total_episodes": 8}
    result, said = teach(
        base, reward_model, ["A?", "B?"], tmp_path / "a", eval_prompts=["C?", "D?", "E?"], config=one_batch
    )
    assert [a["prompt"] for a in result.before] == ["C?", "D?", "E?"] and "3 held out" in said
    result, said = teach(base, reward_model, ["A?"], tmp_path / "b", eval_fraction=0, config=one_batch)
    assert result.before == [] and "none held out" in said and "No prompts were held out." in said


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"model": "reward"}, ValueError, "is a reward model, which writes no text"),
        ({"reward": "base"}, ValueError, "not a reward model"),
        ({"reward": "/no/reward-model"}, ValueError, "does not exist"),
        ({"prompts": []}, ValueError, "prompts has no rows; give at least one prompt"),
        ({"prompts": ["A?", " "]}, ValueError, "row [12]: empty prompt"),
        (
            {"prompts": ["A?"] * 3 + ["A? " * 200], "eval_fraction": 0.5},
            ValueError,
            "the prompt has .* tokens",
        ),
        (
            {"prompts": [{"my_question": "A?"}]},
            ValueError,
            "no column 'prompt', but 'my_question' looks like it",
        ),
        ({"prompts": ["A?"]}, ValueError, "two or more prompts"),
        ({"prompt_column": "quest"}, ValueError, "column 'quest' .for 'prompt'. is missing"),
        ({"prompts": [{"prompt": "A?", "context": "B"}]}, ValueError, "'context' stands beside the prompt"),
        ({"config": {"kl_coeff": 1}}, ParameterError, "PPOConfig has no kl_coeff. Did you mean kl_coef?"),
        (
            {"config": {"save_strategy": "no"}},
            ParameterError,
            "PPOConfig has no save_strategy: .*save_steps=0",
        ),
        (
            {"config": {"lr_scheduler_type": "reduce_lr_on_plateau"}},
            ParameterError,
            "lr_scheduler_type must be one of linear",
        ),
        ({"max_samples": 0}, ParameterError, "max_samples must be above 0, got 0"),
        ({"max_samples": -3}, ParameterError, "max_samples must be above 0, got -3"),
        ({"config": {"gamma": 2}}, ValueError, "gamma must be between 0 and 1"),
        ({"resume": True}, ParameterError, "holds no unfinished run"),
        ({"resume": True, "overwrite": True}, ParameterError, "give one of them"),
        ({"reward_weights": [1, 2]}, ValueError, "2 entries for 1 reward"),
        ({"chat_template": "chatmi"}, ParameterError, "chat_template must be"),
    ],
)
def test_bad_input_of_ppo_leaves_nothing_behind(base, reward_model, tmp_path, given, error, message):
    names = {"base": base, "reward": reward_model}
    given = {"model": base, "reward": reward_model, "prompts": ["A?", "B?"]} | {
        k: names.get(v, v) if isinstance(v, str) else v for k, v in given.items()
    }
    with pytest.raises(error, match=message) as caught:
        teach(given.pop("model"), given.pop("reward"), given.pop("prompts"), tmp_path / "out", **given)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_failed_start_leaves_the_policy_that_was_there(base, reward_model, tmp_path):
    teach(base, reward_model, ["A?", "B?"], tmp_path / "out", config=SMALL | {"total_episodes": 8})
    with pytest.raises(ValueError, match="does not exist"):
        teach(base, str(tmp_path / "none"), ["A?", "B?"], tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").exists()
    result, said = teach(
        base,
        reward_model,
        ["A?", "B?"],
        tmp_path / "out",
        config=SMALL | {"total_episodes": 16},
        overwrite=True,
    )
    assert "Starting a new run" in said and not result.resumed


@pytest.mark.slow
def test_two_processes_answer_and_save_together(base, tmp_path):
    (tmp_path / "run.py").write_text(
        "from reward_kit.tools.pipeline import train_ppo_policy\ndef brevity(completions, **columns): return"
        f" [-len(text) / 10 for text in completions]\nresult = train_ppo_policy({base!r}, brevity,"
        f" [f'Question {{i}}?' for i in range(20)], {str(tmp_path / 'out')!r}, eval_fraction=0.25,\n         "
        f"                 config={SMALL | {'use_cpu': True}!r}, progress=False)\nprint('rows', [a['row'] for"
        " a in result.before], [a['row'] for a in result.after])\n"
    )
    argv = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(tmp_path / "run.py"),
    ]
    env = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(Path(autotrain_module.__file__).parents[1]),
    }
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        done.stdout.count("rows [0, 1, 2, 3, 4] [0, 1, 2, 3, 4]") == 2
        and done.stdout.count("Starting a new run") == 1
    )
    assert (
        "3 batches of 16 responses" in done.stdout
        and len((tmp_path / "out" / "held_out.jsonl").read_text().splitlines()) == 5
    )
    assert RunRecord(tmp_path / "out").read()["finished"] and checkpoints(tmp_path / "out") == []
