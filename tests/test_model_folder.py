"Loading models, and what stands beside their weights; tiny random models, made here."

import copy
import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_encoding import bert_tokenizer, family, make_encoder, make_model
from trainer_world import make_pairs
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from reward_kit import RewardConfig, RewardModel, RewardTrainer
from reward_kit.data.files import write_whole
from reward_kit.model.model_folder import (
    ModelCard,
    ModelLoadError,
    RewardHead,
    RewardMetadata,
    load_policy_backbone,
    load_reward_backbone,
    merged_model,
    resolve_model,
)

# ---- loading


@pytest.fixture
def causal(tmp_path):
    tokenizer = family("mistral")
    make_model("llama", tokenizer, auto=AutoModelForCausalLM).save_pretrained(tmp_path / "causal")
    tokenizer.save_pretrained(tmp_path / "causal")
    return tmp_path / "causal"


def test_new_head_is_seeded_and_scaled(causal):
    model, tokenizer = load_reward_backbone(causal, new_head=True, seed=1)
    same, other = (
        load_reward_backbone(causal, new_head=True, seed=1)[0],
        load_reward_backbone(causal, new_head=True, seed=2)[0],
    )
    assert (
        model.reward_head_is_new
        and torch.equal(model.score.weight, same.score.weight)
        and not torch.equal(model.score.weight, other.score.weight)
    )
    assert (
        model.config.num_labels == 1
        and model.config.problem_type == "regression"
        and model.dtype == torch.float32
    )
    state = torch.get_rng_state()
    load_reward_backbone(causal, new_head=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_settings_of_the_configuration_go_where_transformers_puts_them(causal):
    settings = {
        "attention_dropout": 0.25,
        "attn_implementation": "eager",
        "dtype": "bfloat16",
        "use_cache": False,
    }
    ours, _ = load_reward_backbone(causal, new_head=True, num_labels=1, **settings)
    theirs = AutoModelForSequenceClassification.from_pretrained(causal, num_labels=1, **settings)
    for model in (ours, theirs):
        assert model.config.attention_dropout == model.model.layers[0].self_attn.attention_dropout == 0.25
        assert (
            model.config._attn_implementation == "eager"
            and model.dtype == torch.bfloat16
            and model.config.use_cache is False
        )
    assert load_reward_backbone(causal, new_head=True)[0].config.attention_dropout == 0, (
        "only where asked for"
    )
    assert load_reward_backbone(causal, new_head=True, torch_dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    assert (
        load_reward_backbone(causal, new_head=True, cache_dir=causal / "cache", token=None)[
            0
        ].config.num_labels
        == 1
    )


def test_settings_that_nothing_knows_are_one_clear_line(causal):
    with pytest.raises(ModelLoadError, match="attention_drpout") as error:
        load_reward_backbone(causal, new_head=True, attention_drpout=0.1)
    assert "cannot be loaded" in one_line(error)
    with pytest.raises(ModelLoadError, match="num_labels=3") as error:
        load_reward_backbone(causal, new_head=True, num_labels=3)
    assert "one number" in one_line(error)


def test_head_scale_for_a_wide_model():
    model = torch.nn.Module()
    model.score = torch.nn.Linear(4095, 1)
    RewardHead(model).draw(0)
    assert model.score.weight.std().item() == pytest.approx(1 / 64, rel=0.05) and model.score.bias.item() == 0


def test_reward_model_keeps_its_head(causal, tmp_path):
    model, tokenizer = load_reward_backbone(causal, new_head=True)
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    for new_head in (True, False):
        loaded, _ = load_reward_backbone(tmp_path / "reward", new_head=new_head, seed=5)
        assert torch.equal(loaded.score.weight, model.score.weight) and not loaded.reward_head_is_new


def test_encoder_backbone(tmp_path):
    tokenizer = bert_tokenizer()
    from transformers import AutoModel

    make_model("bert", tokenizer, auto=AutoModel).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = load_reward_backbone(tmp_path, new_head=True)
    assert model.reward_head_is_new and not RewardHead(model).linear.bias.any()
    with pytest.raises(ModelLoadError, match="not a reward model"):
        load_reward_backbone(tmp_path)


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 300
    return text


def test_load_errors_are_one_clear_line(causal, tmp_path, monkeypatch):
    with pytest.raises(ModelLoadError) as error:
        load_reward_backbone(causal)
    assert "not a reward model" in one_line(error) and "LlamaForCausalLM" in one_line(error)
    with pytest.raises(ModelLoadError) as error:
        load_reward_backbone("./no-such-folder")
    assert "does not exist" in one_line(error)
    monkeypatch.setattr("reward_kit.model.model_folder._hub_reachable", lambda: False)
    with pytest.raises(ModelLoadError) as error:
        load_reward_backbone("some-org/no-such-model-here")
    assert "some-org/no-such-model-here" in one_line(error) and "cannot be reached" in one_line(error)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelLoadError) as error:
        load_reward_backbone(tmp_path / "empty")
    assert "config.json" in one_line(error)
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelLoadError) as error:
        resolve_model(tmp_path / "empty")
    assert "adapter" in one_line(error)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelLoadError) as error:
        resolve_model(tmp_path / "file")
    assert "is a file" in one_line(error)


