"""Stages 03 and 05: exact match on held-out cases, and how far two next-token distributions are apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fgtune.evaluation.divergence import MlxLogits
from fgtune.evaluation.divergence import divergence as divergence_of
from fgtune.evaluation.judging import judge
from fgtune.evaluation.scorecards import Comparison, Scorecard, score

__all__ = ["Comparison", "Scorecard", "divergence", "judge", "score"]


def divergence(reference, other, prompts: Sequence[Sequence[int]], last: int | Sequence[int] = 48) -> dict:
    """KL divergence (nats) and agreement of the likeliest token over the `last` positions of each prompt (token ids).

    `reference` is an `OrtGenerator`, or the folder of a model for MLX; `other` is an `OrtGenerator`. Returns `kl`,
    `kl_max`, `argmax_agreement`, `positions`, and the same for `without_cache`, `with_cache`, `below_window` and
    `beyond_window` (None where no position is).
    """
    if isinstance(reference, str | Path):
        reference = MlxLogits(reference)
    return divergence_of(reference, other, prompts, last)
