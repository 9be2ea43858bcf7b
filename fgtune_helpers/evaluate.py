"""Stages 03 and 05: exact match on held-out cases, and how far two next-token distributions are apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fgtune.data.rows import Case
from fgtune.evaluation.divergence import MlxLogits
from fgtune.evaluation.divergence import divergence as divergence_of
from fgtune.evaluation.judging import judge
from fgtune.evaluation.learning_curve import LearningCurve
from fgtune.evaluation.learning_curve import learning_curve as curve_of
from fgtune.evaluation.near_ties import Difference
from fgtune.evaluation.near_ties import differences as differences_of
from fgtune.evaluation.scorecards import Comparison, Scorecard, score
from fgtune.runtimes.constrained import Grammar
from fgtune.training.curve import Finished

from .stage import Run

__all__ = ["Comparison", "Scorecard", "differences", "divergence", "judge", "learning_curve", "score"]


def divergence(reference, other, prompts: Sequence[Sequence[int]], last: int | Sequence[int] = 48) -> dict:
    """KL divergence (nats) and agreement of the likeliest token over the `last` positions of each prompt (token ids).

    `reference` is an `OrtGenerator`, or the folder of a model for MLX; `other` is an `OrtGenerator`. Returns `kl`,
    `kl_max`, `argmax_agreement`, `positions`, and the same for `without_cache`, `with_cache`, `below_window` and
    `beyond_window` (None where no position is).
    """
    if isinstance(reference, str | Path):
        reference = MlxLogits(reference)
    return divergence_of(reference, other, prompts, last)


def differences(
    card: Scorecard, reference: Scorecard, model, cases: Sequence[Case], grammar: Grammar | None = None
) -> list[Difference]:
    """Where the answers of `card` part from those of `reference`, and whether each is a `near_tie`: two tokens so close
    that rounding decides between them. `model` made the reference: an `OrtGenerator`, or the folder of a model for MLX.
    """
    if isinstance(model, str | Path) and card.same_outputs(reference) < card.n:  # else no logit is asked for
        model = MlxLogits(model)
    return differences_of(card, reference, model, cases, grammar)


def learning_curve(run: Run, card: Scorecard, grammar: Grammar | None = None) -> LearningCurve:
    """How the score of `card`, of the trained adapters, depends on the number of training examples, by refits on parts
    of them that take `curve_minutes` at most."""
    p, data = run.p, run.inputs["01_data"]["parameters"]
    names = {"copies": "augment", "joined": "combine", "similarity": "similarity", "seed": "seed"}
    augmented = {name: data[parameter] for name, parameter in names.items()}
    splits = {name: run.examples(name) for name in ("train", "valid", "test")}
    limits = {"minutes": p.curve_minutes, "max_tokens": p.max_tokens, "folder": run.dir, "grammar": grammar}
    return curve_of(Finished.load(run.base(), run.input("02_train")), card, splits, augmented, **limits)
