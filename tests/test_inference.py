"""Scoring: invariances, models made elsewhere, clear errors, memory, TRL's interface, files that survive a
kill."""

import copy
import functools
import itertools
import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from trainer_world import make_base, make_pairs
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from reward_kit import RewardConfig, RewardTrainer
from reward_kit.beside.averaged_weights import average_reward_models
from reward_kit.data.files import PreferenceDataError, read_rows
from reward_kit.data.formats import to_record
from reward_kit.model.batches import RewardCollator
from reward_kit.model.encoding import prepare_tokenizer
from reward_kit.model.model_folder import ModelCard, ModelLoadError, RewardMetadata
from reward_kit.model.runs import MicroBatches
from reward_kit.scores import row_scorer, score_files, text_scorer
from reward_kit.scores.ensembles import RewardEnsemble, _combine_rewards
from reward_kit.scores.inference import RewardModel, _measure_scale, store_normalization
from reward_kit.scores.row_scorer import _packed_batches, _padded_batches
from reward_kit.scores.text_scorer import Best, TextScorer

CHAT = (
    "{{ bos_token }}{%- for m in messages -%}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>"
    "{%- endfor -%}"
)
PROMPTS = [
    "What is AI?",
    "Name a prime.",
    "Say hello to everyone in the room, please, and be kind. " * 3,
    "Why?",
]
RESPONSES = [
    "The study of machines that reason.",
    "Seven.",
    "Hello!",
    "Because the sky scatters blue light more than red. " * 4,
]


def toy_tokenizer(template=None, bert=False, **special):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    names = sorted(set(special.values()))
    backend.train_from_iterator(
        PROMPTS + RESPONSES,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=names,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bert:
        ids = [(t, backend.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
        )
    inputs = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} if bert else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **special, **inputs)


def tiny(kind, vocab, seed=0, **more):
    torch.manual_seed(seed)
    size = dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=vocab,
        num_labels=1,
    )
    if kind == "llama":
        model = LlamaForSequenceClassification(
            LlamaConfig(**{**size, "max_position_embeddings": 256, **more})
        )
    elif kind == "qwen":
        model = Qwen2ForSequenceClassification(
            Qwen2Config(**{**size, "num_key_value_heads": 2, "max_position_embeddings": 256, **more})
        )
    elif kind == "bert":
        model = BertForSequenceClassification(BertConfig(**{**size, "max_position_embeddings": 128, **more}))
    else:
        model = GPT2ForSequenceClassification(
            GPT2Config(
                n_embd=32, n_layer=2, n_head=4, vocab_size=vocab, n_positions=256, num_labels=1, **more
            )
        )
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.2)
    return model.eval()


SPECIAL = {
    "llama": dict(bos_token="<s>", eos_token="</s>"),
    "gpt2": dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"),
    "qwen": dict(eos_token="<|end|>", pad_token="<|end|>"),
}


def save_own(folder, kind="llama", metadata=None, template=CHAT, seed=0, **prepare):
    tokenizer = toy_tokenizer(template if kind == "llama" else None, **SPECIAL[kind])
    model = tiny(kind, len(tokenizer), seed)
    encoding = prepare_tokenizer(tokenizer, model, **prepare)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    RewardMetadata(encoding=encoding, **(metadata or {})).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: save_own(tmp_path_factory.mktemp(kind), kind) for kind in ("llama", "gpt2", "qwen")}


@pytest.fixture(scope="module")
def rm(folders):
    return RewardModel.from_pretrained(folders["llama"], device="cpu")


# --- what a score is ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen"])
def test_equals_plain_transformers(folders, kind):
    rm = RewardModel.from_pretrained(folders[kind], device="cpu")
    model = AutoModelForSequenceClassification.from_pretrained(folders[kind])
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    for prompt, response in zip(PROMPTS, RESPONSES):
        inputs = tokenizer(
            f"{prompt} {response}" if not prompt.endswith(" ") else prompt + response,
            return_tensors="pt",
            truncation=True,
            max_length=512,
        )
        with torch.no_grad():
            expected = model(**inputs).logits.item()
        assert rm.score(prompt, response) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen"])
@pytest.mark.parametrize("batch_tokens", [1, 64, 16384])
def test_does_not_depend_on_the_batch(folders, kind, batch_tokens):
    rm = RewardModel.from_pretrained(folders[kind], device="cpu", batch_tokens=batch_tokens)
    alone = [rm.score(p, r) for p, r in zip(PROMPTS, RESPONSES)]
    assert len(set(alone)) == len(alone)
    assert rm.score(PROMPTS, RESPONSES) == pytest.approx(alone, abs=1e-5)
    back = rm.score(PROMPTS[::-1] * 3, RESPONSES[::-1] * 3)
    assert back == pytest.approx(alone[::-1] * 3, abs=1e-5)


def test_full_text_is_the_joined_text(rm):
    assert rm.score("What is AI? It is maths.") == pytest.approx(
        rm.score("What is AI?", "It is maths."), abs=1e-6
    )


def test_messages_go_through_the_template(rm):
    prompt, answer = (
        [{"role": "user", "content": "What is AI?"}],
        [{"role": "assistant", "content": "Maths."}],
    )
    expected = rm.score(rm.tokenizer.apply_chat_template(prompt + answer, tokenize=False))
    assert rm.score(prompt, answer) == pytest.approx(expected, abs=1e-6)
    assert rm.score(prompt, "Maths.") == pytest.approx(expected, abs=1e-6)
    assert rm.score(prompt + answer) == pytest.approx(expected, abs=1e-6)
    assert rm.score([prompt, prompt], [answer, answer]) == pytest.approx([expected] * 2, abs=1e-6)
    assert rm.score(prompt, "Maths.") != pytest.approx(rm.score("What is AI?", "Maths."), abs=1e-3)


def test_float32_head_under_bfloat16(folders):
    rm = RewardModel.from_pretrained(folders["llama"], device="cpu", dtype=torch.bfloat16)
    score = rm.score(PROMPTS, RESPONSES)
    assert any(s != float(torch.tensor(s).bfloat16()) for s in score)  # not rounded to 8 bits
    assert score == pytest.approx(
        RewardModel.from_pretrained(folders["llama"], device="cpu").score(PROMPTS, RESPONSES), abs=0.5
    )


def test_shapes(rm):
    assert rm.score([]) == [] and rm.score([], []) == []
    assert isinstance(rm.score("a", "b"), float)
    assert len(rm.score(["a"], ["b"])) == 1
    assert rm.score("Why?", ["a", "b", "c"]) == pytest.approx(
        rm.score(["Why?"] * 3, ["a", "b", "c"]), abs=1e-6
    )
    assert rm.score(("a", "b"), ("c", "d")) == rm.score(["a", "b"], ["c", "d"])
    assert isinstance(rm.score("", ""), float)
    assert rm.score([[{"role": "user", "content": "a"}]]) == [rm.score([{"role": "user", "content": "a"}])]


@pytest.mark.parametrize(
    "args, error, parts",
    [
        ((["a", None], ["b", "c"]), TypeError, ["prompts[1] is None;"]),
        ((["a", "b"], ["c", 4]), TypeError, ["responses[1]", "int"]),
        ((["a", float("nan")],), TypeError, ["prompts[1]", "float"]),
        ((["a", "b"], ["c"]), ValueError, ["2 prompts and 1 response;"]),
        ((["a", "b"], "c"), ValueError, ["2 prompts", "one response"]),
        ((None,), TypeError, ["prompts is None; it must be a list of strings or conversations"]),
        ((5,), TypeError, ["prompts is 5;"]),
        (([[]],), TypeError, ["prompts[0]", "list"]),
        (({"role": "user", "content": "x"},), TypeError, ["prompts is {'role'"]),
        (([[{"role": "user"}]],), TypeError, ["prompts[0], message 0: null content"]),
        (([[{"role": "user", "content": None}]],), TypeError, ["prompts[0], message 0: null content"]),
        (
            ([[{"content": "x"}]],),
            TypeError,
            ["prompts[0], message 0: content is not a list of messages", "has a role and a content"],
        ),
    ],
)
def test_clear_errors(rm, args, error, parts):
    with pytest.raises(error) as caught:
        rm.score(*args)
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)


def test_too_long(tmp_path):
    rm = RewardModel.from_pretrained(save_own(tmp_path / "a", max_length=24), device="cpu")
    long = "Because the sky scatters blue light. " * 20
    cut = rm.score(long, "Seven.")
    assert math.isfinite(cut) and cut == pytest.approx(
        rm.score(["x " * 90 + long, "b"], ["Seven.", "c"])[0], abs=1e-5
    )
    with pytest.raises(ValueError, match=r"row 1 does not fit in max_length=24 tokens"):
        rm.score(["a", "b"], ["c", long])
    assert rm.score(["a", "b"], ["c", long], too_long="none")[1] is None
    assert rm(prompts=["a", "b"], completions=["c", long])[1] is None
    wider = RewardModel.from_pretrained(str(tmp_path / "a"), device="cpu", max_length=250)
    assert math.isfinite(wider.score("b", long[:200]))
    with pytest.raises(ValueError, match="positions"):
        RewardModel.from_pretrained(str(tmp_path / "a"), device="cpu", max_length=100_000)


def test_overflow_policies_of_the_encoding(tmp_path):
    long = "Because the sky scatters blue light. " * 20
    drop = RewardModel.from_pretrained(
        save_own(tmp_path / "drop", max_length=24, overflow="drop"), device="cpu"
    )
    with pytest.raises(ValueError, match="overflow='drop'"):
        drop.score([long], ["c"])
    assert drop([long], ["c"]) == [None]
    error = RewardModel.from_pretrained(
        save_own(tmp_path / "error", max_length=24, overflow="error"), device="cpu"
    )
    with pytest.raises(ValueError, match="row 1.*max_length=24"):
        error.score(["a", long], ["b", "c"])


