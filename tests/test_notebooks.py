"""What every notebook and every module keeps to: import order, small exported cells, documented names,
clean stored outputs."""

import ast
import base64
import io
import json
import re
import statistics
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
ADDRESSES = {
    "68_command_line": ["tools.cli"],
    "autotrain": ["autotrain"],
}  # chapters whose module has another name than its file
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX)\b")
DEVELOPMENT_TOOLS = {"nbdev", "execnb", "ghapi"}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: f"{p.parent.name}/{p.name}")
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: module_name(p))


def cells(path, kind=None):
    return [
        c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if kind in (None, c["cell_type"])
    ]


def source(cell):
    return "".join(cell["source"])


def is_exported(cell):
    return re.match(r"\s*#\|\s*exports?\b", source(cell)) is not None


def outputs(path):
    "(mime type, content) of every stored output."
    for cell in cells(path, "code"):
        for output in cell["outputs"]:
            if "text" in output:
                yield "text/plain", "".join(output["text"])
            for mime, content in output.get("data", {}).items():
                yield mime, content if isinstance(content, dict) else "".join(content)


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
    """Modules that `from full import names` loads, as `data.records`; `__init__` for what the package
    itself holds."""
    if full == "reward_kit":
        for name in names:
            yield lazy_names().get(name, "__init__") if name not in ORDER else name
        return
    module = full.removeprefix("reward_kit.")
    yield from [module] if module in ORDER else [f"{module}.{name}" for name in names]


