"""The error rate for more training examples than there are, by a power law, with its uncertainty.

Error rates of one model and task fall about as a power of the number of training examples: `a * n ** -b` (Hestness et
al., 2017, arXiv:1712.00409). Fitted by maximum likelihood to counts of wrong cases; b is not negative, because more
examples do no harm in the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..training.curve import Point

RATES = 1 / (1 + np.exp(-np.linspace(-8, 8, 241)))  # error rates at the largest number of examples that is measured
POWERS = np.linspace(0, 3, 61)
DRAWS, AT_ONCE = 1000, 100


def accuracies(points: Sequence[Point], at: Sequence[float], seed: int = 0, draws: int = DRAWS) -> np.ndarray:
    """Accuracy (0 to 1) at so many examples by each draw of a parametric bootstrap, `[draws, len(at)]`.

    A draw takes as many wrong cases at each point as chance gives by the fitted law, and fits them anew. For the law
    that is drawn from, half a case right and half a case wrong are added to each point, so that no rate is taken for 0
    or 1. The spread is that of the counts: another seed of the training, and a law that does not hold, come on top.
    """
    sizes, right, cases = (np.array(column, float) for column in zip(*points))
    rates = _rates(sizes, sizes.max())
    fitted = rates[_likeliest(rates, (cases - right)[None], cases, added=0.5)[0]]
    rng = np.random.default_rng(seed)
    wrong = rng.binomial(cases.astype(int), fitted, size=(draws, len(points))).astype(float)
    best = np.concatenate([_likeliest(rates, wrong[i : i + AT_ONCE], cases) for i in range(0, draws, AT_ONCE)])
    return 1 - _rates(np.asarray(at, float), sizes.max())[best]


def interval(draws: np.ndarray) -> np.ndarray:
    """The middle 95 % of each column, low and high, `[2, columns]`."""
    return np.quantile(draws, [0.025, 0.975], axis=0)


def _rates(sizes: np.ndarray, largest: float) -> np.ndarray:
    """Error rates `[laws, sizes]` of every law of the grid of `RATES` and `POWERS`, below 1."""
    falls = (sizes / largest)[None] ** -POWERS[:, None]
    return np.minimum((RATES[:, None, None] * falls[None]).reshape(-1, len(sizes)), RATES[-1])


def _likeliest(rates: np.ndarray, wrong: np.ndarray, cases: np.ndarray, added: float = 0.0) -> np.ndarray:
    """For each row of counts of wrong cases, `[rows, points]`, the law that makes them the likeliest.

    `added`: so many cases right, and as many wrong, that are added at each point.
    """
    likelihood = (wrong + added) @ np.log(rates).T + (cases - wrong + added) @ np.log1p(-rates).T
    return likelihood.argmax(axis=1)
