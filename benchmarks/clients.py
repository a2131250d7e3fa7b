"""A reward model asked by other people's clients and loaders: the lines that were run, and how far
the rewards are from `RewardModel.score`.

    python benchmarks/clients.py [--reward-model FOLDER] [--only NAME ...]
        [--output benchmarks/results/clients.md]

Those that are installed are run, against `reward-kit serve` on the loopback address or the folder itself;
the others are listed as not run. Light ones: pip install openai cohere sentence-transformers requests
openapi-python-client langchain-openai llama-index-postprocessor-tei-rerank; for the Python that COHERE_5
names, langchain-cohere llama-index-postprocessor-cohere-rerank infinity_client; for the one of
TRANSFORMERS_4, "optimum-onnx[onnxruntime]". What the page of a client shows is what was executed here. Of
programs too large for that, what their source sends is sent.
"""

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from common import publish, table, versions_line

from reward_kit import Playground, RewardModel
from reward_kit.tools.pipeline import train_reward_model
from reward_kit.tools.serving import background_server

PROMPT, RESPONSES = "What is the front of a ship?", ["The front of a ship is called the bow.", "Go away."]


@dataclass
class Client:
    "One way to ask: its lines set `rewards`, one for each response."

    name: str
    packages: tuple  # distributions that it needs
    lines: str
    note: str = ""
    python: str = ""  # environment variable that names another Python, where its lines are run


