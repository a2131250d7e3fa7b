"""What happens when everything goes wrong: kills at file events, hostile folders, files, requests, answers.

    python benchmarks/attack.py [--quick] [--seconds 900] [--output FILE.md]

Everything runs on this machine, the server on the loopback address. A run (training, PPO, scoring a
file, annotating) is killed by SIGKILL at each of its file events (opening for writing, renaming, removing,
making a folder, flushing to the disk), then started again by the same call. It must end as the run that
nobody disturbed did, with equal bytes (scores of a file to four digits), and leave nothing hidden behind.
Where a disk of its own may be mounted (root on Linux), each run also meets one that is full too early, must
name it in one line, and end like the others once there is room. Hostile input must be refused by
one line that says what is wrong, or be handled as the case says. "Silent" counts everything else: a
traceback, another result, a success that is none. With more file events than there is time for, every
second, third, ... is taken. `--quick` takes a few of each.
"""

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from pathlib import Path
from time import monotonic

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "agg",
}

from common import publish, table, versions_line  # noqa: E402

REFUSED, HANDLED, SILENT = "refused clearly", "handled", "silent"


# ---------------------------------------------------------------- kills

EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}


class FileEvents:
    "Counts what this process does to files below a folder; at event `fatal` it kills itself."

    def __init__(self, folder: Path, fatal: int | None = None):
        self.folder, self.fatal, self.count, self.on = str(folder), fatal, 0, True
        sys.addaudithook(self.see)
        sync = os.fsync
        os.fsync = lambda handle: (self.happens(), sync(handle))[1]

    def see(self, event: str, given: tuple) -> None:
        "Called by Python for everything."
        if event == "open":
            path, mode, flags = given
            writes = any(sign in (mode or "") for sign in "wax+") or flags & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT
            )
            if writes and str(path).startswith(self.folder):
                self.happens()
        elif event in EVENTS and str(given[0]).startswith(self.folder):
            self.happens()

    def happens(self) -> None:
        "One event."
        if self.on:
            self.count += 1
            if self.count == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)


