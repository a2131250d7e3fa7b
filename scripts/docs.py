"""Build the site into _docs: `python scripts/docs.py`, which `make docs` calls. Needs Quarto; `--prepare`
stops before it.

nbdev's own `nbdev_docs` does most of this. What it does not: it drops what a first cell says beside its
title, hides the exported code that a
chapter explains, and shows no defaults or meanings of settings that live in dataclass fields. So its
processors run here between steps of our own.
"""

import inspect
import json
import re
import shutil
import subprocess
import sys
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path

import nbformat
import pages
import readme
from execnb.nbio import mk_cell, read_nb, write_nb
from fastcore.docments import docments
from nbdev.process import NBProcessor
from nbdev.processors import FilterDefaults

ROOT = readme.ROOT
NOTEBOOKS = ROOT / "nbs"
MIN_QUARTO = (1, 7)


# ---------------------------------------------------------------- names


def notebooks() -> list:
    "Every notebook of the site, as a path relative to nbs/."
    return sorted(
        p.relative_to(NOTEBOOKS) for p in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
    )


def module_of(nb) -> str | None:
    "The module that a notebook exports to."
    found = [
        m[1]
        for c in nb.cells
        if c.cell_type == "code" and (m := re.search(r"^#\|\s*default_exp\s+(\S+)", "".join(c.source), re.M))
    ]
    return found[0] if found else None


def public_names() -> dict:
    "`Name` and `Class.method` of everything a chapter exports -> (notebook, object)."
    names = {}
    for path in notebooks():
        module = module_of(nbformat.read(NOTEBOOKS / path, as_version=4))
        if not module:
            continue
        loaded = import_module(f"reward_kit.{module}")
        for name in loaded.__all__:
            value = inspect.unwrap(getattr(loaded, name))  # a cached function as well
            value = getattr(value, "of_rows", value)  # a registered loss: the function that makes it
            if not (inspect.isclass(value) or inspect.isfunction(value)) or value.__name__ != name:
                continue
            names[name] = (str(path), value)
            if inspect.isclass(value):
                names.update({f"{name}.{method}": (str(path), item) for method, item in methods(value)})
    return names


def is_own(function) -> bool:
    "Whether it is a function of this package, not one that a decorator of another puts into a class."
    return inspect.isfunction(function) and inspect.unwrap(function).__module__.startswith("reward_kit")


def methods(cls):
    "Name and function (or property) of each documented public method that the class itself defines."
    for name, item in vars(cls).items():
        function = getattr(item, "__func__", item)
        if (
            not name.startswith("_")
            and (isinstance(item, property) or is_own(function))
            and inspect.getdoc(item)
        ):
            yield name, function


# ---------------------------------------------------------------- tables of parameters


def escape(text: str) -> str:
    "Words of a comment as Markdown of a table's cell; code between backticks stays as it is."
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(
        code(p.strip("`")) if p.startswith("`") else re.sub(r"([\\*_$|<>\[\]{}~^@#])", r"\\\1", p)
        for p in parts
    )


def code(text: str) -> str:
    """Text as code in a table's cell, where a bar between backticks would end the cell or, escaped,
    keep its backslash."""
    if "|" not in text:
        return f"`{text}`" if text else ""
    shown = re.sub(r"([^\w\s])", lambda m: "&#124;" if m[1] == "|" else "\\" + m[1], text)
    return f"<code>{shown}</code>"


