"""Prune unused merges: a smaller `tokenizer.json` that tokenizes identically.

Byte pair encoding merges the neighbours with the lowest rank first, the leftmost of equals. As long as no merge crosses
the ends of a piece, the merges inside it run exactly as if it stood alone. If one crosses, the piece is not made. So
each entry of the vocabulary is made by one merge only: the last one when the entry is encoded by itself. Gemma's file
lists every pair that concatenates to an entry, more than twice as many.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ..core.errors import FgtuneError


class PruneError(FgtuneError, ValueError):
    """The tokenizer is of a kind whose merges cannot be pruned."""


@dataclass(frozen=True)
class PruneReport:
    """Bytes and merges before and after."""

    bytes_before: int
    bytes_after: int
    merges_before: int
    merges_after: int


def prune_unused_merges(source: str | Path, target: str | Path | None = None) -> PruneReport:
    """Write `source` (a `tokenizer.json`) to `target` (default: in place) without unused merges and without spaces.

    Raises PruneError.
    """
    source = Path(source)
    target = Path(target) if target is not None else source
    text = source.read_bytes()
    tokenizer = json.loads(text)
    merges, model = merges_of(tokenizer, source), tokenizer["model"]
    kept = used_merges(merges, set(model["vocab"]))
    spaceless = all(" " not in left and " " not in right for left, right in kept)
    model["merges"] = [f"{left} {right}" for left, right in kept] if spaceless else [list(pair) for pair in kept]
    pruned = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).encode()
    target.write_bytes(pruned)
    return PruneReport(len(text), len(pruned), len(merges), len(kept))


def merges_of(tokenizer: dict, source: str | Path) -> list[tuple[str, str]]:
    """The merges of a parsed `tokenizer.json`; `source` names it in messages. Raises PruneError."""
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE":
        raise PruneError(f"{source} is a {model.get('type')} tokenizer, not BPE")
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise PruneError(f"{source} uses dropout, a prefix or a suffix for pieces")
    return [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]


def used_merges(merges: list[tuple[str, str]], vocabulary: set[str]) -> list[tuple[str, str]]:
    """The merges, in their order, that can happen in any text."""
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(merges)))}  # of equal pairs the first counts
    makers: dict[str, list[tuple[str, str]]] = {}
    for pair in ranks:
        makers.setdefault(pair[0] + pair[1], []).append(pair)
    used = set()
    for piece, pairs in makers.items():
        # A single maker is kept unproved: a merge that never happens does no harm.
        used.add(pairs[0] if len(pairs) == 1 else last_merge(piece, ranks, vocabulary))
    return [pair for rank, pair in enumerate(merges) if pair in used and ranks[pair] == rank]


def last_merge(piece: str, ranks: dict[tuple[str, str], int], vocabulary: set[str]) -> tuple[str, str] | None:
    """The pair that makes `piece` when it is encoded alone, or None when it is not made."""
    parts = list(piece)
    if not vocabulary.issuperset(parts):
        return None  # a character outside the vocabulary becomes bytes, which never merge
    never = len(ranks)
    found = [ranks.get(pair, never) for pair in pairwise(parts)]
    while True:
        best = min(found)
        if best == never:
            return None
        i = found.index(best)
        if len(found) == 1:
            return parts[0], parts[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        del found[i]
        if i:
            found[i - 1] = ranks.get((parts[i - 1], parts[i]), never)
        if i < len(found):
            found[i] = ranks.get((parts[i], parts[i + 1]), never)
