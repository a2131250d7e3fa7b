"A conversation with tool calls has the same token ids in training, scoring, evaluation and PPO."

import json

import pytest
import torch
import transformers
from datasets import Dataset, IterableDataset
from trainer_world import make_tokenizer

from reward_kit import RewardMetadata, RewardModel, load_preferences
from reward_kit.model.encoded_data import encode_dataset
from reward_kit.model.encoding import RewardEncoder, prepare_tokenizer
from reward_kit.rl.rollouts import Prompts
from reward_kit.trust.agreement import score_preferences

CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Bonn", "days": 1.5}},
}
PROMPT = [
    {"role": "user", "content": "Will it rain in Bonn?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "no rain", "tool_call_id": "c1", "name": "weather"},
]
GOOD = [{"role": "assistant", "content": "It will stay dry.", "reasoning_content": "no rain, said the tool"}]
AGAIN = [{"role": "assistant", "content": "", "tool_calls": [CALL | {"id": "c2"}]}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
ROWS = [
    {"prompt": PROMPT, "chosen": GOOD, "rejected": AGAIN, "tools": TOOLS},
    {"prompt": PROMPT[:1], "chosen": AGAIN, "rejected": GOOD},
]
# every key of a message shows in the text
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m | tojson }}\n{% endfor %}{% if"
    " add_generation_prompt %}{'role': 'assistant'{% endif %}"
)


@pytest.fixture
def model(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = transformers.LlamaConfig(vocab_size=400, num_labels=1, max_position_embeddings=2048, **sizes)
    network = transformers.LlamaForSequenceClassification(config)
    RewardMetadata(encoding=prepare_tokenizer(tokenizer, network)).save(tmp_path)
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return RewardModel.from_pretrained(tmp_path)


@pytest.fixture
def preferences(tmp_path):
    path = tmp_path / "calls.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return load_preferences(path)


def by_hand(tokenizer, row, response):
    "What the template makes of the row as it stands in the file."
    found = tokenizer.apply_chat_template(row["prompt"] + response, tools=row.get("tools"))
    return found["input_ids"]


@pytest.fixture
def expected(model):
    return [[by_hand(model.tokenizer, row, row[side]) for side in ("chosen", "rejected")] for row in ROWS]


@pytest.fixture
def seen(monkeypatch):
    "Token ids of everything that is encoded from now on."
    found, encode = [], RewardEncoder.encode

    def recorded(self, *args, **kwargs):
        batch = encode(self, *args, **kwargs)
        found.extend(batch.ids)
        return batch

    monkeypatch.setattr(RewardEncoder, "encode", recorded)
    return found


def test_training(model, preferences, expected):
    data, report = encode_dataset(preferences, model.encoder)
    assert data["sequences"][:] == expected and report.truncated == 0
    stream = IterableDataset.from_generator(lambda: iter(ROWS))
    assert [row["sequences"] for row in encode_dataset(stream, model.encoder)[0]] == expected


def test_scoring(model, expected, seen):
    for row in ROWS:
        model.score([row["prompt"]] * 2, [row["chosen"], row["rejected"]], tools=[row.get("tools")] * 2)
    assert seen == sum(expected, [])


def test_evaluation(model, preferences, expected, seen):
    score_preferences(model, preferences)
    assert seen == sum(expected, [])


def test_ppo(model, preferences, expected):
    rows = Prompts.load(preferences)
    prompts = rows.encode(model.tokenizer)
    for row, ids in zip(ROWS, prompts, strict=True):
        text = model.tokenizer.apply_chat_template(
            row["prompt"], tools=row.get("tools"), tokenize=False, add_generation_prompt=True
        )
        assert ids == model.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("key", ["reasoning_content", "name"])
def test_responses_that_differ_in_one_key_are_different(key, model):
    answers = [[{"role": "assistant", "content": "dry", key: said}] for said in ("no clouds", "a guess")]
    row = {"prompt": PROMPT[:1], "chosen": answers[0], "rejected": answers[1]}
    data, report = encode_dataset(load_preferences([row]), model.encoder)
    assert len(data) == 1 and data[0]["sequences"] == [by_hand(model.tokenizer, row, a) for a in answers]
    with pytest.raises(Exception, match="identical"):
        load_preferences([row | {"rejected": answers[0]}])


# each call and each tool has keys of its own, which Arrow gives to all, as nulls
CALLS = [
    {"city": "Bonn", "days": [1, None]},
    {"place": {"name": "Rome"}, "unit": "C"},
    {"place": {"near": "Rome"}},
]
MIXED = [
    {"prompt": PROMPT[:1], "rejected": GOOD}
    | {"chosen": [AGAIN[0] | {"tool_calls": [{"function": {"name": "weather", "arguments": call}}]}]}
    | {"tools": [{"function": {"name": "weather", "parameters": {next(iter(call)): {"type": "string"}}}}]}
    for call in CALLS
]  # fmt: skip


@pytest.mark.parametrize(
    "way", ["list", "JSON lines", "data set", "Parquet", "stream", "stream of a data set"]
)
def test_nulls_that_arrow_adds_are_not_read(model, tmp_path, way):
    data, lines, table = MIXED, tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    if way == "JSON lines":
        lines.write_text("".join(json.dumps(row) + "\n" for row in MIXED))
        data = str(lines)
    elif way == "stream":
        data = IterableDataset.from_generator(lambda: iter(MIXED))
    elif way != "list":
        data = Dataset.from_list(MIXED)
        assert data[0]["chosen"][0]["tool_calls"][0]["function"]["arguments"]["unit"] is None
        if way == "Parquet":
            data.to_parquet(table)
        data = {"Parquet": str(table), "stream of a data set": data.to_iterable_dataset()}.get(way, data)
    read = data if isinstance(data, IterableDataset) else load_preferences(data)
    encoded, _ = encode_dataset(read, model.encoder)
    expected = [[by_hand(model.tokenizer, row, row[s]) for s in ("chosen", "rejected")] for row in MIXED]
    assert [row["sequences"] for row in encoded] == expected


def test_scoring_reads_a_row_of_a_data_set_as_training_does(model, seen):
    for row, stored in zip(MIXED, Dataset.from_list(MIXED)):
        model.score(stored["prompt"], stored["chosen"], tools=stored["tools"])
        assert seen[-1] == by_hand(model.tokenizer, row, row["chosen"])