def own_imports(tree, package=()):
    """Modules of reward_kit that the tree imports anywhere, also inside functions; `package` is where
    relative imports start."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("reward_kit."):
                    yield alias.name.removeprefix("reward_kit.")
        elif isinstance(node, ast.ImportFrom):
            base = ["reward_kit", *package][: 2 + len(package) - node.level] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            if full.split(".")[0] == "reward_kit":
                yield from modules_below(full, [alias.name for alias in node.names])
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
            if isinstance(name, str) and name.startswith("reward_kit."):
                yield name.removeprefix("reward_kit.")


def imports_of(path):
    "Modules of reward_kit that one of its files imports."
    return [
        m
        for m in own_imports(ast.parse(path.read_text(encoding="utf-8")), module_name(path).split(".")[:-1])
        if m != "__init__"
    ]


def top_level_packages(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def test_own_imports_are_found_in_every_form():
    code = (
        "from reward_kit.data.records import a\nfrom .loss import b\nfrom ..data import files\nimport"
        " reward_kit.model.trainer as t\ndef f():\n    from ..scores.inference import c\n    from reward_kit"
        " import __version__\n    import_module('reward_kit.tools.cli')\nimport torch"
    )
    expected = {
        "data.records",
        "model.loss",
        "data.files",
        "model.trainer",
        "scores.inference",
        "tools.cli",
        "__init__",
    }
    assert set(own_imports(ast.parse(code), ["model"])) == expected


# modules that may ask one beside the path from inside a function: a command that needs it, a name that is no
# setting, a model of a rare kind, a file or a layout of another project
ASKED_LATE = {
    "data.files": {"beside.other_files", "beside.killed_runs"},
    "data.columns": {"beside.lost_texts", "beside.published_layouts"},
    "data.preferences": {"beside.lost_texts", "beside.trl_pairs"},
    "model.encoded_data": {"beside.lost_texts"},
    "tools.commands": BESIDE,
    "tools.pipeline": {
        "beside.bits_and_kernels",
        "beside.conversation_texts",
        "beside.killed_runs",
        "beside.many_processes",
    },  # fmt: skip
    "tools.cli": {"beside.killed_runs"},
    "model.runs": {"beside.killed_runs"},
    "tools.serving": {"beside.network", "beside.wire_formats"},
    "beside.network": {"beside.wire_formats"},
    "beside.benchmark_files": {"beside.lost_texts"},
    "trust.trust_report": {"beside.rated_responses"},
    "model.model_folder": {
        "beside.bounded_templates",
        "beside.killed_runs",
        "beside.transformers_4",
        "beside.unusual_heads",
    },  # fmt: skip
    "model.trainer": {
        "beside.unusual_heads",
        "beside.bits_and_kernels",
        "beside.code_for_trl",
        "beside.many_processes",
    },  # fmt: skip
    "model.training_data": {"beside.code_for_trl", "beside.many_processes"},
    "scores.inference": {"beside.models_from_elsewhere"},
    "scores.score_files": {"beside.killed_runs"},
    "rl.policies": {"beside.trl_ppo", "beside.unusual_heads"},
    "rl.ppo": {"beside.trl_ppo", "beside.faster_sampling", "beside.many_processes"},
    "rl.rollouts": {"beside.faster_sampling"},
}


@each_module
def test_a_module_imports_only_from_earlier_chapters(path):
    name = module_name(path)
    assert name in ORDER, f"{path.name} comes from no notebook"
    later = [
        m for m in imports_of(path) if ORDER.get(m, 999) >= ORDER[name] and m not in ASKED_LATE.get(name, ())
    ]
    assert not later, f"{name} imports from {later}: missing, or not an earlier chapter"


def test_nothing_on_the_path_needs_what_stands_beside_it():
    "The command line may load a part-7 module inside the function of the command that needs it."
    for path in MODULES:
        if module_name(path) in BESIDE:
            continue
        top = ast.Module(
            [
                n
                for n in ast.parse(path.read_text(encoding="utf-8")).body
                if isinstance(n, (ast.Import, ast.ImportFrom))
            ],
            [],
        )
        assert not BESIDE & set(own_imports(top, module_name(path).split(".")[:-1])), module_name(path)


@each_chapter
def test_a_chapter_uses_only_itself_and_earlier_chapters(path):
    place = ORDER[exported_module(path)]
    found = [m for cell in cells(path, "code") for m in own_imports(python(cell)) if m != "__init__"]
    later = [
        m for m in found if ORDER.get(m, 999) > place and m not in ASKED_LATE.get(exported_module(path), ())
    ]
    assert not later, (
        f"{path.name} uses {later}: missing, or a later chapter, which the reader has not met yet"
    )


def test_inference_never_imports_the_trainer():
    "Neither itself nor through a module that it imports."
    seen, todo = set(), ["scores.inference"]
    while todo:
        name = todo.pop()
        file = ROOT / "reward_kit" / f"{name.replace('.', '/')}.py"
        if name in seen or not file.exists():
            continue
        seen.add(name)
        todo += imports_of(file)
    assert "model.trainer" not in seen and "data.records" in seen


@each_module
def test_modules_need_no_development_tool(path):
    assert not DEVELOPMENT_TOOLS & set(top_level_packages(ast.parse(path.read_text(encoding="utf-8"))))


@each_notebook
def test_no_star_imports(path):
    for cell in cells(path, "code"):
        stars = [
            n
            for n in ast.walk(python(cell))
            if isinstance(n, ast.ImportFrom) and any(alias.name == "*" for alias in n.names)
        ]
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
    assert any(re.match(r"> \S", line) for line in first), (
        "a line starting with '> ' must say in a sentence what this is"
    )


@each_notebook
def test_chapters_that_are_named_by_number_exist(path):
    numbers = {p.stem.split("_")[0] for p in CHAPTERS}
    named = re.findall(r"[Cc]hapters? (\d+[a-z]?)\b", "\n".join(map(source, cells(path))))
    assert set(named) <= numbers


@each_notebook
def test_exported_cells_are_small_and_always_run(path):
    for cell in filter(is_exported, cells(path, "code")):
        lines = source(cell).splitlines()
        assert len(lines) <= MAX_CELL_LINES, f"{len(lines)} lines: {lines[1]}"
        assert not re.search(r"^#\|\s*(?:slow|gpu|hub|eval:\s*false)", source(cell), re.M) and not cell[
            "metadata"
        ].get("tags"), f"flagged: {lines[1]}"


@each_notebook
def test_cells_are_stored_as_lists_of_lines(path):
    for cell in cells(path):
        assert isinstance(cell["source"], list)
        assert all(
            line.endswith("\n") and line.count("\n") == 1 for line in cell["source"][:-1]
        ) and "\n" not in "".join(cell["source"][-1:])


@each_notebook
def test_nothing_unfinished_and_no_machine_paths(path):
    texts = [source(cell) for cell in cells(path)] + [
        content
        for mime, content in outputs(path)
        if isinstance(content, str) and not mime.startswith("image/")
    ]
    for text in texts:
        for pattern in (UNFINISHED, MACHINE_PATH):
            found = pattern.search(text)
            assert not found, f"{path.name}: ...{text[max(0, found.start() - 60) : found.end() + 60]}..."


PATHS = [
    ("/home/me/x", 1),
    ('"/tmp/a"', 1),
    ("https://a.org/home/x", 0),
    ("framework/work/x", 0),
    ("./work/x", 0),
    ("C:\\Users\\me", 1),
]


@pytest.mark.parametrize("text,found", PATHS)
def test_the_machine_path_pattern(text, found):
    assert bool(MACHINE_PATH.search(text)) == found


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
    return {
        t.start[0]
        for t in tokenize.generate_tokens(io.StringIO(text).readline)
        if t.type == tokenize.COMMENT and len(t.string) > 2
    }


def undocumented_parameters(function, comments):
    "Parameters (self, cls, *args and **kwargs aside) without a comment on the lines that they take."
    a = function.args
    parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs]
    with_default = a.posonlyargs + a.args
    ends = {p.arg: p.end_lineno for p in parameters}
    ends |= {
        p.arg: d.end_lineno for p, d in zip(with_default[len(with_default) - len(a.defaults) :], a.defaults)
    }
    ends |= {p.arg: d.end_lineno for p, d in zip(a.kwonlyargs, a.kw_defaults) if d is not None}
    return [
        p.arg
        for p in parameters
        if p.arg not in ("self", "cls") and not comments & set(range(p.lineno, ends[p.arg] + 1))
    ]


def third_party(node, classes):
    "Does the class inherit from something that is not defined in reward_kit?"
    for base in node.bases:
        name = base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
        if name not in {
            *classes,
            "ValueError",
            "TypeError",
            "OSError",
            "Exception",
            "str",
            "dict",
            "Protocol",
            "NamedTuple",
        }:
            return True
    return False


def problems_of_class(node, comments, classes):
    if not ast.get_docstring(node):
        yield f"class {node.name} has no docstring"
    is_dataclass = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
    foreign = third_party(node, classes)
    for item in node.body:
        name = f"{node.name}.{getattr(item, 'name', getattr(getattr(item, 'target', None), 'id', ''))}"
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
            if not ast.get_docstring(item):
                yield f"{name} has no docstring"
        if isinstance(item, ast.FunctionDef) and item.name == "__init__" and not foreign:
            for parameter in undocumented_parameters(item, comments):
                yield f"{name}: parameter {parameter} has no comment"
        if isinstance(item, ast.AnnAssign) and is_dataclass and not name.split(".")[1].startswith("_"):
            # help in field(metadata={"help": ...}), or as the second argument of a function that makes such a
            # field
            words = isinstance(item.value, ast.Call) and (
                "'help'" in ast.unparse(item.value) or len(item.value.args) > 1
            )
            if not (words or comments & set(range(item.lineno, item.end_lineno + 1))):
                yield f"{name}: the field has no comment or help"


def problems(text, classes=()):
    """What the public functions, classes and methods of a module leave undocumented; `classes` are
    those that inherit from nothing foreign."""
    tree, comments = ast.parse(text), commented_lines(text)
    public = next(
        (
            ast.literal_eval(n.value)
            for n in tree.body
            if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"
        ),
        [],
    )
    for node in tree.body:
        if getattr(node, "name", None) not in public:
            continue
        if isinstance(node, ast.ClassDef):
            yield from problems_of_class(node, comments, classes)
        else:
            if not ast.get_docstring(node):
                yield f"{node.name} has no docstring"
            for parameter in undocumented_parameters(node, comments):
                yield f"{node.name}: parameter {parameter} has no comment"


def test_the_documentation_check_finds_what_is_missing():
    text = """__all__ = ["f", "g", "C", "D", "T"]
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
"""
    assert list(problems(text)) == [
        "f: parameter b has no comment",
        "g has no docstring",
        "C.__init__: parameter a has no comment",
        "C.m has no docstring",
        "D.x: the field has no comment or help",
    ]


@each_module
def test_public_names_are_documented(path):
    found = list(problems(path.read_text(encoding="utf-8"), own_classes()))
    assert not found, "\n".join(found)


def own_classes():
    "Classes of reward_kit that inherit from no other package's, not even through one of ours."
    nodes = [
        n
        for p in MODULES
        for n in ast.parse(p.read_text(encoding="utf-8")).body
        if isinstance(n, ast.ClassDef)
    ]
    own = {n.name for n in nodes}
    while dropped := {n.name for n in nodes if n.name in own and third_party(n, own)}:
        own -= dropped
    return own


@each_module
def test_functions_are_short(path):
    functions = [
        n
        for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    long = {
        n.name: n.end_lineno - n.lineno + 1
        for n in functions
        if n.end_lineno - n.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert not long


@each_notebook
def test_metadata_holds_no_state_of_widgets(path):
    assert set(json.loads(path.read_text(encoding="utf-8"))["metadata"]) <= {"kernelspec", "language_info"}


# ---------------------------------------------------------------- shape
# A reader takes in one thought a line, one chapter a sitting. These limits are on exported code; "the path"
# is every part but 7_beside.
# Nodes and lines are on their way down, to 88,000 and 12,600: when the program shrinks, its limit follows.

MAX_CHAPTER, MAX_WIDTH, MAX_RUN = 550, 110, 60
MAX_ON_THE_PATH = {
    "nodes": 88_000,
    "lines": 14_200,
    "nodes a line": 7.0,
    "characters a line": 50.0,
    "median cell": 15,
}
MAX_NAMES = 200
PATH = [p for p in CHAPTERS if p.parent.name != "7_beside"]
BOOK = [p for p in PATH if p.parent.name != "6_tools"]


def exported_lines(cell):
    "Lines of an exported cell that are neither blank nor a directive."
    lines = [line.rstrip() for line in source(cell).splitlines()]
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#|")]


def tree_nodes(text):
    "Nodes of the syntax tree, without docstrings and without marks of loading and storing."
    nodes = [n for n in ast.walk(ast.parse(text)) if not isinstance(n, (ast.Load, ast.Store, ast.Del))]
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return len(nodes) - 2 * sum(isinstance(n, owners) and ast.get_docstring(n) is not None for n in nodes)


def only_imports(cell):
    return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in python(cell).body)


def is_demonstration(cell):
    "A cell of code that the reader sees and that is not part of the module."
    hidden = re.match(r"\s*#\|\s*(?:default_exp|hide)", source(cell))
    return cell["cell_type"] == "code" and not is_exported(cell) and not hidden and bool(exported_lines(cell))


def exported_cells(path):
    "Exported cells with more in them than imports."
    return [c for c in cells(path, "code") if is_exported(c) and not only_imports(c)]


def exported_of(paths):
    return [c for p in paths for c in cells(p, "code") if is_exported(c)]


def longest_run(path):
    "Most exported lines in a row without a word or a demonstration between."
    run = longest = 0
    for cell in cells(path):
        if cell["cell_type"] == "markdown" and source(cell).strip() or is_demonstration(cell):
            run = 0
        elif is_exported(cell) and not only_imports(cell):
            run += len(exported_lines(cell))
        longest = max(longest, run)
    return longest


def test_the_program_keeps_its_size():
    found = exported_of(PATH)
    lines = [line for cell in found for line in exported_lines(cell)]
    nodes = sum(tree_nodes(source(cell)) for cell in found)
    measured = {
        "nodes": nodes,
        "lines": len(lines),
        "nodes a line": nodes / len(lines),
        "characters a line": sum(map(len, lines)) / len(lines),
        "median cell": statistics.median(len(exported_lines(c)) for p in PATH for c in exported_cells(p)),
    }
    over = {name: value for name, value in measured.items() if value > MAX_ON_THE_PATH[name]}
    assert not over, f"{over}, at most {MAX_ON_THE_PATH}"


@each_chapter
def test_a_chapter_is_one_sitting(path):
    lines = [line for cell in exported_of([path]) for line in exported_lines(cell)]
    assert len(lines) <= MAX_CHAPTER, f"{len(lines)} exported lines"
    assert longest_run(path) <= MAX_RUN, (
        f"{longest_run(path)} exported lines without a word or a demonstration between"
    )


@each_notebook
def test_lines_of_code_fit_a_column(path):
    "Exported or shown; an option of a cell, such as the text for a picture, has one line by nbdev's rules."
    lines = [line for cell in cells(path, "code") for line in source(cell).splitlines()]
    wide = [line for line in lines if len(line) > MAX_WIDTH and not line.startswith("#|")]
    assert not wide, f"{len(wide)} lines are wider than {MAX_WIDTH}: {wide[0]}"


def test_more_is_shown_than_exported():
    exported = sum(len(exported_cells(p)) for p in BOOK)
    shown = sum(is_demonstration(c) for p in BOOK for c in cells(p))
    assert exported <= shown, f"{exported} exported cells, {shown} demonstrations"


def test_the_measures_of_shape():
    assert tree_nodes('def f(x):\n    "Doc."\n    return x') == len(
        ["Module", "FunctionDef", "arguments", "arg", "Return", "Name"]
    )
    cell = {"cell_type": "code", "source": ["#| export\n", "import os\n", "\n", "x = 1\n"]}
    assert (
        exported_lines(cell) == ["import os", "x = 1"]
        and not only_imports(cell)
        and not is_demonstration(cell)
    )


def test_every_part_has_a_drawing():
    parts = {p.parent for p in CHAPTERS}
    without = [
        part.name
        for part in parts
        if not any(m.startswith("image/") for p in part.glob("*.ipynb") for m, _ in outputs(p))
    ]
    assert not without


# ---------------------------------------------------------------- owners


def trees():
    "(module, syntax tree) of every module."
    return [(module_name(p), ast.parse(p.read_text(encoding="utf-8"))) for p in MODULES]


def offered(tree):
    "Names in the `__all__` of a module."
    found = [n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    return ast.literal_eval(found[0].value) if found else []


def imported_names(tree):
    "(module as written, name) of everything that is imported from another module of reward_kit."
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (
            node.level or (node.module or "").split(".")[0] == "reward_kit"
        ):
            for alias in node.names:
                yield node.module or "", alias.name


def test_modules_offer_what_others_use():
    used = {name for _, tree in trees() for _, name in imported_names(tree)}
    used |= {
        name for path in NOTEBOOKS for cell in cells(path, "code") for _, name in imported_names(python(cell))
    }
    scripts = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "scripts").glob("*.py")]
    used |= {
        name for path in scripts for _, name in imported_names(ast.parse(path.read_text(encoding="utf-8")))
    }
    whole = {
        m.split(".")[-1] for m, _ in trees()
    } & used  # modules that are imported as one, and what is read of them
    used |= {
        n.attr
        for _, tree in trees()
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and ast.unparse(n.value) in whole
    }
    names = {module: offered(tree) for module, tree in trees()}
    unused = {
        m: left
        for m, n in names.items()
        if (left := [x for x in n if x not in used and x not in lazy_names() and x != "main"])
    }
    assert not unused, f"an underscore before what nobody else uses: {unused}"
    assert sum(map(len, names.values())) <= MAX_NAMES


def test_no_module_reaches_into_another():
    private = [
        (module, name)
        for module, tree in trees()
        for _, name in imported_names(tree)
        if re.match(r"_[^_]", name)
    ]
    assert not private


def test_modules_import_each_other_one_way():
    "At the top of a module by relative imports, which nbdev makes of those that stand on one line."
    absolute = [
        (m, n.lineno)
        for m, tree in trees()
        for n in tree.body
        if isinstance(n, ast.ImportFrom) and not n.level and n.module.startswith("reward_kit.")
    ]
    assert not absolute


def calls(tree):
    "(name of the called function as written, node) of every call."
    return [(ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


READERS = "|".join(
    (
        r"json\.load",
        r"csv\.(?:reader|DictReader)",
        r"(?:pd|pandas)\.read_\w+",
        r"(?:pq|parquet)\.(?:read_\w+|ParquetFile)",
        r"pa\.ipc\.open_\w+",
        r"(?:datasets\.)?load_dataset",
        r"gzip\.open",
    )
)
WRITERS = "|".join(
    (
        r"os\.(?:replace|rename|fsync)",
        r"(?:tempfile\.)?(?:NamedTemporaryFile|mkstemp)",
        r"csv\.(?:writer|DictWriter)",
        r"json\.dump",
    )
)
RENDERERS = r"tabulate|(?:tabulate\.)?tabulate"
OWNERS = {"data.files": (READERS, WRITERS), "data.report": (RENDERERS,)}


@pytest.mark.parametrize(
    "owner,pattern", [(o, p) for o, patterns in OWNERS.items() for p in patterns], ids=lambda x: x[:20]
)
def test_a_concern_has_one_owner(owner, pattern):
    "One reader of people's files, one writer of files, one renderer of tables."
    found = [
        (m, name, n.lineno)
        for m, tree in trees()
        for name, n in calls(tree)
        if m != owner and re.fullmatch(pattern, name)
    ]
    assert not found, f"{owner} does this"


def test_a_report_is_shown_by_one_class():
    for module, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and module != "data.report":
                assert not re.search(r"<t[rd][ >]|\| ?---", node.value), (
                    f"{module}, line {node.lineno}: a second renderer of tables"
                )


def test_a_setting_is_declared_once():
    from reward_kit.model import settings

    declared = {}
    for module, tree in trees():
        for node in ast.walk(tree):
            setting = (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.value, ast.Call)
                and ast.unparse(node.value.func) == "setting"
            )
            if setting:
                declared.setdefault(node.value.args[1].value if len(node.value.args) > 1 else "", []).append(
                    (module, node.target.id)
                )
    assert len(declared) > 60 and hasattr(settings, "RewardSettings") and hasattr(settings, "PPOSettings")
    twice = {words: places for words, places in declared.items() if words and len(set(places)) > 1}
    assert not twice, "the same help stands twice"
    helps = {
        module: [n for name, n in calls(tree) if any(k.arg == "help" for k in n.keywords)]
        for module, tree in trees()
    }
    assert not [
        m for m, found in helps.items() if len(found) > 3 and m not in ("model.settings", "tools.cli")
    ]


def test_trainers_are_one_class_each():
    import trl

    from reward_kit.model.trainer import RewardTrainer
    from reward_kit.rl.ppo import PPOTrainer

    assert RewardTrainer.__bases__ == (trl.RewardTrainer,) and PPOTrainer.__bases__ == (object,)


def test_fastcore_gives_nothing_but_patch():
    found = {
        (n.module, a.name)
        for _, tree in trees()
        for n in ast.walk(tree)
        if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("fastcore")
        for a in n.names
    }
    assert found <= {("fastcore.basics", "patch")}
