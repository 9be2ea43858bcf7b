"""Greedy decoding of many prompts at once over the prefix they share, with an mlx-lm model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import blas, forward
from .prompt import STOP_IDS

if TYPE_CHECKING:
    from .grammar import Constraint

END_OF_TURN = 106
MOST_CANDIDATES = 512  # a row with more goes through the whole output layer


class MlxGenerator:
    """Greedy decoding: `generate(prompts) -> texts`, `generate_ids(prompts) -> ids without the stop token`.

    Both take what each answer is held to, one `grammar.Constraint` for each prompt.

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
        self.most_likely = None if MostLikely.why_not(model) else MostLikely.of(model)

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
            held = [constraints[i] for i in batch] if constraints else []
            answers, ended = self._decode(decoder([rows[i][prefix.length :] for i in batch], prefix), len(batch), held)
            for i, ids, end in zip(batch, answers, ended, strict=True):
                out[i], self.finished[i] = ids, end
        return out

    def next_logits(self, prompts: Sequence[str]):
        """Logits that follow the last token of each prompt: NumPy float32 `[prompts, vocabulary]`."""
        mx = blas.mlx()
        rows, decoder = self.encode(prompts), self._decoder()
        out = np.zeros((len(rows), self.model.args.vocab_size), np.float32)
        for prefix, batch in self._batches(rows):
            state = decoder([rows[i][prefix.length :] for i in batch], prefix)
            out[batch] = np.array(self._logits(state).astype(mx.float32))
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
        from . import torch_step

        if torch_step.why_not(self.model):
            return functools.partial(_Decoder, self.model)
        from .torch_decode import TorchDecoder, TorchWeights

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
        hidden = state.hidden if isinstance(state, _Decoder) else blas.mlx().array(state.hidden.numpy())
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
            held = [constraints[j] for j in alive] if constraints else []
            allowed = np.stack([constraint.allowed() for constraint in held]) if held else None
            if self.most_likely:
                tokens = self.most_likely(state.hidden, allowed)
            else:
                logits = self._logits(state)
                tokens = mx.argmax(logits if allowed is None else mx.where(mx.array(allowed), logits, -mx.inf), axis=-1)
                tokens = tokens.tolist()
            for constraint, token in zip(held, tokens):
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


class _Decoder:
    """Keys and values of the rows' own tokens, and the `hidden` state `[B, H]` of each row's last token, normed.

    A row's prompt fills columns from 0; what it says is appended behind the longest prompt, so columns between are
    holes, marked by position -1. Positions, not columns, decide what is visible.
    """

    def __init__(self, model, rows: list[list[int]], prefix):
        mx = blas.mlx()
        self.model, self.prefix = model, prefix
        lengths = [len(r) for r in rows]
        width = max(lengths)
        ids = mx.array([r + [0] * (width - len(r)) for r in rows], dtype=mx.int32)
        columns = mx.arange(width)
        self.next_position = prefix.length + mx.array(lengths, dtype=mx.int32)  # [B]
        real = columns[None] < mx.array(lengths)[:, None]
        self.positions = mx.where(real, prefix.length + columns[None], -1)  # [B, columns]
        self.keys, self.values = [], []
        h = self._forward(ids, prefix.length, mx.broadcast_to(prefix.length + columns, (len(rows), width)))
        self._finish(h[mx.arange(len(rows)), mx.array(lengths) - 1])

    def keep(self, rows: list[int]) -> None:
        """Drop the rows that have ended."""
        mx = blas.mlx()
        index = mx.array(rows)
        self.keys, self.values = [k[index] for k in self.keys], [v[index] for v in self.values]
        self.positions, self.next_position = self.positions[index], self.next_position[index]

    def step(self, tokens: list[int]) -> None:
        """Append one token to every row."""
        mx = blas.mlx()
        at = self.next_position
        self.positions = mx.concatenate([self.positions, at[:, None]], axis=1)
        h = self._forward(mx.array(tokens, dtype=mx.int32)[:, None], at, at[:, None])
        self.next_position = at + 1
        self._finish(h[:, 0])

    def _forward(self, ids, offset, queries):
        """Hidden states of `ids [B, S]` at positions `queries [B, S]`; the new keys and values are kept."""
        mx = blas.mlx()
        model, prefix = self.model, self.prefix
        h = forward.embed(model, ids)
        first, masks = not self.keys, {}
        for i, layer in enumerate(model.layers):
            attn, window = layer.self_attn, forward.window_of(model, layer)
            x = layer.input_layernorm(h)
            q, (keys, values) = forward._queries(attn, x, offset), forward._keys_values(attn, x, offset)
            if first:
                self.keys.append(keys)
                self.values.append(values)
            else:
                keys = self.keys[i] = mx.concatenate([self.keys[i], keys], axis=2)
                values = self.values[i] = mx.concatenate([self.values[i], values], axis=2)
            parts, low = [(keys, values)], prefix.length
            if prefix.length:
                shared, shared_values, low = forward.visible_prefix(prefix, i, window, prefix.length)
                if shared.shape[2]:
                    parts.insert(0, (shared, shared_values))
            if window not in masks:
                masks[window] = self._mask(queries, low, window)
            h = forward._rest_of_layer(layer, h, forward._attend(q, parts, masks[window]))
        return h

    def _mask(self, queries, low: int, window: int | None):
        mx = blas.mlx()
        shared = mx.broadcast_to(mx.arange(low, self.prefix.length), (queries.shape[0], self.prefix.length - low))
        keys = mx.concatenate([shared.astype(self.positions.dtype), self.positions], axis=1)
        mask = forward.causal_mask(queries, keys, window) & (keys >= 0)[:, None, :]
        return mask[:, None, None]

    def _finish(self, h) -> None:
        mx = blas.mlx()
        self.hidden = self.model.model.norm(h)
        mx.eval(self.hidden, self.keys, self.values, self.positions, self.next_position)


