"The score server as replicas: manifests ask for what the application has; Ray Serve, where it is installed."

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from trainer_world import make_base

from reward_kit import RewardClient, RewardMetadata, RewardModel, load_reward_backbone, prepare_tokenizer

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    backbone, tokenizer = load_reward_backbone(make_base(folder / "base"), new_head=True)
    RewardMetadata(encoding=prepare_tokenizer(tokenizer, backbone)).save(folder / "model")
    backbone.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model")


def test_the_manifests_ask_for_what_there_is(model, monkeypatch):
    pytest.importorskip("fastapi")
    from reward_kit.beside import replicas

    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], model)
    served = replicas.app()
    routes = {route.path for route in served.routes}
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["path"] for probe in probes} <= routes
    (port,) = {probe["port"] for probe in probes} | {p["containerPort"] for p in container["ports"]}
    assert port == service["spec"]["ports"][0]["port"]
    command = json.loads(re.search(r"^CMD (.*)$", (DEPLOY / "Dockerfile").read_text(), re.M)[1])
    assert "reward_kit.beside.replicas:app" in command and str(port) in command
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_a_setting_reaches_the_application(model, monkeypatch):
    pytest.importorskip("fastapi")
    from reward_kit.beside import replicas

    for name, value in (("MODEL", model), ("MAX_ROWS", "7"), ("DEVICE", "cpu")):
        monkeypatch.setenv(f"REWARD_KIT_{name}", value)
    assert replicas.app().state.batcher.limits.max_rows == 7
    monkeypatch.setenv("REWARD_KIT_MAX_ROWS", "many")
    with pytest.raises(ValueError, match="REWARD_KIT_MAX_ROWS must be a whole number"):
        replicas.app()


SERVE = """
import requests
import ray
from ray import serve
from reward_kit.beside import replicas

@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.5})
@serve.ingress(replicas.app)
class Rewards: ...

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.run(Rewards.bind())
body = {"prompts": ["thank you"], "responses": ["sorry"]}
answers = [requests.post("http://127.0.0.1:8000/v1/rewards", json=body).json() for _ in range(2)]
print("REWARDS", *(answer["rewards"][0] for answer in answers))
serve.shutdown()
"""


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_ray_serve_takes_the_factory(model, tmp_path):
    (tmp_path / "serving.py").write_text(SERVE)
    env = os.environ | {"REWARD_KIT_MODEL": model, "REWARD_KIT_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    env |= {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, str(tmp_path / "serving.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    found = re.search(r"REWARDS (\S+) (\S+)", done.stdout)
    assert found, done.stdout[-2000:] + done.stderr[-3000:]
    expected = RewardModel.from_pretrained(model, device="cpu").score("thank you", "sorry")
    assert [float(reward) for reward in found.groups()] == pytest.approx([expected] * 2, abs=1e-5)


@pytest.mark.skipif(find_spec("gunicorn") is None, reason="gunicorn is not installed")
def test_gunicorn_takes_the_factory(model, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"REWARD_KIT_MODEL": model, "REWARD_KIT_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    words = f"-w 2 -k uvicorn.workers.UvicornWorker -b 127.0.0.1:{port} reward_kit.beside.replicas:app()"
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "gunicorn", *words.split()], env=env, stderr=log)
    try:
        for _ in range(300):
            time.sleep(0.2)
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready") as answer:
                    assert answer.status == 200
                    break
        found = RewardClient(f"http://127.0.0.1:{port}").score("thank you", "sorry")
    finally:
        server.terminate()
        ended = server.wait(60)
    expected = RewardModel.from_pretrained(model, device="cpu").score("thank you", "sorry")
    assert found == pytest.approx(expected, abs=1e-5) and ended == 0, (tmp_path / "log").read_text()
