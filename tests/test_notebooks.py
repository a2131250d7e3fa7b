"What every notebook and every module keeps to: import order, small exported cells, documented names, clean stored outputs."
import ast
import base64
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted(p for p in (ROOT / "nbs").glob("[0-9]_*/*.ipynb"))
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MODULES = sorted(p for p in (ROOT / "reward_kit").rglob("*.py") if not p.stem.startswith("_"))
MAX_CELL_LINES = MAX_FUNCTION_LINES = 60
MAX_OUTPUT_BYTES, MAX_IMAGE_BYTES, MAX_IMAGES = 60_000, 40 * 1024, 6
MACHINE_PATH = re.compile(r"(?<![\w.:/~-])(?:/(?:home|root|work|Users|tmp|mnt)/\w|[A-Z]:\\\\?Users)")
ADDRESSES = {"68_command_line": ["tools.cli"], "autotrain": ["autotrain"]}  # chapters whose module has another name than its file
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX)\b")
DEVELOPMENT_TOOLS = {"nbdev", "execnb", "ghapi"}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: f"{p.parent.name}/{p.name}")
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: module_name(p))


def cells(path, kind=None): return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if kind in (None, c["cell_type"])]
def source(cell): return "".join(cell["source"])
def is_exported(cell): return re.match(r"\s*#\|\s*exports?\b", source(cell)) is not None


def outputs(path):
    "(mime type, content) of every stored output."
    for cell in cells(path, "code"):
        for output in cell["outputs"]:
            if "text" in output: yield "text/plain", "".join(output["text"])
            for mime, content in output.get("data", {}).items(): yield mime, content if isinstance(content, dict) else "".join(content)


def python(cell):
    "The cell's syntax tree, lines of magics left out."
    return ast.parse("\n".join(line for line in source(cell).splitlines() if not re.match(r"\s*[%!]", line)))


def module_name(path):
    "`data.records` of reward_kit/data/records.py."
    return ".".join(path.relative_to(ROOT / "reward_kit").with_suffix("").parts)


def exported_module(path):
    "The module that a chapter exports to."
    found = [d for c in cells(path, "code") for d in re.findall(r"#\|\s*default_exp\s+(\S+)", source(c))]
    assert len(found) == 1, f"{path.name} exports to {found}"
    return found[0]


ORDER = {exported_module(p): n for n, p in enumerate(CHAPTERS)}  # module -> place of its chapter in the book
BESIDE = {exported_module(p) for p in CHAPTERS if p.parent.name == "7_beside"}


def test_there_is_something_to_check():
    assert CHAPTERS and MODULES and len(ORDER) == len(CHAPTERS) and BESIDE


# ---------------------------------------------------------------- import graph

def lazy_names():
    "Public name -> module, as `reward_kit/__init__.py` offers them."
    import reward_kit
    return reward_kit._EXPORTS


def modules_below(full, names):
    "Modules that `from full import names` loads, as `data.records`; `__init__` for what the package itself holds."
    if full == "reward_kit":
        for name in names: yield lazy_names().get(name, "__init__") if name not in ORDER else name
        return
    module = full.removeprefix("reward_kit.")
    yield from [module] if module in ORDER else [f"{module}.{name}" for name in names]


def own_imports(tree, package=()):
    "Modules of reward_kit that the tree imports anywhere, also inside functions; `package` is where relative imports start."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("reward_kit."): yield alias.name.removeprefix("reward_kit.")
        elif isinstance(node, ast.ImportFrom):
            base = ["reward_kit", *package][:2 + len(package) - node.level] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            if full.split(".")[0] == "reward_kit": yield from modules_below(full, [alias.name for alias in node.names])
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__"):
            name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
            if isinstance(name, str) and name.startswith("reward_kit."): yield name.removeprefix("reward_kit.")


def imports_of(path):
    "Modules of reward_kit that one of its files imports."
    return [m for m in own_imports(ast.parse(path.read_text(encoding="utf-8")), module_name(path).split(".")[:-1]) if m != "__init__"]


def top_level_packages(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level: yield node.module.split(".")[0]


def test_own_imports_are_found_in_every_form():
    code = ("from reward_kit.data.records import a\nfrom .loss import b\nfrom ..data import files\nimport reward_kit.model.trainer as t\n"
            "def f():\n    from ..scores.inference import c\n    from reward_kit import RewardConfig, __version__\n"
            "    import_module('reward_kit.tools.cli')\nimport torch")
    expected = {"data.records", "model.loss", "data.files", "model.trainer", "scores.inference", "tools.cli", "__init__"}
    assert set(own_imports(ast.parse(code), ["model"])) == expected


# modules that may ask one beside the path from inside a function: a command that needs it, a name that is no setting
ASKED_LATE = {"tools.commands": BESIDE, "rl.policies": {"beside.trl_ppo"}, "rl.ppo": {"beside.trl_ppo"}}


@each_module
def test_a_module_imports_only_from_earlier_chapters(path):
    name = module_name(path)
    assert name in ORDER, f"{path.name} comes from no notebook"
    later = [m for m in imports_of(path) if ORDER.get(m, 999) >= ORDER[name] and m not in ASKED_LATE.get(name, ())]
    assert not later, f"{name} imports from {later}: missing, or not an earlier chapter"


def test_nothing_on_the_path_needs_what_stands_beside_it():
    "The command line may load a part-7 module inside the function of the command that needs it."
    for path in MODULES:
        if module_name(path) in BESIDE: continue
        top = ast.Module([n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, (ast.Import, ast.ImportFrom))], [])
        assert not BESIDE & set(own_imports(top, module_name(path).split(".")[:-1])), module_name(path)


