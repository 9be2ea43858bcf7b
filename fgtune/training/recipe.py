"""Settings that follow from the training rows, each with its reason.

A few examples are learned by heart within a few hundred row visits, and then more visits only make the model surer of
what it has not understood; many examples need more visits, but less than in proportion. The rules are first ones. For
many rows they are what the shipped data was tuned with; for few they rest on one seed of small sets
(docs/benchmarks.md). `benchmarks/examples.py` is what they are to be decided by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from ..data.batches import make_batch
from ..data.rows import Row
from .batches import plan_epoch

#: The value of a setting that stands for "as the rows say".
DERIVED: Mapping[str, Any] = {
    **dict.fromkeys(("epochs", "iters", "batch_size", "learning_rate", "steps_per_eval", "num_layers"), 0),
    "warmup": -1,
}
ONE_EPOCH = 7500  # rows that are seen once; a sixteenth of them is seen twice
LEAST_VISITS = 900  # of rows, in all steps together
MOST_EPOCHS = 15.0
MANY = 2000  # rows from which the last twelve layers are enough
LAYERS = 12
BATCHES = {24: 5e-4, 16: 3e-4, 8: 2e-4}  # rows per step: peak learning rate
FEWEST_STEPS = 50
LARGEST_STEP = 8000  # tokens
WARMUP = 10  # steps, or a tenth of all
EVALUATIONS = 5


class Setting(NamedTuple):
    """The value of a setting, and why it has it."""

    name: str
    value: Any
    reason: str


def derive_settings(rows: Sequence[Row], given: Mapping[str, Any], seed: int = 0) -> list[Setting]:
    """Epochs, batch size, steps, learning rate, warm-up, evaluation interval and layers for these training rows.

    `given` has a value for each name of `DERIVED`, and may have `grad_accumulation_steps`; what is not `DERIVED[name]`
    is kept as it is. `iters` that is given decides the number of steps, whatever `epochs` says.
    """
    count, own = len(rows), {name: given[name] for name, derived in DERIVED.items() if given[name] != derived}
    kept: list[Setting] = []

    def settle(name: str, value: Any, reason: str) -> Any:
        kept.append(Setting(name, own.get(name, value), "as given" if name in own else reason))
        return kept[-1].value

    epochs = round(min(MOST_EPOCHS, max(LEAST_VISITS / count, (ONE_EPOCH / count) ** 0.25)), 2)
    visits = count * own.get("epochs", epochs)
    batch, reason = _batch_size(rows, visits, seed)
    batch = settle("batch_size", batch, reason)
    if "iters" not in own:
        settle("epochs", epochs, f"{count:,} rows: {ONE_EPOCH:,} would be seen once, fewer more often")
    taken = batch * given.get("grad_accumulation_steps", 1)
    steps = settle("iters", max(1, round(visits / taken)), f"{visits:,.0f} row visits, {taken} a step")
    rate = BATCHES[min(BATCHES, key=lambda size: abs(size - batch))]
    settle("learning_rate", rate, f"for {batch} rows a step: the fewer, the lower")
    settle("warmup", min(WARMUP, steps // 10), f"{WARMUP} steps, at most a tenth of all")
    settle("steps_per_eval", max(1, -(-steps // EVALUATIONS)), f"{EVALUATIONS} times in a run")
    few = count < MANY
    reason = f"fewer than {MANY:,} rows: all layers" if few else f"{MANY:,} rows and more: the last {LAYERS} are enough"
    settle("num_layers", -1 if few else LAYERS, reason)
    return kept


def _batch_size(rows: Sequence[Row], visits: float, seed: int) -> tuple[int, str]:
    """The most rows a step that leave enough steps, and whose tokens are not too many; and the reason."""
    for size in BATCHES:
        if visits / size < FEWEST_STEPS and size > min(BATCHES):
            continue
        sampled = [make_batch([rows[i] for i in plan]) for plan in islice(plan_epoch(rows, size, seed, 0), 20)]
        tokens = sum(len(b.prefix) + sum(map(len, b.rows)) for b in sampled) / len(sampled)
        if tokens <= LARGEST_STEP:
            break
    why = f"the most that leaves {FEWEST_STEPS} steps" if size < max(BATCHES) else "more bring little"
    return size, f"{why}; about {tokens:,.0f} tokens a step"
