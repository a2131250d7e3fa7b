"The README, the site's pages and the package metadata agree with their one source each."

import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest
import yaml
from nbdev.doclinks import _nbpath2html

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {
    f"{name}.qmd"
    for name in "results use_from notes papers changelog contributing api ppo_details formats".split()
}
LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)")
CHANGING = re.compile(r"\b0x[0-9a-f]{6,}|\d(?:it|s)/(?:s|it)\b|\d\d:\d\d<\d|\d%\|[█▏▎▍▌▋▊▉ ]")


@pytest.fixture(scope="module")
def readme():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_is_the_index_notebook(readme):
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme.readme_text(), "run `make readme`"


def test_every_notebook_is_in_the_sidebar_and_back(docs):
    listed = list(docs.flat(docs.sidebar()["contents"]))
    pages = set(listed)
    assert len(pages) == len(listed)
    notebooks = {
        str(p.relative_to(ROOT / "nbs"))
        for p in (ROOT / "nbs").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in p.parts
    }
    assert pages == notebooks | {p.name for p in (ROOT / "nbs").glob("*.qmd")} | GENERATED


def test_options_of_cells_are_yaml(site):
    seen = 0
    for path in site.rglob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            lines = (
                [line[3:] for line in cell.source.splitlines() if line.startswith("#| ")]
                if cell.cell_type == "code"
                else []
            )
            options = yaml.safe_load("\n".join(lines)) or {}
            assert isinstance(options, dict), f"{path.name}: {lines}"
            seen += "fig-alt" in options
    assert seen > 20


def test_no_two_pages_of_a_folder_have_one_address(docs):
    pages = [
        str(_nbpath2html(Path(page)) if page.endswith(".ipynb") else Path(page).with_suffix(".html"))
        for page in docs.flat(docs.sidebar()["contents"])
    ]
    assert len(pages) > 20 and sorted(pages) == sorted(set(pages))


def test_commands_of_formulas_have_one_backslash():
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            formulas = re.findall(r"\$[^$\n]+\$", cell.source) if cell.cell_type == "markdown" else []
            assert not [formula for formula in formulas if re.search(r"\\\\[a-zA-Z]", formula)], path.name


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
    run = lambda *args: (
        subprocess.run(
            [sys.executable, "setup.py", "--quiet", *args],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    name, version = run("--name", "--version").split()[-2:]
    assert (name, version) == (cfg["lib_name"], cfg["version"])
    import reward_kit

    assert reward_kit.__version__ == cfg["version"]


def test_constraints_satisfy_the_requirements(readme):
    from packaging.requirements import Requirement

    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    pins = {k.lower().replace("_", "-"): v for k, v in pins.items()}
    cfg = readme.settings()
    for text in (
        cfg["requirements"]
        + " "
        + cfg["peft_requirements"]
        + " "
        + cfg["serve_requirements"]
        + " "
        + cfg["dev_requirements"]
    ).split():
        req = Requirement(text)
        assert req.name.lower() in pins, f"{req.name} is not pinned in constraints.txt"
        assert req.specifier.contains(pins[req.name.lower()]), f"{text} against {pins[req.name.lower()]}"


# ---------------------------------------------------------------- the prepared site, without Quarto


@pytest.fixture(scope="module")
def docs():
    pytest.importorskip("nbdev")
    sys.path.insert(0, str(ROOT / "scripts"))
    import docs as module

    yield module
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def site(docs, tmp_path_factory):
    "A folder as Quarto gets it."
    folder = tmp_path_factory.mktemp("site")
    docs.prepare(folder)
    return folder


def page_text(path):
    "The Markdown of a page; of a notebook its Markdown cells."
    if path.suffix == ".qmd":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(
        "".join(c["source"])
        for c in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] != "code"
    )


def without_code(text):
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.S | re.M)


