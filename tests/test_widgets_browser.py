"""The annotator and the explorer in JupyterLab, clicked and typed at in Chromium as a person would, and the
file that this leaves.

Needs what the package and its other tests do not: `pip install playwright jupyterlab` and a Chromium
(`apt-get install chromium`); without them everything here is skipped.
With REWARD_KIT_SCREENSHOTS=FOLDER pictures are kept there.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [name for name in ("playwright", "jupyterlab") if importlib.util.find_spec(name) is None] + (
    [] if CHROMIUM else ["chromium"]
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (see the top of this file)"),
]

LONG = "A long answer goes on and on, and only its end says what matters. " * 60
ROWS = [
    {"prompt": f"question {i}", "responses": [f"good {i} <b>bold</b>", f"bad {i} " + LONG * (i == 1)]}
    for i in range(12)
]
ANNOTATE = """from reward_kit.tools.annotator import PreferenceAnnotator
PreferenceAnnotator("rows.jsonl", "labels.jsonl", annotator="ann", height="14em")"""
NO_SCRIPT = (
    "import reward_kit.tools.annotator as annotator\nannotator._key_script = lambda name: ''\n"
    + ANNOTATE.replace("labels.jsonl", "plain.jsonl")
)
KILL = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
EXPLORE = """from reward_kit.tools.explorer import RewardExplorer
def polite(words): return 2.0 * words.count("please") - 0.1 * len(words)
RewardExplorer(lambda prompts, responses: [polite(r.split()) for r in responses])"""
DASHBOARD = """import time
from transformers import TrainerControl, TrainerState
from reward_kit.tools.dashboards import TrainingDashboard
watch, state = TrainingDashboard(min_interval=0.1), TrainerState(max_steps=12)
watch.on_train_begin(None, state, TrainerControl())
for state.global_step in range(1, 13):
    step = state.global_step
    logs = {"loss": 0.7 / step, "accuracy": 1 - 0.5 / step, "learning_rate": 1e-4}
    watch.on_log(None, state, TrainerControl(), logs=logs)
    time.sleep(0.15)
watch.on_train_end(None, state, TrainerControl())"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def write_notebook(path, *sources):
    cells = [
        {
            "cell_type": "code",
            "id": f"c{i}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": source,
        }
        for i, source in enumerate(sources)
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))


@pytest.fixture(scope="module", params=["JupyterLab Light", "JupyterLab Dark"])
def lab(request, tmp_path_factory):
    "A JupyterLab of its own: (address, token, folder of the notebooks)."
    home, port = tmp_path_factory.mktemp("lab"), free_port()
    work = home / "work"
    work.mkdir()
    for name, cells in {
        "annotate": [ANNOTATE, KILL],
        "plain": [NO_SCRIPT],
        "explore": [EXPLORE],
        "dashboard": [DASHBOARD],
    }.items():
        write_notebook(work / f"{name}.ipynb", *cells)
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    theme = home / "settings" / "@jupyterlab" / "apputils-extension" / "themes.jupyterlab-settings"
    theme.parent.mkdir(parents=True)
    theme.write_text(json.dumps({"theme": request.param}))
    (theme.parent / "notification.jupyterlab-settings").write_text(
        json.dumps({"fetchNews": "false", "checkForUpdates": False})
    )
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--ServerApp.port={port}",
        "--ServerApp.ip=127.0.0.1",
        "--IdentityProvider.token=secret",
        f"--ServerApp.root_dir={work}",
    ]
    log = open(home / "log", "w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(
            lambda: answers(f"http://127.0.0.1:{port}/api/status?token=secret"), "JupyterLab to answer", 120
        )
        yield f"http://127.0.0.1:{port}/lab/tree", work, request.param.split()[1].lower()
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def wait_for(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds} s for {what}")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_notebook(lab, browser):
    "Opens a notebook, and runs its first cell."
    address, work, theme = lab
    context = browser.new_context(viewport={"width": 1280, "height": 900})

    def start(name):
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{address}/{name}.ipynb?token=secret&reset")
        page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell")
        page.wait_for_selector("text=/\\| Idle/")
        run_cell(page, 0)
        return page

    yield start
    for number, page in enumerate(context.pages):
        picture(page, lab, f"end-{os.environ['PYTEST_CURRENT_TEST'].split('::')[1].split('[')[0]}-{number}")
    context.close()


def run_cell(page, number):
    page.locator(".jp-Notebook .jp-Cell .cm-content").nth(number).click()
    page.keyboard.press("Control+Enter")


def picture(page, lab, name):
    folder = os.environ.get("REWARD_KIT_SCREENSHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}-{lab[2]}.png"))


def labels(path):
    return [json.loads(line)["label"] for line in path.read_text().splitlines()] if path.exists() else None


