"""Rows of xLAM's function-calling data sets: "query", and "answers" and "tools" as JSON text or lists."""

from __future__ import annotations

from .chat import from_chat
from .files import DataError
from .parts import Note, calls_of, some


def from_xlam(item: dict, tools: list[dict], note: Note) -> dict:
    """The row `{"tools", "messages"}` of an object with "query" and "answers". Raises DataError."""
    calls = calls_of(item["answers"], '"answers"', note)
    if not calls:
        raise DataError('"answers" is empty: nothing to learn. Leave the row out, or write the answer as chat messages')
    messages = [{"role": "user", "content": some(item["query"], '"query"')}, {"role": "assistant", "tool_calls": calls}]
    rest = {key: value for key, value in item.items() if key not in ("query", "answers")}
    return from_chat({**rest, "messages": messages}, tools, note)