class MostLikely:
    """The most likely token of each row, for a table `[vocabulary, H]` of float32: the same as by a product in float32,
    most of it made in bfloat16.

    A product in bfloat16 is off by at most `2^-7 |h| |w|` (each factor and the sum are rounded by 2^-9), so only tokens
    within twice that of the best can be it. These few are then multiplied in float32.
    """

    def __init__(self, table):
        self.table, self.low = table, table.bfloat16()
        self.reach = 2.0**-6 * table.norm(dim=1).max().item()

    @staticmethod
    def why_not(model) -> str | None:
        """Why this would not be faster for the model, or not possible; None if it is."""
        from . import torch_step

        return torch_step.why_not(model) or torch_step.why_not_bfloat16()

    @classmethod
    def of(cls, model) -> MostLikely:
        """For the output layer of an MLX model on a CPU, whose memory is shared."""
        from .torch_step import share

        return cls(share((model.model.embed_tokens if model.tie_word_embeddings else model.lm_head).weight))

    def __call__(self, h, allowed=None) -> list[int]:
        """Token ids for normed hidden states `[B, H]` (torch); the lowest id where several are equal.

        `allowed` (NumPy bool `[B, vocabulary]`) says which it may be.
        """
        import torch

        near = h.bfloat16() @ self.low.T
        if allowed is not None:
            near.masked_fill_(torch.from_numpy(~allowed), -torch.inf)
        least = near.amax(dim=1).float() - self.reach * h.norm(dim=1)
        tokens = []
        for row, coarse, bound in zip(h, near, least):
            found = torch.nonzero(coarse >= bound).squeeze(1)
            if len(found) <= MOST_CANDIDATES:
                tokens.append(found[(self.table[found] @ row).argmax()].item())
            else:
                tokens.append((self.table @ row).masked_fill_(coarse < bound, -torch.inf).argmax().item())
        return tokens


def group_by_first_turn(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of rows that agree up to the end of their first turn (the developer's, with the tools)."""
    groups: dict[tuple, list[int]] = {}
    for i, ids in enumerate(rows):
        end = ids.index(END_OF_TURN) if END_OF_TURN in ids else 0
        groups.setdefault(tuple(ids[:end]), []).append(i)
    return list(groups.values())


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix that leaves at least one token to every row."""
    if not rows:
        return 0
    low, high = min(rows), max(rows)
    n = 0
    while n < min(len(low), len(high)) and low[n] == high[n]:
        n += 1
    return max(0, min(n, min(len(r) for r in rows) - 1))
