"""Pages of the site that are made from other files, so that each fact stands once: benchmarks, papers,
changelog."""

import ast
import functools
import json
import re
import shutil
from pathlib import Path
from urllib.parse import quote

import readme
import yaml

ROOT = readme.ROOT
ARXIV = re.compile(r"(?<![\w.])(\d{2}(?:0[1-9]|1[0-2])\.\d{4,5})(?![\w.]|\d)")
# "Wilson (1927)", "Wilson 1927", "Gao et al. (2022", "Rao and Kupper (1967)", "Yellott, 1977", "Davidson ties
# (1970)"
NAMED = re.compile(
    r"([A-ZÀ-Þ][\w'-]+(?:(?:, [A-ZÀ-Þ][\w'-]+)* and [A-ZÀ-Þ][\w'-]+| et al\.)?),? (?:ties"
    r" )?\(?((?:19|20)\d\d)\b(?![-:\d]|\.\d)"
)


def front_matter(title: str, description: str) -> str:
    "The head of a page without a file of its own in nbs/, which the links to the source could not find."
    return (
        f"---\ntitle: {json.dumps(title)}\ndescription: {json.dumps(description)}\nrepo-actions:"
        " false\n---\n\n"
    )


def demoted(text: str, by: int) -> str:
    "Markdown with its headings lower by some levels."
    return re.sub(r"^(#+ )", "#" * by + r"\1", text, flags=re.M)


def repository_link(path: str) -> str:
    "The address of a file in the repository."
    cfg = readme.settings()
    return f"{cfg['git_url']}/blob/{cfg['branch']}/{path}"


# ---------------------------------------------------------------- benchmarks


def program_of(result: Path) -> Path:
    "The program that wrote a result: `train_speed_long.md` is one of `train_speed.py`."
    fitting = [
        p
        for p in (ROOT / "benchmarks").glob("*.py")
        if result.stem == p.stem or result.stem.startswith(f"{p.stem}_")
    ]
    if not fitting:
        raise ValueError(f"{result.name} is the result of no program in benchmarks/")
    return max(fitting, key=lambda p: len(p.stem))


def benchmarks() -> str:
    "Results as their programs wrote them, each under what its program says it measures."
    text = front_matter("All results", "What each benchmark wrote.")
    text += (
        "The tables are what the programs in `benchmarks/` wrote. Each names the machine's number of threads,"
        " the versions and what differs between the sides. Times depend on the machine; ratios were measured"
        " side by side on one.\n"
    )
    for result in sorted((ROOT / "benchmarks" / "results").glob("*.md")):
        program = program_of(result)
        says = (
            (ast.get_docstring(ast.parse(program.read_text(encoding="utf-8"))) or "")
            .split("\n\n")[0]
            .replace("\n", " ")
        )
        heading = result.stem.replace("_", " ").capitalize()
        text += f"\n## {re.sub('ppo', 'PPO', heading, flags=re.I)}\n\n"
        text += (
            f"{says} [`python"
            f" benchmarks/{program.name}`]({repository_link(f'benchmarks/{program.name}')})\n\n"
        )
        pictures = r"\]\((?!\w+:)([^)]+\.png)\)"
        wrote = demoted(re.sub(pictures, r"](benchmarks/\1)", result.read_text(encoding="utf-8")), 1)
        text += f'::: {{.callout-note collapse="true" title="What it wrote"}}\n\n{wrote}\n\n:::\n'
    return text


def use_from() -> str:
    "The clients that were run, with their lines, as a page."
    wrote = (ROOT / "benchmarks" / "results" / "clients.md").read_text(encoding="utf-8")
    link = repository_link("benchmarks/clients.py")
    return (
        front_matter("Use it from...", "The lines of each client and loader, as they were run.")
        + f"Each was run with the versions named, by [`benchmarks/clients.py`]({link}), against"
        " `reward-kit serve` or the folder itself. Which setting names the server in OpenRLHF, verl and"
        " others stands in [wire formats](7_beside/wire_formats.ipynb).\n\n"
        + wrote
    )


def notes() -> str:
    "What was tried, as a page."
    text = (ROOT / "benchmarks" / "NOTES.md").read_text(encoding="utf-8").split("\n", 1)[1].lstrip()
    return front_matter("What was tried", "What was tried, what it gave, what was left out.") + text


# ---------------------------------------------------------------- papers


def papers() -> list:
    "The entries of papers.yml."
    return yaml.safe_load((ROOT / "scripts" / "papers.yml").read_text(encoding="utf-8"))