CLIENTS = [
    Client(
        "curl",
        (),
        """\
import json, subprocess
body = json.dumps({"prompts": [prompt] * 2, "responses": responses})
command = ["curl", "-s", f"{URL}/v1/rewards", "-H", "Content-Type: application/json", "-d", body]
rewards = json.loads(subprocess.run(command, capture_output=True).stdout)["rewards"]""",
    ),
    Client(
        "reward_kit",
        (),
        """\
from reward_kit import RewardClient
rewards = RewardClient(URL).score([prompt] * 2, responses)""",
        "retries, timeouts, and errors that say what was wrong",
    ),
    Client(
        "openai",
        ("openai",),
        """\
from openai import OpenAI
client = OpenAI(base_url=f"{URL}/v1", api_key="none")
texts = [f"{prompt} {response}" for response in responses]
reply = client.embeddings.create(model="reward-model", input=texts)
rewards = [item.embedding[0] for item in reply.data]""",
        "the reward is an embedding of one number",
    ),
    Client(
        "cohere",
        ("cohere",),
        """\
import cohere
client = cohere.ClientV2(base_url=URL, api_key="none")
reply = client.rerank(model="reward-model", query=prompt, documents=responses)
rewards = [row.relevance_score for row in sorted(reply.results, key=lambda row: row.index)]""",
        "the better response comes first",
    ),
    Client(
        "LangChain, by cohere",
        ("langchain-cohere", "cohere"),
        """\
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
ranker = CohereRerank(model="reward-model", base_url=URL, cohere_api_key="none", top_n=None)
documents = [Document(response, metadata={"place": i}) for i, response in enumerate(responses)]
found = ranker.compress_documents(documents, prompt)
found.sort(key=lambda row: row.metadata["place"])
rewards = [row.metadata["relevance_score"] for row in found]""",
        "it holds cohere below 6, so it is run by the Python that COHERE_5 names",
        "COHERE_5",
    ),
    Client(
        "LangChain, by openai",
        ("langchain-openai", "openai"),
        """\
from langchain_openai import OpenAIEmbeddings
reader = OpenAIEmbeddings(
    base_url=f"{URL}/v1", api_key="none", model="reward-model", check_embedding_ctx_length=False)
rows = reader.embed_documents([f"{prompt} {response}" for response in responses])
rewards = [row[0] for row in rows]""",
    ),
    Client(
        "LlamaIndex, by cohere",
        ("llama-index-postprocessor-cohere-rerank", "cohere"),
        """\
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank
ranker = CohereRerank(model="reward-model", base_url=URL, api_key="none", top_n=len(responses))
nodes = [NodeWithScore(node=TextNode(text=response)) for response in responses]
found = {row.text: row.score for row in ranker.postprocess_nodes(nodes, query_str=prompt)}
rewards = [found[response] for response in responses]""",
        "as LangChain's",
        "COHERE_5",
    ),
    Client(
        "LlamaIndex, as text-embeddings-inference",
        ("llama-index-postprocessor-tei-rerank",),
        """\
import math
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
ranker = TextEmbeddingInference(base_url=URL, top_n=len(responses))
nodes = [NodeWithScore(node=TextNode(text=response)) for response in responses]
found = {row.text: row.score for row in ranker.postprocess_nodes(nodes, query_str=prompt)}
rewards = [math.log(found[response] / (1 - found[response])) for response in responses]""",
        "it asks for probabilities, so the rewards are their logits",
    ),
    Client(
        "infinity_client",
        ("infinity_client",),
        """\
from infinity_client import Client
from infinity_client.api.default import rerank
from infinity_client.models import RerankInput
body = RerankInput(query=prompt, documents=responses, model="reward-model", raw_scores=True)
reply = rerank.sync(client=Client(base_url=URL), body=body)
rewards = [row.relevance_score for row in sorted(reply.results, key=lambda row: row.index)]""",
        "without raw_scores it gets probabilities, as from infinity",
        "COHERE_5",
    ),
    Client(
        "openapi-python-client",
        ("openapi-python-client",),
        """\
import subprocess, sys, tempfile
made = tempfile.mkdtemp()
command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
command += ["--url", f"{URL}/openapi.json", "--output-path", f"{made}/scores"]
subprocess.run(command, check=True, capture_output=True)
sys.path.insert(0, made)
from scores import Client
from scores.api.default import score_v1_rewards
from scores.models import ScoreV1RewardsBody
body = ScoreV1RewardsBody.from_dict({"prompts": [prompt] * 2, "responses": responses})
rewards = score_v1_rewards.sync(client=Client(base_url=URL), body=body).rewards""",
        "a client made from the server's own description; its answers are objects",
    ),
    Client(
        "huggingface_hub",
        ("huggingface_hub",),
        """\
from huggingface_hub import InferenceClient
client = InferenceClient(model=URL)
texts = [f"{prompt} {response}" for response in responses]
rewards = [client.text_classification(text)[0].score for text in texts]""",
        "as an inference endpoint",
    ),
    Client(
        "requests, as verl's reward function",
        ("requests",),
        """\
import requests
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    body = {"prompts": [extra_info["prompt"]], "responses": [solution_str]}
    return requests.post(f"{URL}/v1/rewards", json=body).json()["rewards"][0]
rewards = [compute_score("", response, None, {"prompt": prompt}) for response in responses]""",
        "custom_reward_function.path names the file; the prompt must be in extra_info",
    ),
    Client(
        "transformers",
        ("transformers",),
        """\
from transformers import pipeline
judge = pipeline("text-classification", model=folder, function_to_apply="none")
rewards = [row["score"] for row in judge([f"{prompt} {response}" for response in responses])]""",
    ),
    Client(
        "sentence-transformers",
        ("sentence-transformers",),
        """\
from sentence_transformers import CrossEncoder
judge = CrossEncoder(folder)
rewards = judge.predict([(prompt, response) for response in responses]).tolist()""",
    ),
    Client(
        "TRL's GRPO and RLOO",
        ("trl",),
        """\
from reward_kit import RewardModel
reward = RewardModel.from_pretrained(folder)          # reward_funcs=reward
rewards = reward(prompts=[prompt] * 2, completions=responses)""",
    ),
    Client(
        "ONNX Runtime, by optimum",
        ("optimum-onnx", "onnxruntime"),
        """\
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer
ORTModelForSequenceClassification.from_pretrained(folder, export=True).save_pretrained("onnx")
AutoTokenizer.from_pretrained(folder).save_pretrained("onnx")

import numpy, onnxruntime  # from here on neither torch nor transformers is needed
from tokenizers import Tokenizer
session = onnxruntime.InferenceSession("onnx/model.onnx")
tokenizer, rewards = Tokenizer.from_file("onnx/tokenizer.json"), []
for response in responses:
    ids = numpy.array([tokenizer.encode(f"{prompt} {response}").ids])
    given = {"input_ids": ids, "attention_mask": numpy.ones_like(ids)}
    rewards.append(float(session.run(None, given)[0].item()))""",
        "optimum needs torch and transformers 4, so it is run by the Python that TRANSFORMERS_4 names; "
        "the folder onnx is then served without either",
        "TRANSFORMERS_4",
    ),
]


