"""Drafts for speculative decoding: guesses of the next tokens, which one pass of the model verifies.

A draft never decides. The model chooses every token of the answer, and the draft ends where it chooses another; a wrong
guess costs its place in the pass and nothing else. Guesses come from three places: bytes that the grammar forces (jump
forward; their tokens are a guess, since the same bytes can be spelled in several ways), tokens that followed the same
ones before in the dialogue (prompt lookup), and tokens that followed them in the training answers (`NgramTable`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Protocol

from ..data.rows import Row
from .constrained import Constraint

#: How often a guess is right (0 to 1), as measured on held-out answers: the tokens of forced bytes but for the last,
#: which may go on into what is free; the last; what followed the last two or three tokens before.
FORCED, FORCED_LAST, FOUND = 0.8, 0.5, 0.7


class DraftSource(Protocol):
    """Where the drafts of `OrtGenerator` come from: `Drafts`, or anything else with this method."""

    def propose(self, ids: Sequence[int], count: int, constraint: Constraint | None = None) -> list[int]:
        """At most `count` tokens that may follow `ids`, which are the prompt and the answer so far."""


class NgramTable:
    """Which token follows the last 1 to `order` tokens, by how often it did in known answers (token ids)."""

    def __init__(self, answers: Iterable[Sequence[int]], order: int = 4):
        self.order, self._next = order, {}
        for known, tokens in followers(answers, order).items():
            token, seen = tokens.most_common(1)[0]
            self._next[known] = (token, seen / (tokens.total() + 1))

    @classmethod
    def of_rows(cls, rows: Iterable[Row], order: int = 4) -> NgramTable:
        """Of the answers that training rows hold, each behind the `order` tokens before it."""
        return cls((answer for row in rows for answer in learned_runs(row, order)), order)

    def __len__(self) -> int:
        return len(self._next)

    def guess(self, ids: Sequence[int]) -> tuple[int, float] | None:
        """The likeliest token after the longest end of `ids` that is known, and how sure that is (0 to 1)."""
        for length in range(min(self.order, len(ids)), 0, -1):
            if found := self._next.get(tuple(ids[-length:])):
                return found
        return None


class Drafts:
    """Chains the surest guesses while all of them together are right with a chance of `likely`, at most `longest`.

    A pass of one token more costs about a third of a pass, so a guess pays from there on. Without a `table`, drafts are
    what the grammar forces and, with `lookup`, what followed the same tokens within the last `window` of the dialogue.
    """

    def __init__(
        self,
        table: NgramTable | None = None,
        lookup: bool = True,
        likely: float = 0.35,
        longest: int = 8,
        window: int = 256,
    ):
        self.table, self.lookup = table, lookup
        self.likely, self.longest, self.window = likely, longest, window

    def propose(self, ids: Sequence[int], count: int, constraint: Constraint | None = None) -> list[int]:
        """At most `count` tokens that may follow `ids`, all of them allowed by `constraint` (which stays as it is)."""
        known, draft, chance = list(ids[-self.window :]), [], 1.0
        ahead, forced = constraint and constraint.lookahead(), []
        while len(draft) < min(count, self.longest):
            forced = forced or (ahead.forced() if ahead else [])
            token, share = next(
                ((token, share) for token, share in self._guesses(known, forced) if not ahead or ahead.accept(token)),
                (None, 0.0),
            )
            chance *= share
            if token is None or chance < self.likely:
                break
            forced = forced[1:] if forced[:1] == [token] else []
            draft.append(token)
            known.append(token)
        return draft

    def _guesses(self, known: list[int], forced: list[int]) -> list[tuple[int, float]]:
        """Guesses of the next token, the surest first."""
        found = [(forced[0], FORCED if len(forced) > 1 else FORCED_LAST)] if forced else []
        if self.lookup and (token := _followed(known)) is not None:
            found.append((token, FOUND))
        if self.table and (guess := self.table.guess(known)):
            found.append(guess)
        return sorted(found, key=lambda guess: -guess[1])


def _followed(known: list[int]) -> int | None:
    """What followed the last three tokens where they stand for the last time before, or else the last two."""
    best = None
    for i in range(len(known) - 2, 0, -1):
        if known[i] == known[-1] and known[i - 1] == known[-2]:
            if i > 1 and known[i - 2] == known[-3]:
                return known[i + 1]
            best = known[i + 1] if best is None else best
    return best


def followers(answers: Iterable[Sequence[int]], order: int) -> dict[tuple[int, ...], Counter]:
    """For each context of 1 to `order` tokens the tokens that follow it in `answers`, by how often they do."""
    counts: dict[tuple[int, ...], Counter] = defaultdict(Counter)
    for ids in map(tuple, answers):
        for end in range(1, len(ids)):
            for start in range(max(0, end - order), end):
                counts[ids[start:end]][ids[end]] += 1
    return counts


def learned_runs(row: Row, before: int = 0) -> Iterator[tuple[int, ...]]:
    """Each run of learned tokens of a row, with so many tokens before it."""
    ids, end = row.ids, 0
    for learned, run in groupby(row.targets):
        start, end = end, end + len(list(run))
        if learned:
            yield ids[max(0, start - before) : end]
