"""Greedy decoding of many prompts at once over the prefix they share, with an mlx-lm model."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from ..core import blas
from ..data.prefixes import common_prefix, group_by_first_turn
from ..engines import mlx_forward as forward
from ..engines.argmax import ExactArgmax
from ..engines.mlx_decoder import MlxDecoder
from ..format.tokens import STOP_IDS
from .constrained import Constraint


class MlxGenerator:
    """Greedy decoding: `generate(prompts) -> texts`, `generate_ids(prompts) -> ids without the stop token`.

    Both take a `Constraint` for each prompt; without them decoding is unconstrained.

    Prompts are rendered strings that begin with `<bos>`. Their longest common prefix runs once; up to `batch_size`
    rows decode together, right-padded, each at its own positions. Token for token what mlx-lm's `generate` gives.
    """

    def __init__(
        self, model, tokenizer, max_tokens: int = 256, stop_ids: Sequence[int] = STOP_IDS, batch_size: int = 64
    ):
        if max_tokens < 1 or batch_size < 1:
            raise ValueError(f"max_tokens and batch_size must be 1 or more, not {max_tokens} and {batch_size}")
        self.model, self.tokenizer = model, tokenizer
        self.max_tokens, self.batch_size = max_tokens, batch_size
        self.stop_ids = frozenset(int(i) for i in stop_ids)
        self.finished: list[bool] = []  # of the last call: did each answer come to a stop token
        self.exact_argmax = None if ExactArgmax.unsupported_reason(model) else ExactArgmax.of(model)

    def generate(self, prompts: Sequence[str], constraints: Sequence[Constraint] | None = None) -> list[str]:
        """The text each prompt is continued with, special tokens included, without the stop token."""
        found = self.generate_ids(prompts, constraints)
        return [self.tokenizer.decode(ids, skip_special_tokens=False) for ids in found]

    def generate_ids(self, prompts: Sequence[str], constraints: Sequence[Constraint] | None = None) -> list[list[int]]:
        """New ids of each prompt, without the stop token."""
        rows, decoder = self.encode(prompts), self._decoder()
        out: list[list[int]] = [[] for _ in rows]
        self.finished = [False] * len(rows)
        for prefix, batch in self._batches(rows):
            own = [constraints[i] for i in batch] if constraints else []
            answers, ended = self._decode(decoder([rows[i][prefix.length :] for i in batch], prefix), len(batch), own)
            for i, ids, end in zip(batch, answers, ended, strict=True):
                out[i], self.finished[i] = ids, end
        return out

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt; ValueError for one without a token."""
        rows = [list(self.tokenizer.encode(p, add_special_tokens=False)) for p in prompts]
        for i, ids in enumerate(rows):
            if not ids:
                raise ValueError(f"prompt {i + 1} is empty")
        return rows

    def _decoder(self):
        """What makes a decoder of rows behind a prefix, for the model as it is now: torch's on CPUs where it can."""
        from ..engines.torch_support import unsupported_reason

        if unsupported_reason(self.model):
            return functools.partial(MlxDecoder, self.model)
        from ..engines.torch_decoder import TorchDecoder, TorchWeights

        return functools.partial(TorchDecoder, TorchWeights(self.model))

    def _batches(self, rows: list[list[int]]):
        """(prefix, indices of rows): rows of one developer turn share what they have in common, run once."""
        mx = blas.mlx()
        for group in group_by_first_turn(rows):
            length = common_prefix([rows[i] for i in group])
            prefix = forward.Prefix()
            if length:
                prefix = forward.run_prefix(self.model, mx.array(rows[group[0]][:length], dtype=mx.int32))
                mx.eval(prefix.keys, prefix.values)
            group.sort(key=lambda i: len(rows[i]))  # rows of like length share a batch
            for a in range(0, len(group), self.batch_size):
                yield prefix, group[a : a + self.batch_size]

    def _logits(self, state):
        """Logits `[B, vocabulary]` (MLX) that follow each row's last token."""
        hidden = state.hidden if isinstance(state, MlxDecoder) else blas.mlx().array(state.hidden.numpy())
        return forward.head(self.model, hidden)

    def _decode(self, state, count: int, constraints: list[Constraint]) -> tuple[list[list[int]], list[bool]]:
        """New ids of each of the `count` rows of a decoder, and whether it came to a stop token."""
        mx = blas.mlx()
        for constraint in constraints:
            constraint.start()
        out: list[list[int]] = [[] for _ in range(count)]
        ended = [True] * count
        alive = list(range(count))
        for step in range(self.max_tokens):
            active = [constraints[j] for j in alive] if constraints else []
            allowed = np.stack([constraint.allowed() for constraint in active]) if active else None
            if self.exact_argmax:
                tokens = self.exact_argmax(state.hidden, allowed)
            else:
                logits = self._logits(state)
                tokens = mx.argmax(logits if allowed is None else mx.where(mx.array(allowed), logits, -mx.inf), axis=-1)
                tokens = tokens.tolist()
            for constraint, token in zip(active, tokens):
                constraint.advance(token)
            keep = [j for j, token in enumerate(tokens) if token not in self.stop_ids]
            for j in keep:
                out[alive[j]].append(tokens[j])
            if not keep or step + 1 == self.max_tokens:
                for j in keep:
                    ended[alive[j]] = False
                break
            if len(keep) < len(alive):
                state.keep(keep)
                alive, tokens = [alive[j] for j in keep], [tokens[j] for j in keep]
            state.step(tokens)
        return out, ended