def test_claimed_reward_model_without_head_weights(causal):
    path = causal / "config.json"
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            config
            | {
                "architectures": ["LlamaForSequenceClassification"],
                "id2label": {"0": "LABEL_0"},
                "label2id": {"LABEL_0": 0},
            }
        )
    )
    for new_head in (False, True):
        with pytest.raises(ModelLoadError, match=r"1 are not saved.* \(score.weight"):
            load_reward_backbone(causal, new_head=new_head)
    path.write_text(
        json.dumps(
            config
            | {
                "architectures": ["LlamaForSequenceClassification"],
                "id2label": {"0": "a", "1": "b"},
                "label2id": {"a": 0, "b": 1},
            }
        )
    )
    with pytest.raises(ModelLoadError, match="2 labels"):
        load_reward_backbone(causal)


def test_missing_tokenizer_and_damaged_files(causal):
    own = AutoTokenizer.from_pretrained(causal)
    for file in causal.glob("token*"):
        file.unlink()
    with pytest.raises(ModelLoadError) as error:
        load_reward_backbone(causal, new_head=True)
    assert "tokenizer.json" in one_line(error)
    assert load_reward_backbone(causal, new_head=True, tokenizer=own)[1] is own
    (causal / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0 garbage")
    with pytest.raises(ModelLoadError) as error:
        load_reward_backbone(causal, new_head=True, tokenizer=own)
    assert "cannot be loaded" in one_line(error)
    (causal / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError) as error:
        load_reward_backbone(causal, new_head=True, tokenizer=own)
    assert "safetensors" in one_line(error)


def test_hub_errors_are_explained():
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    def wrapped(cls, text):
        inner = cls.__new__(cls)
        Exception.__init__(inner, text)
        with pytest.raises(ModelLoadError) as explained, ModelLoadError.around("org/model"):
            raise OSError("could not load") from inner
        return str(explained.value)

    assert "licence" in wrapped(GatedRepoError, "401") and "hf auth login" in wrapped(GatedRepoError, "401")
    assert "cannot be reached" in wrapped(LocalEntryNotFoundError, "no") and "check the name" in wrapped(
        RepositoryNotFoundError, "404"
    )


# ---- weights that do not fit


def rewrite(folder, change=None, **config):
    "Other weights, other settings in a saved model."
    if change:
        save_file(
            change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"}
        )
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def renamed(change):
    return lambda weights: {change(name): tensor for name, tensor in weights.items()}


def without(part):
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


@pytest.fixture
def reward(causal, tmp_path):
    model, tokenizer = load_reward_backbone(causal, new_head=True)
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    return tmp_path / "reward"


LOADS = {
    "base": lambda folder: load_reward_backbone(folder, new_head=True),
    "policy": load_policy_backbone,
    "reward": RewardModel.from_pretrained,
}
MISFITS = {
    "a lost layer": (dict(change=without("layers.1.")), r"9 are not saved.*model.layers.1.input_layernorm"),
    "one lost weight": (dict(change=without("layers.0.mlp.up_proj")), "1 are not saved.*up_proj"),
    "an unknown prefix": (dict(change=renamed("net.".__add__)), "are not saved.*or names prefixes"),
    "more layers": (dict(num_hidden_layers=3), r"9 are not saved.*config.json had more layers"),
    "fewer layers": (dict(num_hidden_layers=1), r"9 are not used.*fewer layers.*layers.1."),
    "other sizes": (dict(intermediate_size=40), "6 have another shape.*other sizes.*mlp"),
}


@pytest.mark.parametrize("kind", LOADS)
@pytest.mark.parametrize("case", MISFITS)
def test_weights_that_do_not_fit_are_an_error(case, kind, causal, reward):
    folder, (edits, message) = reward if kind == "reward" else causal, MISFITS[case]
    LOADS[kind](folder)
    rewrite(folder, **edits)
    with pytest.raises(ModelLoadError, match=message) as error:
        LOADS[kind](folder)
    one_line(error)


@pytest.mark.parametrize("kind", LOADS)
@pytest.mark.parametrize(
    "wrap",
    [
        "_orig_mod.".__add__,
        "module._orig_mod.".__add__,
        "language_model.".__add__,
        lambda name: name.replace("model.layers", "model.language_model.layers"),
        lambda name: name.replace(".mlp.", "._orig_mod.mlp."),
    ],
)
def test_names_that_wrappers_leave_are_known(wrap, kind, causal, reward, tmp_path):
    folder = reward if kind == "reward" else causal
    model = lambda: getattr(LOADS[kind](folder), "model", None) or LOADS[kind](folder)[0]
    before = model().state_dict()
    rewrite(folder, renamed(wrap))
    after = model()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.state_dict().items())
    after.save_pretrained(tmp_path / "again")  # by the model's own names
    assert load_file(tmp_path / "again" / "model.safetensors").keys() <= before.keys()


