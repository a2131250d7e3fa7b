"What a stranger may ask of a server, a template, or a file of rows: each has an end."

import asyncio
import contextlib
import json
import socket
import time
from types import SimpleNamespace

import jinja2
import pytest
import requests
from test_serving import folder, protocol, rm, wait_until  # noqa: F401  (fixtures and a helper)

from reward_kit.beside import bounded_templates, network, wire_formats
from reward_kit.beside.network import _Network as Network
from reward_kit.model.encoding import RewardEncoder, prepare_tokenizer
from reward_kit.model.model_folder import load_reward_backbone
from reward_kit.tools.serving import ServerLimits, background_server
from reward_kit.tools.serving import wire_formats as all_formats

LONG = "a " * 500


@pytest.fixture(scope="module")
def url(rm):  # noqa: F811
    with background_server(rm, ServerLimits(max_text_chars=300)) as address:
        yield address


# ---- texts


def conversation(text):
    return [{"role": "user", "content": text}, {"role": "assistant", "content": "b"}]


DOORS = {
    "/v1/rewards": [
        {"prompts": ["a", LONG]}, {"prompts": ["a"], "responses": [LONG]}, {"prompts": [conversation(LONG)]},
        {"prompts": [conversation("a")], "tools": [{"description": LONG}]},
        {"prompts": [conversation("a")], "chat_template_kwargs": {"x": [LONG]}},
    ],
    "/get_reward": [{"query": [LONG]}],
    "/": [{"query": [LONG]}, {"inputs": LONG}],
    "/classify": [{"input": LONG}, {"input": [[5] * 400]}],
    "/pooling": [{"input": LONG, "task": "classify"}],
    "/score": [{"queries": LONG, "documents": ["a"]}, {"queries": "a", "documents": [LONG]}],
    "/rerank": [{"query": "a", "documents": [LONG]}],
    "/predict": [{"inputs": LONG}],
    "/v1/embeddings": [{"input": LONG}],
    "/v1/score/evaluation": [{"messages": [LONG]}],
    "/v1/chat/completions": [{"messages": conversation(LONG)}],
    "/tokenize": [{"prompt": LONG}, {"messages": conversation(LONG)}],
}  # fmt: skip


@pytest.mark.parametrize("path, body", [(path, body) for path, bodies in DOORS.items() for body in bodies])
def test_a_text_is_measured_before_it_is_tokenised(url, monkeypatch, path, body):
    monkeypatch.setattr(RewardEncoder, "_ids", None)  # it is never reached
    got = requests.post(url + path, json=body, timeout=60)
    assert got.status_code == 413, got.text
    message = got.json()["error"]["message"]
    assert "characters, this server takes 300 in a text; shorten it" in message and "\n" not in message


def test_every_route_is_a_door_that_is_tried():
    assert {wire.paths[0] for wire in all_formats()} <= DOORS.keys()


def test_tools_for_all_texts_are_measured_once():
    tools = [{"description": "a" * 1000}]
    texts = SimpleNamespace(
        prompts=["a"] * 1000, responses=None, template={"tools": [tools] * 1000}, name="prompts"
    )
    found = []
    characters = network._characters
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "_characters", lambda value: found.append(1) or characters(value))
        network._check_sizes(texts, SimpleNamespace(max_rows=1000, max_text_chars=2000))
    assert len(found) < 10


def test_what_is_nested_deeply_is_measured_without_recursion():
    value = "a"
    for _ in range(100_000):
        value = [value]
    assert network._characters(value) == 1


# ---- bodies and connections


def test_bodies_of_all_callers_together_are_bounded(rm):  # noqa: F811
    with background_server(rm, ServerLimits(max_body_bytes=10_000, body_timeout_s=20)) as url:  # noqa: F811
        host, port = url.removeprefix("http://").split(":")
        head = b"POST /v1/rewards HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n"
        with contextlib.ExitStack() as held:
            callers = [
                held.enter_context(socket.create_connection((host, int(port)), timeout=60)) for _ in range(12)
            ]
            for caller in callers:
                caller.sendall(head + b" " * 9_000)
            refused = 0
            for caller in callers:
                caller.settimeout(0.5)
                with contextlib.suppress(TimeoutError):
                    refused += b"503" in caller.recv(1000)
            assert refused >= 3
        wait_until(
            lambda: requests.post(f"{url}/v1/rewards", json={"prompts": ["a"]}, timeout=60).status_code == 200
        )


