"""What a held-out case asks that training did not: a call that is trained on in other words, or a new value."""

from __future__ import annotations

from .examples import first_calls
from .grouping import calls_key

SEEN, NEW = "seen call, new words", "new value"


def novelty_of(splits: dict[str, list[dict]]) -> dict[str, str]:
    """`SEEN` or `NEW` for each validation and test example whose first answer makes calls, by id.

    `SEEN`: the first answer of some training example makes exactly these calls (capital and small letters are alike).
    """
    trained = {calls_key(first_calls(example)) for example in splits["train"]}
    held = [example for name in ("valid", "test") for example in splits[name] if first_calls(example)]
    return {example["id"]: SEEN if calls_key(first_calls(example)) in trained else NEW for example in held}


def with_novelty(splits: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """The splits, each held-out example that makes calls with its `novelty`."""
    kinds = novelty_of(splits)
    labelled = {
        name: [{**example, "novelty": kinds[example["id"]]} if example["id"] in kinds else example for example in rows]
        for name, rows in splits.items()
        if name != "train"
    }
    return {name: labelled.get(name, rows) for name, rows in splits.items()}
