"""A decoder with past keys and values on onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


class OrtError(RuntimeError):
    """The model cannot be loaded or run; the message is one line."""


def open_session(path: Path, threads: int | None = None, collect: Sequence[str] = ()):
    """An onnxruntime session on the CPU, quiet. `threads` None leaves the number to onnxruntime (one per core).

    `collect` names activations inside the graph that become outputs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    if threads:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads != 1 else "0")
    if not path.exists():
        raise OrtError(f"{path} does not exist")
    source = str(path)
    if collect:
        import onnx

        model = onnx.load(source, load_external_data=False)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in collect)
        source = model.SerializeToString()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own classes, all of them below Exception
        raise OrtError(f"{path} does not load: {str(error).splitlines()[0]}") from error


class OrtModel:
    """A decoder with past keys and values on onnxruntime: token ids in, float32 logits and the new past out."""

    def __init__(self, path: str | Path, threads: int | None = None, collect: Sequence[str] = ()):
        self.session = open_session(Path(path), threads, collect)
        self.collect = list(collect)
        self.collected: dict[str, np.ndarray] = {}  # these activations of the last run
        self.inputs = {item.name: item for item in self.session.get_inputs()}
        self.past_names = [name for name in self.inputs if name.startswith("past_key_values.")]
        self.present_names = [name.replace("past_key_values", "present") for name in self.past_names]
        if not self.past_names or "attention_mask" not in self.inputs:
            raise OrtError(f"{path} is no decoder with past keys and values")
        self.keeps = "num_logits_to_keep" in self.inputs
        props = self.session.get_modelmeta().custom_metadata_map
        self.right_padded = props.get("fgtune.exporter") == "direct"  # GroupQueryAttention: rows may differ in length
        self.positions = int(props["fgtune.positions"]) if "fgtune.positions" in props else None
        item = self.inputs[self.past_names[0]]
        self.past_dtype = np.float16 if "float16" in item.type else np.float32
        self.past_shape = item.shape  # [batch, kv heads, past, head_dim]
        self._bound: tuple[list, object] | None = None
        self.vocab = self.session.get_outputs()[0].shape[-1]

    def empty(self, batch: int = 1) -> list:
        """A past without tokens."""
        shape = (batch, self.past_shape[1], 0, self.past_shape[3])
        return [self.ort_value(np.zeros(shape, self.past_dtype)) for _ in self.past_names]

    def run(self, ids: np.ndarray, past: list, lengths: Sequence[int] | None = None, keep: int = 1):
        """One step: `ids` [batch, n] after `past`. Returns (logits float32 [batch, kept, vocab], past).

        `lengths` are the tokens each row has in `past` (default: all it holds); `keep` 0 gives every position. Where
        `past` has capacity for `ids` behind the longest row, they are written into it, and it comes back.
        """
        batch, count = ids.shape
        held = past[0].shape()[2]
        lengths = [held] * batch if lengths is None else list(lengths)
        width = max(lengths) + count
        if self.positions and width > self.positions:
            room = f"the model was exported for {self.positions} (max_positions)"
            raise OrtError(f"{width} tokens do not fit: {room}; shorten the text, or export for more")
        in_place = self.right_padded and held >= width
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
                binding.bind_ortvalue_input(name, self.ort_value(value))
        if in_place:  # asking for all outputs, the past too, would cost more than a small node
            logits = self._allocate((batch, min(keep or count, count), self.vocab), np.float32)
            binding.bind_ortvalue_output("logits", logits)
        self.session.run_with_iobinding(binding)
        found = [logits] if in_place and not self.collect else binding.get_outputs()
        logits = found[0].numpy()
        self.collected = {name: value.numpy() for name, value in zip(self.collect, found[1:])}
        if not self.keeps and keep:
            logits = logits[:, -keep:]
        # what comes back of a past that was bound does not keep its memory alive
        return logits, past if in_place else found[1 + len(self.collect) :]

    def _bind(self, past: list, in_place: bool):
        """What the session reads and writes, but for this step's; kept while it writes into the same past."""
        if in_place and self._bound and self._bound[0] is past:
            return self._bound[1]
        binding = self.session.io_binding()
        for name in ("logits", *self.collect):
            binding.bind_output(name)
        for name, present, value in zip(self.past_names, self.present_names, past, strict=True):
            binding.bind_ortvalue_input(name, value)
            if in_place:
                binding.bind_ortvalue_output(present, value)
            else:
                binding.bind_output(present)
        self._bound = (past, binding) if in_place and not self.collect else None
        return binding

    def stack(self, past: list, batch: int, capacity: int) -> list:
        """A past of one row as `batch` rows, each with `capacity` for so many tokens more, into which `run` writes.

        Only for graphs with GroupQueryAttention (`right_padded`): others take the whole past for its tokens.
        """
        stacked = []
        for part in past:
            _, kv_heads, held, head_dim = part.shape()
            value = self._allocate((batch, kv_heads, held + capacity, head_dim), self.past_dtype)
            value.numpy()[:, :, :held] = part.numpy()
            stacked.append(value)
        return stacked

    def part(self, past: list, rows: slice) -> list:
        """Some rows of a past that `stack` made, in the same memory: valid while that past is."""
        return [self.ort_value(value.numpy()[rows]) for value in past]

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
    def _allocate(shape: tuple[int, ...], kind):
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind)

    @staticmethod
    def ort_value(array: np.ndarray):
        """An array as onnxruntime takes it, over the same memory where it is contiguous."""
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
