"""Lists that are one item longer or shorter, and optional arguments that are left away with their words."""

from __future__ import annotations

import copy
import random
import re
from collections import defaultdict
from itertools import pairwise
from typing import Any

from ..format.schema import key_schema
from .examples import first_calls, first_query
from .exchange import Pools
from .phrases import schema_of
from .slots import NUMERIC, SPELLED, TEXT, Reading, Slot

BETWEEN = re.compile(r"(,|、)? ?|,? (and|und|et|y|e|og|och|en) | & ")  # between the items of a list
CLAUSE = re.compile(r",? (in|at|for|on|with|to|by|from|until|before|after) (?:(\w+) )?", re.IGNORECASE)
LACKS_FROM = 2  # examples of a tool without an argument that show that it can be left away


def lists_of(example: dict, reading: Reading) -> list[list[Slot]]:
    """The lists of texts that the sentence names in their order, nothing but commas and one last word between."""
    query, groups = first_query(example), defaultdict(list)
    for slot in reading.slots:
        if slot.item and slot.kind == TEXT and slot.path[-2:-1] and not isinstance(slot.path[-2], int):
            groups[slot.path[:-1]].append(slot)
    out = []
    for path, slots in groups.items():
        held: Any = [call.arguments for call in first_calls(example)]
        for part in path:
            held = held[part]
        gaps = [query[a.end : b.start] for a, b in pairwise(slots)]
        named = all(a.end < b.start for a, b in pairwise(slots)) and all(map(BETWEEN.fullmatch, gaps))
        counted = SPELLED.search(query) or re.search(rf"(?<!\d){len(held)}(?!\d)", query)
        if len(held) == len(slots) > 1 and named and not counted and not reading.unsaid.get(path[0]):
            out.append(slots)
    return out


def resize(example: dict, reading: Reading, pools: Pools, rng: random.Random) -> dict | None:
    """The example with a list that has its first item less, or one more before it; None where no list is said."""
    lists = lists_of(example, reading)
    if not lists:
        return None
    slots, query = rng.choice(lists), first_query(example)
    first, *path = slots[0], *slots[0].path[:-1]
    schema = schema_of(example, slots[0].key[0])
    for name in path[1:]:
        schema = key_schema(schema, name)
    held = [slot.value for slot in slots]
    if rng.random() < 0.5 and len(held) - 1 >= schema.get("minItems", 0):
        text, held = query[: first.start] + query[slots[1].start :], held[1:]
    else:
        said = {str(v).casefold() for v in held}
        known = pools.texts[first.key, "item", ()]
        options = sorted(v for v in known if v.casefold() not in said and v.casefold() not in query.casefold())
        if not options or len(held) >= schema.get("maxItems", 10):
            return None
        new = rng.choice(options)
        between = "、" if "、" in query[first.end : slots[-1].start] else ", "
        text, held = query[: first.start] + new + between + query[first.start :], [new, *held]
    return _with(example, text, path, held)


def shorten(example: dict, reading: Reading, pools: Pools, rng: random.Random) -> dict | None:
    """The example without an optional argument that ends the sentence: `, in celsius`, `for 5 minutes`.

    The clause follows another said value, and a preposition (and the argument's own name at most) leads to the value.
    """
    query = first_query(example)
    for slot in reading.slots:
        if slot.item or len(slot.path) != 2 or slot.path[1] in schema_of(example, slot.key[0]).get("required", ()):
            continue
        if reading.unsaid.get(slot.call) or pools.lacking[slot.key] < LACKS_FROM:
            continue
        before = [s for s in reading.slots if s.end <= slot.start and s is not slot]
        last = max(before, key=lambda s: s.end, default=None)
        if last is None or last.call != slot.call:
            continue
        clause = CLAUSE.fullmatch(query[last.end : slot.start])
        unit = r"(?: ?[\w%°]+)?" if slot.kind == NUMERIC else ""
        ending = re.fullmatch(unit + r"([.!?]?)", query[slot.end :])
        if clause and ending and (clause[2] or slot.path[1]).casefold() == slot.path[1].casefold():
            return _with(example, query[: last.end] + ending[1], list(slot.path), None)
    return None


def _with(example: dict, text: str, path: list, value: Any) -> dict:
    """The example with another sentence, and `value` at `path` of its calls (None: without it)."""
    messages = copy.deepcopy(example["messages"])
    holder: Any = [call["function"]["arguments"] for call in messages[2]["tool_calls"]]
    for part in path[:-1]:
        holder = holder[part]
    if value is None:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    messages[1]["content"] = text
    return {**example, "messages": messages}
