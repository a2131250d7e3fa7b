"Loading models, and what stands beside their weights; tiny random models, made here."

import json
import os

import pytest
import torch
from test_encoding import bert_tokenizer, family, make_encoder, make_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from reward_kit.data.files import write_whole
from reward_kit.model.model_folder import (
    ModelCard,
    ModelLoadError,
    RewardHead,
    RewardMetadata,
    load_reward_backbone,
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
    with pytest.raises(ModelLoadError, match="no reward head"):
        load_reward_backbone(causal)
    model, _ = load_reward_backbone(causal, new_head=True)
    assert model.reward_head_is_new
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


# ---- metadata and card


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
    assert loaded.without_scale().normalization is None and loaded.normalization
    path = tmp_path / "reward_kit.json"
    raw = json.loads(path.read_text())
    assert list(raw)[0] == "schema_version"
    path.write_text(json.dumps(raw | {"schema_version": "1.9", "new_key": [1]}))
    assert RewardMetadata.load(tmp_path).to_dict()["new_key"] == [1]
    path.write_text(json.dumps(raw | {"schema_version": "2.0"}))
    with pytest.raises(ValueError, match="update reward_kit"):
        RewardMetadata.load(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
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
    assert ModelCard(tmp_path).section(
        "training"
    ) == "## Training\n\nloss 0.4 \\1 \\g<0>" and "0.7" in ModelCard(tmp_path).section("evaluation")
    assert (
        ModelCard(tmp_path).section("data") is None
        and ModelCard(tmp_path / "nowhere").section("data") is None
    )
