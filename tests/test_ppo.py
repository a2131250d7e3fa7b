"""PPO: invariances, architectures, critics, adapters, resuming, processes, errors. The formulas are
pinned in the chapter."""

import asyncio
import dataclasses
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest
import torch
import transformers
from accelerate.tracking import GeneralTracker
from peft import LoraConfig, get_peft_model
from ppo_world import config, fixed_episodes, make_base, make_trainer, prompts, run_processes, vowels, weights
from tokenizers.processors import TemplateProcessing
from torch.utils.data import Subset, random_split
from trainer_world import make_tokenizer

import reward_kit.beside.faster_sampling  # noqa: F401, methods of Sampling
from reward_kit import load_preferences
from reward_kit.beside.trl_ppo import _ELSEWHERE as ELSEWHERE
from reward_kit.data.files import PreferenceDataError
from reward_kit.model.batches import bind_reward_forward
from reward_kit.model.encoding import RewardEncoder, prepare_tokenizer
from reward_kit.model.model_folder import ModelLoadError, RewardMetadata
from reward_kit.model.packing import _read_segments as read_segments
from reward_kit.model.packing import compile_layers, packing_problem
from reward_kit.model.runs import CheckpointError, TrainingInterrupted
from reward_kit.model.settings import settings_of
from reward_kit.rl.policies import PPOConfig, _make_critic
from reward_kit.rl.ppo import PPOTrainer
from reward_kit.rl.ppo_report import PPOReport
from reward_kit.rl.rewards import RewardError
from reward_kit.rl.rollouts import Episode, EpisodeBatch, Prompts, Sampling
from reward_kit.scores.inference import RewardModel, RowScorer
from reward_kit.tools.pipeline import _read_prompts, train_ppo_policy


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("policy") / "base")


def tiny(name):
    "A random causal model of an architecture, small."
    shared = dict(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    grouped = shared | dict(num_key_value_heads=2, head_dim=8)
    configs = {
        "llama": lambda: transformers.LlamaConfig(**shared, num_key_value_heads=2),
        "qwen3": lambda: transformers.Qwen3Config(**grouped),
        "mistral": lambda: transformers.MistralConfig(**grouped, sliding_window=6),
        "gemma2": lambda: transformers.Gemma2Config(**grouped, sliding_window=6, query_pre_attn_scalar=8),
        "gemma3": lambda: transformers.Gemma3TextConfig(
            **grouped,
            sliding_window=6,
            query_pre_attn_scalar=8,
            layer_types=["sliding_attention", "full_attention"],
        ),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4
        ),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**shared),
        "falcon": lambda: transformers.FalconConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            hidden_dropout=0.1,
            attention_dropout=0.1,
            alibi=False,
        ),
        "opt": lambda: transformers.OPTConfig(
            vocab_size=64,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            word_embed_proj_dim=32,
        ),
    }
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configs[name]()).eval()
    for p in model.parameters():
        p.data.mul_(3)  # random weights of the usual size give nearly uniform logits
    if name != "falcon":
        read_segments(model)
    return model


def evaluate(model, critic, batch, temperature):
    logprobs, hidden = batch.logprobs(model, temperature)
    return logprobs, critic.values(batch, hidden)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt"])
def test_sampling_and_measuring_agree_for_every_architecture(name):
    """Cache, left padding, shrinking batches and sliding windows change nothing about log-probabilities
    and values."""
    model = tiny(name)
    assert packing_problem(model) is None
    critic = _make_critic("shared", model)
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    asked = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14, 15, 16], [17]]
    found = Sampling(12, 0.9, stop_ids=(3, 20, 21, 22, 23, 24, 25, 26), rows=3).sample(
        model, asked, torch.Generator().manual_seed(0), critic
    )
    episodes = [Episode(e.row, e.prompt_ids, e.response_ids, e.stopped) for e in found]
    assert [e.prompt_ids for e in found] == asked and len({len(e.response_ids) for e in episodes}) > 1, (
        "rows must end at different times for this to test anything"
    )
    with torch.no_grad():
        logprobs, values = evaluate(model, critic, EpisodeBatch.of(episodes), 0.9)
        for row, own in enumerate(found):
            n = len(own.response_ids)
            assert torch.allclose(logprobs[row, :n], torch.tensor(own.logprobs), atol=2e-4)
            assert torch.allclose(values[row, :n], torch.tensor(own.values), atol=2e-3)
            single, single_values = evaluate(model, critic, EpisodeBatch.of([episodes[row]]), 0.9)
            assert torch.allclose(logprobs[row, :n], single[0], atol=2e-4) and torch.allclose(
                values[row, :n], single_values[0], atol=2e-3
            )


def odd(name):
    "A random model that is no causal language model with attention everywhere, small."
    shared = dict(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    mamba = dict(mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1)
    configs = {
        "mamba": lambda: transformers.MambaConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8
        ),
        "jamba": lambda: transformers.JambaConfig(
            **shared,
            attn_layer_period=2,
            attn_layer_offset=1,
            num_experts=2,
            num_experts_per_tok=1,
            mamba_d_state=8,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        ),
        "bamba": lambda: transformers.BambaConfig(**shared, **mamba, attn_layer_indices=[1]),
        "lfm2": lambda: transformers.Lfm2Config(**shared, layer_types=["conv", "full_attention"]),
        "bart": lambda: transformers.BartConfig(
            vocab_size=64,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=64,
        ),
    }
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configs[name]()).eval()
    for p in model.parameters():
        p.data.mul_(3)
    return model


@pytest.mark.parametrize("name", ["mamba", "jamba", "bamba", "lfm2"])
def test_state_space_and_hybrid_models_are_refused(name):
    with pytest.raises(ValueError, match="cannot be sampled while rows leave the batch") as refused:
        Sampling(1).check(odd(name))
    assert type(odd(name)).__name__ in str(refused.value) and "\n" not in str(refused.value)


def test_models_that_padding_changes_are_refused():
    with pytest.raises(ValueError, match="the padding of a batch moves"):
        Sampling(1).check(odd("bart"))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt2", "opt", "falcon"])
def test_models_with_attention_are_taken(name):
    Sampling(1).check(tiny(name))


def test_what_cannot_be_sampled_is_refused_when_the_trainer_is_made(base, tmp_path):
    tokenizer = make_tokenizer()
    model = odd("mamba")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with pytest.raises(ValueError, match="the policy is a MambaForCausalLM"):
        make_trainer(model, tmp_path, processing_class=tokenizer)
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2
        )
    )
    with pytest.raises(ModelLoadError, match="is an encoder-decoder: PPO needs a causal language model"):
        make_trainer(t5, tmp_path, processing_class=tokenizer)
    t5.save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelLoadError, match="t5 .*is an encoder-decoder"):
        make_trainer(tmp_path / "t5", tmp_path)
    with pytest.raises(ModelLoadError, match="t5 .*is an encoder-decoder"):
        make_trainer(base, tmp_path, ref_model=str(tmp_path / "t5"))


def test_log_probabilities_are_those_of_a_plain_forward_pass():
    model, episode = tiny("llama"), Episode(0, [5, 6, 7], [8, 9, 3])
    packing_problem(model)
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7, 8, 9, 3]])).logits[0].double() / 0.7
        expected = [logits.log_softmax(-1)[2 + t, token].item() for t, token in enumerate([8, 9, 3])]
        found, _ = EpisodeBatch.of([episode]).logprobs(model, 0.7)
    assert found[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_sampling_settings():
    model = tiny("llama")
    draws = lambda **how: {
        tuple(e.response_ids)
        for e in Sampling(1, **how).sample(model, [[5, 6]] * 40, torch.Generator().manual_seed(0))
    }
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6]])).logits[0, -1]
    best = logits.topk(3).indices.tolist()
    assert (
        draws(temperature=0) == {(best[0],)}
        and draws(top_k=3) <= {(b,) for b in best}
        and len(draws(top_k=3)) > 1
    )
    assert draws(top_p=1e-6) == {(best[0],)} and len(draws()) > 5


def test_a_sample_stops_at_any_stop_token_and_says_so(base):
    trainer = make_trainer(base, "unused")
    trainer.policy.generation_config.eos_token_id = [trainer.tokenizer.eos_token_id, 9]
    assert trainer.models.stop_ids == (trainer.tokenizer.eos_token_id, 9)


# ---------------------------------------------------------------- ways of sampling

RAGGED = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14, 15, 16], [17], [18, 19]]
STOPS = (3, 20, 21, 22, 23, 24, 25, 26)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("way", ["static", "paged"])
def test_each_way_writes_what_the_loop_writes(name, way):
    "Ragged prompts, more than fit at once, several stop tokens: the likeliest tokens are the same ones."
    model = tiny(name)
    how = {"temperature": 0, "stop_ids": STOPS, "rows": 3}
    expected = Sampling(12, **how).sample(model, RAGGED)
    assert len({e.stopped for e in expected}) == 2 or len({len(e.response_ids) for e in expected}) > 1
    sampling = Sampling(12, **how, way=way)
    for _ in range(2):
        found = sampling.sample(model, RAGGED)
        known = [(e.row, e.prompt_ids, e.response_ids, e.stopped) for e in found]
        assert known == [(e.row, e.prompt_ids, e.response_ids, e.stopped) for e in expected]
    assert sampling.way == way and not any(e.logprobs for e in found)
    with torch.no_grad():  # these are measured by a second pass, as those of the loop can be
        logprobs, _ = EpisodeBatch.of(found).logprobs(model, 1.0)
    for row, e in enumerate(expected):
        assert e.logprobs == pytest.approx(logprobs[row, : len(e.response_ids)].tolist(), abs=2e-4)