@each_chapter
def test_a_chapter_uses_only_itself_and_earlier_chapters(path):
    place = ORDER[exported_module(path)]
    found = [m for cell in cells(path, "code") for m in own_imports(python(cell)) if m != "__init__"]
    later = [m for m in found if ORDER.get(m, 999) > place and m not in ASKED_LATE.get(exported_module(path), ())]
    assert not later, f"{path.name} uses {later}: missing, or a later chapter, which the reader has not met yet"


def test_inference_never_imports_the_trainer():
    "Neither itself nor through a module that it imports."
    seen, todo = set(), ["scores.inference"]
    while todo:
        name = todo.pop()
        file = ROOT / "reward_kit" / f"{name.replace('.', '/')}.py"
        if name in seen or not file.exists(): continue
        seen.add(name)
        todo += imports_of(file)
    assert "model.trainer" not in seen and "data.records" in seen


@each_module
def test_modules_need_no_development_tool(path):
    assert not DEVELOPMENT_TOOLS & set(top_level_packages(ast.parse(path.read_text(encoding="utf-8"))))


@each_notebook
def test_no_star_imports(path):
    for cell in cells(path, "code"):
        stars = [n for n in ast.walk(python(cell)) if isinstance(n, ast.ImportFrom) and any(alias.name == "*" for alias in n.names)]
        assert not stars, f"{path.name}: {source(cell)}"


# ---------------------------------------------------------------- notebooks

@each_chapter
def test_a_chapter_exports_to_the_module_of_its_name(path):
    module, package = exported_module(path), path.parent.name.split("_", 1)[1]
    names = {f"{package}.{re.sub(r'^[0-9]+[a-z]?_', '', path.stem)}", *ADDRESSES.get(path.stem, ())}
    assert module in names and (ROOT / "reward_kit" / f"{module.replace('.', '/')}.py").exists()


@each_notebook
def test_a_notebook_starts_with_a_title_and_one_sentence(path):
    first = source(cells(path, "markdown")[0]).splitlines()
    assert re.match(r"# \S", first[0]), f"the first markdown cell must start with a title, not {first[0]!r}"
    assert any(re.match(r"> \S", line) for line in first), "a line starting with '> ' must say in a sentence what this is"


@each_notebook
def test_exported_cells_are_small_and_always_run(path):
    for cell in filter(is_exported, cells(path, "code")):
        lines = source(cell).splitlines()
        assert len(lines) <= MAX_CELL_LINES, f"{len(lines)} lines: {lines[1]}"
        assert not re.search(r"^#\|\s*(?:slow|gpu|hub|eval:\s*false)", source(cell), re.M) and not cell["metadata"].get("tags"), f"flagged: {lines[1]}"


@each_notebook
def test_cells_are_stored_as_lists_of_lines(path):
    for cell in cells(path):
        assert isinstance(cell["source"], list)
        assert all(line.endswith("\n") and line.count("\n") == 1 for line in cell["source"][:-1]) and "\n" not in "".join(cell["source"][-1:])


@each_notebook
def test_nothing_unfinished_and_no_machine_paths(path):
    texts = [source(cell) for cell in cells(path)] + [content for mime, content in outputs(path) if isinstance(content, str) and not mime.startswith("image/")]
    for text in texts:
        for pattern in (UNFINISHED, MACHINE_PATH):
            found = pattern.search(text)
            assert not found, f"{path.name}: ...{text[max(0, found.start() - 60):found.end() + 60]}..."


PATHS = [("/home/me/x", 1), ('"/tmp/a"', 1), ("https://a.org/home/x", 0), ("framework/work/x", 0), ("./work/x", 0), ("C:\\Users\\me", 1)]


@pytest.mark.parametrize("text,found", PATHS)
def test_the_machine_path_pattern(text, found): assert bool(MACHINE_PATH.search(text)) == found


@each_notebook
def test_stored_outputs_hold_no_errors_and_are_small(path):
    assert not [o for cell in cells(path, "code") for o in cell["outputs"] if o["output_type"] == "error"]
    images = 0
    for mime, content in outputs(path):
        if mime.startswith("image/"):
            images += 1
            size = len(content.encode()) if mime == "image/svg+xml" else len(base64.b64decode(content))
            assert size <= MAX_IMAGE_BYTES, f"an image of {size} bytes"
        else:
            size = len(content if isinstance(content, str) else json.dumps(content))
            assert size <= MAX_OUTPUT_BYTES, f"an output of {size} bytes: {content[:80]}"
    assert images <= MAX_IMAGES, f"{images} images"