def test_what_is_held_is_given_back_however_a_request_ends():
    bodies = network._Bodies(SimpleNamespace(max_body_bytes=10))

    async def app(scope, receive, send):
        scope["reward_kit.hold"](b"12345")
        raise ValueError

    counted = wire_formats._Counted(app, __import__("collections").Counter(), bodies)
    for _ in range(50):
        with pytest.raises(ValueError):
            asyncio.run(counted({"type": "http"}, None, None))
    assert bodies.held == 0


@pytest.mark.parametrize("at_once", [20, 300])
def test_a_caller_that_does_not_read_its_answers_is_left(rm, protocol, at_once):  # noqa: F811
    with background_server(rm, network=Network(head_timeout_s=0.4)) as url:  # noqa: F811
        host, port = url.removeprefix("http://").split(":")
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with socket.create_connection((host, int(port))) as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.settimeout(0.5)
            with contextlib.suppress(TimeoutError, ConnectionError):  # until nothing goes in any more
                for _ in range(2000):
                    caller.sendall(ask * at_once)
            until, closed = time.monotonic() + 30, False
            while not closed and time.monotonic() < until:
                try:
                    caller.send(b"x")
                except TimeoutError:
                    continue
                except OSError:
                    closed = True
            assert closed


# ---- templates


@pytest.mark.parametrize(
    "evil",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set t = namespace(x='ab') %}{% for a in range(60) %}{% set t.x = t.x ~ t.x %}{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% for m in messages * 1000000000 %}{% endfor %}",
    ],
)
def test_a_template_that_never_ends_is_an_error_of_its_model(evil):
    model, tokenizer = load_reward_backbone("playground", new_head=True)
    encoding = prepare_tokenizer(tokenizer, model, max_length=64, chat_template=evil)
    with pytest.raises(ValueError, match="row 0: the chat template refuses .*give another chat_template"):
        RewardEncoder(tokenizer, encoding).encode([conversation("a")])
    found = RewardEncoder(tokenizer, encoding).encode([conversation("a"), "plain"], strict=False)
    assert found.ids[0] is None and found.ids[1]


def test_an_honest_template_renders_as_without_bounds():
    template = "".join(
        [
            "{%- for m in messages if m.role != 'system' %}{% if loop.first %}<s>{% endif %}",
            "{{- loop.index ~ '/' ~ loop.length }} {{ m.role | upper | center(12) }}",
            "{{ m.content.split('\n') | join(' + ') }}",
            "{%- for k, v in (m.extra or {}).items() | sort %} {{ k }}={{ v | tojson }}{% endfor %}",
            "{{ '|' * 3 }}{{ '%s-%03d' % ('a', 7) }}{%- if loop.last %}</s>{% endif %}{% endfor %}",
            "{% macro f(x, n=1700000000) %}[{{ x }}{{ n + 1 }}]{% endmacro %}{{ f(2 ** 3) }}",
        ]
    )
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a\nb", "extra": {"n": 1700000000, "m": [1, "x"]}},
        {"role": "assistant", "content": "c"},
    ]
    plain = bounded_templates._compile(template).render(messages=messages)
    assert (
        bounded_templates._compile_bounded(template).render(messages=messages) == plain
        and "1700000000" in plain
    )


def test_each_text_has_steps_of_its_own():
    compiled = bounded_templates._compile_bounded("{% for i in range(9000) %}{% endfor %}done")
    for _ in range(3):
        bounded_templates._left.steps = 5
        assert compiled.render() == "done"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounded_templates, "_STEPS", 8000)
        with pytest.raises(jinja2.TemplateError, match="more than 8,000 steps"):
            compiled.render()


# ---- rows to score

GOOD = {"prompt": "What is AI?", "response": "A field."}