@pytest.mark.parametrize("settings", [{"top_k": 3, "temperature": 0.7}, {"top_p": 0.6, "temperature": 1.5}])
@pytest.mark.parametrize("way, n", [("dynamic", 600), ("static", 600), ("paged", 160)])
def test_each_way_draws_from_the_distribution_that_is_asked_for(way, n, settings):
    "In any way as many first tokens are of each kind as temperature, top-k and top-p say."
    model, prompt = tiny("qwen3"), [5, 6, 7]
    model.generation_config.repetition_penalty = 5.0  # of the base; rollouts are as the settings say
    model.generation_config.suppress_tokens = list(range(32))
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1:].double() / settings["temperature"]
    if "top_k" in settings:
        logits[logits < logits.topk(3).values[:, -1:]] = -torch.inf
    if "top_p" in settings:
        logits = transformers.TopPLogitsWarper(0.6)(None, logits)
    expected = logits.softmax(-1)[0]
    before, sampling = torch.get_rng_state(), Sampling(1, rows=40, way=way, **settings)
    draw = lambda seed: [
        e.response_ids[0] for e in sampling.sample(model, [prompt] * n, torch.Generator().manual_seed(seed))
    ]
    found = draw(0)
    share = torch.tensor(found).bincount(minlength=64) / n
    assert sampling.way == way and (share - expected).abs().max() < 2 / n**0.5  # four standard deviations
    assert not share[expected == 0].any()
    assert draw(0) == found != draw(1) and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "settings", [{}, {"bf16": True}, {"peft_config": True, "torch_compile": True}], ids=str
)
@pytest.mark.parametrize("way", ["static", "paged"])
def test_what_samples_follows_the_policy(base, tmp_path, monkeypatch, way, settings):
    "Its weights are the policy's, also under an adapter, in mixed precision and where layers are compiled."
    monkeypatch.setattr("reward_kit.rl.ppo.compile_layers", partial(compile_layers, backend="eager"))
    lora = {"peft_config": LoraConfig(r=2, target_modules="all-linear")} if "peft_config" in settings else {}
    trainer = make_trainer(base, tmp_path, cache_implementation=way, **settings | lora)
    trainer.sampling.temperature, first = 0, []
    for change in (0, 0.3):
        with torch.no_grad():
            for p in trainer.models.trained():
                p.add_(change * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        expected = Sampling(8, 0, stop_ids=trainer.sampling.stop_ids).sample(
            trainer.policy, trainer.train_rows.ids
        )
        with trainer._autocast():
            found = trainer.sample(trainer.train_rows.ids)
        assert [e.response_ids for e in found] == [e.response_ids for e in expected]
        first.append([e.response_ids for e in found])
    assert first[0] != first[1] and trainer.sampling.way == way
    pairs = zip(trainer.sampling.twin.parameters(), trainer.policy.parameters(), strict=True)
    assert all(a is b for a, b in pairs)
    assert not any(m._compiled_call_impl for m in trainer.sampling.twin.modules())
    if not lora:
        trainer.train()
        assert trainer.sampling.way == way and trainer.state.global_step == 3


def test_a_way_that_fails_gives_way_to_the_loop(base, tmp_path, monkeypatch, caplog):
    trainer = make_trainer(base, tmp_path, cache_implementation="paged")

    def fails(*_, **__):
        raise ImportError("no kernel\nfor this device")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "generate_batch", fails)
    episodes, _ = trainer.collect(0)
    assert len(episodes) == 8 and trainer.sampling.way == "dynamic" and all(e.logprobs for e in episodes)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "reward_kit"]
    assert line == (
        "sampling goes on with a dynamic cache, since a paged one failed: "
        "ImportError: no kernel for this device"
    )


@pytest.mark.parametrize(
    "device, flash, dtype, batches, way",
    [
        ("cpu", True, torch.bfloat16, 1000, "dynamic"),
        ("cuda", True, torch.bfloat16, 1, "paged"),
        ("cuda", True, torch.float32, 1000, "static"),  # FlashAttention takes 16 bits
        ("cuda", False, torch.bfloat16, 1000, "static"),
        ("cuda", False, torch.bfloat16, 10, "dynamic"),
    ],
)
def test_the_way_follows_from_device_attention_and_length(monkeypatch, device, flash, dtype, batches, way):
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: flash)
    policy = SimpleNamespace(
        device=torch.device(device), dtype=dtype, _supports_flash_attn=True, _can_compile_fullgraph=True
    )
    assert Sampling(64, batches=batches).likely_fastest(policy) == way


# ---------------------------------------------------------------- the update


def test_an_update_does_not_depend_on_how_a_minibatch_is_cut(base, tmp_path):
    """Micro-batches of 1, 2 and 8 episodes; the order of episodes; what else is in the batch of a
    forward pass."""
    results = []
    for size in (1, 2, 8):
        trainer = make_trainer(
            base,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            num_mini_batches=1,
            critic="shared",
        )
        metrics = trainer.update(fixed_episodes())
        results.append((weights(trainer), metrics))
    for other, metrics in results[1:]:
        for name, value in results[0][0].items():
            assert torch.allclose(value, other[name], atol=2e-6), name
        for name, value in results[0][
            1
        ].items():  # a token at the edge of the clip range may fall on either side
            assert metrics[name] == pytest.approx(
                value, rel=1e-3, abs=0.05 if "clipfrac" in name else 1e-5
            ), name


def test_the_first_step_is_the_policy_gradient(base, tmp_path):
    """Where old and new policy are one, the ratio is 1, nothing is clipped, and the gradient is -A grad
    log p, token by token."""
    trainer = make_trainer(
        base, tmp_path, critic="shared", num_mini_batches=1, vf_coef=0.0, max_grad_norm=0.0
    )
    episodes, _ = trainer.collect(0)
    trainer.set_advantages(episodes)
    batch = EpisodeBatch.of(episodes)
    sums = trainer._backward(batch, 1)
    found = {name: p.grad.clone() for name, p in trainer.policy.named_parameters()}
    trainer.policy.zero_grad()
    logprobs, _ = batch.logprobs(trainer.policy, trainer.args.temperature)
    (advantages,) = batch.fields("advantages")
    (-(advantages * logprobs * batch.mask).sum()).backward()
    for name, p in trainer.policy.named_parameters():
        assert torch.allclose(found[name], p.grad, atol=1e-4), name
    assert sums["policy/clipfrac_avg"] == 0 and sums["val/ratio"].item() == pytest.approx(
        int(batch.mask.sum()), rel=1e-4
    )


def test_a_minibatch_is_an_optimizer_step(base, tmp_path):
    trainer = make_trainer(base, tmp_path, num_mini_batches=4, num_ppo_epochs=3)
    steps = []
    trainer.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    trainer.update(fixed_episodes())
    assert len(steps) == 12


def test_rollouts_hold_whitened_advantages_of_real_tokens_only(base, tmp_path):
    mean = []
    for settings in ({}, {"whiten_advantages": False, "whiten_rewards": True}):
        episodes = fixed_episodes()
        make_trainer(base, tmp_path, **settings).set_advantages(episodes)
        assert all(len(e.advantages) == len(e.returns) == len(e.response_ids) for e in episodes)
        every = [a for e in episodes for a in e.advantages]
        mean.append(sum(every) / len(every))
    assert mean[0] == pytest.approx(0, abs=1e-6) and abs(mean[1]) > 1e-4


@pytest.mark.parametrize(
    "setting, value",
    [
        ("kl_coef", 5.0),
        ("kl_estimator", "k3"),
        ("cliprange", 0.001),
        ("vf_coef", 3.0),
        ("cliprange_value", 1e-4),
        ("gamma", 0.5),
        ("lam", 0.1),
        ("whiten_rewards", True),
        ("whiten_advantages", False),
        ("learning_rate", 1e-4),
        ("critic_learning_rate", 1e-1),
        ("adam_beta1", 0.5),
        ("adam_beta2", 0.5),
        ("adam_epsilon", 1e-2),
        ("weight_decay", 0.5),
        ("max_grad_norm", 1e-4),
        ("seed", 1),
        ("num_mini_batches", 1),
        ("num_ppo_epochs", 1),
        ("temperature", 0.3),
    ],
)
def test_every_setting_of_an_update_has_an_effect(base, tmp_path, setting, value):
    changed, plain = (
        make_trainer(base, tmp_path, critic="shared", **given) for given in ({setting: value}, {})
    )
    for trainer in (changed, plain):
        for step in range(2):
            trainer.update(fixed_episodes(), step)
    assert any(not torch.equal(w, weights(plain)[name]) for name, w in weights(changed).items())


@pytest.mark.parametrize(
    "setting, value",
    [
        ("response_length", 3),
        ("temperature", 0.2),
        ("top_k", 1),
        ("top_p", 0.01),
        ("missing_eos_penalty", 2.0),
        ("score_clip", 0.05),
        ("seed", 3),
    ],
)
def test_every_setting_of_a_rollout_has_an_effect(base, tmp_path, setting, value):
    changed, plain = (make_trainer(base, tmp_path, **given).collect(0)[0] for given in ({setting: value}, {}))
    assert [(e.response_ids, e.score) for e in changed] != [(e.response_ids, e.score) for e in plain]


def test_recomputed_log_probabilities_are_those_of_sampling(base, tmp_path):
    plain, again = (
        make_trainer(base, tmp_path, recompute_logprobs=flag, critic="shared").collect(0)[0]
        for flag in (False, True)
    )
    for a, b in zip(plain, again):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5) and a.values == pytest.approx(
            b.values, abs=1e-5
        )


