"Packed batches give the rewards and the gradients of padded ones; tiny random models, made here."

import copy
import json
import os
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import packing_ddp
import pytest
import torch
import transformers
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from torch.overrides import TorchFunctionMode
from torch_kernel import reference_varlen, varlen
from trainer_world import make_base, make_pairs, make_tokenizer

import reward_kit.model.batches as batches
import reward_kit.model.packing as module
from reward_kit.model.batches import _MIN_SHARED as MIN_SHARED
from reward_kit.model.batches import (
    SEGMENT_ATTENTION,
    RewardCollator,
    bind_reward_forward,
)
from reward_kit.model.batches import _reading_at as reading_at
from reward_kit.model.batches import _Segments as Segments
from reward_kit.model.packing import choose_layout, compile_layers, packing_problem
from reward_kit.model.trainer import RewardConfig, RewardTrainer
from reward_kit.scores.inference import RowScorer

# ---- models and examples

# weights large enough for attention to be peaked: what a token sees, and where it stands, then shows in its
# reward
SIZES = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    num_labels=1,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    initializer_range=0.2,
)
GPT2 = dict(n_embd=32, n_layer=3, n_head=4, n_positions=128)
MIXED = ["sliding_attention", "sliding_attention", "full_attention"]
DECODERS = {
    "Llama": {},
    "Mistral": dict(sliding_window=6),
    "Qwen2": {},
    "Qwen3": dict(head_dim=8),
    "Gemma2": dict(
        head_dim=8,
        sliding_window=6,
        query_pre_attn_scalar=3,
        attn_logit_softcapping=2.0,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "Gemma3Text": dict(head_dim=8, sliding_window=6, query_pre_attn_scalar=8, layer_types=MIXED),
    "Phi3": {},
    "GPT2": GPT2,
    "GPTNeoX": dict(rotary_pct=0.25),
    "OPT": dict(ffn_dim=48, word_embed_proj_dim=32, init_std=0.2),
    "Mixtral": dict(num_local_experts=4, sliding_window=None),
    "Qwen3Moe": dict(
        head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=1
    ),
    "JetMoe": dict(kv_channels=8, num_local_experts=3, num_experts_per_tok=2),
}
OTHERS = {  # model -> (its settings, a part of the reason)
    "Bert": ({}, "is an encoder"),
    "DebertaV2": ({}, "is an encoder"),
    "ModernBert": (dict(cls_token_id=1, sep_token_id=2), "is an encoder"),
    "Jamba": (
        dict(
            mamba_d_state=4,
            num_experts=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
        ),
        "carry a state",
    ),
    "Zamba2": (
        dict(
            layers_block_type=["mamba", "hybrid", "mamba"],
            mamba_d_state=8,
            mamba_headdim=8,
            n_mamba_heads=8,
            mamba_ngroups=1,
            num_key_value_heads=4,
            adapter_rank=4,
            num_mem_blocks=1,
            chunk_size=8,
        ),
        "carry a state",
    ),
    "MiniMax": (
        dict(
            num_local_experts=4,
            block_size=8,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
        ),
        "other hidden states",
    ),
    "Falcon": ({}, "computes its attention by itself"),
    "GptOss": (
        dict(
            head_dim=8, num_local_experts=4, num_experts_per_tok=2, rope_parameters={"rope_type": "default"}
        ),
        "cannot run packed batches: its attention has sinks",
    ),
}


def make_model(kind="Llama", **settings):
    "Random weights, in evaluation mode, without dropout where it is not asked for."
    off = {
        name: 0.0
        for name in (
            "attn_pdrop",
            "resid_pdrop",
            "embd_pdrop",
            "dropout",
            "attention_dropout",
            "hidden_dropout",
        )
    }
    given = DECODERS[kind] if kind in DECODERS else OTHERS[kind][0]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES | off | given | settings)
    model = bind_reward_forward(getattr(transformers, f"{kind}ForSequenceClassification")(config)).eval()
    if kind in DECODERS:
        assert packing_problem(model) is None
    return model


@pytest.fixture(autouse=True)
def always_pack(monkeypatch):
    """Batches that packing would hardly shorten are packed all the same: what is tested here is the
    packed layout."""
    monkeypatch.setattr(batches, "_PAYS_BELOW", float("inf"))


def test_a_batch_that_packing_would_not_shorten_is_padded(monkeypatch):
    monkeypatch.undo()
    collate = RewardCollator(0, "packed")
    equal, shared, ragged = (
        [[tokens(16, i), tokens(16, i + 1)] for i in (2, 4)],
        [[tokens(9, 1) + tokens(5, i) for i in (2, 3)]],
        [[tokens(4, 1), tokens(30, 2)]],
    )
    for groups, packed in (
        (equal, False),
        (shared, True),
        (ragged, True),
        ([[tokens(7, 1)]], False),
        ([*equal, *shared, *ragged], True),
    ):
        batch = collate([{"sequences": group} for group in groups])
        assert (batch.segments is not None) is packed
        flat, ends = batch["input_ids"].flatten(), batch["reward_index"][batch["mask"]]
        assert flat[ends].tolist() == [ids[-1] for group in groups for ids in group]


def tokens(n, seed):
    return random.Random(seed).choices(range(5, 64), k=n)


