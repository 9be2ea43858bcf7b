"""Splits without leaks."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from ..format.calls import Call
from ..format.findings import Finding
from .examples import NO_CALL, SEVERAL, first_calls, first_query, label
from .given import given_splits, is_given, stratified_sample
from .grouping import CELLS, group_examples, has_open_value, sorted_words
from .readers.files import DataError

SHARE = 3  # at most one of so many examples is held out


def split_examples(
    examples: list[dict], *, valid: int, test: int, similarity: float, seed: int, by: str = "group"
) -> dict[str, list[dict]]:
    """Seeded train/valid/test split by group, stratified by tool, with a test case of each tool where groups allow it.

    `valid` and `test` are lowered so that at most a third of the examples is held out, and where the groups are too
    large to fill them; `lint_splits` says so. A split that the examples' "split" gives is kept, or a sample of it where
    it has more examples than asked for (see `given`). `by` "chance" shuffles instead, without groups, for comparison.
    Raises DataError where nothing can be held out.
    """
    if by == "chance":
        return random_split(examples, **held_out_sizes(len(examples), valid=valid, test=test), seed=seed)
    given, asked = given_splits(examples), {"valid": valid, "test": test}
    if not given:
        return _split_by_group(examples, valid, test, similarity, seed)
    rest = [example for example in examples if example.get("split") not in given]
    if not rest:
        raise DataError("all examples are given for validation or test: there is none to train on")
    splits = {"train": rest, "valid": [], "test": []}
    missing = {name: 0 if name in given else count for name, count in asked.items()}
    if any(missing.values()):
        splits = _split_by_group(rest, **missing, similarity=similarity, seed=seed)
    return splits | {name: stratified_sample(rows, asked[name], seed) for name, rows in given.items()}


def _split_by_group(examples: list[dict], valid: int, test: int, similarity: float, seed: int) -> dict[str, list[dict]]:
    wanted = held_out_sizes(len(examples), valid=valid, test=test)
    groups = group_examples(examples, similarity)
    while True:
        chosen = _hold_out(examples, groups, wanted, seed)
        empty = next((name for name in wanted if wanted[name] and not chosen[name]), None)
        if empty is None:
            break
        if empty == "test" or wanted["test"] < 2:
            kept = " and ".join(f"{count} {name}" for name, count in wanted.items())
            raise DataError(f"too many examples ask for the same calls to hold out {kept} cases: add varied examples")
        wanted["test"] = wanted["test"] * 3 // 4  # the test cases took what there was
    held = {i for indices in chosen.values() for i in indices}
    chosen["train"] = [i for i in range(len(examples)) if i not in held]
    return {name: [examples[i] for i in sorted(chosen[name])] for name in ("train", "valid", "test")}


def held_out_sizes(examples: int, *, valid: int, test: int) -> dict[str, int]:
    """Test and validation cases of so many examples: what is asked for, or a third of them in the same proportion.

    Raises DataError where a third is not enough for one of each.
    """
    room = examples // SHARE
    if valid + test > room:
        if room < (valid > 0) + (test > 0):
            raise DataError(f"{examples} examples are too few to hold any out: add examples")
        lowered = max(1, min(room - (valid > 0), round(room * test / (valid + test)))) if test else 0
        return {"test": lowered, "valid": room - lowered if valid else 0}
    return {"test": test, "valid": valid}


def _hold_out(examples: list[dict], groups: list[list[int]], wanted: dict[str, int], seed: int) -> dict[str, list[int]]:
    """Indices of the test and the validation cases, at most as many as `wanted`."""
    rng = random.Random(seed)
    strata: dict[str, list[list[int]]] = defaultdict(list)
    for group in groups:
        strata[Counter(label(examples[i]) for i in group).most_common(1)[0][0]].append(group)
    for members in strata.values():
        rng.shuffle(members)
        members.sort(key=len, reverse=True)  # pop() takes the smallest first, so held-out cases stay varied
    sizes = {name: sum(map(len, members)) for name, members in strata.items()}
    chosen: dict[str, list[int]] = {"test": [], "valid": []}
    for split, count in wanted.items():
        share = {name: count * size / len(examples) for name, size in sizes.items()}
        taken: Counter[str] = Counter()

        def fitting(names: Iterable[str], split: str = split, count: int = count) -> list[str]:
            """Those that keep a group for training and whose smallest group is not too large."""
            room = count - len(chosen[split])
            return [name for name in names if len(strata[name]) > 1 and len(strata[name][-1]) <= room]

        def take(name: str, split: str = split, taken: Counter = taken) -> None:
            group = strata[name].pop()
            chosen[split] += group
            taken[name] += len(group)

        tested = {call.name for part in chosen.values() for i in part for call in first_calls(examples[i])}
        for name in sorted(strata, key=lambda name: (-sizes[name], name)):  # each tool has a case, the frequent first
            if name not in (*tested, NO_CALL, SEVERAL) and fitting([name]):
                take(name)
        while open_ := fitting(sorted(strata)):  # then the label that is furthest behind its share
            take(max(open_, key=lambda name: share[name] - taken[name]))
        rest = [name for name in sorted(strata) if len(strata[name]) > 1 and len(strata[name][-1]) <= 2 * count]
        if not chosen[split] and count and rest:  # no group is small enough: the smallest, if it is not far too large
            take(min(rest, key=lambda name: len(strata[name][-1])))
    return chosen


def lint_splits(splits: dict[str, list[dict]], tools: list[dict], *, valid: int, test: int) -> list[Finding]:
    """A warning where fewer cases are held out than asked for, and one for each tool without a held-out case.

    A given split holds what it holds: nothing is said about its size.
    """
    findings, total = [], sum(map(len, splits.values()))
    asked = {"test": test, "valid": valid}
    lowered = [name for name, count in asked.items() if len(splits[name]) < count]
    if any(not is_given(example, name) for name in lowered for example in splits[name][:1]):
        text = (
            f"{len(splits['test'])} test and {len(splits['valid'])} validation cases instead of {test} and {valid}: "
            f"{total} examples allow no more. Add examples to hold out more."
        )
        findings.append(Finding("warning", "held-out-lowered", text))
    for name, count in held_out_per_tool(splits, tools).items():
        if not count:
            text = "No held-out case calls this tool first, so its answers are not scored. Add varied examples of it."
            if any(is_given(example, split) for split in asked for example in splits[split]):
                text = "No held-out case that is used calls this tool first, so its answers are not scored."
            findings.append(Finding("warning", "held-out-tool", text, tool=name))
    return findings


def held_out_per_tool(splits: dict[str, list[dict]], tools: list[dict]) -> dict[str, int]:
    """Test and validation cases whose first answer calls the tool, for each of `tools`."""
    counts = Counter(
        name for split in ("test", "valid") for e in splits[split] for name in {call.name for call in first_calls(e)}
    )
    return {tool["name"]: counts[tool["name"]] for tool in tools}


def random_split(examples: list[dict], *, valid: int, test: int, seed: int) -> dict[str, list[dict]]:
    """The split that most recipes use, for comparison: shuffled, no groups."""
    order = random.Random(seed).sample(range(len(examples)), len(examples))
    parts = {"test": order[:test], "valid": order[test : test + valid], "train": order[test + valid :]}
    return {name: [examples[i] for i in indices] for name, indices in parts.items()}


def nearest_neighbour_score(splits: dict[str, list[dict]]) -> float:
    """Share of test cases that are right when each copies the calls of the most alike training query."""
    train, hits = splits["train"], 0
    for example, scores in zip(splits["test"], _likenesses(splits["test"], train)):
        hits += first_calls(train[int(scores.argmax())]) == first_calls(example)
    return hits / len(splits["test"])


def leaks(splits: dict[str, list[dict]], similarity: float) -> list[tuple[str, str, float]]:
    """(held-out id, training id, likeness) of every held-out example whose calls or near-same query are trained on.

    Calls without an open value are meant to be trained on (see `group_examples`): the query alone counts.
    """
    found, train = [], splits["train"]
    by_calls = defaultdict(list)
    for i, example in enumerate(train):
        if has_open_value(example):
            by_calls[_name_of(first_calls(example))].append(i)
    calls = {i: first_calls(train[i]) for members in by_calls.values() for i in members}
    for split in ("valid", "test"):
        for example, scores in zip(splits[split], _likenesses(splits[split], train)):
            near = set((scores >= similarity).nonzero()[0].tolist())
            asked = first_calls(example)
            near |= {i for i in by_calls[_name_of(asked)] if calls[i] == asked}
            found += [(example["id"], train[i]["id"], float(scores[i])) for i in sorted(near)]
    return found


def _name_of(calls: tuple[Call, ...]) -> tuple[str, ...]:
    return tuple(call.name for call in calls)


def _likenesses(examples: list[dict], others: list[dict]) -> Iterator[np.ndarray]:
    """For each example, how much its query is like the query of each other example (0 to 100)."""
    from rapidfuzz import fuzz, process

    queries, known = ([sorted_words(first_query(e)) for e in part] for part in (examples, others))
    step = max(1, CELLS // max(1, len(known)))
    for start in range(0, len(queries), step):
        yield from process.cdist(queries[start : start + step], known, scorer=fuzz.ratio, dtype=np.float64, workers=-1)