def test_gradient_checkpointing_changes_memory_only(base, tmp_path):
    results = []
    for flag in (False, True):
        trainer = make_trainer(base, tmp_path, gradient_checkpointing=flag)
        trainer.update(fixed_episodes())
        results.append(weights(trainer))
    for name, value in results[0].items():
        assert torch.allclose(value, results[1][name], atol=1e-6), name


def test_the_layout_of_the_updates_changes_no_weight(base, tmp_path):
    results = []
    for layout in ("auto", "padded"):
        trainer = make_trainer(base, tmp_path, layout=layout)
        assert trainer.models.layout == {"auto": "packed"}.get(layout, layout)
        trainer.update(fixed_episodes())
        results.append(weights(trainer))
    for name, value in results[0].items():
        assert torch.allclose(value, results[1][name], atol=1e-6), name
    with pytest.raises(ValueError, match="layout must be one of auto, padded, packed, got 'rows'"):
        make_trainer(base, tmp_path, layout="rows")


def several_responses():
    "Three prompts, the first two with a beginning in common; several responses each, two that begin alike."
    draw = random.Random(0)
    ids = lambda n: [draw.randrange(4, 64) for _ in range(n)]
    system, opening = ids(12), ids(9)
    prompts = [system + ids(3), system + ids(5), ids(10)]
    responses = [opening + [5], opening + [7, 8], opening, ids(1), ids(6)]
    return [Episode(row, prompt, new) for row, prompt in enumerate(prompts) for new in responses]


def tokens_read(model):
    "Numbers of token ids that go through the model, added to the list as they do."
    found = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: found.append(args[0].numel()))
    return found


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
def test_a_prompt_of_several_responses_is_read_once(name):
    "Log-probabilities, values and gradients are those of the episodes one by one."
    model, episodes = tiny(name), several_responses()
    assert packing_problem(model) is None
    critic = _make_critic("shared", model)
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    read, results = tokens_read(model), []
    for batches in ([EpisodeBatch.of(episodes)], [EpisodeBatch.of([e], layout="padded") for e in episodes]):
        model.zero_grad()
        found = [evaluate(model, critic, batch, 0.7) for batch in batches]
        sum((a + b).sum() for a, b in found).backward()
        numbers = [torch.cat([t[batch.mask] for t, batch in zip(own, batches)]) for own in zip(*found)]
        grads = torch.cat([p.grad.flatten() for p in model.parameters()])
        results.append((*numbers, grads))
    for a, b in zip(*results):
        assert (a - b).norm() < 1e-4 * b.norm()
    # each prompt with its first response, then what the others have of their own: 2, 1, 1, 6 tokens
    assert read[0] == (15 + 10 + 10) + (17 + 10 + 10) + (10 + 10 + 10)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_rollouts_and_updates_read_a_repeated_prompt_once(base, tmp_path, critic):
    "Eight responses to each of two prompts, in one micro-batch."
    asked = [" ".join(["what makes bread rise"] * 6), " ".join(["why is the sky blue"] * 6)]
    trainer = make_trainer(base, tmp_path, data=asked * 8, critic=critic, per_device_train_batch_size=16,
                           gradient_accumulation_steps=1, num_mini_batches=1, num_ppo_epochs=1)  # fmt: skip
    episodes, _ = trainer.collect(0)
    models = [trainer.policy, *filter(None, [trainer.critic.trunk])]
    counts = [tokens_read(model) for model in models]
    trainer.update(episodes)
    once = sum(map(len, {tuple(e.prompt_ids) for e in episodes}))
    most = once + sum(len(e.response_ids) for e in episodes)
    for found in counts:
        assert len(found) == 1 and found[0] <= most < sum(e.length for e in episodes) / 2


def test_bf16_autocast_stays_near_float32(base, tmp_path):
    full, half = (make_trainer(base, tmp_path, bf16=flag, critic="shared") for flag in (False, True))
    episodes, _ = full.collect(0)
    full.set_advantages(episodes)
    sums = [trainer._backward(EpisodeBatch.of(episodes), 1) for trainer in (full, half)]
    for name in ("loss/policy_avg", "loss/value_avg"):
        assert sums[1][name].item() == pytest.approx(sums[0][name].item(), abs=0.3)
    assert half.policy.dtype == torch.float32  # weights stay in float32
    half.train()


@pytest.mark.parametrize("name", ["opt", "falcon", "gpt2"])
def test_no_dropout_of_any_kind_is_left(name, base, tmp_path):
    "Models keep their rates in layers, in plain attributes, or in the configuration."
    tokenizer = make_tokenizer()
    model = tiny(name)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.generation_config.eos_token_id = tokenizer.eos_token_id  # GPT-2's is beyond 320 tokens
    trainer = make_trainer(model, tmp_path, processing_class=tokenizer, num_ppo_epochs=1, num_mini_batches=1)
    episodes, _ = trainer.collect(0)
    metrics = trainer.update(episodes)
    assert metrics["val/ratio"] == pytest.approx(1, abs=1e-5) and metrics["policy/approxkl_avg"] < 1e-8


# ---------------------------------------------------------------- critics and references


def reward_model(folder_or_model, tokenizer, scale=None):
    model = folder_or_model
    model.config.num_labels, model.config.pad_token_id = 1, tokenizer.pad_token_id
    encoding = prepare_tokenizer(tokenizer, model, max_length=64)
    metadata = RewardMetadata(encoding=encoding, normalization=scale)
    return RewardModel(
        bind_reward_forward(model),
        tokenizer,
        RewardEncoder(tokenizer, encoding),
        RowScorer(model, tokenizer.pad_token_id),
        metadata=metadata,
    )


@pytest.fixture(scope="module")
def judge(base):
    torch.manual_seed(5)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    return reward_model(
        model,
        transformers.AutoTokenizer.from_pretrained(base),
        {"mean": 2.0, "std": 4.0, "n": 9, "data_hash": None},
    )


def test_a_critic_from_the_reward_model_speaks_in_normalised_scores(base, judge, tmp_path):
    trainer = make_trainer(base, tmp_path, reward=judge, critic="reward")
    text = Episode(
        0,
        judge.encoder.encode(["the cat"], ["sat"]).ids[0][:2],
        judge.encoder.encode(["the cat"], ["sat"]).ids[0][2:] + [5],
    )
    values = trainer.critic.values(EpisodeBatch.of([text]))
    raw = judge.score_ids([(text.prompt_ids + text.response_ids)[:-1]])[0]
    assert values[0, -1].item() == pytest.approx((raw - 2.0) / 4.0, abs=1e-4)
    before = judge.score("the cat", "sat")
    trainer.update(fixed_episodes())
    assert judge.score("the cat", "sat") == before, "the reward model itself must not be trained"


def test_rewards_are_normalised_by_the_stored_scale(base, judge, tmp_path):
    asked = ["the cat sat", "rain fell"]
    for given, expected in (
        (None, lambda r: (r - 2) / 4),
        (True, lambda r: (r - 2) / 4),
        (False, lambda r: r),
    ):
        trainer = make_trainer(base, tmp_path, reward=judge, normalize_reward=given)
        totals = trainer.rewards(asked, ["on", "it"], {"completion_ids": [[1], [2]]}, [0, 1])
        assert totals == pytest.approx([expected(r) for r in judge.score(asked, ["on", "it"])])


def test_reward_models_and_policies_may_have_different_tokenizers(base, tmp_path):
    other = make_tokenizer(bos_token="<a>", eos_token="<b>", pad_token="<c>")
    torch.manual_seed(1)
    model = transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(
            vocab_size=len(other),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_labels=1,
        )
    )
    judge = reward_model(model, other)
    trainer = make_trainer(base, tmp_path, reward=[judge, vowels], reward_weights=[1.0, 0.5])
    episodes, metrics = trainer.collect(0)
    own = judge.score(
        [trainer.train_rows[e.row]["prompt"] for e in episodes], [e.completion for e in episodes]
    )
    assert [e.raw_score for e in episodes] == pytest.approx(
        [a + 0.5 * b for a, b in zip(own, vowels([e.completion for e in episodes]))], abs=1e-5
    )
    assert "rewards/vowels" in metrics
    with pytest.raises(ValueError, match="policy's tokenizer; choose critic"):
        make_trainer(base, tmp_path, reward=judge, critic="reward")


def test_separate_critic_leaves_the_policy_alone(base, tmp_path):
    trainer = make_trainer(base, tmp_path, critic="separate", learning_rate=1e-12, critic_learning_rate=1e-2)
    before = weights(trainer)
    trainer.update(fixed_episodes())
    after = weights(trainer)
    own = dict(trainer.policy.named_parameters())
    assert all(torch.allclose(before[name], after[name], atol=1e-8) for name in own)
    assert not torch.allclose(before["head.weight"], after["head.weight"])


def test_reference_is_a_given_model_or_the_beginning(base, tmp_path):
    other = make_base(tmp_path / "other", seed=3)
    episodes, metrics = make_trainer(base, tmp_path, ref_model=other).collect(0)
    assert abs(metrics["objective/kl"]) > 1e-3
    _, metrics = make_trainer(base, tmp_path).collect(0)
    assert abs(metrics["objective/kl"]) < 1e-5
    policy = transformers.AutoModelForCausalLM.from_pretrained(base)
    with pytest.raises(ValueError, match="ref_model is the policy itself"):
        PPOTrainer(
            policy,
            vowels,
            config(tmp_path),
            prompts(4),
            ref_model=policy,
            processing_class=transformers.AutoTokenizer.from_pretrained(base),
        )