def scored(rm, path, **given):  # noqa: F811
    out = path.with_name("out.jsonl")
    report = rm.score_file(path, out, **given)
    return report, [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("depth", [*range(150, 1100, 37), 5000, 200_000])
def test_a_row_of_any_depth_fails_alone(rm, tmp_path, depth):  # noqa: F811
    path = tmp_path / "in.jsonl"
    deep = '{"prompt": "a", "response": "b", "more": ' + "[" * depth + "]" * depth + "}"
    path.write_text("\n".join([json.dumps(GOOD), deep, json.dumps(GOOD)]) + "\n")
    for _ in range(2):  # again, over what is there
        report, rows = scored(rm, path)
        assert report.rows == 3 and rows[0] == rows[2] and rows[0]["score"] is not None
        assert rows[1].get("score") is not None or "in.jsonl:2: " in rows[1]["error"]


@pytest.mark.parametrize("cell", ["x" * 200_000, '"' + "y, " * 100_000 + '"'], ids=["long", "quoted"])
def test_a_long_cell_is_a_row_like_others(rm, tmp_path, cell):  # noqa: F811
    path = tmp_path / "in.csv"
    path.write_text(f"prompt,response\na,b\na,{cell}\na,b\n")
    report, rows = scored(rm, path)
    assert report.rows == 3 and rows[0]["score"] == rows[2]["score"]
    assert rows[1]["score"] is not None or "in.csv:3: " in rows[1]["error"]


def test_a_reward_that_is_no_number_fails_alone_and_a_rerun_gets_past_it(rm, tmp_path, monkeypatch):  # noqa: F811
    path = tmp_path / "in.jsonl"
    rows = [GOOD, GOOD | {"response": "evil"}, GOOD]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = type(rm.scorer).__call__
    evil = tuple(rm.encode(["What is AI?"], ["evil"])[0])

    def spoilt(self, ids, progress=None):
        return [float("nan") if tuple(own) == evil else r for own, r in zip(ids, score(self, ids, progress))]

    monkeypatch.setattr(type(rm.scorer), "__call__", spoilt)
    for _ in range(2):
        report, found = scored(rm, path, batch_rows=2)
        assert report.failed == 1 and "in.jsonl:2: the reward of" in found[1]["error"]
        assert found[0]["score"] == found[2]["score"] is not None


@pytest.mark.parametrize("how", ["written again", "added to", "removed"])
def test_an_input_that_changes_while_it_is_read_is_noticed(rm, tmp_path, monkeypatch, how):  # noqa: F811
    path = tmp_path / "in.jsonl"
    rows = [GOOD | {"response": f"A field {i}."} for i in range(300)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    score_ids, changed = type(rm).score_ids, []

    def meanwhile(self, *args):
        if not changed:
            changed.append(1)
            {"written again": lambda: path.write_text(text.replace("AI", "IA")), "removed": path.unlink,
             "added to": lambda: path.open("a").write(json.dumps(GOOD) + "\n")}[how]()  # fmt: skip
        return score_ids(self, *args)

    monkeypatch.setattr(type(rm), "score_ids", meanwhile)
    with pytest.raises(ValueError, match="in.jsonl was changed while it was read, so nothing is finished"):
        scored(rm, path, batch_rows=50)
    assert not (tmp_path / "out.jsonl").exists() and (tmp_path / "out.jsonl.part").exists()
    if how == "added to":  # what is done is not lost
        report, found = scored(rm, path, batch_rows=50)
        assert report.resumed_at == 300 and report.rows == 301


def test_a_full_disk_says_where_and_what_to_do_and_a_rerun_goes_on(rm, tmp_path, monkeypatch):  # noqa: F811
    from reward_kit.scores import score_files

    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(GOOD | {"response": f"{i}"}) + "\n" for i in range(9)))
    add, calls = score_files.append_rows, []

    def full(target, rows, **given):
        calls.append(1)
        if len(calls) == 2:
            monkeypatch.setattr("os.fsync", fails)
        return add(target, rows, **given)

    def fails(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(score_files, "append_rows", full)
    with pytest.raises(
        OSError, match="No space left on device; make room and do the same again: .*out.jsonl.part"
    ):
        scored(rm, path, batch_rows=3)
    monkeypatch.undo()
    report, found = scored(rm, path, batch_rows=3)
    assert len(found) == 9 and report.failed == 0 and report.resumed_at in (3, 6)


def test_what_a_killed_call_left_of_its_output_goes_with_the_next(rm, tmp_path):  # noqa: F811
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(GOOD) + "\n")
    (tmp_path / f".out.jsonl.part.json.{2**22 + 1}-abcd1234").mkdir()
    scored(rm, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_connection_that_is_closed_and_not_read_goes_away():
    "It is closed when what is left has been read; one whose caller reads no more is cut."
    called, aborted, left = [], [], [900, 500, 500]
    cls = network._bounded_protocol(10, 0.1)
    connection = cls.__new__(cls)
    connection.loop = SimpleNamespace(call_later=lambda seconds, look, waited: called.append(waited))
    connection.transport = SimpleNamespace(
        is_closing=lambda: True, get_write_buffer_size=lambda: left.pop(0), abort=lambda: aborted.append(1)
    )
    connection.look(False)
    connection.look(called[-1])
    assert called == [900, 500] and not aborted  # its caller reads
    connection.look(called[-1])
    assert aborted and called == [900, 500]
