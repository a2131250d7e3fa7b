"""The score server against real sockets, its client against a server that misbehaves, and the reward
model in TRL's trainers."""

import asyncio
import base64
import contextlib
import gzip
import json
import math
import os
import queue
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
import torch

from reward_kit.beside.client import RewardClient, RewardServerError
from reward_kit.beside.network import _Network as Network
from reward_kit.beside.wire_formats import _bare_text as bare_text
from reward_kit.beside.wire_formats import _error_answer as error_answer
from reward_kit.beside.wire_formats import _sigmoid as sigmoid
from reward_kit.data.playground import Playground, load_base
from reward_kit.data.records import as_messages
from reward_kit.model.encoding import prepare_tokenizer
from reward_kit.model.model_folder import RewardMetadata, load_reward_backbone
from reward_kit.model.settings import quiet
from reward_kit.scores import row_scorer
from reward_kit.scores.ensembles import RewardEnsemble
from reward_kit.scores.inference import RewardModel
from reward_kit.tools.cli import main
from reward_kit.tools.commands import commands
from reward_kit.tools.serving import ServerLimits, background_server, serve, wire_formats
from reward_kit.tools.serving import _Batcher as Batcher
from reward_kit.tools.serving import _bind as bind
from reward_kit.tools.serving import _OpenRequests as OpenRequests
from reward_kit.tools.serving import _RequestError as RequestError
from reward_kit.tools.serving import _Texts as Texts

WIRE_FORMATS, COMMANDS = wire_formats(), commands()