def test_an_adapter_that_is_given_is_part_of_the_reference(base, tmp_path):
    from peft import LoraConfig, get_peft_model

    policy = get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"])
    )
    for name, p in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(0))
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    _, metrics = make_trainer(policy, tmp_path, processing_class=tokenizer).collect(0)
    assert abs(metrics["objective/kl"]) < 1e-5
    with pytest.raises(ValueError, match="has an adapter already"):
        make_trainer(
            policy,
            tmp_path,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
        )


def test_a_critic_from_a_weighted_reward_is_on_its_scale(base, judge, tmp_path):
    text = EpisodeBatch.of([Episode(0, [5, 6], [7, 8])])
    one, five = (
        make_trainer(base, tmp_path, reward=judge, critic="reward", reward_weights=[w]).critic.values(text)
        for w in (1.0, 5.0)
    )
    assert torch.allclose(five, 5 * one, atol=1e-5)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_lora_trains_the_adapter_and_saves_merged_weights(base, tmp_path, critic):
    from peft import LoraConfig, PeftModel

    trainer = make_trainer(
        base,
        tmp_path / "out",
        critic=critic,
        learning_rate=1e-2,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
        total_episodes=8,
    )
    frozen = {n: p.clone() for n, p in trainer.policy.named_parameters() if "lora" not in n}
    trainer.train()
    assert all(torch.equal(p, frozen[n]) for n, p in trainer.policy.named_parameters() if n in frozen)
    trainer.save_model()
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "out/adapter"
    )
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-5) and torch.allclose(
            merged(ids).logits, trainer.policy(ids).logits, atol=1e-5
        )
        assert not torch.allclose(
            merged(ids).logits,
            transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(ids).logits,
            atol=1e-5,
        )
    assert (
        str(tmp_path)
        not in (tmp_path / "out/README.md").read_text()
        + (tmp_path / "out/adapter/adapter_config.json").read_text()
    )


@pytest.fixture(scope="module")
def tied_base(tmp_path_factory):
    "A policy whose output layer is its token embeddings."
    folder, tokenizer = tmp_path_factory.mktemp("tied"), make_tokenizer()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "adapter",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": "all-linear"},
    ],
)
def test_an_adapter_on_shared_embeddings_is_saved_as_it_was_trained(tied_base, tmp_path, adapter):
    "Merged into the shared weights, what was learned for the output would also change how tokens are read."
    from peft import LoraConfig

    trainer = make_trainer(
        tied_base,
        tmp_path / "out",
        learning_rate=1e-2,
        peft_config=LoraConfig(r=4, **adapter),
        total_episodes=16,
    )
    trainer.train()
    with torch.no_grad():
        for p in trainer.policy.parameters():
            if p.requires_grad:
                p.add_(
                    0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
                )  # so that a change in the wrong place shows
    trainer.save_model()
    ids = torch.tensor([[5, 6, 7, 8]])
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(saved(ids).logits, trainer.policy.eval()(ids).logits, atol=1e-4)
    assert saved.config.tie_word_embeddings == (adapter["target_modules"] == "all-linear")
    assert trainer.policy.get_base_model().config.tie_word_embeddings or "modules_to_save" in adapter, (
        "the policy itself stays as it is"
    )
    measured = re.search(
        r"merged and unmerged log-probabilities \| differ by at most (\S+) nats",
        (tmp_path / "out/README.md").read_text(),
    )
    assert float(measured[1]) < 1e-3


def test_a_saved_policy_that_is_not_the_trained_one_is_told(tied_base, tmp_path, monkeypatch, caplog):
    from peft import LoraConfig

    trainer = make_trainer(
        tied_base, tmp_path / "out", peft_config=LoraConfig(r=4, target_modules=["lm_head"])
    )
    with torch.no_grad():
        for name, p in trainer.policy.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("reward_kit.beside.unusual_heads._untie_adapted", lambda model: None)
    with caplog.at_level("WARNING", logger="reward_kit"):
        trainer.save_model()
    assert "the merged policy differs from the trained one by up to" in caplog.text
    measured = re.search(
        r"log-probabilities \| differ by at most (\S+) nats", (tmp_path / "out/README.md").read_text()
    )
    assert float(measured[1]) > 0.1


def test_adapters_that_cannot_be_merged_are_refused_before_training(tied_base, tmp_path):
    from peft import LoraConfig, PromptTuningConfig

    with pytest.raises(ValueError, match="cannot be merged into the weights.*adds virtual tokens"):
        make_trainer(
            tied_base, tmp_path, peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        )
    with pytest.raises(ValueError, match="ensure_weight_tying=True on the token embeddings cannot be merged"):
        make_trainer(
            tied_base,
            tmp_path,
            peft_config=LoraConfig(target_modules=["q_proj", "lm_head"], ensure_weight_tying=True),
        )


def test_learning_rates_that_are_not_given(base, tmp_path):
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["q_proj"])
    rates = lambda **given: [
        group["lr"]
        for group in make_trainer(base, tmp_path, **{"learning_rate": None} | given).optimizer.param_groups
    ]
    assert rates() == [3e-6, 3e-6]
    assert rates(peft_config=lora) == [1e-4, 3e-6] and rates(peft_config=lora, critic="shared") == [
        1e-4,
        1e-4,
    ]
    assert rates(peft_config=lora, learning_rate=1e-3) == [1e-3, 1e-3] and rates(
        peft_config=lora, critic_learning_rate=2e-4
    ) == [1e-4, 2e-4]
    args = config(tmp_path, learning_rate=None)
    PPOTrainer(base, vowels, args, prompts(4), peft_config=lora)
    assert args.learning_rate is None, "the caller's settings stay as they are"


# ---------------------------------------------------------------- runs


def test_a_run_logs_what_one_watches_and_learns(base, tmp_path, capsys):
    seen = []

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(state.global_step)

        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            seen.append("eval")

    trainer = make_trainer(
        base,
        tmp_path,
        total_episodes=320,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        num_mini_batches=4,
        learning_rate=1e-2,
        kl_coef=0.0,
        eval_steps=5,
        eval_dataset=prompts(32, 9),
        callbacks=[Watch()],
        num_sample_generations=2,
        disable_tqdm=False,
    )
    state = trainer.train()
    logs = [log for log in state.log_history if "objective/scores" in log]
    assert (
        len(logs) == 10
        and seen.count("eval") == 2
        and seen[:5] == [1, 2, 3, 4, 5]
        and len(trainer.samples) == 6
    )
    wanted = {
        "objective/scores",
        "objective/kl",
        "objective/entropy",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "loss/policy_avg",
        "loss/value_avg",
        "val/clipfrac_avg",
        "val/explained_variance",
        "val/ratio",
        "val/ratio_var",
        "val/num_eos_tokens",
        "policy/entropy_avg",
        "objective/non_score_reward",
        "objective/rlhf_reward",
        "eps",
        "response/length",
        "response/eos_share",
        "time/sample",
        "time/score",
        "time/reference",
        "time/update",
        "memory/peak_gib",
        "lr",
        "episode",
        "epoch",
    }
    assert wanted <= set(logs[0])
    assert all(torch.isfinite(torch.tensor(float(value))) for log in logs for value in log.values())
    assert logs[-1]["objective/scores"] > logs[0]["objective/scores"] + 0.1
    assert logs[0]["lr"] > logs[-1]["lr"] > 0
    assert (
        "score" in PPOReport(trainer).line(logs[0])
        and trainer.samples[0]["prompt"][:20] in capsys.readouterr().out
    )
    assert {"step", "prompt", "completion", "score", "tokens"} == set(trainer.samples[0])


def test_the_table_of_metrics_is_complete(base, tmp_path):
    """Every name that a run logs has a row with its unit and what is healthy, and no row is of a name
    that is not logged."""
    chapter = json.loads(
        (Path(__file__).parents[1] / "nbs" / "5_rl" / "54_ppo_report.ipynb").read_text(encoding="utf-8")
    )
    rows = [
        line.split("|")[1:-1]
        for cell in chapter["cells"]
        if cell["cell_type"] == "markdown"
        for line in cell["source"]
        if line.startswith("| `")
    ]
    documented = [name for row in rows for name in re.findall("`([^`]+)`", row[0])]
    one = lambda completions, **columns: [1.0 for _ in completions]
    trainer = make_trainer(base, tmp_path, reward=[vowels, one], total_episodes=8, eval_dataset=prompts(4))
    logged = {
        re.sub(r"^(rewards/).*", r"\1NAME", re.sub(r"^(time/).*", r"\1PHASE", name))
        for log in trainer.train().log_history
        for name in log
    } - {"step"}
    assert len(set(documented)) == len(documented) and set(documented) == logged
    assert all(len(row) == 4 and row[1].strip() and row[2].strip() for row in rows)


