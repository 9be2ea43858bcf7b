"""The tools of a Python module."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from ..core.files import write_json
from ..format.findings import Finding, FindingsTable, one_line
from .decorator import FunctionTool, ToolError, tool_of


def module_tools(path: str | Path) -> tuple[list[dict], list[Finding]]:
    """The declarations of a module's decorated functions and what lint says of them. Runs the module.

    Where none is decorated, they are those of all its public functions that have a docstring and a type for each
    argument. Raises ToolError.
    """
    module = _imported(Path(path))
    own = [item for item in vars(module).values() if inspect.isfunction(item) and item.__module__ == module.__name__]
    made = [tool_of(function) for function in own if tool_of(function)]
    made = made or [FunctionTool(function) for function in own if _is_typed(function)]
    if not made:
        raise ToolError(f"{path} has no decorated function, and no public one with types and a docstring")
    names = [each.name for each in made]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ToolError(f"{path} has two tools {twice!r}: rename one")
    return [each.declaration for each in made], [finding for each in made for finding in each.findings]


def write_tools(path: str | Path, out: str | Path | None = None) -> int:
    """Write a module's declarations to `out`, or print them; returns 0. What lint says goes to standard error.

    Raises ToolError.
    """
    tools, findings = module_tools(path)
    if findings:
        print(FindingsTable(findings).columns(), file=sys.stderr)
    if out:
        write_json(Path(out), tools)
        print(f"{len(tools)} tools in {out}")
    else:
        print(json.dumps(tools, indent=2, ensure_ascii=False))
    return 0


def _is_typed(function: Callable) -> bool:
    given = inspect.signature(function).parameters
    typed = all(parameter.annotation is not parameter.empty for parameter in given.values())
    return not function.__name__.startswith("_") and bool(function.__doc__) and typed


def _imported(path: Path) -> ModuleType:
    """The module in a file, with its folder on the path for what it imports."""
    if not path.is_file() or path.suffix != ".py":
        raise ToolError(f"{path} is no Python file")
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    kept = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # types are looked up by the name of their module
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a module prints is none of the declarations
            spec.loader.exec_module(module)
    except ToolError:
        raise
    except (Exception, SystemExit) as error:
        raise ToolError(one_line(f"{path} does not run: {type(error).__name__}: {error}")) from error
    finally:
        sys.path.remove(str(path.resolve().parent))
        if kept is not None:
            sys.modules[path.stem] = kept
    return module