def show_value(value) -> str:
    "A default as Python writes it; what has no such form by its name."
    if inspect.isroutine(value) or inspect.isclass(value):
        return value.__name__
    text = str(value) if type(value).__module__.startswith("torch") else repr(value)
    text = re.sub(r"<([\w.]+):? .*>", r"\1", text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def show_type(annotation) -> str:
    "An annotation as source writes it."
    if annotation in (inspect.Parameter.empty, None):
        return ""
    if isinstance(annotation, str):
        return annotation
    return (
        annotation.__name__
        if inspect.isclass(annotation) and not getattr(annotation, "__args__", None)
        else str(annotation).replace("typing.", "")
    )


def own_fields(cls) -> dict:
    """Field -> (type, default, meaning) of the dataclass fields that the class or one of reward_kit's
    it inherits from declares."""
    found = {}
    for base in reversed([c for c in cls.__mro__ if c.__module__.startswith("reward_kit")]):
        if not is_dataclass(base):
            continue
        comments, declared = docments(base, full=True), inspect.get_annotations(base)
        for f in fields(base):
            if f.name.startswith("_") or f.name not in declared:
                continue
            default = (
                f.default
                if f.default is not MISSING
                else f.default_factory()
                if f.default_factory is not MISSING
                else inspect.Parameter.empty
            )
            found[f.name] = (
                show_type(declared[f.name]),
                default,
                f.metadata.get("help") or (comments.get(f.name) or {}).get("docment") or "",
            )
    return found


def parameters(item) -> dict:
    "Parameter -> (type, default, meaning) of a function, or of what a class is made with."
    if inspect.isclass(item) and is_dataclass(item):
        return own_fields(item)
    comments = docments(item, full=True)
    try:
        signature = inspect.signature(item)
    except (TypeError, ValueError):
        return {}
    return {
        ("*" * {"VAR_POSITIONAL": 1, "VAR_KEYWORD": 2}.get(p.kind.name, 0)) + name: (
            show_type(p.annotation),
            p.default,
            (comments.get(name) or {}).get("docment") or "",
        )
        for name, p in signature.parameters.items()
        if name not in ("self", "cls")
    }


def table(rows: dict) -> str:
    "Parameters as a Markdown table; a column that would be empty is left out."
    keep = [
        True,
        any(t for t, _, _ in rows.values()),
        any(d is not inspect.Parameter.empty for _, d, _ in rows.values()),
        True,
    ]
    lines = [
        ("parameter", "type", "default", "meaning"),
        (":" + "-" * 18, ":" + "-" * 14, ":" + "-" * 12, ":" + "-" * 60),
    ]
    lines += [
        (code(n), code(t), "" if d is inspect.Parameter.empty else code(show_value(d)), escape(m))
        for n, (t, d, m) in rows.items()
    ]
    return "\n".join(
        "| " + " | ".join(cell for cell, kept in zip(line, keep) if kept) + " |" for line in lines
    )


def call(name: str, rows: dict) -> str:
    "How something is called: its name and its parameters, with their defaults."
    given = [
        n if d is inspect.Parameter.empty or n.startswith("*") else f"{n}={show_value(d)}"
        for n, (_, d, _) in rows.items()
    ]
    line = f"{name}({', '.join(given)})"
    return line if len(line) <= 90 else f"{name}({given[0]}, ...)" if given else f"{name}()"


def source_link(item) -> str:
    "The address of the definition in the repository."
    cfg = readme.settings()
    file, line = (
        Path(inspect.getsourcefile(inspect.unwrap(item))),
        inspect.getsourcelines(inspect.unwrap(item))[1],
    )
    return f"{cfg['git_url']}/blob/{cfg['branch']}/{file.relative_to(ROOT).as_posix()}#L{line}"


def describe(name: str, item, level: int = 3) -> str:
    "The documentation of a function, a class with its methods, a method or a property, as Markdown."
    if isinstance(item, property):
        return f"{'#' * level} {name}\n\n{inspect.getdoc(item)}\n"
    rows = parameters(item)
    text = f"{'#' * level} {name}\n\n```python\n{call(name, rows)}\n```\n\n"
    text += f"{inspect.getdoc(item) or ''} [source]({source_link(item)}){{.source-link}}\n"
    foreign = (
        [b for b in inspect.getmro(item)[1:] if not b.__module__.startswith(("reward_kit", "builtins"))]
        if inspect.isclass(item)
        else []
    )
    if rows:
        text += f"\n{table(rows)}\n"
    if foreign and is_dataclass(item):
        text += (
            "\nAll other settings are those of"
            f" `{foreign[0].__module__.split('.')[0]}.{foreign[0].__name__}`.\n"
        )
    returned = {} if inspect.isclass(item) else docments(item, full=True).get("return") or {}
    if returned.get("docment"):
        text += f"\n**Returns** {escape(returned['docment'])}\n"
    if inspect.isclass(item):
        text += "".join(
            f"\n{describe(f'{name}.{method}', function, level + 1)}" for method, function in methods(item)
        )
    return text


# ---------------------------------------------------------------- notebooks


def split_first_cell(nb) -> None:
    "Title and `>` sentence in a cell of their own, for nbdev drops whatever else is in it."
    i = next(
        i for i, c in enumerate(nb.cells) if c.cell_type == "markdown" and re.search(r"^# \S", c.source, re.M)
    )
    title, rest = nb.cells[i].source.strip().split("\n", 1)
    quote = re.match(r"\s*((?:>[^\n]*\n?)+)", rest)
    sentence = " ".join(line.lstrip("> ").strip() for line in quote[1].splitlines()) if quote else ""
    nb.cells[i].source = f"{title}\n\n> {sentence}"
    nb.cells.insert(i + 1, mk_cell(rest[quote.end() :].strip() if quote else rest, "markdown"))


def page_links(path: Path) -> str:
    "The line under a title: the notebook in Colab and in the repository."
    cfg = readme.settings()
    file = f"{cfg['user']}/{cfg['repo']}/blob/{cfg['branch']}/{cfg['nbs_path']}/{path.as_posix()}"
    up = "../" * (len(path.parts) - 1)
    return (
        f"::: {{.page-links}}\n[Open in Colab](https://colab.research.google.com/github/{file}) ([how to"
        f" install there]({up}colab.qmd)) · [Notebook on GitHub](https://github.com/{file})\n:::"
    )


def show_exports(nb) -> None:
    """Exported code is shown, foldable, after its documentation; cells of imports (and a logger) alone
    stay hidden."""
    for cell in nb.cells:
        if cell.cell_type != "code" or not re.match(r"\s*#\|\s*export\b", cell.source):
            continue
        body = re.sub(
            r"\(.*?\)",
            "()",
            "\n".join(line for line in cell.source.splitlines() if not line.lstrip().startswith("#")),
            flags=re.S,
        )
        if any(
            line.strip() and not re.match(r"(?:from|import)\s|logger = ", line) for line in body.splitlines()
        ):
            cell.source = re.sub(r"#\|\s*export\b", "#| exports", cell.source, count=1)


def link_names(text: str, names: dict, here: str) -> str:
    """Public names between backticks become links to their documentation; headings, code blocks and
    what is a link already stay."""

    def link(m):
        name = m[2].removesuffix("()")
        if m[1] or name not in names:
            return m[0]
        page = names[name][0]
        up = "../" * here.count("/")
        return f"[`{m[2]}`]({'' if page == here else up + page}#{anchor(name)})"

    blocks = re.split(r"(^```.*?^```|^#.*?$)", text, flags=re.S | re.M)
    return "".join(b if i % 2 else re.sub(r"(\[[^\]\n]*)?`([^`\s]+)`", link, b) for i, b in enumerate(blocks))


def anchor(heading: str) -> str:
    "The identifier that Pandoc gives a heading."
    explicit = re.search(r"\{#([^\s}]+)[^}]*\}\s*$", heading)
    if explicit:
        return explicit[1]
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)|[*`]", lambda m: m[1] or "", heading)
    text = re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", text).strip()).lower()
    return re.sub(r"^[^a-z]+", "", text) or "section"


def on_site(text: str) -> str:
    """Links to files of the repository, which the README needs, as links to the site's page or to the
    repository; texts of pictures for screen readers too."""
    text = re.sub(
        r"!\[([^\]\n]+)\]\(([^)\s]+)\)(?!\{)",
        lambda m: f"{m[0]}{{fig-alt={json.dumps(m[1], ensure_ascii=False)}}}",
        text,
    )
    return text.replace("](CHANGELOG.md)", "](changelog.qmd)").replace(
        "](LICENSE)", f"]({pages.repository_link('LICENSE')})"
    )


def processed(path: Path, names: dict):
    "A notebook as the site shows it."
    nb = read_nb(NOTEBOOKS / path)
    split_first_cell(nb)
    first = next(i for i, c in enumerate(nb.cells) if c.cell_type == "markdown")
    nb.cells.insert(first + 1, mk_cell(page_links(path), "markdown"))
    show_exports(nb)
    skipped = ("exec_show_docs", "add_links")  # tables come from the module, links from `names`
    NBProcessor(
        nb=nb, procs=[p for p in FilterDefaults().base_procs() if p.__name__ not in skipped]
    ).process()
    for cell in nb.cells:
        if shown := re.search(r"^show_doc\(([\w.]+)\)", cell.source or "", re.M):
            cell.cell_type, cell.source = (
                "markdown",
                describe(shown[1], names[shown[1]][1]) if shown[1] in names else "",
            )
            cell.pop("outputs", None)
            cell.pop("execution_count", None)
        elif cell.cell_type == "code":
            cell.source = re.sub(
                r"^#\| code-summary: .*\n", "#| code-summary: Source\n", cell.source, flags=re.M
            )
            cell.source = re.sub(
                r"^(#\| fig-alt: )(.*)$",
                lambda m: m[1] + json.dumps(m[2], ensure_ascii=False),
                cell.source,
                flags=re.M,
            )  # a colon would end the key
        if cell.cell_type == "markdown":
            cell.source = link_names(on_site(cell.source), names, path.as_posix())
    return nb


# ---------------------------------------------------------------- the site


def prepare(target: Path) -> None:
    """Everything that Quarto reads, in `target`: processed notebooks, written pages, pages made from
    other files, pictures and settings."""
    cfg, names = readme.settings(), public_names()
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(
        NOTEBOOKS,
        target,
        ignore=shutil.ignore_patterns("*.ipynb", ".ipynb_checkpoints", "nbdev.yml", "sidebar.yml"),
    )
    for path in notebooks():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        write_nb(processed(path, names), target / path)
    for page in target.rglob("*.qmd"):
        text = page.read_text(encoding="utf-8").replace("GIT_URL", cfg["git_url"])
        page.write_text(
            link_names(on_site(text), names, page.relative_to(target).as_posix()), encoding="utf-8"
        )
    pages.write(target, on_site, anchor)
    (target / "_quarto.yml").write_text("metadata-files: [../_quarto.yml, site.yml]\n", encoding="utf-8")
    (target / "site.yml").write_text(
        "\n".join(
            [
                f"project: {{output-dir: {cfg['doc_path']}}}",
                "website:",
                f"  title: {cfg['title']}",
                f"  description: {cfg['description']}",
                f"  site-url: {cfg['doc_host']}{cfg['doc_baseurl']}",
                f"  repo-url: {cfg['git_url']}",
                f"  repo-branch: {cfg['branch']}",
                f"  repo-subdir: {cfg['nbs_path']}",
                "",
            ]
        ),
        encoding="utf-8",
    )


def quarto_version() -> tuple:
    "Version of the installed Quarto, () where there is none."
    if not shutil.which("quarto"):
        return ()
    text = subprocess.run(["quarto", "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(n) for n in re.findall(r"\d+", text)[:3])


def main() -> None:
    "Prepare, render, and move the result beside settings.ini."
    needed = "--prepare" not in sys.argv
    if needed and quarto_version() < MIN_QUARTO:
        sys.exit(
            "make docs needs Quarto 1.7 or newer: https://quarto.org/docs/get-started (everything else works"
            " without it)"
        )
    work, out = ROOT / "_proc", ROOT / readme.settings()["doc_path"]
    prepare(work)
    if not needed:
        return
    subprocess.run(["quarto", "render", "--no-cache"], cwd=work, check=True)
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(work / out.name, out)


if __name__ == "__main__":
    main()
