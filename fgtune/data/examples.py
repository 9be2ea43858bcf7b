"""What an example asks and answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from ..format.calls import Call

NO_CALL, SEVERAL = "no call", "several tools"  # labels of examples that are about no single tool


def is_learned(message: dict) -> bool:
    """Whether a turn is learned: every assistant turn but those with `"weight": 0`."""
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def first_turn(example: dict) -> int | None:
    """Index of the first message that is learned; None where there is none."""
    return next((i for i, message in enumerate(example["messages"]) if is_learned(message)), None)


def first_query(example: dict) -> str:
    """The first user message; where answers before the first learned one are not learned, the last before that."""
    turn = first_turn(example)
    before = example["messages"][:turn]
    later = any(message["role"] == "assistant" for message in before)
    queries = [m for m in (before[::-1] if later else example["messages"]) if m["role"] == "user"]
    return str(queries[0].get("content", "")) if queries else ""


def first_calls(example: dict) -> tuple[Call, ...]:
    """The calls of the first learned turn; empty when it answers in text."""
    turn = first_turn(example)
    return () if turn is None else _calls(example["messages"][turn])


def all_calls(example: dict) -> tuple[Call, ...]:
    """The calls of all learned turns."""
    return tuple(call for message in example["messages"] if is_learned(message) for call in _calls(message))


def _calls(message: dict) -> tuple[Call, ...]:
    return tuple(Call(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls") or [])


def calls_per_tool(examples: Iterable[dict], tools: Iterable[dict] = ()) -> dict[str, int]:
    """How often each tool is called in learned turns, `tools` first and with 0 where they are not called."""
    counts = Counter({tool["name"]: 0 for tool in tools})
    counts.update(call.name for example in examples for call in all_calls(example))
    return dict(counts)


def written(examples: list[dict]) -> list[dict]:
    """Those that somebody wrote: without the copies (`a+1`) and the joined requests (`a&b`) that `augment` makes of
    examples that are there."""
    ids, kept = {example["id"] for example in examples}, []
    for example in examples:
        origins = {origin(part) for part in example["id"].split("&")}
        if example["id"] in origins or not origins <= ids:
            kept.append(example)
    return kept


def origin(name: str) -> str:
    """The id of the example that `augment` made the one of this id of: without `+1`, `+2`, …"""
    return re.sub(r"\+\d+$", "", name)


def label(example: dict) -> str:
    """What an example is about, for stratifying: its tool, `several tools`, or `no call`."""
    names = {call.name for call in first_calls(example)}
    return NO_CALL if not names else names.pop() if len(names) == 1 else SEVERAL
