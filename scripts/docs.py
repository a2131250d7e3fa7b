"""Build the site into _docs: `python scripts/docs.py`, which `make docs` calls. Needs Quarto; `--prepare`
stops before it.

nbdev's own `nbdev_docs` does most of this. What it does not: it drops what a first cell says beside its
title, hides the exported code that a
chapter explains, and shows no defaults or meanings of settings that live in dataclass fields. So its
processors run here between steps of our own.
"""

import functools
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
import yaml
from execnb.nbio import mk_cell, read_nb, write_nb
from fastcore.docments import docments
from nbdev.process import NBProcessor
from nbdev.processors import FilterDefaults

ROOT = readme.ROOT
NOTEBOOKS = ROOT / "nbs"
MIN_QUARTO = (1, 7)
CHAPTER = re.compile(r"(?<!\[)\bchapter (\d\d)\b(?![^\[\]\n]*\])")
ARXIV = re.compile(r"(?<!\[)\barXiv (\d{4}\.\d{4,5})\b(?![^\[\]\n]*\])")


# ---------------------------------------------------------------- names


def notebooks() -> list:
    "Every notebook of the site, as a path relative to nbs/."
    return sorted(
        p.relative_to(NOTEBOOKS) for p in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
    )


@functools.cache
def chapters() -> dict:
    "Number of a chapter -> its notebook."
    return {p.name[:2]: p.as_posix() for p in notebooks() if p.parts[0][0] in "123456"}


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
        function = getattr(item, "__func__", getattr(item, "f", item))  # f: of a patched class method
        if (
            not name.startswith("_")
            and (isinstance(item, property) or is_own(function))
            and inspect.getdoc(function)
        ):
            yield name, function


def all_methods(cls) -> dict:
    "Public method -> (class of the package that defines it, function): its own, then what it inherits."
    found = {}
    for base in cls.__mro__:
        if base.__module__.startswith("reward_kit"):
            for name, function in methods(base):
                found.setdefault(name, (base.__name__, function))
    return found


def first_sentence(item) -> str:
    "What something is, in a sentence."
    text = " ".join((inspect.getdoc(item) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z])", text)[0]


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


def entry(name: str) -> str:
    "The identifier of a name's documentation; a section of the same name has another."
    return f"api-{name}"


def methods_table(cls, apart: set) -> str:
    "All methods of a class, a sentence each, where some are described elsewhere or there are many."
    found = all_methods(cls)
    here = [n for n, (owner, _) in found.items() if owner == cls.__name__ and f"{owner}.{n}" not in apart]
    if len(found) == len(here) < 4:
        return ""
    lines = ["", "| method | what it does |", "|:" + "-" * 30 + "|:" + "-" * 70 + "|"]
    lines += [f"| `{owner}.{name}` | {escape(first_sentence(f))} |" for name, (owner, f) in found.items()]
    return "\n".join(lines) + "\n"


def describe(name: str, item, level: int = 3, apart=frozenset()) -> str:
    """The documentation of a function, a class with its methods, a method or a property, as Markdown;
    `apart`: names that are described in places of their own."""
    heading = f"{'#' * level} {name} {{#{entry(name)}}}"
    if isinstance(item, property):
        return f"{heading}\n\n{inspect.getdoc(item)}\n"
    rows = parameters(item)
    text = f"{heading}\n\n```python\n{call(name, rows)}\n```\n\n"
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
        text += methods_table(item, apart)
        own = {f"{name}.{method}": function for method, function in methods(item)}
        here = [each for each in own.items() if each[0] not in apart]
        text += "".join(f"\n{describe(*each, level + 1)}" for each in here)
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
    """The line under a title: the notebook in the repository, and in Colab where it begins with what
    Colab needs."""
    cfg = readme.settings()
    file = f"{cfg['user']}/{cfg['repo']}/blob/{cfg['branch']}/{cfg['nbs_path']}/{path.as_posix()}"
    colab = ""
    if path.parts[0] == "tutorials":
        colab = f"[Open in Colab](https://colab.research.google.com/github/{file}) · "
    return f"::: {{.page-links}}\n{colab}[Notebook on GitHub](https://github.com/{file})\n:::"


def show_exports(nb) -> None:
    "Exported code is shown, folded, after its documentation; imports too, since what follows needs them."
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.source = re.sub(r"^\s*#\|\s*export\b", "#| exports", cell.source, count=1)


