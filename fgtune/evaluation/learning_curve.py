"""The learning curve of the user's own data: what parts of the examples give, and what twice as many might."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from ..data.augment import augment_examples
from ..data.examples import written
from ..data.rows import Case, Row, case_of, tokenize
from ..models.adapters import load_model
from ..runtimes.constrained import Grammar
from ..runtimes.mlx import MlxGenerator
from ..training.curve import PARTS, Finished, Point, nested_parts, refit_parts
from .extrapolation import accuracies, interval
from .scorecards import Scorecard, score
from .shares import percent, wilson
from .tables import html_table, text_table

HEAD = ("training examples", "right", "95 %")
ENOUGH = 3  # points that a law with two parameters can be tested by
GAIN = 0.01  # the least gain of accuracy that is worth the name


@dataclass(repr=False)
class LearningCurve:
    """Scores by number of training examples, the run's own last; shows itself as a sentence and a table.

    `notes` say which refits there are not, and why; `minutes`: how long all of them take, about.
    """

    points: list[Point]
    notes: list[str] = field(default_factory=list)
    minutes: float = 0.0

    def band(self, examples: Sequence[float]) -> np.ndarray | None:
        """Where the accuracy (0 to 1) of so many training examples lies, low and high, `[2, len(examples)]`; None for
        fewer than three points."""
        return interval(accuracies(self.points, examples)) if len(self.points) >= ENOUGH else None

    @property
    def twice(self) -> int:
        """Twice as many training examples as the run has."""
        return 2 * self.points[-1].examples

    @property
    def sentence(self) -> str:
        """What twice as many examples of the same kinds might give, or why that cannot be said."""
        last, count = self.points[-1], len(self.points)
        if count < ENOUGH:
            time = (
                f"the refits on a quarter and a half of the examples take about {max(1, math.ceil(self.minutes))} min"
            )
            return (
                f"{last.right} of {last.cases} cases are right with {last.examples} training examples (of such "
                f"requests {_between(wilson(last.right, last.cases))}), and what more examples would give takes "
                f"{ENOUGH} scores to say, of which there {'is 1' if count == 1 else f'are {count}'}: "
                f"{'; '.join(self.notes) or time}."
            )
        draws = accuracies(self.points, [last.examples, self.twice])
        low, high = interval(draws[:, 1:] - draws[:, :1])[:, 0]
        verdict = "whether more examples of the same kinds help is open"
        if low >= GAIN:
            verdict = "more examples of the same kinds help"
        elif high < GAIN:
            verdict = "more examples of the same kinds would hardly help"
        return (
            f"Twice as many training examples, {self.twice}, would get {_between(interval(draws)[:, 1])} of such "
            f"requests right, between {100 * low:.0f} and {math.ceil(100 * high)} points more than {last.examples} do: "
            f"{verdict}."
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Examples, cases right and interval of every point, and what twice as many examples might give."""
        found = [
            (str(p.examples), f"{p.right} of {p.cases}", _between(wilson(p.right, p.cases), "–")) for p in self.points
        ]
        twice = self.band([self.twice])
        return found + ([] if twice is None else [(str(self.twice), "extrapolated", _between(twice[:, 0], "–"))])

    def __str__(self) -> str:
        return f"{textwrap.fill(self.sentence, 110)}\n\n{text_table(HEAD, self.rows())}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.sentence)}</p>{html_table(HEAD, self.rows())}"


def learning_curve(
    finished: Finished,
    card: Scorecard,
    splits: dict[str, list[dict]],
    augmented: dict,
    *,
    minutes: float,
    max_tokens: int,
    folder: Path,
    grammar: Grammar | None = None,
    steps: Callable[[int], int] | None = None,
    say: Callable[[str], None] = print,
) -> LearningCurve:
    """The scores of a `finished` training and of refits on parts of its examples, within so many `minutes`.

    `splits` are those of stage 01, `augmented` the keywords of `augment_examples` that the training examples were made
    with: a part is taken of those that somebody wrote, and augmented anew. `card` holds the training's answers to the
    test cases. Every model answers the test and the validation cases with the `grammar`; the latter also choose the
    adapters of a refit, as they chose those of the training. `steps`: how many optimiser steps so many rows need
    (default: as many epochs as the training took). Temporary files lie in `folder`. With 0 minutes nothing is fitted,
    and the test cases count alone.
    """
    train, valid = splits["train"], splits["valid"]
    own, seconds = written(train), (card.seconds or 0.0) / max(1, card.n) * (card.n + len(valid))
    needed = sum(finished.seconds(round(part * finished.config.iters)) + seconds for part in PARTS.values()) / 60
    if not minutes:
        return LearningCurve([Point(len(own), card.hits, card.n)], [], needed)
    model, tokenizer = load_model(finished.base, adapter_path=finished.best)
    cases, checks = ([case_of(example) for example in splits[name]] for name in ("test", "valid"))

    def answers(model, cases: Sequence[Case], grammar: Grammar | None = grammar) -> Scorecard:
        return score(MlxGenerator(model, tokenizer, max_tokens=max_tokens), cases, grammar=grammar)

    def right(model) -> tuple[int, int]:
        found = answers(model, [*cases, *checks])
        return found.hits, found.n

    def rows_of(part: list[dict]) -> list[Row]:
        made = augment_examples({**splits, "train": part}, **augmented).examples
        return [tokenize(example, tokenizer._tokenizer) for example in part + made]

    known = answers(model, checks)
    del model
    done = refit_parts(
        finished,
        nested_parts(own, augmented["similarity"], finished.config.seed),
        len(own),
        rows_of,
        steps or (lambda rows: round(finished.config.iters * rows / len(train))),
        right,
        minutes=minutes,
        folder=folder,
        valid_rows=[tokenize(example, tokenizer._tokenizer) for example in valid],
        evaluate=(lambda model: answers(model, checks, None).exact) if checks else None,
        seconds_to_score=seconds,
        say=say,
    )
    whole = Point(len(own), card.hits + known.hits, card.n + known.n)
    return LearningCurve([*done.points, whole], done.notes, needed)


def _between(bounds: Sequence[float], between: str = "") -> str:
    low, high = (percent(float(bound), 0) for bound in bounds)
    return f"{low}{between}{high}" if between else f"between {low} and {high}"