def test_clicks_and_keys_are_saved_and_survive_the_kernel(lab, open_notebook):
    file = lab[1] / "labels.jsonl"
    page = open_notebook("annotate")
    page.wait_for_selector("[data-keys=on] .rk-left")
    assert page.locator("text=good 0 <b>bold</b>").count() == 1  # shown as text, not as a page
    picture(page, lab, "first")
    page.click(".rk-left")
    wait_for(lambda: labels(file) == ["a"], "the click in the file")
    page.wait_for_selector("text=question 1")
    boxes = [page.locator(".rk-left, .rk-right").nth(i).bounding_box() for i in range(2)]
    assert abs(boxes[0]["y"] - boxes[1]["y"]) < 1
    picture(page, lab, "long")
    assert page.evaluate("document.activeElement.tagName") == "INPUT"
    expected = ["a"]
    for key, label in (
        ("2", "b"),
        ("ArrowLeft", "a"),
        ("ArrowRight", "b"),
        ("=", "tie"),
        ("3", "tie"),
        ("1", "a"),
    ):
        page.keyboard.press(key)  # after the click the focus is in the field for keys
        expected.append(label)
        wait_for(lambda: labels(file) == expected, f"the key {key} in the file")
    page.keyboard.press("s")
    page.wait_for_selector("text=/1 skipped/")
    page.keyboard.press("u")
    page.wait_for_selector("text=/7 of 12 judged, 5 to go/")
    page.click(".rk-undo")
    wait_for(lambda: labels(file) == expected[:-1], "the undo in the file")
    assert (
        page.locator(".jp-Notebook .jp-CodeCell").count() == 2
    )  # no key has reached JupyterLab, where 1 makes a heading of a cell
    run_cell(page, 1)  # kills the kernel
    dialog = page.locator(".jp-Dialog button.jp-mod-accept")
    dialog.click()
    page.wait_for_selector("text=/\\| Idle/")
    run_cell(page, 0)
    page.wait_for_selector("text=/6 of 12 judged, 6 to go/")
    page.click(".rk-tie")
    wait_for(lambda: labels(file) == [*expected[:-1], "tie"], "a choice after the restart")
    events = [json.loads(line)["event"] for line in (lab[1] / "labels.log.jsonl").read_text().splitlines()]
    assert events == ["start", *["choose"] * 7, "skip", "undo", "undo", "choose"]
    from reward_kit.data.preferences import load_preferences

    assert len(load_preferences(file, progress=False)) == 7
    picture(page, lab, "again")


def test_keys_work_without_a_script(lab, open_notebook):
    file = lab[1] / "plain.jsonl"
    page = open_notebook("plain")
    page.wait_for_selector(".rk-left")
    page.click(".jp-OutputArea input[type=text]")
    expected = []
    for key, label in (("1", "a"), ("2", "b"), ("=", "tie")):
        page.keyboard.press(key)
        expected.append(label)
        wait_for(lambda: labels(file) == expected, f"the key {key} in the file")
        wait_for(
            lambda: page.locator(".jp-OutputArea input[type=text]").input_value() == "", "the empty field"
        )
    page.keyboard.press("u")
    wait_for(lambda: labels(file) == expected[:-1], "the undo in the file")


def test_a_held_key_counts_once(lab, open_notebook):
    page = open_notebook("annotate")
    page.wait_for_selector("[data-keys=on] .rk-left")
    before = labels(lab[1] / "labels.jsonl")
    page.click(".jp-OutputArea input[type=text]")
    for _ in range(5):
        page.keyboard.down("2")
    page.keyboard.up("2")
    wait_for(lambda: labels(lab[1] / "labels.jsonl") == [*before, "b"], "one choice")
    time.sleep(1)
    assert labels(lab[1] / "labels.jsonl") == [*before, "b"]


def test_the_explorer_scores_what_is_typed(lab, open_notebook):
    page = open_notebook("explore")
    page.wait_for_selector(".jp-OutputArea textarea")
    areas = page.locator(".jp-OutputArea textarea")
    for i, text in enumerate(("Help?", "Yes, please wait a moment", "No.")):
        areas.nth(i).fill(text)
    page.click("button:has-text('Add a response')")
    page.locator(".jp-OutputArea textarea").nth(3).fill("please please")
    page.click("button:has-text('Score')")
    page.wait_for_selector("text=response 3")
    assert (
        page.locator("td:has-text('3.80')").count() == 1
        and page.locator("span[title='+1.900']:has-text('please')").count() == 3
    )
    picture(page, lab, "explorer")


def test_the_dashboard_draws(lab, open_notebook):
    page = open_notebook("dashboard")
    page.wait_for_selector("text=step 12/12")
    picture(page, lab, "dashboard")
    assert page.locator(".jp-OutputArea img").evaluate("image => image.naturalWidth") > 500