def forked(work, folder: Path, fatal: int | None = None) -> tuple[int, int, str]:
    "(exit status, file events, the end of what was printed) of a function in a process of its own."
    log, counted = folder.with_suffix(".log"), folder.with_suffix(".count")
    counted.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        code = 1
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        events = FileEvents(folder, fatal)
        try:
            work(folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        events.on = False
        counted.write_text(str(events.count))
        os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, int(counted.read_text()) if counted.exists() else 0, log.read_text()[-2000:]


def hidden(folder: Path) -> list[str]:
    "What is left below a folder that nobody sees."
    return [str(path.relative_to(folder)) for path in folder.rglob(".*")]


@contextlib.contextmanager
def disk(folder: Path, size: int):
    "A disk of so many bytes, mounted at a folder; yields what makes it larger. OSError: not allowed."
    folder.mkdir(parents=True, exist_ok=True)

    def mount(more: str, size: int) -> None:
        options = f"{more}size={max(size, 4096)}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            raise OSError(done.stderr.decode().strip())

    mount("", size)
    try:
        yield lambda size: mount("remount,", size)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


class Victim:
    "A run that can be killed: `start` does it in a folder, `result` is what must be equal."

    def __init__(self, name, start, result, prepare=None):
        self.name, self.start, self.result, self.prepare = name, start, result, prepare

    def fresh(self, folder: Path) -> Path:
        "An empty folder, with what the run needs."
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        if self.prepare:
            self.prepare(folder)
        return folder

    def judged(self, folder: Path, whole) -> str:
        "What is wrong with a run that is started again; empty: nothing."
        status, _, said = forked(self.start, folder)
        if status:
            return f"it does not go on: {said.strip().splitlines()[-1] if said.strip() else status}"
        if self.result(folder) != whole:
            return "another result"
        left = hidden(folder)
        return f"left behind: {left[:3]}" if left else ""

    def fill_the_disk(self, work: Path, shares: list[float]) -> tuple[Counter, list[str]]:
        "The same with a disk that is full too early, and then larger."
        folder, found, bad = work / f"disk_{self.name.replace(' ', '_')}", Counter(), []
        with disk(folder, 2**30):
            self.fresh(folder)
            status, _, said = forked(self.start, folder)
            if status:
                raise RuntimeError(f"{self.name} fails undisturbed:\n{said}")
            whole = self.result(folder)
            needed = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for share in shares:
            with disk(folder, int(share * needed)) as resize:
                try:
                    self.fresh(folder)
                except OSError:  # not even room for what it needs to begin
                    continue
                status, _, said = forked(self.start, folder)
                end = said.strip().splitlines()[-1] if said.strip() else ""
                full = "No space left on device" in end or "the disk is full" in end
                resize(2**30)
                problem = self.judged(folder, whole)
                if status and not (full and str(folder) in end):
                    problem = f"{end[:200]} {problem}"
                found["tried"] += 1
                found[SILENT if problem else REFUSED if status else HANDLED] += 1
                if problem:
                    bad.append(f"{self.name}, a disk of {share:.0%} of what it needs: {problem}")
        return found, bad

    def attack(self, work: Path, seconds: float, most: int | None) -> tuple[Counter, list[str]]:
        "Counts of outcomes, and what was silent."
        folder, found, bad = work / self.name.replace(" ", "_"), Counter(), []
        begin = monotonic()
        status, events, said = forked(self.start, self.fresh(folder))
        if status:
            raise RuntimeError(f"{self.name} fails undisturbed:\n{said}")
        whole, once = self.result(folder), monotonic() - begin
        chances = max(1, int(seconds / (1.7 * once + 0.05)))
        stride = max(1, math.ceil(events / min(chances, most or events)))
        for fatal in range(1, events + 1, stride):
            status, _, said = forked(self.start, self.fresh(folder), fatal)
            if status != -signal.SIGKILL:
                found["not reached"] += 1  # fewer events than the first time
                continue
            found["tried"] += 1
            problem = self.judged(folder, whole)
            found[SILENT if problem else HANDLED] += 1
            if problem:
                bad.append(f"{self.name}, killed at file event {fatal} of {events}: {problem}")
        found["events"] = events
        return found, bad


def digest(path: Path) -> str:
    "Of a file; empty where there is none."
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def command(*words) -> None:
    "A command of reward-kit; RuntimeError with its line where it fails."
    from reward_kit.tools.cli import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main([str(word) for word in words])
    if code:
        raise RuntimeError(said.getvalue().strip().splitlines()[-1])


class Acknowledged:
    "What an annotator was told is kept, outside the folder that is attacked."

    def __init__(self, folder: Path):
        self.path = folder.with_suffix(".acknowledged")

    def add(self, number: int) -> None:
        "A click that has come back."
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, f"{number}\n".encode())
        os.close(handle)