def test_nan_is_an_error(folders):
    rm = RewardModel.from_pretrained(folders["llama"], device="cpu")
    with torch.no_grad():
        rm.model.score.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="reward of '<s>a b</s>' is nan"):
        rm.score("a", "b")


# --- compare, rank, best of n, normalize ----------------------------------------------------------


def test_compare_is_the_sigmoid_of_the_difference(rm, tmp_path):
    a, b = rm.score(PROMPTS[0], [RESPONSES[0], RESPONSES[1]])
    assert rm.compare(PROMPTS[0], RESPONSES[0], RESPONSES[1]) == pytest.approx(
        1 / (1 + math.exp(b - a)), abs=1e-6
    )
    both = rm.compare(PROMPTS[:2], RESPONSES[:2], RESPONSES[2:])
    swapped = rm.compare(PROMPTS[:2], RESPONSES[2:], RESPONSES[:2])
    assert [x + y for x, y in zip(both, swapped)] == pytest.approx([1, 1], abs=1e-9)
    chat = [{"role": "user", "content": "Hi"}]
    assert 0 < rm.compare(chat, "Hello.", [{"role": "assistant", "content": "What?"}]) < 1
    warm = RewardModel.from_pretrained(
        save_own(tmp_path, metadata={"calibration": {"temperature": 2.0}}), device="cpu"
    )
    assert warm.compare(PROMPTS[0], RESPONSES[0], RESPONSES[1]) == pytest.approx(
        1 / (1 + math.exp((b - a) / 2)), abs=1e-6
    )
    with pytest.raises(ValueError):
        rm.compare(PROMPTS[:2], RESPONSES[:2], RESPONSES[:1])


def test_rank_and_best_of_n(rm):
    scores = rm.score(PROMPTS[0], RESPONSES)
    ranked = rm.rank(PROMPTS[0], RESPONSES)
    assert [r.index for r in ranked] == sorted(range(4), key=lambda i: -scores[i])
    assert [r.score for r in ranked] == pytest.approx(sorted(scores, reverse=True), abs=1e-6)
    assert [r.index for r in rm.rank("Why?", ["same", "same"])] == [0, 1]
    assert rm.rank("Why?", []) == []
    best = rm.best_of_n(PROMPTS[0], RESPONSES)
    assert isinstance(best, Best) and best.index == ranked[0].index and best.response == RESPONSES[best.index]
    first_two = rm.best_of_n(PROMPTS[:2], [RESPONSES, RESPONSES[::-1]], n=2)
    assert all(b.index < 2 for b in first_two) and first_two[0].index == int(scores[1] > scores[0])
    chat = [{"role": "user", "content": "Hi"}]
    assert rm.best_of_n([chat, chat], [["a", "b"], ["c"]])[1].response == "c"
    for args, part in [
        ((["a"], [["b"]], 2), "prompt 0 has 1 response, of which n=2"),
        ((["a"], [[]]), "0 responses, of which n=1 cannot be taken"),
        ((["a"], [["b"], ["c"]]), "1 prompt and 2 lists"),
    ]:
        with pytest.raises(ValueError, match=part):
            rm.best_of_n(*args)


def test_normalize(rm, tmp_path):
    scaled = RewardModel.from_pretrained(
        save_own(tmp_path, metadata={"normalization": {"mean": 0.5, "std": 2.0, "n": 9}}), device="cpu"
    )
    raw = rm.score(PROMPTS, RESPONSES)
    assert scaled.score(PROMPTS, RESPONSES) == pytest.approx(raw, abs=1e-6)
    assert scaled.score(PROMPTS, RESPONSES, normalize=True) == pytest.approx(
        [(x - 0.5) / 2 for x in raw], abs=1e-6
    )
    assert (
        scaled.rank(PROMPTS[0], RESPONSES, normalize=True)[0].index == rm.rank(PROMPTS[0], RESPONSES)[0].index
    )
    with pytest.raises(ValueError, match="no stored mean and spread"):
        rm.score("a", "b", normalize=True)


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ("padded", "packed"))
def test_batches_stay_within_the_budget(layout):
    rng = random.Random(0)
    prompts = [[rng.randrange(50) for _ in range(rng.randrange(5, 40))] for _ in range(20)]
    rows = [
        rng.choice(prompts) + [rng.randrange(50) for _ in range(rng.randrange(1, 20))] for _ in range(200)
    ] + [[1] * 150]
    batches = (_packed_batches if layout == "packed" else _padded_batches)(rows, range(len(rows)), 120)
    for batch in batches:
        groups = [[rows[i] for i in group] for group in batch]
        tokens = RewardCollator(0, layout)([{"sequences": group} for group in groups])["input_ids"].numel()
        assert tokens <= 120 or sum(map(len, groups)) == 1
    assert sorted(i for batch in batches for group in batch for i in group) == list(range(len(rows)))
    if layout == "packed":
        assert len(batches) < 0.8 * len(_padded_batches(rows, range(len(rows)), 120))


@pytest.mark.parametrize("fill, expected", ((None, [[10, 2, 1]]), (40, [[10], [2, 1]]), (1000, [[10, 2, 1]])))
def test_a_prompt_with_many_responses_may_exceed_what_batches_are_filled_to(fill, expected):
    rows = (
        [[1] * 20 + [i] * 4 for i in range(10)] + [[2] * 20 + [i] * 4 for i in range(2)] + [[3] * 5]
    )  # 60, 28 and 5 tokens
    batches = _packed_batches(rows, range(len(rows)), 100, fill)
    assert [list(map(len, batch)) for batch in batches] == expected


def test_out_of_memory_halves_and_goes_on(folders, caplog):
    rm = RewardModel.from_pretrained(folders["llama"], device="cpu")
    expected, forward, sizes = rm.score(PROMPTS * 5, RESPONSES * 5), rm.scorer.forward, []

    def little_memory(groups):
        sizes.append(sum(map(len, groups)))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(groups)

    rm.scorer.forward = little_memory
    with caplog.at_level(logging.WARNING):
        assert rm.score(PROMPTS * 5, RESPONSES * 5) == pytest.approx(expected, abs=1e-5)
    assert sizes[0] > 3 and "out of memory" in caplog.text
    rm.scorer.forward = lambda rows: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError, match="one text of .* tokens does not fit in the memory"):
        rm.score("a", "b")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_of_a_cpu_ends_as_that_of_a_gpu(folders, error):
    rm = RewardModel.from_pretrained(folders["llama"], device="cpu")
    expected, forward = rm.score(PROMPTS, RESPONSES), rm.scorer.forward

    def little_memory(groups):
        if sum(map(len, groups)) > 1:
            raise error
        return forward(groups)

    rm.scorer.forward = little_memory
    assert rm.score(PROMPTS, RESPONSES) == pytest.approx(expected, abs=1e-5)
    rm.scorer.forward = lambda groups: [][0]
    with pytest.raises(IndexError):
        rm.score("a", "b")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_free_memory_of_a_gpu_decides_how_much_is_computed_at_once(folders, kind, monkeypatch):
    "More memory, larger batches, the same scores."
    expected, budgets, sizes = None, [], []
    for free in (2**10, 2**26, 2**40):
        monkeypatch.setattr(MicroBatches, "free_memory", lambda self, device, free=free: free)
        rm = RewardModel.from_pretrained(folders[kind], device="cpu")
        del rm.scorer.batch_tokens  # of a CPU
        rm.scorer.fill, texts = None, ([f"{p} {i}" for i in range(60) for p in PROMPTS], RESPONSES * 60)
        scores = rm.score(*texts)
        expected = expected or scores
        assert scores == pytest.approx(expected, abs=1e-5)
        rows = rm.encode(*texts)
        batches = rm.scorer.plan(rows, range(len(rows)))
        budgets.append(rm.scorer.batch_tokens), sizes.append(max(sum(map(len, batch)) for batch in batches))
    assert budgets[0] == 1024 < 4096 < budgets[1] < budgets[2] == 65536
    assert sizes[0] < sizes[1] == sizes[2] == 240


def test_a_long_job_compiles_the_layers_once(folders, monkeypatch):
    monkeypatch.setattr(row_scorer, "_COMPILED_FROM", 400)
    asked = []
    monkeypatch.setattr(row_scorer, "compile_layers", lambda model, asked_for=None, **how: asked.append(how))
    rm = RewardModel.from_pretrained(folders["llama"], device="cpu")
    for _ in range(2):
        rm.score("Why?", "So.")
    assert not asked
    for i in range(4):
        rm.score([f"{p} {i}" for p in PROMPTS], RESPONSES)
    assert asked == [{"asked": False}]


# --- many texts: encoded ahead ----------------------------------------------------------------------


@pytest.fixture
def five_at_once(monkeypatch):
    monkeypatch.setattr(text_scorer, "_AT_ONCE", 5)


def test_texts_are_encoded_while_those_before_are_scored(folders, five_at_once):
    rm = RewardModel.from_pretrained(folders["llama"], device="cpu")
    begun, encode, score_ids, waited = [], rm.encode, rm.score_ids, []

    def note(*texts, **how):
        begun.append(threading.current_thread())
        return encode(*texts, **how)

    def wait(rows, progress=None):
        until = time.monotonic() + 20
        while len(begun) < min(4, len(waited) + 2) and time.monotonic() < until:
            time.sleep(0.01)
        waited.append(len(begun))
        return score_ids(rows, progress)

    expected = rm.score(PROMPTS * 4, RESPONSES * 4)
    rm.encode, rm.score_ids = note, wait
    assert rm.score(PROMPTS * 4, RESPONSES * 4) == pytest.approx(expected, abs=1e-6)
    assert waited == [2, 3, 4, 4] and threading.current_thread() not in begun