def anchors(docs, text):
    "Identifiers of a page's headings, as Pandoc numbers repeated ones."
    found = []
    for heading in re.findall(r"^#+ +(.+?)\s*$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M):
        name, n = docs.anchor(heading), 0
        while (f"{name}-{n}" if n else name) in found:
            n += 1
        found.append(f"{name}-{n}" if n else name)
    return set(found)


@pytest.mark.parametrize(
    "heading,identifier",
    [  # the examples of Pandoc's manual, and what chapters have
        ("Heading identifiers in HTML", "heading-identifiers-in-html"),
        ("Maître d'hôtel", "maître-dhôtel"),
        ("*Dogs*?--in *my* house?", "dogs--in-my-house"),
        ("[HTML], [S5], or [RTF]?", "html-s5-or-rtf"),
        ("3. Applications", "applications"),
        ("33", "section"),
        ("RewardModel.score", "rewardmodel.score"),
        ("wilson_interval", "wilson_interval"),
        ("`reward_kit.json`, explained", "reward_kit.json-explained"),
        ("Named {#other}", "other"),
    ],
)
def test_identifiers_of_headings(docs, heading, identifier):
    assert docs.anchor(heading) == identifier


def test_every_page_of_the_sidebar_is_prepared(docs, site):
    settings = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    written = yaml.safe_load((site / "book.yml").read_text())["website"]["sidebar"]
    assert written == docs.sidebar()
    assert not [page for page in docs.flat(written["contents"]) if not (site / page).exists()]
    assert settings["execute"]["enabled"] is False


def test_links_between_pages_are_alive_with_their_anchors(docs, site):
    texts = {
        p.relative_to(site).as_posix(): page_text(p) for p in [*site.rglob("*.ipynb"), *site.rglob("*.qmd")]
    }
    known, dead = {page: anchors(docs, text) for page, text in texts.items()}, []
    for page, text in texts.items():
        for target in LINK.findall(without_code(text)) + re.findall(r"^\[[\w-]+\]: (\S+)$", text, re.M):
            if re.match(r"\w+:", target):
                continue
            file, _, name = target.partition("#")
            file = (
                (site / page).parent.joinpath(file).resolve().relative_to(site.resolve()).as_posix()
                if file
                else page
            )
            if not (site / file).exists() or name and name not in known[file]:
                dead.append(f"{page}: {target}")
    assert not dead, "\n".join(dead)


def test_every_exported_name_is_documented_on_its_page(docs, site):
    names = docs.public_names()
    texts = {page: page_text(site / page) for page in {page for page, _ in names.values()}}
    known = {page: anchors(docs, text) for page, text in texts.items()}
    unlinked = {page: re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text) for page, text in texts.items()}
    assert len(names) > 100
    for name, (page, item) in names.items():
        assert docs.entry(name) in known[page], f"{page}: {name}"
        assert inspect.getdoc(item).splitlines()[0] in unlinked[page], f"{page}: {name}"


def test_a_page_keeps_what_the_first_cell_says_and_shows_exported_code(docs, site):
    for path in docs.notebooks():
        source, shown = (
            nbformat.read(ROOT / "nbs" / path, as_version=4),
            json.loads((site / path).read_text(encoding="utf-8")),
        )
        code = "\n".join("".join(c["source"]) for c in shown["cells"])
        code = re.sub(r"\[(chapter \d\d|arXiv [\d.]+)\]\([^)]*\)", r"\1", code)
        first = next(c.source for c in source.cells if c.cell_type == "markdown").strip().splitlines()
        assert first[-1].lstrip("> ") in " ".join(code.split()) or "`" in first[-1] or "](" in first[-1], path
        assert f"/nbs/{path.as_posix()}" in code
        assert ("colab.research.google.com/github/" in code) == (path.parts[0] == "tutorials"), path
        for cell in source.cells:
            if (
                cell.cell_type == "code"
                and cell.source.startswith("#| export\n")
                and re.search(r"^(?:def|class) \w", cell.source, re.M)
            ):
                assert re.search(r"^(?:def|class) \w.*$", cell.source, re.M)[0] in code, path


