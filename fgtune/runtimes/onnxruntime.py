"""Greedy generation with onnxruntime: the prefix that all prompts share is run once, its keys and values are reused.

The prompts of a batch are prefilled one by one and then decoded together. GroupQueryAttention takes the length of each
row from the attention mask and reads only that much of the past, so rows of different lengths are padded on the right
and the answers are those of each prompt alone.

With drafts (drafts.py), a row that decodes alone runs several guessed tokens in one pass and keeps those that it would
have chosen (speculative decoding); the past behind the others is written over. Rows of a batch decode one token a pass:
GroupQueryAttention on the CPU takes more than one behind a past for a single row only, and a batch reads the weights
once for all rows as it is.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, takewhile
from pathlib import Path

import numpy as np

from ..core.errors import ExportError
from ..data.prefixes import common_prefix
from ..engines.ort import OrtError, OrtModel
from ..export.layout import model_file
from .constrained import Constraint
from .drafts import DraftSource


class OrtGenerator:
    """Greedy generation over a folder that `export_onnx` and `quantize` wrote. Raises OrtError.

    `drafts` save passes where a prompt is answered alone (`batch_size` 1). The answers are the same but for rounding: a
    pass of several tokens adds in another order than one of a single token, as between two engines (near_ties.py).
    `tokenizer_file` is another `tokenizer.json` of the same tokens, say one without unused merges.
    """

    def __init__(
        self,
        onnx_dir: str | Path,
        variant: str = "fp32",
        max_tokens: int = 256,
        stop_ids: Iterable[int] | None = None,
        threads: int | None = None,
        batch_size: int = 8,
        drafts: DraftSource | None = None,
        tokenizer_file: str | Path | None = None,
    ):
        from tokenizers import Tokenizer

        folder = Path(onnx_dir)
        try:
            path = folder / "onnx" / model_file(variant)
        except ExportError as error:
            raise OrtError(str(error)) from None
        with ThreadPoolExecutor(1) as beside:  # onnxruntime leaves the interpreter free while it loads
            model = beside.submit(OrtModel, path, threads)
            tokenizer_file = tokenizer_file or folder / "tokenizer.json"
            try:
                self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
            except Exception as error:  # tokenizers raises nothing narrower
                raise OrtError(f"{tokenizer_file} does not load: {str(error).splitlines()[0]}") from error
            self.model = model.result()
        if stop_ids is None:
            stop_ids = _stop_ids(folder / "generation_config.json")
        self.stop_ids = frozenset([stop_ids] if isinstance(stop_ids, int) else stop_ids)
        self.variant, self.max_tokens = variant, max_tokens
        self.batch_size = batch_size if self.model.right_padded else 1
        self.drafts = drafts if self.model.right_padded else None  # others take the whole past for their tokens
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
        past = [self.model.ort_value(arrays[name].astype(self.model.past_dtype)) for name in self.model.past_names]
        self._prefix, self._given = (tuple(ids), past), True

    def run_prompt_cache(self, ids: Sequence[int]) -> None:
        """The same where no keys and values are stored: runs `ids` once."""
        _, past = self.model.run(np.array([list(ids)]), self.model.empty())
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
        """New token ids for each prompt, without the stop id; at most `max_tokens` each, and as the model holds."""
        rows = self._encode_all(prompts)
        self.ids, self.finished = [], []
        past = self._shared_past(rows) if rows else []
        for start in range(0, len(rows), self.batch_size):
            batch = slice(start, start + self.batch_size)
            answers, ended = self._answer(rows[batch], past, constraints and constraints[batch])
            self.ids += answers
            self.finished += ended
        return self.ids

    def stream_ids(self, prompt: str, constraint: Constraint | None = None) -> Generator[int, None, bool]:
        """The token ids of one answer as they are chosen, without the stop id; returns whether it came to one.

        Other questions may be asked between two tokens: `ids` and `finished` are theirs.
        """
        rows = self._encode_all([prompt])
        answers, told = self._answers_to(rows, [constraint] if constraint else None), 0
        for _ in self._steps(rows, self._shared_past(rows), answers):
            yield from answers.ids[0][told:]
            told = len(answers.ids[0])
        return answers.finished[0]

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

    def _encode_all(self, prompts: Sequence[str]) -> list[list[int]]:
        if isinstance(prompts, str):
            raise OrtError("prompts is one string: give a list")
        rows = [self.encode(prompt) for prompt in prompts]
        if not all(rows):
            raise OrtError("a prompt is empty")
        return rows

    def _shared_past(self, rows: list[list[int]]) -> list:
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

    def _answer(
        self, rows: list[list[int]], past: list, constraints: Sequence[Constraint] | None
    ) -> tuple[list[list[int]], list[bool]]:
        """New ids of each row of a batch, and whether it came to a stop token; `past` holds the shared prefix."""
        answers = self._answers_to(rows, constraints)
        for _ in self._steps(rows, past, answers):
            pass
        return answers.ids, answers.finished

    def _answers_to(self, rows: list[list[int]], constraints: Sequence[Constraint] | None) -> _Answers:
        """Empty answers, each with as many tokens to come as `max_tokens` and the positions of the export allow."""
        limits = [self.max_tokens] * len(rows)
        if self.model.positions and self.max_tokens > 0:  # the last token is not run; a prompt too long is refused then
            limits = [min(self.max_tokens, max(1, self.model.positions - len(row) + 1)) for row in rows]
        return _Answers(limits, self.stop_ids, constraints)

    def _steps(self, rows: list[list[int]], past: list, answers: _Answers) -> Iterator[None]:
        """Fill `answers` with those to a batch of rows; each step is a pass, which extends every open answer."""
        if max(answers.limits) > 0 and self.drafts and len(rows) == 1:
            held = past[0].shape()[2]
            state = self.model.stack(past, 1, len(rows[0]) - held + answers.limits[0])
            yield from self._speculate(state, held, rows[0], 0, answers)
        elif max(answers.limits) > 0:
            logits, state = self._prefill(rows, past, answers.limits)
            tokens = [answers.extend(i, scores) for i, scores in enumerate(logits)]
            yield
            yield from self._decode(state, rows, tokens, answers)

    def _prefill(self, rows: list[list[int]], past: list, limits: list[int]) -> tuple[list[np.ndarray], list]:
        """Run what each row has beyond `past`, row by row.

        Returns the logits [vocab] after each row, and the past of all rows, with capacity for answers up to `limits`.
        """
        held = past[0].shape()[2]
        if not self.model.right_padded:  # a batch of one
            (row,) = rows
            logits, state = self.model.run(np.array([row[held:]]), past)
            return [logits.reshape(-1)], state
        longest = max(len(row) + limit for row, limit in zip(rows, limits, strict=True))
        state = self.model.stack(past, len(rows), longest - held)
        found = []
        for i, row in enumerate(rows):
            own = self.model.part(state, slice(i, i + 1))
            logits, _ = self.model.run(np.array([row[held:]]), own, [held])
            found.append(logits.reshape(-1))
        return found, state

    def _decode(self, state: list, rows: list[list[int]], tokens: list[int], answers: _Answers) -> Iterator[None]:
        """Extend the answers of a batch by one token a step; rows whose answer is complete leave the batch.

        `state` holds `rows`, `tokens` are the first of each answer.
        """
        active, lengths = list(range(len(rows))), list(map(len, rows))
        while alive := [k for k, i in enumerate(active) if answers.is_open(i)]:
            if len(alive) < len(active):
                state, order = self.model.compact(state, alive, lengths)
                active, tokens, lengths = ([items[k] for k in order] for items in (active, tokens, lengths))
            if self.drafts and len(active) == 1:
                yield from self._speculate(state, lengths[0], rows[active[0]], active[0], answers)
                return
            logits, state = self.model.run(np.array(tokens)[:, None], state, lengths)
            lengths = [length + 1 for length in lengths]
            tokens = [answers.extend(i, scores) for i, scores in zip(active, logits[:, -1])]
            yield

    def _speculate(self, state: list, held: int, row: list[int], i: int, answers: _Answers) -> Iterator[None]:
        """Complete answer `i` to the prompt `row` with drafts; `state` holds the first `held` tokens of both."""
        while answers.is_open(i):
            ids = row + answers.ids[i]
            room = answers.limits[i] - len(answers.ids[i]) - 1
            constraint = answers.constraints[i] if answers.constraints else None
            draft = self.drafts.propose(ids, room, constraint)[:room] if room > 0 else []
            draft = list(takewhile(lambda token: token not in self.stop_ids, draft))  # nothing comes behind one
            logits, state = self.model.run(np.array([ids[held:] + draft]), state, [held], keep=len(draft) + 1)
            for guess, scores in zip([*draft, None], logits[0]):
                if answers.extend(i, scores) != guess or not answers.is_open(i):
                    break
            held = len(row) + len(answers.ids[i]) - 1  # what was run behind the last token but one was not chosen
            yield


def _stop_ids(path: Path) -> int | list[int]:
    """What ends an answer, by a model's `generation_config.json`. Raises OrtError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["eos_token_id"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OrtError(f"{path} names no eos_token_id: {type(error).__name__}: {error}") from None
    if not all(isinstance(token, int) for token in (found if isinstance(found, list) else [found])):
        raise OrtError(f"{path}: eos_token_id is no token id or list of them")
    return found


class _Answers:
    """The answers to a batch of prompts as they grow, each to its own limit of tokens."""

    def __init__(self, limits: list[int], stop_ids: frozenset[int], constraints: Sequence[Constraint] | None):
        self.ids: list[list[int]] = [[] for _ in limits]
        self.finished = [False] * len(limits)
        self.limits, self.stop_ids, self.constraints = limits, stop_ids, constraints
        for constraint in constraints or ():
            constraint.start()

    def extend(self, i: int, scores: np.ndarray) -> int:
        """Choose the next token of answer `i` by its logits [vocab]; returns it, a stop token too."""
        token = self.constraints[i].choose(scores) if self.constraints else int(scores.argmax())
        self.finished[i] = token in self.stop_ids
        if not self.finished[i]:
            self.ids[i].append(token)
        return token

    def is_open(self, i: int) -> bool:
        """Whether answer `i` goes on."""
        return not self.finished[i] and len(self.ids[i]) < self.limits[i]