def victims(work: Path) -> list[Victim]:
    "What is killed."
    from reward_kit import Playground
    from reward_kit.scores.inference import RewardModel
    from reward_kit.tools.annotator import AnnotationSession

    model, data, prompts, texts = (
        work / name for name in ("rm", "pairs.jsonl", "prompts.jsonl", "texts.jsonl")
    )
    rows = Playground(seed=0).preferences(24)
    pairs = [dict(zip(("prompt", "chosen", "rejected"), (row["prompt"], *row["responses"]))) for row in rows]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    prompts.write_text("".join(json.dumps({"prompt": pair["prompt"]}) + "\n" for pair in pairs[:12]))
    texts.write_text(
        "".join(json.dumps({"prompt": p["prompt"], "response": p["chosen"]}) + "\n" for p in pairs)
    )
    quiet = ("--no-progress",)
    train = ("train", "--model", "playground", "--data", data, "--epochs", "1", "--batch-size", "6", *quiet)
    command(*train, "--output", model)
    weights = "model.safetensors"

    def training(*more):
        return lambda folder: finished(folder, *train, "--output", folder / "out", "--save-steps", "2", *more)

    def finished(folder, *words):
        "The same command until it is done; what is finished it refuses, and clears of what a kill left."
        try:
            command(*words)
        except RuntimeError as error:
            if "this very run, finished" not in str(error):
                raise

    def replaced(folder):
        shutil.copytree(model, folder / "out")
        record = json.loads((folder / "out" / "training_run.json").read_text())
        record["settings"]["learning_rate"] = 0.5  # of another run
        (folder / "out" / "training_run.json").write_text(json.dumps(record))

    ppo = ("ppo", "--model", "playground", "--reward", model, "--data", prompts, "--total-episodes", "8",
           "--response-length", "8", "--per-device-train-batch-size", "2",
           "--gradient-accumulation-steps", "2",
           "--save-steps", "1", *quiet)  # fmt: skip

    def scoring(folder):
        RewardModel.from_pretrained(model, device="cpu").score_file(texts, folder / "out.jsonl", batch_rows=4)

    def scored(folder):
        "Rows with their scores, whose last digits depend on what was computed together."
        rows = map(json.loads, (folder / "out.jsonl").read_text().splitlines())
        return [row | {"score": round(row["score"], 4)} for row in rows]

    def annotating(folder):
        asked = [{"prompt": p["prompt"], "responses": [p["chosen"], p["rejected"]]} for p in pairs[:6]]
        session, told = AnnotationSession(asked, folder / "out.jsonl"), Acknowledged(folder)
        kept = len(told.path.read_text().split()) if told.path.exists() else 0
        if len(session.done) < kept:
            raise RuntimeError(f"{kept} clicks were acknowledged, {len(session.done)} are there")
        while session.current:
            session.choose("left" if len(session.done) % 2 else "tie")
            told.add(len(session.done))

    def unasked(folder):
        Acknowledged(folder).path.unlink(missing_ok=True)

    def judged(folder):
        lines = (folder / "out.jsonl").read_text().splitlines()
        return sorted((row["prompt"], json.dumps(row)) for row in map(json.loads, lines))

    whole = lambda folder: (
        digest(folder / "out" / weights),
        (folder / "out" / "evaluation" / "report.md").exists(),
    )
    return [
        Victim("score", scoring, scored),
        Victim("annotator", annotating, judged, unasked),
        Victim("ppo", lambda folder: finished(folder, *ppo, "--output", folder / "out"),
               lambda folder: digest(folder / "out" / weights)),
        Victim("train", training(), whole),
        Victim("train, replacing a model", training("--overwrite"), whole, replaced),
    ]  # fmt: skip


# ---------------------------------------------------------------- hostile input


def judged_command(words, expected=REFUSED) -> tuple[str, str]:
    "(outcome, what was said) of a command with hostile input."
    from reward_kit.tools.cli import main

    said, out = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
        try:
            code = main([str(word) for word in words])
        except BaseException as error:
            return SILENT, f"{type(error).__name__}: {error}"
    lines = [line for line in said.getvalue().splitlines() if line.startswith("reward-kit: ")]
    text = said.getvalue()
    if "Traceback" in text:
        return SILENT, text[-200:]
    if code and len(lines) == 1:
        return REFUSED, lines[0]
    if not code and expected == HANDLED:
        return HANDLED, out.getvalue()[-200:]
    return SILENT, (lines or ["nothing was said"])[-1]


def changed_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def changed_about(folder: Path, **values) -> None:
    path = folder / "reward_kit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edited_tensors(folder: Path, edit) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file(edit(load_file(path)), path, {"format": "pt"})


def hostile_folders() -> dict:
    "Name -> function that spoils a model folder."
    import torch

    def first(tensors, change):
        name = next(name for name in tensors if "embed" in name)
        return tensors | {name: change(tensors[name]).contiguous()}

    def pickled(folder):
        (folder / "model.safetensors").unlink()
        torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")

    def half(folder, name):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    def encoding(folder, **values):
        about = json.loads((folder / "reward_kit.json").read_text())
        changed_about(folder, encoding=about["encoding"] | values)

    return {
        "half the weights": lambda f: half(f, "model.safetensors"),
        "empty weights": lambda f: (f / "model.safetensors").write_bytes(b""),
        "no weights": lambda f: (f / "model.safetensors").unlink(),
        "weights as a pickle": pickled,
        "weights that are not finite": lambda f: edited_tensors(
            f, lambda t: first(t, lambda x: x * math.nan)
        ),
        "weights that are all zero": lambda f: edited_tensors(f, lambda t: {n: x * 0 for n, x in t.items()}),
        "a layer is missing": lambda f: edited_tensors(
            f, lambda t: {n: x for n, x in t.items() if "layers.0" not in n}
        ),
        "embeddings too small": lambda f: edited_tensors(f, lambda t: first(t, lambda x: x[:5])),
        "more layers in the config": lambda f: changed_config(f, num_hidden_layers=9),
        "another width in the config": lambda f: changed_config(f, hidden_size=48),
        "two labels": lambda f: changed_config(f, num_labels=2, id2label={"0": "a", "1": "b"}),
        "an unknown type": lambda f: changed_config(f, model_type="nothing"),
        "code of its own": lambda f: changed_config(
            f, model_type="mine", auto_map={"AutoConfig": "mine.Mine"}
        ),
        "half a config": lambda f: half(f, "config.json"),
        "a config that is a list": lambda f: (f / "config.json").write_text("[]"),
        "half a tokenizer": lambda f: half(f, "tokenizer.json"),
        "no tokenizer": lambda f: [p.unlink() for p in f.glob("tokenizer*")],
        "half reward_kit.json": lambda f: half(f, "reward_kit.json"),
        "no reward_kit.json": lambda f: (f / "reward_kit.json").unlink(),
        "a negative temperature": lambda f: changed_about(f, calibration={"temperature": -1.0}),
        "a temperature that is no number": lambda f: changed_about(f, calibration={"temperature": "hot"}),
        "a spread of zero": lambda f: changed_about(f, normalization={"mean": 0, "std": 0}),
        "another schema": lambda f: changed_about(f, schema_version="9.0"),
        "a length beyond the model": lambda f: encoding(f, max_length=10**9),
        "a length of zero": lambda f: encoding(f, max_length=0),
        "an unknown encoding": lambda f: encoding(f, spelling="odd"),
        "an overflow that is none": lambda f: encoding(f, overflow="explode"),
    }


