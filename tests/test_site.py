"The README, the site's pages and the package metadata agree with their one source each."
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def readme():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sidebar_pages(contents):
    for entry in contents:
        if isinstance(entry, dict):
            yield from sidebar_pages(entry["contents"])
        else:
            yield entry


def test_readme_is_the_index_notebook(readme):
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme.readme_text(), "run `make readme`"


def test_every_notebook_is_in_the_sidebar_and_back():
    site = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    pages = set(sidebar_pages(site["website"]["sidebar"]["contents"]))
    notebooks = {str(p.relative_to(ROOT / "nbs")) for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    assert pages == notebooks


def test_links_between_notebooks_are_alive():
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type != "markdown":
                continue
            for target in re.findall(r"\]\(([^)#\s]+\.(?:ipynb|png))(?:#[^)]*)?\)", cell.source):
                if "://" not in target:
                    assert (path.parent / target).exists(), f"{path.name}: dead link {target}"


def test_links_in_the_readme_are_alive():
    for target in re.findall(r"\]\(([^)#\s]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        if "://" not in target:
            assert (ROOT / target).exists(), f"README.md: dead link {target}"


def test_metadata_comes_from_settings_ini(readme):
    cfg = readme.settings()
    run = lambda *args: subprocess.run([sys.executable, "setup.py", "--quiet", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    name, version = run("--name", "--version").split()[-2:]
    assert (name, version) == (cfg["lib_name"], cfg["version"])
    import reward_kit

    assert reward_kit.__version__ == cfg["version"]


def test_constraints_satisfy_the_requirements(readme):
    from packaging.requirements import Requirement

    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    pins = {k.lower().replace("_", "-"): v for k, v in pins.items()}
    cfg = readme.settings()
    for text in (cfg["requirements"] + " " + cfg["peft_requirements"] + " " + cfg["serve_requirements"] + " " + cfg["dev_requirements"]).split():
        req = Requirement(text)
        assert req.name.lower() in pins, f"{req.name} is not pinned in constraints.txt"
        assert req.specifier.contains(pins[req.name.lower()]), f"{text} against {pins[req.name.lower()]}"