@dataclass
class Recorded:
    "What a program sends, as its source says, and where it reads the rewards."

    name: str
    source: str  # version, or commit
    path: str
    bodies: Callable  # function(texts, prompt, responses) -> list of bodies
    rewards: Callable  # function(answers in JSON) -> rewards


CHAT = lambda prompt, response: [
    {"role": "user", "content": prompt},
    {"role": "assistant", "content": response},
]
RECORDED = [
    Recorded(
        "OpenRLHF",
        "commit 07c34b3",
        "/get_reward",
        lambda texts, prompt, responses: [{"query": texts}],
        lambda answers: answers[0]["rewards"],
    ),
    Recorded(
        "OpenRLHF",
        "0.11",
        "/get_reward",
        lambda texts, prompt, responses: [{"query": texts, "prompts": [prompt] * 2, "labels": ["", ""]}],
        lambda answers: answers[0]["rewards"],
    ),
    Recorded(
        "slime",
        "commit 0b420f1",
        "/",
        lambda texts, prompt, responses: [
            {"prompt": prompt, "response": response, "label": None} for response in responses
        ],
        lambda answers: answers,
    ),
    Recorded(
        "verl with vLLM",
        "commit 14af4d3",
        "/classify",
        lambda texts, prompt, responses: [
            {"model": "m", "input": text, "activation": False} for text in texts
        ],
        lambda answers: [answer["data"][-1]["probs"][-1] for answer in answers],
    ),
    Recorded(
        "verl with SGLang",
        "commit 14af4d3",
        "/v1/embeddings",
        lambda texts, prompt, responses: [{"model": "m", "input": text} for text in texts],
        lambda answers: [answer["data"][-1]["embedding"][-1] for answer in answers],
    ),
    Recorded(
        "vLLM's example of a client",
        "commit 04719f0",
        "/classify",
        lambda texts, prompt, responses: [{"model": "m", "input": texts}],
        lambda answers: [row["probs"][0] for row in answers[0]["data"]],
    ),
    Recorded(
        "SGLang's reward model",
        "its documentation",
        "/classify",
        lambda texts, prompt, responses: [{"model": "m", "text": texts}],
        lambda answers: [row["embedding"][0] for row in answers[0]],
    ),
    Recorded(
        "ms-swift, a conversation",
        "commit 3491646",
        "/v1/chat/completions",
        lambda texts, prompt, responses: [
            {"model": "m", "messages": CHAT(prompt, response)} for response in responses
        ],
        lambda answers: [answer["choices"][0]["message"]["content"] for answer in answers],
    ),
    Recorded(
        "LLaMA-Factory",
        "its documentation",
        "/v1/score/evaluation",
        lambda texts, prompt, responses: [{"model": "m", "messages": texts}],
        lambda answers: answers[0]["scores"],
    ),
]


def replay(one: Recorded, url: str, rm) -> str:
    "The largest difference of what it would read from what `RewardModel.score` gives."
    import requests

    texts = [f"{PROMPT} {response}" for response in RESPONSES]
    if "conversation" in one.name:
        expected = rm.score([CHAT(PROMPT, response) for response in RESPONSES])
    else:
        expected = rm.score([PROMPT] * 2, RESPONSES)
    answers = []
    for body in one.bodies(texts, PROMPT, RESPONSES):
        reply = requests.post(url + one.path, json=body, timeout=60)
        if not reply.ok:
            return reply.json()["error"]["message"]
        answers.append(reply.json())
    return f"{max(abs(a - b) for a, b in zip(one.rewards(answers), expected, strict=True)):.0e}"