def rows_file(*rows) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


GOOD = {"prompt": "What is AI?", "chosen": "A field.", "rejected": "No idea."}
TEXT = {"prompt": "What is AI?", "response": "A field."}


def hostile_data() -> dict:
    "Name -> (name of the file, its bytes, outcome) of preferences."
    return {
        "empty": ("a.jsonl", b"", REFUSED),
        "binary": ("a.jsonl", bytes(range(256)) * 40, REFUSED),
        "half a row": ("a.jsonl", rows_file(GOOD, '{"prompt": "What').encode(), REFUSED),
        "a list of numbers": ("a.json", b"[1, 2, 3]", REFUSED),
        "nested a million deep": ("a.jsonl", b"[" * 1_000_000 + b"]" * 1_000_000, REFUSED),
        "half a gzip": ("a.jsonl.gz", gzip.compress(rows_file(*[GOOD] * 99).encode())[:40], REFUSED),
        "no gzip": ("a.jsonl.gz", rows_file(GOOD).encode(), REFUSED),
        "half a Parquet file": ("a.parquet", b"PAR1" + bytes(40), REFUSED),
        "half of a UTF-16 pair": ("a.jsonl", rows_file(GOOD | {"chosen": "\ud800"}).encode(), REFUSED),
        "UTF-16 under another name": ("a.csv", "prompt,chosen\n".encode("utf-16")[:-1], REFUSED),
        "a quote that is not closed": ("a.csv", b'prompt,chosen,rejected\na,"b,c\n', REFUSED),
        "two columns of one name": ("a.csv", b"prompt,chosen,chosen\na,b,c\n", REFUSED),
        "equal responses": ("a.jsonl", rows_file(GOOD | {"rejected": "A field."}).encode(), REFUSED),
        "no prompts at all": ("a.jsonl", rows_file({"a": 1}).encode(), REFUSED),
        "weights that overflow": ("a.jsonl", rows_file(*[GOOD | {"weight": 1e300}] * 4).encode(), REFUSED),
        "an LFS pointer": ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", REFUSED),
    }