def test_a_tokenizer_of_another_model_is_named(causal):
    rewrite(
        causal,
        lambda weights: {k: v[:200] if v.shape[0] > 256 else v for k, v in weights.items()},
        vocab_size=200,
    )
    for load in (LOADS["base"], LOADS["policy"]):
        with pytest.raises(
            ModelLoadError, match="embeddings have 200 tokens, its tokenizer .* belongs to it"
        ):
            load(causal)


SMALL = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
    n_embd=16, n_layer=2, n_head=4, d_model=16, n_layers=2, n_heads=4, ffn_dim=24, word_embed_proj_dim=16,
    num_layers=2, num_heads=4, ffn_hidden_size=24, max_position_embeddings=64, n_positions=64, rotary_dim=4,
    moe_intermediate_size=8, num_experts=2, num_local_experts=2, n_routed_experts=2, num_experts_per_tok=1,
    n_group=1, topk_group=1, q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4,
    v_head_dim=4, first_k_dense_replace=1, global_head_dim=4, hidden_size_per_layer_input=4,
    vocab_size_per_layer_input=512, num_kv_shared_layers=0, mamba_n_heads=4, mamba_d_head=8, state_size=4,
)  # fmt: skip
WITH_A_CLASS = """llama mistral mixtral qwen2 qwen3 gemma2 gemma3_text gpt2 gpt_neox gptj gpt_bigcode opt
bloom falcon mpt phi phi3 stablelm starcoder2 olmo2 deepseek_v3 gpt_oss bert roberta electra""".split()
WITHOUT = "granite granitemoe cohere2 olmoe glm4_moe lfm2 gemma4_text llama4_text mamba ernie4_5".split()


