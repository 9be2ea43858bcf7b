"""The parameters of the series: one name, one meaning, one default, in every notebook.

The notebooks' `parameters` cells repeat what stands here (a test compares them), so that papermill sees plain
literals and a reader sees the help beside the value.
"""

from __future__ import annotations

import ast
import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgtune.export.layout import VARIANTS as EXPORTED

VARIANTS = tuple(EXPORTED)


class ParameterError(ValueError):
    """A parameter is unknown, of the wrong type or out of range; the message is one line."""


@dataclass(frozen=True)
class Param:
    """A parameter: `default` (its type is the parameter's type), `help`, and a range or a set of `choices`."""

    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: list[str] | None = None


#: What the series is made of: `parameters` and `stages`, as series.toml declares them.
SERIES = tomllib.loads(Path(__file__).with_name("series.toml").read_text(encoding="utf-8"))
PARAMETERS = {name: Param(**entry) for name, entry in SERIES["parameters"].items()}
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list"}


def closest(name: str, known) -> str:
    """`; did you mean 'x'?` when some known name is close or what `name` is short for, else an empty string."""
    meant = SERIES["abbreviations"].get(name)
    near = [meant] if meant in known else difflib.get_close_matches(name, list(known), 1, 0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def names_set(namespace: dict[str, Any], parameters: list[str]) -> list[str]:
    """Names of a notebook's globals that its parameters cell, and papermill's injected one, have set.

    Those are the cells of plain assignments that ran just before the current one, by IPython's `In`, back to the one
    that sets all `parameters`. So a misspelt parameter is found and what later cells left in the kernel is not mistaken
    for one. Where there is no history (a script), every plain global counts.
    """
    cells = list(namespace.get("In") or ())
    if not cells:
        plain = (bool, int, float, str, list, dict, type(None))
        return [k for k, v in namespace.items() if isinstance(v, plain) and not k.startswith("_") and k != "In"]
    if "start_stage" in cells[-1]:
        cells.pop()
    names: list[str] = []
    while cells and not {*parameters} <= {*names} and (found := _assigned(cells.pop())) is not None:
        names = found + names
    return names


def _assigned(cell: str) -> list[str] | None:
    """The names that a cell of plain assignments sets; None for a cell that does anything else."""
    try:
        body = ast.parse(cell).body
    except SyntaxError:
        return None
    targets = [node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None) for node in body]
    named = all(isinstance(target, ast.Name) for target in targets)
    literal = not any(
        isinstance(part, ast.Name) for node in body for part in ast.walk(getattr(node, "value", None) or node)
    )
    return [target.id for target in targets] if named and literal else None


def coerce(name: str, value: Any) -> Any:
    """`value` as the type of parameter `name`, range-checked. Raises ParameterError.

    papermill hands `-p dry true` over as a string and YAML reads `1e-4` as one, so strings are converted.
    """
    if name not in PARAMETERS:
        raise ParameterError(f"unknown parameter {name!r}{closest(name, PARAMETERS)}")
    param, kind = PARAMETERS[name], type(PARAMETERS[name].default)
    try:
        value = _converted(value, kind)
    except (ValueError, KeyError, TypeError, OverflowError):
        raise ParameterError(f"{name} must be {KINDS[kind]}, not {value!r}") from None
    if param.low is not None and not param.low <= value <= param.high:
        raise ParameterError(f"{name} = {value!r} is outside {param.low:g} to {param.high:g}")
    if param.choices and value not in param.choices:
        raise ParameterError(f"{name} = {value!r} is none of {', '.join(param.choices)}{closest(value, param.choices)}")
    if name in ("variants", "node_variants", "deploy_variant"):
        for variant in [value] if kind is str else value:
            if variant not in VARIANTS:
                near = closest(str(variant), VARIANTS)
                raise ParameterError(f"{name}: unknown variant {variant!r}, not one of {', '.join(VARIANTS)}{near}")
    if name == "num_layers" and value == 0:
        raise ParameterError("num_layers = 0 trains nothing: use -1 for all layers")
    return value


def _converted(value: Any, kind: type) -> Any:
    if kind is list:
        return [v.strip() for v in value.split(",") if v.strip()] if isinstance(value, str) else list(value)
    if kind is bool:
        return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
    if isinstance(value, bool) or (kind is str and not isinstance(value, str)):
        raise ValueError
    if kind is int and float(value) != int(float(value)):
        raise ValueError
    return int(float(value)) if kind is int else kind(value)
