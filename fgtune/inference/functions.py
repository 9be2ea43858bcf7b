"""Calls run as Python functions: arguments checked first, errors told to the model and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..format.calls import Call
from ..format.findings import did_you_mean, one_line
from ..format.schema import arguments_validator
from ..format.tokens import CONTROL_TOKEN
from ..format.values import METASPACE, carry_value
from .decorator import ToolError, tool_of


@dataclass(frozen=True)
class Result:
    """What a call came to: `value` is what the function returned, or `error` says why there is none.

    `exception` is what the function raised; None where it did not run.
    """

    call: Call
    value: Any = None
    error: str = ""
    exception: Exception | None = None

    @property
    def response(self) -> Any:
        """What the model is told: the value as JSON, `{"status": "ok"}` for None, or `{"error": …}`."""
        return {"error": _safe(self.error)} if self.error else _carried(self.value)[0]


def functions_by_name(functions: Mapping[str, Callable] | Iterable[Callable]) -> dict[str, Callable]:
    """Functions by the names of their tools. Raises ToolError for one of a list that is not decorated."""
    if isinstance(functions, Mapping):
        return dict(functions)
    if isinstance(functions, str) or not isinstance(functions, Iterable):
        raise ToolError(f"functions is a {type(functions).__name__}: give a list of functions, or a dict by tool")
    found = {}
    for function in functions:
        made = tool_of(function)
        if made is None:
            name = getattr(function, "__name__", function)
            raise ToolError(f"{name} is not decorated: put @tool above it, or give a dict of functions by tool")
        found[made.name] = function
    return found


def run_call(call: Call, functions: Mapping[str, Callable], tools: Mapping[str, dict]) -> Result:
    """Run the function of a call, unless its arguments do not fit the tool's schema. Raises nothing of the function."""
    function = functions.get(call.name)
    if call.name not in tools or function is None:
        return Result(call, error=f"There is no function {call.name}.{did_you_mean(call.name, functions)}")
    if wrong := argument_error(call, tools[call.name]):
        return Result(call, error=wrong)
    made = tool_of(function)
    try:
        arguments = made.arguments(call.arguments) if made else call.arguments
    except ToolError as error:
        return Result(call, error=str(error))
    try:
        value = function(**arguments)
    except Exception as error:  # whatever it is: the model is told, and the caller finds it in the answer
        return Result(call, error=one_line(f"{type(error).__name__}: {error}"), exception=error)
    _, problem = _carried(value)
    return Result(call, value, f"The result cannot be told: {problem}" if problem else "")


def argument_error(call: Call, tool: dict) -> str:
    """The first thing in a call's arguments that does not fit the tool's schema, in one line; empty if all fits."""
    parameters = tool.get("parameters") or {"type": "object"}
    for error in arguments_validator(json.dumps(parameters)).iter_errors(call.arguments):
        place = ".".join(map(str, error.absolute_path))
        return one_line(f"{place}: {error.message}" if place else error.message)
    return ""


def _carried(value: Any) -> tuple[Any, str]:
    """A result as the format carries it, and why it cannot be if so."""
    if value is None:
        return {"status": "ok"}, ""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        from pydantic_core import PydanticSerializationError, to_jsonable_python

        try:
            value = to_jsonable_python(value)
        except (PydanticSerializationError, ValueError) as error:
            return {}, one_line(str(error))
    problems = []

    def report(level: str, code: str, where: str, message: str) -> None:
        if level == "error":
            problems.append(message)

    carried = carry_value(value, "", report, drop_null=True)
    return carried, problems[0] if problems else ""


def _safe(text: str) -> str:
    """A text that the format carries: without control tokens and half characters."""
    text = CONTROL_TOKEN.sub("", text).replace(METASPACE, "_")
    return CONTROL_TOKEN.sub("", text.encode("utf-8", "replace").decode("utf-8")).replace("<", "‹")
