"""The order of the house: which folder may use which, and what a light import may bring."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import intruscope

PACKAGE = Path(intruscope.__file__).parent
ORDER = [
    ("linalg", "engine"), ("weights",), ("records",), ("adapters",), ("writing",), ("spectra",), ("plots",),
    ("inspect", "merge", "verify"), ("repair",),
    ("extract",), ("forgetting",), ("compare", "fitting", "guidance", "knowledge"), ("sweep", "attribution"),
    ("diagnose",), ("methods",), ("train",), ("sequence", "profiling"), ("studies",), ("report",), ("demo",),
    ("cli",),
]  # fmt: skip
LEVEL = {folder: level for level, group in enumerate(ORDER) for folder in group}
FOLDERS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "datasets",
    "matplotlib",
    "pyarrow",
    "scipy",
    "jinja2",
    "tokenizers",
)


def modules(folder):
    return sorted((PACKAGE / folder).rglob("*.py"))


def imported(tree):
    """Every module named by an import, wherever it stands (function bodies and type checking too)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_module_level(tree):
    """Imports that run when the module is imported."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (a.name for a in node.names) if isinstance(node, ast.Import) else (node.module,)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def test_every_folder_has_its_place():
    assert set(FOLDERS) <= set(LEVEL)


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_import_goes_up(folder):
    for path in modules(folder):
        for name in imported(ast.parse(path.read_text())):
            parts = name.split(".")
            if parts[0] == "intruscope" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != folder:
                assert LEVEL[parts[1]] < LEVEL[folder], f"{path.name} imports {name}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_says_what_may_live_in_it(folder):
    docstring = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text()))
    assert docstring
    assert len(docstring.split()) >= 8


# What trains is made of transformers' classes; its folders are imported when something is trained.
WITH_TORCH = {"linalg", "demo", "train", "sequence", "profiling"}
IN_WORKERS = {
    "spectra": {"matrix.py", "sides.py", "updates.py"},
    "extract": {"decompose.py"},
    "verify": {"matrix.py", "rounding.py", "others.py"},
    "compare": {"matrix.py", "preflight.py"},
    "guidance": {"processor.py"},  # a class of transformers, imported where text is generated
    "merge": {"compute.py", "emr.py", "rules.py", "spaces.py", "trimming.py"},
}


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f not in WITH_TORCH])
def test_the_calling_process_never_needs_heavy_packages(folder):
    # Only what runs in workers may import torch as a module; everything else does so inside functions.
    in_workers = IN_WORKERS.get(folder, set())
    for path in modules(folder):
        # A method's layers are torch modules; their file is imported when a model is built.
        if path.name in in_workers or (folder == "methods" and path.name.endswith("_layers.py")):
            continue
        for name in at_module_level(ast.parse(path.read_text())):
            assert name.split(".")[0] not in HEAVY, f"{path} imports {name}"


def test_only_the_command_line_prints():
    for folder in FOLDERS:
        if folder in {"cli"}:
            continue
        for path in modules(folder):
            for node in ast.walk(ast.parse(path.read_text())):
                called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
                assert not (called and node.func.id == "print"), path


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-c", "import intruscope"],
        [sys.executable, "-m", "intruscope", "--help"],
        [sys.executable, "-m", "intruscope", "sweep", "--help"],  # the verb with the most imports
    ],
    ids=["import", "help", "help of a verb"],
)
def test_starting_is_light(command):
    """Less than half a second of processor time; the least of five, for a busy machine."""
    import resource

    spent = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.5, spent


@pytest.mark.parametrize(
    "module", ["intruscope", "intruscope.cli.main", "intruscope.spectra.scan", "intruscope.train"]
)
def test_light_modules_bring_nothing_heavy(module):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not [name for name in (*HEAVY, "rich", "typer") if name in loaded]
