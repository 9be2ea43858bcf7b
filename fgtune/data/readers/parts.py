"""What all readers share: calls, arguments, texts and tools of a row, and the keys that are not used."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable
from typing import Any

from ...format.findings import FormatError
from ...format.tools import tools_of
from ...format.values import WHITESPACE
from .files import DataError
from .tools import plain_tools

Note = Callable[[str], None]  # remembers that the rows of a file have a key that is not used

ARGUMENT_KEYS = ("arguments", "args", "parameters", "input")
TEXT_PARTS = ("text", "input_text", "output_text")


def kind_of(value: Any) -> str:
    """The JSON type of a value, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def parse_json(value: Any, what: str) -> Any:
    """The value of a JSON text, also of one that was encoded twice; other values as they are. Raises DataError."""
    for _ in range(2):
        if not isinstance(value, str):
            break
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            hint = "Python text: write it with json.dumps" if "'" in value else "write it as JSON"
            raise DataError(f"{what} cannot be read as JSON; {hint}") from None
    return value


def call_of(call: Any, note: Note) -> dict:
    """A call as `{"type", "function": {"name", "arguments"}}`, with its "id" where it has one. Raises DataError.

    Arguments may stand under "arguments", "args", "parameters" or "input", as an object or as JSON text. Null
    arguments are left out: Mobile Actions writes every argument of every tool, null where it is not used.
    """
    if not isinstance(call, dict):
        raise DataError(f'a call must be an object with "name" and "arguments", not {kind_of(call)}')
    function = call["function"] if isinstance(call.get("function"), dict) else call
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise DataError('a call without a "name"')
    found = [(key, function[key]) for key in ARGUMENT_KEYS if function.get(key) is not None]
    filled = [(key, value) for key, value in found if value not in ({}, "", [])]
    if len(filled) > 1:
        keys = " and ".join(f'"{key}"' for key, _ in filled)
        raise DataError(f"the call of {name} has its arguments under {keys}: keep one of them")
    unknown = sorted(set(function) - {"name", "id", "type", "index", "strict", "description", *ARGUMENT_KEYS})
    if unknown and not found:
        raise DataError(f'the call of {name} has "{unknown[0]}" but no "arguments": rename it')
    for key in unknown:
        note(key)
    value = (filled or found or [("", {})])[0][1]
    new = {"type": "function", "function": {"name": name, "arguments": _arguments(value, name)}}
    return {"id": call["id"], **new} if call.get("id") not in (None, "") else new


def _arguments(value: Any, name: str) -> dict:
    if isinstance(value, str) and not value.strip():
        value = {}
    value = parse_json(value, f"the arguments of {name}")
    if not isinstance(value, dict):
        raise DataError(f'the arguments of {name} are {kind_of(value)}: write an object such as {{"key": "value"}}')
    return {key: inner for key, inner in value.items() if inner is not None}


def calls_of(value: Any, what: str, note: Note) -> list[dict]:
    """The calls of a list, of one call, or of either as JSON text."""
    value = parse_json(value, what) if not isinstance(value, str) or value.strip() else []
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list):
        raise DataError(f"{what} must be a list of calls, not {kind_of(value)}")
    return [call_of(call, note) for call in value]


def text_of(content: Any) -> Any:
    """The text of a content that is a list of text parts; another content as it is. Raises DataError for other parts.

    White space around each part is left out, as the chat template does it.
    """
    if isinstance(content, dict) and content.get("type") in TEXT_PARTS:
        content = [content]
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if isinstance(part, dict) and part.get("type", "text") in TEXT_PARTS and isinstance(part.get("text"), str):
            part = part["text"]
        if not isinstance(part, str):
            kind = part.get("type") if isinstance(part, dict) else kind_of(part)
            raise DataError(f"the content holds {kind!r}: only text can be carried")
        texts.append(part.strip(WHITESPACE))
    return "".join(texts) if texts else None


def own_tools(item: dict, tools: list[dict]) -> list[dict]:
    """The plain tools of a row ("tools", or "functions" of the older API), else `tools`; JSON text is parsed."""
    for key in ("tools", "functions"):
        if item.get(key) not in (None, "", [], {}):
            value = parse_json(item[key], f'"{key}"')
            if value:
                value = [parse_json(tool, f'"{key}"') for tool in value] if isinstance(value, list) else value
                try:
                    return plain_tools(tools_of(value))
                except FormatError as error:
                    raise DataError(f'"{key}": {error}') from None
    return tools


def unused_keys(item: dict, known: Iterable[str], note: Note) -> None:
    """Notes the keys of `item` beyond `known`. Raises DataError for one that looks like a misspelt known key."""
    known = set(known)
    for key, value in item.items():
        if key in known:
            continue
        close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.75)
        if close and isinstance(value, list | dict):
            raise DataError(f"{key!r} is not understood. Did you mean {close[0]!r}?")
        if value is not None:
            note(str(key))


def some(value: Any, what: str) -> str:
    """A text that is not empty. Raises DataError."""
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{what} is empty" if value in (None, "") or isinstance(value, str) else f"{what} is no text")
    return value
