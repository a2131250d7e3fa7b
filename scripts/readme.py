"""Write README.md from nbs/index.ipynb: `python scripts/readme.py` (or print what it would be: `--print`).

nbdev makes the README with Quarto, which not everybody has; nbconvert is a development dependency anyway.
"""

import re
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = re.compile(r"^#\|\s*(hide|default_exp|exporti?)\b", re.MULTILINE)
DIRECTIVE = re.compile(r"^(?:#\||%%).*\n?", re.MULTILINE)  # of nbdev and of IPython


def settings() -> dict:
    "The [DEFAULT] section of settings.ini, where owner, repository and addresses stand once."
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


FILES = {  # pages without a file of their own
    "papers.qmd": "scripts/papers.yml",
    "results.qmd": "benchmarks/results",
    "notes.qmd": "benchmarks/NOTES.md",
}


def readme_text() -> str:
    """The index notebook as Markdown: hidden cells and directives dropped, links and pictures
    pointed at files of the repository."""
    nb = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    nb.cells = [c for c in nb.cells if c.cell_type == "markdown" or not HIDDEN.search(c.source)]
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.source = DIRECTIVE.sub("", cell.source)
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}  # nbdev strips it
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = text.replace("```ipython3", "```python")
    file = lambda m: f"]({FILES.get(m[1], f'nbs/{m[1]}')})"  # an anchor is one of the site alone
    text = re.sub(r"\]\(((?:\w+/)?\w+\.(?:ipynb|qmd))(?:#[^)]*)?\)", file, text)
    text = text.replace("](images/", "](nbs/images/").replace('src="images/', 'src="nbs/images/')
    text = re.sub(r"[ \t]+\n", "\n", text)
    return (
        "<!-- Made from nbs/index.ipynb by `make readme`. -->\n\n"
        + re.sub(r"\n{3,}", "\n\n", text).strip()
        + "\n"
    )


if __name__ == "__main__":
    if "--print" in sys.argv:
        sys.stdout.write(readme_text())
    else:
        (ROOT / "README.md").write_text(readme_text(), encoding="utf-8")
