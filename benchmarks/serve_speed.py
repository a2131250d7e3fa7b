"""Texts per second through the score server, beside the same texts given to RewardModel.score directly.

    python benchmarks/serve_speed.py [--clients 32] [--texts 1280] [--reward-model FOLDER] [--output FILE.md]

`reward-kit serve` in a process of its own, on the loopback address; callers with a connection each,
kept alive, that send one text a request and wait for its reward, in a process of their own. Directly:
`rm.score` of the same texts, in batches of as many as there are callers, and one by one. The playground's
base with a new head, unless another model is given. Rounds in alternating order; that the rewards are the
same is checked in the run. Callers and server share the processors, so on few of them the ratio is low.
"""

import argparse
import json
import subprocess
import sys
from contextlib import contextmanager
from http.client import HTTPConnection
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from time import perf_counter

from common import Workers, alternating, answer, available_threads, middle, publish, table, versions_line


def prepare(work: Path, texts: int, folder: str | None) -> dict:
    "A model and rows to score, [prompt, response] each."
    from reward_kit import Playground, RewardMetadata, load_reward_backbone, prepare_tokenizer

    if folder is None:
        folder = str(work / "model")
        model, tokenizer = load_reward_backbone("playground", new_head=True)
        encoding = prepare_tokenizer(tokenizer, model, max_length=256)
        model.save_pretrained(folder), tokenizer.save_pretrained(folder)
        RewardMetadata(encoding=encoding).save(folder)
    pairs = Playground(seed=0).preferences((texts + 1) // 2)
    rows = [[pair["prompt"], text] for pair in pairs for text in pair["responses"]][:texts]
    (work / "rows.json").write_text(json.dumps(rows))
    return {"folder": folder}


def direct(work: Path, folder: str, at_once: int, texts: int) -> dict:
    "Batches of so many texts, one after another."
    from reward_kit.scores.inference import RewardModel

    rm, rows = RewardModel.from_pretrained(folder, device="cpu"), json.loads((work / "rows.json").read_text())
    rows = rows[:texts]
    batches = [rows[i : i + at_once] for i in range(0, len(rows), at_once)]
    score = lambda batch: rm.score(*map(list, zip(*batch)))
    score(batches[0])
    start = perf_counter()
    rewards = [reward for batch in batches for reward in score(batch)]
    return {"speed": len(rows) / (perf_counter() - start), "rewards": rewards}


@contextmanager
def server(folder: str):
    "Host and port of a server process."
    command = "from reward_kit.tools.cli import main; raise SystemExit(main())"
    options = ["serve", folder, "--port", "0", "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-c", command, *options], stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split("http://")[1].split(",")[0]
    finally:
        process.terminate()
        process.communicate()


def served(work: Path, folder: str, at_once: int, texts: int) -> dict:
    "So many callers, each with its share of the texts."
    rows = json.loads((work / "rows.json").read_text())[:texts]
    rewards = [None] * len(rows)

    def call(address: str, own: range) -> None:
        connection = HTTPConnection(address)
        for i in own:
            body = json.dumps({"prompts": rows[i][:1], "responses": rows[i][1:]})
            connection.request("POST", "/v1/rewards", body, {"Content-Type": "application/json"})
            rewards[i] = json.loads(connection.getresponse().read())["rewards"][0]

    with server(folder) as address:
        call(address, range(min(4, len(rows))))  # to warm up
        start = perf_counter()
        callers = [Thread(target=call, args=(address, range(n, len(rows), at_once))) for n in range(at_once)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        return {"speed": len(rows) / (perf_counter() - start), "rewards": rewards}


def reader() -> str:
    "What reads requests, with its version."
    name = "httptools" if find_spec("httptools") else "h11"
    return f"{name} {version(name)}"


def arguments():
    "Of the command."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--texts", type=int, default=1280)
    parser.add_argument("--alone", type=int, default=100, help="texts of one caller that is alone")
    parser.add_argument("--reward-model", type=Path, help="a folder that reward_kit trained")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--output", type=Path, help="Markdown file")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main(args) -> None:
    "Prepare, measure, report."
    rows, both = [], ("direct", "served")
    with Workers(__file__, args.threads) as workers:
        folder = args.reward_model and str(args.reward_model.resolve())
        folder = workers.ask("prepare", texts=args.texts, folder=folder)["folder"]
        for at_once, texts in ((args.clients, args.texts), (1, args.alone)):
            found = {side: [] for side in both}
            for i in range(args.rounds):
                for side in alternating(both, i):
                    run = workers.ask(side, folder=folder, at_once=at_once, texts=texts)
                    found[side].append(run)
                    print(f"{at_once} at once, {side}: {run['speed']:.0f} texts/s", flush=True)
            worst = max(
                abs(a - b)
                for runs in zip(*found.values())
                for a, b in zip(*(run["rewards"] for run in runs), strict=True)
            )
            if worst > 1e-4:
                raise RuntimeError(f"rewards of the same texts differ by {worst:.2g}")
            speeds = [middle(found[side], "speed") for side in both]
            rows.append([at_once, *(f"{speed:.0f}" for speed in speeds), f"{speeds[1] / speeds[0]:.0%}"])
        name = Path(folder).name if args.reward_model else "the playground's base with a new head"
        lines = [
            f"A score server with {name}, one text a request; medians of {args.rounds} rounds.",
            "",
            *table(["callers", "direct, texts/s", "served, texts/s", "served of direct"], rows),
            "",
            versions_line(args.threads) + " Requests are read by " + reader() + ".",
        ]
    publish("\n".join(lines), args.output)


if __name__ == "__main__":
    args = arguments()
    if args.worker is None:
        main(args)
    else:
        answer(args.worker, {"prepare": prepare, "direct": direct, "served": served})
