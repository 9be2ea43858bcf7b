"""More training examples from the user's own: the same sentences about other things, so that copying is learned.

A small model that sees each example a few times remembers its names instead of reading them. A copy of an example
exchanges every argument that stands word for word in the query, in the query and in the call alike, for what another
example has for the same argument after the same word, or for a name that nobody has ever seen.
"""

from __future__ import annotations

import copy
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .data import first_calls, first_query, plain_tools

INVENTED = 1 / 3  # share of the exchanged values whose capitalised words are made up
SHORTEST = 3  # letters of a value that is exchanged


def augment(examples: list[dict], copies: int, seed: int) -> list[dict]:
    """Up to `copies` new examples for each one that can be varied, in order; ids end in `+1`, `+2`, …

    Varied are single-turn examples. Values that a schema enumerates, and values that the query does not contain exactly
    once, stay as they are.
    """
    rng = random.Random(seed)
    places = [_places(example) for example in examples]
    pool: dict[tuple, set] = defaultdict(set)
    for found in places:
        for place in found:
            pool[place.key].add(place.value)
    choices = {key: sorted(values) for key, values in pool.items()}
    halves = sorted({word for values in pool.values() for value in values for word in _names(value)})
    out = []
    for example, found in zip(examples, places):
        queries = {first_query(example)}
        for number in range(1, copies + 1):
            fresh = _vary(example, found, choices, halves, rng)
            if first_query(fresh) not in queries:
                queries.add(first_query(fresh))
                out.append({**fresh, "id": f"{example['id']}+{number}"})
    return out


@dataclass(frozen=True)
class _Place:
    """A value that can be exchanged: where it stands in the calls, and what may take its place (the same `key`)."""

    path: tuple
    key: tuple
    value: str | int


def _leaves(value: Any, schema: dict, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """(path, value) of every string and whole number that the schema does not enumerate."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, schema.get("properties", {}).get(name, {}), (*path, name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _leaves(inner, schema.get("items", {}), (*path, i))
    elif isinstance(value, str | int) and not isinstance(value, bool) and "enum" not in schema:
        yield path, value


def _places(example: dict) -> list[_Place]:
    if [m["role"] for m in example["messages"]] != ["developer", "user", "assistant"]:
        return []
    query, found = first_query(example), []
    schemas = {tool["name"]: tool.get("parameters", {}) for tool in plain_tools(example["tools"])}
    for i, call in enumerate(first_calls(example)):
        for path, value in _leaves(call.arguments, schemas.get(call.name, {})):
            if isinstance(value, str) and len(re.findall(r"[^\W\d_]", value)) < SHORTEST:
                continue
            spots = [m.start() for m in re.finditer(_whole(value), query)]
            if len(spots) == 1:
                before = re.findall(r"[\w']+|[^\w\s]", query[: spots[0]].casefold())
                names = tuple(part for part in path if isinstance(part, str))
                key = (call.name, names, before[-1] if before else "", type(value).__name__)
                found.append(_Place((i, *path), key, value))
    texts = [str(place.value) for place in found]
    return [place for place in found if sum(str(place.value) in text for text in texts) == 1]  # none inside another


def _whole(value: str | int) -> str:
    """A pattern for `value` where it stands as words of its own."""
    return rf"(?<![\w.,:]){re.escape(str(value))}(?![\w%]|[.,:]\d)"


def _vary(example: dict, places: list[_Place], choices: dict, halves: list[str], rng: random.Random) -> dict:
    """A copy of the example with every exchangeable value exchanged."""
    messages = copy.deepcopy(example["messages"])
    calls = [call["function"]["arguments"] for call in messages[2].get("tool_calls") or []]
    table = {}
    for place in places:
        new = rng.choice(choices[place.key])
        if rng.random() < INVENTED:
            for word in _names(new):
                new = new.replace(word, _invent(halves, rng), 1)
        table[str(place.value)] = str(new)
        *way, last = place.path
        holder: Any = calls
        for part in way:
            holder = holder[part]
        holder[last] = new
    if table:
        pattern = "|".join(map(_whole, sorted(table, key=len, reverse=True)))
        messages[1]["content"] = re.sub(pattern, lambda m: table[m.group()], messages[1]["content"])
    return {**example, "messages": messages}


def _names(value: str | int) -> list[str]:
    """The longer words of a name: of a value that has capitalised words only."""
    text = str(value)
    return [word for word in re.findall(r"[^\W\d_]{4,}", text) if text.istitle() and not re.search(r"\d", text)]


def _invent(halves: list[str], rng: random.Random) -> str:
    """A name made of the first half of one name and the second half of another."""
    first, second = rng.choice(halves), rng.choice(halves)
    return first[: (len(first) + 1) // 2] + second[(len(second) + 1) // 2 :].lower()