ENV = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
WORLD = Playground(seed=0)
ROWS = [(row["prompt"], response) for row in WORLD.preferences(120) for response in row["responses"]]
PROMPTS, RESPONSES = [list(column) for column in zip(*ROWS)]
CHAT = [{"role": "user", "content": PROMPTS[0]}, {"role": "assistant", "content": RESPONSES[0]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reward model with an untrained head: its scores differ from text to text, which is all that
    matters here."""
    path = tmp_path_factory.mktemp("serving") / "reward-model"
    torch.manual_seed(0)
    model, tokenizer = load_reward_backbone("playground", new_head=True)
    metadata = RewardMetadata(
        encoding=prepare_tokenizer(tokenizer, model, max_length=256),
        normalization={"mean": 0.5, "std": 2.0, "n": 100},
    )
    with quiet():
        model.save_pretrained(path), tokenizer.save_pretrained(path), metadata.save(path)
    return path


@pytest.fixture(scope="module")
def rm(folder):
    return RewardModel.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def url(rm):
    with background_server(rm, ServerLimits(max_rows=300, max_body_bytes=200_000)) as address:
        yield address


def post(url, path, **body):
    return requests.post(url + path, json=body, timeout=60)


def answer(url, path, **body):
    got = post(url, path, **body)
    assert got.status_code == 200, got.text
    return got.json()


def send(url, path, body, length=None):
    "A socket on which a request has been sent, or the part of it that `body` is; nobody has read the answer."
    host, port = url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=60)
    sock.sendall(
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length or len(body)}\r\n\r\n{body}".encode()
    )
    return sock


def waiting(url):
    return requests.get(url + "/health", timeout=60).json()["waiting"]


def wait_until(true):
    "Wait for a condition, a minute at most."
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextlib.contextmanager
def held(rm):
    "The model scores nothing until the event is set; its `scored` lists what the model is given."
    go, score_ids = threading.Event(), rm.score_ids
    go.scored = []

    def wait(rows, progress=False):
        go.scored += rows
        go.wait(60)
        return score_ids(rows, progress)

    rm.score_ids = wait
    try:
        yield go
    finally:
        go.set()
        del rm.score_ids


# --- one BOS, whoever rendered the text


def rendered(rm):
    "The conversation as trainers send it: bare, with one or two BOS, with EOS, with padding on either side."
    t, text = rm.tokenizer, rm.encoder.render(CHAT)
    return [
        text,
        t.bos_token + text,
        t.bos_token * 2 + text + t.eos_token,
        t.pad_token * 3 + t.bos_token + text + t.eos_token + "\n" + t.pad_token * 2,
    ]


def test_text_that_the_template_has_rendered_scores_as_its_conversation(rm, url):
    expected, texts = rm.score(CHAT), rendered(rm)
    assert abs(rm.score(texts[2]) - expected) > 1e-3  # without care it would be another number
    found = {
        "OpenRLHF": answer(url, "/get_reward", query=texts, prompts=[PROMPTS[0]] * 4, labels=["x"] * 4)[
            "rewards"
        ],
        "OpenRLHF at the root": answer(url, "/", query=texts)["rewards"],
        "vLLM": [
            row["probs"][0]
            for row in answer(url, "/classify", model="m", input=texts, use_activation=False)["data"]
        ],
        "SGLang": [row["embedding"][0] for row in answer(url, "/classify", model="m", text=texts)],
        "pooling": [
            row["data"][0]
            for row in answer(url, "/pooling", input=texts, task="classify", use_activation=False)["data"]
        ],
        "LLaMA-Factory": answer(url, "/v1/score/evaluation", model="m", messages=texts, max_length=None)[
            "scores"
        ],
        "reward_kit": answer(url, "/v1/rewards", prompts=texts)["rewards"],
    }
    for name, scores in found.items():
        assert scores == pytest.approx([expected] * 4, abs=1e-5), name


def test_exactly_one_bos_reaches_the_model(rm):
    for text in rendered(rm):
        ids = rm.encode([bare_text(rm.encoder, text)], None)[0]
        assert (
            ids.count(rm.tokenizer.bos_token_id),
            ids.count(rm.tokenizer.eos_token_id),
            ids.count(rm.tokenizer.pad_token_id),
        ) == (1, 1, 0)


def test_ends_are_cut_in_time_that_grows_with_the_text(rm):
    "Where it grows with the square, these texts of ten million characters take hours."
    t, n = rm.tokenizer, 10**6
    for text, expected in {
        t.eos_token * n + "x": None,
        t.pad_token * n: "",
        "x" + (t.eos_token + "\n") * n: "x",
        "x" + t.eos_token + " " * n * 10 + "y": None,
        "x" + (" " + t.eos_token) * n: "x ",
        t.bos_token * n + "x": "x",
    }.items():
        assert bare_text(rm.encoder, text) == (text if expected is None else expected)


def test_a_model_made_elsewhere_gets_one_bos_too(folder, tmp_path):
    with quiet():
        model, tokenizer = load_reward_backbone(folder, new_head=False)
        tokenizer.chat_template = None
        model.save_pretrained(tmp_path), tokenizer.save_pretrained(tmp_path)
    foreign, bos = RewardModel.from_pretrained(tmp_path, device="cpu"), tokenizer.bos_token
    with background_server(foreign) as url:
        found = answer(url, "/get_reward", query=[f"{bos}Why? So.", f"{bos}{bos}Why? So.", "Why? So."])[
            "rewards"
        ]
    one, none = foreign.score(
        [f"{bos}Why? So.", "Why? So."]
    )  # text with a BOS brings its own EOS, or means none
    assert found == pytest.approx([one, one, none], abs=1e-5)
    assert (
        foreign.encode([bare_text(foreign.encoder, f"{bos}{bos}Why? So.")], None)[0].count(
            tokenizer.bos_token_id
        )
        == 1
    )


# --- the shapes that others expect


def test_openrlhf(rm, url):
    got = answer(
        url, "/get_reward", query=["Why? So.", "Why? No."], prompts=["Why?", "Why?"], labels=[None, None]
    )
    assert got["rewards"] == pytest.approx(rm.score(["Why? So.", "Why? No."]), abs=1e-5)
    assert got["scores"] == pytest.approx([sigmoid(r) for r in got["rewards"]]) and set(got) == {
        "rewards",
        "scores",
        "extra_logs",
    }
    assert all(
        len(values) == 2 and all(isinstance(v, float) for v in values)
        for values in got["extra_logs"].values()
    )


def test_classify_of_vllm(rm, url):
    got = answer(url, "/classify", model="m", input="Why? So.")
    assert {"id", "object", "created", "model", "data", "usage"} == set(got) and got["object"] == "list"
    assert got["data"] == [
        {
            "index": 0,
            "label": "LABEL_0",
            "probs": [pytest.approx(rm.score("Why? So."), abs=1e-6)],
            "num_classes": 1,
        }
    ]
    assert got["usage"]["prompt_tokens"] == len(rm.encode(["Why? So."], None)[0])
    assert answer(url, "/classify", messages=CHAT, use_activation=False)["data"][0]["probs"][
        0
    ] == pytest.approx(rm.score(CHAT), abs=1e-5)


def test_token_ids_are_scored_as_they_are(rm, url):
    rows = rm.encode(PROMPTS[:2], RESPONSES[:2])
    expected = rm.score_ids(rows)
    for body, wanted in (({"input": rows}, expected), ({"input": rows[0]}, expected[:1])):
        data = answer(url, "/classify", use_activation=False, **body)["data"]
        assert [row["probs"][0] for row in data] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    "path, body, read",
    [
        ("/classify", {"input": "Why? So."}, lambda row: row["probs"][0]),
        ("/pooling", {"input": ["Why? So."]}, lambda row: row["data"][0]),
        ("/score", {"queries": "Why?", "documents": ["So."]}, lambda row: row["score"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("problem", [None, "single_label_classification", "regression"])
def test_every_name_that_vllm_had_for_the_activation_is_heeded(
    rm, url, path, body, read, problem, monkeypatch
):
    "vLLM reads `problem_type` of config.json: the activation of a regression, as our folders say, is none."
    monkeypatch.setattr(rm.model.config, "problem_type", problem)
    raw = rm.score("Why?", "So.") if path == "/score" else rm.score("Why? So.")
    assert abs(raw - sigmoid(raw)) > 0.01
    activated = raw if problem == "regression" else sigmoid(raw)
    for given, expected in (
        ({}, activated),
        ({"use_activation": None}, activated),
        ({"activation": True, "softmax": True}, activated),
        ({"use_activation": False}, raw),
        ({"activation": False}, raw),
        ({"softmax": False}, raw),
        ({"softmax": False, "activation": None}, raw),
    ):
        assert read(answer(url, path, **body, **given)["data"][0]) == pytest.approx(expected, abs=1e-5), given
    for given, message in (
        (
            {"activation": False, "use_activation": True},
            "use_activation=true and activation=false contradict each other; send use_activation alone",
        ),
        ({"softmax": 0}, "softmax is 0; it must be true or false or null"),
    ):
        got = post(url, path, **body, **given)
        assert got.status_code == 400 and message in got.json()["error"]["message"]


def test_text_parts_are_joined_as_in_training(rm, url):
    parts = lambda *texts: [{"type": "text", "text": text} for text in texts]
    split = [
        {"role": "user", "content": parts("Why? ", "Say.")},
        {
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "So"},
                *parts("."),
            ],
        },
    ]
    whole = [{"role": "user", "content": "Why? Say."}, {"role": "assistant", "content": "So."}]
    assert as_messages(split) == whole
    expected = rm.score(whole)
    assert abs(expected - rm.score([{"role": "user", "content": "Why? \nSay."}, whole[1]])) > 1e-3
    for path in ("/classify", "/pooling"):
        (row,) = answer(url, path, messages=split, use_activation=False)["data"]
        assert row.get("probs", row.get("data")) == [pytest.approx(expected, abs=1e-5)]
    got = (
        answer(url, "/v1/rewards", prompts=[split, split[:1]], responses=None)["rewards"],
        answer(url, "/v1/rewards", prompts=[split[:1]], responses=[split[1:]])["rewards"],
    )
    assert (got[0][0], got[1][0]) == pytest.approx((expected, expected), abs=1e-5)


def test_template_arguments_reach_the_template(rm, url, monkeypatch):
    monkeypatch.setattr(
        rm.tokenizer,
        "chat_template",
        "{{ day }}{% if tools %}{{ tools[0]['function']['name'] }}{% endif %}" + rm.tokenizer.chat_template,
    )
    tools = [{"type": "function", "function": {"name": "search", "description": "", "parameters": {}}}]
    plain, monday, searching = (
        rm.score(CHAT),
        rm.score(CHAT, chat_template_kwargs={"day": "Monday"}),
        rm.score(CHAT, tools=tools),
    )
    assert len({plain, monday, searching}) == 3
    assert answer(
        url, "/classify", messages=CHAT, chat_template_kwargs={"day": "Monday"}, use_activation=False
    )["data"][0]["probs"] == [pytest.approx(monday, abs=1e-5)]
    for given in ({"day": "Monday"}, [{"day": "Monday"}, None], ['{"day": "Monday"}', None]):
        second = monday if isinstance(given, dict) else plain
        assert answer(url, "/v1/rewards", prompts=[CHAT, CHAT], chat_template_kwargs=given)[
            "rewards"
        ] == pytest.approx([monday, second], abs=1e-5)
    for given in (tools, [tools, None], [json.dumps(tools), None]):
        second = searching if given is tools else plain
        assert answer(url, "/v1/rewards", prompts=[CHAT, CHAT], tools=given)["rewards"] == pytest.approx(
            [searching, second], abs=1e-5
        )


def test_pooling_and_score_of_vllm(rm, url):
    pooled = answer(url, "/pooling", model="m", input=["Why? So."], task="classify")
    assert pooled["data"] == [
        {"index": 0, "object": "pooling", "data": [pytest.approx(rm.score("Why? So."), abs=1e-6)]}
    ]
    pairs = [("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
    for body in (
        *({a: "Why?", b: ["So.", "No."]} for a, b in pairs),
        {"text_1": ["Why?", "Why?"], "text_2": ["So.", "No."]},
    ):
        data = answer(url, "/score", model="m", use_activation=False, **body)["data"]
        assert [(row["index"], row["object"]) for row in data] == [(0, "score"), (1, "score")]
        assert [row["score"] for row in data] == pytest.approx(rm.score("Why?", ["So.", "No."]), abs=1e-5)


def test_sglang_gives_one_object_for_one_text(rm, url):
    assert answer(url, "/classify", model="m", text="Why? So.")["embedding"] == [
        pytest.approx(rm.score("Why? So."), abs=1e-5)
    ]
    (ids,) = rm.encode(["Why? So."], None)
    assert answer(url, "/classify", input_ids=ids)["embedding"] == [
        pytest.approx(rm.score("Why? So."), abs=1e-5)
    ]
    assert [row["embedding"][0] for row in answer(url, "/classify", input_ids=[ids, ids])] == pytest.approx(
        [rm.score("Why? So.")] * 2, abs=1e-5
    )


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerankers_of_vllm_and_cohere(rm, url, path):
    expected = rm.score(PROMPTS[0], RESPONSES[:5])
    order = sorted(range(5), key=lambda i: -expected[i])
    documents = [*RESPONSES[:4], {"text": RESPONSES[4]}]
    body = {"model": "m", "query": PROMPTS[0], "documents": documents}
    got = answer(url, path, **body, return_documents=True)
    assert [row["index"] for row in got["results"]] == order and got["model"] == "reward-model"
    for row in got["results"]:
        assert row["relevance_score"] == pytest.approx(expected[row["index"]], abs=1e-5)
        assert row["document"] == {"text": RESPONSES[row["index"]]}
    assert got["id"] and got["usage"]["total_tokens"] > 5
    assert [row["index"] for row in answer(url, path, **body, top_n=2)["results"]] == order[:2]


def test_the_reranker_of_text_embeddings_inference(rm, url):
    expected = rm.score(PROMPTS[0], RESPONSES[:3])
    order = sorted(range(3), key=lambda i: -expected[i])
    body = {"query": PROMPTS[0], "texts": RESPONSES[:3], "truncate": False}
    for raw, values in ((True, expected), (False, list(map(sigmoid, expected)))):
        got = answer(url, "/rerank", **body, raw_scores=raw, return_text=raw)
        assert [row["index"] for row in got] == order
        assert [row["score"] for row in got] == pytest.approx([values[i] for i in order], abs=1e-5)
        assert [row.get("text") for row in got] == [RESPONSES[i] if raw else None for i in order]


def test_one_number_as_an_embedding_and_as_itself(rm, url):
    (row,) = answer(url, "/v1/embeddings", model="m", input="Why? So.", encoding_format="float")["data"]
    assert (row["object"], row["index"]) == ("embedding", 0)
    assert row["embedding"] == [pytest.approx(rm.score("Why? So."), abs=1e-5)]
    # OpenAI's client asks for this where its caller asks for nothing
    (row,) = answer(url, "/v1/embeddings", model="m", input="Why? So.", encoding_format="base64")["data"]
    assert struct.unpack("<f", base64.b64decode(row["embedding"])) == (pytest.approx(rm.score("Why? So.")),)
    for path in ("/", "/get_reward"):
        got = answer(url, path, prompt="Why?", response="So.", label="whatever")
        assert got == pytest.approx(rm.score("Why?", "So."), abs=1e-5)


@pytest.mark.parametrize(
    "field, nothing, something",
    [
        ("truncate_prompt_tokens", [None, -1], 64),
        ("truncation_side", [None, "left"], "right"),
        ("padding", [None, False, True], "max_length"),
        ("mm_processor_kwargs", [None, {}], {"a": 1}),
        ("dimensions", [None], 8),
        ("encoding_format", [None, "float"], "int8"),
        ("sampling_params", [None, {}], {"n": 2}),
        ("image_data", [None, []], ["a"]),
        ("max_length", [None], 8),
    ],
)
@pytest.mark.parametrize("wire", WIRE_FORMATS[1:], ids=lambda wire: wire.paths[0])
def test_fields_that_ask_for_nothing_pass_and_others_are_refused_by_name(wire, field, nothing, something):
    for value in nothing:
        assert wire.texts(wire.example | {field: value}).prompts
    with pytest.raises(RequestError, match=f"^{field} is "):
        wire.texts(wire.example | {field: something})


@pytest.mark.parametrize("raw", [True, False])
def test_raw_scores_of_infinity_are_rewards_or_their_sigmoid(rm, url, raw):
    body = {"query": "Why?", "documents": ["So.", "No."], "raw_scores": raw, "return_documents": False}
    rows = answer(url, "/rerank", model="any", **body)["results"]
    wanted = [r if raw else 1 / (1 + math.exp(-r)) for r in rm.score(["Why?"] * 2, ["So.", "No."])]
    found = [row["relevance_score"] for row in sorted(rows, key=lambda row: row["index"])]
    assert found == pytest.approx(wanted, abs=1e-5)


def test_a_chat_completion_is_the_reward_of_its_answer(rm, url):
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    got = answer(url, "/v1/chat/completions", model="any", messages=chat, temperature=0.7, max_tokens=8)
    assert got["object"] == "chat.completion" and got["usage"]["prompt_tokens"] > 2
    assert got["choices"][0]["message"]["content"] == pytest.approx(rm.score([chat])[0], abs=1e-5)
    for wrong in ({"messages": chat[:1]}, {"messages": chat, "stream": True}, {"messages": chat, "n": 2}):
        got = requests.post(f"{url}/v1/chat/completions", json=wrong, timeout=60)
        assert got.status_code == 400 and "\n" not in got.json()["error"]["message"]


def test_functions_of_a_generated_client_have_readable_names(url):
    paths = requests.get(f"{url}/openapi.json", timeout=60).json()["paths"]
    assert paths["/v1/rewards"]["post"]["operationId"] == "score_v1_rewards"
    names = [way["operationId"] for ways in paths.values() for way in ways.values()]
    assert len(set(names)) == len(names)


def test_llamafactory(rm, url):
    got = answer(url, "/v1/score/evaluation", model="m", messages=["Why? So."], max_length=None)
    assert (
        got["object"] == "score.evaluation"
        and got["scores"] == [pytest.approx(rm.score("Why? So."), abs=1e-5)]
        and {"id", "model"} < set(got)
    )


def test_own_route_takes_strings_and_conversations(rm, url):
    got = answer(url, "/v1/rewards", prompts=["Why?", CHAT[:1]], responses=["So.", RESPONSES[0]])["rewards"]
    assert got == pytest.approx([rm.score("Why?", "So."), rm.score(CHAT)], abs=1e-5)
    assert answer(url, "/v1/rewards", prompts=["Why?"], responses=["So."], normalize=True)["rewards"][
        0
    ] == pytest.approx((got[0] - 0.5) / 2, abs=1e-5)
    assert (
        answer(url, "/v1/rewards", prompts=["Why?"] * 2, responses=["So.", "word " * 400], too_long="none")[
            "rewards"
        ][1]
        is None
    )
    assert answer(url, "/v1/rewards", prompts=[])["rewards"] == []


def test_health_models_and_documentation(rm, url):
    get = lambda path: requests.get(url + path, timeout=60).json()
    assert get("/health") == {"status": "ok", "model": "reward-model", "waiting": 0}
    (model,) = get("/v1/models")["data"]
    assert (model["id"], model["max_model_len"], model["encoding"]) == ("reward-model", 256, rm.encoding_note)
    assert {path for wire in WIRE_FORMATS for path in wire.paths} < set(get("/openapi.json")["paths"])


@pytest.mark.parametrize("wire", WIRE_FORMATS, ids=lambda wire: wire.paths[0])
def test_the_documented_examples_work(url, wire):
    for path in wire.paths:
        answer(url, path, **wire.example)


# --- requests that are refused


@pytest.mark.parametrize(
    "path, body, message",
    [
        ("/get_reward", {}, "the field 'query' is missing; the body has []"),
        ("/get_reward", {"query": ["a", None]}, "query[1] is null; it must be a string"),
        ("/get_reward", {"query": {"a": 1}}, 'query is {"a": 1}; it must be a string or a list of strings'),
        ("/get_reward", {"query": ["a"], "prompts": ["a", "b"]}, "query has 1 entry, prompts 2"),
        ("/classify", {"model": "m"}, "the field 'input' is missing; the body has ['model']"),
        ("/classify", {"input": ["a", 3]}, "input[1] is 3"),
        ("/classify", {"input": [[1, 2], "a"]}, 'input[1] is "a"; it must be a list of token ids'),
        (
            "/classify",
            {"input": [[1], [99999]]},
            "input[1] holds the token id 99999 at position 0; this model knows 0 to 1535",
        ),
        ("/classify", {"input": [[1] * 300]}, "input[0] has 300 token ids; there must be 1 to 256"),
        (
            "/classify",
            {"input": "a", "use_activation": "no"},
            'use_activation is "no"; it must be true or false',
        ),
        ("/classify", {"messages": [{"role": "user"}]}, "messages, message 0: null content"),
        ("/classify", {"text": ["a", 1]}, "text[1] is 1"),
        ("/pooling", {"input": "a", "task": "embed"}, 'task is "embed"; it must be "classify"'),
        ("/pooling", {"input": "a", "encoding_format": "base64"}, 'encoding_format is "base64"'),
        ("/score", {"queries": ["a", "b"], "documents": ["c"]}, "queries has 2 entries, documents 1"),
        (
            "/v1/score/evaluation",
            {"messages": ["a"], "max_length": 16},
            "max_length is 16; it is a property of the model here; leave it out",
        ),
        ("/v1/rewards", {"prompts": ["a", 7], "responses": ["b", "c"]}, "prompts[1] is int ('7')"),
        ("/rerank", {"query": ["a"], "documents": ["b"]}, 'query is ["a"]; it must be a string'),
        ("/rerank", {"query": "a", "documents": ["b", {"title": "c"}]}, "documents[1] is {"),
        (
            "/rerank",
            {"query": "a", "documents": ["b"], "top_n": 0},
            "top_n is 0; it must be",
        ),
        ("/rerank", {"query": "a", "documents": ["b", "word " * 400]}, "documents[1] does not fit in"),
        (
            "/rerank",
            {"query": "a", "texts": ["b"], "top_n": 1},
            "unknown field 'top_n'; there are query",
        ),
        ("/rerank", {"query": "a", "texts": ["b"], "raw_scores": "no"}, 'raw_scores is "no"; it must be'),
        ("/score", {"queries": "a", "documents": ["b", "word " * 400]}, "documents[1] does not fit in"),
        ("/", {"prompt": "a", "response": 3}, "response is int ('3')"),
        (
            "/",
            {"prompt": "a", "response": "b", "extra": 3},
            "unknown field 'extra'; there are prompt",
        ),
        ("/v1/rewards", {"prompts": ["a", "b"], "responses": ["c"]}, "got 2 prompts and 1 response"),
        (
            "/v1/rewards",
            {"prompts": ["a", "b"], "responses": ["c", "word " * 400]},
            "responses[1] does not fit in max_length=256 tokens",
        ),
        (
            "/v1/rewards",
            {"prompts": ["a"], "response": ["c"]},
            "unknown field 'response'; there are prompts, responses, normalize",
        ),
        (
            "/v1/rewards",
            {"prompts": ["a"], "normalize": "yes"},
            'normalize is "yes"; it must be false or true',
        ),
        (
            "/v1/rewards",
            {"prompts": ["fine", "half \ud800"]},
            "prompts[1] has a broken character (half of a UTF-16 pair)",
        ),
        *(
            (path, {name: ["fine", "half \ud800"]}, f"{name}[1] has a broken character")
            for path, name in [("/get_reward", "query"), ("/classify", "input"), ("/classify", "text")]
        ),
        ("/classify", {"input": [["a"], [1]]}, 'input[0], position 0, is "a"; a token id is a whole number'),
        ("/classify", {"input": [[1, 2.5]]}, "input[0], position 1, is 2.5; a token id is a whole number"),
        ("/classify", {"input": [1, "a"]}, 'input[1] is "a"; it must be a token id, as input[0] is'),
        (
            "/classify",
            {"input": [[1, -1]]},
            "input[0] holds the token id -1 at position 1; this model knows 0 to 1535",
        ),
        ("/classify", {"input_ids": "a"}, 'input_ids is "a"; it must be a list of token ids'),
        ("/classify", {"text": "a", "input_ids": [1]}, "the body has text and input_ids; send one of them"),
        (
            "/classify",
            {"text": "a", "use_activation": False},
            "unknown field 'use_activation'; there are text, input_ids",
        ),
        (
            "/classify",
            {"input": "a", "messages": CHAT},
            "unknown field 'input'; there are messages, chat_template_kwargs",
        ),
        (
            "/classify",
            {"input": "a", "chat_template_kwargs": {"day": 1}},
            'chat_template_kwargs is {"day": 1}; only messages go through a template',
        ),
        (
            "/classify",
            {"messages": CHAT, "tools": [{"type": "function"}]},
            'tools is [{"type": "function"}]; this route does not read tools; POST /v1/rewards',
        ),
        (
            "/classify",
            {"messages": CHAT, "chat_template": "{{ x }}"},
            'chat_template is "{{ x }}"; messages are rendered by the model\'s own template',
        ),
        (
            "/classify",
            {"messages": CHAT, "add_generation_prompt": True},
            "add_generation_prompt is true; a reward is read at the end of a finished answer",
        ),
        (
            "/classify",
            {"input": "a", "truncate_prompt_tokens": 64},
            "truncate_prompt_tokens is 64; where a text is cut is a property of the model here",
        ),
        ("/pooling", {"input": "a", "normalize": True}, "normalize is true; POST /v1/rewards"),
        ("/pooling", {"input": "a", "dimensions": 8}, "dimensions is 8; a reward is one number"),
        (
            "/classify",
            {"messages": [{"role": 5, "content": "a"}]},
            "messages, message 0: content is not a list of messages: a message has a role and a content",
        ),
        (
            "/classify",
            {"messages": [{"role": "user", "content": 5}]},
            "messages, message 0: content is not text: found int",
        ),
        (
            "/classify",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "a"},
                            {"type": "image_url", "image_url": {"url": "u"}},
                        ],
                    }
                ]
            },
            "messages, message 0: content has content that is not text",
        ),
        (
            "/v1/rewards",
            {"prompts": ["a", [{"role": "user", "content": [{"type": "text", "text": None}]}]]},
            "prompts[1], message 0: content has content that is not text",
        ),
        (
            "/v1/rewards",
            {"prompts": [CHAT], "tools": "search"},
            'tools is "search"; it must be a list of tools for all texts',
        ),
        (
            "/v1/rewards",
            {"prompts": [CHAT], "tools": [None, None]},
            "tools is [null, null]; it must be a list of tools for all texts, or a list with one or null",
        ),
        (
            "/v1/rewards",
            {"prompts": [CHAT], "chat_template_kwargs": [3]},
            "chat_template_kwargs is [3]; it must be an object for all texts",
        ),
        (
            "/v1/rewards",
            {"prompts": [CHAT], "chat_template_kwargs": {"tokenize": True}},
            "chat_template_kwargs holds 'tokenize'",
        ),
    ],
)
def test_bad_requests_get_one_reason(url, path, body, message):
    got = post(url, path, **body)
    assert got.status_code == 400 and got.json()["error"]["code"] == 400
    assert message in got.json()["error"]["message"] and "\n" not in got.json()["error"]["message"]


@pytest.mark.parametrize("wire", WIRE_FORMATS, ids=lambda wire: wire.paths[0])
def test_no_route_ignores_a_field(url, wire):
    for path in wire.paths:
        got = post(url, path, **wire.example, use_activaton=False)
        assert got.status_code == 400 and got.json()["error"]["message"].startswith(
            "unknown field 'use_activaton'; there are "
        )
        if wire.name != "reward_kit":
            answer(
                url,
                path,
                **wire.example,
                truncate_prompt_tokens=None,
                normalize=None,
                tools=[],
                add_generation_prompt=False,
            )


@pytest.mark.parametrize("digits", [30, 1000, 5000])
def test_a_number_of_any_length_is_refused_by_name(url, digits):
    number = "1" * digits
    for value, name in (
        (f"[[5], [7, 8, {number}]]", "input[1] holds the token id 11111"),
        (f"[7, 8, {number}]", "input[0] holds the token id 11111"),
    ):
        got = requests.post(url + "/classify", data=f'{{"input": {value}}}', timeout=60)
        message = got.json()["error"]["message"]
        assert (
            got.status_code == 400
            and message.startswith(name)
            and message.endswith(" at position 2; this model knows 0 to 1535")
            and len(message) < 150
        )
    for body, name in (
        (f'{{"input": "a", "softmax": {number}}}', "softmax is 11111"),
        (f'{{"input": [{number}.5]}}', "input[0] is "),
    ):
        got = requests.post(url + "/classify", data=body, timeout=60)
        assert (
            got.status_code == 400
            and got.json()["error"]["message"].startswith(name)
            and len(got.json()["error"]["message"]) < 150
        )


def test_an_error_is_one_line_of_text_whatever_it_quotes():
    message = json.loads(error_answer("the template says:\n  half \ud800 " + "x" * 10**6, 400).body)["error"][
        "message"
    ]
    assert message.startswith("the template says: half ? xxx") and len(message) == 1000


def test_an_error_of_a_foreign_template_names_the_field(folder, tmp_path):
    with quiet():
        model, tokenizer = load_reward_backbone(folder, new_head=False)
        tokenizer.chat_template = "{{ raise_exception('no tools here') }}"
        model.save_pretrained(tmp_path), tokenizer.save_pretrained(tmp_path)
    with background_server(RewardModel.from_pretrained(tmp_path, device="cpu")) as url:
        got = post(url, "/classify", messages=CHAT)
    assert (
        got.status_code == 400
        and got.json()["error"]["message"]
        == "messages[0] the chat template refuses this conversation: no tools here"
    )


@pytest.mark.parametrize(
    "data, status, message",
    [
        (b"{", 400, "the body is not JSON"),
        (b"[1]", 400, "the body is a JSON list; it must be an object"),
        (b"[" * 100_000, 400, "the body is not JSON"),
        (
            json.dumps({"query": ["a"] * 301}).encode(),
            413,
            "the request has 301 texts, this server takes 300 at a time",
        ),
        (b" " * 3_000_000, 413, "the body has 3000000 bytes, this server takes 200000"),
    ],
)
def test_bodies_that_are_refused(url, data, status, message):
    got = requests.post(url + "/get_reward", data=data, timeout=60)
    assert got.status_code == status and message in got.json()["error"]["message"]


def test_unknown_routes_name_the_known_ones(url):
    for got, status in ((requests.get(url + "/score", timeout=60), 405), (post(url, "/v1/reward"), 404)):
        error = got.json()["error"]
        assert got.status_code == status and "POST /v1/rewards" in error["message"]
        assert error["type"] == ("NotFoundError" if status == 404 else "BadRequestError")


def test_normalize_without_a_scale_is_refused(rm, monkeypatch, url):
    monkeypatch.setattr(rm.metadata, "normalization", None)
    got = post(url, "/v1/rewards", prompts=["a"], normalize=True)
    assert got.status_code == 400 and "no stored mean and spread" in got.json()["error"]["message"]


def test_a_body_that_does_not_arrive_is_given_up(rm):
    with background_server(rm, ServerLimits(body_timeout_s=0.2)) as url:
        with send(url, "/get_reward", "{", length=100) as sock:
            assert b" 408 " in sock.recv(4096).splitlines()[0]


@pytest.mark.parametrize(
    "values",
    [
        {"max_rows": 0},
        {"max_queue": -1},
        {"max_wait_ms": -0.1},
        {"body_timeout_s": 0},
        {"shutdown_timeout": -1},
        {"shutdown_timeout": float("inf")},
    ],
)
def test_limits_are_checked(values):
    with pytest.raises(
        ValueError, match=f"{next(iter(values))} must be .*, got {next(iter(values.values()))}"
    ):
        ServerLimits(**values)


# --- many at once


def test_two_hundred_concurrent_requests_lose_none(rm, url):
    """Every caller gets its own rewards in its order; each fifth asks for something impossible and
    disturbs no other."""
    expected, rng = rm.score(PROMPTS, RESPONSES), random.Random(0)
    wanted = [rng.sample(range(len(PROMPTS)), rng.randint(1, 5)) for _ in range(200)]
    start = threading.Barrier(200)

    def call(n):
        rows = wanted[n]
        start.wait(60)
        if n % 5 == 0:
            return post(url, "/classify", input=[[99_999]])
        return post(
            url, "/v1/rewards", prompts=[PROMPTS[i] for i in rows], responses=[RESPONSES[i] for i in rows]
        )

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(call, range(200)))
    assert [a.status_code for a in answers] == [400 if n % 5 == 0 else 200 for n in range(200)]
    for n, got in enumerate(answers):
        if n % 5:
            assert got.json()["rewards"] == pytest.approx([expected[i] for i in wanted[n]], abs=1e-5)


def test_requests_that_wait_are_scored_together(rm):
    batcher = Batcher(rm, ServerLimits(max_batch_rows=10))
    with held(rm) as go:
        futures = [batcher.submit(Texts([p], [r])) for p, r in zip(PROMPTS[:61], RESPONSES[:61])]
        go.set()
        rewards = [future.result(60)[0][0] for future in futures]
    batcher.close()
    assert rewards == pytest.approx(rm.score(PROMPTS[:61], RESPONSES[:61]), abs=1e-5)
    assert 7 <= batcher.batches <= 8  # sixty-one rows in batches of ten, the first perhaps alone


def test_requests_are_encoded_while_the_model_works(rm):
    batcher = Batcher(rm, ServerLimits(max_batch_rows=1))
    with held(rm) as go:
        first = batcher.submit(Texts(PROMPTS[:1]))
        wait_until(lambda: go.scored)
        others = [batcher.submit(Texts([p])) for p in PROMPTS[1:4]]
        wait_until(lambda: all(job.rows for job in others))  # the model has not moved
        assert not first.done() and go.scored == rm.encode(PROMPTS[:1], None)
        go.set()
        assert [job.result(60)[0][0] for job in (first, *others)] == pytest.approx(
            rm.score(PROMPTS[:4]), abs=1e-5
        )
    batcher.close()


def test_a_server_never_stops_to_compile(folder, monkeypatch):
    monkeypatch.setattr(row_scorer, "_COMPILED_FROM", 1)
    monkeypatch.setattr(row_scorer, "compile_layers", lambda *_, **how: pytest.fail("compiled"))
    batcher = Batcher(RewardModel.from_pretrained(folder, device="cpu"))
    assert batcher.submit(Texts(PROMPTS[:2])).result(60)
    batcher.close()


class Ends(BaseException):
    "What nobody expects."


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_fails_its_requests_and_the_next_one_starts_another(rm, monkeypatch):
    def end(rows, progress=None):
        wait_until(lambda: len(batcher.waiting) == 1)
        raise Ends("of the thread")

    monkeypatch.setattr(rm, "score_ids", end)
    batcher = Batcher(rm, ServerLimits(max_batch_rows=1))
    for future in [batcher.submit(Texts([p])) for p in PROMPTS[:2]]:  # one is scored, one waits
        assert "the thread that scores has ended: Ends('of the thread')" in str(future.exception(60))
    monkeypatch.undo()
    assert batcher.submit(Texts(["a"])).result(60)[0] == [pytest.approx(rm.score("a"), abs=1e-5)]
    assert batcher.close()


def test_a_batch_ends_at_the_token_budget(folder):
    rm = RewardModel.from_pretrained(folder, device="cpu", batch_tokens=1)
    batcher = Batcher(rm, ServerLimits(max_wait_ms=10_000))
    assert len({f.result(60)[0][0] for f in [batcher.submit(Texts([p])) for p in PROMPTS[:3]]}) > 1
    assert batcher.batches == 3
    batcher.close()


def test_a_full_queue_is_503_and_the_client_comes_again(rm):
    with held(rm) as go, background_server(rm, ServerLimits(max_queue=1, max_batch_rows=1)) as url:
        with ThreadPoolExecutor(8) as pool:
            early = []
            refused = next(
                r for r in (post_unless_taken(pool, early, url) for _ in range(5)) if r is not None
            )
            assert len(early) == 2  # one is being scored, one waits
            assert (
                refused.status_code == 503
                and refused.headers["Retry-After"] == "1"
                and "the queue is full" in refused.json()["error"]["message"]
            )
            patient = pool.submit(RewardClient(url, retries=50, max_pause=0.1).score, "Why?", "So.")
            time.sleep(0.3)  # it is refused meanwhile
            go.set()
            assert patient.result(60) == pytest.approx(rm.score("Why?", "So."), abs=1e-5)
            assert all(f.result(60).status_code == 200 for f in early)


def post_unless_taken(pool, early, url):
    "Send one more request; None if it is taken (then it waits in `early`), else the answer that refuses it."
    future = pool.submit(post, url, "/v1/rewards", prompts=["Why?"], responses=["So."])
    for _ in range(40):
        if future.done():
            return future.result()
        time.sleep(0.02)
    early.append(future)
    return None


def test_a_request_whose_caller_has_left_gives_up_its_place_and_is_not_scored(rm):
    limits = ServerLimits(max_queue=3, max_batch_rows=1)
    with held(rm) as go, background_server(rm, limits) as url, ThreadPoolExecutor(8) as pool:
        ask = lambda i: pool.submit(post, url, "/get_reward", query=[PROMPTS[i]])
        stay = [ask(0)]
        wait_until(lambda: go.scored)
        leave = [send(url, "/get_reward", json.dumps({"query": [PROMPTS[i]]})) for i in (1, 2)]
        stay.append(ask(3))
        wait_until(lambda: waiting(url) == 3)
        assert ask(6).result().status_code == 503  # the queue is full
        for sock in leave:
            sock.close()
        wait_until(lambda: waiting(url) == 1)
        stay += [ask(4), ask(5)]
        wait_until(lambda: waiting(url) == 3)
        go.set()
        rewards = [f.result().json()["rewards"][0] for f in stay]
        assert waiting(url) == 0
    assert rewards == pytest.approx([rm.score(PROMPTS[i]) for i in (0, 3, 4, 5)], abs=1e-5)
    assert sorted(go.scored) == sorted(rm.encode([PROMPTS[i] for i in (0, 3, 4, 5)], None))


def test_a_request_taken_back_while_its_batch_is_collected_is_not_scored(rm):
    batcher = Batcher(rm, ServerLimits(max_wait_ms=60_000))
    with held(rm) as go:
        first = batcher.submit(Texts(PROMPTS[:1]))
        wait_until(lambda: go.scored)
        leaves, *stay = [batcher.submit(Texts([p])) for p in PROMPTS[1:3]]
        go.set()
        first.result(60)
        wait_until(lambda: all(job.rows for job in batcher.waiting))  # both wait for the first to come again
        assert leaves.cancel()
        stay += [batcher.submit(Texts([p])) for p in PROMPTS[3:5]]
        rewards = [f.result(60)[0][0] for f in stay]
    assert batcher.batches == 2
    batcher.close()
    assert rewards == pytest.approx(rm.score(PROMPTS[2:5]), abs=1e-5)
    assert go.scored == rm.encode([PROMPTS[0], *PROMPTS[2:5]], None)


def test_a_caller_that_is_alone_does_not_wait_for_others(rm):
    batcher = Batcher(rm, ServerLimits(max_wait_ms=3_600_000))
    for prompt in PROMPTS[:3]:
        assert batcher.submit(Texts([prompt])).result(60)
    batcher.close()


def test_a_batch_does_not_wait_long_for_callers_that_do_not_come_again(rm):
    batcher = Batcher(rm, ServerLimits(max_wait_ms=10))
    with held(rm) as go:
        futures = [batcher.submit(Texts(PROMPTS[:1]))]
        wait_until(lambda: go.scored)
        futures += [batcher.submit(Texts([p])) for p in PROMPTS[1:3]]
        go.set()
        assert all(future.result(60) for future in futures)
    batcher.close()


def test_a_batch_that_nobody_waits_for_ends_before_its_next_forward_pass(folder):
    rm, go, passes = RewardModel.from_pretrained(folder, device="cpu", batch_tokens=1), threading.Event(), []

    def note(*_):
        if threading.current_thread() is batcher.thread:
            passes.append(1)
            go.wait(60)

    rm.model.register_forward_pre_hook(note)
    batcher = Batcher(rm)
    leaves = batcher.submit(Texts(PROMPTS[:50]))
    wait_until(lambda: passes)
    leaves.cancel()
    expected = rm.score(PROMPTS[0])  # whoever else uses the model is not disturbed
    go.set()
    assert batcher.submit(Texts(PROMPTS[:1])).result(60)[0] == [pytest.approx(expected, abs=1e-5)]
    batcher.close()
    assert (
        len(passes) == 2
    )  # of fifty the first, which was held up until its caller had left, and that of the next caller


def test_a_caller_that_leaves_does_not_stop_the_others(rm):
    batcher = Batcher(rm, ServerLimits(max_batch_rows=1))
    with held(rm) as go:
        futures = [batcher.submit(Texts([p])) for p in PROMPTS[:3]]
        assert futures[2].cancel()
        go.set()
        assert [len(f.result(60)[0]) for f in futures[:2]] == [1, 1]
    batcher.close()


def test_a_reward_that_is_no_number_is_500_and_disturbs_no_other(folder):
    rm = RewardModel.from_pretrained(folder, device="cpu")
    spoilt = rm.tokenizer.convert_tokens_to_ids("<|system|>")
    with torch.no_grad():
        rm.model.get_input_embeddings().weight[spoilt] = float("nan")
    with background_server(rm, ServerLimits(max_wait_ms=300)) as url, ThreadPoolExecutor(9) as pool:
        bad = pool.submit(post, url, "/get_reward", query=["fine", "<|system|> Why?"])
        good = [pool.submit(post, url, "/get_reward", query=[p]) for p in PROMPTS[:8]]
        assert (
            bad.result().status_code == 500
            and "|> Why?<|eos|>' is nan: check" in bad.result().json()["error"]["message"]
        )
        assert [g.result().json()["rewards"][0] for g in good] == pytest.approx(
            rm.score(PROMPTS[:8]), abs=1e-5
        )
        with pytest.raises(
            RewardServerError, match="answers 500: FloatingPointError: the reward of '.*> Why[?].*' is nan"
        ):
            RewardClient(url).score("<|system|> Why?")


def test_an_error_nobody_thought_of_is_500_for_those_it_concerns(rm, monkeypatch):
    def fail(rows, progress=False):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(rm, "score_ids", fail)
    batcher = Batcher(rm)
    assert "the device is gone" in str(batcher.submit(Texts(["a"])).exception(60))
    with background_server(rm) as url:
        got = post(url, "/get_reward", query=["a"])
    assert got.status_code == 500 and got.json()["error"]["message"] == "RuntimeError: the device is gone"
    monkeypatch.undo()
    assert batcher.submit(Texts(["a"])).result(60)[0] == [pytest.approx(rm.score("a"), abs=1e-5)]
    batcher.close()
    with pytest.raises(RequestError, match="shutting down"):
        batcher.submit(Texts(["a"]))


# --- several models


def test_an_ensemble_is_served(folder, rm):
    ensemble = RewardEnsemble(
        [rm, RewardModel.from_pretrained(folder, device="cpu")], "lower_bound", name="two"
    )
    with torch.no_grad():
        ensemble.members[1].model.score.weight.mul_(2)
    expected = ensemble.score(PROMPTS[:3], RESPONSES[:3])
    with background_server(ensemble) as url:
        got = answer(url, "/v1/rewards", prompts=PROMPTS[:3], responses=RESPONSES[:3])
        assert got["rewards"] == pytest.approx(expected, abs=1e-5) and got["model"] == "two"
        assert got["tokens"] == [2 * len(ids) for ids in rm.encode(PROMPTS[:3], RESPONSES[:3])]
        assert answer(url, "/v1/rewards", prompts=["a"], responses=["word " * 400], too_long="none")[
            "rewards"
        ] == [None]
        for texts in rendered(rm):
            assert answer(url, "/get_reward", query=texts)["rewards"] == [
                pytest.approx(ensemble.score(CHAT), abs=1e-5)
            ]
        raw = answer(url, "/classify", input=PROMPTS[:2])["data"]
        assert [row["probs"][0] for row in raw] == pytest.approx(ensemble.score(PROMPTS[:2]), abs=1e-5)
        refused = post(url, "/classify", input=[[1, 2]])
        assert (
            refused.status_code == 400 and "several models are served" in refused.json()["error"]["message"]
        )
        (model,) = requests.get(url + "/v1/models", timeout=60).json()["data"]
        assert model["max_model_len"] == 256 and "reward-model: " in model["encoding"]


# --- what other programs ask, and who may


def test_predict_of_text_embeddings_inference(rm, url):
    raw = rm.score(PROMPTS[0], RESPONSES[0])
    (row,) = answer(url, "/predict", inputs=[PROMPTS[0], RESPONSES[0]], raw_scores=True)
    assert row["score"] == pytest.approx(raw, abs=1e-5) and row["label"] == "LABEL_0"
    rows = answer(url, "/", inputs=[[PROMPTS[0], RESPONSES[0]]] * 2)
    assert [r[0]["score"] for r in rows] == pytest.approx([sigmoid(raw)] * 2, abs=1e-5)


def test_a_gzip_is_read_and_another_coding_is_refused(rm, url):
    body = json.dumps({"prompts": ["Why? So."]}).encode()
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    found = requests.post(f"{url}/v1/rewards", gzip.compress(body), headers=headers, timeout=60)
    assert found.json()["rewards"] == pytest.approx([rm.score("Why? So.")], abs=1e-5)
    for coding, sent, status, message in (
        ("br", body, 415, "send it plain, or as gzip"),
        ("gzip", body, 400, "the body is no gzip"),
        ("gzip", gzip.compress(b" " * 2**26), 413, "this server takes"),
    ):
        found = requests.post(
            f"{url}/v1/rewards", sent, headers=headers | {"Content-Encoding": coding}, timeout=60
        )
        assert found.status_code == status and message in found.json()["error"]["message"]


COUNTED = 'reward_kit_requests_total{route="other",status="404"}'


def test_readiness_counts_tokens_and_models(rm, url):
    assert requests.get(f"{url}/ready", timeout=60).json()["status"] == "ready"
    assert requests.head(f"{url}/health", timeout=60).status_code == 200
    assert requests.get(f"{url}/v1/models/{rm.__name__}", timeout=60).json()["id"] == rm.__name__
    missing = requests.get(f"{url}/v1/models/none", timeout=60)
    assert missing.status_code == 404 and missing.json()["error"]["type"] == "NotFoundError"
    found = answer(url, "/tokenize", prompt="Why? So.", return_token_strs=True)
    assert found["tokens"] == rm.encode(["Why? So."], None)[0] and found["count"] == len(found["token_strs"])
    for n in range(3):
        requests.get(f"{url}/no-such-path-{n}", timeout=60)
    lines = requests.get(f"{url}/metrics", timeout=60).text.splitlines()
    other = [line for line in lines if line.startswith(COUNTED)]
    assert len(other) == 1
    assert not any("no-such-path" in line for line in lines)


def test_answers_have_schemas(url):
    paths = requests.get(f"{url}/openapi.json", timeout=60).json()["paths"]
    for wire in WIRE_FORMATS:
        for path in wire.paths:
            schema = paths[path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
            assert schema.get("properties") or schema["type"] in ("array", "number"), path


def raw(url, sent, seconds=10):
    "What comes back for bytes, until the server closes."
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":")[-1])), timeout=seconds) as connection:
        connection.sendall(sent)
        got = b""
        while chunk := connection.recv(4096):
            got += chunk
        return got


@pytest.fixture(params=["h11", "httptools"])
def protocol(request, monkeypatch):
    "Which of the two reads requests."
    pytest.importorskip(request.param)
    if request.param == "h11":
        monkeypatch.setitem(sys.modules, "uvicorn.protocols.http.httptools_impl", None)
    return request.param


def test_half_a_head_is_closed_and_connections_are_counted(rm, protocol):
    with background_server(rm, network=Network(max_connections=3, head_timeout_s=0.4)) as url:
        assert raw(url, b"POST /v1/rewards HTTP/1.1\r\nHost: loc") == b""  # closed without an answer
        assert raw(url, b"\r\n") == b"" or protocol == "h11"  # which answers that it is no HTTP
        first = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert b"200 OK" in raw(url, first + b"GET /health HTTP/1.1\r\nHo")  # after a whole one, too
        port = int(url.rsplit(":")[-1])
        with contextlib.ExitStack() as held:
            for _ in range(3):
                held.enter_context(socket.create_connection(("127.0.0.1", port)))
            time.sleep(0.05)
            assert b"503 Service Unavailable" in raw(url, b"")
        wait_until(lambda: requests.get(f"{url}/health", timeout=60).status_code == 200)


ASK = b'{"prompts": ["Why?"]}'
HEAD = b"POST /v1/rewards HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
WHOLE = b"%sContent-Length: %d\r\n" % (HEAD, len(ASK))
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP\r\n\r\n"
LAST = b"Connection: close\r\n\r\n"
UNBOUNDED = {
    "a long line": (WHOLE + b"X: " + b"a" * 500_000, b"HTTP/1.1 4"),
    "many lines": (WHOLE + b"X: aaaaa\r\n" * 50_000, b"HTTP/1.1 4"),
    "many lines at once": (WHOLE + b"X: a\r\n" * 5_000 + LAST + ASK, b"HTTP/1.1 431"),
    "a long name of a chunk": (CHUNKED + b"1;" + b"x" * 500_000, b"HTTP/1.1 4"),
    "lines after the body": (CHUNKED + b"0\r\n" + b"X: aaaaa\r\n" * 50_000, b"HTTP/1.1 4"),
    "a host of no shape": (b"GET /health HTTP/1.1\r\nHost: [::\r\n" + LAST, b"HTTP/1.1 421"),
    "two lengths": (WHOLE + b"Content-Length: 5\r\n\r\n" + ASK, b"HTTP/1.1 400"),
    "a length and chunks": (WHOLE + b"Transfer-Encoding: chunked\r\n" + LAST + b"0\r\n\r\n", b"HTTP/1.1 400"),
    "a web socket": (
        b"GET /v1/rewards HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        b"HTTP/1.1 405",
    ),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_what_a_head_may_hold_is_bounded(rm, protocol, caplog, name):
    sent, answer = UNBOUNDED[name]
    with background_server(rm, ServerLimits(body_timeout_s=1), network=Network(head_timeout_s=0.6)) as url:
        try:
            got = raw(url, sent, 20)
        except ConnectionError:  # closed while more was on its way
            got = answer
        assert got.startswith(answer), got[:200]
        assert requests.post(f"{url}/v1/rewards", json={"prompts": ["Why?"]}, timeout=60).status_code == 200
    assert "Traceback" not in caplog.text


def test_an_offer_of_another_protocol_is_left_aside_and_the_body_is_read(rm, protocol):
    "Java's client offers HTTP/2 with its first request, and sends a body with it."
    with background_server(rm, network=Network()) as url:
        got = raw(url, WHOLE + OFFER + ASK + WHOLE + LAST + ASK, 60)
        assert got.count(b"HTTP/1.1 200 OK") == 2 and got.count(b'"rewards":[') == 2
        behind = raw(url, WHOLE + b"\r\n" + ASK + WHOLE + OFFER + ASK + WHOLE + LAST + ASK, 60)
        assert behind.count(b'"rewards":[') in (0, 1, 3)  # never one answer in the place of another


def test_requests_sent_ahead_are_bounded(rm, protocol):
    ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    with background_server(rm, network=Network()) as url:
        assert raw(url, (ask + b"\r\n") * 20 + ask + LAST).count(b" 200 OK") == 21
        with contextlib.suppress(ConnectionError):
            got = raw(url, (ask + b"\r\n") * 3000 + ask + LAST, 60)
            assert got.count(b" 200 OK") == 3001 or b" 400 Bad" in got
        assert requests.get(f"{url}/health", timeout=60).status_code == 200


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]),) * 2)
from reward_kit.tools.cli import main
raise SystemExit(main(["serve", sys.argv[1], "--port", "0", "--device", "cpu"]))
"""


@pytest.mark.parametrize("files", [70, 200])
def test_at_the_limit_of_open_files_callers_are_sent_away_and_nothing_is_logged(folder, tmp_path, files):
    log = tmp_path / "log"
    with open(log, "w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", LIMITED, folder, str(files)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        url = "http://" + process.stdout.readline().split("http://")[1].split(",")[0]
        host, port = url.removeprefix("http://").split(":")
        with contextlib.ExitStack() as held:
            for _ in range(400):
                caller = held.enter_context(socket.socket())
                caller.setblocking(False)
                caller.connect_ex((host, int(port)))
            answered = lambda: requests.get(f"{url}/health", timeout=5).status_code
            with contextlib.suppress(requests.RequestException):
                assert answered() in (200, 503)
        wait_until(
            lambda: (
                requests.post(f"{url}/v1/rewards", json={"prompts": ["Why?"]}, timeout=60).status_code == 200
            )
        )
    finally:
        process.terminate()
        process.communicate()
    assert log.stat().st_size < 2000, log.read_text()[:3000]


def test_https_and_a_wrong_certificate(rm, tmp_path, folder, capsys):
    (tmp_path / "no.pem").write_text("none")
    assert main(["serve", str(folder), "--port", "0", "--ssl-certfile", str(tmp_path / "no.pem")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "TLS cannot be used with" in line
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        + ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        + ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"],
        capture_output=True,
    )
    if made.returncode:
        pytest.skip("openssl makes no certificate here")
    files = {"ssl_certfile": str(tmp_path / "cert.pem"), "ssl_keyfile": str(tmp_path / "key.pem")}
    with background_server(rm, network=Network(**files)) as url:
        assert url.startswith("https://")
        found = requests.get(f"{url}/health", verify=files["ssl_certfile"], timeout=60)
        assert found.json()["status"] == "ok"


# --- starting and stopping


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_what_is_written_to_a_connection_is_sent_at_once(host):
    async def serve(sock):
        found = asyncio.get_running_loop().create_future()

        def connected(reader, writer):
            own = writer.get_extra_info("socket")
            found.set_result(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        async with await asyncio.start_server(connected, sock=sock):
            _, writer = await asyncio.open_connection(*sock.getsockname()[:2])
            assert await found
            writer.close()

    with bind(host, 0) as sock:
        asyncio.run(serve(sock))


def test_a_port_opens_when_its_server_is_there():
    with bind("127.0.0.1", 0) as sock:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(sock.getsockname())


def test_special_tokens_by_the_million_are_taken_off_in_one_pass(rm):
    bos, eos = rm.tokenizer.bos_token, rm.tokenizer.eos_token
    many = 300_000
    assert bare_text(rm.encoder, f"{bos * many}a{eos * many}b {f'{eos} ' * many}") == f"a{eos * many}b "


def test_a_shutdown_answers_with_503_what_it_has_no_time_for(rm):
    "Of three open requests one is being scored, one waits, and of one the body is still on its way."
    with held(rm) as go, ThreadPoolExecutor(2) as pool:
        with background_server(rm, ServerLimits(shutdown_timeout=0.3, max_batch_rows=1)) as url:
            futures = [pool.submit(post, url, "/get_reward", query=[p]) for p in PROMPTS[:2]]
            wait_until(lambda: go.scored and waiting(url) == 1)
            sock = send(url, "/get_reward", "{", length=100)
            time.sleep(0.2)  # until the server has seen it
            begun = time.monotonic()
        assert time.monotonic() - begun < 20  # a body has 30 seconds, the model would hold still for 60
        for got in [f.result() for f in futures]:
            assert got.status_code == 503 and got.headers["Retry-After"] == "5"
            assert got.json()["error"]["message"].startswith(
                "this server is shutting down and could not answer within 0.3 seconds"
            )
        assert b" 503 " in sock.recv(4096).splitlines()[0]
        sock.close()
    assert len(go.scored) == 1  # the one that waited was not scored after that


def test_a_shutdown_with_time_enough_answers_everything(rm):
    with held(rm) as go, ThreadPoolExecutor(3) as pool:
        with background_server(rm, ServerLimits(shutdown_timeout=60, max_batch_rows=1)) as url:
            futures = [pool.submit(post, url, "/get_reward", query=[p]) for p in PROMPTS[:3]]
            wait_until(lambda: waiting(url) == 2)
            threading.Timer(0.5, go.set).start()
        assert [f.result().json()["rewards"][0] for f in futures] == pytest.approx(
            rm.score(PROMPTS[:3]), abs=1e-5
        )


def test_closing_when_every_caller_has_left_ends_the_thread_before_its_next_forward_pass(folder):
    rm, begun, passes = (
        RewardModel.from_pretrained(folder, device="cpu", batch_tokens=1),
        threading.Event(),
        [],
    )
    rm.model.register_forward_pre_hook(lambda *_: (begun.set(), passes.append(1), time.sleep(0.1))[0])
    batcher = Batcher(rm, ServerLimits(max_batch_rows=1))
    futures = [batcher.submit(Texts(PROMPTS)), batcher.submit(Texts(PROMPTS[:1]))]
    begun.wait(60)
    assert not batcher.close(timeout=0.1)  # it still works for its callers
    for future in futures:
        assert future.cancel()
    assert batcher.close(timeout=60) and len(passes) < 20
    rm.score(PROMPTS[:1])  # the model itself is as it was


def test_open_requests_are_forgotten_however_they_end():
    async def use(limits, inner):
        requests, error = OpenRequests(limits), None
        try:
            async with requests.bounded():
                assert len(requests.open) == 1
                await inner(requests)
        except Exception as e:
            error = e
        assert not requests.open
        return error, requests.given_up

    async def nothing(requests):
        pass

    async def late(requests):
        requests.stop()
        await asyncio.sleep(60)

    async def broken(requests):
        raise TimeoutError("of something else")

    assert asyncio.run(use(ServerLimits(), nothing)) == (None, 0)
    error, given_up = asyncio.run(use(ServerLimits(shutdown_timeout=0), late))
    assert isinstance(error, RequestError) and (error.status, given_up) == (503, 1)
    error, given_up = asyncio.run(use(ServerLimits(), broken))
    assert str(error) == "of something else" and given_up == 0


SLOW_SERVER = """
import sys, time
from reward_kit.scores.inference import RewardModel
from reward_kit.tools.serving import ServerLimits, serve
rm = RewardModel.from_pretrained(sys.argv[1], device="cpu")
score_ids = rm.score_ids
rm.score_ids = lambda rows, progress=False: (time.sleep(0.2), score_ids(rows, progress))[1]
serve(rm, port=0, limits=ServerLimits(max_batch_rows=1), say=lambda line: print(line, flush=True))
"""


@contextlib.contextmanager
def running(*argv):
    "A server process and its URL, read from its first line."
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)
    try:
        line = process.stdout.readline()
        assert line.startswith("Serving reward-model at http://127.0.0.1:"), line + process.stderr.read()
        yield process, line.split()[3].rstrip(",")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_stopping_finishes_what_was_accepted_and_refuses_the_rest(folder, rm, number):
    with (
        running(sys.executable, "-c", SLOW_SERVER, str(folder)) as (process, url),
        ThreadPoolExecutor(20) as pool,
    ):
        futures = [pool.submit(post, url, "/get_reward", query=[p]) for p in PROMPTS[:20]]
        wait_until(lambda: requests.get(url + "/health", timeout=60).json()["waiting"] >= 15)
        assert not all(f.done() for f in futures)
        process.send_signal(number)
        rewards = [f.result().json()["rewards"][0] for f in futures]
        assert rewards == pytest.approx(rm.score(PROMPTS[:20]), abs=1e-5)
        out, err = process.communicate(timeout=60)
        assert (
            process.returncode == 0
            and "Stopped; requests that got a 503 because the time was up: 0." in out
            and not err
        )
        with pytest.raises(requests.ConnectionError):
            post(url, "/get_reward", query=["late"])


HURRIED_SERVER = """
import sys, torch
from reward_kit.scores.inference import RewardModel
from reward_kit.tools.serving import ServerLimits, serve
rm, a = RewardModel.from_pretrained(sys.argv[1], device="cpu", batch_tokens=1), torch.randn(300, 300)
def slow(*_):
    for _ in range(100): a @ a
    if not told: told.append(print("busy", flush=True))
told = []
rm.model.register_forward_pre_hook(slow)
print(serve(rm, port=0, limits=ServerLimits(shutdown_timeout=0.5), say=lambda line: print(line, flush=True)))
"""

ENDLESS_COMMAND = """
import sys, torch
from reward_kit.tools.cli import main
from reward_kit.scores.inference import RowScorer
def forward(self, rows):
    print("busy", flush=True)
    a = torch.randn(300, 300)
    while True: a @ a
RowScorer.forward = forward
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, options, last",
    [
        (HURRIED_SERVER, [], "True"),
        (ENDLESS_COMMAND, ["--port", "0", "--device", "cpu", "--shutdown-timeout", "0.5"], ""),
    ],
    ids=["serve, many forward passes", "the command, a forward pass without end"],
)
def test_a_process_ends_in_time_and_without_a_crash(folder, script, options, last):
    argv = [*(["serve"] if options else []), str(folder), *options]
    with running(sys.executable, "-c", script, *argv) as (process, url), ThreadPoolExecutor(1) as pool:
        future = pool.submit(post, url, "/get_reward", query=PROMPTS)
        assert process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGTERM)
        got = future.result()
        out, err = process.communicate(timeout=30)
        assert (
            got.status_code == 503 and "could not answer within 0.5 seconds" in got.json()["error"]["message"]
        )
        assert process.returncode == 0 and not err
        assert out == "Stopped; requests that got a 503 because the time was up: 1.\n" + (
            last and last + "\n"
        )


@pytest.mark.slow
def test_the_command_serves_until_it_is_stopped(folder, rm):
    command = "from reward_kit.tools.cli import main; raise SystemExit(main())"
    with running(
        sys.executable,
        "-c",
        command,
        "serve",
        str(folder),
        "--port",
        "0",
        "--max-rows",
        "2",
        "--device",
        "cpu",
    ) as (process, url):
        assert RewardClient(url).score("Why?", ["So.", "No."]) == pytest.approx(
            rm.score("Why?", ["So.", "No."]), abs=1e-5
        )
        with pytest.raises(
            RewardServerError, match="answers 413: the request has 3 texts, this server takes 2"
        ):
            RewardClient(url).score(["a", "b", "c"])
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0 and "Stopped" in out and not err


def test_a_port_in_use_is_one_line(folder, capsys):
    with bind("127.0.0.1", 0) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        assert main(["serve", str(folder), "--port", str(port)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line == f"reward-kit: error: cannot listen on 127.0.0.1, port {port}: Address already in use; choose"
        " another port or host"
    )


@pytest.mark.parametrize(
    "argv, code, message",
    [
        (["./no-such-model", "--port", "0"], 1, "model folder ./no-such-model does not exist"),
        (["m", "--port", "99999"], 1, "cannot listen on 127.0.0.1, port 99999: bind(): port must be 0-65535"),
        (["m", "--host", "no host", "--port", "0"], 1, "cannot listen on no host"),
        (["m", "--max-rows", "0"], 2, "--max-rows must be above 0, got 0"),
        (["m", "--max-wait-ms", "-1"], 2, "--max-wait-ms must be 0 or more, got -1"),
        (["m", "--max-batch-tokens", "0"], 2, "--max-batch-tokens must be above 0, got 0"),
        (["m", "--shutdown-timeout", "-1"], 2, "--shutdown-timeout must be 0 or more, got -1"),
        (["m", "--shutdown-timeout", "inf"], 2, "--shutdown-timeout must be a finite number, got inf"),
        (["--port", "0"], 2, "required and missing: MODEL"),
    ],
)
def test_wrong_calls_of_the_command_are_one_line(argv, code, message, capsys):
    assert main(["serve", *argv]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("reward-kit: error: ") and message in line


@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_a_missing_package_says_how_to_install_it(package, folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["serve", str(folder), "--port", "0"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line == f"reward-kit: error: the server needs {package}, which is not installed: pip install"
        ' "reward-kit[serve]"'
    )


def test_defaults_of_the_command_are_those_of_the_server():
    import inspect

    from reward_kit.scores.inference import RewardModel

    options, limits = {name: o.default for name, o in COMMANDS["serve"].options().items()}, ServerLimits()
    names = {f.name for f in fields(ServerLimits)} - {"max_batch_rows", "body_timeout_s"}  # Python only
    assert {n: options[n] for n in names} == {n: getattr(limits, n) for n in names} and {
        "shutdown_timeout",
        "max_queue",
    } < names
    defaults = {n: p.default for n, p in inspect.signature(serve).parameters.items()}
    assert (
        (options["host"], options["port"], options["access_log"])
        == (defaults["host"], defaults["port"], defaults["access_log"])
        == ("127.0.0.1", 8000, False)
    )
    assert (
        options["max_batch_tokens"]
        == inspect.signature(RewardModel.from_pretrained).parameters["batch_tokens"].default
    )


# --- the client


@contextlib.contextmanager
def scripted(*steps):
    """A server that answers with the given (status, headers, body), one after the other; None breaks
    the connection off. Yields URL and requests seen."""
    todo, seen = queue.SimpleQueue(), []
    for step in steps:
        todo.put(step)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            step = todo.get_nowait()
            if step is None:
                return self.connection.shutdown(socket.SHUT_RDWR)
            status, headers, body = step
            data = body.encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


GOOD = (200, {}, '{"rewards": [1.5]}')


@pytest.mark.parametrize(
    "steps",
    [
        [(503, {"Retry-After": "0"}, ""), GOOD],
        [(429, {}, ""), (502, {}, ""), (504, {}, ""), GOOD],
        [None, GOOD],
    ],
    ids=["503", "429, 502, 504", "broken off"],
)
def test_what_may_pass_is_tried_again(steps):
    with scripted(*steps) as (url, seen):
        assert RewardClient(url, max_pause=0.01).score("Why?", "So.") == 1.5
        assert seen == [
            {"prompts": ["Why?"], "responses": ["So."], "normalize": False, "too_long": "error"}
        ] * len(steps)


@pytest.mark.parametrize(
    "step, message",
    [
        ((400, {}, '{"error": {"message": "prompts[0] is odd"}}'), "answers 400: prompts[0] is odd"),
        ((500, {}, "<html>\n broken"), "answers 500: <html> broken"),
        ((302, {"Location": "/elsewhere"}, ""), "answers 302: Found"),
        ((200, {}, "hello"), "is no route of a reward_kit server: it answers 'hello' instead of 1 reward"),
        ((200, {}, '{"rewards": [1, 2]}'), "instead of 1 reward"),
        ((200, {}, '{"rewards": 3}'), "instead of 1 reward"),
    ],
)
def test_what_will_not_pass_is_raised_at_once(step, message):
    with scripted(step, GOOD) as (url, seen):
        with pytest.raises(RewardServerError) as error:
            RewardClient(url, max_pause=0.01).score("Why?", "So.")
    assert message in str(error.value) and "\n" not in str(error.value) and len(seen) == 1


def test_tries_are_bounded():
    with scripted(*[(503, {"Retry-After": "3600"}, '{"error": {"message": "busy"}}')] * 9) as (url, seen):
        with pytest.raises(RewardServerError, match=r"answers 503 \(after 4 tries\): busy"):
            RewardClient(url, retries=3, max_pause=0.01).score("Why?", "So.")
        assert len(seen) == 4
    with pytest.raises(RewardServerError, match="after 3 tries: .*Connection refused; is it running"):
        RewardClient(url, retries=2, max_pause=0.01).score("Why?", "So.")


def test_pauses_grow_and_vary(monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    for _ in range(2):
        with scripted(*[(502, {}, "")] * 7) as (url, _seen), pytest.raises(RewardServerError):
            RewardClient(url, retries=6, max_pause=6).score("Why?", "So.")
    first, second = (own for own in (pauses[: len(pauses) // 2], pauses[len(pauses) // 2 :]))
    own = [p for p in first if p >= 0.5]
    assert own == sorted(own) and max(pauses) <= 6 and own[0] < 2 < own[-1] and first != second


def test_no_answer_in_time_is_an_error():
    with bind("127.0.0.1", 0) as sock:
        sock.listen()  # accepts connections and says nothing
        client = RewardClient(
            f"http://127.0.0.1:{sock.getsockname()[1]}", timeout=0.1, retries=1, max_pause=0.01
        )
        with pytest.raises(
            RewardServerError,
            match="no answer from the reward server at .* after 2 tries: .*(timed out|timeout)",
        ):
            client.score("Why?", "So.")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("localhost:8000",), "url is 'localhost:8000'; it must be like http://127.0.0.1:8000"),
        (("http://a", {"timeout": 0}), "timeout=0"),
        (("http://a", {"retries": -1}), "retries=-1"),
        (("http://a", {"batch_rows": 0}), "batch_rows=0"),
    ],
)
def test_wrong_settings_of_the_client(arguments, message):
    with pytest.raises(ValueError, match=message):
        RewardClient(arguments[0], **(arguments[1:] or ({},))[0])


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "null", '"good"', "true", "[1]", "{}"])
def test_a_reward_that_is_no_finite_number_is_refused(value):
    with answering(200, f'{{"rewards": [0.5, {value}]}}'.encode()) as url:
        with pytest.raises(RewardServerError, match="rewards that are no finite numbers"):
            RewardClient(url, retries=0).score(["a", "b"])
        if value == "null":  # a text that does not fit has none, where that was allowed
            assert RewardClient(url, retries=0).score(["a", "b"], too_long="none") == [0.5, None]


def test_an_answer_that_drips_in_ends_with_the_time_limit():
    with answering(200, b'{"rewards": [0.5]}' + b" " * 400, pause=0.05) as url:
        with pytest.raises(RewardServerError, match="does not come to an end in time"):
            RewardClient(url, retries=0, timeout=0.3).score(["a"])


@contextlib.contextmanager
def answering(status, body, pause=0):
    "A server that answers everything in this way, byte after byte where there is a pause."

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                for piece in [bytes([byte]) for byte in body] if pause else [body]:
                    self.wfile.write(piece)
                    self.wfile.flush()
                    time.sleep(pause)

        def log_message(self, *_): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_is_no_text_is_an_error_before_anything_is_sent():
    with scripted() as (url, seen):
        with pytest.raises(TypeError, match=r"prompts\[1\] is None"):
            RewardClient(url).score(["a", None], ["b", "c"])
        with pytest.raises(ValueError, match="got 2 prompts and 1 response"):
            RewardClient(url)(["a", "b"], ["c"])
        assert not seen


def test_many_texts_go_in_several_requests(rm, url):
    client = RewardClient(url, batch_rows=50)
    assert client.score(PROMPTS, RESPONSES) == pytest.approx(rm.score(PROMPTS, RESPONSES), abs=1e-5)
    assert client.score(PROMPTS[0], RESPONSES[:3]) == pytest.approx(
        rm.score(PROMPTS[0], RESPONSES[:3]), abs=1e-5
    )
    assert client.score(PROMPTS[0], RESPONSES[0], normalize=True) == pytest.approx(
        rm.score(PROMPTS[0], RESPONSES[0], normalize=True), abs=1e-5
    )


def test_the_client_is_a_reward_function(rm, url):
    """As TRL calls it: every column, conversations, and None for what does not apply; template
    arguments reach the right rows."""
    client = RewardClient(url, batch_rows=2)
    columns = {
        "completion_ids": [[1]] * 3,
        "answer": list("xyz"),
        "trainer_state": object(),
        "log_metric": print,
        "tools": [None] * 3,
    }
    prompts, completions = (
        [CHAT[:1]] * 3,
        [
            CHAT[1:],
            [{"role": "assistant", "content": "word " * 400}],
            CHAT[1:],
        ],
    )
    expected = rm(prompts=prompts, completions=completions, **columns)
    assert expected[1] is None and client(prompts=prompts, completions=completions, **columns) == [
        pytest.approx(r, abs=1e-5) if r is not None else None for r in expected
    ]
    with scripted(GOOD, GOOD) as (address, seen):
        RewardClient(address, batch_rows=1)(
            ["a", "b"], ["c", "d"], chat_template_kwargs=[{"k": 1}, {"k": 2}], other=[1, 2]
        )
        assert [body.get("chat_template_kwargs") for body in seen] == [
            [{"k": 1}],
            [{"k": 2}],
        ] and "other" not in seen[0]


# --- other trainers: the true reward rises


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A reward model trained on playground preferences."
    from reward_kit.tools.pipeline import train_reward_model

    path = tmp_path_factory.mktemp("trained") / "reward-model"
    train_reward_model(
        "playground",
        WORLD.preferences(1200),
        path,
        config={"num_train_epochs": 1},
        progress=False,
        say=lambda *_: None,
    )
    return path


def mean_true_reward(policy, tokenizer, prompts):
    "The true reward that the policy earns on each prompt, mean of two responses."
    rewards = WORLD.true_reward(prompts * 2, sample(policy, tokenizer, prompts * 2))
    return [(a + b) / 2 for a, b in zip(rewards[: len(prompts)], rewards[len(prompts) :])]


def sample(policy, tokenizer, prompts):
    "One response to each prompt."
    torch.manual_seed(0)
    inputs = tokenizer(
        prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False
    )
    with torch.no_grad():
        ids = policy.eval().generate(**inputs, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=48)
    return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_the_true_reward_rises_in_trl(kind, trained, tmp_path):
    """Twenty steps of 64 responses; the responses of the policy before and after are compared prompt by
    prompt, on prompts it was not trained on."""
    import trl
    from datasets import Dataset
    from scipy.stats import ttest_rel

    config, trainer = getattr(trl, f"{kind}Config"), getattr(trl, f"{kind}Trainer")
    prompts = WORLD.prompts()
    training, held_out = prompts[:-200], prompts[-200:]
    policy, tokenizer = load_base()
    before = mean_true_reward(policy, tokenizer, held_out)
    args = config(
        output_dir=str(tmp_path),
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        max_steps=20,
        per_device_train_batch_size=64,
        num_generations=8,
        max_completion_length=48,
        beta=0.0,
        seed=0,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    with contextlib.ExitStack() as stack:  # RLOO asks a server
        reward = RewardModel.from_pretrained(trained, device="cpu")
        if kind == "RLOO":
            reward = RewardClient(stack.enter_context(background_server(reward)))
        run = trainer(
            model=policy,
            reward_funcs=reward,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": training}),
            processing_class=tokenizer,
        )
        run.train()
    after = mean_true_reward(run.model, tokenizer, held_out)
    test = ttest_rel(after, before, alternative="greater")
    low, high = ttest_rel(after, before).confidence_interval(0.95)
    print(
        f"{kind}: true reward {sum(before) / 200:.2f} before, {sum(after) / 200:.2f} after; difference"
        f" {low:.2f} to {high:.2f} (95%), p = {test.pvalue:.1g}"
    )
    assert test.pvalue < 0.01 and low > 0