def test_each_chunk_gets_its_own_template_arguments_and_names_its_rows(folders, five_at_once):
    rm = RewardModel.from_pretrained(folders["llama"], device="cpu")
    rm.tokenizer.chat_template = "{{ day }} " + rm.tokenizer.chat_template
    chats = [[{"role": "user", "content": p}] for p in PROMPTS * 3]
    days = [{"day": f"day {i}"} for i in range(12)]
    tools = [{"type": "function", "function": {"name": "search"}}]  # one list for all
    scores = rm.score(chats, RESPONSES * 3, chat_template_kwargs=days, tools=tools)
    alone = [rm.score(c, r, chat_template_kwargs=d) for c, r, d in zip(chats, RESPONSES * 3, days)]
    assert scores == pytest.approx(alone, abs=1e-5) and len(set(scores)) == 12
    assert rm([], []) == []
    with pytest.raises(ValueError, match="row 8 does not fit in max_length=256"):
        rm.score(["a"] * 12, ["b"] * 8 + ["c " * 400] + ["d"] * 3)
    rm.tokenizer.chat_template = "{{ raise_exception('odd') if messages[0].content == 'no' else 'fine' }}"
    with pytest.raises(ValueError, match="row 7: the chat template refuses this conversation: odd"):
        rm.score([[{"role": "user", "content": c}, CHAT_END] for c in ["yes"] * 7 + ["no"]])
    with pytest.raises(ValueError, match="12 texts|5 texts"):
        rm.score(chats, RESPONSES * 3, tools=[None] * 3)


