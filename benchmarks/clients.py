"""A reward model asked by other people's clients and loaders: the lines that were run, and how far
the rewards are from `RewardModel.score`.

    python benchmarks/clients.py [--reward-model FOLDER] [--only NAME ...]
        [--output benchmarks/results/clients.md]

Those that are installed are run, against `reward-kit serve` on the loopback address or the folder itself;
the others are listed as not run. Light ones: pip install openai cohere sentence-transformers requests
openapi-python-client "optimum-onnx[onnxruntime]". What the page of a client shows is what was executed here.
"""

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
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
reply = client.embeddings.create(model="reward-model", input=texts, encoding_format="float")
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
model = ORTModelForSequenceClassification.from_pretrained(folder, export=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = [tokenizer(f"{prompt} {response}", return_tensors="pt") for response in responses]
rewards = [model(**own).logits.item() for own in inputs]""",
        "optimum needs transformers 4, so it is run by the Python that TRANSFORMERS_4 names; "
        "model.onnx and tokenizer.json are then served without torch",
        "TRANSFORMERS_4",
    ),
]


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
    done = python and subprocess.run(command, capture_output=True, text=True, env=env)
    return done.stdout.strip().splitlines()[-1] if done and done.returncode == 0 else ""


def versions(client: Client) -> str | None:
    "Of its packages; None where one is not installed."
    if client.python:
        listed = "print(', '.join(f'{name} {version(name)}' for name in sys.argv[1:]))"
        code = f"from importlib.metadata import version\n{listed}"
        return elsewhere(client, code, *client.packages, "transformers") or None
    with contextlib.suppress(metadata.PackageNotFoundError):
        return ", ".join(f"{name} {metadata.version(name)}" for name in client.packages) or "-"
    return None


def run(client: Client, url: str, folder: str, expected: list[float]) -> str:
    "The largest difference from what `RewardModel.score` gives, or what went wrong."
    given = {"URL": url, "folder": folder, "prompt": PROMPT, "responses": RESPONSES}
    try:
        if client.python:
            code = (
                "folder, prompt, *responses = sys.argv[1:]\n" + client.lines + "\nprint(json.dumps(rewards))"
            )
            given["rewards"] = json.loads(elsewhere(client, code, folder, PROMPT, *RESPONSES))
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
    head = (
        "Rewards of two responses, asked through each; `URL` is the server's address, `folder` the model's."
    )
    columns = ["client", "version", "largest difference from RewardModel.score", "note"]
    text = [head, "", *table(columns, rows), "", *pages, versions_line(1)]
    publish("\n".join(text), args.output, None, "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--reward-model", type=Path, help="a folder; default: one is trained on the playground"
    )
    parser.add_argument("--only", nargs="+", help="names of clients")
    parser.add_argument("--output", type=Path, help="Markdown file")
    main(parser.parse_args())
