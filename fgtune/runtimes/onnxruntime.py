"""Greedy generation with onnxruntime: the prefix that all prompts share is run once, its keys and values are reused.

The prompts are prefilled one by one and then decoded as one batch. GroupQueryAttention takes the length of each row
from the attention mask and reads only that much of the past, so rows of different lengths are padded on the right and
the answers are those of each prompt alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..core.errors import ExportError
from ..data.prefixes import common_prefix
from ..engines.ort import OrtError, OrtModel
from ..export.dequantized import SESSION
from ..export.layout import model_file
from .constrained import Constraint


class OrtGenerator:
    """Greedy generation over a folder that `export_onnx` and `quantize` wrote. Raises OrtError.

    `wide` takes the graph over unpacked weights that a deployed site has beside the variant (`wide.py`).
    """

    def __init__(
        self,
        onnx_dir: str | Path,
        variant: str = "fp32",
        max_tokens: int = 256,
        stop_ids: Iterable[int] | None = None,
        threads: int | None = None,
        batch_size: int = 8,
        wide: bool = False,
    ):
        from tokenizers import Tokenizer

        folder = Path(onnx_dir)
        try:
            path = folder / "onnx" / model_file(variant, wide=wide)
        except ExportError as error:
            raise OrtError(str(error)) from None
        self.model = OrtModel(path, threads, settings=SESSION if wide else None)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        if stop_ids is None:
            stop_ids = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
        self.stop_ids = frozenset([stop_ids] if isinstance(stop_ids, int) else stop_ids)
        self.variant, self.max_tokens = variant, max_tokens
        self.batch_size = batch_size if self.model.right_padded else 1
        self.ids: list[list[int]] = []  # of the last call
        self.finished: list[bool] = []  # of the last call: did each answer come to a stop token
        self._prefix: tuple[tuple[int, ...], list] = ((), self.model.empty())
        self._given = False  # whether the prefix is one of `use_prompt_cache`, which stays

    def use_prompt_cache(self, ids: Sequence[int], arrays: dict[str, np.ndarray]) -> None:
        """Start prompts that begin with `ids` from these keys and values (by input name), as a deployed page does.

        Raises OrtError when they are not of this model.
        """
        shape = (1, self.model.past_shape[1], len(ids), self.model.past_shape[3])
        if any(name not in arrays or arrays[name].shape != shape for name in self.model.past_names):
            raise OrtError(f"the prompt cache does not hold {len(ids)} tokens of this model")
        past = [self.model._value(arrays[name].astype(self.model.past_dtype)) for name in self.model.past_names]
        self._prefix, self._given = (tuple(ids), past), True

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a rendered prompt; it carries its own <bos>."""
        return self.tokenizer.encode(prompt, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def generate(self, prompts: Sequence[str], constraints: Sequence[Constraint] | None = None) -> list[str]:
        """The continuation of each prompt, without its stop token."""
        return [self.decode(ids) for ids in self.generate_ids(prompts, constraints)]

    def generate_ids(self, prompts: Sequence[str], constraints: Sequence[Constraint] | None = None) -> list[list[int]]:
        """New token ids for each prompt, without the stop id; at most `max_tokens` each.

        `constraints` are what each answer is held to (`grammar.Constraint`).
        """
        rows = self._encode_all(prompts)
        self.ids, self.finished = [], []
        past = self._share(rows) if rows else []
        for start in range(0, len(rows), self.batch_size):
            batch = slice(start, start + self.batch_size)
            answers, ended = self._decode_batch(rows[batch], past, constraints and constraints[batch])
            self.ids += answers
            self.finished += ended
        return self.ids

    def next_logits(self, prompts: Sequence[str]) -> np.ndarray:
        """Logits of the token after each prompt, float32 [prompts, vocab]."""
        rows = self._encode_all(prompts)
        past = self._share(rows) if rows else []
        found = [self._suffix(row, past)[0] for row in rows]
        return np.stack(found) if found else np.empty((0, self.model.vocab), np.float32)

    def logits(self, ids: Sequence[int], start: int = 0, cached: bool = False) -> np.ndarray:
        """Logits after each of `ids[start:]`, float32 [len(ids) - start, vocab].

        `cached` runs `ids[:start]` first, then a chunk, then the last tokens one by one, as generation does.
        Both start from the keys and values of `use_prompt_cache` where they hold no more than `ids[:start]`.
        """
        row, (known, past) = np.array([list(ids)]), self._prefix
        if not self._given or start < len(known) or tuple(ids[: len(known)]) != known:
            known, past = (), self.model.empty()
        if not cached:
            return self.model.run(row[:, len(known) :], past, keep=len(ids) - start)[0][0]
        found = []
        bounds = sorted({len(known), start, max(start, len(ids) - 4), *range(max(start, len(ids) - 4), len(ids) + 1)})
        for begin, end in pairwise(bounds):
            logits, past = self.model.run(row[:, begin:end], past, keep=end - begin if begin >= start else 1)
            if begin >= start:
                found.append(logits[0])
        return np.concatenate(found)

    def prefix_cache(self, prompt_prefix: str) -> dict[str, np.ndarray]:
        """Keys and values of a prefix, by input name, [1, kv heads, tokens, head_dim]: bake them beside the model.

        The prefix must end where a token ends (after <end_of_turn> and its newline, say).
        """
        ids = self.encode(prompt_prefix)
        if not ids:
            raise OrtError("the prefix is empty")
        _, past = self.model.run(np.array([ids]), self.model.empty())
        return {name: value.numpy() for name, value in zip(self.model.past_names, past, strict=True)}

    def _encode_all(self, prompts: Sequence[str]) -> list[list[int]]:
        if isinstance(prompts, str):
            raise OrtError("prompts is one string: give a list")
        rows = [self.encode(prompt) for prompt in prompts]
        if not all(rows):
            raise OrtError("a prompt is empty")
        return rows

    def _share(self, rows: list[list[int]]) -> list:
        """The past of the prefix that all rows share; kept for the next call."""
        ids = tuple(rows[0][: common_prefix(rows)]) if len(rows) > 1 else ()
        known = self._prefix[0]
        if known and all(len(row) > len(known) and tuple(row[: len(known)]) == known for row in rows):
            if self._given or len(known) >= len(ids) or len(rows) == 1:
                return self._prefix[1]
        past = self.model.empty()
        if ids:
            _, past = self.model.run(np.array([ids]), past)
        if not self._given:
            self._prefix = (ids, past)
        return past

    def _suffix(self, row: list[int], past: list) -> tuple[np.ndarray, list]:
        """Run what a row has beyond `past`; returns (logits [vocab] of its last token, its past)."""
        own = row[past[0].shape()[2] :]
        logits, mine = self.model.run(np.array([own]), past)
        return logits[0, -1], mine

    def _decode_batch(
        self, rows: list[list[int]], past: list, constraints: Sequence[Constraint] | None
    ) -> tuple[list[list[int]], list[bool]]:
        """New ids of each row, and whether it came to a stop token."""

        def likeliest(i: int, scores: np.ndarray) -> int:
            return constraints[i].choose(scores) if constraints else int(scores.argmax())

        done: list[list[int]] = [[] for _ in rows]
        ended = [False] * len(rows)
        if self.max_tokens < 1:
            return done, ended
        if self.model.right_padded:
            held = past[0].shape()[2]
            whole = state = self.model.stack(past, len(rows), max(map(len, rows)) - held + self.max_tokens)
        tokens = []
        for i, row in enumerate(rows):
            if self.model.right_padded:
                mine = self.model.part(whole, slice(i, i + 1))
                logits, _ = self.model.run(np.array([row[held:]]), mine, [held])
            else:
                logits, state = self._suffix(row, past)  # a batch of one
            if constraints:
                constraints[i].start()
            tokens.append(likeliest(i, logits.reshape(-1)))
            ended[i] = tokens[i] in self.stop_ids
            if not ended[i]:
                done[i].append(tokens[i])
        active, lengths = list(range(len(rows))), list(map(len, rows))
        while True:
            alive = [k for k, i in enumerate(active) if not ended[i] and len(done[i]) < self.max_tokens]
            if not alive:
                return done, ended
            if len(alive) < len(active):
                state, order = self.model.compact(state, alive, lengths)
                active, tokens, lengths = ([items[k] for k in order] for items in (active, tokens, lengths))
            logits, state = self.model.run(np.array(tokens)[:, None], state, lengths)
            lengths = [length + 1 for length in lengths]
            tokens = [likeliest(i, row) for i, row in zip(active, logits[:, -1])]
            for k, i in enumerate(active):
                ended[i] = tokens[k] in self.stop_ids
                if not ended[i]:
                    done[i].append(tokens[k])