def make_model(folder: Path) -> str:
    "A few steps on the playground, as a folder."
    data = Playground(seed=0).preferences(200)
    config = {"max_steps": 8, "show_plan": False, "use_cpu": True}
    quiet = {"progress": False, "say": lambda line: None}
    train_reward_model("playground", data, folder, config=config, **quiet)
    return str(folder)


def elsewhere(client: Client, code: str, *words: str) -> str:
    'What another Python prints; "" where there is none.'
    python = os.environ.get(client.python)
    command = [python, "-c", f"import json, sys\n{code}", *words]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as here:
        done = python and subprocess.run(command, capture_output=True, text=True, env=env, cwd=here)
    return done.stdout.strip().splitlines()[-1] if done and done.returncode == 0 else ""


def versions(client: Client) -> str | None:
    "Of its packages; None where one is not installed."
    if client.python:
        listed = "print(', '.join(f'{name} {version(name)}' for name in sys.argv[1:]))"
        code = f"from importlib.metadata import version\n{listed}"
        more = ["transformers"] if client.python == "TRANSFORMERS_4" else []
        return elsewhere(client, code, *client.packages, *more) or None
    with contextlib.suppress(metadata.PackageNotFoundError):
        return ", ".join(f"{name} {metadata.version(name)}" for name in client.packages) or "-"
    return None


def run(client: Client, url: str, folder: str, expected: list[float]) -> str:
    "The largest difference from what `RewardModel.score` gives, or what went wrong."
    given = {"URL": url, "folder": folder, "prompt": PROMPT, "responses": RESPONSES}
    try:
        if client.python:
            code = (
                "URL, folder, prompt, *responses = sys.argv[1:]\n"
                + client.lines
                + "\nprint(json.dumps(rewards))"
            )
            given["rewards"] = json.loads(elsewhere(client, code, url, folder, PROMPT, *RESPONSES))
        else:
            exec(client.lines, given)
        found = given["rewards"]
        if len(found) != len(expected):
            return f"gave {len(found)} rewards for {len(expected)} responses"
        return f"{max(abs(a - b) for a, b in zip(found, expected)):.0e}"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def main(args) -> None:
    "Prints the table and the lines."
    with tempfile.TemporaryDirectory() as work:
        folder = str(args.reward_model or make_model(Path(work) / "reward-model"))
        rm = RewardModel.from_pretrained(folder)
        expected = rm.score([PROMPT] * 2, RESPONSES)
        rows, pages = [], []
        with background_server(rm) as url:
            for client in CLIENTS:
                if args.only and client.name not in args.only:
                    continue
                version = versions(client)
                result = "not installed" if version is None else run(client, url, folder, expected)
                rows.append([client.name, version or "", result, client.note])
                pages += [f"## {client.name}", "", "```python", client.lines, "```", ""]
            asked = [] if args.only else [[r.name, r.source, r.path, replay(r, url, rm)] for r in RECORDED]
    head = (
        "Rewards of two responses, asked through each; `URL` is the server's address, `folder` the model's."
    )
    difference = "largest difference from RewardModel.score"
    text = [head, "", *table(["client", "version", difference, "note"], rows), ""]
    if asked:
        text += [
            "Programs too large to be run here: the server was asked with what their source sends, "
            "and the reward was read where they read it.",
            "",
            *table(["program", "as of", "path", difference], asked),
            "",
        ]
    text += [
        "With `URL`, `folder`, a `prompt` and a list of two `responses`, such as these:",
        "",
        "```python",
        'URL, folder = "http://127.0.0.1:8000", "reward-model"',
        f"prompt, responses = {PROMPT!r}, {RESPONSES!r}",
        "```",
        "",
        *pages,
        versions_line(1),
    ]
    publish("\n".join(text), args.output, None, "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--reward-model", type=Path, help="a folder; default: one is trained on the playground"
    )
    parser.add_argument("--only", nargs="+", help="names of clients")
    parser.add_argument("--output", type=Path, help="Markdown file")
    main(parser.parse_args())
