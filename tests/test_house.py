"""The house: rooms that import only from rooms below them, doors that open without weight, and its measures."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from fgtune.core.project import project_root

ROOT = project_root()
#: From the ground up: a room may import from itself and from the rooms before it.
ROOMS = (
    *("core", "format", "data", "models", "engines", "training", "export", "quantize", "runtimes", "evaluation"),
    *("site", "inference"),
)
HEAVY = ("torch", "mlx", "mlx_lm", "onnx", "onnxruntime", "transformers", "llguidance", "matplotlib", "papermill")
PACKAGES = ("fgtune", "fgtune_helpers")


def modules() -> dict[str, Path]:
    """Every module of both packages by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str, everywhere: bool = True) -> set[str]:
    """Modules of the two packages that a module imports; `everywhere` counts imports inside functions as well."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            if target.split(".")[0] in PACKAGES:
                found |= {
                    f"{target}.{alias.name}" if f"{target}.{alias.name}" in MODULES else target for alias in node.names
                }
    return found - {name}


def room(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "fgtune" and len(parts) > 1 else None


def test_the_rooms_are_those_of_the_drawing():
    assert {room(name) for name in MODULES if room(name)} == set(ROOMS)


def test_no_arrow_upwards():
    wrong = []
    for name in MODULES:
        for target in imports(name):
            if name.startswith("fgtune.") and target.startswith("fgtune_helpers"):
                wrong.append(f"{name} -> {target}")
            elif room(name) and room(target) and ROOMS.index(room(target)) > ROOMS.index(room(name)):
                wrong.append(f"{name} -> {target}")
    assert not wrong, wrong


def test_no_circle():
    """No module comes back to itself, not even by an import inside a function."""
    graph = {name: imports(name) & set(MODULES) for name in MODULES}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for target in sorted(graph[name]):
                visit(target)
            path.pop()
            done.add(name)

    for name in sorted(graph):
        visit(name)


@pytest.mark.parametrize("name", MODULES)
def test_no_module_over_400_lines_and_no_function_over_80(name):
    text = MODULES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 80, f"{node.name}: {node.end_lineno - node.lineno + 1} lines"


def test_the_helpers_stay_thin():
    lines = {p.name: len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT / "fgtune_helpers").glob("*.py")}
    assert sum(lines.values()) <= 1300, lines


@pytest.mark.parametrize("name", ROOMS)
def test_a_door_lists_what_its_room_offers(name):
    door = importlib.import_module(f"fgtune.{name}")
    assert door.__doc__ and door.__all__ and len(set(door.__all__)) == len(door.__all__)
    for public in door.__all__:
        assert not public.startswith("_") and getattr(door, public) is not None


def test_nothing_heavy_and_no_setting_comes_with_an_import():
    names = ["fgtune", *(f"fgtune.{name}" for name in ROOMS), "fgtune_helpers", "fgtune_helpers.stage"]
    code = (
        "import os, sys\nbefore = dict(os.environ)\n"
        + "\n".join(f"import {name}" for name in names)
        + f"\nprint(sorted(set({HEAVY!r}) & set(sys.modules)), dict(os.environ) == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=dict(os.environ))
    assert done.stdout.strip() == "[] True", done.stdout + done.stderr


def notebook_imports() -> dict[str, set[str]]:
    """Names that the notebooks import from the project, by module."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type != "code":
                continue
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
                    found.setdefault(node.module, set()).update(alias.name for alias in node.names)
                elif isinstance(node, ast.Import):
                    for alias in node.names:
                        assert alias.name.split(".")[0] not in PACKAGES, f"{path.name}: import names, not modules"
    return found


def test_notebooks_import_few_names_and_only_from_the_helpers():
    found = notebook_imports()
    assert all(module.split(".")[0] == "fgtune_helpers" for module in found), sorted(found)
    assert not {f"{m}.{n}" for m, names in found.items() for n in names} & set(MODULES), "names, not whole modules"
    names = set().union(*found.values())
    assert len(names) <= 44, f"{len(names)}: {sorted(names)}"
