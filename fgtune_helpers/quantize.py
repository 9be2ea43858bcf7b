"""Smaller variants of an exported model: fewer bits where they cost nothing, rounding that looks at the user's data.

Every variant is written anew by `export.write_decoder` from the fp32 export; only how a matrix is stored differs. The
embedding is stored once and serves as lookup table and as head. Matrices become MatMulNBits nodes; the lookup uses
standard operators over the same bytes, since the browser's WASM build has no GatherBlockQuantized.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from . import blas
from .export import (
    TOKENIZER_FILES,
    ExportError,
    Float32,
    Graph,
    announce,
    model_file,
    op_counts,
    read_config,
    variant_bytes,
    write_decoder,
)
from .generate import common_prefix
from .gptq import PackedRows, Rounded, damped_inverse, restore, round_decoder, round_gptq, round_nearest, upper_factor
from .ort import OrtModel
from .smooth import Smoothed, inputs

FLOAT16_MAX = 65504.0
EMBEDDING = "model.embed_tokens"
OWN = f"{EMBEDDING}.own"  # its rows for the words of the user's data, where they have more bits
OWN_BLOCK = 64  # of their 8 bits


class QuantizeError(RuntimeError):
    """A variant cannot be made, or would not be right; the message is one line."""


@dataclass(frozen=True)
class Recipe:
    """How a variant stores its matrices.

    `bits` 4, 8 or 0 (not quantised), `block` weights share a scale; `more` maps a part of a matrix's name (`v_proj`,
    `layers.3.`) to the bits it gets instead; `method` `gptq` rounds against the calibration rows, `rtn` to the nearest.
    `half` computes in float16 with a scaled residual stream. `accuracy` is MatMulNBits' accuracy_level: 4 rounds
    activations to 8 bits, which decodes 20 to 60 times faster on CPUs than 0, floats (measured here, see
    benchmarks/onnx.py). With `own_words` the words of the user's data have 8 bits in a 4-bit embedding. The rest is for
    `gptq`: `correct` and `damping` see `gptq.round_decoder`, `embed_damping` see `calibrate`; `smooth` is how much of
    the unevenness of the inputs moves into the weights, see `smooth.Smoothed`.
    """

    bits: int = 4
    block: int = 32
    method: str = "gptq"
    more: dict[str, int] = field(default_factory=dict)
    embed_bits: int = 8
    embed_block: int = 128
    own_words: bool = False
    half: bool = False
    accuracy: int = 4
    correct: float = 1.0
    damping: float = 0.01
    embed_damping: float = 1.0
    smooth: float = 0.0

    def bits_of(self, name: str) -> int:
        """Bits of the matrix `name`."""
        return next((bits for part, bits in self.more.items() if part in name), self.bits)


#: Where 8 bits are cheap and matter: keys and values, and one of the early layers (2.5 MB).
MORE = {"k_proj": 8, "v_proj": 8, "layers.3.": 8}
#: Measured by benchmarks/onnx.py. Most of the weights are the embedding's: 4 bits there and 8 elsewhere are smaller and
#: nearer to fp32 than the other way round, if both are rounded against the rows. 8 bits for the few thousand words of
#: the user's data cost 6 MB and leave a quarter of the distance in answers. Even inputs pay where the rounding of
#: inputs is most of the distance, in int8.
RECIPES = {
    "fp16": Recipe(bits=0, embed_bits=0, half=True),
    "int8": Recipe(bits=8, embed_block=64, smooth=0.5),
    "q4": Recipe(bits=8, block=64, embed_bits=4, own_words=True),
    "q4f16": Recipe(bits=8, embed_bits=4, embed_block=32, own_words=True, half=True),
    "q4s": Recipe(more=MORE, embed_bits=4, own_words=True),
}


@dataclass(frozen=True)
class VariantReport:
    """What was written: bytes with external data, seconds, the recipe, residual scale and peaks, operator counts."""

    variant: str
    path: str
    bytes: int
    seconds: float
    recipe: dict
    residual_scale: float
    peaks: dict[str, float]
    ops: dict[str, int]

    def as_dict(self) -> dict:
        """The report as plain JSON values."""
        return asdict(self)


def quantize(
    onnx_dir: str | Path,
    variant: str,
    out_dir: str | Path | None = None,
    calibration: Sequence[Sequence[int]] | None = None,
    recipe: Recipe | None = None,
    threads: int | None = None,
    words: Iterable[int] | None = None,
) -> VariantReport:
    """Write `variant` of the fp32 export in `onnx_dir` to `out_dir` (default: the same folder). Raises QuantizeError.

    `calibration` are token ids of whole training rows; variants that round by GPTQ or compute in float16 need them.
    `words` are the ids that a recipe with `own_words` stores with more bits (default: those of `calibration`).
    """
    source = Path(onnx_dir)
    out = Path(out_dir) if out_dir is not None else source
    if variant == "fp32" or variant not in RECIPES:
        raise QuantizeError(f"unknown variant {variant!r}: use one of {', '.join(RECIPES)}")
    recipe = recipe or RECIPES[variant]
    check_recipe(recipe)
    if (recipe.half or (recipe.method == "gptq" and recipe.bits)) and not calibration:
        raise QuantizeError(f"{variant} needs calibration rows: give token ids of training rows")
    begin = time.perf_counter()
    config = read_config(source)
    if words is None:
        words = {token for row in calibration or () for token in row}
    words = np.unique(np.array(list(words), np.int64)) if recipe.own_words else np.empty(0, np.int64)
    try:
        weights = OnnxWeights(source / "onnx" / model_file("fp32"))
    except ExportError as error:
        raise QuantizeError(str(error)) from None
    rounded, divided = {}, {}
    if recipe.method == "gptq" and recipe.bits:
        weights, rounded = calibrate(source, config, weights, recipe, calibration, words, threads)
        divided = weights.divided
    peaks = measure_peaks(source, calibration, threads, divided) if recipe.half else {}
    scale = residual_scale(peaks) if recipe.half else 1.0
    if out.resolve() != source.resolve():
        copy_side_files(source, out)
    target = out / "onnx" / model_file(variant)
    style = Packed(recipe, rounded, scale, words)
    write_decoder(target, config, weights, style, weights.positions, variant=variant)
    announce(out)
    return VariantReport(
        variant,
        str(target),
        variant_bytes(out, variant),
        time.perf_counter() - begin,
        asdict(recipe),
        scale,
        peaks,
        op_counts(target),
    )


def check_recipe(recipe: Recipe) -> None:
    """Raise QuantizeError for a recipe that cannot be written."""
    for bits in (recipe.bits, recipe.embed_bits, *recipe.more.values()):
        if bits not in (0, 4, 8):
            raise QuantizeError(f"bits must be 4 or 8 (0 for none), not {bits}")
    for block in (recipe.block, recipe.embed_block):
        if block not in (16, 32, 64, 128, 256):
            raise QuantizeError(f"a block must hold 16, 32, 64, 128 or 256 weights, not {block}")
    if recipe.own_words and recipe.embed_bits != 4:
        raise QuantizeError(f"own_words is for an embedding of 4 bits, not {recipe.embed_bits}")
    if not 0 <= recipe.smooth <= 1:
        raise QuantizeError(f"smooth must be between 0 and 1, not {recipe.smooth}")
    if recipe.method not in ("rtn", "gptq"):
        raise QuantizeError(f"method must be 'rtn' or 'gptq', not {recipe.method!r}")


def copy_side_files(source: Path, out: Path) -> None:
    """Config, generation config and tokenizer files from one folder to another."""
    (out / "onnx").mkdir(parents=True, exist_ok=True)
    for name in (*TOKENIZER_FILES, "config.json", "generation_config.json"):
        if (source / name).exists():
            shutil.copyfile(source / name, out / name)


class OnnxWeights:
    """The matrices and norms of a `direct` fp32 export by name, mapped from its data file, not loaded."""

    def __init__(self, path: Path):
        import onnx

        if not path.exists():
            raise ExportError(f"{path} does not exist: export first")
        model = onnx.load(str(path), load_external_data=False)
        props = {item.key: item.value for item in model.metadata_props}
        if props.get("fgtune.exporter") != "direct" or props.get("fgtune.residual_scale") != "1.0":
            raise ExportError(f"{path} is no fp32 export of this workbook: variants are made from exporter 'direct'")
        self.positions = int(props["fgtune.positions"])
        self._folder = path.parent
        self._tensors = {item.name: item for item in model.graph.initializer}

    def _array(self, name: str) -> np.ndarray:
        from onnx import TensorProto, numpy_helper

        tensor = self._tensors[name]
        if tensor.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        where = {item.key: item.value for item in tensor.external_data}
        return np.memmap(self._folder / where["location"], np.float32, "r", int(where["offset"]), tuple(tensor.dims))

    def matrix(self, name: str) -> np.ndarray:
        """float32 [out, in] of a projection, [vocab, hidden] of the embedding."""
        array = self._array(f"{name}.weight")
        return array if name == EMBEDDING else array.T

    def norm(self, name: str) -> np.ndarray:
        """What an RMS norm multiplies by, float32."""
        return self._array(f"{name}.weight")


# ---------------------------------------------------------------- rounding


def block_size(wanted: int, width: int) -> int:
    """The largest power of two up to `wanted` that divides `width`. Raises QuantizeError below 16."""
    size = wanted
    while width % size:
        size //= 2
    if size < 16:
        raise QuantizeError(f"a matrix of width {width} cannot be cut into blocks of at least 16")
    return size


def pack(codes: np.ndarray, bits: int, block: int) -> np.ndarray:
    """Codes as MatMulNBits stores them, uint8 [out, in / block, bytes]; the first of two 4-bit codes is low."""
    blocks = codes.reshape(len(codes), -1, block)
    return blocks if bits == 8 else blocks[..., 0::2] | (blocks[..., 1::2] << 4)


def pack_zeros(zeros: np.ndarray, bits: int) -> np.ndarray:
    """Zero points [out, blocks] as MatMulNBits stores them."""
    if bits == 8:
        return zeros
    padded = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
    return padded[:, 0::2] | (padded[:, 1::2] << 4)


class Packed(Float32):
    """Writes matrices by a recipe; see `Float32` for the three methods."""

    def __init__(self, recipe: Recipe, rounded: dict[str, Rounded], residual: float = 1.0, words: Sequence[int] = ()):
        self.recipe, self.rounded, self.residual = recipe, rounded, residual
        self.words = np.asarray(words, np.int64)
        self.dtype = np.dtype(np.float16 if recipe.half else np.float32)

    def _store(self, graph: Graph, name: str, parts: Sequence[Rounded], bits: int, block: int) -> list[str]:
        """Write rounded matrices below each other; give the names of their codes, scales and zero points."""
        codes, scales, zeros = (np.concatenate(items) if len(items) > 1 else items[0] for items in zip(*parts))
        return [
            graph.tensor(f"{name}.codes", pack(codes, bits, block)),
            self._scales(graph, name, scales),
            graph.tensor(f"{name}.zeros", pack_zeros(zeros, bits)),
        ]

    def _round(self, name: str, weight: np.ndarray, bits: int, block: int) -> Rounded:
        return self.rounded.get(name) or round_nearest(np.ascontiguousarray(weight), bits, block)

    def _scales(self, graph: Graph, name: str, scales: np.ndarray) -> str:
        """Scales are stored in float16; a float32 graph widens them when it is loaded."""
        from onnx import TensorProto

        stored = graph.tensor(f"{name}.scales", scales.astype(np.float16))
        return stored if self.recipe.half else graph.node("Cast", [stored], f"{name}.scales.wide", to=TensorProto.FLOAT)

    def matmul(self, graph: Graph, x: str, names: Sequence[str], matrix: Callable[[str], np.ndarray]) -> list[str]:
        """x @ weight.T by MatMulNBits: one for neighbours of the same bits, since a small product mostly waits."""
        found = []
        for bits, members in groupby(names, self.recipe.bits_of):
            together = list(members)
            if not bits:
                found += super().matmul(graph, x, together, matrix)
                continue
            weights = [matrix(name) for name in together]
            width, rows = weights[0].shape[1], [len(weight) for weight in weights]
            block = block_size(self.recipe.block, width)
            name = "+".join(together)
            parts = [self._round(*pair, bits, block) for pair in zip(together, weights, strict=True)]
            inputs = [x, *self._store(graph, name, parts, bits, block)]
            product = self._product(graph, inputs, name, (sum(rows), width), bits, block)
            if len(together) > 1:
                graph.node("Split", [product, graph.ints(f"rows_{rows}", rows)], name, together, axis=-1)
            found += together
        return found

    def _product(self, graph: Graph, inputs: list[str], name: str, shape: tuple, bits: int, block: int) -> str:
        rows, width = shape
        level = {"accuracy_level": self.recipe.accuracy} if self.recipe.accuracy else {}
        return graph.node("MatMulNBits", inputs, name, N=rows, K=width, bits=bits, block_size=block, **level)

    def embed(self, graph: Graph, ids: str, name: str, matrix: Callable[[str], np.ndarray]) -> str:
        """Rows of the quantised embedding, by standard operators; of both parts where some words have more bits."""
        if not self.recipe.embed_bits:
            return super().embed(graph, ids, name, matrix)
        weight = matrix(name)
        vocab, hidden = weight.shape
        self._tied = []
        for part, rows, bits, block in embedding_parts(self.recipe, self.words, hidden):
            whole = self._round(part, weight if rows is None else weight[rows], bits, block)
            stored = self._store(graph, part, [whole], bits, block)
            self._tied.append((stored, len(whole[0]), bits, block))
        if len(self._tied) == 1:
            return self._look_up(graph, ids, name, self._tied[0], hidden)
        places = np.full(vocab, -1, np.int32)  # of each word in the second part
        places[self.words] = np.arange(len(self.words), dtype=np.int32)
        zero = graph.tensor(f"{OWN}.zero", np.array([0], np.int32))
        place = graph.node("Gather", [graph.tensor(f"{OWN}.places", places), ids], f"{OWN}.place", axis=0)
        there = graph.node("Max", [place, zero], f"{OWN}.ids")
        all_rows = self._look_up(graph, ids, f"{name}.rows", self._tied[0], hidden)
        own_rows = self._look_up(graph, there, f"{OWN}.rows", self._tied[1], hidden)
        other = graph.node("Less", [place, zero], f"{OWN}.not_meant")
        choice = graph.node("Unsqueeze", [other, graph.ints("last_axis", [-1])], f"{OWN}.choice")
        return graph.node("Where", [choice, all_rows, own_rows], name)

    def _look_up(self, graph: Graph, ids: str, name: str, tied: tuple, hidden: int) -> str:
        """Rows `ids` of a stored table, unpacked."""
        from onnx import TensorProto, helper

        (bytes_name, scales_name, zeros_name), _, bits, block = tied
        last = graph.ints("last_axis", [-1])

        def unpack(table: str, what: str, count: int) -> str:
            row = graph.node("Gather", [table, ids], f"{name}.{what}.bytes", axis=0)
            if bits == 8:
                return graph.node("Cast", [row], f"{name}.{what}.cast", to=TensorProto.FLOAT)
            index = graph.node("Cast", [row], f"{name}.{what}.index", to=TensorProto.INT32)
            every = np.arange(256)
            halves = graph.tensor("halves", np.stack([every % 16, every // 16], -1).astype(np.float32))
            both = graph.node("Gather", [halves, index], f"{name}.{what}.both", axis=0)
            shape = [0, 0, hidden // block, block] if what == "codes" else [0, 0, -1]
            flat = graph.node("Reshape", [both, graph.ints(f"{name}.{what}.shape", shape)], f"{name}.{what}.flat")
            if what == "zeros" and count % 2:
                flat = graph.node("Slice", [flat, graph.ints("zero", [0]), graph.ints(f"{name}.count", [count]), last],
                                  f"{name}.{what}.cut")  # fmt: skip
            return flat

        code, zero = unpack(bytes_name, "codes", hidden), unpack(zeros_name, "zeros", hidden // block)
        centred = graph.node("Sub", [code, graph.node("Unsqueeze", [zero, last], f"{name}.zero")], f"{name}.centred")
        if self.recipe.half:
            float_type = helper.np_dtype_to_tensor_dtype(self.dtype)
            centred = graph.node("Cast", [centred], f"{name}.half", to=float_type)
        steps = graph.node("Gather", [scales_name, ids], f"{name}.steps", axis=0)
        product = graph.node("Mul", [centred, graph.node("Unsqueeze", [steps, last], f"{name}.step")], f"{name}.blocks")
        return graph.node("Reshape", [product, graph.ints("rows_shape", [0, 0, hidden])], name)

    def head(self, graph: Graph, x: str, name: str, hidden: int, vocab: int, out: str) -> None:
        """`out` = x @ embedding.T over the same bytes."""
        if not self.recipe.embed_bits:
            return super().head(graph, x, name, hidden, vocab, out)
        names = [out] if len(self._tied) == 1 else ["lm_head.all", "lm_head.own"]
        logits = [
            self._product(graph, [x, *stored], part, (rows, hidden), bits, block)
            for part, (stored, rows, bits, block) in zip(names, self._tied, strict=True)
        ]
        if len(logits) > 1:
            words = graph.ints("lm_head.words", self.words[None, None])
            shape = graph.node("Shape", [logits[1]], "lm_head.shape")
            places = graph.node("Expand", [words, shape], "lm_head.places")
            graph.node("ScatterElements", [logits[0], places, logits[1]], "lm_head", [out], axis=-1)


def embedding_parts(recipe: Recipe, words: Sequence[int], hidden: int) -> list[tuple[str, np.ndarray | None, int, int]]:
    """(name, rows or None for all, bits, block) of the parts in which the embedding is stored.

    The words have a second part, with more bits. The first keeps all rows: theirs are one in forty, and so each stands
    at its id.
    """
    parts = [(EMBEDDING, None, recipe.embed_bits, block_size(recipe.embed_block, hidden))]
    return [*parts, (OWN, words, 8, block_size(OWN_BLOCK, hidden))] if len(words) else parts


# ---------------------------------------------------------------- what the data says


def packed_rows(calibration: Sequence[Sequence[int]]) -> PackedRows:
    """Calibration rows as one sequence. Raises QuantizeError for a row that has nothing to look at."""
    rows = [list(row) for row in calibration]
    if not all(len(row) > 1 for row in rows):
        raise QuantizeError("a calibration row has fewer than two tokens")
    return PackedRows(rows, common_prefix(rows) if len(rows) > 1 else 0)


def calibrate(
    source: Path, config: dict, weights: OnnxWeights, recipe: Recipe, calibration, words=(), threads: int | None = None
) -> tuple[Smoothed, dict[str, Rounded]]:
    """The weights for even inputs, and every projection of them rounded by GPTQ on the calibration rows.

    The rows enter through the embedding as it is stored. A 4-bit embedding is rounded for both of its uses: as output
    layer by what that sees of the rows, and, since `embed_damping` adds as much of the identity, as lookup table.
    """
    rows = packed_rows(calibration)
    if not all(recipe.bits_of(f"model.layers.{i}.") for i in range(config["num_hidden_layers"])):
        raise QuantizeError("gptq rounds every projection: give bits to all of them")
    squares, outer = look(source, config, rows, threads)
    weights = Smoothed(weights, squares, config, recipe.smooth)
    embedded = np.array(weights.matrix(EMBEDDING)[rows.ids])
    stored, found = embedded, {}
    if recipe.embed_bits == 4:
        factor = upper_factor(damped_inverse(outer, recipe.embed_damping))
    if recipe.embed_bits:
        table, stored = weights.matrix(EMBEDDING), np.empty_like(embedded)
        for part, members, bits, block in embedding_parts(recipe, words, table.shape[1]):
            here = slice(None) if members is None else np.isin(rows.ids, members)
            if bits == 4:
                found[part] = round_gptq(table, factor, bits, block)
                stored[here] = restore(tuple(item[rows.ids] for item in found[part]))
            else:
                stored[here] = restore(round_nearest(embedded[here], bits, block))

    def settle(name: str) -> tuple[int, int]:
        return recipe.bits_of(name), block_size(recipe.block, weights.matrix(name).shape[1])

    found |= round_decoder(config, weights, rows, (embedded, stored), settle, recipe.correct, recipe.damping)[0]
    return weights, found


def look(
    source: Path, config: dict, rows: PackedRows, threads: int | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What the matrices of the fp32 model see of the rows' own tokens.

    Mean squares of the channels of each of `smooth.inputs`, and the sum of x xᵀ at the output layer [hidden, hidden].
    """
    names = [name for name, _, _ in inputs(config["num_hidden_layers"])]
    model = OrtModel(source / "onnx" / model_file("fp32"), threads, [*names, "model.norm"])
    squares, outer, count = dict.fromkeys(names, 0.0), 0.0, 0
    for own, tapped in run_segments(model, rows):
        if own:
            (state,) = tapped["model.norm"]
            outer, count = outer + state.T @ state, count + len(state)
            for name in names:
                squares[name] += np.square(tapped[name][0]).sum(0, dtype=np.float64)
    return {name: total / count for name, total in squares.items()}, outer