def test_metrics_of_rollouts_by_hand():
    "Two responses of two tokens and one; numbers worked out on paper."
    episodes = [
        Episode(0, [5], [6, 7], True, [-1.0, -2.0], None, [-1.5, -2.0], 1.0, 3.0),
        Episode(1, [5], [6], False, [-4.0], None, [-3.0], 2.0, 2.0),
    ]
    sampled = [*episodes, Episode(2, [5], [6] * 5, True)]
    trainers = (
        SimpleNamespace(kl_coef=0.5, args=SimpleNamespace(kl_estimator=kind)) for kind in ("k1", "k3")
    )
    k1, k3 = (PPOReport(trainer).batch(sampled, episodes) for trainer in trainers)
    assert (
        k1["objective/kl"] == pytest.approx((0.5 + 0.0 - 1.0) / 2)
        and k1["objective/entropy"] == pytest.approx(7 / 2)
        and k1["policy/entropy_avg"] == pytest.approx(7 / 3)
    )
    assert k1["objective/non_score_reward"] == pytest.approx(-0.5 * -0.25) and k1[
        "objective/rlhf_reward"
    ] == pytest.approx(1.5 + 0.125)
    assert k1["val/num_eos_tokens"] == 2 and k1["response/left_out"] == 1
    penalty = (2.718281828**-0.5 - 1 + 0.5 + 2.718281828 - 1 - 1) / 2
    assert (
        k3["objective/kl"] == k1["objective/kl"]
        and k3["objective/non_score_reward"] == pytest.approx(-0.5 * penalty)
        and k3["objective/rlhf_reward"] == pytest.approx(1.5 - 0.5 * penalty)
    )


def test_a_callback_may_stop_the_run(base, tmp_path):
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    assert make_trainer(base, tmp_path, callbacks=[Stop()]).train().global_step == 1


class Notebook(GeneralTracker):
    "A tracker that keeps what it is told."

    name, requires_logging_directory, tracker = "notebook", False, None

    def __init__(self):
        super().__init__()
        self.config, self.logs = None, []

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **kwargs):
        self.logs.append((step, values))


def test_trackers_get_the_metrics(base, tmp_path):
    tracker = Notebook()
    make_trainer(base, tmp_path, report_to=[tracker], total_episodes=16, eval_dataset=prompts(4)).train()
    assert tracker.config["kl_coef"] == 0.05 and [step for step, _ in tracker.logs] == [1, 2, 2]
    assert "objective/kl" in tracker.logs[0][1] and "eval_score" in tracker.logs[2][1]


def test_evaluation_is_repeatable_and_leaves_training_alone(base, tmp_path):
    trainer, other = (make_trainer(base, tmp_path, eval_dataset=prompts(8, 5)) for _ in range(2))
    assert trainer.evaluate() == trainer.evaluate()
    assert [e.response_ids for e in trainer.collect(0)[0]] == [e.response_ids for e in other.collect(0)[0]]


