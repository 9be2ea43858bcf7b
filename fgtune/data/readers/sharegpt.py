"""ShareGPT conversations: LLaMA-Factory's `function_call` and `observation` turns, and Hermes' tags in the text.

Hermes writes calls as `<tool_call>{…}</tool_call>`, results as `<tool_response>{…}</tool_response>` and the tools as
`<tools>[…]</tools>` in the system prompt. That prompt asks for Hermes' own format, so it is left out.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from .chat import from_chat
from .files import DataError
from .parts import Note, calls_of, kind_of

ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "model": "assistant", "chatgpt": "assistant", "bot": "assistant", "function_call": "call", "tool_call": "call",
    "observation": "tool", "tool": "tool", "function_response": "tool",
}  # fmt: skip
CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
RESULT = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)
TOOLS = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)


def has_tags(item: dict) -> bool:
    """Whether the text of a chat message holds Hermes' tags."""
    texts = [m["content"] for m in item["messages"] if isinstance(m, dict) and isinstance(m.get("content"), str)]
    return any(CALL.search(text) or RESULT.search(text) for text in texts)


def from_hermes(item: dict, tools: list[dict], note: Note) -> dict:
    """The row of an object with "messages" in whose texts Hermes' tags stand. Raises DataError."""
    return _from_tagged(item, item["messages"], tools, note)


def from_sharegpt(item: dict, tools: list[dict], note: Note) -> dict:
    """The row `{"tools", "messages"}` of an object with "conversations". Raises DataError."""
    messages = []
    if not isinstance(item["conversations"], list):
        raise DataError(f'"conversations" must be a list of turns, not {kind_of(item["conversations"])}')
    for number, turn in enumerate(item["conversations"], 1):
        role = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
        value = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise DataError(f'turn {number}: "from" must be one of {", ".join(ROLES)}')
        if ROLES[role] == "call":
            try:
                messages.append({"role": "assistant", "tool_calls": calls_of(value, f'"{role}"', note)})
            except DataError as error:
                raise DataError(f"turn {number}: {error}") from None
        else:
            kept = {key: turn[key] for key in ("weight", "name", "tool_call_id") if key in turn}
            messages.append({**kept, "role": ROLES[role], "content": value})
    rest = {key: value for key, value in item.items() if key != "conversations"}
    return _from_tagged(rest, messages, tools, note)


def _from_tagged(item: dict, messages: list, tools: list[dict], note: Note) -> dict:
    """A chat row of messages that may hold Hermes' tags."""
    new, declared = [], None
    for number, message in enumerate(messages, 1):
        text = message.get("content") if isinstance(message, dict) else None
        if not isinstance(text, str):
            new.append(message)
        elif message.get("role") in ("system", "developer") and (found := TOOLS.search(text)):
            declared = _loads(found.group(1), f"message {number}: <tools>")
            note("the system prompt of Hermes' format")
        elif message.get("role") in ("assistant", "model") and CALL.search(text):
            calls = [_loads(part, f"message {number}: <tool_call>") for part in CALL.findall(text)]
            new.append({**message, "content": CALL.sub("", text).strip() or None, "tool_calls": calls})
        elif message.get("role") in ("tool", "user") and RESULT.search(text):
            if RESULT.sub("", text).strip():
                raise DataError(f"message {number}: a text beside <tool_response>: put it into a message of its own")
            new += [_result(part, number) for part in RESULT.findall(text)]
        else:
            new.append(message)
    if item.get("tools") in (None, "", [], {}) and declared:
        item = {**item, "tools": declared}
    return from_chat({**item, "messages": new}, tools, note)


def _result(text: str, number: int) -> dict:
    try:
        value = _loads(text, "")
    except DataError:
        return {"role": "tool", "content": text.strip()}
    if (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and set(value) <= {"name", "content", "tool_call_id"}
    ):
        return {"role": "tool", "name": value["name"], "content": value.get("content")}
    return {"role": "tool", "content": value}


def _loads(text: str, what: str) -> Any:
    """The value of JSON text, or of Python text with constants only, which Hermes' rows hold."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            raise DataError(f"{what} holds neither JSON nor Python text") from None