def small(kind, tokenizer, folder):
    "A language model of a type, with random weights."
    known = AutoConfig.for_model(kind)
    given = {name: value for name, value in SMALL.items() if name in known.to_dict() or hasattr(known, name)}
    ids = dict(pad_token_id=tokenizer.pad_token_id, bos_token_id=0, eos_token_id=1)
    if kind == "gemma4_text":
        given["layer_types"] = ["sliding_attention", "full_attention"]
    config = type(known)(**given | ids | {"vocab_size": len(tokenizer)})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("kind", WITH_A_CLASS + WITHOUT)
def test_no_type_is_a_false_alarm_and_every_type_has_a_head(kind, tmp_path):
    small(kind, family("mistral"), tmp_path / "base")
    load_policy_backbone(tmp_path / "base")
    model, tokenizer = load_reward_backbone(tmp_path / "base", new_head=True)
    assert model.reward_head_is_new and RewardHead(model).linear.out_features == 1
    model.save_pretrained(tmp_path / "reward")
    loaded, _ = load_reward_backbone(tmp_path / "reward", tokenizer=tokenizer)
    saved = model.state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in loaded.state_dict().items())


def settings(folder, **more):
    return RewardConfig(
        str(folder), use_cpu=True, max_steps=1, save_strategy="no", disable_tqdm=True, show_plan=False, **more
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["granite", "lfm2", "mamba"])
def test_a_type_without_a_class_is_trained_saved_and_scores_the_same(kind, tmp_path, caplog):
    small(kind, family("mistral"), tmp_path / "base")
    trainer = RewardTrainer(str(tmp_path / "base"), settings(tmp_path / "out"), train_dataset=make_pairs(8))
    trainer.train()
    trainer.save_model()
    rm = RewardModel.from_pretrained(tmp_path / "out", device="cpu")
    ids = rm.encode(["Why?"], ["So."])[0]
    with torch.no_grad():
        batch = trainer.data_collator([{"sequences": [ids]}])
        trained = trainer.model.eval()(**batch.model_inputs()).logits.item()
    assert rm.score("Why?", "So.") == pytest.approx(trained, abs=1e-5)


def same_decoder(base, tokenizer, folder):
    "What was saved is what is loaded with a head, and saved and loaded again."
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    loaded, _ = load_reward_backbone(folder / "base", new_head=True)
    loaded.save_pretrained(folder / "reward")
    again, _ = load_reward_backbone(folder / "reward", tokenizer=tokenizer)
    known = base.base_model.state_dict()
    for found in (loaded, again):
        weights = found.base_model.state_dict()
        assert weights.keys() == known.keys() and all(torch.equal(weights[n], known[n]) for n in known)
    assert torch.equal(RewardHead(loaded).linear.weight, RewardHead(again).linear.weight)


