"""The encoding contract on tokenizers, templates and models of the kinds people use; all tiny, random
and made here."""

import copy
import json
import re
from functools import cache, partial
from importlib.util import find_spec

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from trainer_world import make_base, make_pairs
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

from reward_kit import RewardConfig, RewardModel, RewardTrainer, load_preferences
from reward_kit.model.batches import RewardCollator, bind_reward_forward
from reward_kit.model.encoded_data import encode_dataset
from reward_kit.model.encoding import (
    _WRAPPER_MARK,
    RewardEncoder,
    RewardEncoding,
    _wrap_template,
    prepare_tokenizer,
)
from reward_kit.model.encoding import _fingerprint as tokenizer_fingerprint

CORPUS = [
    "What is AI? AI is artificial intelligence...",
    "The cat sat on the mat and looked at the moon.",
    "user assistant system model",
    "How do I boil an egg? Put it into boiling water for seven minutes.",
    "def f(x): return x ** 2",
    "Grüße aus Köln, 你好",
]
TEXTS = [
    "What is AI? AI is artificial intelligence...",
    "  leading space",
    "ends with newline\n",
    "Grüße, 你好 🙂",
    "a",
    "a" * 300,
    "1 2 3 4 5 6 7 8 " * 20,
]

# Small templates with the structure of the families they are named after.
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'You are Bot, made by Firm.' }}{%- endif %}
    {{- "\\n\\n# Tools\\n" }}
    {%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Bot, made by Firm.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) or message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot|>" }}
{%- for message in messages %}
    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}\
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<turn>' + role + '\\n' + message['content'] | trim + '</turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{'<turn>model\\n'}}{% endif %}"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
MISTRAL = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}\
{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"""
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}\
{% else %}{% set loop_messages = messages %}{% set system_message = 'Be helpful.' %}{% endif %}\
{% for message in loop_messages %}{% if loop.index0 == 0 %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content + ' [/INST]' }}\
{% else %}{{ ' ' + content + ' ' + eos_token }}{% endif %}{% endfor %}"""
CHATML = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
THINKING = """{%- set ns = namespace(last=0) %}
{%- for message in messages %}{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- macro turn(role, text) %}{{- '<|im_start|>' + role + '\\n' + text + '<|im_end|>\\n' }}{%- endmacro %}
{%- for message in messages %}
{%- if message.role == 'assistant' and loop.index0 > ns.last %}{{- turn('assistant', '<think>\\n\\n</think>\\n\\n' + message.content) }}
{%- else %}{{- turn(message.role, message.content) }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
DATED = """{%- set today = strftime_now('%Y-%m-%d') -%}
{{ bos_token }}
{%- if messages[0].role != 'system' %}{{ '[SYS]Made by Firm. Today is ' + today + '.[/SYS]' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'system' %}{{ '[SYS]' + message.content + ' (' + strftime_now("%B %Y") + ')[/SYS]' }}
{%- elif message.role == 'user' %}{{ '[INST]' + message.content + '[/INST]' }}
{%- else %}{{ message.content + eos_token }}{% endif %}
{%- endfor %}"""
CHATGLM = """{{ '[gMASK]<sop>' }}{% for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content }}{% endfor %}"""
# name: template, bos, eos, whether the tokenizer adds BOS by itself, what the wrapped template renders for
# (user "U1", assistant "A1") between BOS and EOS
FAMILIES = {
    "qwen": (QWEN, None, "<|im_end|>", False, "<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1"),
    "qwen_base": (
        QWEN,
        None,
        "<|endoftext|>",
        False,
        "<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n",
    ),
    "llama3": (
        LLAMA3,
        "<|bos|>",
        "<|eot|>",
        True,
        "<|start|>user<|end|>\n\nU1<|eot|><|start|>assistant<|end|>\n\nA1",
    ),
    "gemma": (GEMMA, "<bos>", "<eos>", True, "<turn>user\nU1</turn>\n<turn>model\nA1</turn>\n"),
    "gemma_no_own_bos": (GEMMA, "<bos>", "<eos>", False, "<turn>user\nU1</turn>\n<turn>model\nA1</turn>\n"),
    "zephyr": (ZEPHYR, "<s>", "</s>", True, "<|user|>\nU1</s>\n<|assistant|>\nA1"),
    "mistral": (MISTRAL, "<s>", "</s>", True, "[INST] U1 [/INST]A1"),
    "llama2": (LLAMA2, "<s>", "</s>", True, "[INST] U1 [/INST] A1 "),
    "chatml": (
        CHATML,
        "<|endoftext|>",
        "<|endoftext|>",
        False,
        "<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n",
    ),
    "thinking": (
        THINKING,
        None,
        "<|im_end|>",
        False,
        "<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nA1",
    ),
    "dated": (DATED, "<s>", "</s>", True, "[INST]U1[/INST]A1"),
    "chatglm": (CHATGLM, None, "<|endoftext|>", False, "[gMASK]<sop><|user|>\nU1<|assistant|>\nA1"),
    "none": (None, "<s>", "</s>", False, "User: U1\n\nAssistant: A1"),
}
TURNS = [{"role": "user", "content": "U1"}, {"role": "assistant", "content": "A1"}]


def byte_level(special, vocab_size=400):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def make_tokenizer(template=None, bos=None, eos="</s>", adds_bos=False, pad=None, extra=()):
    special = list(
        dict.fromkeys(t for t in (bos, eos, pad, "<unk>", "<|im_start|>", "<|im_end|>", *extra) if t)
    )
    backend = byte_level(special)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, backend.token_to_id(bos))]
        )
    names = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=template, **{k: v for k, v in names.items() if v}
    )


def family(name, **kwargs):
    template, bos, eos, adds_bos, _ = FAMILIES[name]
    extra = ("[gMASK]", "<sop>") if name == "chatglm" else ()
    return make_tokenizer(template, bos, eos, adds_bos, extra=extra, **kwargs)


def bert_tokenizer():
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    backend.post_processor = processors.TemplateProcessing(
        single=["[CLS]", "$A", "[SEP]"],
        pair=["[CLS]", "$A", "[SEP]", "$B:1", "[SEP]:1"],
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )


def reload(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


MODELS = {
    "llama": dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    ),
    "qwen3": dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
    ),
    "gemma2": dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        sliding_window=8,
    ),
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "bloom": dict(hidden_size=32, n_layer=2, n_head=4),
    "bert": dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
    ),
}


def make_model(kind, tokenizer, seed=0, auto=AutoModelForSequenceClassification, **kwargs):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        **MODELS[kind],
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    if auto is AutoModelForSequenceClassification:
        config.num_labels = 1
    return auto.from_config(config, **kwargs).eval()


def setup_model(kind="llama", name="mistral"):
    tokenizer = bert_tokenizer() if kind == "bert" else family(name)
    model = make_model(kind, tokenizer)
    encoding = prepare_tokenizer(tokenizer, model, max_length=64)
    return bind_reward_forward(model), tokenizer, RewardEncoder(tokenizer, encoding)


# ---- tokenizers


USE_BOS = ("llama3", "gemma", "gemma_no_own_bos", "zephyr", "mistral", "llama2", "dated")


def complete(name):
    "What the saved template renders."
    bos, eos, *_, body = FAMILIES[name][1:]
    return (bos if name in USE_BOS else "") + body + eos


@pytest.mark.parametrize("name", FAMILIES)
def test_rendered_chat_holds_its_messages_one_bos_and_one_eos(name):
    tokenizer = family(name)
    prepare_tokenizer(tokenizer)
    assert tokenizer.apply_chat_template(TURNS, tokenize=False) == complete(name)
    opened = tokenizer.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True)
    assert complete(name).startswith(opened) or name in ("thinking", "llama2")


@pytest.mark.parametrize("name", FAMILIES)
def test_one_bos_one_eos(name):
    tokenizer = family(name)
    encoder = RewardEncoder(tokenizer, prepare_tokenizer(tokenizer))
    for ids in encoder.encode(["U1", TURNS], None).ids + encoder.encode(["U1", TURNS[:1]], ["A1", "A1"]).ids:
        assert ids[-1] == tokenizer.eos_token_id and ids[-2] != tokenizer.eos_token_id
        if encoder.encoding.add_bos:
            assert ids[0] == tokenizer.bos_token_id and ids[1] != tokenizer.bos_token_id
        elif tokenizer.bos_token:
            assert ids[0] != tokenizer.bos_token_id
    assert encoder.encoding.add_bos == (name in USE_BOS)


@pytest.mark.parametrize("name", [*FAMILIES, "bert"])
@pytest.mark.parametrize("max_length", [48, 200])
def test_saved_tokenizer_is_the_encoder(name, max_length, tmp_path):
    tokenizer = bert_tokenizer() if name == "bert" else family(name)
    encoder = RewardEncoder(tokenizer, prepare_tokenizer(tokenizer, max_length=max_length))
    loaded = reload(tokenizer, tmp_path)
    ids = encoder.encode(TEXTS).ids
    assert [loaded(t, truncation=True, max_length=max_length)["input_ids"] for t in TEXTS] == ids
    assert [loaded(t, truncation=True)["input_ids"] for t in TEXTS] == ids, (
        "the saved tokenizer knows its maximum length"
    )
    chat, rendered = encoder.encode([TURNS]).ids[0], loaded.apply_chat_template(TURNS, tokenize=False)
    assert loaded.apply_chat_template(TURNS)["input_ids"] == chat
    assert loaded(rendered, add_special_tokens=False)["input_ids"] == chat
    assert encoder.encode([rendered]).ids == [chat], "text that was rendered before"
    assert (loaded.truncation_side, loaded.padding_side, loaded.pad_token) == (
        "left",
        "right",
        tokenizer.pad_token,
    )
    assert tokenizer_fingerprint(loaded) == encoder.encoding.tokenizer_fingerprint


@pytest.mark.parametrize("name", [*FAMILIES, "bert"])
def test_preparing_twice_changes_nothing(name, tmp_path):
    tokenizer = bert_tokenizer() if name == "bert" else family(name)
    first = prepare_tokenizer(tokenizer, max_length=100)
    loaded = reload(tokenizer, tmp_path)
    second = prepare_tokenizer(loaded, max_length=100)
    for key in ("chat_template", "add_bos", "add_eos", "prefix", "suffix", "tokenizer_fingerprint"):
        assert getattr(first, key) == getattr(second, key), key
    assert len(tokenizer) == len(loaded)


@pytest.mark.parametrize(
    "cls",
    [
        "GPT2Tokenizer",
        "Qwen2Tokenizer",
        "GPTNeoXTokenizer",
        "CohereTokenizer",
        "CodeLlamaTokenizer",
        "GemmaTokenizer",
        "RobertaTokenizer",
    ],
)
def test_tokenizer_classes_that_rebuild_themselves(cls, tmp_path):
    make_tokenizer(None, "<s>", "</s>", extra=("<pad>", "<mask>")).save_pretrained(tmp_path / "raw")
    path = tmp_path / "raw" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": cls}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "raw")
    encoder = RewardEncoder(tokenizer, prepare_tokenizer(tokenizer, max_length=12))
    loaded = reload(tokenizer, tmp_path / "saved")
    for text in TEXTS[:4]:
        assert loaded(text, truncation=True, max_length=12)["input_ids"] == encoder.encode([text]).ids[0]
        assert encoder.encode([text]).ids[0][-1] == tokenizer.eos_token_id


def test_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="not a fast tokenizer"):
        prepare_tokenizer(Slow())


def test_pad_token_is_dedicated():
    for pad, extra, expected in [
        (None, (), "<|pad|>"),
        ("</s>", (), "<|pad|>"),
        ("<unk>", (), "<unk>"),
        (None, ("<|finetune_right_pad_id|>",), "<|finetune_right_pad_id|>"),
    ]:
        tokenizer = make_tokenizer(None, "<s>", "</s>", pad=pad, extra=extra)
        prepare_tokenizer(tokenizer)
        assert tokenizer.pad_token == expected and tokenizer.pad_token_id not in (
            tokenizer.eos_token_id,
            tokenizer.bos_token_id,
        )


def test_embeddings_grow_only_where_needed_and_draw_no_random_numbers():
    tokenizer = make_tokenizer(None, "<s>", "</s>")
    model = make_model("llama", tokenizer)
    before, state = model.get_input_embeddings().weight.clone(), torch.get_rng_state()
    prepare_tokenizer(tokenizer, model)
    after = model.get_input_embeddings().weight
    assert torch.equal(torch.get_rng_state(), state)
    assert len(after) == len(before) + 1 and torch.equal(after[:-1], before) and not after[-1].any()
    assert model.config.pad_token_id == tokenizer.pad_token_id == len(
        before
    ) and model.config.vocab_size == len(after)
    spare = make_tokenizer(None, "<s>", "</s>")
    roomy = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model("llama", vocab_size=len(spare) + 8, num_labels=1, **MODELS["llama"])
    )
    prepare_tokenizer(spare, roomy)
    assert len(roomy.get_input_embeddings().weight) == len(spare) - 1 + 8


def test_max_length_default_and_limit():
    tokenizer = make_tokenizer(None, "<s>", "</s>")
    assert prepare_tokenizer(copy.deepcopy(tokenizer)).max_length == 2048
    model = make_model("llama", tokenizer)
    assert prepare_tokenizer(copy.deepcopy(tokenizer), model).max_length == 256
    with pytest.raises(ValueError, match="256 positions"):
        prepare_tokenizer(tokenizer, model, max_length=300)


# ---- templates


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name][0]])
def test_wrapping_keeps_every_other_rendering(name):
    template, bos, eos, _, _ = FAMILIES[name]
    raw, tokenizer = family(name), family(name)
    prepare_tokenizer(tokenizer)
    system = [{"role": "system", "content": "Be brief."}]
    today = dict(date_string="1 Jan 2000") if name == "llama3" else {}
    for messages in (system + TURNS, system + TURNS * 2, system + TURNS + TURNS[:1]):
        for generation in (False, True):
            render = partial(
                PreTrainedTokenizerFast.apply_chat_template,
                conversation=messages,
                tokenize=False,
                add_generation_prompt=generation,
                **today,
            )
            try:
                expected = render(raw)
            except Exception as error:  # what the template refuses stays refused
                with pytest.raises(type(error)):
                    render(tokenizer)
                continue
            expected = (bos if name in USE_BOS else "") + expected.removeprefix(bos or "")
            if not generation:
                ends = expected.rstrip().endswith(eos)
                expected = (expected.rstrip().removesuffix(eos) if ends else expected) + eos
            if name == "dated":
                expected = re.sub(r"\(\w+ \d{4}\)", "(July 2024)", expected)
            assert render(tokenizer) == expected


def test_injected_texts_are_stated():
    for name, text in {
        "qwen": "You are Bot",
        "llama3": "Today Date",
        "llama2": "Be helpful.",
        "dated": "Made by Firm",
    }.items():
        notes = prepare_tokenizer(family(name)).adjustments
        assert any(text in note for note in notes), (name, notes)
    for name in ("gemma", "zephyr", "mistral", "chatml", "thinking", "chatglm"):
        assert not any("inserts" in note for note in prepare_tokenizer(family(name)).adjustments), name


def test_tools_without_system_message_lose_the_default_prompt_only():
    tokenizer = family("qwen")
    prepare_tokenizer(tokenizer)
    tools = [{"type": "function", "function": {"name": "f"}}]
    with_empty = tokenizer.apply_chat_template(
        [{"role": "system", "content": ""}, *TURNS], tools=tools, tokenize=False
    )
    assert (
        tokenizer.apply_chat_template(TURNS, tools=tools, tokenize=False) == with_empty
        and '"name": "f"' in with_empty
    )


def test_dates_are_fixed():
    for name, expected in {"llama3": "26 Jul 2024", "dated": "(July 2024)"}.items():
        tokenizer = family(name)
        prepare_tokenizer(tokenizer)
        text = tokenizer.apply_chat_template([{"role": "system", "content": "S"}, *TURNS], tokenize=False)
        assert expected in text
    tokenizer = family("llama3")
    prepare_tokenizer(tokenizer)
    own = tokenizer.apply_chat_template(
        [{"role": "system", "content": "S"}, *TURNS], tokenize=False, date_string="1 May 1999"
    )
    assert "1 May 1999" in own


def test_white_space_at_the_edges_of_a_template_survives_wrapping():
    for template in (
        "\n\n  {% for m in messages %}{{ m.content }}{% endfor %}  \n",
        "   {%- for m in messages %} {{ m.content }}\n{% endfor %}\n\n",
        "    {% for m in messages %}\n    {{ m.content }}\n    {% endfor %}\n    ",
        "x\n{{ messages[0].content }}\n",
    ):
        raw, wrapped = make_tokenizer(template), make_tokenizer(_wrap_template(template, "<nothing>", ""))
        assert _WRAPPER_MARK in wrapped.chat_template
        found = wrapped.apply_chat_template(TURNS, tokenize=False)
        assert "<nothing>" + raw.apply_chat_template(TURNS, tokenize=False) == found


def test_templates_that_mark_generated_text():
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration"
        " %}{% else %}{{ m.content + '|' }}{% endif %}{% endfor %}"
    )
    tokenizer = make_tokenizer(template, "<s>", "</s>")
    prepare_tokenizer(tokenizer)
    assert (
        _WRAPPER_MARK in tokenizer.chat_template
        and tokenizer.apply_chat_template(TURNS, tokenize=False) == "U1|A1</s>"
    )


def test_several_templates():
    tokenizer = make_tokenizer({"default": MISTRAL, "tool_use": ZEPHYR}, "<s>", "</s>", True)
    encoding = prepare_tokenizer(tokenizer)
    assert set(encoding.chat_template) == {"default", "tool_use"} and all(
        _WRAPPER_MARK in t for t in encoding.chat_template.values()
    )
    assert tokenizer.apply_chat_template(TURNS, tokenize=False) == complete("mistral")


# ---- encoder


def make_encoder(**kwargs):
    tokenizer = family("mistral")
    return RewardEncoder(tokenizer, prepare_tokenizer(tokenizer, **kwargs))


def test_separator():
    encoder = make_encoder()
    for prompt, response, text in [
        ("What?", "That.", "What? That."),
        ("What?\n", "That.", "What?\nThat."),
        ("What?", " That.", "What? That."),
        ("", "That.", "That."),
        ("What?", "", "What?"),
    ]:
        assert encoder.render(prompt, response) == text
        assert encoder.encode([prompt], [response]).ids == encoder.encode([text]).ids
    assert make_encoder(separator="").render("What?", "That.") == "What?That."
    assert "one space" in encoder.encoding.describe()
    assert encoder.render("<s>What?", "That.</s>") == "What? That."


def test_strings_and_messages_mix():
    encoder = make_encoder()
    expected = encoder.encode([TURNS]).ids
    user, reply = TURNS[:1], TURNS[1:]
    for prompt, response in [(user, reply), (user, "A1"), ("U1", reply)]:
        assert encoder.encode([prompt], [response]).ids == expected
    padded = [{"role": "user", "content": "U1", "tool_calls": None}]
    assert encoder.encode([padded], ["A1"]).ids == expected


def test_truncation_keeps_bos_response_and_eos():
    encoder = make_encoder(max_length=24)
    full = make_encoder(max_length=2048)
    for prompt in ("the cat sat " * 30, [{"role": "user", "content": "the cat sat " * 30}]):
        for response in ("AI is artificial.", "a"):
            batch, whole = encoder.encode([prompt], [response]), full.encode([prompt], [response]).ids[0]
            assert batch.ids[0] == whole[:1] + whole[-23:] and batch.cut == [True] and None not in batch.ids


def test_response_that_does_not_fit_is_dropped():
    encoder = make_encoder(max_length=24)
    tokens = lambda text: encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    long = "the cat sat on the mat and " * 9
    for prompt in ("What is AI?", [{"role": "user", "content": "What is AI?"}]):
        batch = encoder.encode([prompt] * 3, ["yes", long, "no"])
        assert batch.ids[0] and batch.ids[1] is None and not any(batch.cut)
    exact = next(long[:n] for n in range(len(long), 0, -1) if len(tokens(" " + long[:n])) == encoder.room)
    batch = encoder.encode(["What is AI?"], [exact])
    assert sum(batch.cut) == 1 and batch.ids[0][1:-1] == tokens(" " + exact)
    assert encoder.encode([long]).cut == [True], "a full text has no known response: it is cut, not dropped"


def test_other_overflow_policies():
    batch = make_encoder(max_length=24, overflow="drop").encode(["the cat " * 30, "hi"], ["yes", "yes"])
    assert batch.ids[0] is None and not any(batch.cut) and batch.ids[1]
    with pytest.raises(ValueError, match=r"file.jsonl:7: \d+ tokens, but max_length=24"):
        make_encoder(max_length=24, overflow="error").encode(
            ["the cat " * 30], ["yes"], names=["file.jsonl:7"]
        )


def test_encoder_errors_name_the_row():
    encoder = make_encoder()
    with pytest.raises(ValueError, match="2 prompts but 1 response"):
        encoder.encode(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="row 1: the chat template refuses.*alternate"):
        encoder.encode([TURNS, TURNS[::-1]])
    with pytest.raises(ValueError, match="tools: 1 entry for 2 texts"):
        encoder.encode([TURNS, TURNS], tools=["[]"])


def test_ids_do_not_depend_on_the_batch_or_on_earlier_calls():
    encoder = make_encoder(max_length=24)
    together = encoder.encode(TEXTS).ids
    encoder.tokenizer(
        TEXTS, truncation=True, max_length=5, padding=True
    )  # leaves truncation and padding set in the backend
    assert [encoder.encode([t]).ids[0] for t in TEXTS] == together
    assert encoder.encode(TEXTS[::-1]).ids[::-1] == together


def test_tools_and_template_arguments_by_row():
    tokenizer = family("qwen")
    encoder = RewardEncoder(tokenizer, prepare_tokenizer(tokenizer))
    tools = [{"type": "function", "function": {"name": "f"}}]
    shared = encoder.encode([TURNS], tools=tools).ids
    assert shared == encoder.encode([TURNS], tools=[json.dumps(tools)]).ids != encoder.encode([TURNS]).ids
    assert encoder.encode([TURNS, TURNS], tools=[None, tools]).ids == encoder.encode([TURNS]).ids + shared


# ---- datasets


def records(n=12, k=2, long=()):
    return Dataset.from_list(
        [
            {
                "id": str(i),
                "prompt": f"Question {i}?",
                "responses": [f"answer {j} " * (60 if (i, j) in long else 1) for j in range(k)],
                "ranks": list(range(1, k + 1)),
                "scores": [1.0 - j for j in range(k)],
                "margin": 0.5,
                "weight": 1.0,
                "source": "a",
                "origin": f"f.jsonl:{i + 1}",
            }
            for i in range(n)
        ]
    )


def test_encode_dataset_counts_and_keeps_columns():
    encoder = make_encoder(max_length=32)
    data, report = encode_dataset(records(long={(3, 1)}), encoder)
    assert (
        len(data) == 11
        and report.dropped_rows == 1
        and report.examples == ["f.jsonl:4"]
        and (report.rows, report.sequences, report.dropped) == (12, 24, 1)
    )
    assert set(data.column_names) == {
        "id",
        "chosen_ids",
        "rejected_ids",
        "sequences",
        "lengths",
        "ranks",
        "scores",
        "margin",
        "weight",
        "source",
        "origin",
    }
    assert data[0]["sequences"][1] == encoder.encode(["Question 0?"], ["answer 1 "]).ids[0] and data[0][
        "lengths"
    ] == [len(s) for s in data[0]["sequences"]]
    assert report.tokens == sum(map(sum, data["lengths"])) and "f.jsonl:4" in str(report)
    assert data["id"][2:4] == ["2", "4"]


def test_rankings_lose_only_the_response_that_does_not_fit():
    data, report = encode_dataset(records(n=2, k=3, long={(0, 1)}), make_encoder(max_length=32))
    assert (
        data[0]["ranks"] == [1, 3]
        and data[0]["scores"] == [1.0, -1.0]
        and len(data[0]["sequences"]) == 2
        and report.dropped == 1
        and report.dropped_rows == 0
    )


def test_rows_that_teach_nothing_are_left_out_with_their_reason():
    "A template that refuses a row, responses that are the same tokens, a response that is too long."
    user, reply = TURNS
    good = {"prompt": [user], "responses": [[reply], [reply | {"content": "other"}]]}
    rows = [
        good,
        good | {"responses": [[reply, reply], [reply]]},  # roles must alternate
        good | {"prompt": [user, user]},
        good | {"responses": [[reply], [reply | {"content": "A1</s>"}]]},
        good | {"responses": [[reply], [reply | {"content": "the cat sat " * 50}]]},
    ]
    rows = [row | {"ranks": [1, 2], "origin": f"f.jsonl:{i}"} for i, row in enumerate(rows, 1)]
    for stream in (False, True):
        data = Dataset.from_list(rows)
        data, report = encode_dataset(
            data.to_iterable_dataset() if stream else data, make_encoder(max_length=64)
        )
        assert [row["sequences"] for row in data] == [
            make_encoder().encode([[user]] * 2, good["responses"]).ids
        ]
        assert sorted(report.reasons.values()) == [1, 1, 2] and report.dropped_rows == 4
        refused = next(reason for reason in report.reasons if "alternate" in reason)
        assert report.reasons[refused] == 2 and refused in report.summary
        assert report.reasons["too long"] == report.reasons["of the same tokens"] == 1
        assert report.examples == ["f.jsonl:2", "f.jsonl:3", "f.jsonl:4"] and "f.jsonl:2" in report.summary
        assert (report.rows, report.sequences) == (5, 10)
        assert report.dropped == 1 and "over 64 tokens: 0 cut (0.0%), 1 dropped" in report.summary


def test_rankings_and_ids_of_the_same_tokens():
    ids = {"chosen_input_ids": [[5, 6], [5, 6], [5] * 30], "rejected_input_ids": [[5, 6], [7], [7]]}
    for data in (Dataset.from_dict(ids), Dataset.from_dict(ids).to_iterable_dataset()):
        found, report = encode_dataset(data, make_encoder(max_length=24))
        assert [row["sequences"] for row in found] == [[[5, 6], [7]]]
        assert report.reasons == {"of the same tokens": 1, "too long": 1}
    text = {"prompt": "What?", "responses": ["a", "b", "a</s>"], "origin": "f.jsonl:1"}
    rows = [text | {"ranks": ranks} for ranks in ([1, 2, 3], [1, 2, 1], [2, 1, 2])]
    kept, report = encode_dataset(Dataset.from_list(rows), make_encoder())
    assert kept["ranks"][:] == [[1, 2], [2, 1]] and report.reasons == {"of the same tokens": 1}
    assert report.repeated == 2 and "2 repeated answers merged" in report.summary


def test_a_repeated_answer_counts_once_and_pairs_have_the_names_of_trl():
    row = {"prompt": "What?", "origin": "f.jsonl:1", "scores": None}
    rows = [
        row | {"responses": ["b", "a", "b", "c"], "ranks": [2, 1, 2, 3], "scores": [2.0, 3.0, 2.0, 1.0]},
        row | {"responses": ["b", "a"], "ranks": [2, 1]},
        row | {"responses": ["a", "b"], "ranks": [1, 1]},
        row | {"responses": ["a", "a"], "ranks": [1, 1]},
        row | {"responses": ["a", "b", "a"], "ranks": [1, 2, 2]},
    ]
    encoder = make_encoder()
    a, b, c = encoder.encode(["What?"] * 3, ["a", "b", "c"]).ids
    for stream in (False, True):
        data = Dataset.from_list(rows)
        kept, report = encode_dataset(data.to_iterable_dataset() if stream else data, encoder)
        kept = list(kept)
        assert [row["sequences"] for row in kept] == [[b, a, c], [b, a], [a, b]]
        assert kept[0]["ranks"] == [2, 1, 3] and kept[0]["scores"] == [2.0, 3.0, 1.0]
        assert [row["lengths"] for row in kept] == [list(map(len, row["sequences"])) for row in kept]
        assert [row["chosen_ids"] for row in kept] == [None, a, None]
        assert [row["rejected_ids"] for row in kept] == [None, b, None]
        assert report.repeated == 2 and report.tokens == sum(sum(row["lengths"]) for row in kept)
        assert report.reasons == {"of the same tokens": 2}


def test_encoding_is_cached_and_the_same_with_processes_and_iterables(tmp_path):
    rows = records(n=20, long={(3, 1)})
    rows.save_to_disk(tmp_path / "data")
    rows = Dataset.load_from_disk(str(tmp_path / "data"))
    encoder = make_encoder(max_length=32)
    data, report = encode_dataset(rows, encoder)
    encoder.tokenizer("changes the state of the tokenizer", truncation=True, max_length=3)
    again, report_again = encode_dataset(rows, encoder)
    assert again._fingerprint == data._fingerprint and report_again == report
    other, _ = encode_dataset(rows, make_encoder(max_length=16))
    assert other._fingerprint != data._fingerprint
    parallel, parallel_report = encode_dataset(rows, encoder, num_proc=2)
    assert parallel["sequences"][:] == data["sequences"][:] and parallel_report == report
    lazy, lazy_report = encode_dataset(rows.to_iterable_dataset(), encoder)
    assert [r["sequences"] for r in lazy] == data["sequences"][:]
    assert lazy_report.dropped_rows == 1 and lazy_report.sequences == 40


def test_empty_dataset_is_an_error():
    with pytest.raises(ValueError, match="no rows"):
        encode_dataset(records().select([]), make_encoder())


# ---- collator


def test_collator_by_hand():
    batch = RewardCollator(pad_token_id=9)(
        [
            {"sequences": [[1, 2, 3], [4, 5]], "ranks": [1, 2], "scores": [2.0, 1.0], "margin": 0.5},
            {"sequences": [[6], [7, 8], [1]], "ranks": [1, 1, 2], "scores": [0.0, 0.0, -1.0], "weight": 2.0},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 9], [6, 9, 9], [7, 8, 9], [1, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert batch["reward_index"].tolist() == [[2, 4, -1], [6, 10, 12]]
    assert batch["mask"].tolist() == [[True, True, False], [True, True, True]]
    assert batch["ranks"].tolist() == [[1, 2, 4], [1, 1, 2]]
    assert batch["targets"].tolist() == [[2.0, 1.0, 0.0], [0.0, 0.0, -1.0]]
    assert batch["margin"].tolist() == [0.5, 0.0] and batch["weight"].tolist() == [1.0, 2.0]


def test_collator_options():
    batch = RewardCollator(0, pad_to_multiple_of=8)([{"chosen_ids": [1, 2, 3], "rejected_ids": [4]}])
    assert (
        batch["input_ids"].shape == (2, 8)
        and batch["reward_index"].tolist() == [[2, 8]]
        and "margin" not in batch
        and "targets" not in batch
    )
    with pytest.raises(ValueError, match="layout"):
        RewardCollator(0, layout="other")
    with pytest.raises(ValueError, match="at least one token"):
        RewardCollator(0)([{"sequences": [[], [1]]}])


# ---- forward

PAIRS = [
    ("What is AI?", ["AI is artificial intelligence.", "no"]),
    ("How do I boil an egg?", ["Put it into boiling water for seven minutes.", "The cat sat."]),
    ("Hi", ["a", "b"]),
]


def rows_of(encoder, pairs=PAIRS):
    return [{"sequences": encoder.encode([p] * len(r), r).ids} for p, r in pairs]


@pytest.mark.parametrize("kind", MODELS)
def test_rewards_equal_the_plain_model_one_text_at_a_time(kind, tmp_path):
    model, tokenizer, encoder = setup_model(kind)
    batch = RewardCollator(tokenizer.pad_token_id, pad_to_multiple_of=16)(rows_of(encoder))
    with torch.no_grad():
        rewards = model(**batch).logits
    assert rewards.shape == (3, 2) and rewards.dtype == torch.float32
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    plain, plain_tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    for i, (prompt, responses) in enumerate(PAIRS):
        for j, response in enumerate(responses):
            inputs = plain_tokenizer(
                f"{prompt} {response}", return_tensors="pt", truncation=True, max_length=64
            )
            with torch.no_grad():
                score = plain(**inputs).logits.item()
            assert score == pytest.approx(rewards[i, j].item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_rewards_do_not_depend_on_padding_or_batch(kind):
    model, tokenizer, encoder = setup_model(kind)
    rows, collate = rows_of(encoder), RewardCollator(tokenizer.pad_token_id)
    with torch.no_grad():
        together = model(**collate(rows)).logits
        alone = torch.cat([model(**collate([row])).logits for row in rows])
        wide = model(**RewardCollator(tokenizer.pad_token_id, pad_to_multiple_of=64)(rows)).logits
        backwards = model(**collate(rows[::-1])).logits.flip(0)
        batch = collate(rows)
        batch["input_ids"] = batch["input_ids"].masked_fill(
            batch["attention_mask"] == 0, 7
        )  # what stands in the padding is not read
        other_pad = model(**batch).logits
    for other in (alone, wide, backwards, other_pad):
        assert torch.allclose(together, other, atol=1e-6)


def test_left_padding_gives_the_same_rewards():
    model, tokenizer, encoder = setup_model("gpt2")
    batch = RewardCollator(tokenizer.pad_token_id)(rows_of(encoder))
    length = batch["input_ids"].shape[1]
    shift = length - batch["attention_mask"].sum(1)
    left = {
        name: torch.stack([row.roll(int(s)) for row, s in zip(batch[name], shift)])
        for name in ("input_ids", "attention_mask", "position_ids")
    }
    left["reward_index"] = (torch.arange(6) * length + length - 1).reshape(3, 2)
    with torch.no_grad():
        assert torch.allclose(model(**left).logits, model(**batch).logits, atol=1e-6)


def test_absent_responses_are_zero_and_carry_no_gradient():
    model, tokenizer, encoder = setup_model()
    batch = RewardCollator(tokenizer.pad_token_id)(rows_of(encoder, [PAIRS[0], ("Hi", ["a"])]))
    out = model(**batch)
    assert out.loss is None and out.logits[1, 1] == 0 and (out.logits[0] != 0).all()


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_without_index_the_model_is_unchanged(kind):
    model, tokenizer, encoder = setup_model(kind)
    inputs = tokenizer(TEXTS[:3], return_tensors="pt", padding=True, truncation=True)
    bound = model(**inputs).logits
    del model.forward
    assert torch.equal(model(**inputs).logits, bound)


def test_bound_model_copies_and_binds_once():
    model, tokenizer, encoder = setup_model()
    batch = RewardCollator(tokenizer.pad_token_id)(rows_of(encoder))
    bind_reward_forward(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.score.weight.add_(1.0)
        assert not torch.allclose(twin(**batch).logits, model(**batch).logits), (
            "the copy must not run the original's weights"
        )


def test_head_is_float32_under_autocast_and_in_bf16():
    model, tokenizer, encoder = setup_model()
    batch = RewardCollator(tokenizer.pad_token_id)(rows_of(encoder))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rewards = model(**batch).logits
    assert rewards.dtype == torch.float32 and not torch.equal(rewards, rewards.bfloat16().float())
    low = model.to(torch.bfloat16)
    rewards = low(**batch).logits
    assert rewards.dtype == torch.float32 and not torch.equal(rewards, rewards.bfloat16().float())
    rewards.sum().backward()
    assert low.score.weight.grad.any()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_trains_and_reads_its_own_head(checkpointing, tmp_path):
    peft = pytest.importorskip("peft")
    model, tokenizer, encoder = setup_model()
    batch = RewardCollator(tokenizer.pad_token_id)(rows_of(encoder))
    with torch.no_grad():
        before = model(**batch).logits
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"])
    )
    with torch.no_grad():
        assert torch.allclose(wrapped(**batch).logits, before, atol=1e-6)
    if checkpointing:
        wrapped.enable_input_require_grads()
        wrapped.gradient_checkpointing_enable()
    wrapped.train()
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        rewards = wrapped(**batch).logits
        (-torch.nn.functional.logsigmoid(rewards[:, 0] - rewards[:, 1]).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    wrapped.eval()
    with torch.no_grad():
        trained = wrapped(**batch).logits
    assert not torch.allclose(trained, before, atol=1e-3)
    merged = wrapped.merge_and_unload()
    merged.save_pretrained(tmp_path)
    loaded = bind_reward_forward(AutoModelForSequenceClassification.from_pretrained(tmp_path).eval())
    with torch.no_grad():
        assert torch.allclose(loaded(**batch).logits, trained, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients():
    model, tokenizer, encoder = setup_model()
    batch = RewardCollator(tokenizer.pad_token_id)(rows_of(encoder))
    model.train()
    model(**batch).logits.sum().backward()
    plain = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**batch).logits.sum().backward()
    assert torch.allclose(model.get_input_embeddings().weight.grad, plain, atol=1e-6) and plain.any()


def test_accelerate_mixed_precision_calls_the_bound_forward():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    model, tokenizer, encoder = setup_model()
    batch = RewardCollator(tokenizer.pad_token_id)(rows_of(encoder))
    with torch.no_grad():
        reference = model(**batch).logits
    AcceleratorState._reset_state(True)  # of a trainer in an earlier test
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    prepared = accelerator.prepare_model(model)
    with torch.no_grad():
        rewards = prepared(**batch).logits
    assert (
        rewards.shape == (3, 2)
        and torch.allclose(rewards, reference, atol=0.05)
        and not torch.equal(rewards, reference)
    )
    plain = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    with torch.no_grad():
        assert torch.equal(plain(**batch).logits, reference)


def test_binding_errors():
    tokenizer = family("mistral")
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), num_labels=3, **MODELS["llama"])
    with pytest.raises(ValueError, match="3 labels"):
        bind_reward_forward(AutoModelForSequenceClassification.from_config(config))
    t5 = AutoConfig.for_model(
        "t5", vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, num_labels=1
    )
    with pytest.raises(ValueError, match="encoder-decoder"):
        bind_reward_forward(AutoModelForSequenceClassification.from_config(t5))


def test_encoding_dictionary_ignores_unknown_keys():
    encoding = RewardEncoding(max_length=9, prefix=["<s>"])
    assert RewardEncoding(**encoding.to_dict()) == encoding


# ---- the saved folder, as others read it

CALLS = """{%- if tools %}{{ tools | tojson }}{{ '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def chats(pairs, system=(), calls=False):
    def conversation(i, pair):
        asked = [*system[i % 2 :], {"role": "user", "content": pair["prompt"]}]
        called = {"function": {"name": "weather", "arguments": {"day": i}}}
        tool = [
            {"role": "assistant", "content": "", "tool_calls": [called]},
            {"role": "tool", "content": f"rain {i}"},
        ]
        return {
            "prompt": asked + (tool if calls else []),
            **{side: [{"role": "assistant", "content": pair[side]}] for side in ("chosen", "rejected")},
            **({"tools": TOOLS} if calls else {}),
        }

    return [conversation(i, pair) for i, pair in enumerate(pairs)]


SYSTEM = [{"role": "system", "content": "Thank people."}]
SPECIAL = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
IM_END = dict(eos_token="<|im_end|>", pad_token="<pad>", additional="<|im_start|>")
# template, special tokens of the base, what becomes of plain pairs
TRAINED = {
    "plain": (None, SPECIAL, None),
    "plain, its own template": (MISTRAL, SPECIAL, None),
    "plain, with a separator": (None, SPECIAL, None),
    "conversations": (None, SPECIAL, chats),
    "conversations, a template without EOS": (CHATML, SPECIAL, chats),
    "conversations, a line break after EOS": (ZEPHYR, SPECIAL, chats),
    "conversations, a default system prompt": (QWEN, IM_END, chats),
    "system prompts": (QWEN, IM_END, partial(chats, system=SYSTEM)),
    "tools": (CALLS, IM_END, partial(chats, calls=True)),
}


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory):
    @cache
    def make(name):
        template, special, convert = TRAINED[name]
        folder, pairs = tmp_path_factory.mktemp("trained"), make_pairs(24)
        rows = convert(pairs) if convert else pairs
        base = make_base(folder / "base", **special)
        if template:
            tokenizer = AutoTokenizer.from_pretrained(base)
            tokenizer.chat_template = template
            tokenizer.save_pretrained(base)
        args = RewardConfig(
            str(folder / "model"), max_steps=4, per_device_train_batch_size=8, learning_rate=1e-3, use_cpu=True,
            save_strategy="no", show_plan=False, report_to="none", disable_tqdm=True,
            separator="\n" if "separator" in name else None,
        )  # fmt: skip
        trainer = RewardTrainer(base, args, train_dataset=rows)
        trainer.train()
        trainer.save_model()
        return folder / "model", rows[:6]

    return make


def plain_score(folder, ids):
    "What transformers alone makes of token ids."
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return [model(input_ids=torch.tensor([each])).logits.item() for each in ids]


def as_chat(row):
    prompt, response = row["prompt"], row["chosen"]
    if isinstance(prompt, str):
        prompt, response = [{"role": "user", "content": prompt}], [{"role": "assistant", "content": response}]
    return prompt + response


@pytest.mark.parametrize("name", TRAINED)
def test_transformers_reads_the_reward_of_the_saved_folder(name, trained_folder):
    folder, rows = trained_folder(name)
    rm, tokenizer = RewardModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected = [rm.score(row["prompt"], row["chosen"], tools=row.get("tools")) for row in rows]
    assert max(expected) - min(expected) > 1e-3
    trained = encode_dataset(load_preferences(rows), rm.encoder)[0]["sequences"]
    options = [{"tools": row.get("tools")} for row in rows]
    rendered = [
        tokenizer.apply_chat_template(as_chat(row), tokenize=False, **o) for row, o in zip(rows, options)
    ]
    ids = [tokenizer.apply_chat_template(as_chat(row), **o)["input_ids"] for row, o in zip(rows, options)]
    assert ids == [chosen for chosen, _ in trained], "the template renders what was trained on"
    assert {each.count(tokenizer.bos_token_id) for each in ids} == {len(rm.encoder.prefix)}
    assert plain_score(folder, ids) == pytest.approx(expected, abs=1e-5)
    assert rm.score(rendered) == pytest.approx(expected, abs=1e-5)
    pipe = pipeline("text-classification", str(folder))
    found = [each["score"] for each in pipe(rendered, add_special_tokens=False)]
    assert found == pytest.approx(expected, abs=1e-5)
    if isinstance(rows[0]["prompt"], str):
        texts = [rm.encoder.render(row["prompt"], row["chosen"]) for row in rows]
        assert [each["score"] for each in pipe(texts)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_a_cross_encoder_reads_the_reward_of_the_saved_folder(name, trained_folder):
    st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    folder, rows = trained_folder(name)
    rm, cross = RewardModel.from_pretrained(folder), st.CrossEncoder(str(folder))
    tools = {"tools": rows[0]["tools"]} if "tools" in rows[0] else {}
    expected = [rm.score(row["prompt"], row["chosen"], tools=row.get("tools")) for row in rows]
    found = cross.predict([as_chat(row) for row in rows], processing_kwargs={"chat_template": tools})
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    pairs = [(pair["prompt"], pair["chosen"]) for pair in make_pairs(6)]
    assert cross.predict(pairs).tolist() == pytest.approx(rm.score(*map(list, zip(*pairs))), abs=1e-5)
    if isinstance(rows[0]["prompt"], str):
        texts = [rm.encoder.render(row["prompt"], row["chosen"]) for row in rows]
        whole = [[{"role": "user", "content": text}] for text in texts]
        assert cross.predict(whole).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_the_snippets_of_the_model_card_agree(name, trained_folder, monkeypatch):
    folder, _ = trained_folder(name)
    monkeypatch.chdir(folder.parent)
    snippets = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    rewards = []

    class Names(dict):
        def __setitem__(self, name, value):
            super().__setitem__(name, value)
            if name == "reward":
                rewards.append(float(value))

    names = Names()
    for snippet in snippets:
        if find_spec("sentence_transformers") or "sentence_transformers" not in snippet:
            exec(snippet, {}, names)
    assert len(rewards) == 3 + 2 * name.startswith("plain") + bool(find_spec("sentence_transformers"))
    assert rewards == pytest.approx([rewards[0]] * len(rewards), abs=1e-5)


def test_a_pair_is_refused_as_long_as_nobody_knows_how_it_is_read():
    tokenizer = family("chatml")
    encoder = RewardEncoder(tokenizer, prepare_tokenizer(tokenizer))
    pair = [{"role": "query", "content": "U1"}, {"role": "document", "content": "A1"}]
    with pytest.raises(Exception, match="user and assistant"):
        tokenizer.apply_chat_template(pair)
    for kind, expected in {"text": "U1 A1<|endoftext|>", "messages": complete("chatml")}.items():
        encoder.trained_on(kind)
        assert tokenizer.apply_chat_template(pair, tokenize=False) == expected
        assert encoder.encode(["U1"], ["A1"]).ids == [tokenizer.apply_chat_template(pair)["input_ids"]]


# as it was saved before templates rendered BOS and EOS
EARLIER = """{#- wrapped by reward_kit: outer BOS and EOS are left to the tokenizer -#}{%- set reward_text %}
@ORIGINAL@{{ '' }}{% endset -%}
{%- set reward = namespace(text=reward_text, bos="<s>", eos="</s>", cut=false) -%}
{%- if reward.bos and reward.text.startswith(reward.bos) -%}
{%- set reward.text = reward.text[reward.bos | length:] -%}{%- endif -%}
{%- if reward.eos and not add_generation_prompt and reward.text.rstrip().endswith(reward.eos) -%}
{%- set reward.text = reward.text.rstrip()[:-(reward.eos | length)] -%}{%- endif -%}
{{- reward.text -}}"""


@pytest.mark.parametrize("name", ["mistral", "zephyr", "llama2"])
def test_folders_that_were_saved_before(name, tmp_path):
    tokenizer = family(name)
    encoding = prepare_tokenizer(tokenizer)
    expected = RewardEncoder(tokenizer, encoding).encode([TURNS, *TEXTS]).ids
    tokenizer.chat_template = EARLIER.replace("@ORIGINAL@", FAMILIES[name][0])
    loaded = reload(tokenizer, tmp_path)
    body = (
        loaded.apply_chat_template([{"role": "system", "content": "S"}, *TURNS], tokenize=False)
        if name == "zephyr"
        else loaded.apply_chat_template(TURNS, tokenize=False)
    )
    assert not body.startswith("<s>") and not body.endswith("</s>")
    earlier = RewardEncoder(loaded, encoding)
    if name != "llama2":  # its default system prompt was cut
        assert earlier.encode([TURNS, *TEXTS]).ids == expected
    again = RewardEncoder(loaded, prepare_tokenizer(loaded))  # trained further, it is saved as others
    assert again.encode([TURNS, *TEXTS]).ids == expected
    assert loaded.apply_chat_template(TURNS, tokenize=False) == complete(name)


def test_a_text_with_its_own_bos_or_eos_has_one():
    encoder = make_encoder()
    (expected,) = encoder.encode(["What? That."]).ids
    for text in ("<s>What? That.", "What? That.</s>", "<s>What? That.</s>"):
        assert encoder.encode([text]).ids == [expected], text
    assert encoder.encode(["<s>What?"], ["That.</s>"]).ids == [expected]
    split = make_encoder()
    split.tokenizer.split_special_tokens = True  # then it is text as any other
    (literal,) = split.encode(["<s>What?"]).ids
    assert split.tokenizer.decode(literal) == "<s><s>What?</s>" and literal.count(split.prefix[0]) == 1
