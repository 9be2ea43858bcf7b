"""Requests of the Berkeley Function-Calling Leaderboard: `bfcl-eval` from PyPI, Apache 2.0, data files of its wheel.

Kept are single turns whose gold calls can be read off the request: texts that stand in it, numbers that it says, closed
sets. Of the accepted values the first counts, or none where the argument may be left out and is not said.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from fgtune.format.lint import lint_examples
from fgtune.format.template import TRIGGER
from fgtune.format.tools import repair_tools

SETS = ("simple_python", "multiple", "parallel", "parallel_multiple", "live_simple", "live_multiple", "live_parallel",
        "live_parallel_multiple")  # fmt: skip
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
LONGEST = 330  # characters of a request


@dataclass(frozen=True)
class Item:
    """One request with its tools and gold calls."""

    id: str
    text: str
    tools: tuple[dict, ...]
    calls: tuple[tuple[str, dict], ...]


def read(wheel: Path, number: int = 0) -> list[Item]:
    """The usable requests of the wheel; `number` limits them (0: all)."""
    before = list(sys.path)
    from benchmarks import bfcl

    sys.path[:] = before  # it sets the first one for when it is run as a script
    items = []
    with zipfile.ZipFile(wheel) as archive:
        for name in SETS:
            gold = {
                row["id"]: row["ground_truth"]
                for row in bfcl.read_lines(archive, f"possible_answer/BFCL_v4_{name}.json")
            }
            for row in bfcl.read_lines(archive, f"BFCL_v4_{name}.json"):
                item = _item(row, gold.get(row["id"]), bfcl)
                if item:
                    items.append(item)
                if number and len(items) >= number:
                    return items
    return items


def _item(row: dict, gold: list | None, bfcl) -> Item | None:
    turns = row["question"][0]
    if not gold or len(turns) != 1 or turns[0]["role"] != "user" or len(turns[0]["content"]) > LONGEST:
        return None
    text = " ".join(turns[0]["content"].split())
    if re.search("API|query:|User:", text):
        return None
    tools, findings = repair_tools([bfcl.translate(tool) for tool in row["function"]])
    if any(finding.level == "error" for finding in findings):
        return None
    by_name = {tool["name"]: tool for tool in tools}
    calls = []
    for part in gold:
        for name, accepted in part.items():
            schema = by_name.get(name, {}).get("parameters", {})
            arguments = _arguments(text, accepted, schema, bfcl)
            if arguments is None or not set(schema.get("required", [])) <= arguments.keys():
                return None
            calls.append((name, arguments))
    used = [tool for tool in tools if tool["name"] in {name for name, _ in calls}]
    if len(json.dumps(used)) > 1500:
        return None
    row = chat_row(row["id"], text, tuple(calls), tools)
    if any(finding.level == "error" for finding in lint_examples([row], tools)):
        return None
    return Item(row["id"], text, tuple(tools), tuple(calls))


def chat_row(name: str, text: str, calls: tuple, tools: list[dict], answer: str = "") -> dict:
    """A chat row `{"id", "tools", "messages"}`."""
    said: dict = {"role": "assistant"}
    if calls:
        said["tool_calls"] = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
    else:
        said["content"] = answer
    messages = [{"role": "developer", "content": TRIGGER}, {"role": "user", "content": text}, said]
    return {"id": name, "tools": tools, "messages": messages}


def _arguments(text: str, accepted: dict, schema: dict, bfcl) -> dict | None:
    """The arguments that are said; None when one is needed that is not."""
    out = {}
    for key, values in accepted.items():
        part = schema.get("properties", {}).get(key)
        if part is None:
            return None
        given = [bfcl.plain(v) for v in values if v not in ("", None)] if isinstance(values, list) else []
        needed = key in schema.get("required", [])
        said = [v for v in given if _said(text, v, part) and (needed or not isinstance(v, bool))]
        if said:
            out[key] = said[0]
        elif needed or not (isinstance(values, list) and "" in values):
            return None
    return out


def _said(text: str, value, schema: dict) -> bool:
    low = text.casefold()
    if isinstance(value, bool):
        return True
    if isinstance(value, str):
        if "enum" in schema:
            stems = [word[:5] for word in re.findall(r"[a-z]+", value.casefold()) if len(word) > 1]
            return value in schema["enum"] and bool(stems) and any(re.search(rf"\b{stem}", low) for stem in stems)
        return value in text
    if isinstance(value, (int, float)):
        plain = re.sub(r"(?<=\d),(?=\d{3})", "", low)
        spelled = isinstance(value, int) and 0 <= value <= 12 and re.search(rf"\b{NUMBERS[value]}\b", low)
        number = f"{value:g}" if abs(value) < 1e6 else str(value)
        return bool(spelled or re.search(rf"(?<![\d.]){re.escape(number)}(?![\d]|\.\d)", plain))
    if isinstance(value, list):
        return bool(value) and all(_said(text, item, schema.get("items") or {}) for item in value)
    if isinstance(value, dict):
        parts = schema.get("properties", {})
        return bool(value) and all(_said(text, item, parts.get(key, {})) for key, item in value.items())
    return False
