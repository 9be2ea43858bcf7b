"""Examples that contradict each other."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ..format.findings import Finding
from .examples import first_calls, first_query, first_turn


def lint_conflicts(examples: list[dict], source: str = "examples") -> list[Finding]:
    """A warning for each example whose context is that of an earlier one but whose calls are others.

    The context is everything before the first learned answer, with the tools: a developer turn with another date may
    well ask for another call.
    """
    seen: dict[tuple, tuple[str, tuple]] = {}
    offered: dict[int, str] = {}  # most rows share one list of tools
    findings = []
    for example in examples:
        turn = first_turn(example)
        if turn is None:
            continue
        tools = example["tools"]
        if id(tools) not in offered:
            offered[id(tools)] = _digest(tools)
        context = (_digest(example["messages"][:turn]), offered[id(tools)])
        first, calls = seen.setdefault(context, (example["id"], first_calls(example)))
        if calls != first_calls(example):
            query = first_query(example)
            query = query if len(query) < 60 else query[:59] + "…"
            text = f'"{query}" is answered by other calls in {first}. Correct one of the two rows.'
            findings.append(Finding("warning", "conflict", text, source, example["id"]))
    return findings


def _digest(value: Any) -> str:
    """A hash of a JSON value in which letters are alike whether capital or small."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).casefold().encode()).hexdigest()