def test_what_a_page_shows_can_be_copied_in_order(docs, site, tmp_path):
    "Every name that a page's code uses is there before it, on the same page."
    for path in docs.notebooks():
        cells = [c.source for c in nbformat.read(site / path, as_version=4).cells if c.cell_type == "code"]
        code = re.sub(r"^[%!].*$", "", "\n\n".join(cells), flags=re.M)
        (tmp_path / f"{path.stem}.py").write_text(code, encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--no-cache", tmp_path]
    found = subprocess.run(ruff, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_source_is_closed_and_nothing_loads_scripts_from_elsewhere(docs, site):
    for path in docs.notebooks():
        for cell in nbformat.read(site / path, as_version=4).cells:
            assert "code-fold: show" not in cell.source, path
            outputs = cell.get("outputs", []) if cell.cell_type == "code" else []
            assert not [o for o in outputs if "text/html" in o.get("data", {})], path


def test_a_class_shows_what_it_inherits(docs, site):
    names = docs.public_names()
    text = page_text(site / names["RewardModel"][0])
    whole = text[text.index("{#api-RewardModel}") :]
    for method in ("score", "compare", "rank", "best_of_n", "from_pretrained"):
        assert re.search(rf"^\| \[`\w+\.{method}`\]\(\S*#api-\w+\.{method}\)", whole, re.M), method


def test_every_public_name_is_on_the_page_of_the_api(docs, site):
    import reward_kit

    text, names = (site / "api.qmd").read_text(encoding="utf-8"), docs.public_names()
    listed = set(re.findall(r"^\| \[`(\w+)`\]", text, re.M))
    assert listed == set(reward_kit.__all__) & set(names)
    left = set(reward_kit.__all__) - listed
    assert left <= {"LOSSES", "PROBES", "centering_loss"}  # which are values, not functions or classes


def test_every_detail_of_ppo_has_its_line(site):
    text = (site / "ppo_details.qmd").read_text(encoding="utf-8")
    assert re.findall(r"^\| D(\d+) \|", text, re.M) == [str(n) for n in range(1, 24)]


def test_markdown_twins(docs, site, tmp_path):
    docs_folder = tmp_path / "out"
    for page in docs.flat(docs.sidebar()["contents"]):
        (docs_folder / page).parent.mkdir(parents=True, exist_ok=True)
    docs.write_markdown(site, docs_folder)
    listed = re.findall(r"/(\w+(?:/\w+)?\.md)\)", (docs_folder / "llms.txt").read_text(encoding="utf-8"))
    assert len(listed) == len(list(docs.flat(docs.sidebar()["contents"])))
    assert "2_model/loss.md" in listed
    twin = (docs_folder / "2_model/loss.md").read_text(encoding="utf-8")
    assert "```python\ndef naive_loss" in twin and "tensor(0.2877)" in twin


def test_tables_of_parameters_hold_type_default_and_meaning(docs):
    from reward_kit.model.encoding import RewardEncoding
    from reward_kit.model.trainer import RewardConfig

    def f(
        a: int,  # rows | columns, in *units*
        b="x",  # one of `a|b`
        *rest,  # others
    ):  # -> a number
        "Doc."

    lines = docs.table(docs.parameters(f)).splitlines()
    assert lines[0] == "| parameter | type | default | meaning |"
    assert lines[2] == r"| `a` | `int` |  | rows \| columns, in \*units\* |"
    assert lines[3] == "| `b` |  | `'x'` | one of <code>a&#124;b</code> |"
    assert (
        "| `max_length` | `int` | `2048` | tokens of one sequence, special tokens included |"
        in docs.table(docs.parameters(RewardEncoding))
    )
    config = docs.parameters(RewardConfig)  # help in the field's metadata; TRL's own settings left out
    assert config["max_length"][2].startswith("Longest (prompt, response)") and "adam_beta1" not in config
    assert docs.call("f", docs.parameters(f)) == "f(a, b='x', *rest)"


def test_names_become_links_where_they_are_words_of_prose(docs):
    names = {"score": ("a.ipynb", None)}
    assert (
        docs.link_names("see `score()`, `other` and [`score`](x)", names, "b.ipynb")
        == "see [`score()`](a.ipynb#api-score), `other` and [`score`](x)"
    )
    assert docs.link_names("`score`", names, "tutorials/b.ipynb") == "[`score`](../a.ipynb#api-score)"
    assert (
        docs.link_names("## `score`\n\n```python\n`score`\n```\n", names, "a.ipynb")
        == "## `score`\n\n```python\n`score`\n```\n"
    )


# ---------------------------------------------------------------- pages


def test_every_paper_that_is_named_is_listed_and_back(docs):
    import pages

    assert not pages.unlisted(), "add them to scripts/papers.yml"
    assert not [p["authors"] for p in pages.papers() if not pages.places(p)], "no notebook names them"
    assert pages.ARXIV.findall(
        "arXiv 2403.17031, [x](https://arxiv.org/abs/2205.05198) and 2000.12345 but not 12.34567"
    ) == ["2403.17031", "2205.05198"]
    assert [
        m.groups()
        for m in pages.NAMED.finditer("Rao and Kupper (1967); Gao et al. 2022; Wilson 1927, in 2024")
    ] == [("Rao and Kupper", "1967"), ("Gao et al.", "2022"), ("Wilson", "1927")]


def test_each_cell_of_the_comparison_has_its_source():
    text = (ROOT / "nbs" / "comparison.qmd").read_text(encoding="utf-8")
    defined, used = (
        set(re.findall(r"^\[([\w-]+)\]: https://", text, re.M)),
        set(re.findall(r"\]\[([\w-]+)\]", text)),
    )
    assert defined == used
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| **")]
    assert len(rows) > 20
    for row in rows:
        assert len(row) == 6, row
        assert all("](" in cell or "][" in cell for cell in row[1:]), row


def test_the_benchmarks_page_holds_every_result(site):
    text = (site / "results.qmd").read_text(encoding="utf-8")
    for result in (ROOT / "benchmarks" / "results").glob("*.md"):
        assert all(
            line in text for line in result.read_text(encoding="utf-8").splitlines() if line.startswith("|")
        ), result.name
    assert all((site / target).exists() for _, target in IMAGE.findall(text))


def test_the_changelog_page_is_the_changelog(site):
    assert (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n", 1)[1].strip() in (
        site / "changelog.qmd"
    ).read_text(encoding="utf-8")


COLAB = ROOT / "scripts" / "colab.py"


def test_colab_holds_fixed_what_is_loaded(docs, monkeypatch, tmp_path):
    script, calls, find = (
        compile(COLAB.read_text(encoding="utf-8"), "colab", "exec"),
        [],
        importlib.util.find_spec,
    )

    def run(command, check):
        calls.append(command)
        if command[0] == "git":
            (Path(command[-1]) / "nbs" / "tutorials").mkdir(parents=True)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "reward_kit" else find(name)
    )
    monkeypatch.setattr(subprocess, "run", run)
    exec(script, {})
    held = (tmp_path / "loaded.txt").read_text().split()
    assert f"pytest=={importlib.metadata.version('pytest')}" in held and any(
        line.startswith("torch==") for line in held
    )
    assert (
        calls[0][-2] == docs.readme.settings()["git_url"]
        and calls[1][-1] == f"{calls[0][-1]}[peft]"
        and Path.cwd().name == "tutorials"
    )
    monkeypatch.chdir(tmp_path / "reward_kit-source")
    monkeypatch.setattr(importlib.util, "find_spec", find)
    exec(script, {})
    assert (
        len(calls) == 2 and Path.cwd().name == "reward_kit-source"
    )  # where reward_kit is installed, nothing happens


def test_colab_keeps_results_in_drive_where_it_is_asked_to(monkeypatch):
    mounted, google = [], types.ModuleType("google.colab")
    google.drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", google)
    monkeypatch.setenv("REWARD_KIT_OUTPUT", "")
    exec(compile(COLAB.read_text(encoding="utf-8"), "colab", "exec"), {"DRIVE": True})
    assert mounted == ["/content/drive"] and os.environ["REWARD_KIT_OUTPUT"].startswith(
        "/content/drive/MyDrive/"
    )


def test_every_tutorial_begins_with_what_colab_needs(site):
    cell = re.search(r"```python\n(.*?)```", (site / "colab.qmd").read_text(encoding="utf-8"), re.S)[1]
    for path in sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb")):
        first = next(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
        assert (
            "\n".join(line for line in first.splitlines() if not line.startswith("#")).strip() == cell.strip()
        ), path.name
        exec(compile(first, path.name, "exec"), {})  # outside Colab it does nothing
        assert "REWARD_KIT_OUTPUT" in path.read_text(encoding="utf-8"), path.name


# ---------------------------------------------------------------- pictures and outputs


def test_every_picture_has_a_text_for_those_who_do_not_see_it():
    texts = {
        p: page_text(p)
        for p in [*(ROOT / "nbs").rglob("*.ipynb"), *(ROOT / "nbs").glob("*.qmd")]
        if ".ipynb_checkpoints" not in p.parts
    }
    texts |= {
        p: p.read_text(encoding="utf-8") for p in [ROOT / "README.md", *(ROOT / "benchmarks").rglob("*.md")]
    }
    for path, text in texts.items():
        assert not [target for alt, target in IMAGE.findall(text) if len(alt) < 10], path.name
        assert all("alt=" in tag for tag in re.findall(r"<img[^>]*>", text)), path.name


def test_every_figure_has_a_text_for_those_who_do_not_see_it():
    "`#| fig-alt: words` in the cell: Quarto puts it on the picture."
    missing = {}
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        cells = [
            c
            for c in nbformat.read(path, as_version=4).cells
            if c.cell_type == "code"
            and any(m.startswith("image/") for o in c.outputs for m in o.get("data", {}))
        ]
        if count := sum(not re.search(r"^#\| fig-alt: \S.{9,}", c.source, re.M) for c in cells):
            missing[path.relative_to(ROOT / "nbs").as_posix()] = count
    assert not missing


def test_stored_outputs_hold_nothing_that_changes_from_run_to_run():
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" in path.parts:
            continue
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                texts = [output.get("text", "")] + [
                    v
                    for k, v in output.get("data", {}).items()
                    if isinstance(v, str) and not k.startswith("image/")
                ]
                for text in texts:
                    assert not CHANGING.search(text), (
                        f"{path.name}: {CHANGING.search(text)[0]!r} in {text[:200]}"
                    )


@pytest.mark.parametrize(
    "text,found",
    [
        ("<object at 0x7f01ab23cd>", 1),
        ("  5%|▌   | 3/60 [00:01<00:20,  2.8it/s]", 1),
        ("12.3it/s", 1),
        ("0xff", 0),
        ("50% | 60%", 0),
        ("units/second", 0),
    ],
)
def test_the_pattern_of_changing_outputs(text, found):
    assert bool(CHANGING.search(text)) == found


# ---------------------------------------------------------------- workflows


def test_workflows_agree_with_the_metadata_and_pin_what_they_use():
    read = {p.stem: yaml.safe_load(p.read_text()) for p in (ROOT / ".github" / "workflows").glob("*.yml")}
    assert set(read) == {"test", "docs"}
    versions = read["test"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    classifiers = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--classifiers"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert versions == re.findall(r"Python :: (3\.\d+)", classifiers)
    steps = [step for workflow in read.values() for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(re.search(r"@v\d+\.\d+\.\d+$", step["uses"]) for step in steps if "uses" in step)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    assert {step["run"] for step in steps if "run" in step} == {
        "make test",
        "make tutorials",
        "make docs",
    } and {"test", "tutorials", "docs"} <= set(targets)
    python = [step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")]
    assert set(python) <= {"${{ matrix.python }}", *versions}
    assert [step["with"]["version"] for step in steps if "quarto-actions" in step.get("uses", "")] == [
        "1.7.34"
    ]