# ---------------------------------------------------------------- documentation

def commented_lines(text):
    "Numbers of the lines that carry a comment."
    return {t.start[0] for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT and len(t.string) > 2}


def undocumented_parameters(function, comments):
    "Parameters (self, cls, *args and **kwargs aside) without a comment on the lines that they take."
    a = function.args
    parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs]
    with_default = a.posonlyargs + a.args
    ends = {p.arg: p.end_lineno for p in parameters}
    ends |= {p.arg: d.end_lineno for p, d in zip(with_default[len(with_default) - len(a.defaults):], a.defaults)}
    ends |= {p.arg: d.end_lineno for p, d in zip(a.kwonlyargs, a.kw_defaults) if d is not None}
    return [p.arg for p in parameters if p.arg not in ("self", "cls") and not comments & set(range(p.lineno, ends[p.arg] + 1))]


def third_party(node, classes):
    "Does the class inherit from something that is not defined in reward_kit?"
    for base in node.bases:
        name = base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
        if name not in {*classes, "ValueError", "TypeError", "OSError", "Exception", "str", "dict", "Protocol", "NamedTuple"}: return True
    return False


def problems_of_class(node, comments, classes):
    if not ast.get_docstring(node): yield f"class {node.name} has no docstring"
    is_dataclass = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
    foreign = third_party(node, classes)
    for item in node.body:
        name = f"{node.name}.{getattr(item, 'name', getattr(getattr(item, 'target', None), 'id', ''))}"
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
            if not ast.get_docstring(item): yield f"{name} has no docstring"
        if isinstance(item, ast.FunctionDef) and item.name == "__init__" and not foreign:
            for parameter in undocumented_parameters(item, comments): yield f"{name}: parameter {parameter} has no comment"
        if isinstance(item, ast.AnnAssign) and is_dataclass and not name.split(".")[1].startswith("_"):
            # help in field(metadata={"help": ...}), or as the second argument of a function that makes such a field
            words = isinstance(item.value, ast.Call) and ("'help'" in ast.unparse(item.value) or len(item.value.args) > 1)
            if not (words or comments & set(range(item.lineno, item.end_lineno + 1))): yield f"{name}: the field has no comment or help"


def problems(text, classes=()):
    "What the public functions, classes and methods of a module leave undocumented; `classes` are those that inherit from nothing foreign."
    tree, comments = ast.parse(text), commented_lines(text)
    public = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"), [])
    for node in tree.body:
        if getattr(node, "name", None) not in public: continue
        if isinstance(node, ast.ClassDef): yield from problems_of_class(node, comments, classes)
        else:
            if not ast.get_docstring(node): yield f"{node.name} has no docstring"
            for parameter in undocumented_parameters(node, comments): yield f"{node.name}: parameter {parameter} has no comment"


def test_the_documentation_check_finds_what_is_missing():
    text = '''__all__ = ["f", "g", "C", "D", "T"]
def f(a, # what a is
      b: int = 3,
      *, c=(1,
            2), # what c is
      **kwargs): "Doc."
def g(x): # what x is
    pass
def hidden(x): pass
class C:
    "Doc."
    def __init__(self, a): pass
    def m(self): pass
    def _private(self, a): pass
@dataclass
class D:
    "Doc."
    x: int = 0
    y: int = 0 # what y is
    z: int = field(default=1, metadata={"help": "what z is"})
class T(trl.Trainer):
    "Doc."
    def __init__(self, a): pass
    def compute_loss(self, model): "Doc."
'''
    assert list(problems(text)) == ["f: parameter b has no comment", "g has no docstring", "C.__init__: parameter a has no comment", "C.m has no docstring",
                                    "D.x: the field has no comment or help"]


@each_module
def test_public_names_are_documented(path):
    found = list(problems(path.read_text(encoding="utf-8"), own_classes()))
    assert not found, "\n".join(found)


def own_classes():
    "Classes of reward_kit that inherit from no other package's, not even through one of ours."
    nodes = [n for p in MODULES for n in ast.parse(p.read_text(encoding="utf-8")).body if isinstance(n, ast.ClassDef)]
    own = {n.name for n in nodes}
    while dropped := {n.name for n in nodes if n.name in own and third_party(n, own)}: own -= dropped
    return own


@each_module
def test_functions_are_short(path):
    functions = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = {n.name: n.end_lineno - n.lineno + 1 for n in functions if n.end_lineno - n.lineno + 1 > MAX_FUNCTION_LINES}
    assert not long


@each_notebook
def test_metadata_holds_no_state_of_widgets(path):
    assert set(json.loads(path.read_text(encoding="utf-8"))["metadata"]) <= {"kernelspec", "language_info"}
