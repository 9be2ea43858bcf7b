"""Matrices in blocks of 4 or 8 bits, in an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ..export.graph import Graph
from ..export.writers import Float32Writer
from ..models.gemma3 import EMBEDDING
from .blocks import QuantizedMatrix, block_size, pack, pack_zeros, round_nearest
from .recipes import Recipe

HIGH_PRECISION_ROWS = f"{EMBEDDING}.high_precision"  # its rows for the user's own tokens, where they have more bits
HIGH_PRECISION_BLOCK = 64  # of their 8 bits


@dataclass(frozen=True)
class StoredMatrix:
    """A quantised matrix [rows, width] in a graph: the names of its tensors, its bits and its block."""

    qweight: str
    scales: str
    zeros: str
    rows: int
    width: int
    bits: int
    block: int


class QuantizedWriter(Float32Writer):
    """Writes matrices by a recipe; see `WeightWriter` for the three methods.

    `rounded` holds matrices that are rounded already, by name; the others are rounded to the nearest. `token_ids` are
    the rows of the embedding that have more bits, where the recipe says so.
    """

    def __init__(
        self,
        recipe: Recipe,
        rounded: dict[str, QuantizedMatrix],
        residual: float = 1.0,
        token_ids: Sequence[int] = (),
    ):
        self.recipe, self.rounded, self.residual = recipe, rounded, residual
        self.token_ids = np.asarray(token_ids, np.int64)
        self.dtype = np.dtype(np.float16 if recipe.half else np.float32)

    def matmul(self, graph: Graph, x: str, names: Sequence[str], matrix: Callable[[str], np.ndarray]) -> list[str]:
        """x @ weight.T by MatMulNBits: one for neighbours of the same bits, since a small product mostly waits."""
        found = []
        for bits, members in groupby(names, self.recipe.bits_of):
            together = list(members)
            if not bits:
                found += super().matmul(graph, x, together, matrix)
                continue
            weights = [matrix(name) for name in together]
            rows = [len(weight) for weight in weights]
            block = block_size(self.recipe.block, weights[0].shape[1])
            name = "+".join(together)
            parts = [self._round(*pair, bits, block) for pair in zip(together, weights, strict=True)]
            product = self._product(graph, x, self._store(graph, name, parts, bits, block), name)
            if len(together) > 1:
                graph.node("Split", [product, graph.ints(f"rows_{rows}", rows)], name, together, axis=-1)
            found += together
        return found

    def embed(self, graph: Graph, ids: str, name: str, matrix: Callable[[str], np.ndarray]) -> str:
        """Rows of the quantised embedding, by standard operators; from both parts where some rows have more bits."""
        if not self.recipe.embed_bits:
            return super().embed(graph, ids, name, matrix)
        weight = matrix(name)
        self._tables = self._store_embedding(graph, weight)
        if len(self._tables) == 1:
            return self._gather_rows(graph, ids, name, self._tables[0])
        return self._gather_mixed_rows(graph, ids, name, len(weight))

    def head(self, graph: Graph, x: str, name: str, hidden: int, vocab: int, out: str) -> None:
        """`out` = x @ embedding.T over the same bytes; the logits of the high-precision rows replace the others'."""
        if not self.recipe.embed_bits:
            return super().head(graph, x, name, hidden, vocab, out)
        names = [out] if len(self._tables) == 1 else ["lm_head.all", "lm_head.high_precision"]
        logits = [self._product(graph, x, *pair) for pair in zip(self._tables, names, strict=True)]
        if len(logits) > 1:
            token_ids = graph.ints("lm_head.token_ids", self.token_ids[None, None])
            shape = graph.node("Shape", [logits[1]], "lm_head.shape")
            places = graph.node("Expand", [token_ids, shape], "lm_head.places")
            graph.node("ScatterElements", [logits[0], places, logits[1]], "lm_head", [out], axis=-1)

    def _round(self, name: str, weight: np.ndarray, bits: int, block: int) -> QuantizedMatrix:
        return self.rounded.get(name) or round_nearest(np.ascontiguousarray(weight), bits, block)

    def _store(self, graph: Graph, name: str, parts: Sequence[QuantizedMatrix], bits: int, block: int) -> StoredMatrix:
        """Write matrices of the same width below each other, as one."""
        qweight, scales, zeros = (np.concatenate(items) if len(items) > 1 else items[0] for items in zip(*parts))
        return StoredMatrix(
            graph.tensor(f"{name}.qweight", pack(qweight, bits, block)),
            self._store_scales(graph, name, scales),
            graph.tensor(f"{name}.zeros", pack_zeros(zeros, bits)),
            *qweight.shape,
            bits,
            block,
        )

    def _store_scales(self, graph: Graph, name: str, scales: np.ndarray) -> str:
        """Scales are stored in float16; a float32 graph casts them when it is loaded."""
        from onnx import TensorProto

        stored = graph.tensor(f"{name}.scales", scales.astype(np.float16))
        if self.recipe.half:
            return stored
        return graph.node("Cast", [stored], f"{name}.scales.float32", to=TensorProto.FLOAT)

    def _store_embedding(self, graph: Graph, weight: np.ndarray) -> list[StoredMatrix]:
        """Write the embedding [vocab, hidden] in its one or two parts."""
        tables = []
        for part, rows, bits, block in embedding_parts(self.recipe, self.token_ids, weight.shape[1]):
            whole = self._round(part, weight if rows is None else weight[rows], bits, block)
            tables.append(self._store(graph, part, [whole], bits, block))
        return tables

    def _product(self, graph: Graph, x: str, matrix: StoredMatrix, name: str) -> str:
        """`name` = x @ matrix.T."""
        inputs = [x, matrix.qweight, matrix.scales, matrix.zeros]
        options = {"N": matrix.rows, "K": matrix.width, "bits": matrix.bits, "block_size": matrix.block}
        if self.recipe.accuracy_level:
            options["accuracy_level"] = self.recipe.accuracy_level
        return graph.node("MatMulNBits", inputs, name, **options)

    def _gather_mixed_rows(self, graph: Graph, ids: str, name: str, vocab: int) -> str:
        """Rows `ids` of the embedding, each from the part that has most bits for it."""
        part = HIGH_PRECISION_ROWS
        places = np.full(vocab, -1, np.int32)  # of each token in the second part
        places[self.token_ids] = np.arange(len(self.token_ids), dtype=np.int32)
        zero = graph.tensor(f"{part}.zero", np.array([0], np.int32))
        place = graph.node("Gather", [graph.tensor(f"{part}.places", places), ids], f"{part}.place", axis=0)
        there = graph.node("Max", [place, zero], f"{part}.ids")
        common = self._gather_rows(graph, ids, f"{name}.rows", self._tables[0])
        precise = self._gather_rows(graph, there, f"{part}.rows", self._tables[1])
        other = graph.node("Less", [place, zero], f"{part}.absent")
        choice = graph.node("Unsqueeze", [other, graph.ints("last_axis", [-1])], f"{part}.choice")
        return graph.node("Where", [choice, common, precise], name)

    def _gather_rows(self, graph: Graph, ids: str, name: str, table: StoredMatrix) -> str:
        """Rows `ids` of a stored table, dequantised."""
        from onnx import helper

        last, blocks = graph.ints("last_axis", [-1]), table.width // table.block
        shape = [0, 0, blocks, table.block]
        qweight = self._gather_integers(graph, table.qweight, ids, f"{name}.qweight", table.bits, table.width, shape)
        zero = self._gather_integers(graph, table.zeros, ids, f"{name}.zeros", table.bits, blocks, [0, 0, -1])
        unsqueezed = graph.node("Unsqueeze", [zero, last], f"{name}.zero")
        centred = graph.node("Sub", [qweight, unsqueezed], f"{name}.centred")
        if self.recipe.half:
            float_type = helper.np_dtype_to_tensor_dtype(self.dtype)
            centred = graph.node("Cast", [centred], f"{name}.half", to=float_type)
        scales = graph.node("Gather", [table.scales, ids], f"{name}.row_scales", axis=0)
        scale = graph.node("Unsqueeze", [scales, last], f"{name}.row_scale")
        product = graph.node("Mul", [centred, scale], f"{name}.blocks")
        return graph.node("Reshape", [product, graph.ints("rows_shape", [0, 0, table.width])], name)

    def _gather_integers(
        self, graph: Graph, table: str, ids: str, name: str, bits: int, count: int, shape: list[int]
    ) -> str:
        """The `count` unsigned integers of each of the rows `ids`, as floats in `shape`.

        8-bit rows come as they are stored, [batch, sequence, …]. Two 4-bit integers share a byte, so each byte looks
        both up in a table of 256 pairs; a row of an odd count ends with half a byte of padding.
        """
        from onnx import TensorProto

        row = graph.node("Gather", [table, ids], f"{name}.bytes", axis=0)
        if bits == 8:
            return graph.node("Cast", [row], f"{name}.cast", to=TensorProto.FLOAT)
        index = graph.node("Cast", [row], f"{name}.index", to=TensorProto.INT32)
        every = np.arange(256)
        halves = graph.tensor("halves", np.stack([every % 16, every // 16], -1).astype(np.float32))
        both = graph.node("Gather", [halves, index], f"{name}.both", axis=0)
        flat = graph.node("Reshape", [both, graph.ints(f"{name}.shape", shape)], f"{name}.flat")
        if count % 2:  # never the weights: a block holds an even number
            bounds = [graph.ints("zero", [0]), graph.ints(f"{name}.count", [count]), graph.ints("last_axis", [-1])]
            flat = graph.node("Slice", [flat, *bounds], f"{name}.cut")
        return flat


def embedding_parts(
    recipe: Recipe, token_ids: Sequence[int], hidden: int
) -> list[tuple[str, np.ndarray | None, int, int]]:
    """(name, rows or None for all, bits, block) of the parts in which the embedding is stored.

    The rows `token_ids` have a second part, with more bits. They stay in the first part too: they are one in forty,
    and so each row of it stands at its token id.
    """
    parts = [(EMBEDDING, None, recipe.embed_bits, block_size(recipe.embed_block, hidden))]
    if not len(token_ids):
        return parts
    return [*parts, (HIGH_PRECISION_ROWS, token_ids, 8, block_size(HIGH_PRECISION_BLOCK, hidden))]