CHAT_END = {"role": "assistant", "content": "So."}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda rm: rm.rank("a", [CHAT_END]), "responses is .*; it must be a list of strings or conver"),
        (lambda rm: rm.rank("a", "b"), "responses is 'b'; it must be a list"),
        (lambda rm: rm.rank(["a", "b"], ["c", "d"]), "prompts.0. is list .*; it must be a string or a non-"),
        (lambda rm: rm.best_of_n("a", [CHAT_END]), "responses.0. is .*; it must be a list of strings"),
        (lambda rm: rm.best_of_n("a", ["b", "c"], n=2.0), "n is 2.0; it must be a whole number, or None"),
        (lambda rm: rm.best_of_n("a", ["b", "c"], n="2"), "n is '2'; it must be a whole number"),
        (lambda rm: rm.compare("a", ["b", "c"], "d"), "a and b must be one response each, or two lists"),
        (lambda rm: rm.compare("a", ["b", "c"], ["d"]), "a and b must be one response each, or two lists"),
        (lambda rm: rm.compare("a", "b", None), "a and b must be one response each"),
        (lambda rm: rm.compare(["a", "e"], "b", "c"), "got 2 prompts and one response; give one"),
        (lambda rm: rm.score(["a", "half \ud800"]), "prompts.1. has a broken character .half of"),
        (lambda rm: rm.score("a", ["b", "\udfff"]), "responses.1. has a broken character"),
        (lambda rm: rm.score([[CHAT_END | {"content": "\ud800"}]]), "prompts.0., message 0: .* broken char"),
    ],
)  # fmt: skip
def test_a_wrong_call_says_what_is_expected(rm, call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(rm)


# --- models made elsewhere ------------------------------------------------------------------------


def save_foreign(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("pad", [None, "</s>", "<pad>"])
def test_foreign_decoder_scores_as_its_authors_would(tmp_path, pad):
    tokenizer = toy_tokenizer(
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}",
        bos_token="<s>",
        eos_token="</s>",
        **({"pad_token": pad} if pad else {}),
    )
    model = tiny("llama", len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    rm = RewardModel.from_pretrained(save_foreign(tmp_path, model, tokenizer), device="cpu")
    assert rm.metadata is None and "chat template" in rm.encoding_note
    pairs = list(zip(PROMPTS, RESPONSES))
    for score, (prompt, response) in zip(rm.score(PROMPTS, RESPONSES), pairs):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            assert score == pytest.approx(model(ids).logits.item(), abs=1e-5)
        assert rm.score(messages) == pytest.approx(score, abs=1e-5)
    assert RewardModel.from_pretrained(str(tmp_path), device="cpu").tokenizer.pad_token == pad


def test_foreign_encoder_takes_pairs(tmp_path):
    tokenizer = toy_tokenizer(bert=True, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]")
    model = tiny("bert", len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    rm = RewardModel.from_pretrained(save_foreign(tmp_path, model, tokenizer), device="cpu")
    assert "segments of a pair" in rm.encoding_note
    prompts, responses = PROMPTS[:2], RESPONSES[:2]
    for score, prompt, response in zip(rm.score(prompts, responses), prompts, responses):
        inputs = tokenizer(prompt, response, return_tensors="pt")
        assert inputs["token_type_ids"].sum() > 0
        with torch.no_grad():
            assert score == pytest.approx(model(**inputs).logits.item(), abs=1e-5)
    with pytest.raises(ValueError, match="row 0: .*chat_template is not set"):
        rm.score([{"role": "user", "content": "a"}])


def test_foreign_plain_decoder(tmp_path, caplog):
    tokenizer = toy_tokenizer(**SPECIAL["gpt2"])
    model = tiny("gpt2", len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    with caplog.at_level(logging.WARNING):
        rm = RewardModel.from_pretrained(save_foreign(tmp_path, model, tokenizer), device="cpu")
    assert "no reward_kit.json" in caplog.text and "one space" in caplog.text
    with torch.no_grad():
        expected = [
            model(tokenizer(f"{p} {r}", return_tensors="pt")["input_ids"]).logits.item()
            for p, r in (("Why?", "So."), ("Name", "it"))
        ]
    assert rm.score(["Why?", "Name"], ["So.", "it"]) == pytest.approx(expected, abs=1e-5)
    long = "blue light " * 300
    assert math.isfinite(rm.score(long, "So.")) and rm.score(["b"], [long], too_long="none") == [None]
    with pytest.raises(ValueError, match="row 0: the text has no tokens"):
        rm.score("", "")


def test_foreign_with_a_stated_encoding(tmp_path):
    tokenizer = toy_tokenizer(CHAT, **SPECIAL["llama"])
    model = tiny("llama", len(tokenizer) + 4)
    save_foreign(tmp_path, model, tokenizer)
    encoding = prepare_tokenizer(copy.deepcopy(tokenizer), max_length=100)
    rm = RewardModel.from_pretrained(str(tmp_path), device="cpu", encoding=encoding)
    ids = rm.encode(["Why?"], ["So."])[0]
    assert (
        ids[-1] == rm.tokenizer.eos_token_id
        and ids.count(rm.tokenizer.bos_token_id) == 1
        and math.isfinite(rm.score("Why?", "So."))
    )


@pytest.mark.parametrize("labels", [2, 5])
def test_several_labels(tmp_path, labels):
    tokenizer = toy_tokenizer(**SPECIAL["llama"])
    save_foreign(tmp_path, tiny("llama", len(tokenizer), num_labels=labels), tokenizer)
    with pytest.raises(ModelLoadError, match=f"is not a reward model .it has {labels} labels"):
        RewardModel.from_pretrained(str(tmp_path))


def test_not_a_reward_model(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        RewardModel.from_pretrained(str(tmp_path / "nowhere"))
    tokenizer = toy_tokenizer(**SPECIAL["llama"])
    config = LlamaConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=len(tokenizer),
    )
    save_foreign(tmp_path, LlamaForCausalLM(config), tokenizer)
    with pytest.raises(ValueError, match="not a reward model"):
        RewardModel.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("kind,warns", [("messages", True), ("text", False), (None, False)])
def test_strings_for_a_model_of_conversations_warn_once(tmp_path, caplog, kind, warns):
    scorer = RewardModel.from_pretrained(save_own(tmp_path, metadata={"data_kind": kind}), device="cpu")
    conversation = [{"role": "user", "content": PROMPTS[0]}]
    with caplog.at_level(logging.WARNING):
        scorer.score(conversation, RESPONSES[0])
        scorer.score(PROMPTS[0], [[{"role": "assistant", "content": RESPONSES[0]}]])
        assert "plain strings" not in caplog.text, "these go through the template"
        for _ in range(2):
            scorer.score([conversation, PROMPTS[0]], RESPONSES[:2])
        scorer.score(PROMPTS[0])
    assert caplog.text.count("trained on conversations") == warns


def test_changed_tokenizer_is_noticed(tmp_path, caplog):
    folder = save_own(tmp_path)
    metadata = RewardMetadata.load(folder)
    metadata.encoding.tokenizer_fingerprint = "0" * 16
    metadata.save(folder)
    with caplog.at_level(logging.WARNING):
        RewardModel.from_pretrained(folder, device="cpu")
    assert "tokenizer is not the one" in caplog.text


# --- TRL ------------------------------------------------------------------------------------------


def test_callable_as_trl_calls_it(rm):
    from trl.trainer.utils import get_callable_name, is_async_callable

    assert get_callable_name(rm) == rm.__name__ and not is_async_callable(rm)
    assert get_callable_name(functools.partial(rm, normalize_me=1)) == rm.__name__
    extra = dict(
        completion_ids=[[1], [2]], answer=["x", "y"], trainer_state=None, log_extra=print, log_metric=print
    )
    assert rm(prompts=["Why?", "Who?"], completions=["So.", "Me."], **extra) == pytest.approx(
        rm.score(["Why?", "Who?"], ["So.", "Me."]), abs=1e-6
    )
    prompts = [[{"role": "user", "content": "Why?"}]] * 2
    completions = [[{"role": "assistant", "content": c}] for c in ("So.", "Me.")]
    assert rm(prompts=prompts, completions=completions, **extra) == pytest.approx(
        rm.score(prompts, ["So.", "Me."]), abs=1e-6
    )


def test_trl_grpo_step(rm, tmp_path):
    "One step of TRL's GRPOTrainer with a policy of another tokenizer asks the reward model for its rewards."
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = toy_tokenizer(bos_token="<b>", eos_token="<e>", pad_token="<p>")
    torch.manual_seed(0)
    policy = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    args = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=4,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=rm,
        args=args,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": p} for p in PROMPTS]),
    )
    trainer.train()
    logged = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    assert math.isfinite(logged[f"rewards/{rm.__name__}/mean"])


# --- files ----------------------------------------------------------------------------------------


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_score_file_keeps_rows_and_order(rm, tmp_path):
    rows = [
        {"id": i, "prompt": PROMPTS[i % 4], "response": RESPONSES[(i // 4) % 4], "note": "Grüße"}
        for i in range(37)
    ]
    report = rm.score_file(
        write_lines(tmp_path / "in.jsonl", rows), tmp_path / "sub" / "out.jsonl", batch_rows=8
    )
    out = read_lines(tmp_path / "sub" / "out.jsonl")
    assert [{k: v for k, v in row.items() if k != "score"} for row in out] == rows
    assert [row["score"] for row in out] == pytest.approx(
        rm.score([r["prompt"] for r in rows], [r["response"] for r in rows]), abs=1e-5
    )
    assert (report.rows, report.failed, report.resumed_at) == (37, 0, 0)
    assert sorted(p.name for p in (tmp_path / "sub").iterdir()) == ["out.jsonl"]


def test_score_file_kinds_of_rows(rm, tmp_path):
    def run(rows, **options):
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
        rm.score_file(write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", **options)
        return read_lines(tmp_path / "out.jsonl")

    pair = run([{"question": "Why?", "chosen": "So.", "rejected": "No."}], columns={"prompt": "question"})[0]
    assert [pair["chosen_score"], pair["rejected_score"]] == pytest.approx(
        rm.score("Why?", ["So.", "No."]), abs=1e-6
    )
    transcript = run(
        [{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}]
    )[0]
    assert transcript["chosen_score"] == pytest.approx(
        rm.score([{"role": "user", "content": "Hi"}], "Hello."), abs=1e-6
    )
    ranking = run(
        [{"prompt": "Why?", "responses": ["a", "b", "c"], "scores": [1, 2, 3]}], score_column="reward"
    )[0]
    assert ranking["rewards"] == pytest.approx(rm.score("Why?", ["a", "b", "c"]), abs=1e-6) and ranking[
        "scores"
    ] == [1, 2, 3]
    assert run([{"text": "Why? So."}])[0]["score"] == pytest.approx(rm.score("Why? So."), abs=1e-6)
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    assert run([{"messages": chat}])[0]["score"] == pytest.approx(rm.score(chat), abs=1e-6)
    assert run([{"prompt": chat[:1], "completion": chat[1:]}])[0]["score"] == pytest.approx(
        rm.score(chat), abs=1e-6
    )


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "parquet", "arrow", "jsonl.gz", "csv.gz"])
def test_score_file_formats(rm, tmp_path, kind):
    import gzip

    import pandas as pd
    import pyarrow as pa

    frame = pd.DataFrame({"prompt": PROMPTS, "response": [r + '\n"quoted", with a break' for r in RESPONSES]})
    path = tmp_path / f"in.{kind}"
    if kind.startswith("csv"):
        frame.to_csv(path, index=False)
    elif kind == "tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif kind == "json":
        frame.to_json(path, orient="records")
    elif kind == "parquet":
        frame.to_parquet(path)
    elif kind == "arrow":
        table = pa.Table.from_pandas(frame)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    else:
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in frame.to_dict("records"))
    assert rm.score_file(path, tmp_path / "out.jsonl").rows == 4
    out = read_lines(tmp_path / "out.jsonl")
    assert [row["response"] for row in out] == frame["response"].tolist()
    assert [row["score"] for row in out] == pytest.approx(
        rm.score(PROMPTS, frame["response"].tolist()), abs=1e-5
    )


def test_arrow_file_format(tmp_path):
    import pyarrow as pa

    table = pa.table({"text": ["a", "b", "c"]})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    assert [row["text"] for _, row in read_rows(tmp_path / "x.arrow")] == ["a", "b", "c"]


def test_bad_rows_are_written_and_counted(tmp_path):
    rm = RewardModel.from_pretrained(save_own(tmp_path / "rm", max_length=24), device="cpu")
    rows = [
        {"prompt": "Why?", "response": "So."},
        {"prompt": None, "response": "x"},
        {"prompt": "a"},
        {"prompt": "b", "response": "blue light " * 90},
        {"prompt": "b", "response": 3},
        {"prompt": "Why?", "response": "Yes."},
    ]
    report = rm.score_file(write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", batch_rows=4)
    out = read_lines(tmp_path / "out.jsonl")
    assert (
        [row["score"] is None for row in out]
        == ["error" in row for row in out]
        == [False, True, True, True, True, False]
    )
    assert (
        "null prompt" in out[1]["error"]
        and "missing response: the row has prompt" in out[2]["error"]
        and "does not fit in max_length=24" in out[3]["error"]
        and "response is not text: found int" in out[4]["error"]
    )
    assert report.failed == 4 and report.rows == 6 and "4 with an error" in str(report)
    assert {k: v for k, v in out[3].items() if k not in ("score", "error")} == rows[3]


def test_odd_values_leave_valid_json(rm, tmp_path):
    (tmp_path / "in.jsonl").write_text(
        '{"text": "a", "x": NaN}\n{"text": "half \\ud83d pair"}\n{"text": "b", "x": [Infinity, {"y": 1}]}\n'
    )
    report = rm.score_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    forbid = lambda name: pytest.fail(f"{name} in JSON")
    out = [
        json.loads(line, parse_constant=forbid)
        for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert out[0]["x"] is None and out[2]["x"] == [None, {"y": 1}] and out[1]["text"] == "half \ud83d pair"
    assert report.rows == 3 and [row["score"] is not None for row in out] == [
        "error" not in row for row in out
    ]
    assert out[0]["score"] is not None


def test_template_refusal_is_the_fault_of_one_row(tmp_path):
    strict = (
        "{% for m in messages %}{% if m['role'] not in ['user', 'assistant'] %}{{ raise_exception('role ' +"
        " m['role']) }}{% endif %}{{ m['content'] }}{% endfor %}"
    )
    rm = RewardModel.from_pretrained(save_own(tmp_path / "rm", template=strict), device="cpu")
    good = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    rows = [{"messages": good if i != 11 else [{"role": "wizard", "content": "x"}]} for i in range(20)]
    report = rm.score_file(write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    out = read_lines(tmp_path / "out.jsonl")
    assert report.failed == 1 and "role wizard" in out[11]["error"] and "row 0" not in out[11]["error"]
    assert [row["score"] for row in out[:11]] == pytest.approx([rm.score(good)] * 11, abs=1e-6)


@pytest.mark.parametrize(
    "name, text, part",
    [
        ("in.jsonl", '{"text": \n', "in.jsonl:1: malformed JSON: Expecting value at column "),
        ("in.jsonl", "[1]\n[2]\n", "in.jsonl:1: row is not a dict: found list"),
        ("in.jsonl", '{"a": 1}\n', "nothing to score: the file has 'a'"),
        ("in.jsonl", '{"text": "a", "score": 1}\n', "already has a column 'score'"),
        ("in.jsonl", "", "no rows"),
        ("in.json", "[1", "in.json:1: malformed JSON"),
        ("in.csv", "prompt,response\na,b,c\n", "in.csv:2: wrong number of cells: 3 for 2 columns"),
        ("in.xyz", "a", "unknown file type; readable are"),
    ],
)
def test_bad_files_give_one_line(rm, tmp_path, name, text, part):
    (tmp_path / name).write_text(text)
    with pytest.raises(PreferenceDataError) as caught:
        rm.score_file(tmp_path / name, tmp_path / "out.jsonl")
    assert part in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_bad_file_arguments(rm, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [{"text": "a"}])
    with pytest.raises(PreferenceDataError, match="no such file"):
        rm.score_file(tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match="must be named .jsonl"):
        rm.score_file(source, tmp_path / "out.csv")
    with pytest.raises(FileExistsError, match="in.jsonl exists and has no score"):
        rm.score_file(source, source)
    with pytest.raises(PreferenceDataError, match="column 'body' .for 'text'. is missing"):
        rm.score_file(source, tmp_path / "out.jsonl", columns={"text": "body"})
    (tmp_path / "latin.jsonl").write_bytes('{"text": "Grüße"}\n'.encode("latin-1"))
    with pytest.raises(PreferenceDataError, match="not UTF-8"):
        rm.score_file(tmp_path / "latin.jsonl", tmp_path / "out.jsonl")


def interrupted(rm, source, out, after, **options):
    "Stop score_file after some chunks, as an exception would."
    forward, count = rm.scorer.forward, [0]

    def stop(rows):
        count[0] += 1
        if count[0] > after:
            raise KeyboardInterrupt
        return forward(rows)

    rm.scorer.forward = stop
    try:
        with pytest.raises(KeyboardInterrupt):
            rm.score_file(source, out, batch_rows=5, **options)
    finally:
        rm.scorer.forward = forward


def test_resume_goes_on_and_refuses_what_changed(folders, tmp_path):
    rm = RewardModel.from_pretrained(folders["llama"], device="cpu")
    rows = [{"text": f"row {i}"} for i in range(23)]
    source, out = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    interrupted(rm, source, out, 2)
    assert not out.exists() and len(read_lines(tmp_path / "out.jsonl.part")) == 10
    with open(tmp_path / "out.jsonl.part", "a") as part:
        part.write('{"text": "row 10", "sco')  # a kill in the middle of a line
    other = RewardModel.from_pretrained(save_own(tmp_path / "other", seed=1), device="cpu")
    with pytest.raises(ValueError, match="has model .*resume=False"):
        other.score_file(source, out)
    with pytest.raises(ValueError, match="has score_column score -> reward"):
        rm.score_file(source, out, score_column="reward")
    write_lines(source, [{"text": "changed"}, *rows[1:]])
    with pytest.raises(ValueError, match="row 1 of out.jsonl.part is not that of the input"):
        rm.score_file(source, out)
    write_lines(source, rows[:4])
    with pytest.raises(ValueError, match="row 5 of out.jsonl.part is not that of the input"):
        rm.score_file(source, out)
    write_lines(source, [*rows[:15], {"text": "a later line may be corrected"}, *rows[16:]])
    report = rm.score_file(source, out, batch_rows=5)
    texts = [row["text"] for row in read_lines(out)]
    assert (
        report.resumed_at == 10
        and report.rows == 23
        and len(texts) == len(set(texts)) == 23
        and texts[15].startswith("a later")
    )
    interrupted(rm, source, out, 2)
    assert rm.score_file(source, out, resume=False).resumed_at == 0


def test_resume_refuses_another_scale(rm, folders, tmp_path):
    one, other = (copy.copy(rm) for _ in range(2))
    one.metadata, other.metadata = (
        RewardMetadata(normalization={"mean": mean, "std": 2.0, "n": 9}) for mean in (0.0, 1.0)
    )
    source, out = (
        write_lines(tmp_path / "in.jsonl", [{"text": f"row {i}"} for i in range(12)]),
        tmp_path / "out.jsonl",
    )
    with pytest.raises(ValueError, match="no stored mean and spread"):
        rm.score_file(source, out, normalize=True)
    assert list(tmp_path.iterdir()) == [source]
    interrupted(one, source, out, 1, normalize=True)
    with pytest.raises(ValueError, match="has normalize .*resume=False"):
        other.score_file(source, out, normalize=True)
    assert one.score_file(source, out, normalize=True).resumed_at == 5


def test_errors_of_an_earlier_call_are_counted(folders, tmp_path):
    rm = RewardModel.from_pretrained(folders["llama"], device="cpu")
    rows = [{"text": None if i in (3, 17) else f"row {i}"} for i in range(20)]
    source, out = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    interrupted(rm, source, out, 2)
    assert rm.score_file(source, out).failed == 2


CHILD = """
import sys, time
from reward_kit.scores.inference import RewardModel
rm = RewardModel.from_pretrained(sys.argv[1], device="cpu")
forward = rm.scorer.forward
rm.scorer.forward = lambda rows: (time.sleep(0.02), forward(rows))[1]
print("go", flush=True)
rm.score_file(sys.argv[2], sys.argv[3], batch_rows=3)
"""


def test_survives_kill(folders, rm, tmp_path):
    """kill -9 at several moments; the calls together write every row once, with the scores of an
    undisturbed run."""
    rows = [{"n": i, "text": PROMPTS[i % 4] + f" {i}"} for i in range(150)]
    source, out = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    progress, environment = [], {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for wait in (0.11, 0.2):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, folders["llama"], str(source), str(out)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert child.stdout.readline() == "go\n"
        part = tmp_path / "out.jsonl.part"
        before = part.stat().st_size if part.exists() else 0
        while child.poll() is None and (not part.exists() or part.stat().st_size == before):
            time.sleep(0.005)
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        child.wait()
        progress.append(part.read_bytes().count(b"\n"))
    assert 0 < progress[0] < progress[1] < 150 and not out.exists()
    report = rm.score_file(source, out)
    assert report.resumed_at == progress[1]
    written = read_lines(out)
    assert [row["n"] for row in written] == list(range(150))
    assert [row["score"] for row in written] == pytest.approx(
        rm.score([row["text"] for row in rows]), abs=1e-5
    )


def test_constant_memory(rm, tmp_path, monkeypatch):
    "Rows are read as they are needed: the first chunk is written before the last rows are looked at."
    source, seen = tmp_path / "in.jsonl", []
    source.write_text('{"text": "a"}\n' * 400)
    rows = score_files._rows
    monkeypatch.setattr(score_files, "_rows", lambda found: (seen.append(0) or row for row in rows(found)))
    add = score_files._PartialFile.add
    monkeypatch.setattr(
        score_files._PartialFile, "add", lambda part, rows: seen.append(len(seen)) or add(part, rows)
    )
    assert rm.score_file(source, tmp_path / "out.jsonl", batch_rows=50).rows == 400
    assert next(filter(None, seen)) < 250


def test_odd_rows_fail_alone_and_say_where(rm, tmp_path):
    "What is no JSON, too deep or too large for a number has no score; the rows around it have."
    rows = ["{broken", '{"text": "b", "x": ' + '{"y": ' * 700 + "1" + "}" * 701, "[1]", '{"text": 3}']
    text = "\n".join(['{"text": "a"}', *rows, '{"text": "c", "x": ' + "9" * 5000 + "}", '{"text": "d"}'])
    (tmp_path / "in.jsonl").write_text(text + "\n")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # another test may have raised it
    try:
        report = rm.score_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl", batch_rows=3)
    finally:
        sys.setrecursionlimit(limit)
    out = read_lines(tmp_path / "out.jsonl")
    errors = [row.get("error", "") for row in out]
    assert [bool(error) for error in errors] == [False, True, True, True, True, False, False]
    assert all(error.startswith(f"in.jsonl:{n}: ") for n, error in enumerate(errors, 1) if error)
    assert "malformed JSON" in errors[1] and "nested too deeply" in errors[2] and "found list" in errors[3]
    assert report.failed == 4 and out[0]["score"] == pytest.approx(rm.score("a"), abs=1e-5)


def test_a_csv_cell_of_a_megabyte_fails_alone(rm, tmp_path):
    (tmp_path / "in.csv").write_text("prompt,response\na,b\na," + "word " * 50_000 + "\na,b\n")
    rm.score_file(tmp_path / "in.csv", tmp_path / "out.jsonl")
    out = read_lines(tmp_path / "out.jsonl")
    assert [row["score"] is None for row in out] == [False, True, False]
    assert out[1]["error"].startswith("in.csv:3: ") and "does not fit" in out[1]["error"]


def test_a_reward_that_is_no_number_fails_alone(rm, tmp_path, monkeypatch):
    score_ids, odd = rm.score_ids, rm.encode(["odd"], None)[0]

    def sometimes(rows, progress=None):
        if odd in rows:
            raise FloatingPointError("the reward of 'odd' is nan")
        return score_ids(rows)

    monkeypatch.setattr(rm, "score_ids", sometimes)
    source = write_lines(tmp_path / "in.jsonl", [{"text": t} for t in ("a", "b", "odd", "c")])
    report = rm.score_file(source, tmp_path / "out.jsonl")
    out = read_lines(tmp_path / "out.jsonl")
    assert report.failed == 1 and out[2]["error"] == "in.jsonl:3: the reward of 'odd' is nan"
    assert [row["score"] for row in out if "error" not in row] == pytest.approx(rm.score(["a", "b", "c"]))


def test_a_rerun_gets_past_rows_that_cannot_be_read(folders, tmp_path):
    rm = RewardModel.from_pretrained(folders["llama"], device="cpu")
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join("{broken\n" if i in (2, 11) else f'{{"text": "row {i}"}}\n' for i in range(20)))
    interrupted(rm, source, out, 2)
    report = rm.score_file(source, out, batch_rows=5)
    assert (report.resumed_at, report.rows, report.failed) == (10, 20, 2)


def test_an_output_of_another_kind_is_kept(rm, tmp_path):
    source, out = write_lines(tmp_path / "in.jsonl", [{"text": "a"}]), tmp_path / "out.jsonl"
    write_lines(out, [{"milk": 2}])
    with pytest.raises(FileExistsError, match="out.jsonl exists and has no score: choose another output"):
        rm.score_file(source, out)
    assert read_lines(out) == [{"milk": 2}]
    out.unlink()
    assert rm.score_file(source, out).rows == rm.score_file(source, out).rows == 1  # its own kind is replaced


def test_one_output_has_one_writer(rm, tmp_path):
    source, out = write_lines(tmp_path / "in.jsonl", [{"text": "a"}]), tmp_path / "out.jsonl"
    holder = f"""
import sys
from reward_kit.model.runs import RunRecord
with RunRecord.only_writer({str(out)!r}):
    print("held", flush=True)
    sys.stdin.read()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    with pytest.raises(FileExistsError, match="another process is writing .*out.jsonl"):
        rm.score_file(source, out)
    child.kill()  # whose lock must not block the next call
    child.communicate()
    assert (tmp_path / ".out.jsonl.lock").exists() and rm.score_file(source, out).rows == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


# --- ensembles ------------------------------------------------------------------------------------

SCALES = {"llama": (0.5, 2.0), "gpt2": (-1.0, 4.0), "qwen": (0.0, 0.5)}


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    "Models of three architectures, with tokenizers and scales of their own."
    out = []
    for kind, (mean, std) in SCALES.items():
        folder = save_own(
            tmp_path_factory.mktemp(f"member-{kind}"),
            kind,
            {"normalization": {"mean": mean, "std": std, "n": 9}},
        )
        out.append(RewardModel.from_pretrained(folder, device="cpu"))
    return out


def standard_units(members, prompts, responses):
    "What each member says of each text, on its own scale."
    return [
        [(x - mean) / std for x in m.score(prompts, responses)]
        for m, (mean, std) in zip(members, SCALES.values())
    ]


@pytest.mark.parametrize(
    "combine, k, expected",
    [
        ("mean", 1.0, [3.0, -1.0]),
        ("minimum", 1.0, [1.0, -1.0]),
        ("lower_bound", 1.0, [3.0 - math.sqrt(8 / 3), -1.0]),
        ("lower_bound", 0.5, [3.0 - math.sqrt(8 / 3) / 2, -1.0]),
        ("lower_bound", 0.0, [3.0, -1.0]),
    ],
)
def test_combinations_by_hand(combine, k, expected):
    "1, 3, 5: mean 3, squared distances 4, 0, 4. Three times -1: no spread."
    assert _combine_rewards([[1.0, -1.0], [3.0, -1.0], [5.0, -1.0]], combine, k) == pytest.approx(
        expected, abs=1e-12
    )


def test_combinations_of_nothing_and_of_none():
    assert _combine_rewards([[], []]) == [] and _combine_rewards([[None, 1.0], [2.0, None]]) == [None, None]


@pytest.mark.parametrize("combine", ("mean", "lower_bound", "minimum"))
def test_ensemble_of_different_tokenizers(members, combine):
    ensemble = RewardEnsemble(members, combine, k=0.7)
    assert len({tuple(m.encode(["Why?"], ["So."])[0]) for m in members}) > 1
    each = standard_units(members, PROMPTS, RESPONSES)
    columns = list(zip(*each))
    means = [sum(c) / 3 for c in columns]
    spreads = [math.sqrt(sum((x - m) ** 2 for x in c) / 3) for c, m in zip(columns, means)]
    expected = {
        "mean": means,
        "minimum": [min(c) for c in columns],
        "lower_bound": [m - 0.7 * s for m, s in zip(means, spreads)],
    }[combine]
    assert ensemble.score(PROMPTS, RESPONSES) == pytest.approx(expected, abs=1e-4)
    assert ensemble.score(PROMPTS, RESPONSES, normalize=True) == pytest.approx(expected, abs=1e-4)
    for own, theirs in zip(ensemble.score_members(PROMPTS, RESPONSES), each):
        assert own == pytest.approx(theirs, abs=1e-4)
    assert ensemble.disagreement(PROMPTS, RESPONSES) == pytest.approx(spreads, abs=1e-4)
    assert ensemble.disagreement(PROMPTS[0], RESPONSES[0]) == pytest.approx(spreads[0], abs=1e-4)
    assert ensemble.score_members(PROMPTS[0], RESPONSES[0]) == pytest.approx(columns[0], abs=1e-4)
    assert ensemble.score(PROMPTS[0], RESPONSES[0]) == pytest.approx(expected[0], abs=1e-4)
    order = sorted(range(4), key=lambda i: -ensemble.score(PROMPTS[0], RESPONSES[i]))
    assert [r.index for r in ensemble.rank(PROMPTS[0], RESPONSES)] == order and ensemble.best_of_n(
        PROMPTS[0], RESPONSES
    ).index == order[0]


def test_ensemble_of_raw_rewards(members):
    raw = RewardEnsemble(members, normalize_members=False)
    expected = [sum(own) / 3 for own in zip(*(m.score(PROMPTS, RESPONSES) for m in members))]
    assert raw.score(PROMPTS, RESPONSES) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="combines raw rewards .* normalize_members=True"):
        raw.score(PROMPTS, RESPONSES, normalize=True)


def test_the_levels_of_raw_members_are_no_disagreement(members, monkeypatch, caplog):
    "A member and itself, 10 higher: they agree on everything."
    twin = RewardModel(*(getattr(members[0], name) for name in ("model", "tokenizer", "encoder", "scorer")))
    twin.score_ids = lambda rows, progress=None: [r + 10 for r in members[0].score_ids(rows)]
    scale = members[0].metadata.normalization
    twin.metadata = RewardMetadata(normalization=scale | {"mean": scale["mean"] + 10})
    alone = members[0].score(PROMPTS, RESPONSES)
    for combine in ("mean", "lower_bound", "minimum"):
        both = RewardEnsemble([members[0], twin], combine, normalize_members=False)
        assert both.score(PROMPTS, RESPONSES) == pytest.approx([r + 5 for r in alone], abs=1e-4)
        assert both.disagreement(PROMPTS, RESPONSES) == pytest.approx([0] * 4, abs=1e-4)
    assert not caplog.text
    twin.metadata = None
    apart = RewardEnsemble([members[0], twin], normalize_members=False)
    assert "members[1] (reward_model) has no stored mean and spread" in caplog.text
    assert apart.disagreement(PROMPTS, RESPONSES) == pytest.approx([5] * 4, abs=1e-4)


@pytest.mark.parametrize("combine", ("mean", "lower_bound", "minimum"))
def test_one_member_is_that_member(members, combine):
    for member in members:
        alone = RewardEnsemble([member], combine)
        assert alone.score(PROMPTS, RESPONSES) == member.score(PROMPTS, RESPONSES, normalize=True)
        assert alone.disagreement(PROMPTS, RESPONSES) == [0.0] * 4
        assert alone.compare(PROMPTS[:2], RESPONSES[:2], RESPONSES[2:]) == pytest.approx(
            member.compare(PROMPTS[:2], RESPONSES[:2], RESPONSES[2:]), abs=1e-6
        )


def test_compare_turns_standard_units_into_log_odds(members, monkeypatch):
    """Standard deviations 2, 4, 0.5 and temperatures 1, 2, 1: (2 + 2 + 0.5) / 3 = 1.5 log-odds for one
    standard deviation; 1, 2, 1: (1 + 0.5 + 1) / 3 raw."""
    monkeypatch.setattr(members[1].metadata, "calibration", {"temperature": 2.0})
    ensemble = RewardEnsemble(members)
    assert ensemble.temperature == pytest.approx(1 / 1.5) and RewardEnsemble(
        members, normalize_members=False
    ).temperature == pytest.approx(3 / 2.5)
    a, b = ensemble.score(PROMPTS[0], RESPONSES[:2])
    assert ensemble.compare(PROMPTS[0], *RESPONSES[:2]) == pytest.approx(
        1 / (1 + math.exp(-1.5 * (a - b))), abs=1e-6
    )


def test_a_text_that_one_member_cannot_read(members, tmp_path):
    narrow = save_own(
        tmp_path / "narrow", metadata={"normalization": {"mean": 0.0, "std": 1.0, "n": 9}}, max_length=24
    )
    ensemble = RewardEnsemble([members[0], RewardModel.from_pretrained(narrow, device="cpu")])
    long = "blue light " * 20
    assert math.isfinite(members[0].score("a", long))
    with pytest.raises(
        ValueError,
        match="row 1 does not fit in max_length=256.*, or does not fit in max_length=24 tokens",
    ):
        ensemble.score(["a", "b"], ["c", long])
    assert (
        ensemble(prompts=["a", "b"], completions=["c", long])[1] is None
        and ensemble(["a"], ["c"])[0] is not None
    )
    assert ensemble.disagreement(["b"], [long], too_long="none") == [None]
    assert ensemble.score_members(["b"], [long], too_long="none") == [[None], [None]]
    with pytest.raises(ValueError, match="row 0 does not fit"):
        ensemble.disagreement("b", long)


def test_ensemble_as_a_reward_function(members):
    from trl.trainer.utils import get_callable_name

    ensemble = RewardEnsemble(members, name="three")
    assert get_callable_name(
        ensemble
    ) == "three" and "mean of member-llama0, member-gpt20, member-qwen0" in repr(ensemble)
    rewards = ensemble(prompts=PROMPTS, completions=RESPONSES, completion_ids=[[1]] * 4, trainer_state=None)
    assert rewards == pytest.approx(ensemble.score(PROMPTS, RESPONSES), abs=1e-6)


def test_rows_are_written_while_the_next_ones_are_scored(rm, tmp_path, monkeypatch):
    "The first write goes on until the second step of scoring has begun."
    rows = [{"prompt": PROMPTS[i % 4], "response": RESPONSES[i // 4]} for i in range(12)]
    source, begun, in_time = write_lines(tmp_path / "in.jsonl", rows), [], []
    score_ids, append_rows = rm.score_ids, score_files.append_rows

    def slow_disk(path, rows, **how):
        until = time.monotonic() + 20
        while len(begun) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        in_time.append(len(begun) >= 2)
        return append_rows(path, rows, **how)

    monkeypatch.setattr(score_files, "append_rows", slow_disk)
    monkeypatch.setattr(rm, "score_ids", lambda rows, progress=None: (begun.append(1), score_ids(rows))[1])
    assert rm.score_file(source, tmp_path / "out.jsonl", batch_rows=4).rows == 12
    assert in_time == [True] * 3
    assert [row["prompt"] for row in read_lines(tmp_path / "out.jsonl")] == [row["prompt"] for row in rows]


def test_a_disk_that_is_full_ends_the_run(rm, tmp_path, monkeypatch):
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": p, "response": "So."} for p in PROMPTS])
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(score_files, "append_rows", lambda *_, **how: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="No space left"):
        rm.score_file(source, tmp_path / "out.jsonl", batch_rows=2)
    assert not (tmp_path / "out.jsonl").exists()


def test_ensemble_scores_files(members, tmp_path):
    ensemble = RewardEnsemble(members, "minimum")
    rows = [{"prompt": PROMPTS[i % 4], "response": RESPONSES[i // 4] if i != 5 else None} for i in range(13)]
    source, out = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    report = ensemble.score_file(source, out, batch_rows=4)
    written = read_lines(out)
    assert (report.rows, report.failed) == (13, 1) and "null response" in written[5]["error"]
    good = [row for row in written if "error" not in row]
    assert [row["score"] for row in good] == pytest.approx(
        ensemble.score([r["prompt"] for r in good], [r["response"] for r in good]), abs=1e-4
    )


def test_another_ensemble_does_not_go_on_with_a_file(members, tmp_path):
    prints = [
        RewardEnsemble(members, *how).fingerprint()
        for how in [(), ("minimum",), ("lower_bound",), ("lower_bound", 2.0)]
    ]
    prints += [
        RewardEnsemble(members[:2]).fingerprint(),
        RewardEnsemble(members, normalize_members=False).fingerprint(),
        members[0].fingerprint(),
    ]
    assert len(set(prints)) == len(prints) and RewardEnsemble(members).fingerprint() == prints[0]


def test_evaluation_takes_an_ensemble(members):
    from reward_kit.data.preferences import load_preferences
    from reward_kit.trust.agreement import score_preferences

    rows = [{"prompt": p, "chosen": r, "rejected": "No."} for p, r in zip(PROMPTS, RESPONSES)] + [
        {"prompt": "a", "chosen": "b " * 400, "rejected": "c"}
    ]
    rewards, name = score_preferences(RewardEnsemble(members), load_preferences(rows, progress=False))
    assert (
        name == "reward_ensemble"
        and rewards[4] is None
        and rewards[0][0] == pytest.approx(RewardEnsemble(members).score(PROMPTS[0], RESPONSES[0]), abs=1e-4)
    )


def test_ensemble_errors(rm, members):
    with pytest.raises(
        ValueError,
        match=(
            r"members\[1\] \(.*\) has no stored mean and spread.*store_normalization.*normalize_members=False"
        ),
    ):
        RewardEnsemble([members[0], rm])
    with pytest.raises(TypeError, match=r"members is \[\]; give a list of RewardModels"):
        RewardEnsemble([])
    with pytest.raises(TypeError, match="members is '.*; give a list of RewardModels"):
        RewardEnsemble("reward-model")
    with pytest.raises(TypeError, match="members is \\['reward-model'\\]; give a list of RewardModels"):
        RewardEnsemble(["reward-model"])
    with pytest.raises(TypeError, match="members is RewardModel"):
        RewardEnsemble(rm)
    with pytest.raises(TypeError, match="names is 'reward-model'; give a list"):
        RewardEnsemble.from_pretrained("reward-model")
    with pytest.raises(ValueError, match="combine='median': choose one of mean, lower_bound, minimum"):
        RewardEnsemble(members, "median")
    for k in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"k={k}: it must be a number"):
            RewardEnsemble(members, "lower_bound", k)


def test_ensemble_from_folders(folders, members):
    ensemble = RewardEnsemble.from_pretrained(
        list(folders.values()), "minimum", normalize_members=False, device="cpu", batch_tokens=64
    )
    assert [m.scorer.batch_tokens for m in ensemble.members] == [64] * 3
    expected = [min(own) for own in zip(*(m.score(PROMPTS, RESPONSES) for m in members))]
    assert ensemble.score(PROMPTS, RESPONSES) == pytest.approx(expected, abs=1e-4)


# --- scale ----------------------------------------------------------------------------------------


def test_store_normalization(tmp_path):
    folder = save_own(
        tmp_path / "rm",
        metadata={"loss": {"name": "bradley_terry", "parameters": {}}, "calibration": {"temperature": 2.0}},
    )
    rows = [{"prompt": p, "chosen": r, "rejected": "No."} for p, r in zip(PROMPTS, RESPONSES)] + [
        {"prompt": "a", "chosen": "b " * 400, "rejected": "c"}
    ]
    rm = store_normalization(folder, rows, device="cpu")
    rewards = torch.tensor(
        rm.score(PROMPTS * 2 + ["a"], RESPONSES + ["No."] * 4 + ["c"]), dtype=torch.float64
    )
    stored = RewardMetadata.load(folder)
    assert stored.normalization["mean"] == pytest.approx(rewards.mean().item(), abs=1e-5)
    assert stored.normalization["std"] == pytest.approx(rewards.var(correction=0).sqrt().item(), abs=1e-5)
    assert (
        stored.normalization["n"] == 9
        and stored.loss["name"] == "bradley_terry"
        and stored.calibration == {"temperature": 2.0}
    )
    assert rm.metadata.normalization == stored.normalization and stored.encoding == rm.encoder.encoding


def test_store_normalization_of_a_model_made_elsewhere(tmp_path, caplog):
    tokenizer = toy_tokenizer(**SPECIAL["gpt2"])
    folder = save_foreign(
        tmp_path, tiny("gpt2", len(tokenizer), pad_token_id=tokenizer.pad_token_id), tokenizer
    )
    rm = RewardModel.from_pretrained(folder, device="cpu")
    before = rm.score(PROMPTS, RESPONSES)
    rows = [{"prompt": p, "chosen": r, "rejected": "No."} for p, r in zip(PROMPTS, RESPONSES)]
    assert store_normalization(rm, rows) is rm and not (tmp_path / "reward_kit.json").exists()
    assert len(RewardEnsemble([rm]).score(PROMPTS, RESPONSES)) == 4
    store_normalization(folder, rows, device="cpu")
    with caplog.at_level(logging.WARNING):
        again = RewardModel.from_pretrained(folder, device="cpu")
    assert "no encoding in its reward_kit.json" in caplog.text
    assert (
        again.score(PROMPTS, RESPONSES) == before
        and again.metadata.normalization == rm.metadata.normalization
    )


def test_store_normalization_errors(rm, tmp_path):
    with pytest.raises(ValueError, match="is no folder.*RewardModel.from_pretrained"):
        store_normalization(tmp_path / "none", [])

    class Constant(TextScorer):
        def score(self, prompts, responses, **_):
            return [1.0] * len(prompts)

    with pytest.raises(ValueError, match="preferences gave 2 rewards without a spread"):
        _measure_scale([{"prompt": "Why?", "chosen": "So.", "rejected": "No."}], Constant())
    with pytest.raises(ValueError, match="has no stored mean and spread"):
        RewardModel(None, None, None, None, metadata=RewardMetadata()).normalized([1.0])


# --- averaged weights -----------------------------------------------------------------------------

BASE = {"base": {"id": "toy", "revision": None, "weights": "0000"}, "data_kind": "text"}


@pytest.fixture(scope="module")
def relatives(tmp_path_factory):
    "Three models that began as one: the same weights with small differences."
    root, out = tmp_path_factory.mktemp("relatives"), []
    for i in range(3):
        extra = {
            "loss": {"name": "bradley_terry", "parameters": {}},
            "data_hash": str(i),
            "normalization": {"mean": 0.0, "std": 1.0, "n": 5},
            "calibration": {"temperature": 2.0},
        }
        folder = save_own(root / f"run{i}", metadata={**BASE, **extra})
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        torch.manual_seed(i)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.01)
        model.save_pretrained(folder)
        out.append(folder)
    return out


def weights_of(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("copies, weights", [(2, None), (3, None), (3, [0.2, 0.5, 3.0])])
def test_average_of_a_model_with_itself_is_itself(relatives, tmp_path, copies, weights):
    out = average_reward_models(relatives[:1] * copies, tmp_path / "out", weights)
    own, averaged = weights_of(relatives[0]), weights_of(out)
    assert own.keys() == averaged.keys() and all(torch.equal(own[name], averaged[name]) for name in own)
    expected = RewardModel.from_pretrained(relatives[0], device="cpu").score(PROMPTS, RESPONSES)
    assert RewardModel.from_pretrained(out, device="cpu").score(PROMPTS, RESPONSES) == expected


@pytest.mark.parametrize(
    "weights, shares", [(None, [1 / 3] * 3), ([1, 1, 2], [0.25, 0.25, 0.5]), ([0, 1, 0], [0, 1, 0])]
)
def test_average_of_weights(relatives, tmp_path, weights, shares):
    averaged = weights_of(average_reward_models(relatives, tmp_path / "out", weights))
    own = [weights_of(folder) for folder in relatives]
    for name, tensor in averaged.items():
        expected = sum(share * state[name].double() for share, state in zip(shares, own)).float()
        assert tensor.dtype == torch.float32 and torch.equal(tensor, expected), name


def test_averaged_folder(relatives, tmp_path, caplog):
    (tmp_path / "out").mkdir()
    with caplog.at_level(logging.WARNING):
        out = average_reward_models([Path(p) for p in relatives], tmp_path / "out")
        rm = RewardModel.from_pretrained(out, device="cpu")
    assert out == tmp_path / "out" and not caplog.text
    assert sorted(p.suffix for p in out.iterdir() if p.suffix not in (".json", ".jinja")) == [
        ".md",
        ".safetensors",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (
        rm.metadata.normalization is None
        and rm.metadata.calibration is None
        and rm.metadata.base == BASE["base"]
    )
    assert (
        rm.metadata.loss["name"] == "bradley_terry"
        and rm.metadata.data_kind == "text"
        and rm.metadata.data_hash is None
    )
    assert rm.metadata.extra["average"] == {"models": ["run0", "run1", "run2"], "weights": [1 / 3] * 3}
    assert "| run1 | 0.3333 |" in ModelCard(out).text and (out / "README.md").read_text().startswith(
        "---\nlibrary_name: transformers"
    )
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(out),
        AutoTokenizer.from_pretrained(out),
    )
    assert (
        model.config.num_labels == 1
        and model.config.problem_type == "regression"
        and model.dtype == torch.float32
    )
    with torch.no_grad():
        expected = model(**tokenizer("Why? So.", return_tensors="pt")).logits.item()
    assert rm.score("Why?", "So.") == pytest.approx(expected, abs=1e-5)
    scores = RewardEnsemble.from_pretrained(relatives, normalize_members=False, device="cpu").score(
        PROMPTS, RESPONSES
    )
    assert rm.score(PROMPTS, RESPONSES) == pytest.approx(scores, abs=0.1)


def test_half_precision_members_are_averaged_in_float32(relatives, tmp_path):
    halves = []
    for i, folder in enumerate(relatives[:2]):
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
        halves.append(str(tmp_path / f"half{i}"))
        model.save_pretrained(halves[i])
        AutoTokenizer.from_pretrained(folder).save_pretrained(halves[i])
        RewardMetadata.load(folder).save(halves[i])
    averaged = weights_of(average_reward_models(halves, tmp_path / "out"))
    a, b = (
        AutoModelForSequenceClassification.from_pretrained(h, dtype=torch.float32).state_dict()
        for h in halves
    )
    assert all(
        torch.equal(averaged[name], (a[name].double() / 2 + b[name].double() / 2).float()) for name in a
    )


def change(folder, target, **fields):
    "A copy of a model folder with other metadata."
    import shutil

    shutil.copytree(folder, target)
    metadata = RewardMetadata.load(target)
    for name, value in fields.items():
        setattr(metadata.encoding if hasattr(metadata.encoding, name) else metadata, name, value)
    metadata.save(target)
    return str(target)


@pytest.mark.parametrize(
    "fields, part",
    [
        (
            {"base": {"id": "toy", "revision": None, "weights": "ffff"}},
            "base.weights (0000, ffff)",
        ),
        ({"max_length": 77}, "encoding.max_length (256, 77)"),
        ({"separator": ""}, "encoding.separator (None, )"),
        ({"tokenizer_fingerprint": "0" * 16}, "encoding.tokenizer_fingerprint"),
        ({"chat_template": "x"}, "encoding.chat_template"),
    ],
)
def test_average_names_what_differs(relatives, tmp_path, fields, part):
    other = change(relatives[0], tmp_path / "other", **fields)
    with pytest.raises(ValueError) as caught:
        average_reward_models([relatives[0], relatives[1], other], tmp_path / "out")
    assert (
        part in str(caught.value)
        and "paths[2] (other)" in str(caught.value)
        and str(caught.value).count("encoding.") == ("encoding" in part)
    )
    assert not (tmp_path / "out").exists()


def test_bases_are_told_apart_by_their_weights_not_by_their_names(relatives, tmp_path):
    "Two bases in folders of the same name; and what was saved before there was a hash of a base."
    folders = []
    for seed in (0, 0, 1):
        base = make_base(tmp_path / str(len(folders)) / "base", seed=seed)
        args = RewardConfig(
            str(tmp_path / f"run{len(folders)}"), use_cpu=True, max_steps=1, disable_tqdm=True
        )
        RewardTrainer(base, args, train_dataset=make_pairs(4)).save_model()
        folders.append(args.output_dir)
    average_reward_models(folders[:2], tmp_path / "out")
    with pytest.raises(ValueError, match=r"paths\[1\] \(run2\) differ in base.weights"):
        average_reward_models(folders[1:], tmp_path / "other")
    old = change(relatives[1], tmp_path / "old", base={"id": "toy", "revision": None})
    with pytest.raises(ValueError, match=r"paths\[1\] \(old\) has no fingerprint.*same_base=True"):
        average_reward_models([relatives[0], old], tmp_path / "other")
    average_reward_models([relatives[0], old], tmp_path / "other", same_base=True)
    path = Path(old) / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["fuse_unk"] = not tokenizer["model"]["fuse_unk"]  # which no usual text shows
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="differ in tokenizer.json"):
        average_reward_models([relatives[0], old], tmp_path / "third", same_base=True)


def test_average_of_other_architectures(relatives, tmp_path):
    tokenizer = toy_tokenizer(CHAT, **SPECIAL["llama"])
    model = tiny("llama", len(tokenizer), num_hidden_layers=3)
    encoding = prepare_tokenizer(tokenizer, model)
    other = save_foreign(tmp_path / "deeper", model, tokenizer)
    with pytest.raises(ValueError, match=r"paths\[1\] \(deeper\) has no encoding in a reward_kit.json"):
        average_reward_models([relatives[0], other], tmp_path / "out")
    RewardMetadata(encoding=encoding, **BASE).save(other)
    with pytest.raises(ValueError, match=r"config.num_hidden_layers \(2, 3\)"):
        average_reward_models([relatives[0], other], tmp_path / "out")


def test_heads_that_were_initialised_apart_are_a_warning(relatives, tmp_path, caplog):
    model = AutoModelForSequenceClassification.from_pretrained(relatives[1])
    with torch.no_grad():
        model.score.weight.copy_(-model.score.weight)
    other = change(relatives[1], tmp_path / "other")
    model.save_pretrained(other)
    with caplog.at_level(logging.WARNING):
        average_reward_models([relatives[0], other], tmp_path / "out")
    assert "heads of these models have little in common" in caplog.text and "RewardEnsemble" in caplog.text


def test_average_errors(relatives, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(TypeError, match="paths is '.*'; give a list"):
        average_reward_models(relatives[0], out)
    with pytest.raises(ValueError, match="paths has 1 model; give at least two"):
        average_reward_models(relatives[:1], out)
    for weights in ([1.0], [0, 0], [1, -1], [1, float("inf")]):
        with pytest.raises(ValueError, match="weights=.*give 2 finite numbers"):
            average_reward_models(relatives[:2], out, weights)
    with pytest.raises(ModelLoadError, match="does not exist"):
        average_reward_models([relatives[0], str(tmp_path / "none")], out)
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        average_reward_models(relatives, relatives[0])
    monkeypatch.setattr(RewardMetadata, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        average_reward_models(relatives, out)
    assert list(tmp_path.iterdir()) == []


def test_add_weights_names_the_tensor():
    from reward_kit.beside.averaged_weights import _add_weights as add_weights

    total = {}
    add_weights(total, {"w": torch.ones(2), "n": torch.tensor([3])}, 0.5, "a")
    for state in ({"w": torch.ones(2)}, {"w": torch.ones(2), "n": torch.tensor([4])}):
        with pytest.raises(ValueError, match="b has another tensor 'n' than the first model"):
            add_weights(total, state, 0.5, "b")
    with pytest.raises(ValueError, match="another tensor 'w'"):
        add_weights(total, {"w": torch.ones(3), "n": torch.tensor([3])}, 0.5, "b")
    assert (
        total["w"].tolist() == [0.5, 0.5] and total["w"].dtype == torch.float64 and total["n"].tolist() == [3]
    )


def test_averaged_model_gets_its_scale_back(relatives, tmp_path):
    out = average_reward_models(relatives, tmp_path / "out")
    with pytest.raises(ValueError, match="has no stored mean and spread"):
        RewardEnsemble.from_pretrained([out, relatives[0]], device="cpu")
    store_normalization(
        out, [{"prompt": p, "chosen": r, "rejected": "No."} for p, r in zip(PROMPTS, RESPONSES)], device="cpu"
    )
    assert math.isfinite(
        RewardEnsemble.from_pretrained([out, relatives[0]], device="cpu").score("Why?", "So.")
    )


HH = Path(__file__).parents[1].parent / "shared" / "data" / "hh-rlhf-harmless-test.jsonl.gz"


@pytest.mark.skipif(not HH.exists(), reason=f"real transcripts are not at {HH}")
def test_real_transcripts(rm, tmp_path):
    "The first rows of HH-RLHF as they are: every side is scored as the conversation it is."
    rows = [row for _, row in itertools.islice(read_rows(HH), 40)]
    report = rm.score_file(write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    out = read_lines(tmp_path / "out.jsonl")
    assert (
        report.rows == 40 and report.failed == sum("error" in row for row in out) <= 20
    )  # most fit in 256 tokens of a toy vocabulary
    for row in [row for row in out if "error" not in row][:5]:
        record = to_record(row)
        assert [row["chosen_score"], row["rejected_score"]] == pytest.approx(
            rm.score(record["prompt"], record["responses"]), abs=1e-5
        )


# --- texts in tables, and texts that are no lists -------------------------------------------------


def test_messages_in_a_table_are_scored_as_messages(folders, tmp_path):
    rm = RewardModel.from_pretrained(folders["llama"])
    prompt, answers = [{"role": "user", "content": "Why?"}], ["Because.", "No."]
    rows = [{"prompt": json.dumps(prompt), "response": answer} for answer in answers]
    pd.DataFrame(rows).to_csv(tmp_path / "pairs.csv", index=False)
    pd.DataFrame([{"prompt": json.dumps(prompt), "responses": json.dumps(answers)}]).to_csv(
        tmp_path / "lists.csv", index=False
    )
    for name in ("pairs", "lists"):
        rm.score_file(tmp_path / f"{name}.csv", tmp_path / f"{name}.jsonl", progress=False)
    expected = rm.score([prompt, prompt], answers)
    scored = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("pairs", "lists")
    }
    assert [row["score"] for row in scored["pairs"]] == pytest.approx(expected, abs=1e-6)
    assert next(
        iter(value for key, value in scored["lists"][0].items() if key.startswith("score"))
    ) == pytest.approx(expected, abs=1e-6)


def test_a_string_is_no_list_of_responses(folders):
    rm = RewardModel.from_pretrained(folders["llama"])
    with pytest.raises(TypeError, match="it must be a list of strings or conversations"):
        rm.rank("Why?", "Because.")
    with pytest.raises(TypeError, match="it must be a list of strings or conversations"):
        rm.best_of_n(["Why?", "How?"], ["Because.", "So."])


# ---- on a GPU


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_on_a_gpu_layers_are_in_bfloat16_and_the_head_is_not(folders, tmp_path, monkeypatch, kind):
    "Unless a dtype is given; an encoder computes its head by itself, and so in one type."
    folder = folders.get(kind, tmp_path)
    if kind == "bert":
        tokenizer = toy_tokenizer(bert=True, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]")
        tokenizer.save_pretrained(folder)
        tiny("bert", len(tokenizer), pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    exact = RewardModel.from_pretrained(folder, device="cpu")
    monkeypatch.setattr("reward_kit.scores.inference._pick_dtype", lambda device: torch.bfloat16)
    short = RewardModel.from_pretrained(folder, device="cpu")
    given = RewardModel.from_pretrained(folder, device="cpu", dtype=torch.float32)
    head = {p.dtype for n, p in short.model.named_parameters() if n.startswith(("score", "classifier"))}
    assert short.model.dtype == torch.bfloat16 and given.model.dtype == torch.float32
    assert head == {torch.bfloat16 if kind == "bert" else torch.float32}
    a, b, c = (rm.score(PROMPTS, RESPONSES) for rm in (exact, short, given))
    assert a == c and a != b and b == pytest.approx(a, abs=0.05)
    rotations = [b.dtype for n, b in short.model.named_buffers() if "inv_freq" in n]
    assert all(dtype == torch.float32 for dtype in rotations) and bool(rotations) is (kind == "llama")