def folded(cell) -> None:
    "Source is closed until it is asked for, and a figure's text may hold a colon."
    cell.source = re.sub(r"^#\| code-fold: .*\n", "#| code-fold: true\n", cell.source, flags=re.M)
    cell.source = re.sub(r"^#\| code-summary: .*\n", "#| code-summary: Source\n", cell.source, flags=re.M)
    alt = lambda m: m[1] + json.dumps(m[2], ensure_ascii=False)
    cell.source = re.sub(r"^(#\| fig-alt: )(.*)$", alt, cell.source, flags=re.M)


def html_apart(cells) -> list:
    """HTML outputs in a cell of Markdown after their own: for an output Quarto would load scripts from
    elsewhere."""
    found = []
    for cell in cells:
        found.append(cell)
        if cell.cell_type != "code":
            continue
        shown = ["".join(o.data["text/html"]) for o in cell.outputs if "text/html" in o.get("data", {})]
        if shown:
            cell.outputs = [o for o in cell.outputs if "text/html" not in o.get("data", {})]
            found += [mk_cell(f"```{{=html}}\n{text}\n```", "markdown") for text in shown]
    return found


def in_order(cells, described) -> list:
    """nbdev puts the documentation of a cell's last name before the cell and that of the others after it;
    here all stand before it, in the order of their code. `described`: id of a cell -> its name."""
    found = list(cells)
    for i, cell in enumerate(cells):
        defined = re.findall(r"^(?:class|def) (\w+)", cell.source, re.M) if cell.cell_type == "code" else []
        if len(defined) < 2 or not i or described.get(id(cells[i - 1])) not in defined:
            continue
        after = []
        for other in cells[i + 1 :]:
            if described.get(id(other)) not in defined:
                break
            after.append(other)
        place = found.index(cells[i - 1])
        found[place : place + 2 + len(after)] = [*after, cells[i - 1], cell]
    return found


def link_names(text: str, names: dict, here: str) -> str:
    """Public names between backticks become links to their documentation; headings, code blocks and
    what is a link already stay."""

    up = "../" * here.count("/")

    def link(m):
        name = m[2].removesuffix("()")
        if m[1] or name not in names:
            return m[0]
        page = names[name][0]
        return f"[`{m[2]}`]({'' if page == here else up + page}#{entry(name)})"

    def words(text):
        text = re.sub(r"(\[[^\]\n]*)?`([^`\s]+)`", link, text)
        chapter = lambda m: f"[{m[0]}]({up}{chapters()[m[1]]})" if m[1] in chapters() else m[0]
        text = re.sub(CHAPTER, chapter, text)
        return re.sub(ARXIV, lambda m: f"[{m[0]}](https://arxiv.org/abs/{m[1]})", text)

    blocks = re.split(r"(^```.*?^```|^#.*?$)", text, flags=re.S | re.M)
    return "".join(b if i % 2 else words(b) for i, b in enumerate(blocks))


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
    text = re.sub(r"\]\((CHANGELOG|CONTRIBUTING)\.md\)", lambda m: f"]({m[1].lower()}.qmd)", text)
    return text.replace("](LICENSE)", f"]({pages.repository_link('LICENSE')})")


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
    described = {}
    apart = set(re.findall(r"^show_doc\((\w+\.\w+)", "\n".join(c.source or "" for c in nb.cells), re.M))
    for cell in nb.cells:
        if shown := re.search(r"^show_doc\(([\w.]+)\)", cell.source or "", re.M):
            cell.cell_type = "markdown"
            own = describe(shown[1], names[shown[1]][1], apart=apart) if shown[1] in names else ""
            cell.source = own
            cell.pop("outputs", None)
            cell.pop("execution_count", None)
            described[id(cell)] = shown[1]
        elif cell.cell_type == "code":
            folded(cell)
        if cell.cell_type == "markdown":
            cell.source = link_names(on_site(cell.source), names, path.as_posix())
    nb.cells = html_apart(in_order(nb.cells, described))
    return nb


# ---------------------------------------------------------------- reference

