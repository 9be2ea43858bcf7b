"""Matrices in blocks of 4 or 8 bits, in an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from ..export.graph import Graph
from ..export.weights import EMBEDDING
from ..export.writers import Float32Writer
from .blocks import Rounded, block_size, pack, pack_zeros, round_nearest
from .recipes import Recipe

OWN = f"{EMBEDDING}.own"  # its rows for the words of the user's data, where they have more bits


OWN_BLOCK = 64  # of their 8 bits


class Packed(Float32Writer):
    """Writes matrices by a recipe; see `Float32Writer` for the three methods."""

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