@pytest.mark.parametrize("kind", "bailing_hybrid hy_v4 inkling2_text falcon_h1 mamba2 longcat_flash".split())
def test_types_whose_weights_have_other_names_in_files_get_a_head(kind, tmp_path, monkeypatch):
    "The names are translated by type and class, which ours must say."
    tokenizer = family("mistral")
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import architectures

    base = AutoModelForCausalLM.from_config(architectures.sized(kind, len(tokenizer)))
    same_decoder(base, tokenizer, tmp_path)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_models_that_see_are_read_as_text(kind, tmp_path):
    tokenizer, known = family("mistral"), AutoConfig.for_model(kind)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    text = dict(
        hidden_size=32, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4, head_dim=8,
        num_key_value_heads=4, vocab_size=len(tokenizer), rope_parameters=rope,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    eyes = dict(
        depth=1, embed_dim=32, hidden_size=32, num_heads=2, intermediate_size=16, out_hidden_size=32,
        mlp_ratio=1, num_position_embeddings=16, deepstack_visual_indexes=[0], fullatt_block_indexes=[0],
    )  # fmt: skip
    own = type(known.vision_config)
    eyes = {name: value for name, value in eyes.items() if hasattr(known.vision_config, name)}
    config = type(known)(text_config=text, vision_config=own(**eyes), tie_word_embeddings=False)
    base = transformers.AutoModelForImageTextToText.from_config(config)
    same_decoder(base, tokenizer, tmp_path)
    rm = RewardModel.from_pretrained(tmp_path / "reward", device="cpu")
    first, second = rm.score_ids([[5, 6, 7, 8], [5, 6, 9]])
    assert first != second


# ---- heads of one's own


@pytest.mark.parametrize(
    "head",
    [
        torch.nn.Linear(32, 1),
        torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)),
        torch.nn.Sequential(torch.nn.Linear(32, 1, bias=False)),
    ],
)
def test_a_head_that_would_not_be_loaded_is_refused_before_training_and_on_loading(head, reward, tmp_path):
    model, tokenizer = load_reward_backbone(reward)
    RewardTrainer(model, settings(tmp_path / "fits"), train_dataset=make_pairs(4), processing_class=tokenizer)
    model.score = head
    with pytest.raises(ValueError, match=r"has the weights score.*loads score.weight alone"):
        RewardTrainer(
            model, settings(tmp_path / "out"), train_dataset=make_pairs(4), processing_class=tokenizer
        )
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS"))
    with pytest.raises(ValueError, match=r"has the weights score.*loads score.weight alone"):
        RewardTrainer(
            adapted, settings(tmp_path / "out"), train_dataset=make_pairs(4), processing_class=tokenizer
        )
    model = adapted.unload()
    model.score = head
    model.save_pretrained(reward)
    for new_head in (True, False):
        with pytest.raises(ModelLoadError, match=r"score\."):
            load_reward_backbone(reward, new_head=new_head)


class Flavoured(transformers.LlamaForSequenceClassification):
    "A class that needs more than a configuration."

    def __init__(self, config, flavour):
        super().__init__(config)
        self.flavour = flavour


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_class_of_ones_own_is_saved_as_the_class_that_loads_it(lora, reward, tmp_path):
    known, tokenizer = load_reward_backbone(reward)
    model = Flavoured(known.config, "sweet")
    model.load_state_dict(known.state_dict())
    adapter = LoraConfig(task_type="SEQ_CLS") if lora else None
    trainer = RewardTrainer(
        model, settings(tmp_path / "out"), train_dataset=make_pairs(4), processing_class=tokenizer,
        peft_config=adapter,
    )  # fmt: skip
    trainer.save_model(str(tmp_path / "saved"))
    found = [RewardModel.from_pretrained(path).model for path in (tmp_path / "saved", reward)]
    ids = torch.tensor([[5, 6, 7]])
    assert found[0](ids).logits.item() == pytest.approx(found[1](ids).logits.item(), abs=1e-6)


# ---- quantised weights


def test_a_quantised_base_is_made_whole_before_its_adapter_is_added(reward, tmp_path):

    model, _ = load_reward_backbone(reward)
    adapted = get_peft_model(model, RewardHead(model).trained_by(LoraConfig(r=2, target_modules=["q_proj"])))
    torch.nn.init.normal_(adapted.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight)
    exact = merged_model(adapted, tmp_path, "base").state_dict()
    base = adapted.get_base_model()
    base.is_quantized = True
    asked = []

    def dequantize(self, dtype=None):
        assert not any("lora" in name for name, _ in self.named_parameters()), "the adapter is added later"
        asked.append(dtype)
        return self.to(dtype)

    type(base).dequantize, own = dequantize, type(base).dequantize
    try:
        merged = merged_model(adapted, tmp_path, "base").state_dict()
    finally:
        type(base).dequantize = own
    assert asked == [torch.float32] and all(torch.allclose(exact[k], merged[k], atol=1e-6) for k in exact)


