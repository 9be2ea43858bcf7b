"""What a runtime offers to those that ask it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .constrained import Constraint


class Generator(Protocol):
    """Greedy answers to rendered prompts: `MlxGenerator`, `OrtGenerator`, `NodeGenerator`.

    `constraints`, one for each prompt, limit an answer to calls that fit the tools; without them decoding is
    unconstrained. `finished` says of each answer of the last call whether it came to a stop token; the others are
    truncated at `max_tokens`.
    """

    max_tokens: int
    finished: list[bool]

    def generate(self, prompts: Sequence[str], constraints: Sequence[Constraint] | None = None) -> list[str]:
        """The text each prompt is continued with, control tokens included, without the stop token."""

    def generate_ids(self, prompts: Sequence[str], constraints: Sequence[Constraint] | None = None) -> list[list[int]]:
        """The same as token ids."""


class LogitsModel(Protocol):
    """A model whose logits can be asked for, position by position: `OrtGenerator`, `MlxLogits`."""

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a text, nothing added."""

    def logits(self, ids: Sequence[int], start: int = 0, cached: bool = False) -> np.ndarray:
        """Logits after each of `ids[start:]`, float32 [len(ids) - start, vocab]; `cached` runs them over a cache."""
