"""Splits that the user's files give: kept as they are, with a sample of the held-out cases where there are more."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

from ..format.findings import Finding
from .examples import label

WORDS = {"test": "test", "valid": "validation"}
SHOWN = 5  # held-out ids in the warning about leaks


def given_splits(examples: list[dict]) -> dict[str, list[dict]]:
    """The "valid" and "test" examples that are given as such; a split of which there is none is left out."""
    given = {name: [example for example in examples if example.get("split") == name] for name in ("valid", "test")}
    return {name: rows for name, rows in given.items() if rows}


def stratified_sample(examples: list[dict], count: int, seed: int) -> list[dict]:
    """`count` of the examples, in their order: each label as often as its share, the rest by the largest remainders."""
    if count >= len(examples):
        return examples
    rng = random.Random(seed)
    strata: dict[str, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        strata[label(example)].append(i)
    share = {name: count * len(members) / len(examples) for name, members in strata.items()}
    sizes = {name: int(part) for name, part in share.items()}
    for name in sorted(share, key=lambda name: (sizes[name] - share[name], name))[: count - sum(sizes.values())]:
        sizes[name] += 1
    chosen = {i for name in sorted(strata) for i in rng.sample(strata[name], sizes[name])}
    return [examples[i] for i in sorted(chosen)]


def is_given(example: dict, split: str) -> bool:
    """Whether the user's files put a held-out example into this split."""
    return split in WORDS and example.get("split") == split


def lint_given(
    splits: dict[str, list[dict]], examples: list[dict], reported: list[tuple[str, str, float]], similarity: float
) -> list[Finding]:
    """A note for each given split of which a sample is used, and a warning about the leaks that it came with.

    `reported`: those of `leaks` whose held-out example is given.
    """
    findings = []
    for name, rows in given_splits(examples).items():
        used = sum(is_given(example, name) for example in splits[name])
        if used < len(rows):
            text = (
                f"{used} of the {len(rows)} {WORDS[name]} examples are used, a sample by tool that the seed decides, "
                f"because every stage answers all of them. {name}_cases = {len(rows)} takes all."
            )
            findings.append(Finding("info", "split-sampled", text))
    for name in WORDS:
        ids = {example["id"] for example in splits[name] if is_given(example, name)}
        pairs = {}
        for held, trained, likeness in reported:
            if held in ids and likeness >= pairs.get(held, ("", -1.0))[1]:
                pairs[held] = (trained, likeness)
        if pairs:
            near = sum(likeness >= similarity for _, likeness in pairs.values())
            first = ", ".join(f"{held} ({trained})" for held, (trained, _) in list(pairs.items())[:SHOWN])
            text = (
                f"{len(pairs)} of {len(ids)} {WORDS[name]} cases are trained on: {near} in nearly the same words, "
                f"{len(pairs) - near} by the same calls with an open value. The given split is kept. First (and the "
                f"most alike training example): {first}{', …' if len(pairs) > SHOWN else ''}"
            )
            findings.append(Finding("warning", "split-leaks", text))
    return findings


def left_out(splits: dict[str, list[dict]], examples: list[dict]) -> int:
    """How many given held-out examples are in no split, because only a sample of them is used."""
    used = Counter(name for name, rows in splits.items() for example in rows if is_given(example, name))
    return sum(len(rows) - used[name] for name, rows in given_splits(examples).items())
