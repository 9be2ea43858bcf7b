"""Rows of Google's FunctionGemma tutorial and of its Tuning Lab: one query, one tool, its arguments as JSON text."""

from __future__ import annotations

import json
import re

from .chat import from_chat
from .files import DataError
from .parts import Note, call_of, some

COLUMNS = ("user_content", "tool_name", "tool_arguments")
# headings of the Tuning Lab's table, in lower case and with _ between words
HEADINGS = (
    ("user_content", "user_prompt", "user_query", "prompt", "query"),
    ("tool_name", "tool", "function_name"),
    ("tool_arguments", "tool_args", "tool_args_json", "tool_arguments_json", "arguments", "args"),
)


def from_google(item: dict, tools: list[dict], note: Note) -> dict:
    """The row `{"tools", "messages"}` of an object with the tutorial's three keys. Raises DataError."""
    query = some(item["user_content"], '"user_content"')
    if "tool_arguments" not in item:
        raise DataError('"tool_arguments" is missing: write {} for a call without arguments')
    call = call_of({"name": item.get("tool_name"), "arguments": item["tool_arguments"]}, note)
    messages = [{"role": "user", "content": query}, {"role": "assistant", "tool_calls": [call]}]
    rest = {key: value for key, value in item.items() if key not in COLUMNS}
    return from_chat({**rest, "messages": messages}, tools, note)


def from_table(rows: list[list[str]]) -> list[dict]:
    """The objects of a CSV table with the tutorial's three columns, with or without a heading. Raises DataError."""
    if not rows:
        return []
    heads = [re.sub(r"\W+", "_", cell.strip().lower()).strip("_") for cell in rows[0]]
    places = [next((heads.index(name) for name in names if name in heads), None) for names in HEADINGS]
    if None not in places:
        names = {places[i]: COLUMNS[i] for i in range(3)}
        columns, body = [names.get(i, head or f"column {i + 1}") for i, head in enumerate(heads)], rows[1:]
    elif len(rows[0]) == 3 and _is_object(rows[0][2]):
        columns, body = list(COLUMNS), rows
    else:
        raise DataError(f"the columns must be {', '.join(COLUMNS)}, not {', '.join(rows[0])}")
    for number, row in enumerate(body, 1):
        if len(row) != len(columns):
            raise DataError(f"{len(row)} cells instead of {len(columns)}: quote cells that hold commas", "",
                            f"example {number}")  # fmt: skip
    return [dict(zip(columns, row)) for row in body]


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
