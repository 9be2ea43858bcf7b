"""The parameters of the series: one name, one meaning, one default, in every notebook.

The notebooks' `parameters` cells repeat what stands here (a test compares them), so that papermill sees plain
literals and a reader sees the help beside the value.
"""

from __future__ import annotations

import ast
import os
import tomllib
from pathlib import Path
from typing import Any

import yaml

from fgtune.core.parameters import Param, ParameterError, hint
from fgtune.core.project import project_root
from fgtune.export.layout import VARIANTS as EXPORTED

VARIANTS = tuple(EXPORTED)


#: What the series is made of: `parameters` and `stages`, as series.toml declares them.
SERIES = tomllib.loads(Path(__file__).with_name("series.toml").read_text(encoding="utf-8"))
PARAMETERS = {name: Param(**entry) for name, entry in SERIES["parameters"].items()}


def closest(name: str, known) -> str:
    """`; did you mean 'x'?` when some known name is close or what `name` is short for, else an empty string."""
    meant = SERIES["abbreviations"].get(name)
    return f"; did you mean {meant!r}?" if meant in known else hint(name, known)


def resolve_path(value: str) -> Path:
    """An input path: absolute, or below the project's root, or below the working directory. Raises ParameterError."""
    if not value:
        raise ParameterError("an input file has no name: set tools_file and examples_file")
    tried = dict.fromkeys(folder / Path(value).expanduser() for folder in (project_root(), Path.cwd()))
    found = next((path for path in tried if path.exists()), None)
    if found is None:
        raise ParameterError(f"{value!r} does not exist (looked at {' and '.join(map(str, tried))})")
    return found.resolve()


def chosen_file() -> str:
    """The params file whose values stand in for the defaults: `FGTUNE_PARAMS` (empty: none), else the project's
    run.yaml; empty where there is none."""
    own = "run.yaml" if (project_root() / "run.yaml").exists() else ""
    return os.environ.get("FGTUNE_PARAMS", own)


def read_params(file: str) -> dict[str, Any]:
    """The values of a params file, coerced and checked. Raises ParameterError, which names the file."""
    try:
        given = yaml.safe_load(resolve_path(file).read_text(encoding="utf-8")) or {}
        if not isinstance(given, dict):
            raise ParameterError("must be a flat list of name: value")
        return {name: coerce(name, value) for name, value in given.items()}
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ParameterError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    except ParameterError as error:
        raise ParameterError(f"{file}: {error}") from None


def names_set(namespace: dict[str, Any], parameters: list[str]) -> dict[str, bool]:
    """Names of a notebook's globals that its parameters cell has set (False), and those that papermill's injected cell
    or another plain assignment has (True): the parameters cell declares a type with each.

    Those are the cells of plain assignments that ran just before the current one, by IPython's `In`, back to the one
    that sets all `parameters`. So a misspelt parameter is found and what later cells left in the kernel is not mistaken
    for one. Where there is no history (a script), every plain global counts.
    """
    cells = list(namespace.get("In") or ())
    if not cells:
        plain = (bool, int, float, str, list, dict, type(None))
        return {k: True for k, v in namespace.items() if isinstance(v, plain) and not k.startswith("_") and k != "In"}
    if "start_stage" in cells[-1]:
        cells.pop()
    names: dict[str, bool] = {}
    while cells and not {*parameters} <= {*names} and (found := _assigned(cells.pop())) is not None:
        names = found | names
    return names


def _assigned(cell: str) -> dict[str, bool] | None:
    """The names that a cell of assignments sets, and whether without a type; None for a cell that does more."""
    try:
        body = ast.parse(cell).body
    except SyntaxError:
        return None
    targets = [node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None) for node in body]
    named = all(isinstance(target, ast.Name) for target in targets)
    literal = not any(
        isinstance(part, ast.Name) for node in body for part in ast.walk(getattr(node, "value", None) or node)
    )
    plain = [isinstance(node, ast.Assign) for node in body]
    return {target.id: bare for target, bare in zip(targets, plain)} if named and literal else None


def coerce(name: str, value: Any) -> Any:
    """`value` as the type of parameter `name`, range-checked. Raises ParameterError."""
    if name not in PARAMETERS:
        raise ParameterError(f"unknown parameter {name!r}{closest(name, PARAMETERS)}")
    value = PARAMETERS[name].coerce(name, value)
    if name in ("variants", "node_variants", "deploy_variant"):
        for variant in [value] if isinstance(value, str) else value:
            if variant not in VARIANTS:
                near = closest(str(variant), VARIANTS)
                raise ParameterError(f"{name}: unknown variant {variant!r}, not one of {', '.join(VARIANTS)}{near}")
    return value
