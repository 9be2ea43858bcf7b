"""More training examples from the user's own: the same requests about other things, and said otherwise.

A small model that sees each example a few times remembers its names instead of reading them. A copy of an example
exchanges what the sentence says and the call holds, in both alike, for what other examples or the schema have there
(`slots`, `exchange`), changes the length of a list or leaves an optional clause away (`reshape`), or says the same
request otherwise (`frames`). What cannot be changed with its meaning kept stays as it is: a wrong row teaches an error,
a missing one costs little.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .affixes import Affixes
from .examples import all_calls, first_calls, first_query, origin
from .exchange import Pools, exchange
from .frames import is_english, reframe
from .joining import combine
from .phrases import walk
from .reshape import resize, shorten
from .slots import Reader, Reading, is_single_turn
from .splits import leaks

__all__ = ["Augmented", "augment", "augment_examples", "combine", "default_copies", "shortfall"]

RESHAPED = 1 / 4  # share of the copies whose lists and clauses may change first
REFRAMED = 1 / 4  # share of the copies with other values that are said otherwise besides
TRIES = 5  # for a sentence that nobody has said
ENOUGH = 400  # examples that one copy each is enough for; fewer get more of them
MOST = 6  # copies of an example
KEPT = 3 / 4  # share of answers without a call, of what it was, below which some of them come again as they are


class Augmented(NamedTuple):
    """New training `examples`: `copies` said of other things or otherwise and `joined` requests, without those whose
    ids are in `too_near` because they came near a held-out case. `missing`: {id of an example: copies that could not be
    made of it}."""

    examples: list[dict]
    copies: list[dict]
    joined: list[dict]
    too_near: set[str]
    missing: dict[str, int]


def augment_examples(splits: dict, *, copies: int, joined: float, similarity: float, seed: int) -> Augmented:
    """Up to `copies` of each training example (-1: as `default_copies` says), and several requests in one, `joined`
    times the number of training examples. Held-out examples are only compared with."""
    train = splits["train"]
    copies = default_copies(len(train)) if copies < 0 else copies
    varied = augment(train, copies, seed)
    several = combine(train + varied, round(joined * len(train)), seed)
    near = {other for _, other, _ in leaks({**splits, "train": varied + several}, similarity)}
    kept = [e for e in varied + several if e["id"] not in near]
    return Augmented(kept, varied, several, near, shortfall(train, varied, copies))


def default_copies(examples: int) -> int:
    """How many copies of each of so many training examples are made: one of 400 and more, up to six of fewer."""
    return min(MOST, max(1, round(ENOUGH / max(1, examples))))


def augment(examples: list[dict], copies: int, seed: int) -> list[dict]:
    """Up to `copies` new examples of each one, in order; ids end in `+1`, `+2`, …

    No sentence comes twice, and none is that of an example. Values are exchanged in single-turn examples that make
    calls; all may be said otherwise. `shortfall` says which examples gave fewer. Only where the share of answers
    without a call would fall below three quarters of what it was, such examples come again as they are.
    """
    rng = random.Random(seed)
    pools = Pools(examples, Reader(examples))
    style = is_english([first_query(e) for e in examples]), Affixes([e for e in examples if is_single_turn(e)])
    seen = {first_query(e) for e in examples}
    out: list[dict] = []
    for example, reading in zip(examples, pools.readings):
        number = 0
        for _ in range(copies):
            for left in reversed(range(TRIES)):
                fresh = _vary(example, reading, pools, style, rng) if left else _reframed(example, style, rng)
                if fresh and first_query(fresh) not in seen:
                    number += 1
                    seen.add(first_query(fresh))
                    out.append({**fresh, "id": f"{example['id']}+{number}"})
                    break
    return _with_answers(examples, out, copies)


def shortfall(examples: Iterable[dict], made: Iterable[dict], copies: int) -> dict[str, int]:
    """{id: how many of `copies` are missing among those made by `augment`}, for examples that gave fewer."""
    counts = {example["id"]: copies for example in examples}
    for row in made:
        counts[origin(row["id"])] -= 1
    return {name: missing for name, missing in counts.items() if missing > 0}


def _vary(
    example: dict, reading: Reading, pools: Pools, style: tuple[bool, Affixes], rng: random.Random
) -> dict | None:
    """A variation of an example, or None."""
    base, changed = example, False
    if reading.slots and rng.random() < RESHAPED:
        for way in rng.sample((resize, shorten), 2):
            fresh = way(base, reading, pools, rng)
            if fresh:
                base, changed, reading = fresh, True, pools.reader.read(fresh)
                break
    fresh = exchange(base, reading, pools, rng) if reading.slots else None
    if fresh:
        base, changed = fresh, True
    if not changed or rng.random() < REFRAMED:
        base = _reframed(base, style, rng) or (base if changed else None)
    return base


def _reframed(example: dict, style: tuple[bool, Affixes], rng: random.Random) -> dict | None:
    """The example with its first request said otherwise; texts of its calls stay in it as they are."""
    if [m["role"] for m in example["messages"][:2]] != ["developer", "user"]:
        return None
    query = example["messages"][1]["content"]
    if not isinstance(query, str) or query != first_query(example):
        return None
    text = reframe(query, list(_said(example, query)), *style, rng)
    if text is None:
        return None
    messages = copy.deepcopy(example["messages"])
    messages[1]["content"] = text
    return {**example, "messages": messages}


def _said(example: dict, query: str) -> Iterator[str]:
    """The texts of all calls that stand in the query, in its own letters."""
    for call in all_calls(example):
        for _, value, _ in walk(call.arguments, {}):
            at = query.casefold().find(str(value).casefold())
            if isinstance(value, str) and value and at >= 0:
                yield query[at : at + len(value)]


def _with_answers(examples: list[dict], made: list[dict], copies: int) -> list[dict]:
    """`made`, with examples without a call again as they are while their share of all rows is far below what it was."""
    answers = [e for e in examples if not first_calls(e)]
    if not answers or not made:
        return made
    share = KEPT * len(answers) / len(examples)
    rows = {example["id"]: [] for example in examples}
    for row in made:
        rows[origin(row["id"])].append(row)
    have = len(answers) + sum(len(rows[e["id"]]) for e in answers)
    total = len(examples) + len(made)
    for number in range(1, copies + 1):
        for example in answers:
            if len(rows[example["id"]]) < number and have < share * total:
                rows[example["id"]].append({**example, "id": f"{example['id']}+{number}"})
                have, total = have + 1, total + 1
    return [row for example in examples for row in rows[example["id"]]]
