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
from typing import TYPE_CHECKING

import numpy as np

from .export import ExportError, model_file
from .generate import common_prefix
from .wide import SESSION

if TYPE_CHECKING:
    from .grammar import Constraint


class OrtError(RuntimeError):
    """The model cannot be loaded or run; the message is one line."""


def open_session(path: Path, threads: int | None = None, taps: Sequence[str] = (), settings: dict | None = None):
    """An onnxruntime session on the CPU, quiet. `threads` None leaves the number to onnxruntime (one per core).

    `taps` names tensors inside the graph that become outputs; `settings` are onnxruntime's session config entries.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads != 1 else "0")
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    if not path.exists():
        raise OrtError(f"{path} does not exist")
    source = str(path)
    if taps:
        model = onnx.load(source, load_external_data=False)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in taps)
        source = model.SerializeToString()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own classes, all of them below Exception
        raise OrtError(f"{path} does not load: {str(error).splitlines()[0]}") from error


class OrtModel:
    """A decoder with past keys and values on onnxruntime: token ids in, float32 logits and the new past out."""

    def __init__(
        self, path: str | Path, threads: int | None = None, taps: Sequence[str] = (), settings: dict | None = None
    ):
        self.session = open_session(Path(path), threads, taps, settings)
        self.taps, self.tapped = list(taps), {}  # tapped: what the last run gave for each tap
        self.inputs = {item.name: item for item in self.session.get_inputs()}
        self.past_names = [name for name in self.inputs if name.startswith("past_key_values.")]
        self.present_names = [name.replace("past_key_values", "present") for name in self.past_names]
        if not self.past_names or "attention_mask" not in self.inputs:
            raise OrtError(f"{path} is no decoder with past keys and values")
        self.keeps = "num_logits_to_keep" in self.inputs
        props = self.session.get_modelmeta().custom_metadata_map
        self.ragged = props.get("fgtune.exporter") == "direct"  # GroupQueryAttention: rows may differ in length
        self.positions = int(props["fgtune.positions"]) if "fgtune.positions" in props else None
        item = self.inputs[self.past_names[0]]
        self.past_dtype = np.float16 if "float16" in item.type else np.float32
        self.past_shape = item.shape  # [batch, kv heads, past, head_dim]
        self._bound: tuple[list, object] | None = None
        self.vocab = self.session.get_outputs()[0].shape[-1]

    def empty(self, batch: int = 1) -> list:
        """A past without tokens."""
        shape = (batch, self.past_shape[1], 0, self.past_shape[3])
        return [self._value(np.zeros(shape, self.past_dtype)) for _ in self.past_names]

    def run(self, ids: np.ndarray, past: list, lengths: Sequence[int] | None = None, keep: int = 1):
        """One step: `ids` [batch, n] after `past`. Returns (logits float32 [batch, kept, vocab], past).

        `lengths` are the tokens each row has in `past` (default: all it holds); `keep` 0 gives every position. Where
        `past` has room for `ids` behind the longest row, they are written into it, and it is the past that comes back.
        """
        batch, count = ids.shape
        held = past[0].shape()[2]
        lengths = [held] * batch if lengths is None else list(lengths)
        width = max(lengths) + count
        if self.positions and width > self.positions:
            raise OrtError(f"{width} tokens do not fit: the model was exported for {self.positions} (max_positions)")
        in_place = self.ragged and held >= width
        seen = np.arange(width if in_place else held + count)
        mask = (seen[None] < (np.array(lengths) + count)[:, None]).astype(np.int64)
        feed = {"input_ids": ids.astype(np.int64), "attention_mask": mask}
        if self.keeps:
            feed["num_logits_to_keep"] = np.array(keep, np.int64)
        if "position_ids" in self.inputs:
            feed["position_ids"] = np.array(lengths)[:, None] + np.arange(count)[None]
        binding = self._bind(past, in_place)
        for name, value in feed.items():
            if name in self.inputs:
                binding.bind_ortvalue_input(name, self._value(value))
        if in_place:  # asking for all outputs, the past too, would cost more than a small node
            logits = self._room((batch, min(keep or count, count), self.vocab), np.float32)
            binding.bind_ortvalue_output("logits", logits)
        self.session.run_with_iobinding(binding)
        found = [logits] if in_place and not self.taps else binding.get_outputs()
        logits = found[0].numpy()
        self.tapped = {name: value.numpy() for name, value in zip(self.taps, found[1:])}
        if not self.keeps and keep:
            logits = logits[:, -keep:]
        # what comes back of a past that was bound does not keep its memory alive
        return logits, past if in_place else found[1 + len(self.taps) :]

    def _bind(self, past: list, in_place: bool):
        """What the session reads and writes, but for this step's; kept while it writes into the same past."""
        if in_place and self._bound and self._bound[0] is past:
            return self._bound[1]
        binding = self.session.io_binding()
        for name in ("logits", *self.taps):
            binding.bind_output(name)
        for name, present, value in zip(self.past_names, self.present_names, past, strict=True):
            binding.bind_ortvalue_input(name, value)
            if in_place:
                binding.bind_ortvalue_output(present, value)
            else:
                binding.bind_output(present)
        self._bound = (past, binding) if in_place and not self.taps else None
        return binding

    def stack(self, past: list, batch: int, room: int) -> list:
        """A past of one row as `batch` rows, each with room for so many tokens more, into which `run` writes.

        Only for graphs with GroupQueryAttention (`ragged`): others take the whole past for its tokens.
        """
        stacked = []
        for part in past:
            _, kv_heads, held, head_dim = part.shape()
            value = self._room((batch, kv_heads, held + room, head_dim), self.past_dtype)
            value.numpy()[:, :, :held] = part.numpy()
            stacked.append(value)
        return stacked

    def part(self, past: list, rows: slice) -> list:
        """Some rows of a past that `stack` made, in the same memory: valid while that past is."""
        return [self._value(value.numpy()[rows]) for value in past]

    def compact(self, past: list, alive: Sequence[int], lengths: Sequence[int]) -> tuple[list, list[int]]:
        """The rows `alive` of a past that `stack` made, moved to its front, and their order there."""
        order = list(range(len(alive)))
        gone = sorted(set(order).difference(alive))
        for hole, row in zip(gone, (row for row in alive if row >= len(alive)), strict=True):
            order[hole] = row
            for value in past:
                array = value.numpy()
                array[hole, :, : lengths[row]] = array[row, :, : lengths[row]]
        return self.part(past, slice(len(alive))), order

    @staticmethod
    def _room(shape: tuple[int, ...], kind):
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind)

    @staticmethod
    def _value(array: np.ndarray):
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


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
        self.batch_size = batch_size if self.model.ragged else 1
        self.ids: list[list[int]] = []  # of the last call
        self.finished: list[bool] = []  # of the last call: did each answer come to a stop token
        self._prefix: tuple[tuple[int, ...], list] = ((), self.model.empty())

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
        """
        row = np.array([list(ids)])
        if not cached:
            return self.model.run(row, self.model.empty(), keep=len(ids) - start)[0][0]
        past, found = self.model.empty(), []
        bounds = sorted({0, start, max(start, len(ids) - 4), *range(max(start, len(ids) - 4), len(ids) + 1)})
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
            if len(known) >= len(ids) or len(rows) == 1:
                return self._prefix[1]
        past = self.model.empty()
        if ids:
            _, past = self.model.run(np.array([ids]), past)
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
        if self.model.ragged:
            held = past[0].shape()[2]
            whole = state = self.model.stack(past, len(rows), max(map(len, rows)) - held + self.max_tokens)
        tokens = []
        for i, row in enumerate(rows):
            if self.model.ragged:
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