class ComputesInBfloat16(torch.nn.Linear):
    "As bitsandbytes' of 4 bits: another precision than that of its weights."

    compute_dtype = torch.bfloat16

    def forward(self, hidden):
        parts = (part.to(self.compute_dtype) for part in (hidden, self.weight))
        return torch.nn.functional.linear(*parts).to(hidden.dtype)


@pytest.mark.parametrize("precision", ["weights", "products"])
def test_the_rounding_of_a_training_is_not_taken_for_a_fault_of_its_merge(precision, reward, tmp_path):
    short, tokenizer = load_reward_backbone(reward, dtype=torch.bfloat16)
    torch.nn.init.normal_(short.score.weight)
    short.save_pretrained(reward)
    exact, _ = load_reward_backbone(reward)
    model = short if precision == "weights" else copy.deepcopy(exact)
    if precision == "products":
        for layer in model.model.layers:
            wide = layer.mlp.up_proj
            layer.mlp.up_proj = ComputesInBfloat16(wide.in_features, wide.out_features, bias=False)
            layer.mlp.up_proj.load_state_dict(wide.state_dict())
    pairs = make_pairs(8)
    trainer = RewardTrainer(
        model, settings(tmp_path / "out"), train_dataset=pairs, eval_dataset=pairs,
        processing_class=tokenizer, peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
    )  # fmt: skip
    rounded = trainer.predict(pairs).predictions
    trainer.save_model(str(tmp_path / "saved"))
    about = RewardMetadata.load(tmp_path / "saved")
    assert about.extra["merge"]["max_score_difference"] < 1e-5 and about.normalization
    ids, saved = torch.tensor([[5, 6, 7, 8]]), RewardModel.from_pretrained(tmp_path / "saved")
    assert saved.model(ids).logits.item() == pytest.approx(exact(ids).logits.item(), abs=1e-5)
    assert (trainer.predict(pairs).predictions == rounded).all(), "the training goes on as before"


@pytest.mark.parametrize("computes", [torch.float32, torch.bfloat16], ids=str)
def test_qlora_keeps_its_scores(computes, causal, tmp_path):
    pytest.importorskip("bitsandbytes", reason="quantised weights need bitsandbytes")
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=computes)
    trainer = RewardTrainer(
        str(causal), settings(tmp_path / "out", learning_rate=1e-2), train_dataset=make_pairs(8),
        quantization_config=four_bits, peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    assert RewardMetadata.load(tmp_path / "out").extra["merge"]["max_score_difference"] < 0.003


# ---- metadata and card


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"calibration": {"temperature": -1.0}}, "temperature is -1.0"),
        ({"calibration": {"temperature": 0}}, "temperature is 0"),
        ({"calibration": {"temperature": float("inf")}}, "temperature is inf"),
        ({"calibration": {"temperature": "1"}}, "temperature is '1'"),
        ({"normalization": {"mean": 0.0, "std": 0.0}}, "std is 0.0"),
        ({"normalization": {"mean": 0.0, "std": float("nan")}}, "std is nan"),
        ({"normalization": {"mean": None, "std": 1.0}}, "mean is None"),
        ({"normalization": [0, 1]}, "normalization"),
        ({"base": "toy"}, "base"),
        ({"encoding": {"max_length": "64"}}, "max_length"),
        ({"encoding": {"max_length": 64, "flavour": 1}}, "flavour"),
        ({"encoding": {"overflow": "wrap"}}, "overflow='wrap'"),
        ({"encoding": "plain"}, "must be a mapping"),
        ({"schema_version": None}, "schema version None"),
    ],
)
def test_values_that_cannot_be_are_refused(wrong, message, tmp_path):
    (tmp_path / "reward_kit.json").write_text(json.dumps({"schema_version": "1.0"} | wrong))
    with pytest.raises(ValueError, match="reward_kit.json cannot be used: ") as error:
        RewardMetadata.load(tmp_path)
    assert message in str(error.value)


