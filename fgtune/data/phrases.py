"""Words that stand for a value: two sentences of a tool that differ in these words only, and in this value."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from ..format.calls import Call
from ..format.schema import key_schema
from .examples import first_calls, first_query
from .spans import find_spans

LONGEST = 3  # words of a phrase
SENTENCE = 25  # words of a sentence that is compared
TOKEN = re.compile(r"[\w'%]+|[^\w\s]")


def walk(value: Any, schema: dict, path: tuple = ()) -> Iterator[tuple[tuple, Any, dict]]:
    """(path, value, schema) of every text, number and boolean."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from walk(inner, key_schema(schema, name), (*path, name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from walk(inner, schema.get("items") or {}, (*path, i))
    elif value is not None:
        yield path, value, schema


def schema_of(example: dict, tool: str) -> dict:
    """The parameters of a tool of the example; empty where it has none."""
    return next((t.get("parameters") or {} for t in example["tools"] if t["name"] == tool), {})


def learn_phrases(examples: list[dict]) -> dict[tuple, dict[str, tuple[Any, frozenset]]]:
    """{(tool, path): {phrase: (value, phrases that may take its place)}} of arguments said in other words.

    A phrase counts where exchanging it exchanges the value, in one pair of sentences at least, and where no sentence
    of the tool has it with another value.
    """
    asked: dict[str, list[tuple[str, str, Call]]] = defaultdict(list)  # by tool: query, its small letters, call
    frames: dict[tuple, dict] = defaultdict(dict)
    for example in examples:
        calls, query = first_calls(example), first_query(example)
        if len(calls) != 1:
            continue
        name, text = calls[0].name, query.casefold()
        asked[name].append((query, text, calls[0]))
        words = [m.span() for m in TOKEN.finditer(query)]
        if len(text) != len(query) or len(words) > SENTENCE:
            continue
        for i in range(len(words)):
            for j in range(i + 1, min(i + LONGEST, len(words)) + 1):
                start, end = words[i][0], words[j - 1][1]
                frame = (name, text[:start], text[end:].rstrip(" .!?。？！"))
                if j - i < len(words):  # a whole sentence is no phrase
                    frames[frame].setdefault(text[start:end], calls[0])
    found: dict[tuple, dict] = defaultdict(lambda: defaultdict(set))
    for (name, *_), said in frames.items():
        if 1 < len(said) <= 40:
            for phrase, other, path in _differing(said):
                if not _shares_an_end(phrase, other):
                    found[name, path][phrase].add(other)
    out = {}
    for key, others in found.items():
        values = _pure(key[1], list(others), asked[key[0]])
        kept = {p: (v, frozenset(o for o in others[p] if o in values)) for p, v in values.items()}
        if len(kept) > 1:
            out[key] = kept
    return out


def _differing(said: dict[str, Call]) -> Iterator[tuple[str, str, tuple]]:
    leaves = {p: {path: v for path, v, _ in walk(call.arguments, {})} for p, call in said.items()}
    for phrase, mine in leaves.items():
        for other, theirs in leaves.items():
            if mine.keys() == theirs.keys():
                paths = [path for path in mine if mine[path] != theirs[path]]
                if len(paths) == 1 and isinstance(mine[paths[0]], str | bool):
                    yield phrase, other, paths[0]


def _shares_an_end(one: str, other: str) -> bool:
    mine, theirs = TOKEN.findall(one), TOKEN.findall(other)
    return mine[0] == theirs[0] or mine[-1] == theirs[-1]


def _pure(path: tuple, phrases: list[str], asked: list[tuple[str, str, Call]]) -> dict[str, Any]:
    """The phrases that come with one value only, wherever a sentence of the tool has them."""
    values: dict[str, set] = {phrase: set() for phrase in phrases}
    for query, text, call in asked:
        held = [phrase for phrase in phrases if phrase in text and find_spans(phrase, query, exact=False)]
        if held:
            leaf = json.dumps({p: v for p, v, _ in walk(call.arguments, {})}.get(path))
            for phrase in held:
                values[phrase].add(leaf)
    return {phrase: json.loads(*found) for phrase, found in values.items() if len(found) == 1 and found != {"null"}}
