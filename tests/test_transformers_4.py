"""A saved folder gives the same rewards under transformers 4, asked by the Python that TRANSFORMERS_4 names
(an environment with transformers 4.51 or newer, and torch)."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from reward_kit.data.playground import playground_base
from reward_kit.model.model_folder import saved_whole
from reward_kit.scores.inference import RewardModel

TEXTS = ["What is a bow? " + "It is the front of a ship. " * n for n in (1, 3, 12)]
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 500000.0,
}  # fmt: skip
KINDS = {  # name -> type, rotations, other settings
    "llama": ("llama", {"rope_type": "default", "rope_theta": 500.0}, {}),
    "llama, longer": ("llama", LLAMA3, {}),
    "llama, linear": ("llama", {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}, {}),
    "qwen2": ("qwen2", {"rope_type": "default", "rope_theta": 1e6}, {}),
    "qwen3": ("qwen3", {"rope_type": "default", "rope_theta": 1e6}, {"head_dim": 8}),
    "mistral": ("mistral", {"rope_type": "default", "rope_theta": 777.0}, {"head_dim": 8}),
    "gemma2": ("gemma2", {"rope_type": "default", "rope_theta": 777.0}, {"head_dim": 8}),
    "phi3": ("phi3", {"rope_type": "default", "rope_theta": 777.0, "partial_rotary_factor": 0.5}, {}),
    "gpt2": ("gpt2", None, {}),
}
SCORE = """
import json, sys, torch, transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer
assert transformers.__version__.startswith("4."), transformers.__version__
found = {}
for folder in sys.argv[2:]:
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text, return_tensors="pt") for text in json.loads(sys.argv[1])]
    with torch.no_grad():
        rewards = [model.eval()(input_ids=own.input_ids).logits.item() for own in ids]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=True)
    found[folder] = {"rewards": rewards, "chat": chat, "lost": sorted(info["missing_keys"])}
print(json.dumps(found))
"""


def save(folder: Path, kind: str, rotation, more: dict) -> None:
    "A tiny model with random weights, a head among them, and the playground's tokenizer."
    tokenizer = AutoTokenizer.from_pretrained(playground_base())
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    given = sizes | {"num_key_value_heads": 2, "vocab_size": len(tokenizer), "num_labels": 1} | more
    config = AutoConfig.for_model(kind, pad_token_id=tokenizer.pad_token_id, **given)
    if rotation:
        config.rope_parameters = rotation
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    with saved_whole(folder) as place:
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    work = tmp_path_factory.mktemp("kinds")
    for number, (kind, rotation, more) in enumerate(KINDS.values()):
        save(work / str(number), kind, rotation, more)
    return {name: work / str(number) for number, name in enumerate(KINDS)}


@pytest.mark.parametrize("name", KINDS)
def test_transformers_5_still_reads_what_it_wrote(folders, name):
    kind, rotation, _ = KINDS[name]
    config = AutoConfig.from_pretrained(folders[name])
    assert config.model_type == kind and getattr(config, "rope_parameters", None) == rotation
    written = json.loads((folders[name] / "config.json").read_text())
    assert written.get("rope_theta") == (rotation and rotation["rope_theta"])
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    original = AutoTokenizer.from_pretrained(playground_base())
    assert tokenizer.extra_special_tokens == original.extra_special_tokens
    assert [tokenizer(text).input_ids for text in TEXTS] == [original(text).input_ids for text in TEXTS]


@pytest.mark.skipif("TRANSFORMERS_4" not in os.environ, reason="TRANSFORMERS_4 names no Python")
def test_rewards_are_those_of_transformers_4(folders):
    command = [os.environ["TRANSFORMERS_4"], "-c", SCORE, json.dumps(TEXTS), *map(str, folders.values())]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    tokenizer = AutoTokenizer.from_pretrained(playground_base())
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=True)
    for name, folder in folders.items():
        rm = RewardModel.from_pretrained(folder, device="cpu")
        with torch.no_grad():
            ids = [torch.tensor([rm.tokenizer(text).input_ids]) for text in TEXTS]
            own = [rm.model(input_ids=row).logits.item() for row in ids]
        assert found[str(folder)]["rewards"] == pytest.approx(own, abs=1e-5), name
        assert found[str(folder)]["lost"] == [] and found[str(folder)]["chat"] == chat["input_ids"]