def test_a_folder_that_lost_its_metadata_is_not_read_as_a_strangers(causal, tmp_path):
    trainer = RewardTrainer(str(causal), settings(tmp_path / "out"), train_dataset=make_pairs(4))
    trainer.save_model()
    rm = RewardModel.from_pretrained(tmp_path / "out", device="cpu")
    score, encoding = rm.score("Why?", "So."), rm.encoder.encoding
    path = tmp_path / "out" / "reward_kit.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"encoding": encoding.to_dict() | {"max_length": 9999}}))
    with pytest.raises(ValueError, match="max_length=9999: this model has"):
        RewardModel.from_pretrained(tmp_path / "out")
    for lost in (None, '{"schema_version": "1.0"}'):
        path.unlink() if lost is None else path.write_text(lost)
        with pytest.raises(ModelLoadError, match="has lost the encoding in its reward_kit.json"):
            RewardModel.from_pretrained(tmp_path / "out")
    rm = RewardModel.from_pretrained(tmp_path / "out", device="cpu", encoding=encoding)
    assert rm.score("Why?", "So.") == score


def test_every_weight_and_the_base_have_a_hash(causal, reward):
    rm = RewardModel.from_pretrained(reward, device="cpu")
    before, seen = rm.fingerprint(), set()
    for weight in rm.model.parameters():
        with torch.no_grad():
            weight.view(-1)[weight.numel() // 3] += 1e-3
        seen.add(rm.fingerprint())
    assert before not in seen and len(seen) == len(list(rm.model.parameters()))
    hashes = [
        RewardMetadata.weights_hash(
            load_reward_backbone(causal, new_head=True, seed=seed)[0].model.state_dict()
        )
        for seed in (0, 1)
    ]
    assert hashes[0] == hashes[1], "a head is no part of the base"


def test_metadata_round_trip(tmp_path):
    assert RewardMetadata.load(tmp_path) is None
    data = RewardMetadata(
        encoding=make_encoder(max_length=77).encoding,
        normalization={"mean": 0.1, "std": 1.0, "n": 5, "data_hash": "x"},
        loss={"name": "bradley_terry", "parameters": {}},
    )
    data.save(tmp_path)
    loaded = RewardMetadata.load(tmp_path)
    assert loaded == data and loaded.encoding.max_length == 77 and loaded.versions["torch"]
    path = tmp_path / "reward_kit.json"
    raw = json.loads(path.read_text())
    assert list(raw)[0] == "schema_version"
    path.write_text(json.dumps(raw | {"schema_version": "1.9", "new_key": [1]}))
    assert RewardMetadata.load(tmp_path).to_dict()["new_key"] == [1]
    path.write_text(json.dumps(raw | {"schema_version": "2.0"}))
    with pytest.raises(ValueError, match="update reward_kit"):
        RewardMetadata.load(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be used: Expecting"):
        RewardMetadata.load(tmp_path)


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    write_whole(tmp_path / "f", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_whole(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["f"]


def test_card_sections(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Model\n")
    ModelCard(tmp_path).replace("training", "## Training\n\nloss 0.5 \\1")
    ModelCard(tmp_path).replace("evaluation", "## Evaluation\n\naccuracy 0.7")
    ModelCard(tmp_path).replace("training", "## Training\n\nloss 0.4 \\1 \\g<0>")
    text = (tmp_path / "README.md").read_text()
    assert (
        text.startswith("---\nlicense: mit\n---\n# Model\n")
        and text.count("## Training") == 1
        and "0.5" not in text
    )
    assert "-->\n## Training\n\nloss 0.4 \\1 \\g<0>\n<!--" in text and text.count("accuracy 0.7") == 1
    assert ModelCard(tmp_path / "nowhere").text == ""
