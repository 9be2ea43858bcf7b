"""Splits without leaks."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict

from .examples import first_calls, first_query, label
from .readers.files import DataError


def group_examples(examples: list[dict], similarity: float) -> list[list[int]]:
    """Indices of examples that belong together: the same calls, or queries at least `similarity` (0 to 100) alike."""
    from rapidfuzz import fuzz, process, utils

    parent = list(range(len(examples)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[str, int] = {}
    for i, example in enumerate(examples):
        calls = first_calls(example)
        if calls:  # a paraphrase asks for the same calls
            key = json.dumps([[c.name, c.arguments] for c in calls], sort_keys=True).casefold()
            parent[find(i)] = find(seen.setdefault(key, i))
    queries = [utils.default_process(first_query(e)) for e in examples]
    alike = process.cdist(queries, queries, scorer=fuzz.token_sort_ratio, score_cutoff=similarity, dtype=float)
    for i, j in zip(*(alike > 0).nonzero()):
        if i < j:
            parent[find(int(j))] = find(int(i))
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(examples)):
        groups[find(i)].append(i)
    return list(groups.values())


def split_examples(
    examples: list[dict], *, valid: int, test: int, similarity: float, seed: int
) -> dict[str, list[dict]]:
    """Seeded train/valid/test split by group, stratified by tool. Raises DataError when too few groups are there."""
    if len(examples) < 3 * (valid + test) // 2 or len(examples) < valid + test + 2:
        raise DataError(
            f"{len(examples)} examples are too few for {test} test and {valid} validation cases: "
            "add examples, or lower test_cases and valid_cases"
        )
    rng = random.Random(seed)
    strata: dict[str, list[list[int]]] = defaultdict(list)
    for group in group_examples(examples, similarity):
        strata[Counter(label(examples[i]) for i in group).most_common(1)[0][0]].append(group)
    for groups in strata.values():
        rng.shuffle(groups)
        groups.sort(key=len, reverse=True)  # pop() takes the smallest first, so held-out cases stay varied
    chosen: dict[str, list[int]] = {"test": [], "valid": []}
    sizes = {name: sum(map(len, groups)) for name, groups in strata.items()}
    for split, wanted in (("test", test), ("valid", valid)):
        share = {name: wanted * size / len(examples) for name, size in sizes.items()}
        taken: Counter[str] = Counter()
        while len(chosen[split]) < wanted:
            # the label that is furthest behind its share; it must keep a group for training
            open_ = [
                n for n in sorted(strata) if len(strata[n]) > 1 and len(strata[n][-1]) <= wanted - len(chosen[split])
            ]
            if not open_:
                raise DataError(f"too many examples ask for the same calls to hold out {test} + {valid} of them")
            name = max(open_, key=lambda n: share[n] - taken[n])
            group = strata[name].pop()
            chosen[split] += group
            taken[name] += len(group)
    held = {i for indices in chosen.values() for i in indices}
    chosen["train"] = [i for i in range(len(examples)) if i not in held]
    return {name: [examples[i] for i in sorted(chosen[name])] for name in ("train", "valid", "test")}


def random_split(examples: list[dict], *, valid: int, test: int, seed: int) -> dict[str, list[dict]]:
    """The split that most recipes use, for comparison: shuffled, no groups."""
    order = random.Random(seed).sample(range(len(examples)), len(examples))
    parts = {"test": order[:test], "valid": order[test : test + valid], "train": order[test + valid :]}
    return {name: [examples[i] for i in indices] for name, indices in parts.items()}


def nearest_neighbour_score(splits: dict[str, list[dict]]) -> float:
    """Share of test cases that are right when each copies the calls of the most alike training query."""
    from rapidfuzz import fuzz, process, utils

    queries = [first_query(e) for e in splits["train"]]
    hits = 0
    for example in splits["test"]:
        _, _, i = process.extractOne(
            first_query(example), queries, scorer=fuzz.token_sort_ratio, processor=utils.default_process
        )
        hits += first_calls(splits["train"][i]) == first_calls(example)
    return hits / len(splits["test"])


def leaks(splits: dict[str, list[dict]], similarity: float) -> list[tuple[str, str, float]]:
    """(held-out id, training id, likeness) of every held-out example whose calls or near-same query are trained on."""
    from rapidfuzz import fuzz, utils

    found = []
    known = [(e, utils.default_process(first_query(e)), first_calls(e)) for e in splits["train"]]
    for split in ("valid", "test"):
        for example in splits[split]:
            query, calls = utils.default_process(first_query(example)), first_calls(example)
            for other, other_query, other_calls in known:
                alike = fuzz.token_sort_ratio(query, other_query)
                if alike >= similarity or (calls and calls == other_calls):
                    found.append((example["id"], other["id"], alike))
    return found