def test_conversations_and_other_columns_reach_the_reward(base, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}{% if"
        " add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    rows = [{"prompt": [{"role": "user", "content": text}], "answer": i} for i, text in enumerate(prompts(8))]
    seen = {}

    def judge(prompts, completions, answer, completion_ids, **rest):
        seen.update(prompts=prompts, completions=completions, answer=answer, ids=completion_ids)
        return [1.0] * len(prompts)

    trainer = make_trainer(base, tmp_path, reward=judge, data=rows, processing_class=tokenizer)
    assert all(ids.count(tokenizer.bos_token_id) == 1 for ids in trainer.train_rows.ids)
    episodes, _ = trainer.collect(0)
    assert (
        [rows[a]["prompt"] for a in seen["answer"]] == seen["prompts"]
        and seen["completions"][0][0]["role"] == "assistant"
        and seen["ids"][0] == episodes[0].response_ids
    )


TOOLS_TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool['name'] + ' ' }}{% endfor %}{% endif %}{% if style is"
    " defined %}{{ style + ' ' }}{% endif %}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' '"
    " }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def test_template_arguments_of_rows_reach_the_policy_and_the_reward(base, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TOOLS_TEMPLATE
    chat = [{"role": "user", "content": "the cat"}]
    rows = [
        {"prompt": chat},
        {"prompt": chat, "tools": [{"name": "sat"}]},
        {"prompt": chat, "tools": json.dumps([{"name": "sat"}])},
        {"prompt": chat, "chat_template_kwargs": {"style": "rain"}},
        {"prompt": "the cat", "tools": [{"name": "sat"}]},
    ]
    text = [tokenizer.decode(ids, skip_special_tokens=True) for ids in Prompts.load(rows).encode(tokenizer)]
    assert text == [
        "user: the cat assistant: ",
        "sat user: the cat assistant: ",
        "sat user: the cat assistant: ",
        "rain user: the cat assistant: ",
        "sat user: the cat assistant: ",  # a text among conversations is one, as in training
    ]
    seen = []

    def judge(prompts, completions, tools=None, chat_template_kwargs=None, **rest):
        seen.extend(zip(tools, chat_template_kwargs))
        return [1.0] * len(prompts)

    make_trainer(
        base,
        tmp_path,
        reward=judge,
        data=rows[:4],
        processing_class=tokenizer,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
    ).collect(0)
    assert len(seen) == 4 and sorted(map(str, seen)) == sorted(
        str((row.get("tools"), row.get("chat_template_kwargs"))) for row in rows[:4]
    )
    for wrong, message in (
        ({"tools": "[{"}, "row 1: the chat template refuses"),
        ({"chat_template_kwargs": {"tokenize": True}}, "row 1: the chat template refuses"),
        ({"tools": 3}, "row 1: the chat template refuses"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            Prompts.load([rows[0], {"prompt": chat} | wrong]).encode(tokenizer)
        assert "\n" not in str(refused.value)


def test_a_reward_model_reads_the_template_arguments_that_the_policy_reads(base, judge, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = judge.tokenizer.chat_template = TOOLS_TEMPLATE
    chat = [{"role": "user", "content": "the cat"}]
    trainer = make_trainer(
        base,
        tmp_path,
        reward=judge,
        data=[{"prompt": chat}, {"prompt": chat, "tools": [{"name": "sat"}]}],
        processing_class=tokenizer,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        normalize_reward=False,
    )
    episodes, _ = trainer.collect(0)
    for e in episodes:
        assert e.raw_score == pytest.approx(
            judge.score([chat], [e.completion], tools=[trainer.train_rows[e.row].get("tools")])[0], abs=1e-5
        )
    assert sorted(len(e.prompt_ids) for e in episodes)[0] < max(len(e.prompt_ids) for e in episodes)


def test_rows_without_a_reward_are_left_out_and_counted(base, tmp_path):
    trainer = make_trainer(
        base,
        tmp_path,
        reward=lambda prompts, completions: [None if i % 2 else 1.0 for i in range(len(prompts))],
    )
    episodes, metrics = trainer.collect(0)
    assert len(episodes) == 4 and metrics["response/left_out"] == 4
    trainer.update(episodes)
    with pytest.raises(RewardError, match="no reward function applies to any"):
        make_trainer(base, tmp_path, reward=lambda prompts, completions: [None] * len(prompts)).train()


def test_kl_coefficient_follows_its_target(base, tmp_path):
    trainer = make_trainer(base, tmp_path, kl_target=1e-6, kl_horizon=10, learning_rate=1e-2)
    trainer.train()
    assert trainer.kl_coef > trainer.args.kl_coef


def test_prompts_are_shuffled_passes():
    trainer = SimpleNamespace(train_rows=range(7), args=SimpleNamespace(seed=1), batch_size=lambda: 3)
    stream = [row for step in range(7) for row in PPOTrainer.rows_of(trainer, step)]
    assert all(sorted(stream[i : i + 7]) == list(range(7)) for i in (0, 7, 14)) and stream[:7] != stream[7:14]
    trainer.batch_size = lambda: 21
    assert PPOTrainer.rows_of(trainer, 0) == stream


def test_prompts_come_from_lists_files_and_datasets(tmp_path):
    import datasets

    (tmp_path / "p.jsonl").write_text('{"prompt": "a?", "x": 1}\n{"prompt": "b?", "x": 2}\n')
    rows = [{"prompt": "a?", "x": 1}, {"prompt": "b?", "x": 2}]
    for data in (rows, datasets.Dataset.from_list(rows)):
        assert Prompts.load(data) == [
            {**row, "origin": f"train_dataset, row {i}"} for i, row in enumerate(rows)
        ]
    for path in (tmp_path / "p.jsonl", str(tmp_path / "p.jsonl")):
        assert Prompts.load(path) == [{**row, "origin": f"p.jsonl:{i}"} for i, row in enumerate(rows, 1)]
    (tmp_path / "p.jsonl").write_text('{"prompt": "a?"}\n{"prompt": " "}\n')
    with pytest.raises(ValueError, match="p.jsonl:2: empty prompt"):
        Prompts.load(tmp_path / "p.jsonl")
    frame = pandas.DataFrame(rows)
    assert Prompts.load(frame) == Prompts.load(rows)  # and not its column names
    for wrong in ((x for x in "ab"), torch.utils.data.Subset(data, [1])):
        with pytest.raises(
            ValueError, match=f"data has the type {type(wrong).__name__}; give a path, a hub id"
        ):
            Prompts.load(wrong)
    preferences = load_preferences([{"prompt": "a?", "chosen": "b", "rejected": "c"}])
    assert [row["prompt"] for row in Prompts.load(preferences)] == ["a?"]
    with pytest.raises(ValueError, match="has no rows"):
        Prompts.load([])
    with pytest.raises(ValueError, match=r"holds several sets \(train, test\); give one of them"):
        Prompts.load(datasets.DatasetDict(train=data, test=data))


def test_prompts_of_a_prepared_tokenizer_have_no_eos(base):
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    prepare_tokenizer(tokenizer)
    assert tokenizer("the cat")["input_ids"][-1] == tokenizer.eos_token_id
    assert Prompts.load(["the cat"]).encode(tokenizer) == [tokenizer("the cat")["input_ids"][:-1]]


# ---------------------------------------------------------------- resuming


def test_a_resumed_run_ends_with_the_same_weights(base, tmp_path):
    settings = dict(total_episodes=40, save_steps=2, save_total_limit=None, kl_target=1.0)
    whole = make_trainer(base, tmp_path / "a", **settings)
    whole.train()
    again = make_trainer(base, tmp_path / "a", **settings)
    for name in ("checkpoint-4",):
        __import__("shutil").rmtree(tmp_path / "a" / name)
    again.train(resume_from_checkpoint=True)
    assert (
        again.state.global_step == 5
        and len([log for log in again.state.log_history if "objective/kl" in log]) == 5
    )
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name
    assert whole.kl_coef == again.kl_coef


def test_a_run_is_not_continued_with_other_settings(base, tmp_path):
    settings = dict(total_episodes=16, save_steps=1, num_mini_batches=1)
    make_trainer(base, tmp_path / "a", **settings).train()
    for changed, message in (
        ({"learning_rate": 1e-4, "kl_coef": 0.2}, "kl_coef 0.05 -> 0.2; learning_rate 0.001 -> 0.0001"),
        ({"seed": 3}, "seed 42 -> 3"),
        ({"total_episodes": 24}, "total_episodes 16 -> 24"),
        (
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
            "per_device_train_batch_size 2 -> 4; gradient_accumulation_steps 4 -> 2",
        ),
        ({"data": prompts(16, seed=9)}, "other prompts"),
    ):
        other = make_trainer(base, tmp_path / "a", **settings | changed)
        before = weights(other)
        with pytest.raises(OSError, match="is of a run with other settings") as refused:
            other.train(resume_from_checkpoint=True)
        assert all(part in str(refused.value) for part in message.split("; ")) and "\n" not in str(
            refused.value
        ), refused.value
        assert all(torch.equal(value, before[name]) for name, value in weights(other).items())
    free = make_trainer(
        base,
        tmp_path / "a",
        **settings
        | {
            "logging_steps": 2,
            "save_steps": 0,
            "num_sample_generations": 3,
            "eval_dataset": prompts(2),
        },
    )
    assert free.train(resume_from_checkpoint=True).global_step == 2


def test_an_adapter_resumes(base, tmp_path):
    from peft import LoraConfig

    made = lambda: make_trainer(
        base,
        tmp_path / "a",
        total_episodes=24,
        save_steps=1,
        save_total_limit=None,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
        critic="shared",
    )
    whole, again = made(), made()
    whole.train()
    for name in ("checkpoint-2", "checkpoint-3"):
        __import__("shutil").rmtree(tmp_path / "a" / name)
    again.train(resume_from_checkpoint=True)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from ppo_world import make_trainer
make_trainer({base!r}, {folder!r}, total_episodes=4000, save_steps=1).train()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on(base, tmp_path, number):
    code = KILLED.format(tests=str(Path(__file__).parent), base=base, folder=str(tmp_path / "run"))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )
    deadline = time.time() + 120
    while (
        not list((tmp_path / "run").glob("checkpoint-*/reward_kit_checkpoint.json"))
        and time.time() < deadline
        and process.poll() is None
    ):
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    if number == signal.SIGINT:
        assert "TrainingInterrupted" in errors and "train(resume_from_checkpoint=True)" in errors
    trainer = make_trainer(base, tmp_path / "run", total_episodes=4000, save_steps=1)

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    trainer.callbacks.add_callback(Stop())
    assert trainer.train(resume_from_checkpoint=True).global_step >= 2
    assert issubclass(TrainingInterrupted, KeyboardInterrupt)


def test_two_processes_make_the_update_of_one(base, tmp_path):
    env = dict(os.environ, OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    # on a CPU `accelerate launch` needs MPI for several processes; torchrun is what it uses elsewhere
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(Path(__file__).with_name("ppo_world.py")),
        base,
        str(tmp_path),
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    threads = torch.get_num_threads()
    run_processes(base, tmp_path)
    torch.set_num_threads(threads)
    one, two = (torch.load(tmp_path / f"weights_{n}.pt", weights_only=True) for n in (1, 2))
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-6), name
    metrics = [json.loads((tmp_path / f"metrics_{n}.json").read_text()) for n in (1, 2)]
    for name, value in metrics[0].items():
        assert metrics[1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


# ---------------------------------------------------------------- the names of TRL

TRL_PPO_CONFIG = """
    dataset_num_proc num_mini_batches total_episodes local_rollout_forward_batch_size
    num_sample_generations response_length stop_token stop_token_id temperature missing_eos_penalty
    sft_model_path world_size num_total_batches micro_batch_size local_batch_size batch_size
    local_mini_batch_size mini_batch_size push_to_hub reward_model_path model_adapter_name
    ref_adapter_name num_ppo_epochs whiten_rewards kl_coef kl_estimator cliprange vf_coef
    cliprange_value gamma lam ds3_gather_for_generation
""".split()  # TRL 1.12


def test_a_setting_of_trl_is_taken_or_answered():
    own = {f.name for f in dataclasses.fields(PPOConfig)}
    below = {f.name for f in dataclasses.fields(transformers.TrainingArguments)}
    assert not own & set(ELSEWHERE) and set(TRL_PPO_CONFIG) - own <= set(ELSEWHERE)
    for name in (below | set(TRL_PPO_CONFIG) | set(ELSEWHERE)) - own:
        with pytest.raises(TypeError) as refused:
            PPOConfig(**{name: None})
        said = str(refused.value)
        assert (
            said.startswith(f"PPOConfig has no {name}: ") and "\n" not in said and "Did you mean" not in said
        )
    for name, instead in (
        ("stop_token", "generation_config.eos_token_id"),
        ("save_strategy", "save_steps=0"),
        ("eval_strategy", "eval_steps"),
        ("per_device_eval_batch_size", "local_rollout_forward_batch_size"),
        ("fp16", "bf16=True"),
        ("hub_model_id", "upload_folder"),
        ("max_steps", "total_episodes"),
        ("optim", "AdamW"),
        ("tf32", "leave it out"),
    ):
        with pytest.raises(TypeError, match=re.escape(instead)):
            PPOConfig(**{name: 1})
    with pytest.raises(TypeError, match="PPOConfig has no kl_coeff. Did you mean kl_coef\\?"):
        PPOConfig(kl_coeff=0.1)
    with pytest.raises(TypeError, match="PPOConfig has no xyzzy$"):
        PPOConfig(xyzzy=1)


def test_what_elsewhere_points_to_is_there():
    "A name that a message tells people to use must be one of ours."
    own = {f.name for f in dataclasses.fields(PPOConfig)}
    for name, instead in ELSEWHERE.items():
        for word in re.findall(r"\b([a-z0-9]+_[a-z_0-9]+)\b(?!\.)", instead):
            assert word in own | {
                "ref_model",
                "eval_dataset",
                "save_model",
                "upload_folder",
                "eos_token_id",
                "repo_id",
                "folder_path",
            }, (name, word)


def test_arguments_of_trls_trainer_are_taken_or_answered(base, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    nothing = dict(value_model=None, data_collator=None, optimizers=(None, None))
    trainer = PPOTrainer(
        args=config(tmp_path),
        tokenizer=tokenizer,
        model=base,
        ref_model=None,
        reward_model=vowels,
        train_dataset=prompts(4),
        eval_dataset=None,
        callbacks=None,
        peft_config=None,
        **nothing,
    )
    assert trainer.tokenizer is tokenizer and [f.__wrapped__ for f in trainer.rewards.functions] == [vowels]
    policy = transformers.AutoModelForCausalLM.from_pretrained(base)
    for given, message in (
        ({"value_model": policy}, r"PPOTrainer has no value_model: PPOConfig\(critic"),
        ({"data_collator": print}, "PPOTrainer has no data_collator: train_dataset holds prompts"),
        (
            {"optimizers": (torch.optim.SGD(policy.parameters(), 0.1), None)},
            "PPOTrainer has no optimizers: PPOTrainer makes AdamW",
        ),
        ({"train_dataet": []}, "no argument train_dataet. Did you mean train_dataset"),
        ({"reward_model": vowels}, "reward_model is TRL's name of reward, which is given too"),
        ({"xyzzy": 1}, "PPOTrainer has no argument xyzzy$"),
    ):
        with pytest.raises(TypeError, match=message):
            PPOTrainer(base, vowels, config(tmp_path), prompts(4), **given)
    with pytest.raises(TypeError, match="reward is missing"):
        PPOTrainer(base, args=config(tmp_path), train_dataset=prompts(4))
    with pytest.raises(TypeError, match="reward is a bare LlamaForCausalLM, which reads token ids"):
        PPOTrainer(base, policy, config(tmp_path), prompts(4))
    with pytest.raises(TypeError, match="model is a configuration: the order is PPOTrainer"):
        PPOTrainer(config(tmp_path), tokenizer, base)
    with pytest.raises(
        TypeError, match="args must be a PPOConfig of reward_kit, got TrainingArguments of transformers"
    ):
        PPOTrainer(base, vowels, transformers.TrainingArguments(str(tmp_path)), prompts(4))


def test_schedules_that_would_fail_in_train_fail_in_the_config(base, tmp_path):
    from transformers.trainer_utils import SchedulerType

    for kind in SchedulerType:
        if kind.value in settings_of(PPOConfig)["lr_scheduler_type"].choices:
            make_trainer(
                base, tmp_path, lr_scheduler_type=kind.value, total_episodes=16, num_ppo_epochs=1
            ).train()
            assert PPOConfig(lr_scheduler_type=kind).lr_scheduler_type == kind
        else:
            with pytest.raises(
                ValueError, match=f"lr_scheduler_type must be one of linear, .*got '{kind.value}'"
            ):
                PPOConfig(lr_scheduler_type=kind.value)
    with pytest.raises(ValueError, match="lr_scheduler_type must be one of linear"):
        PPOConfig(lr_scheduler_type="cosin")


# ---------------------------------------------------------------- refusals


def test_a_gradient_that_is_not_a_number_stops_before_the_weights_change(base, tmp_path):
    trainer = make_trainer(base, tmp_path)
    before, episodes = weights(trainer), fixed_episodes()
    episodes[3].logprobs[0] = float("nan")
    with pytest.raises(FloatingPointError, match="prompts of rows"):
        trainer.update(episodes)
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


@pytest.mark.parametrize(
    "reward, message",
    [
        (
            lambda completions, **k: [float("nan")] * len(completions),
            r"gave nan; a reward is a finite number or None \(row \d+\)",
        ),
        (lambda completions, **k: [1.0], "gave 1 reward for 8 responses"),
        (lambda completions, **k: None, "gave NoneType; it must give a list"),
        (lambda completions, **k: {}["score"], r"raised KeyError: 'score' \(rows \d+"),
    ],
)
def test_bad_rewards_name_the_row(base, tmp_path, reward, message):
    with pytest.raises(RewardError, match=message):
        make_trainer(base, tmp_path, reward=reward).train()


def test_what_cannot_be_a_policy_or_its_settings_is_refused(base, tmp_path):
    torch.manual_seed(0)
    transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(
        tmp_path / "rm"
    )
    with pytest.raises(ModelLoadError, match="is a reward model, which writes no text"):
        make_trainer(tmp_path / "rm", tmp_path)
    with pytest.raises(ModelLoadError, match="does not exist"):
        make_trainer(tmp_path / "none", tmp_path)
    with pytest.raises(ModelLoadError, match="is not a reward model"):
        make_trainer(base, tmp_path, reward=base)
    with pytest.raises(ValueError, match="the policy's context has 256 tokens"):
        make_trainer(base, tmp_path, response_length=300)
    half = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="weights are torch.bfloat16, in which PPO's small steps are lost"):
        make_trainer(half, tmp_path, processing_class=transformers.AutoTokenizer.from_pretrained(base))
    with pytest.raises(ValueError, match="ref_model has a vocabulary of"):
        make_trainer(base, tmp_path, ref_model=tiny("llama"))
    for wrong in (
        {"total_episodes": -5},
        {"score_clip": -1.0},
        {"kl_target": 0.0},
        {"missing_eos_penalty": -3.0},
        {"cliprange": float("nan")},
        {"temperature": float("inf")},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PPOConfig(**wrong)
    with pytest.raises(TypeError, match="args must be a PPOConfig of reward_kit, got dict"):
        PPOTrainer(base, vowels, {}, prompts(4))
    with pytest.raises(ValueError, match="no chat template"):
        make_trainer(base, tmp_path, data=[[{"role": "user", "content": "hi"}]])


def test_a_folder_that_cannot_be_written_is_one_clear_line(base, tmp_path):
    trainer = make_trainer(base, tmp_path / "run", total_episodes=8)
    trainer.train()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="the policy could not be saved"):
        trainer.save_model(tmp_path / "file" / "policy")


def test_vllm_is_a_switch(base, tmp_path, monkeypatch):
    """Sampling goes to TRL's VLLMGeneration, which gets new weights after each update; what it sampled
    is measured here."""
    calls = []

    class Fake:
        def __init__(self, model, accelerator, processing_class, **settings):
            calls.append(settings)

        def sync_weights(self):
            calls.append("sync")

        def generate(self, prompts, images, num_generations):
            return prompts, [[7, 8, 9] for _ in prompts], None, None

    import trl.generation.vllm_generation

    monkeypatch.setattr(trl.generation.vllm_generation, "VLLMGeneration", Fake)
    trainer = make_trainer(
        base, tmp_path, use_vllm=True, vllm_kwargs={"mode": "server"}, temperature=0.9, total_episodes=16
    )
    trainer.train()
    assert (
        calls[0]["mode"] == "server"
        and calls[0]["temperature"] == 0.9
        and calls[0]["max_completion_length"] == 8
        and calls.count("sync") == 2
    )
    episodes, _ = trainer.collect(0)
    logprobs, _ = EpisodeBatch.of(episodes).logprobs(trainer.policy, 0.9)
    assert episodes[0].logprobs == pytest.approx(logprobs[0, :3].tolist(), abs=1e-5)


def test_a_tokenizer_without_a_pad_token_will_do(base, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = None
    make_trainer(base, tmp_path, processing_class=tokenizer, total_episodes=8).train()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no EOS token"):
        make_trainer(base, tmp_path, processing_class=tokenizer)


# ---------------------------------------------------------------- from the right start to the right stop


def test_prompts_of_any_row_source_are_read_or_refused(base, tmp_path):
    texts = prompts(6)
    frame = pandas.DataFrame({"answer": range(6), "prompt": texts})
    assert [row["prompt"] for row in make_trainer(base, tmp_path, data=frame).train_rows] == texts
    for part in (Subset(texts, [0, 1]), Subset(frame, [0, 1]), *random_split(texts, [3, 3])):
        with pytest.raises(PreferenceDataError, match="data has the type Subset; give a path"):
            make_trainer(base, tmp_path, data=part)
        with pytest.raises(PreferenceDataError, match="data has the type Subset; give a path"):
            train_ppo_policy(base, vowels, part, tmp_path / "policy", say=lambda line: None)
    result = [
        _read_prompts(data, None, None)
        for data in (texts, tuple(texts), frame, [{"prompt": text} for text in texts])
    ]
    assert all([row["prompt"] for row in rows] == texts for rows in result)


TEMPLATES = {  # what a template renders before and after each turn, and what it begins an answer with
    "with BOS": "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}A:",
    "without BOS": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}A:",
    "turns end in EOS": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
}


def adding_tokenizer(template=None, eos=False):
    "A tokenizer that begins texts with BOS, and may end them with EOS."
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    names = ["<s>", "</s>"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=["<s>", "$A", *["</s>"] * eos],
        special_tokens=list(zip(names, tokenizer.convert_tokens_to_ids(names))),
    )
    return tokenizer


@pytest.mark.parametrize("template", TEMPLATES)
def test_conversations_are_the_ids_of_the_chat_template(template):
    tokenizer = adding_tokenizer(TEMPLATES[template])
    turns = [{"role": "user", "content": "the cat"}]
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert Prompts.load([turns]).encode(tokenizer) == [expected]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    if text.startswith("<s>"):  # rendered: no second BOS, and its EOS stays
        assert Prompts.load([text]).encode(tokenizer) == [expected]


STOPS = [*range(40, 80)]


@pytest.fixture(scope="module")
def talkative(tmp_path_factory):
    "A base that asks for much, and stops at another token than its tokenizer's EOS too."
    folder = tmp_path_factory.mktemp("talkative")
    make_base(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for p in model.parameters():
        p.data.mul_(3)
    stops = {"eos_token_id": STOPS, "min_new_tokens": 9, "suppress_tokens": [50]}
    model.generation_config.update(repetition_penalty=1.8, top_k=3, do_sample=True, **stops)
    model.save_pretrained(folder)
    adding_tokenizer(TEMPLATES["without BOS"], eos=True).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=2, target_modules=["q_proj"])])
@pytest.mark.parametrize("temperature", [0.7, 0.05])
@pytest.mark.parametrize("chat", [False, True])
def test_a_saved_policy_writes_what_was_trained_for(
    talkative, tmp_path, caplog, chat, temperature, peft_config
):
    data = [[{"role": "user", "content": text}] if chat else text for text in prompts(8)]
    trainer = make_trainer(
        talkative, tmp_path, data=data, temperature=temperature, response_length=24, total_episodes=8,
        peft_config=peft_config, top_k=7, critic="shared",
    )  # fmt: skip
    (told,) = (r.getMessage() for r in caplog.records if "generation_config" in r.getMessage())
    for name in ("repetition_penalty=1.8", "min_new_tokens=9", "suppress_tokens=[50]", "top_k=3"):
        assert name in told
    trainer.train()
    trainer.save_model()
    trained = []
    for row, ids in enumerate(trainer.train_rows.ids):
        torch.manual_seed(row)
        trained += trainer.sampling.sample(trainer.policy.eval(), [ids])
    assert {e.response_ids[-1] for e in trained if e.stopped} <= {*STOPS, trainer.tokenizer.eos_token_id}
    assert any(e.stopped for e in trained)

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    write = transformers.pipeline("text-generation", str(tmp_path), dtype=torch.float32)
    how = {"add_generation_prompt": True, "return_dict": False}
    for row, (prompt, e) in enumerate(zip(data, trained)):
        ids = tokenizer.apply_chat_template(prompt, **how) if chat else tokenizer(prompt)["input_ids"]
        assert ids == e.prompt_ids == trainer.train_rows.ids[row]
        torch.manual_seed(row)
        written = model.generate(torch.tensor([ids]))[0, len(ids) :].tolist()
        assert written == e.response_ids
        torch.manual_seed(row)
        (found,) = write(prompt, return_full_text=False)
        assert found["generated_text"] == tokenizer.decode(e.response_ids, skip_special_tokens=True)


def exact_kl(policy, reference, e):
    "Of a response, from whole distributions (nats)."
    ids, n = torch.tensor([e.prompt_ids + e.response_ids]), len(e.response_ids)
    with torch.no_grad():
        a, b = (m(ids).logits[0, -n - 1 : -1].double().log_softmax(-1) for m in (policy, reference))
    return (a.gather(1, ids[0, -n:, None]) - b.gather(1, ids[0, -n:, None])).sum().item()


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_the_reference_is_the_untouched_base(base, tmp_path, bias):
    folder = tmp_path / "biased"  # a model whose layers have biases
    config = transformers.AutoConfig.from_pretrained(base)
    config.attention_bias = True
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    untouched = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], bias=bias)
    trainer = make_trainer(str(folder), tmp_path, peft_config=adapter, learning_rate=3e-2, critic="shared")
    assert (trainer.ref_policy is None) == (bias == "none")
    trainer.update(trainer.collect(0)[0])
    episodes, metrics = trainer.collect(1)
    exact = [exact_kl(trainer.policy, untouched, e) for e in episodes]
    assert metrics["objective/kl"] == pytest.approx(sum(exact) / len(exact), abs=1e-4)
    assert abs(metrics["objective/kl"]) > 1e-2  # it has moved


