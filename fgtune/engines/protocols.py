"""What a training engine and a decoder offer, whatever computes them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

from ..data.batches import Batch


class StepEngine(Protocol):
    """Loss and gradients of one training step. `name` is what users choose it by ("mlx" or "torch")."""

    name: str

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[float, int]:
        """(exact sum of the cross-entropy in nats, number of learned tokens), without gradients."""
        ...

    @abstractmethod
    def gradients(self, batch: Batch) -> tuple[float, Any]:
        """(sum of the cross-entropy in nats, gradients of that sum), evaluated.

        The gradients are a tree of MLX arrays, shaped like the model's trainable parameters.
        """
        ...


class Decoder(Protocol):
    """Rows of tokens behind a shared prefix, decoded one token at a time with their keys and values kept.

    `hidden` `[B, hidden_size]` is the state of each row's last token behind the final norm: what the output layer
    reads. It is an array of the decoder's own library.
    """

    hidden: Any

    @abstractmethod
    def step(self, tokens: list[int]) -> None:
        """Append one token to each of the `B` rows."""
        ...

    @abstractmethod
    def keep(self, rows: list[int]) -> None:
        """Keep the rows with these indices, in this order, and drop the others; `hidden` follows at the next `step`."""
        ...