PARTS = {  # folder of chapters -> its name, and what one does with it
    "1_data": ("Preference data", "Read, check and split preferences"),
    "2_model": ("The model", "Train a reward model"),
    "3_scores": ("Scores", "Score text"),
    "4_trust": ("Trust", "Know how far to trust it"),
    "5_rl": ("Reinforcement", "Teach a policy"),
    "6_tools": ("Tools", "Whole runs, servers and widgets"),
    "7_beside": ("Beside the path", "Benchmarks and other projects' ways"),
}


def api_page() -> str:
    "What `reward_kit` exports, a sentence each, by part."
    import reward_kit

    names, found = public_names(), {part: [] for part in PARTS}
    for name in reward_kit.__all__:
        if name in names:
            page, item = names[name]
            found[page.split("/")[0]].append(f"| `{name}` | {escape(first_sentence(item))} |")
            if inspect.isclass(item):
                listed = [(method, f"{owner}.{method}") for method, (owner, _) in all_methods(item).items()]
                links = [f"[`{m}`]({names[full][0]}#{entry(full)})" for m, full in listed if full in names]
                found[page.split("/")[0]] += [f"| | {', '.join(links)} |"] * bool(links)
    text = "All of it can be imported from `reward_kit`; each name leads to its documentation.\n"
    for part, rows in found.items():
        if rows:
            text += f"\n## {PARTS[part][1]}\n\n| name | what it is |\n|:" + "-" * 30 + "|:" + "-" * 70 + "|\n"
            text += "\n".join(rows) + "\n"
    return text


DETAIL = re.compile(r"(?:#|\"+)\s*D(\d+): (.+?)\"*$")


def ppo_details() -> str:
    "Each numbered detail of PPO: what its comment says, with its line in the repository."
    found = {}
    for page in (p for p in notebooks() if p.parts[0] == "5_rl"):
        path, function = ROOT / "reward_kit" / "rl" / f"{page.stem[3:]}.py", ""
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if defined := re.match(r"\s*(?:def|class) (\w+)", line):
                function = defined[1]
            if said := DETAIL.search(line):
                link = f"[`{function}`]({pages.repository_link(f'reward_kit/rl/{path.name}')}#L{i})"
                chapter = f"[{page.name[:2]}]({page.as_posix()})"
                found[int(said[1])] = f"| D{said[1]} | {escape(said[2])} | {link} | {chapter} |"
    says = (
        "What papers leave out and programs decide. Z is Ziegler et al. (arXiv 1909.08593), N+ is Huang et"
        " al. (arXiv 2403.17031). Each detail is a comment beside the line that does it.\n"
    )
    widths = "|".join(":" + "-" * n for n in (5, 60, 25, 9))
    head = f"\n| | what is done | line | chapter |\n|{widths}|\n"
    return says + head + "\n".join(found[number] for number in sorted(found)) + "\n"


def formats_page() -> str:
    "Every format, and every public layout with its example, from the two registries."
    from reward_kit.beside.published_layouts import _LAYOUTS
    from reward_kit.data.formats import _FORMATS
    from reward_kit.data.preferences import load_preferences

    text = (
        "Look first: `reward-kit inspect FILE` says what was read as what, and what was left out. A file is"
        " JSONL, JSON, CSV, TSV, Parquet, Arrow, a folder of them or a data set of the hub. What it holds is"
        " one of these formats:\n\n| format | columns |\n|:" + "-" * 15 + "|:" + "-" * 60 + "|\n"
    )
    text += "".join(f"| `{name}` | {escape(cls.__doc__)} |\n" for name, cls in _FORMATS.items())
    text += (
        "\nYour columns may have other names (`--prompt-column`, `--label-column`, or `columns={...}` in"
        " Python), and `--format` names the format where a file could be two. How to add one:"
        " [Changing things](changing.ipynb#add-a-preference-format).\n\n## Layouts that people publish\n"
    )
    for layout in sorted(_LAYOUTS, key=lambda layout: layout.name.lower()):
        rows = layout.example if isinstance(layout.example, list) else [layout.example]
        found = load_preferences(rows, progress=False, **layout.options)
        option = f", with {code(json.dumps(layout.options))}" if layout.options else ""
        source = f"; documented at <{layout.source}>" if "://" in layout.source else ""
        example = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows[:2])
        text += (
            f"\n### {layout.name}\n\nRead as `{found.report.format}` ({found.kind}){option}{source}.\n"
            f"\n```json\n{example}\n```\n"
        )
    return text


