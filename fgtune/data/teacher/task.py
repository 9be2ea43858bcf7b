"""One example that a teacher is to write."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...format.calls import Call

CALL, SEVERAL, NEAR, FAR = "one call", "several calls", "near miss", "far off"  # kinds of tasks
STYLES = {  # a style's name, and how a teacher is told of it
    "plain": "one short sentence",
    "terse": "as few words as possible",
    "polite": "a polite full sentence",
    "typo": "one typing error in a common word, none in a value",
    "question": "a question",
    "context": "a short remark on why it is wanted, then the request",
}


@dataclass(frozen=True)
class Task:
    """One example to be written: its `calls` (none: the request must not lead to one), the `tool` that it is about ("":
    none of them), and the `style` of the request (see `STYLES`)."""

    id: str
    kind: str
    tool: str
    style: str
    calls: tuple[Call, ...]
    seed: int


def style_of(request: str) -> str:
    """The style of a request, by what is plain to see: a typing error is not."""
    if request.rstrip().endswith("?"):
        return "question"
    if re.search(r"\b(?:please|would you|could you|kindly|thanks)\b", request.casefold()):
        return "polite"
    if len(request.split()) <= 4:
        return "terse"
    return "context" if re.search(r"[.!;,:] \w+ \w+", request) else "plain"