PROMPTS = [tokens(20, 0), tokens(13, 1), tokens(MIN_SHARED, 2), tokens(MIN_SHARED - 1, 3)]
A, B, C, D = PROMPTS
CASES = {
    "pairs that share a prompt": [
        [A + tokens(5, 10), A + tokens(9, 11)],
        [B + tokens(12, 12), B + tokens(3, 13)],
    ],
    "rankings": [
        [A + tokens(n, n) for n in (4, 7, 2, 9)],
        [B + tokens(6, 20), B + tokens(5, 21)],
        [B + tokens(n, 30 + n) for n in (3, 1, 8)],
        [A + tokens(4, 40)],
    ],
    "nothing shared": [[tokens(11, 50), tokens(17, 51)], [tokens(6, 52), tokens(2, 53)]],
    "the second is a prefix of the first": [[A + tokens(9, 60), (A + tokens(9, 60))[:-4]]],
    "the first is a prefix of the second": [[A[:12], A + tokens(3, 61)]],
    "identical responses": [[A + tokens(4, 70), A + tokens(4, 70)], [B + tokens(4, 71)] * 3],
    "responses of one token": [[A + [7], A + [8], A + [9]], [B + [7], B + tokens(6, 80)]],
    "sequences of one token": [[[7], [8]], [[9], tokens(5, 81)]],
    "as long a common start as is shared": [[C + tokens(6, 90), C + tokens(4, 91)]],
    "a shorter one": [[D + [5] + tokens(6, 92), D + [6] + tokens(4, 93)]],
    "all share with the first only": [
        [A + tokens(5, 94), A[:9] + tokens(14, 95), A[:14] + tokens(3, 96), tokens(10, 97)]
    ],
}
EVERYTHING = [group for groups in CASES.values() for group in groups]


def collate(layout, groups):
    return RewardCollator(0, layout)([{"sequences": group} for group in groups])


