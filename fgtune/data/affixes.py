"""Beginnings and endings of sentences that change nothing, as the user's own sentences show them."""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from ..format.grammar import UNSPACED
from .examples import first_calls, first_query

SHOWN_FROM = 3  # pairs of sentences with the same calls that differ in an affix only, and none with other calls
LONGEST = 25  # letters of an affix between words
ENDING = 6  # letters of an ending within a word, in scripts whose words take endings or have no spaces
WITHIN = re.compile(f"[가-힣{UNSPACED}]")


class Affixes:
    """Pairs of affixes, learned from examples that make calls."""

    def __init__(self, examples: list[dict]):
        asked: dict[str, set] = defaultdict(set)
        for example in examples:
            calls = [[call.name, call.arguments] for call in first_calls(example)]
            if calls:
                asked[first_query(example)].add(json.dumps(calls, sort_keys=True))
        stems: dict[tuple, dict] = defaultdict(dict)
        for query, calls in asked.items():
            if len(calls) == 1:
                for stem, affix in _cuts(query):
                    stems[stem][affix] = next(iter(calls))
        same, other = Counter(), set()
        for (side, stem, context), found in stems.items():
            if 1 < len(found) <= 30:
                for one in found:
                    for two in found:
                        if one != two and not _share(one, two, side):
                            where = side, context, one, two
                            if found[one] == found[two]:
                                same[where] += bool(stem)
                            else:
                                other.add(where)
        self.table: dict[tuple, list] = defaultdict(list)
        for (side, context, one, two), count in sorted(same.items()):
            if count >= SHOWN_FROM and (side, context, one, two) not in other:
                self.table[side, context, one].append(two)

    def vary(self, query: str, kept: list[str], rng: random.Random) -> str | None:
        """`query` with another beginning or ending; None where none is known."""
        options: list[str] = []
        for (side, stem, context), affix in _cuts(query) if self.table else ():
            for new in self.table.get((side, context, affix), ()):
                options.append(new + stem if side == "begin" else stem + new)
        return rng.choice(options) if options else None


def _cuts(query: str) -> Iterator[tuple[tuple, str]]:
    """((side, stem, letter of the stem at the cut), affix) of each way to cut a sentence in two."""
    for match in re.finditer(r"(?<=\s)(?=\S)|$", query):
        if 0 < match.start() <= LONGEST and match.start() < len(query):
            yield ("begin", query[match.start() :], ""), query[: match.start()]
    yield ("begin", query, ""), ""
    within = WITHIN.search(query[-1:])
    for at in range(max(2, len(query) - LONGEST), len(query) + 1):
        stem, affix = query[:at], query[at:]
        if within and len(affix) <= ENDING:
            yield ("end", stem, stem[-1]), affix
        elif not within and re.fullmatch(r"|[\s,.!?].*", affix):
            yield ("end", stem, ""), affix


def _share(one: str, two: str, side: str) -> bool:
    """Whether two affixes could be shorter: they are alike where they touch the stem."""
    if side == "begin":
        return one.split()[-1:] == two.split()[-1:]
    return one[:1] == two[:1]
