"""Which examples belong together: paraphrases of the same calls, and queries that are nearly the same."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from ..format.calls import Call
from ..format.schema import key_schema
from .examples import first_calls, first_query

CELLS = 1 << 22  # of a block of the table of likenesses: 16 MB


def group_examples(examples: list[dict], similarity: float) -> list[list[int]]:
    """Indices of examples that belong together: the same calls, or queries at least `similarity` (0 to 100) alike.

    Calls count as the same only where they hold an open value, one that the schema does not enumerate: all paraphrases
    of a call without arguments would be one group, and nothing of it could be held out.
    """
    parent = np.arange(len(examples))

    def join(i: int, others: np.ndarray) -> None:
        """Put the groups of `others` and of `i` together."""
        groups = np.unique(parent[others])
        if groups.size != 1 or groups[0] != parent[i]:
            parent[np.isin(parent, np.append(groups, parent[i]))] = min(groups.min(), parent[i])

    same = defaultdict(list)
    for i, example in enumerate(examples):
        if has_open_value(example):  # a paraphrase asks for the same calls
            same["calls", calls_key(first_calls(example))].append(i)
    words = [sorted_words(first_query(example)) for example in examples]
    for i, text in enumerate(words):
        same["words", text].append(i)
    for members in same.values():
        if len(members) > 1:
            join(members[0], np.array(members))
    texts = list(dict.fromkeys(words))
    first = np.array([same["words", text][0] for text in texts])
    for i, alike in near_texts(texts, similarity):
        join(first[i], first[alike])
    groups: dict[int, list[int]] = defaultdict(list)
    for i, group in enumerate(parent):
        groups[int(group)].append(i)
    return list(groups.values())


def near_texts(texts: list[str], similarity: float) -> Iterator[tuple[int, np.ndarray]]:
    """(index, indices of others) of texts at least `similarity` (0 to 100) alike; every pair comes once.

    The likeness of texts with `a` and `b` characters, `a <= b`, is at most `200 a / (a + b)`: in order of length, only
    a stretch of texts need be compared with each one. Memory: a block of `CELLS` likenesses at a time.
    """
    from rapidfuzz import fuzz, process

    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    lengths = np.array([len(texts[i]) for i in order])
    ordered = [texts[i] for i in order]
    indices = np.array(order)
    start = 0
    while start < len(texts):
        rows = max(1, min(len(texts) - start, CELLS // (len(texts) - start), 512))
        longest = lengths[start + rows - 1]
        limit = longest * (200 - similarity) / similarity if similarity else np.inf
        stop = int(np.searchsorted(lengths, limit + 1e-6, side="right"))
        block = process.cdist(
            ordered[start : start + rows], ordered[start:stop], scorer=fuzz.ratio, score_cutoff=similarity,
            dtype=np.float32, workers=-1,
        )  # fmt: skip
        for row in range(rows):
            alike = np.flatnonzero(block[row, row + 1 :]) + row + 1
            if alike.size:
                yield int(indices[start + row]), indices[start + alike]
        start += rows


def sorted_words(query: str) -> str:
    """The query's words in alphabetical order, as rapidfuzz's `token_sort_ratio` compares them."""
    from rapidfuzz import utils

    return " ".join(sorted(utils.default_process(query).split()))


def calls_key(calls: tuple[Call, ...]) -> str:
    """A text that is equal for equal calls; capital and small letters are alike."""
    return json.dumps([[call.name, call.arguments] for call in calls], sort_keys=True).casefold()


def has_open_value(example: dict) -> bool:
    """Whether the first calls hold a text or a number that the schema does not enumerate."""
    calls = first_calls(example)
    schemas = {tool["name"]: tool.get("parameters") or {} for tool in example["tools"]} if calls else {}
    return any(_is_open(call.arguments, schemas.get(call.name, {})) for call in calls)


def _is_open(value: object, schema: object) -> bool:
    schema = schema if isinstance(schema, dict) else {}
    if "enum" in schema or "const" in schema:
        return False
    if isinstance(value, dict):
        return any(_is_open(inner, key_schema(schema, name)) for name, inner in value.items())
    if isinstance(value, list):
        return any(_is_open(inner, schema.get("items")) for inner in value)
    return isinstance(value, str | int | float) and not isinstance(value, bool)
