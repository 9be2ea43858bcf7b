"""Chat rows in OpenAI's form, as OpenAI, TRL, mlx-lm and Google's Mobile Actions write them."""

from __future__ import annotations

from typing import Any

from ...format.template import TRIGGER
from .files import DataError
from .parts import Note, call_of, calls_of, kind_of, own_tools, text_of, unused_keys

ROLES = {
    "system": "developer", "developer": "developer", "user": "user", "assistant": "assistant", "model": "assistant",
    "tool": "tool", "function": "tool",
}  # fmt: skip
ROW_KEYS = {"id", "messages", "tools", "functions", "system", "metadata"}
# a message's "refusal" is its text where there is no other; the rest that these tools write is not used
MESSAGE_KEYS = {"role", "content", "tool_calls", "function_call", "name", "tool_call_id", "id", "weight", "refusal"}
MEDIA_KEYS = ("audio", "image", "images", "video", "videos", "files")


def from_chat(item: dict, tools: list[dict], note: Note) -> dict:
    """The row `{"tools", "messages"}` of an object with "messages" in OpenAI's form. Raises DataError.

    The older "functions" and "function_call" are read as tools and calls. A turn with `"weight": 0` keeps it: it is
    not learned. Without a developer turn, the row gets the one that the base model expects.
    """
    unused_keys(item, ROW_KEYS, note)
    if not isinstance(item["messages"], list) or not item["messages"]:
        raise DataError(f'"messages" must be a list with at least one message, not {kind_of(item["messages"])}')
    messages = []
    for number, message in enumerate(item["messages"], 1):
        try:
            messages.append(_message(message, note))
        except DataError as error:
            raise DataError(f"message {number}: {error}") from None
    if isinstance(item.get("system"), str) and item["system"].strip():
        messages.insert(0, {"role": "developer", "content": item["system"]})
    if messages[0]["role"] != "developer":
        messages.insert(0, {"role": "developer", "content": TRIGGER})
    name_results(messages)
    answers = [message for message in messages if message["role"] == "assistant"]
    if answers and all(message.get("weight") == 0 for message in answers):
        raise DataError("every answer has the weight 0: nothing to learn")
    return {"tools": own_tools(item, tools), "messages": messages}


def _message(message: Any, note: Note) -> dict:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or message["role"] not in ROLES:
        raise DataError(f"the role must be one of {', '.join(ROLES)}")
    for key in MEDIA_KEYS:
        if message.get(key) not in (None, [], {}):
            raise DataError(f"{key!r} is not understood: only text can be carried")
    unused_keys(message, MESSAGE_KEYS, note)
    role = ROLES[message["role"]]
    content = message.get("content")
    if role != "tool":
        content = text_of(content)
        if content is not None and not isinstance(content, str):
            raise DataError(f"the content must be a text, not {kind_of(content)}")
    calls = calls_of(message["tool_calls"], '"tool_calls"', note) if message.get("tool_calls") else []
    if message.get("function_call"):
        if calls:
            raise DataError('"tool_calls" and "function_call" stand side by side: keep one of them')
        calls = [call_of(message["function_call"], note)]
    if calls and role != "assistant":
        raise DataError(f"a {role} message cannot make calls: use the role assistant")
    refusal = message.get("refusal")
    if refusal and isinstance(refusal, str) and not content and not calls:
        content = refusal
    elif refusal:
        note("refusal")
    new: dict[str, Any] = {"role": role}
    if content is not None:
        new["content"] = content
    if role == "tool":
        new |= {key: message[key] for key in ("name", "tool_call_id") if message.get(key) not in (None, "")}
    if calls:
        new["tool_calls"] = calls
    if message.get("weight") is not None:
        if message["weight"] not in (0, 1):
            raise DataError('"weight" must be 0 (not learned) or 1')
        if role == "assistant" and not message["weight"]:
            new["weight"] = 0
    return new


def name_results(messages: list[dict]) -> None:
    """Give tool results the name of the call that they answer, and take out the ids. Raises DataError.

    An id counts within its turn only. Results without one follow the order of the calls, and so do results whose id
    cannot be found because a call of the turn has none.
    """
    turn: list[tuple[Any, str]] = []  # id and name of the calls of the turn
    waiting: list[tuple[Any, str]] = []  # those without a result yet
    for message in messages:
        if message["role"] != "tool":
            turn = [(call.pop("id", None), call["function"]["name"]) for call in message.get("tool_calls", [])]
            waiting = list(turn)
            continue
        called = message.pop("tool_call_id", None)
        if "name" in message:
            answered = next((call for call in waiting if call[1] == message["name"]), None)
        elif isinstance(message.get("content"), list) and all(_is_named(part) for part in message["content"]):
            continue
        else:
            same = [call for call in (*waiting, *turn) if called is not None and call[0] == called]
            if called is not None and not same and turn and all(call[0] is not None for call in turn):
                raise DataError(f"a tool result has the id {called!r}, but no call of its turn has: correct it")
            answered = next(iter(same or waiting), None)
            if answered is None:
                raise DataError('a tool result that no call asked for: give it a "name"')
            message["name"] = answered[1]
        if answered in waiting:
            waiting.remove(answered)


def _is_named(part: Any) -> bool:
    return isinstance(part, dict) and set(part) == {"name", "response"}