def run_segments(model: OrtModel, rows: PackedRows) -> Iterator[tuple[bool, dict[str, np.ndarray]]]:
    """Run the shared prefix once and each row behind it; yields whether it was a row, and what was tapped."""
    shared = model.empty()
    for start, end in rows.segments:
        _, past = model.run(rows.ids[None, start:end], shared)
        own = bool(start) or not rows.prefix
        if not own:
            shared = past
        yield own, model.tapped


def measure_peaks(
    onnx_dir: str | Path,
    calibration: Sequence[Sequence[int]],
    threads: int | None = None,
    divided: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """The largest absolute value by kind of tensor in the fp32 model; the prefix that all rows share is run once.

    `divided` says by what a variant divides the channels of a tensor (`smooth.Smoothed`).
    """
    import onnx

    path = Path(onnx_dir) / "onnx" / model_file("fp32")
    watched: dict[str, str] = {}  # tensor -> kind
    for node in onnx.load(str(path), load_external_data=False).graph.node:
        name = node.output[0]
        if node.op_type == "MatMul":
            watched[name] = name.rsplit(".", 1)[-1]
        elif node.op_type == "Gemm":
            watched[name] = "logits"
        elif node.op_type in ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"):
            # What is added to the stream is scaled with it.
            watched[name] = "residual stream" if ".post_" in name else "norm"
            if len(node.output) > 3:
                watched[node.output[3]] = "residual stream"
        elif name == "model.embedded":
            watched[name] = "residual stream"
        elif name.endswith((".mlp.product", ".mlp.act")):
            watched[name] = "mlp product"
    model = OrtModel(path, threads, sorted(watched))
    rows = packed_rows(calibration)
    peaks = dict.fromkeys(sorted(set(watched.values())), 0.0)
    for _, tapped in run_segments(model, rows):
        for tap, value in tapped.items():
            peak = float(np.abs(value / (divided or {}).get(tap, 1)).max())
            if not np.isfinite(peak):
                raise QuantizeError(f"the fp32 model gives {peak} in {tap}")
            peaks[watched[tap]] = max(peaks[watched[tap]], peak)
    return peaks


def residual_scale(peaks: dict[str, float], margin: float = 4.0) -> float:
    """The power of two that keeps the residual stream `margin` times below float16's largest number.

    Raises QuantizeError when another tensor, which the scale does not reach, would overflow.
    """
    for kind, peak in peaks.items():
        if kind != "residual stream" and peak * 1.5 > FLOAT16_MAX:
            raise QuantizeError(f"float16 would overflow: {kind} reaches {peak:,.0f} and cannot be scaled")
    scale = 1.0
    while peaks["residual stream"] * scale * margin > FLOAT16_MAX:
        scale /= 2
    return scale


# ---------------------------------------------------------------- how much it differs


def compare(a, b, prompts: Sequence[str | Sequence[int]], last: int | Sequence[int] = 48, window: int = 512) -> dict:
    """Next-token distributions of `a` (the reference) and `b` over the `last` positions of each prompt.

    `a` and `b` have `logits(ids, start, cached)` (`OrtGenerator`, `MlxLogits`); `prompts` are token ids, or strings
    for `a.encode`. Returns `kl` (mean, nats), `kl_max`, `argmax_agreement`, `positions`, and the same for
    `without_cache`, `with_cache`, `below_window` and `beyond_window` (None where no position is).
    Raises QuantizeError for logits that are not finite.
    """
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    lasts = [last] * len(prompts) if isinstance(last, int) else last
    for prompt, count in zip(prompts, lasts, strict=True):
        ids = list(a.encode(prompt) if isinstance(prompt, str) else prompt)
        start = max(1, len(ids) - count)
        if len(ids) <= start:
            raise QuantizeError("a prompt has fewer than two tokens")
        reference = log_softmax(_finite(a.logits(ids, start, False), "the reference"))
        beyond = np.arange(start, len(ids)) >= window
        for mode, cached in (("without_cache", False), ("with_cache", True)):
            other = log_softmax(_finite(b.logits(ids, start, cached), "the variant"))
            divergence = (np.exp(reference) * (reference - other)).sum(-1)
            same = reference.argmax(-1) == other.argmax(-1)
            parts.setdefault(mode, []).append((divergence, same))
            for name, where in (("below_window", ~beyond), ("beyond_window", beyond)):
                if where.any():
                    parts.setdefault(name, []).append((divergence[where], same[where]))

    def mean(names: Iterable[str]) -> dict | None:
        found = [pair for name in names for pair in parts.get(name, [])]
        if not found:
            return None
        divergence, same = (np.concatenate(values) for values in zip(*found, strict=True))
        return {
            "kl": float(divergence.mean()),
            "kl_max": float(divergence.max()),
            "argmax_agreement": float(same.mean()),
            "positions": len(same),
        }

    whole = mean(("without_cache", "with_cache"))
    if whole is None:
        raise QuantizeError("no prompts to compare on")
    return {
        **whole,
        **{name: mean([name]) for name in ("without_cache", "with_cache", "below_window", "beyond_window")},
    }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log of the softmax over the last axis, float64 inside."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _finite(logits: np.ndarray, whose: str) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise QuantizeError(f"{whose} gives logits that are not finite")
    return logits


class MlxLogits:
    """Logits of an MLX model folder, for `compare`."""

    def __init__(self, folder: str | Path):
        blas.use_fast_blas()
        from mlx_lm.utils import load_model
        from tokenizers import Tokenizer

        self.model, _ = load_model(Path(folder))
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a rendered prompt."""
        return self.tokenizer.encode(prompt, add_special_tokens=False).ids

    def logits(self, ids: Sequence[int], start: int = 0, cached: bool = False) -> np.ndarray:
        """Logits after each of `ids[start:]`, float32; `cached` runs `ids[:start]` into a cache first."""
        from mlx_lm.models.cache import make_prompt_cache

        mx = blas.mlx()
        row = mx.array([list(ids)])
        if cached and start:
            cache = make_prompt_cache(self.model)
            self.model.model(row[:, :start], cache=cache)
            hidden = self.model.model(row[:, start:], cache=cache)
        else:
            hidden = self.model.model(row)[:, start:]
        head = self.model.model.embed_tokens.as_linear if self.model.tie_word_embeddings else self.model.lm_head
        return np.array(head(hidden)[0].astype(mx.float32))
