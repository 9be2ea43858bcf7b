"""Chat rows with Anthropic's content blocks: `tool_use` in the assistant's turns, `tool_result` in the user's."""

from __future__ import annotations

from typing import Any

from .chat import from_chat
from .files import DataError
from .parts import Note, text_of

THOUGHTS = ("thinking", "redacted_thinking")


def has_blocks(item: dict) -> bool:
    """Whether a message holds a content block that only Anthropic's rows have."""
    blocks = [part for m in item["messages"] if isinstance(m, dict) and isinstance(m.get("content"), list)
              for part in m["content"] if isinstance(part, dict)]  # fmt: skip
    return any(block.get("type") in ("tool_use", "tool_result") for block in blocks)


def from_anthropic(item: dict, tools: list[dict], note: Note) -> dict:
    """The row `{"tools", "messages"}` of an object whose messages hold content blocks. Raises DataError."""
    messages: list[dict] = []
    for number, message in enumerate(item["messages"], 1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), list):
            messages.append(message)
            continue
        try:
            messages += _split(message, note)
        except DataError as error:
            raise DataError(f"message {number}: {error}") from None
    system = text_of(item.get("system"))
    return from_chat({**item, "messages": messages, "system": system}, tools, note)


def _split(message: dict, note: Note) -> list[dict]:
    """One message as OpenAI writes it: the results first, each in a message of its own, then text and calls."""
    texts, calls, results = [], [], []
    for block in message["content"]:
        kind = block.get("type") if isinstance(block, dict) else "text"
        if kind == "tool_use":
            call = {key: block.get(key) for key in ("id", "name", "input")}
            calls.append(call)
        elif kind == "tool_result":
            if texts:
                raise DataError("a tool result after a text in one message: put the text after it")
            if block.get("is_error"):
                note("is_error")
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": _result(block)})
        elif kind in THOUGHTS:
            note(kind)
        else:
            texts.append(block)
    rest = {**message, "content": text_of(texts)}
    if calls:
        rest["tool_calls"] = calls
    return [*results, rest] if texts or calls or not results else results


def _result(block: dict) -> Any:
    content = block.get("content")
    return text_of(content) or "" if isinstance(content, list) else content if content is not None else ""
