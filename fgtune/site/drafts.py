"""What usually comes next in an answer: a table of the training answers, for the drafts that the page's engine checks.

A draft costs a little time where it is wrong and never changes a token (`web/drafts.js`), so the table may be small and
rough: contexts of up to four tokens, by their hashes, and for each the likeliest next token.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..data.rows import Row
from ..runtimes.drafts import followers, learned_runs

MAGIC = 0x314E4746  # "FGN1"
ORDER = 4  # tokens of the longest context
MOST = 32_000  # entries, 8 bytes each
SEEN = 2  # times that a context must have come: what came once is nobody's business
CHANGE = 0.1  # a longer context is kept where it says something else, or is so much surer or less sure
BEGIN = 0  # stands before the first token of an answer


def answers_of(rows: Iterable[Row]) -> list[list[int]]:
    """The learned stretches of training rows, each with the token that ends it."""
    return [list(run) for row in rows for run in learned_runs(row)]


def context_hash(ids: Iterable[int]) -> int:
    """32 bits for a context of token ids; `contextHash` of web/drafts.js makes the same."""
    ids = list(ids)
    value = 2166136261 ^ len(ids)
    for token in ids:
        value = ((value ^ token) * 16777619) & 0xFFFFFFFF
        value ^= value >> 15
    return value


def next_tokens(answers: Iterable[list[int]]) -> dict[tuple[int, ...], tuple[int, float, int]]:
    """For each context worth keeping its likeliest next token, that token's share, and how often the context came."""
    seen = followers(([BEGIN, *answer] for answer in answers), ORDER)
    kept: dict[tuple[int, ...], tuple[int, float, int]] = {}
    for context in sorted(seen, key=lambda context: (len(context), context)):
        counts = seen[context]
        total = counts.total()
        if total < SEEN:
            continue
        token, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
        share = count / (total + 1)
        shorter = next((kept[context[k:]] for k in range(1, len(context)) if context[k:] in kept), None)
        if shorter is None or shorter[0] != token or abs(shorter[1] - share) > CHANGE:
            kept[context] = token, share, total
    return kept


def write_drafts(answers: Iterable[list[int]], path: str | Path) -> int:
    """Write the table (`NgramTable` of web/drafts.js says how), the most frequent contexts; returns how many."""
    found = next_tokens(answers)
    usual = sorted(found, key=lambda context: (-found[context][2], len(context), context))[:MOST]
    entries = {context_hash(context): found[context] for context in reversed(usual)}
    hashes = sorted(entries)
    values = [entries[key][0] | round(255 * entries[key][1]) << 24 for key in hashes]
    np.array([MAGIC, ORDER, len(hashes), *hashes, *values], "<u4").tofile(path)
    return len(hashes)