def hostile_rows() -> dict:
    "Name -> (name of the file, bytes of one hostile row after the header, header) of files to score."
    line = lambda row: (row if isinstance(row, str) else json.dumps(row)).encode() + b"\n"
    odd = {
        "null": TEXT | {"response": None},
        "a number": TEXT | {"response": 5},
        "nested deeply": '{"prompt": "a", "response": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "a huge integer": '{"prompt": "a", "response": "b", "n": ' + "9" * 5000 + "}",
        "an infinite number": '{"prompt": "a", "response": "b", "n": 1e999}',
        "half a row": '{"prompt": "a", "resp',
        "half of a UTF-16 pair": TEXT | {"response": "\ud800"},
        "an empty text": {"prompt": "", "response": ""},
        "a role that is a list": TEXT | {"prompt": [{"role": ["user"], "content": "a"}]},
        "a million characters": TEXT | {"response": "a" * 1_000_000},
        "control characters": TEXT | {"response": "\0\x1b[2J\u202e"},
    }
    return {name: line(row) for name, row in odd.items()}


# ---------------------------------------------------------------- requests


def raw(address: str, data: bytes, seconds: float = 20) -> bytes:
    "What a server answers to bytes."
    host, port = address.removeprefix("http://").rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(data)
        answer = b""
        with contextlib.suppress(OSError):
            while chunk := connection.recv(65536):
                answer += chunk
                head, _, body = answer.partition(b"\r\n\r\n")
                sizes = [
                    int(line.split(b":")[1])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length")
                ]
                if sizes and len(body) >= sizes[0]:
                    break
        return answer


def post(path: str, body, *headers: str) -> bytes:
    "A request."
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = " ".join(headers).lower()
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *headers]
    if "content-type" not in named:
        lines.append("Content-Type: application/json")
    if "content-length" not in named and "transfer-encoding" not in named:
        lines.append(f"Content-Length: {len(data)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def hostile_requests() -> dict:
    "Name -> bytes that must be refused by one reason."
    own = "/v1/rewards"
    ask = {"prompts": ["a"], "responses": ["b"]}
    return {
        "no JSON": post(own, b"{"),
        "a list": post(own, []),
        "nested deeply": post(own, b'{"prompts": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
        "no field": post(own, {}),
        "an unknown field": post(own, ask | {"evil": 1}),
        "unequal lengths": post(own, ask | {"prompts": ["a", "b", "c"]}),
        "numbers as texts": post(own, ask | {"responses": [5]}),
        "half of a UTF-16 pair": post(own, ask | {"responses": ["\ud800"]}),
        "a number of 5,000 digits": post(own, b'{"prompts": [' + b"9" * 5000 + b"]}"),
        "NaN": post(own, b'{"prompts": NaN}'),
        "too many texts": post(own, {"prompts": ["a"] * 5000, "responses": ["b"] * 5000}),
        "a text of two million characters": post(own, ask | {"responses": ["a " * 1_000_000]}),
        "tools of two million characters": post(
            own, {"prompts": [[{"role": "user", "content": "a"}]], "tools": [{"a": "b" * 2_000_000}]}
        ),
        "a template of its own": post(own, ask | {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}),
        "conversations that are none": post(own, {"prompts": [[{"role": "user"}]]}),
        "a body of 40 MB": post(own, {"prompts": ["a" * 40_000_000]}),
        "a bomb of gzip": post(own, gzip.compress(b" " * 200_000_000, 9), "Content-Encoding: gzip"),
        "half a gzip": post(own, gzip.compress(json.dumps(ask).encode())[:20], "Content-Encoding: gzip"),
        "another coding": post(own, ask, "Content-Encoding: br"),
        "another type": post(own, ask, "Content-Type: text/plain"),
        "another host": post(own, ask).replace(b"Host: 127.0.0.1", b"Host: evil.example"),
        "no such route": post("/nothing", ask),
        "a head of one megabyte": post(own, ask, "X: " + "a" * 1_000_000),
        "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        "a length that is none": post(own, ask, "Content-Length: -5"),
        "two lengths": post(own, ask, "Content-Length: 5", "Content-Length: 50"),
        "a chunk that is none": post(own, b"zz\r\n", "Transfer-Encoding: chunked"),
        "/tokenize of two million characters": post("/tokenize", {"prompt": "a " * 1_000_000}),
        "/classify of two million characters": post("/classify", {"input": "a " * 1_000_000}),
        "/score of two million characters": post("/score", {"queries": "a", "documents": ["a " * 1_000_000]}),
        "/v1/embeddings of a million ids": post("/v1/embeddings", {"input": [[5] * 1_100_000]}),
        "/rerank of a number": post("/rerank", {"query": 1, "documents": ["a"]}),
    }


def asked(address: str, data: bytes) -> tuple[str, str]:
    "(outcome, what was said) of a hostile request."
    try:
        answer = raw(address, data)
    except OSError as error:
        return REFUSED, f"the connection was closed ({type(error).__name__})"
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ")[1:2]
    if not status or not status[0].startswith((b"4", b"503")):
        return SILENT, answer[:200].decode("latin-1")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        message = json.loads(body)["error"]["message"]
        return (REFUSED if message and "\n" not in message else SILENT), message
    return (REFUSED if status[0] in (b"400", b"431", b"503") else SILENT), head[:100].decode("latin-1")


def attack_server(model: Path) -> tuple[Counter, list[str]]:
    "Hostile requests, connections that never finish, and in the end an honest one."
    from reward_kit.beside import network
    from reward_kit.scores.inference import RewardModel
    from reward_kit.tools.serving import ServerLimits, background_server

    rm, found, bad = RewardModel.from_pretrained(model, device="cpu"), Counter(), []
    limits = ServerLimits(body_timeout_s=1.0)
    guard = network._Network(head_timeout_s=1.0, max_connections=50)
    honest = post("/v1/rewards", {"prompts": ["What is AI?"], "responses": ["A field."]})
    wanted = rm.score("What is AI?", "A field.")

    def answers(address):
        body = raw(address, honest).partition(b"\r\n\r\n")[2]
        return abs(json.loads(body)["rewards"][0] - wanted) < 1e-5

    def note(name, outcome, said=""):
        found["tried"] += 1
        found[outcome] += 1
        if outcome == SILENT:
            bad.append(f"request, {name}: {said}")

    with background_server(rm, limits, network=guard) as address:
        for name, data in hostile_requests().items():
            note(name, *asked(address, data))
            if not answers(address):
                note(f"an honest request after {name}", SILENT, "is not answered rightly")
        for name, data in {
            "half a head": b"POST /v1/rewards HTTP/1.1\r\nHost: 127",
            "half a body": post("/v1/rewards", b"{", "Content-Length: 50"),
            "endless chunks": post("/v1/rewards", b"1\r\n{\r\n", "Transfer-Encoding: chunked"),
        }.items():
            outcome, said = asked(address, data)
            closed = outcome == REFUSED or said == ""
            note(name, REFUSED if closed else SILENT, said)
        idle = [
            socket.create_connection(tuple(address.removeprefix("http://").split(":"))) for _ in range(80)
        ]
        refused = 0
        for connection in idle:
            connection.settimeout(0.2)
            with contextlib.suppress(OSError):
                refused += b"503" in connection.recv(100)
        note("80 connections where 50 may be", REFUSED if refused >= 30 else SILENT, f"{refused} refused")
        for connection in idle:
            connection.close()
        note("an honest request at the end", HANDLED if answers(address) else SILENT)
    return found, bad


def hostile_answers() -> dict:
    "Name -> (status, body) with which a server could answer a client."
    return {
        "NaN": (200, b'{"rewards": [NaN]}'),
        "infinity": (200, b'{"rewards": [1e999]}'),
        "null": (200, b'{"rewards": [null]}'),
        "a text": (200, b'{"rewards": ["good"]}'),
        "too many": (200, b'{"rewards": [1, 2, 3]}'),
        "none": (200, b'{"rewards": []}'),
        "no field": (200, b"{}"),
        "a list": (200, b"[1]"),
        "no JSON": (200, b"<html>"),
        "half JSON": (200, b'{"rewards": [1'),
        "true": (200, b'{"rewards": [true]}'),
        "refused": (400, b'{"error": {"message": "no"}}'),
        "a redirection": (302, b""),
    }


def attack_client() -> tuple[Counter, list[str]]:
    "A client that gets hostile answers."
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from reward_kit.beside.client import RewardClient

    found, bad = Counter(), []
    for name, (status, body) in hostile_answers().items():

        class Answers(BaseHTTPRequestHandler):
            def do_POST(self, status=status, body=body):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_): ...

        with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            found["tried"] += 1
            try:
                client = RewardClient(f"http://127.0.0.1:{server.server_port}", timeout=5, retries=0)
                rewards = client.score(["a"], ["b"])
                found[SILENT] += 1
                bad.append(f"answer, {name}: taken as {rewards}")
            except (RuntimeError, ValueError, OSError) as error:
                found[REFUSED if str(error) and "\n" not in str(error) else SILENT] += 1
            server.shutdown()
    return found, bad


# ---------------------------------------------------------------- all of it


def some(cases: dict, quick: bool) -> dict:
    "All cases, or every fifth."
    return dict(list(cases.items())[:: 5 if quick else 1])


def attack_commands(work: Path, model: Path, quick: bool) -> list:
    "(what, counts, what was silent) of hostile folders, data and rows."
    groups = []

    def group(what):
        groups.append((what, Counter(), []))
        return groups[-1][1:]

    def note(target, name, outcome, said):
        target[0]["tried"] += 1
        target[0][outcome] += 1
        if outcome == SILENT:
            target[1].append(f"{name}: {said}")

    target, text = group("model folders"), work / "one.jsonl"
    text.write_text(rows_file(TEXT))
    for name, spoil in some(hostile_folders(), quick).items():
        folder = work / "spoilt"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(model, folder)
        spoil(folder)
        note(
            target,
            f"model folder, {name}",
            *judged_command(["compare", folder, "--prompt", "a", "--a", "b", "--b", "c"]),
        )
    target = group("files of preferences")
    for name, (file, data, expected) in some(hostile_data(), quick).items():
        path = work / file
        path.write_bytes(data)
        shutil.rmtree(work / "none", ignore_errors=True)
        outcome = judged_command(
            ["train", "--model", "playground", "--data", path, "--output", work / "none"], expected
        )
        if outcome[0] == REFUSED and (work / "none").exists():
            outcome = SILENT, "a folder is left"
        note(target, f"preferences, {name}", *outcome)
    target = group("rows to score, each between two good ones")
    for name, row in some(hostile_rows(), quick).items():
        source, out = work / "rows.jsonl", work / "scored.jsonl"
        good = rows_file(TEXT).encode()
        source.write_bytes(good + row + good)
        out.unlink(missing_ok=True)
        outcome, said = judged_command(["score", model, source, "--output", out], HANDLED)
        if outcome == HANDLED:
            found = list(map(json.loads, out.read_text().splitlines()))
            fine = len(found) == 3 and found[0]["score"] == found[2]["score"] is not None
            named = found[1].get("score") is not None or "rows.jsonl:2" in found[1].get("error", "")
            outcome = (
                REFUSED
                if fine and named and found[1].get("score") is None
                else HANDLED
                if fine and named
                else SILENT
            )
            said = str(found)[:300]
        note(target, f"row, {name}", outcome, said)
    return groups


def arguments():
    "Of the command."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few of each")
    parser.add_argument("--seconds", type=float, default=900, help="for the kills, all together")
    parser.add_argument("--output", type=Path, help="Markdown file")
    return parser.parse_args()


def main(args) -> int:
    "Attack, report; 1 where anything was silent."
    results, bad = [], []
    with tempfile.TemporaryDirectory(prefix="attack-") as name:
        work = Path(name).resolve()
        chosen, end = victims(work), monotonic() + args.seconds
        for left, victim in zip(range(len(chosen), 0, -1), chosen):
            seconds = max(0.0, end - monotonic()) / left  # what the quick ones leave is for the others
            found, silent = victim.attack(work, seconds, 3 if args.quick else None)
            results.append((f"kills of {victim.name}, {found['events']} file events", found, silent))
            print(results[-1][:2], *silent, sep="\n", flush=True)
        shares = [0.5] if args.quick else [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99]
        for victim in chosen[: 1 if args.quick else None]:
            try:
                found, silent = victim.fill_the_disk(work, shares)
            except OSError as error:
                print(f"no disk of its own for {victim.name}: {error}")
                continue
            results.append((f"full disks under {victim.name}", found, silent))
            print(results[-1][:2], *silent, sep="\n", flush=True)
        results += attack_commands(work, work / "rm", args.quick)
        results.append(("requests and connections", *attack_server(work / "rm")))
        results.append(("answers to a client", *attack_client()))
    rows = []
    for what, found, silent in results:
        rows.append([what, found["tried"], found[HANDLED], found[REFUSED], found[SILENT]])
        bad += silent
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, 5))])
    lines = [
        "A run that was killed counts as handled if the same call ended with the bytes of an undisturbed run "
        "and nothing hidden was left, one on a full disk as refused clearly if its last line named that and "
        "the same call ended so once there was room; a hostile input is refused clearly by one line that "
        "says why, or handled as it should be. Silent is everything else.",
        "",
        *table(["what", "tried", "handled", "refused clearly", "silent"], rows),
        *(["", "Silent:", "", *(f"- {line}" for line in bad)] if bad else []),
        "",
        versions_line(1),
    ]
    publish("\n".join(lines), args.output)
    return bool(bad)


if __name__ == "__main__":
    raise SystemExit(main(arguments()))
