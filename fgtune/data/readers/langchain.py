"""LangChain's messages as its own functions save them: `type` and `data`, or `lc` and `kwargs`."""

from __future__ import annotations

from typing import Any

from .chat import from_chat
from .files import DataError
from .parts import Note

ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "function"}
UNUSED = (
    "id",
    "example",
    "artifact",
    "status",
    "response_metadata",
    "usage_metadata",
    "additional_kwargs",
    "type",
    "lc",
)


def is_langchain(item: dict) -> bool:
    """Whether the messages are LangChain's own objects."""
    return any(_role(message) for message in item["messages"])


def from_langchain(item: dict, tools: list[dict], note: Note) -> dict:
    """The row `{"tools", "messages"}` of an object whose messages are LangChain's. Raises DataError."""
    messages = []
    for number, message in enumerate(item["messages"], 1):
        role = _role(message)
        if role is None:
            raise DataError(f"message {number}: the type must be one of {', '.join(ROLES)}")
        body = message.get("data") or message.get("kwargs") or message
        if not isinstance(body, dict):
            raise DataError(f"message {number}: the data must be an object")
        if body.get("invalid_tool_calls"):
            raise DataError(f"message {number}: a call that LangChain could not read; correct it or leave the row out")
        extra = body.get("additional_kwargs")
        extra = extra if isinstance(extra, dict) else {}
        new = {key: value for key, value in body.items() if key not in (*UNUSED, "invalid_tool_calls")}
        if not new.get("tool_calls"):  # older versions keep the calls as the API gave them
            new |= {key: extra[key] for key in ("tool_calls", "function_call") if extra.get(key)}
        messages.append({**new, "role": role})
    return from_chat({**item, "messages": messages}, tools, note)


def _role(message: Any) -> str | None:
    """The role of a LangChain message; None for anything else."""
    if not isinstance(message, dict) or "role" in message:
        return None
    if "lc" in message:
        path = message.get("id")
        kind = str(path[-1]) if isinstance(path, list) and path else ""
        return ROLES.get(kind.removesuffix("Chunk").removesuffix("Message").lower())
    return ROLES.get(message["type"]) if isinstance(message.get("type"), str) else None
