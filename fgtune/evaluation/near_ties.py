"""Two answers to one prompt that part: at a near tie of two tokens, or at a real difference.

Two engines, thread counts or processors add the same numbers in another order, so their logits differ by rounding.
Greedy decoding takes another token where the two best are closer than that, and everything after it may differ.
Such a near tie says nothing against a runtime. Anything else does.

The margin comes from the reference itself: the same positions run as one pass and run piece by piece over a cache,
which is the same mathematics in another order. Where activations are rounded to 8 bits, one such step shows in the
logits, and in this measure. Measured on the tiny model (logits up to 5): between MLX, torch, onnxruntime, its
WebAssembly build and several instruction sets, float32 logits differ by at most 1.5e-5, which is 25 eps of the largest;
one pass and pieces differ by 2e-6 in float32, by 3e-3 in float16, by 3e-2 with 8-bit activations. On Gemma 3 270M
(logits up to 23) MLX, torch and onnxruntime differ by at most 5.5e-5, 20 eps of the largest; pieces by 4e-5.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.rows import Case
from ..format.tokens import STOP_IDS
from ..runtimes.constrained import Constraint, Grammar
from ..runtimes.protocols import LogitsModel
from .judging import Result
from .scorecards import Scorecard

MARGIN = 4  # times the rounding: each of two tokens may be off, and another engine by more than two passes of one
FLOAT32_ROUNDING = 32 * float(np.finfo(np.float32).eps)  # of the largest logit: engines differ so much at most


@dataclass(frozen=True)
class Difference:
    """Where two answers to a case part.

    After `shared` tokens the reference goes on with `tokens[0]`, the other with `tokens[1]` (ids). `gap` is how far
    the worse of the two lies below the best token in the reference's logits (infinite where the grammar forbids it);
    `margin` is the gap that rounding explains.
    """

    id: str
    query: str
    reference: str
    answer: str
    shared: int
    tokens: tuple[int, int]
    gap: float
    margin: float

    @property
    def near_tie(self) -> bool:
        """Whether rounding explains the difference."""
        return self.gap <= self.margin

    def __str__(self) -> str:
        kind = "near tie" if self.near_tie else "different"
        about = f"after {self.shared} tokens, logits {self.gap:.1e} apart, rounding explains {self.margin:.1e}"
        return f"{kind}: {self.query}\n    {self.reference}\n    {self.answer}\n    ({about})"


def differences(
    card: Scorecard, reference: Scorecard, model: LogitsModel, cases: Iterable[Case], grammar: Grammar | None = None
) -> list[Difference]:
    """Where the answers of `card` and of `reference` part: neither the same text nor the same calls.

    `model` gives the logits of the runtime that made `reference`; `grammar` is what both answers were held to.
    Nothing is computed for equal answers.
    """
    theirs, known = {result.id: result for result in reference.results}, {case.id: case for case in cases}
    pairs = [(theirs[result.id], result) for result in card.results]
    return [
        find_difference(known[answer.id], expected, answer, model, grammar)
        for expected, answer in pairs
        if expected.output != answer.output and (not answer.got or expected.got != answer.got)
    ]


def unexplained_differences(
    card: Scorecard, reference: Scorecard, model: LogitsModel, cases: Iterable[Case], grammar: Grammar | None = None
) -> list[Difference]:
    """The `differences` that are no near tie."""
    return [found for found in differences(card, reference, model, cases, grammar) if not found.near_tie]


def find_difference(
    case: Case, reference: Result, answer: Result, model: LogitsModel, grammar: Grammar | None = None
) -> Difference:
    """The first token at which two answers to a case part, and how close it was.

    The answers are read as the tokenizer would write them. A model may have spelled a text in other tokens; then the
    gap is too large rather than too small.
    """
    ours, others = model.encode(reference.output), model.encode(answer.output)
    shared = next((i for i, (a, b) in enumerate(zip(ours, others)) if a != b), min(len(ours), len(others)))
    prompt = model.encode(case.prompt)
    passes = functools.partial(model.logits, prompt + ours[:shared], len(prompt) - 1)
    whole = passes()
    rounding = max(np.abs(whole - passes(cached=True)).max(), FLOAT32_ROUNDING * np.abs(whole).max())
    scores = whole[-1].astype(np.float64)
    if grammar:
        scores[~_allowed(grammar.constraint(case.tools, case.prompt), ours[:shared])] = -np.inf
    stop = max(STOP_IDS, key=lambda id: scores[id])  # of an answer that ends here
    tokens = (ours[shared] if shared < len(ours) else stop, others[shared] if shared < len(others) else stop)
    worse = min(scores[id] for id in tokens)
    gap = float(scores.max() - worse) if np.isfinite(worse) else np.inf
    return Difference(
        case.id, case.query, reference.output, answer.output, shared, tokens, gap, MARGIN * float(rounding)
    )


def _allowed(constraint: Constraint, ids: Sequence[int]) -> np.ndarray:
    """Which tokens may follow `ids` in an answer; none where `ids` themselves may not stand there."""
    constraint.start()
    fits = all(constraint.accept(token) for token in ids)
    return constraint.allowed() if fits else np.zeros(constraint.grammar.vocab_size, bool)
