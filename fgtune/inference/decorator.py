"""A typed Python function with a docstring as a tool."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..core.errors import FgtuneError
from ..format.findings import one_line
from ..format.tools import repair_tools
from .docstrings import parse_docstring

_MARK = "__fgtune_tool__"
_OF_PYDANTIC = (("repair", "reference"), ("repair", "any-of"))  # what no author wrote, and none has to mend


class ToolError(FgtuneError, ValueError):
    """A function that no tool can be made of; the message is one line that names the function and the argument."""


def tool(function: Callable | None = None, *, name: str | None = None, description: str | None = None):
    """Make a tool of a function: `@tool`, or `@tool(name=…, description=…)`. The function itself stays as it is.

    Of a method, `tool(client.search)` makes a function that calls it.

    The description is the docstring's first paragraph; arguments are described in the docstring (Google, numpy or reST
    style) or by `Annotated[…, pydantic.Field(description=…)]`. Types are whatever pydantic gives a JSON Schema that
    the format can declare. Raises ToolError.
    """

    def decorate(function: Callable) -> Callable:
        made = FunctionTool(function, name, description)
        if inspect.ismethod(function):  # which takes no attributes
            function = functools.partial(function)
        setattr(function, _MARK, made)
        return function

    return decorate if function is None else decorate(function)


def tool_of(function: Callable) -> FunctionTool | None:
    """What `tool` made of a function, if it did."""
    return getattr(function, _MARK, None)


class FunctionTool:
    """A function's `declaration` (`{"name", "description", "parameters"}`, normalised), and `findings` of lint."""

    def __init__(self, function: Callable, name: str | None = None, description: str | None = None):
        self.name = name or getattr(function, "__name__", "")
        if not (inspect.isfunction(function) or inspect.ismethod(function)):
            raise ToolError(one_line(f"{function!r} is no plain function: put @tool right above its def"))
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise ToolError(f"{self.name}: an async function cannot be called here; give one that returns its result")
        if inspect.isgeneratorfunction(function):
            raise ToolError(f"{self.name}: a generator cannot be told to the model; return its values as a list")
        self.annotations = self._annotations(function)
        summary, texts = parse_docstring(function.__doc__)
        if unknown := sorted(set(texts) - set(self.annotations)):
            raise ToolError(f"{self.name}: the docstring describes {unknown[0]!r}, which is no argument")
        schema = self._schema(function)
        if renamed := sorted(set(self.annotations) - set(schema["properties"])):
            raise ToolError(f"{self.name}: the argument {renamed[0]!r} has an alias: give the argument that name")
        for argument, text in texts.items():
            schema["properties"][argument].setdefault("description", text)
        declared = {"name": self.name, "description": description or summary, "parameters": schema}
        made, findings = repair_tools([declared], function.__module__ or "")
        self.findings = [finding for finding in findings if (finding.level, finding.code) not in _OF_PYDANTIC]
        for finding in findings:
            if finding.level == "error":
                raise ToolError(f"{self.name}: {': '.join(filter(None, [finding.where, finding.message]))}")
        [self.declaration] = made

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A call's arguments as the function's annotations say: enums, dataclasses, dates. Raises ToolError."""
        from pydantic import TypeAdapter, ValidationError

        ready = {}
        for name, (annotation, needed) in self.annotations.items():
            if name not in given and not needed:
                continue
            try:
                ready[name] = TypeAdapter(annotation).validate_python(given.get(name))
            except ValidationError as error:
                place = ".".join([name, *map(str, error.errors()[0]["loc"])])
                raise ToolError(one_line(f"{self.name}: {place}: {error.errors()[0]['msg']}")) from None
            except Exception as error:  # a validator or a `__post_init__` of the user's may raise anything
                raise ToolError(one_line(f"{self.name}: {name}: {type(error).__name__}: {error}")) from error
        return ready

    def _annotations(self, function: Callable) -> dict[str, tuple[Any, bool]]:
        """The type of each argument, and whether a call must give it."""
        try:
            types = typing.get_type_hints(function, include_extras=True)
        except Exception as error:  # an annotation may be any expression
            raise ToolError(f"{self.name}: a type cannot be read: {one_line(str(error))}") from None
        found = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise ToolError(f"{self.name}: {parameter} cannot be declared: give every argument a name of its own")
            if name not in types and name in ("self", "cls"):
                raise ToolError(f"{self.name}: a method needs its object: tool(object.{function.__name__})")
            if name not in types:
                raise ToolError(f"{self.name}: the argument {name!r} has no type: annotate it")
            found[name] = types[name], parameter.default is parameter.empty
        return found

    def _schema(self, function: Callable) -> dict:
        """The JSON Schema of the arguments as pydantic gives it, without its titles."""
        from pydantic import TypeAdapter

        for name, (annotation, _) in self.annotations.items():
            try:
                TypeAdapter(annotation).json_schema()
            except Exception as error:  # of pydantic's several kinds, and of its core's, say for a pattern
                reason = " ".join(str(error).split("Set `arbitrary")[0].split("For further")[0].split()).rstrip(". ")
                raise ToolError(f"{self.name}: the argument {name!r} has a type without a schema: {reason}") from None
        schema = TypeAdapter(function).json_schema()
        return {"type": "object", "properties": {}, **_without_titles(schema)}


def declarations(tools: Iterable[dict | Callable]) -> list[dict]:
    """Plain tools of a list of tools and decorated functions. Raises ToolError for other functions."""
    found = []
    for item in tools:
        made = tool_of(item) if callable(item) else None
        if callable(item) and made is None:
            raise ToolError(f"{getattr(item, '__name__', item)!s} is not decorated: put @tool above it")
        found.append(made.declaration if made else item)
    return found


def _without_titles(schema):
    """A schema without the titles that pydantic makes of names; an argument may be called title."""
    if isinstance(schema, list):
        return [_without_titles(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    named = ("properties", "$defs")
    return {
        key: {name: _without_titles(part) for name, part in value.items()} if key in named else _without_titles(value)
        for key, value in schema.items()
        if key != "title" and key not in ("default", "enum", "const", "examples")
    } | {key: schema[key] for key in ("default", "enum", "const") if key in schema}