@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_4"])
def test_an_adapter_that_rewrites_its_base_is_refused(base, tmp_path, init):
    adapter = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=init)
    with pytest.raises(ValueError, match="its base, to which a saved one belongs: leave init"):
        make_trainer(base, tmp_path, peft_config=adapter)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_a_policy_of_which_nothing_is_trained_is_refused(base, tmp_path, critic):
    own = transformers.AutoTokenizer.from_pretrained(base)
    frozen = transformers.AutoModelForCausalLM.from_pretrained(base).requires_grad_(False)
    adapter = LoraConfig(r=2, target_modules=["q_proj"], inference_mode=True, task_type="CAUSAL_LM")
    for policy in (frozen, get_peft_model(frozen, adapter)):
        with pytest.raises(ValueError, match="nothing of the policy is trained"):
            make_trainer(policy, tmp_path, critic=critic, processing_class=own)


def test_tokens_outside_the_embedding_are_refused(base, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    for kind, text in (({"eos_token": "<end>"}, "the"), ({"additional_special_tokens": ["<odd>"]}, "<odd>")):
        own = transformers.AutoTokenizer.from_pretrained(base)
        own.add_special_tokens(kind)
        with pytest.raises(ValueError, match=f"token {len(own) - 1} is in a prompt or ends a response"):
            make_trainer(model, tmp_path, data=[text], processing_class=own)
        with pytest.raises(ValueError, match="resize_token_embeddings"):
            make_trainer(model, tmp_path, eval_dataset=[text], processing_class=own)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_with_16_bit_weights_the_first_ratio_is_one_and_the_critic_learns(base, tmp_path, critic):
    half = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    trainer = make_trainer(
        half, tmp_path, critic=critic, peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
        processing_class=transformers.AutoTokenizer.from_pretrained(base), num_mini_batches=1,
        num_ppo_epochs=1, temperature=0.3, critic_learning_rate=3e-6,
    )  # fmt: skip
    assert {p.dtype for p in trainer.critic.parameters()} == {torch.float32}
    before = [p.detach().clone() for p in trainer.critic.parameters()]
    metrics = trainer.update(trainer.collect(0)[0])
    assert metrics["val/ratio"] == pytest.approx(1, abs=1e-5) and metrics["val/ratio_var"] < 1e-9
    if critic == "separate":
        for _ in range(2):  # the head is zero at first, so the trunk's first gradient is too
            trainer.update(trainer.collect(1)[0])
        moved = [(a != b).flatten() for a, b in zip(before, trainer.critic.parameters())]
        assert torch.cat(moved).float().mean() > 0.3  # in 16 bits next to none would


def test_sampling_is_in_the_precision_of_the_weights(base, tmp_path):
    data = prompts(4)
    torch.manual_seed(0)
    a, b = (make_trainer(base, tmp_path, bf16=bf16, data=data) for bf16 in (False, True))
    assert [e.response_ids for e in a.sample(a.train_rows.ids)] == [
        e.response_ids for e in b._episodes(range(4), b.train_rows)
    ]


def test_a_tracker_that_is_not_installed_is_refused(base, tmp_path):
    absent = next(name for name in ("clearml", "aim", "swanlab") if find_spec(name) is None)
    for asked in (absent, [absent], [Notebook(), absent]):
        with pytest.raises(ValueError, match=f"report_to=.*{absent}.*not installed"):
            make_trainer(base, tmp_path, report_to=asked)


@pytest.mark.parametrize(
    "schedule, warmup, shares",
    [
        ("linear", 0, [1, 2 / 3, 1 / 3]),
        ("linear", 1, [1 / 2, 1, 1 / 2]),
        ("linear", 0.5, [1 / 3, 2 / 3, 1]),
        ("constant_with_warmup", 2, [1 / 3, 2 / 3, 1]),
        ("constant", 0, [1, 1, 1]),
    ],
)
def test_the_first_batch_of_a_warm_up_is_trained_on(base, tmp_path, schedule, warmup, shares):
    trainer = make_trainer(base, tmp_path, lr_scheduler_type=schedule, warmup_steps=warmup)
    rates = [log["lr"] for log in trainer.train().log_history]
    assert rates == pytest.approx([1e-3 * share for share in shares])


def test_a_constant_rate_has_no_warm_up():
    with pytest.raises(ValueError, match="a constant rate has no warm-up; choose constant_with_warmup"):
        PPOConfig(lr_scheduler_type="constant", warmup_steps=1)


def test_a_reward_function_cannot_change_the_data(base, tmp_path):
    def careless(prompts, completions, topic, **columns):
        for prompt, completion, found in zip(prompts, completions, topic):
            prompt.append({"role": "user", "content": "more"})
            completion[0]["content"] = "changed"
            found.append("more")
        return [1.0] * len(prompts)

    own = adding_tokenizer(TEMPLATES["with BOS"])
    rows = [{"prompt": [{"role": "user", "content": t}], "topic": ["t"]} for t in prompts(8)]
    seen = []
    watch = lambda prompts, completions, topic: [seen.append((p, t)) or 0.0 for p, t in zip(prompts, topic)]
    trainer = make_trainer(base, tmp_path, [careless, watch], data=rows, processing_class=own)
    episodes, _ = trainer.collect(0)
    assert all(len(prompt) == 1 and topic == ["t"] for prompt, topic in seen) and len(seen) == 8
    assert all(len(row["prompt"]) == 1 and row["topic"] == ["t"] for row in trainer.train_rows)
    assert all(e.completion[0]["content"] != "changed" for e in episodes)


def test_a_column_cannot_replace_prompts(base, tmp_path):
    seen = []
    judge = lambda prompts, completions, **columns: [seen.append(p) or 0.0 for p in prompts]
    rows = [{"prompt": text, "prompts": "another", "completions": "x"} for text in prompts(8)]
    make_trainer(base, tmp_path, judge, data=rows).collect(0)
    assert sorted(seen) == sorted(prompts(8))


def test_async_functions_and_their_metrics_are_as_in_trl(base, tmp_path):
    async def patient(completions, log_metric, trainer_state, **columns):
        log_metric("words", sum(len(text.split()) for text in completions))
        log_metric("step", trainer_state.global_step)
        return vowels(completions)

    class Patient:
        async def __call__(self, completions, **columns):
            assert callable(columns["log_metric"])
            return [0.0] * len(completions)

    trainer = make_trainer(base, tmp_path, [patient, Patient()])

    async def inside_a_loop():
        return trainer.train().log_history

    logs = asyncio.run(inside_a_loop())
    assert [log["step"] for log in logs] == [1, 2, 3] and all(log["words"] >= 0 for log in logs)
    assert all(log["rewards/Patient"] == 0 and log["rewards/patient"] != 0 for log in logs)


def test_two_reward_models_of_one_name_have_two_metrics(base, judge, tmp_path):
    models = [judge, judge]
    trainer = make_trainer(base, tmp_path, models)
    _, metrics = trainer.collect(0)
    assert len([name for name in metrics if name.startswith("rewards/")]) == 2


def test_a_tool_call_without_content_is_a_turn(base, tmp_path):
    calls = "{% for c in m.tool_calls %}{{ c }}{% endfor %}"
    template = "{% for m in messages %}{{ m.role }}{{ m.content }}" + calls + "{% endfor %}"
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "b"},
    ]
    trainer = make_trainer(base, tmp_path, data=[turns], processing_class=adding_tokenizer(template))
    assert "look" in trainer.tokenizer.decode(trainer.train_rows.ids[0])


def test_a_generation_config_that_could_not_be_saved_is_not_kept(base, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.generation_config.update(do_sample=False, top_p=0.3)  # transformers saves no such
    own = transformers.AutoTokenizer.from_pretrained(base)
    trainer = make_trainer(model, tmp_path, processing_class=own, total_episodes=8, top_p=0.9)
    trainer.train()
    trainer.save_model()
    saved = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (saved.do_sample, saved.top_p, saved.top_k, saved.max_new_tokens) == (True, 0.9, 0, 8)


def test_a_mean_of_logs_does_not_hide_what_is_no_number(base, tmp_path):
    trainer = make_trainer(base, tmp_path, logging_steps=3)
    update, found = trainer.update, iter([1.0, math.nan, 2.0])
    trainer.update = lambda *args: update(*args) | {"loss/value_avg": next(found)}
    (log,) = trainer.train().log_history
    assert math.isnan(log["loss/value_avg"]) and math.isfinite(log["loss/policy_avg"])
    assert "nan" in PPOReport(trainer).line(log | {"objective/kl": math.nan})
