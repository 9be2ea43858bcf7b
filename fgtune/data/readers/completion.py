"""Rows with "prompt" and "completion", as TRL and mlx-lm write them, each as messages or as plain text."""

from __future__ import annotations

from typing import Any

from ...format.tokens import CONTROL_TOKEN
from .chat import from_chat
from .files import DataError
from .parts import Note, kind_of


def from_completion(item: dict, tools: list[dict], note: Note) -> dict:
    """The row `{"tools", "messages"}` of an object with "prompt" and "completion". Raises DataError.

    The completion alone is learned: answers within the prompt get `"weight": 0`.
    """
    prompt, completion = _messages(item["prompt"], "prompt"), _messages(item["completion"], "completion")
    prompt = [{**m, "weight": 0} if m.get("role") in ("assistant", "model") else m for m in prompt]
    rest = {key: value for key, value in item.items() if key not in ("prompt", "completion")}
    return from_chat({**rest, "messages": prompt + completion}, tools, note)


def _messages(value: Any, key: str) -> list[dict]:
    if isinstance(value, str):
        if CONTROL_TOKEN.search(value):
            raise DataError(f'"{key}" is text in which the chat template is already applied: bring it as "messages"')
        return [{"role": "user" if key == "prompt" else "assistant", "content": value}]
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise DataError(f'"{key}" must be a list of messages or a text, not {kind_of(value)}')
    return value