def title_of(path: Path) -> str:
    "The title of a notebook."
    nb = nbformat.read(NOTEBOOKS / path, as_version=4)
    return next(m[1] for c in nb.cells if (m := re.search(r"^# (.+)$", c.source, re.M)))


def sidebar() -> dict:
    "The pages in order: those that _quarto.yml lists before the chapters, the chapters, and the rest."
    outline = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["reward_kit"]
    book = []
    for part, (name, _) in PARTS.items():
        own = [p for p in notebooks() if p.parts[0] == part]
        numbered = set(chapters().values())
        entries = [
            {"text": f"{p.name[:2]} " * (p.as_posix() in numbered) + title_of(p), "href": p.as_posix()}
            for p in own
        ]
        book.append({"section": f"{part[0]} {name}", "contents": entries})
    contents = [*outline["before"], {"section": "The book", "contents": book}, *outline["after"]]
    return {"style": "docked", "collapse-level": 1, "contents": contents}


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
    reference = {
        "api": ("API", "What can be imported from reward_kit, by task.", api_page()),
        "ppo_details": ("The 23 details of PPO", "Where each is, and why.", ppo_details()),
        "formats": ("Formats", "What preference files are read, with an example of each.", formats_page()),
    }
    for page, (title, description, text) in reference.items():
        text = pages.front_matter(title, description) + link_names(text, names, f"{page}.qmd")
        (target / f"{page}.qmd").write_text(text, encoding="utf-8")
    book = target / "book.yml"
    book.write_text(yaml.safe_dump({"website": {"sidebar": sidebar()}}, sort_keys=False), encoding="utf-8")
    settings = "metadata-files: [../_quarto.yml, site.yml, book.yml]\n"
    (target / "_quarto.yml").write_text(settings, encoding="utf-8")
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
                f"  page-footer: {{left: reward_kit {cfg['version']}, right: '[Source]({cfg['git_url']})'}}",
                "",
            ]
        ),
        encoding="utf-8",
    )


def as_markdown(path: Path) -> str:
    "A prepared page as plain Markdown: prose, code and text that it printed."

    def titled(text):
        head, text = text.removeprefix("---\n").split("\n---", 1)
        said = yaml.safe_load(head)
        return f"# {said['title']}\n\n> {said['description']}\n{text}"

    if path.suffix == ".qmd":
        return titled(path.read_text(encoding="utf-8"))
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.source.startswith("---\n"):
            parts.append(titled(cell.source))
        elif cell.cell_type != "code":
            html = r"^(?::::.*?$|<!--.*?-->|```\{=html\}.*?^```)\n?"
            parts.append(re.sub(html, "", cell.source, flags=re.S | re.M))
        else:
            source = re.sub(r"^(?:#\||%%).*\n?", "", cell.source, flags=re.M)
            parts.append(f"```python\n{source}\n```")
            shown = "".join("".join(o.get("text", "")) for o in cell.get("outputs", []))
            parts += [f"```\n{shown.rstrip()}\n```"] * bool(shown)
    return "\n\n".join(parts) + "\n"


def write_markdown(prepared: Path, out: Path) -> None:
    "A Markdown twin beside each page, and llms.txt, which lists them (https://llmstxt.org)."
    cfg = readme.settings()
    lines = [f"# {cfg['title']}", "", f"> {cfg['description']}", ""]
    for entry in sidebar()["contents"]:
        nested = [entry] if isinstance(entry, str) else entry["contents"]
        lines += [] if isinstance(entry, str) else ["", f"## {entry['section']}", ""]
        for page in flat(nested):
            text = as_markdown(prepared / page)
            twin = re.sub(r"(^|/)\d+_(\w+)$", r"\1\2", page.rsplit(".", 1)[0]) + ".md"
            (out / twin).write_text(text, encoding="utf-8")
            title = re.search(r"^# (.+)$", text, re.M)[1]
            lines.append(f"- [{title}]({cfg['doc_host']}{cfg['doc_baseurl']}/{twin})")
    (out / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def flat(contents):
    "The pages of a sidebar's contents."
    for entry in contents:
        if isinstance(entry, str):
            yield entry
        elif "href" in entry:
            yield entry["href"]
        else:
            yield from flat(entry["contents"])


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
    write_markdown(work, out)


if __name__ == "__main__":
    main()
