"""Chat rows as TRL, mlx-lm and Google's Mobile Actions write them."""

from __future__ import annotations

import json

from ...format.template import TRIGGER
from .files import DataError


def from_chat(item: dict, tools: list[dict], where: str) -> dict:
    """A row as TRL, mlx-lm and Google's Mobile Actions write it."""
    unknown = set(item) - {"id", "messages", "tools", "metadata"}
    if unknown:
        raise DataError(f"{where}: {sorted(unknown)[0]!r} is not understood (known: id, tools, messages, metadata)")
    own = item.get("tools")
    if isinstance(own, str):  # TRL keeps tools as a JSON string
        own = json.loads(own)
    own = [t.get("function", t) if isinstance(t, dict) else t for t in own] if own else tools
    messages, roles = [], {"system": "developer", "developer": "developer", "user": "user", "model": "assistant",
                           "assistant": "assistant", "tool": "tool"}  # fmt: skip
    for j, message in enumerate(item["messages"]):
        spot = f"{where}, message {j + 1}"
        if not isinstance(message, dict) or message.get("role") not in roles:
            raise DataError(f"{spot}: the role must be one of {', '.join(roles)}")
        unknown = {k for k, v in message.items() if v is not None} - {
            "role", "content", "tool_calls", "name", "tool_call_id", "refusal"}  # fmt: skip
        if unknown:
            raise DataError(f"{spot}: {sorted(unknown)[0]!r} is not understood")
        new = {"role": roles[message["role"]]}
        for key in ("content", "name"):
            if message.get(key) is not None:
                new[key] = message[key]
        if message.get("tool_calls"):
            new["tool_calls"] = []
            for call in message["tool_calls"]:
                function = call.get("function", call)
                arguments = function.get("arguments") or {}
                if isinstance(arguments, str):
                    try:
                        arguments = json.loads(arguments)
                    except json.JSONDecodeError:
                        raise DataError(f"{spot}: the arguments of {function.get('name')} are no JSON") from None
                # Mobile Actions writes every argument of every tool, null where it is not used
                arguments = {k: v for k, v in arguments.items() if v is not None}
                new["tool_calls"].append(
                    {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
                )
        messages.append(new)
    if not messages or messages[0]["role"] != "developer":
        messages.insert(0, {"role": "developer", "content": TRIGGER})
    _name_tool_results(messages, item["messages"])
    return {"tools": own, "messages": messages}


def _name_tool_results(messages: list[dict], original: list[dict]) -> None:
    """Give tool results the name of the call that they answer, by its id or by their order."""
    names = {c.get("id"): c.get("function", c).get("name") for m in original for c in m.get("tool_calls") or []}
    by_id = {id(n): o for n, o in zip(messages[len(messages) - len(original) :], original)}
    waiting: list[str] = []
    for message in messages:
        if message.get("tool_calls"):
            waiting = [c["function"]["name"] for c in message["tool_calls"]]
        elif message["role"] == "tool" and "name" not in message and not isinstance(message.get("content"), list):
            called = by_id.get(id(message), {}).get("tool_call_id")
            name = names.get(called) or (waiting[0] if waiting else None)
            if name is None:
                raise DataError('a tool result that no call asked for: give it a "name"')
            message["name"] = name
        if message["role"] == "tool" and message.get("name") in waiting:
            waiting.remove(message["name"])