@functools.cache
def sections(notebook: Path) -> list:
    """(heading, text) of a notebook in order, code included; the heading is the last one before, the
    title first."""
    found, heading = [], ""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            found.append((heading, text))
            continue
        for part in re.split(r"^(#+ .*)$", text, flags=re.M):
            if re.match(r"#+ ", part):
                heading = part.lstrip("# ").strip() if not part.startswith("# ") else ""
            elif part.strip():
                found.append((heading, part))
    return found


def names_paper(paper: dict, text: str) -> bool:
    "Does the text name the paper, by its number or as `cited` says?"
    return paper.get("arxiv") in ARXIV.findall(text) or bool(
        paper.get("cited") and re.search(paper["cited"], text)
    )


def places(paper: dict) -> list:
    "(notebook, heading) of every section that names the paper, each once."
    found = []
    for notebook in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in notebook.parts:
            continue
        for heading, text in sections(notebook):
            place = (notebook.relative_to(ROOT / "nbs").as_posix(), heading)
            if place not in found and names_paper(paper, text):
                found.append(place)
    return found


def unlisted() -> list:
    "Citations in the notebooks' prose and docstrings that no entry of papers.yml covers."
    listed, missing = papers(), []
    numbers = {p["arxiv"] for p in listed if p.get("arxiv")}
    for notebook in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in notebook.parts:
            continue
        for heading, text in sections(notebook):
            missing += [
                (notebook.name, heading, number) for number in ARXIV.findall(text) if number not in numbers
            ]
            for m in NAMED.finditer(text):
                around = text[max(0, m.start() - 30) : m.end() + 30]
                last_name = re.split(r"[ ,]", m[1])[0]
                if not any(
                    last_name in p["authors"] and str(p["year"]) == m[2] or names_paper(p, around)
                    for p in listed
                ):
                    missing.append((notebook.name, heading, m[0]))
    return missing


def paper_link(paper: dict) -> str:
    "Where a paper is found."
    if paper.get("arxiv"):
        return f"[arXiv {paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']})"
    if paper.get("doi"):
        return f"[doi {escape(paper['doi'])}](https://doi.org/{quote(paper['doi'])})"
    return f"[{paper['url'].split('/')[2]}]({paper['url']})" if paper.get("url") else paper["book"]


def escape(text: str) -> str:
    "Angle brackets as Markdown."
    return text.replace("<", r"\<").replace(">", r"\>")


def papers_page(anchor) -> str:
    "The papers by year, what is taken from each, and the sections that do."
    text = front_matter("Papers", "Where the methods come from, and where they are used.")
    text += (
        "| paper | what is taken from it | where |\n|:" + "-" * 40 + "|:" + "-" * 30 + "|:" + "-" * 25 + "|\n"
    )
    for paper in sorted(papers(), key=lambda p: (p["year"], p["authors"])):
        where = []
        for notebook, heading in places(paper):
            title = re.search(
                r"^# (.+)$",
                "\n".join(
                    "".join(c["source"])
                    for c in json.loads((ROOT / "nbs" / notebook).read_text(encoding="utf-8"))["cells"]
                ),
                re.M,
            )[1]
            if heading:
                where.append(f"[{title}: {heading}]({notebook}#{anchor(heading)})")
            else:
                where.append(f"[{title}]({notebook})")
        text += (
            f"| {paper['authors']} ({paper['year']}), *{paper['title']}*, {paper_link(paper)} |"
            f" {paper['method']} | {'; '.join(where)} |\n"
        )
    return text


# ---------------------------------------------------------------- all of them


def changelog() -> str:
    "CHANGELOG.md as a page."
    return (
        front_matter("Changelog", "What changed, newest first.")
        + (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n", 1)[1].lstrip()
    )


def contributing() -> str:
    "CONTRIBUTING.md as a page."
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n", 1)[1].lstrip()
    return front_matter("Contributing", "How a change gets in.") + text.replace("](nbs/", "](")


def write(target: Path, on_site, anchor) -> None:
    """Write the pages, and the pictures that they show, into a folder; `on_site` and `anchor` make text
    and headings those of the site."""
    (target / "results.qmd").write_text(on_site(benchmarks()), encoding="utf-8")
    (target / "use_from.qmd").write_text(on_site(use_from()), encoding="utf-8")
    (target / "notes.qmd").write_text(on_site(notes()), encoding="utf-8")
    (target / "papers.qmd").write_text(papers_page(anchor), encoding="utf-8")
    (target / "changelog.qmd").write_text(changelog(), encoding="utf-8")
    (target / "contributing.qmd").write_text(on_site(contributing()), encoding="utf-8")
    (target / "benchmarks").mkdir(exist_ok=True)
    for picture in (ROOT / "benchmarks" / "results").glob("*.png"):
        shutil.copy(picture, target / "benchmarks")