def forward(model, layout, groups):
    return model(**collate(layout, groups).model_inputs()).logits


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def backward(model, rewards):
    "Gradients of a sum of the rewards with weights that differ."
    model.zero_grad()
    (rewards * torch.randn(rewards.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return gradients(model)


def rewards_and_gradients(model, layout, groups=EVERYTHING):
    rewards = forward(model, layout, groups)
    return rewards.detach(), backward(model, rewards)


def gap(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def check_same(packed, padded, tolerance):
    """Rewards by their largest, gradients by the largest of their tensor, but not by less than a
    hundredth of the largest of all (keys have no use for a bias)."""
    assert gap(packed[0], padded[0]) < tolerance
    assert packed[1].keys() == padded[1].keys()
    top = max(value.abs().max().item() for value in padded[1].values())
    for name, value in padded[1].items():
        assert (packed[1][name] - value).abs().max() < tolerance * max(
            value.abs().max().item(), 1e-2 * top
        ), name


class Double(TorchFunctionMode):
    """Models go down to float32 in places (norms, softmax, our head); here float64 stays, so that only
    the order of its sums can differ."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if func is torch.Tensor.float:
                return args[0]
            args, kwargs = (
                tuple(torch.float64 if a is torch.float32 else a for a in args),
                {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()},
            )
        return func(*args, **kwargs or {})


# ---- rewards and gradients


@pytest.mark.parametrize("kind", DECODERS)
def test_packed_equals_padded_up_to_rounding(kind):
    model = make_model(kind)
    packed, padded = (rewards_and_gradients(model, layout) for layout in ("packed", "padded"))
    check_same(packed, padded, 1e-5)
    model.double().config._experts_implementation = "eager"  # the usual one takes no float64
    with Double():
        exact = [rewards_and_gradients(model, layout) for layout in ("packed", "padded")]
    assert exact[0][0].dtype == torch.float64
    check_same(*exact, 1e-10)
    # and neither is off: the model's own forward, a sequence at a time, reads the same rewards
    with Double(), torch.no_grad():
        alone = [model(input_ids=torch.tensor([ids])).logits.item() for group in EVERYTHING for ids in group]
    assert (
        gap(exact[0][0][collate("packed", EVERYTHING)["mask"]], torch.tensor(alone, dtype=torch.float64))
        < 1e-10
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["Llama", "Gemma2"])
def test_each_kind_of_example_alone(kind, case):
    model = make_model(kind).double()
    with Double():
        check_same(
            *(rewards_and_gradients(model, layout, CASES[case]) for layout in ("packed", "padded")), 1e-10
        )


def test_a_shared_prompt_is_computed_once():
    places = {
        case: (
            collate("packed", groups)["input_ids"].numel(),
            sum(len(ids) for group in groups for ids in group),
        )
        for case, groups in CASES.items()
    }
    assert places["pairs that share a prompt"] == (62, 62 + 20 + 13)
    assert places["identical responses"] == (24 + 1 + 17 + 2, 2 * 24 + 3 * 17)
    assert places["as long a common start as is shared"] == (18, 26)
    for case in ("nothing shared", "a shorter one", "sequences of one token"):
        assert places[case][0] == places[case][1]


def test_only_the_places_that_are_read_go_through_the_last_feed_forward():
    model, seen = make_model(), []
    model.model.layers[-1].mlp.up_proj.register_forward_hook(
        lambda layer, args, out: seen.append(out.shape[:-1].numel())
    )
    for layout in ("packed", "padded"):
        forward(model, layout, EVERYTHING)
    assert seen == [len(EVERYTHING) * max(map(len, EVERYTHING))] * 2  # also for what is not there


def test_a_long_ranking_among_pairs_computes_no_more_than_there_is():
    "The table of 40 responses for each of 21 examples is larger than the batch."
    groups = [[tokens(3, i) for i in range(40)], *([tokens(3, i), tokens(4, i)] for i in range(20))]
    model, seen = make_model(), []
    model.model.layers[-1].mlp.up_proj.register_forward_hook(
        lambda layer, args, out: seen.append(out.shape[:-1].numel())
    )
    packed = forward(model, "packed", groups)
    assert seen == [collate("packed", groups).positions()]
    assert gap(packed, forward(model, "padded", groups)) < 1e-5


def test_another_example_in_the_line_changes_nothing():
    model = make_model("Gemma2")
    first, second, both = (
        forward(model, "packed", groups) for groups in (EVERYTHING[:1], EVERYTHING[1:2], EVERYTHING[:2])
    )
    assert gap(both, torch.cat([first, second])) < 1e-6


# ---- adapters, checkpointing, 16 bits, dropout


@pytest.mark.parametrize("kind", ["Llama", "Gemma3Text"])
def test_lora(kind):
    adapter = LoraConfig(
        r=3,
        target_modules=["q_proj", "v_proj", "down_proj"],
        task_type="SEQ_CLS",
        modules_to_save=["score"],
        init_lora_weights=False,
    )
    model = get_peft_model(make_model(kind), adapter)
    packed, padded = (rewards_and_gradients(model, layout) for layout in ("packed", "padded"))
    check_same(packed, padded, 1e-5)
    assert sum("lora_B" in name for name in packed[1]) == 9 and any("score" in name for name in packed[1])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["Llama", "Gemma2", "GPT2", "Qwen3Moe"])
def test_gradient_checkpointing(kind, reentrant):
    model = make_model(kind)
    padded = rewards_and_gradients(model, "padded")
    model.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    calls = []
    attention = next(m for name, m in model.named_modules() if name.endswith(("attn", "attention")))
    attention.register_forward_hook(lambda *_: calls.append(attention))
    check_same(rewards_and_gradients(model, "packed"), padded, 1e-5)
    assert len(calls) == 2, "the layer is computed again in the backward pass"
    check_same(rewards_and_gradients(model, "padded"), padded, 1e-5)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_several_batches_before_the_backward_pass(reentrant):
    model, (first, second) = make_model("Mistral"), (EVERYTHING[:2], EVERYTHING[2:5])
    expected = {
        layout: rewards_and_gradients(model, "padded", groups)[1]
        for layout, groups in (("packed", first), ("padded", second))
    }
    model.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    rewards = {
        layout: forward(model, layout, groups) for layout, groups in (("packed", first), ("padded", second))
    }
    with torch.no_grad():
        model(input_ids=torch.tensor([first[0][0]]))
    for layout, value in rewards.items():
        check_same((value.detach(), backward(model, value)), (value.detach(), expected[layout]), 1e-5)


@pytest.mark.parametrize("kind", ["Llama", "Gemma2", "GPT2"])
def test_bf16_autocast(kind):
    """bf16 keeps 8 bits, a rounding of up to 2**-8 in every product: either layout is off by a few of
    these, and packed by no more than twice what padded is."""
    model = make_model(kind)
    exact = rewards_and_gradients(model, "padded")
    with torch.autocast("cpu", torch.bfloat16):
        found = {layout: rewards_and_gradients(model, layout) for layout in ("packed", "padded")}
    assert found["packed"][0].dtype == torch.float32
    flat = lambda rewards, grads: (rewards, torch.cat([value.flatten() for value in grads.values()]))
    for packed, padded, right in zip(flat(*found["packed"]), flat(*found["padded"]), flat(*exact)):
        off, usual = ((value - right).norm() / right.norm() for value in (packed, padded))
        assert 0 < off < 2 * usual and off < 16 * 2**-8


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Gemma2", "GPT2"])
def test_under_autocast_attention_gets_one_16_bit_type(kind, monkeypatch):
    "Rotated queries and keys are float32 there, values 16 bit; attention kernels take one type."
    seen, model = set(), make_model(kind)
    monkeypatch.setattr(module, "_flash_fits", lambda *_: True)
    monkeypatch.setattr(
        module,
        "_attend_at_once",
        lambda query, key, value, segments, **_: seen.update((query.dtype, key.dtype, value.dtype)) or query,
    )
    monkeypatch.setattr(module, "_CPU_16_BIT_FROM", 0)
    if kind == "Gemma2":
        monkeypatch.setattr(module, "_attend_in_turn", module._attend_at_once)
    with torch.autocast("cpu", torch.bfloat16):
        forward(model, "packed", EVERYTHING)
    assert seen == {torch.bfloat16}


def test_weights_of_16_bits():
    model = make_model().to(torch.bfloat16)
    with torch.no_grad():
        packed, padded = (forward(model, layout, EVERYTHING) for layout in ("packed", "padded"))
    assert packed.dtype == torch.float32 and 0 < gap(packed, padded) < 4 * 2**-8
    assert packing_problem(model) is None


@pytest.mark.parametrize("kind", ["Llama", "Gemma2"])
def test_attention_dropout(kind):
    model = make_model(kind, attention_dropout=0.3)
    without, _ = rewards_and_gradients(model, "packed")
    model.train()

    def run(seed):
        torch.manual_seed(seed)
        return rewards_and_gradients(model, "packed")

    first, again, other = run(0), run(0), run(1)
    assert (
        torch.equal(first[0], again[0])
        and not torch.equal(first[0], other[0])
        and not torch.equal(first[0], without)
    )
    assert all(value.isfinite().all() for value in first[1].values())


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_attention_dropout_keeps_the_mean(softcap):
    query, key, value = (
        torch.randn(3, 1, 4000, 15, 8, generator=torch.Generator().manual_seed(0))[:, :, :1]
        .expand(3, 1, 4000, 15, 8)
        .unbind()
    )
    segments = Segments.of([(12, 0, 0), (3, 0, 9)])
    attend = lambda dropout: module._attend_in_turn(
        query, key, value, segments, window=5, softcap=softcap, dropout=dropout
    )
    torch.manual_seed(0)
    exact, noisy = attend(0.0), attend(0.3)
    assert not torch.equal(noisy[:, 0], exact[:, 0]) and (noisy.mean(1) - exact[:, 0]).abs().max() < 0.1


# ---- attention with kernels for segments of several lengths


@pytest.mark.parametrize("reentrant", [None, True])
@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Gemma3Text", "GPT2", "Phi3"])
def test_the_inputs_of_variable_length_attention(kind, reentrant, monkeypatch):
    "No CPU runs the kernel, so a plain function with its documented meaning stands in its place."
    calls = []
    monkeypatch.setattr(
        module,
        "varlen_attn",
        lambda *args, **kwargs: calls.append(kwargs["window_size"]) or reference_varlen(*args, **kwargs),
    )
    model = make_model(kind)
    calls.clear()
    monkeypatch.setattr(module, "_flash_fits", lambda *_: True)
    if reentrant:
        (
            model.train().gradient_checkpointing_enable({"use_reentrant": True}),
            model.enable_input_require_grads(),
        )
    packed, padded = (rewards_and_gradients(model, layout) for layout in ("packed", "padded"))
    check_same(packed, padded, 1e-5)
    windows = {"Mistral": [(5, 0)] * 3, "Gemma3Text": [(5, 0), (5, 0), (-1, 0)]}.get(kind, [(-1, 0)] * 3)
    assert calls == windows * (1 if reentrant is None else 1) + (windows[::-1] if reentrant else [])


def segment_attention(size=8, dtype=torch.bfloat16, **options):
    tensors = [torch.ones(1, 2, 4, size, dtype=dtype)] * 3
    return module._segment_attention(torch.nn.Linear(1, 1), *tensors, Segments.of([(4, 0, 0)]), **options)


def test_variable_length_attention_is_for_what_its_kernel_computes(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "varlen_attn", lambda query, *_, **__: calls.append(query) or query)
    segment_attention()
    assert not calls, "on a CPU"
    monkeypatch.setattr(module, "_flash_fits", lambda *_: True)
    for options in ({"softcap": 30.0}, {"dropout": 0.1}):
        segment_attention(**options)
    assert not calls
    segment_attention()
    assert len(calls) == 1


def test_attention_that_is_more_than_attention_is_refused():
    with pytest.raises(NotImplementedError, match="its attention has sinks"):
        segment_attention(s_aux=torch.ones(2))


# ---- which layout, and how that is found out


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "A base whose layers do something, so that their gradients are not lost in rounding."
    folder = make_base(tmp_path_factory.mktemp("base"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8 if p.dim() == 2 else 1)
    model.save_pretrained(folder)
    return folder


def trainer_of(model, folder, **settings):
    "A trainer of a model whose vocabulary is that of the tokenizer, on a few rows."
    args = RewardConfig(
        str(folder),
        use_cpu=True,
        max_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        estimate_time=False,
        **settings,
    )
    return RewardTrainer(model, args, train_dataset=make_pairs(4), processing_class=make_tokenizer())


WORDS = dict(vocab_size=320, pad_token_id=0)


@pytest.mark.parametrize("kind", DECODERS)
def test_decoders_pack(kind, tmp_path):
    assert packing_problem(make_model(kind)) is None
    trainer = trainer_of(make_model(kind, **WORDS), tmp_path)
    assert trainer.data_collator.layout == "packed" and "batches   packed\n" in str(trainer.plan())
    assert trainer_of(trainer.model, tmp_path, layout="padded").data_collator.layout == "padded"


@pytest.mark.parametrize("kind", OTHERS)
def test_other_models_are_padded_and_the_plan_says_why(kind, tmp_path):
    model, reason = make_model(kind), OTHERS[kind][1]
    assert reason in packing_problem(model) and f"{kind}ForSequenceClassification" in packing_problem(model)
    model = make_model(kind, **WORDS)
    trainer = trainer_of(model, tmp_path)
    assert trainer.data_collator.layout == "padded" and f"batches   padded ({packing_problem(model)})" in str(
        trainer.plan()
    )
    with pytest.raises(ValueError, match=f"layout='packed': {kind}.*{reason}.*use layout='padded' or 'auto'"):
        trainer_of(model, tmp_path, layout="packed")
    with pytest.raises(ValueError, match=f"layout='packed': {kind}.*{reason}"):
        RowScorer(make_model(kind), 0, layout="packed")([[5, 6]])
    rewards = RowScorer(make_model(kind), 0)([A + tokens(5, 10), A + tokens(9, 11)])
    assert (
        rewards[0] == pytest.approx(RowScorer(make_model(kind), 0)([A + tokens(5, 10)])[0], abs=1e-4)
        and rewards[0] != rewards[1]
    )


def test_an_attention_that_sees_too_much_or_too_little_is_found_out(monkeypatch):
    "The probe is only as good as what it notices."
    attend, model = module._attend, make_model("Mistral")

    def wrong(change):
        monkeypatch.setattr(
            module,
            "_attend",
            lambda query, key, value, masks, window=None, **rest: attend(
                *change(query, key, value, window, masks), **rest
            ),
        )

    for change in (
        lambda q, k, v, w, m: (q, k, v, m, None),
        lambda q, k, v, w, m: (q, k, v, m, w + 1),
        lambda q, k, v, w, m: (q, k[:, :, -q.shape[2] :], v[:, :, -q.shape[2] :], m, w),
        lambda q, k, v, w, m: (q, k, v.roll(1, 2), m, w),
    ):
        wrong(change)
        assert "other hidden states" in packing_problem(model)
    wrong(lambda q, k, v, w, m: (q, k, v, m, w))
    assert packing_problem(model) is None


def test_a_choice():
    assert [choose_layout(layout, None) for layout in ("auto", "packed", "padded")] == [
        "packed",
        "packed",
        "padded",
    ]
    assert [choose_layout(layout, "why") for layout in ("auto", "padded")] == ["padded", "padded"]
    with pytest.raises(ValueError, match="layout='packed': why"):
        choose_layout("packed", "why")
    with pytest.raises(ValueError, match="choose one of auto, padded, packed"):
        choose_layout("dense", None)


def state_of(model):
    "All that a forward pass could leave behind."
    names = [
        (
            name,
            part.training,
            type(part),
            sorted(set(part.__dict__) - {"_forward_before_reward"}),
            part.__dict__.get("forward"),
        )
        for name, part in model.named_modules()
    ]
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    return (
        names,
        [(config._attn_implementation, config.to_dict()) for config in configs.values()],
        torch.random.get_rng_state().tolist(),
        random.getstate(),
    )


@pytest.mark.parametrize("kind", ["Llama", "Gemma2", "GPT2", "Falcon", "GptOss", "MiniMax"])
@pytest.mark.parametrize("training", [False, True])
def test_the_probe_leaves_everything_as_it_was(kind, training):
    model = make_model(kind, attention_dropout=0.5).train(training)
    frozen = [part for name, part in model.named_modules() if name.endswith(".0")]
    for part in frozen:
        part.train(not training)  # a part that its owner has set apart
    before = state_of(model)
    packing_problem(model)
    assert state_of(model) == before and all(p.grad is None for p in model.parameters())


# ---- mixtures of experts


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe"])
def test_a_load_balancing_loss_is_no_part_of_a_sequence_classifier(kind):
    """In transformers only causal language models add it; so what packing does to the counts of tokens
    per expert is of no consequence."""
    settings = dict(output_router_logits=True, router_aux_loss_coef=1000.0)
    ids = torch.tensor([A, A[::-1]])
    losses = [make_model(kind, **own)(input_ids=ids, labels=torch.ones(2)).loss for own in ({}, settings)]
    assert torch.equal(*losses)
    out = make_model(kind, **settings)(**collate_inputs("packed", EVERYTHING))
    assert getattr(out, "aux_loss", None) is None and out.loss is None
    causal = getattr(transformers, f"{kind}ForCausalLM")
    language = [
        causal(type(make_model(kind).config)(**SIZES | DECODERS[kind] | own))(input_ids=ids, labels=ids)
        for own in ({}, settings)
    ]
    assert getattr(language[0], "aux_loss", None) is None and language[1].aux_loss > 0


def collate_inputs(layout, groups):
    return collate(layout, groups).model_inputs()


# ---- the model afterwards


def after_packing(kind="Gemma2", checkpointing=False):
    model = make_model(kind)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    rewards = forward(model.train(), "packed", EVERYTHING)
    if checkpointing != "no backward":
        rewards.sum().backward()
    model.zero_grad()
    return model.eval()


@pytest.mark.parametrize("checkpointing", [False, True, "no backward"])
def test_a_model_is_as_it_was_after_a_packed_batch(checkpointing, tmp_path):
    model, fresh = after_packing(checkpointing=checkpointing), make_model("Gemma2")
    if checkpointing:
        fresh.gradient_checkpointing_enable({"use_reentrant": False})
    assert [(name, keys, own is None) for name, *_, keys, own in state_of(model)[0]] == [
        (name, keys, own is None) for name, *_, keys, own in state_of(fresh)[0]
    ]
    line = torch.tensor([A + tokens(4, 0), A + tokens(4, 1)])
    with torch.no_grad():
        assert torch.equal(model(input_ids=line).logits, fresh(input_ids=line).logits)
        for other in (model.model, copy.deepcopy(model).model, model.get_decoder()):
            assert torch.equal(other(line).last_hidden_state, fresh.model(line).last_hidden_state)
    for config in (
        model.config,
        copy.deepcopy(model.config),
        pickle.loads(pickle.dumps(model.config)),
        copy.deepcopy(model).config,
    ):
        assert config._attn_implementation == fresh.config._attn_implementation == SEGMENT_ATTENTION + "eager"
    type(model)(copy.deepcopy(model.config))(input_ids=line)
    model.save_pretrained(tmp_path)
    assert SEGMENT_ATTENTION not in (tmp_path / "config.json").read_text()
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded.eval()(input_ids=line).logits, model(input_ids=line).logits)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_error_in_the_forward_leaves_a_usable_model(checkpointing):
    model = make_model()
    if checkpointing:
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
    expected, state = rewards_and_gradients(model, "packed"), state_of(model)

    def fail(*_):
        raise RuntimeError("out of memory")

    for place in (model.model.layers[1].self_attn, model.model.layers[-1].mlp.down_proj):
        for layout in ("packed", "padded"):
            hook = place.register_forward_hook(fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                forward(model, layout, EVERYTHING)
            hook.remove()
            model.zero_grad()
            assert state_of(model) == state
    with pytest.raises(ZeroDivisionError), reading_at(model.model, torch.tensor([0])):
        raise ZeroDivisionError
    assert state_of(model) == state
    again = rewards_and_gradients(model, "packed")
    assert torch.equal(again[0], expected[0]) and all(
        torch.equal(value, expected[1][name]) for name, value in again[1].items()
    )


def test_a_forward_that_someone_else_put_there_is_kept():
    "accelerate puts its own around every module of a model that is spread over devices."
    model, calls = make_model(), []
    expected = rewards_and_gradients(model, "padded")

    class Count(ModelHook):
        def pre_forward(self, part, *args, **kwargs):
            calls.append(args[0].shape[:-1].numel())
            return args, kwargs

    add_hook_to_module(model.model.layers[-1].mlp, Count())
    hooked = model.model.layers[-1].mlp.forward
    for layout in ("packed", "padded"):
        check_same(rewards_and_gradients(model, layout), expected, 1e-5)
    read = len(EVERYTHING) * max(map(len, EVERYTHING))
    assert calls == [read] * 2 and model.model.layers[-1].mlp.forward is hooked
    assert packing_problem(model) is None


# ---- scoring


def one_at_a_time(model, rows):
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids])).logits.item() for ids in rows]


ROWS = {
    "repeated prompts, mixed up": [
        prompt + tokens(3 + i, 200 + i) for i in range(8) for prompt in (A, B, C, D)
    ],
    "best of 16": [A + tokens(2 + i, 300 + i) for i in range(16)],
    "rankings": [ids for group in CASES["rankings"] for ids in group],
    "equal texts": [A, A, B, A, B + [5], B, B + [5]],
    "prefixes": [(A + B)[:n] for n in (33, 20, 1, 25, 9, 8, 2)],
    "turns": [
        ids
        for i in range(3)
        for ids in (A + tokens(3, 400 + i), A + B + tokens(3, 410 + i), A + B + C + tokens(3, 420 + i))
    ],
    "one": [[7]],
}


@pytest.mark.parametrize("budget", [1, 40, 150, 10_000])
@pytest.mark.parametrize("case", ROWS)
def test_scores_are_in_order_and_those_of_each_text_alone(case, budget):
    rows = random.Random(0).sample(ROWS[case], len(ROWS[case]))
    for kind in ("Llama", "Gemma3Text"):
        model = make_model(kind)
        scorer = RowScorer(model, 0, batch_tokens=budget)
        assert (
            scorer(rows) == pytest.approx(one_at_a_time(model, rows), abs=2e-5)
            and scorer.collate.layout == "packed"
        )


def test_best_of_16_computes_its_prompt_once():
    model, seen = make_model(), []
    model.model.embed_tokens.register_forward_hook(lambda part, args, out: seen.append(args[0].numel()))
    scorer, rows = RowScorer(model, 0), ROWS["best of 16"]
    assert scorer.collate.layout == "packed"  # the probe is over
    seen.clear()
    scorer(rows)
    assert seen == [len(A) + sum(len(ids) - len(A) for ids in rows)]


# ---- parts of batches

ALL_COLUMNS = [
    {
        "sequences": group,
        "ranks": list(range(1, len(group) + 1)),
        "weight": 0.5 + i,
        "margin": float(i),
        "scores": [float(j) for j in range(len(group))],
    }
    for i, group in enumerate(EVERYTHING)
]


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("parts, budget", [(1, None), (3, None), (100, None), (1, 60), (1, 1), (2, 200)])
def test_a_part_of_a_batch_is_the_batch_of_its_examples(layout, parts, budget):
    whole = RewardCollator(0, layout)(ALL_COLUMNS)
    found, start = whole.micro_batches(parts, budget), 0
    for part in found:
        count = part.examples
        own = RewardCollator(0, layout)(ALL_COLUMNS[start : start + count])
        for name, value in own.items():
            width = value.shape[-1] if name in ("reward_index", "mask", "ranks", "targets") else None
            if name == "segments":
                got, value = part.segments.keys, value.keys
            elif name == "lengths":
                got, value = torch.tensor(sum(part.lengths, [])), torch.tensor(sum(value, []))
            elif name == "origin":
                assert part.origin == value
                continue
            else:
                got = part[name][:, :width] if width else part[name]
            if name == "ranks":
                got, value = got[own["mask"]], value[own["mask"]]
            assert torch.equal(got, value), name
        assert budget is None or count == 1 or part["input_ids"].numel() <= budget
        start += count
    assert (
        start == len(ALL_COLUMNS)
        and len(found) >= min(parts, len(ALL_COLUMNS))
        and (budget != 1 or len(found) == start)
    )


def test_a_batch_survives_what_trainers_do_with_it():
    """accelerate and transformers take it apart and put it together again; workers of a data loader
    send it between processes."""
    from accelerate.utils import send_to_device
    from torch.utils.data._utils.pin_memory import pin_memory

    whole = RewardCollator(0, "packed")(ALL_COLUMNS)
    trainer = transformers.Trainer.__new__(transformers.Trainer)
    trainer.args = transformers.TrainingArguments("none", use_cpu=True)
    trainer.is_deepspeed_enabled = False
    copies = [
        trainer._prepare_input(whole),
        send_to_device(whole, "cpu"),
        pickle.loads(pickle.dumps(whole)),
        whole.to("cpu"),
        copy.copy(whole),
    ]
    for batch in copies:
        assert (
            type(batch) is type(whole)
            and batch.lengths == whole.lengths
            and torch.equal(batch.segments.keys, whole.segments.keys)
        )
        assert torch.equal(batch.take(1, 3).input_ids, whole.take(1, 3).input_ids)
    meta = whole.to("meta")
    assert meta.segments.keys.device.type == meta.ranks.device.type == "meta" and meta.tokens == whole.tokens
    assert pin_memory.__name__ and isinstance(whole, dict)


def test_a_packed_batch_is_refused_where_attention_would_not_read_it():
    model = make_model()
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="does not read packed sequences yet"):
        forward(model, "packed", EVERYTHING)


# ---- training


def same_weights(a, b, tolerance):
    return a.keys() == b.keys() and all((a[name] - b[name]).abs().max() < tolerance for name in a)


@pytest.fixture(scope="module")
def packed_run(base, tmp_path_factory):
    return packing_ddp.train(packing_ddp.make_trainer(base, tmp_path_factory.mktemp("packed")))


@pytest.mark.parametrize(
    "settings",
    [
        {"layout": "padded"},
        {"batch_tokens": 60},
        {"batch_tokens": 1},
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2, "batch_tokens": 60},
        {"layout": "padded", "gradient_accumulation_steps": 4},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "batch_tokens": 60},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ],
    ids=str,
)
def test_weights_do_not_depend_on_layout_and_parts(base, packed_run, tmp_path, settings):
    size = 4 // settings.get("gradient_accumulation_steps", 1)
    losses, weights, steps = packing_ddp.train(
        packing_ddp.make_trainer(base, tmp_path, **settings, per_device_train_batch_size=size)
    )
    assert losses == pytest.approx(packed_run[0], abs=1e-5) and same_weights(weights, packed_run[1], 2e-6)
    if settings.get("batch_tokens"):
        assert sum(map(len, steps)) > 3 * settings.get("gradient_accumulation_steps", 1)


def test_the_weights_have_moved(base, packed_run):
    "Otherwise the comparisons say nothing."
    start = transformers.AutoModelForCausalLM.from_pretrained(base).state_dict()
    assert all(
        (start[name] - value).abs().max() > 1e-3
        for name, value in packed_run[1].items()
        if "layers" in name and "norm" not in name
    )


def test_the_loss_curve_is_that_of_the_padded_layout(base, tmp_path):
    curves = {
        layout: packing_ddp.train(
            packing_ddp.make_trainer(
                base, tmp_path / layout, layout=layout, optim="adamw_torch", learning_rate=1e-3, max_steps=20
            )
        )[0]
        for layout in ("packed", "padded")
    }
    assert len(curves["packed"]) == 20 and curves["packed"] == pytest.approx(curves["padded"], abs=1e-5)
    assert curves["padded"][-1] != pytest.approx(curves["padded"][0], abs=1e-2)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_an_adapter_is_trained_merged_and_saved(base, layout, tmp_path):
    args = RewardConfig(
        str(tmp_path),
        use_cpu=True,
        max_steps=2,
        save_strategy="no",
        disable_tqdm=True,
        show_plan=False,
        layout=layout,
        gradient_checkpointing=True,
    )
    trainer = RewardTrainer(
        base,
        args,
        train_dataset=make_pairs(8),
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "down_proj"]),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    extra = json.loads((tmp_path / "final/reward_kit.json").read_text())
    assert extra["merge"]["max_score_difference"] < 1e-5
    assert (
        SEGMENT_ATTENTION
        not in (tmp_path / "final/config.json").read_text()
        + (tmp_path / "final/adapter/adapter_config.json").read_text()
    )


def test_a_model_is_tried_on_the_device_where_it_will_run(base, tmp_path, monkeypatch):
    import reward_kit.model.trainer as trainer_module

    done, move = [], transformers.Trainer._move_model_to_device
    moves = lambda *args: [done.append("moved"), move(*args)][1]
    tries = lambda model: [done.append("tried"), packing_problem(model)][1]
    monkeypatch.setattr(transformers.Trainer, "_move_model_to_device", moves)
    monkeypatch.setattr(trainer_module, "packing_problem", tries)
    trainer = packing_ddp.make_trainer(base, tmp_path)
    assert done == ["moved", "tried"] and trainer.data_collator.layout == "packed"


def test_two_processes_train_as_one(base, packed_run, tmp_path):
    "The number of parts differs between them, and gradients are shared once a step."
    env = dict(os.environ, OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        packing_ddp.__file__,
        base,
        str(tmp_path),
    ]
    both = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = both.communicate(timeout=500)
    finally:
        both.terminate()  # torchrun then ends processes that wait for each other
    assert both.returncode == 0, output[-5000:]
    expected = {
        "whole": packed_run,
        "parts": packed_run,
        "compiled": packed_run,
        "accumulated": packing_ddp.train(
            packing_ddp.make_trainer(base, tmp_path / "one", per_device_train_batch_size=8)
        ),
    }
    for name, (losses, one, _) in expected.items():
        logs = [json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
        weights = [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1)]
        assert (
            same_weights(*weights, 1e-12)
            and same_weights(weights[0], one, 2e-6)
            and logs[0]["losses"] == pytest.approx(losses, abs=1e-5)
        )
        assert all(step == [False] * (len(step) - 1) + [True] for log in logs for step in log["steps"])
        assert all(log["compiled"] == (name == "compiled") for log in logs)
        parts = [[len(step) for step in log["steps"]] for log in logs]
        assert (
            parts == [[1, 1, 1]] * 2
            if name in ("whole", "compiled")
            else max(map(max, parts)) > 2
            if name == "accumulated"
            else parts[0] != parts[1]
        )


def test_sharded_weights_give_the_same_rewards_and_gradients(tmp_path):
    "FSDP2 gathers a layer's weights where the layer's forward is called, packed or not."
    import packing_fsdp

    env = dict(os.environ, OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        packing_fsdp.__file__,
        str(tmp_path),
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-5000:]
    gradients = []
    for rank in (0, 1):
        rewards, sharded = torch.load(tmp_path / f"{rank}.pt")
        one, own = packing_fsdp.rewards_and_gradients(make_model("Qwen3"), EVERYTHING[rank::2])
        assert torch.allclose(rewards, one, atol=1e-5)
        gradients.append(own)
    mean = {name: (gradients[0][name] + gradients[1][name]) / 2 for name in gradients[0]}
    assert (
        same_weights(sharded, mean, 1e-5) and max(float(value.abs().max()) for value in mean.values()) > 0.1
    )


# ---- several threads, and models that are not transformers'


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_threads_can_share_a_model(layout):
    model = make_model("Qwen3")
    rows = [tokens(random.Random(i).randint(9, 30), i) for i in range(24)]
    scorer = RowScorer(model, 0, layout=layout)
    expected, attention = scorer(rows), model.config._attn_implementation
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: scorer(rows[i : i + 3]), [i % 21 for i in range(60)]))
    for i, rewards in enumerate(found):
        assert rewards == pytest.approx(expected[i % 21 : i % 21 + 3], abs=1e-5)
    assert (
        model.config._attn_implementation == attention
        and "forward" not in model.model.layers[-1].mlp.__dict__
    )
    assert scorer(rows) == pytest.approx(expected, abs=1e-6)


def test_a_torch_without_variable_length_attention_goes_segment_by_segment(monkeypatch):
    asked = torch.device("cuda"), torch.bfloat16, 64, 64
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    assert {"scale", "window_size"} <= set(module._KNOWN)  # of the tested torch
    assert module._flash_fits(*asked) and not module._flash_fits(asked[0], torch.float32, 64, 64)
    monkeypatch.setattr(module, "_KNOWN", {"query", "key", "value"})
    assert not module._flash_fits(*asked)
    code = "import sys; sys.modules['torch.nn.attention.varlen'] = None\n"
    code += "from reward_kit.model import packing; print(packing.varlen_attn, packing._KNOWN)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "None ()\n"


class Mixing(torch.nn.Module):
    "A last feed-forward part that lets a token see the one before it."

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        return self.inner(hidden) + hidden.roll(1, 1)


def test_a_feed_forward_part_that_is_not_transformers_own_is_computed_everywhere():
    model = make_model("Qwen3")
    model.model.layers[-1].mlp = Mixing(model.model.layers[-1].mlp)
    ids = torch.tensor([tokens(12, 0)])
    with torch.no_grad():
        own = type(model).forward(model, input_ids=ids).logits.item()
    assert RowScorer(model, 0)([ids[0].tolist()]) == pytest.approx([own], abs=1e-5)


def test_a_kernel_for_one_device_does_not_decide_the_layout(monkeypatch):
    "An attention function that refuses this device stands for one that needs a GPU."

    def elsewhere(*args, **kwargs):
        raise RuntimeError("only on a GPU")

    transformers.AttentionInterface.register("elsewhere", elsewhere)
    model = make_model("Llama")
    model.config._attn_implementation = "elsewhere"
    assert packing_problem(model) is None and model.config._attn_implementation == SEGMENT_ATTENTION + "sdpa"


def test_padded_parts_are_bounded_with_their_padding():
    rows = [
        {"sequences": [tokens(100, 0), tokens(5, 1)]},
        *({"sequences": [tokens(6, i), tokens(7, i + 1)]} for i in range(6)),
    ]
    parts = RewardCollator(0, "padded")(rows).micro_batches(1, 60)
    assert [part["input_ids"].numel() for part in parts] == [200, 56, 28] and sum(
        part.examples for part in parts
    ) == 7


# ---- compiled layers


@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
@pytest.mark.parametrize("way", ["full", "checkpointing", "LoRA", "autocast"])
def test_compiled_layers_train_without_a_break_and_without_compiling_again(kind, way, monkeypatch):
    """Segments are tensors and numbers to a layer, so that one graph serves all lengths, where
    attention is one kernel. Twenty batches, forward and backward."""
    from torch._dynamo.utils import counters

    model = make_model(kind)
    if way == "LoRA":
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules="all-linear"))
    if way == "checkpointing":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    draw = random.Random(0)
    batches = [collate("packed", draw.sample(EVERYTHING, draw.randint(1, 5))) for _ in range(20)]
    batches = [batch for batch in batches if batch.segments is not None]
    monkeypatch.setattr(module, "_flash_fits", lambda *_: True)
    monkeypatch.setattr(module, "varlen_attn", lambda *args, **how: varlen(*args))

    def learn():
        found = []
        for batch in batches:
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
                rewards = model(**batch.model_inputs()).logits
            rewards.sum().backward()
            grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            found.append((rewards.detach(), torch.cat(grads).clone()))
        return found

    expected = learn()
    torch._dynamo.reset()
    counters.clear()
    assert compile_layers(model, "aot_eager") and not compile_layers(model, asked=False)
    tolerance = 2e-2 if way == "autocast" else 1e-5
    for (rewards, grads), (right, right_grads) in zip(learn(), expected, strict=True):
        assert gap(rewards, right) < tolerance
        assert (grads - right_grads).norm() < tolerance * right_grads.norm()
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] <= 2


# ---- deep models in 16 bits


def test_a_deep_model_of_16_bits_is_not_refused_for_its_rounding_and_one_that_mixes_is():
    "Roundings add up over layers, but not to what another text's tokens would do."
    deep = make_model("Qwen3", num_hidden_layers=48, layer_types=None).to(torch.bfloat16)
    assert packing_problem(deep) is None

    def mixes(layer, args, kwargs, output):
        return output + 0.5 * output.roll(1, 1)  # a token takes from the one before it in the row

    deep.model.layers[20].register_forward_hook(mixes, with_kwargs=True)
    assert "other hidden states" in packing_problem(deep)


# ---- on the way to a device


@pytest.mark.parametrize("at, way", [("cpu", ["pin_memory", "to"]), ("meta", ["to"])])
def test_what_is_on_a_device_already_is_not_pinned(at, way, monkeypatch):
    "Only memory of the CPU can be; another device stands for a GPU here."
    batch, ways = collate("packed", EVERYTHING[:2]), []
    batch["input_ids"] = batch.input_ids.to(at)
    monkeypatch.setattr(batches.Batch, "_each", lambda self, method, *_, **__: ways.append(method) or self)
    batch.to("cuda", non_blocking=True)
    assert ways == way


# ---- quantised weights


class Repacks(torch.nn.Linear):
    "As bitsandbytes' on a CPU: after a pass in evaluation no gradient passes it any more."

    support_avx512bf16_for_cpu, repacked = True, False

    def forward(self, hidden):
        if self.support_avx512bf16_for_cpu and not self.training and not hidden.requires_grad:
            self.repacked = True
        return super().forward(hidden)


def make_quantized(**config):
    model = make_model("Llama", **config)
    for part in [*model.model.layers.modules()]:
        for name, child in part.named_children():
            if isinstance(child, torch.nn.Linear):
                twin = Repacks(child.in_features, child.out_features, bias=child.bias is not None)
                twin.load_state_dict(child.state_dict())
                setattr(part, name, twin)
    return model


def repacked(model):
    return [name for name, part in model.named_modules() if getattr(part, "repacked", False)]


def test_trying_the_layouts_leaves_quantised_weights_as_they_are():
    for training in (True, False):
        model = make_quantized().train(training)
        assert packing_problem(model) is None and not repacked(model)
        assert {part.training for part in model.modules()} == {training}


def test_a_quantised_model_trains_its_head_in_float32_and_is_not_repacked(tmp_path):
    model = make_quantized(**WORDS)
    model.is_loaded_in_4bit = True  # TRL trains the adapters of such a model in bfloat16
    adapter = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
    args = RewardConfig(str(tmp_path), use_cpu=True, show_plan=False, report_to="none")
    how = {"train_dataset": make_pairs(4), "processing_class": make_tokenizer(), "peft_config": adapter}
    trainer = RewardTrainer(model, args, **how)
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32} and any("score" in name for name in trained)
    trainer.evaluate(trainer.train_dataset)
    assert not repacked(trainer.model)
