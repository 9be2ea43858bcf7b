"""What an example asks and answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..format.calls import Call


def first_query(example: dict) -> str:
    """The first user message."""
    return next((str(m.get("content", "")) for m in example["messages"] if m["role"] == "user"), "")


def first_calls(example: dict) -> tuple[Call, ...]:
    """The calls of the first assistant turn; empty when it answers in text."""
    turn = next((m for m in example["messages"] if m["role"] == "assistant"), {})
    return tuple(Call(c["function"]["name"], c["function"]["arguments"]) for c in turn.get("tool_calls") or [])


def leaves(value: Any, schema: dict, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """(path, value) of every string and whole number that the schema does not enumerate."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, schema.get("properties", {}).get(name, {}), (*path, name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from leaves(inner, schema.get("items", {}), (*path, i))
    elif isinstance(value, str | int) and not isinstance(value, bool) and "enum" not in schema:
        yield path, value


def label(example: dict) -> str:
    """What an example is about, for stratifying: its tool, `several`, or `no call`."""
    names = {call.name for call in first_calls(example)}
    return "no call" if not names else names.pop() if len(names) == 1 else "several tools"
