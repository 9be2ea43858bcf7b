"""How a variant stores its weights: the protocol that the decoder graph is written with, and its float32 form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from .graph import Graph


class WeightWriter(Protocol):
    """Adds the matrices of a decoder to a graph; `write_decoder` asks for them in the order of computation.

    `dtype` is the float type of activations. `residual` is the power of two by which the residual stream is scaled.
    The scale changes no result: every reader of the stream begins with an RMS norm, whose epsilon is scaled by its
    square. `embed` is called before `head`, which may use what `embed` stored.
    """

    dtype: np.dtype
    residual: float

    def matmul(self, graph: Graph, x: str, names: Sequence[str], matrix: Callable[[str], np.ndarray]) -> list[str]:
        """x @ weight.T for each of the projections that read `x`; `matrix(name)` is float32 [out, in]."""

    def embed(self, graph: Graph, ids: str, name: str, matrix: Callable[[str], np.ndarray]) -> str:
        """Rows `ids` of the embedding, [batch, sequence, hidden]."""

    def head(self, graph: Graph, x: str, name: str, hidden: int, vocab: int, out: str) -> None:
        """`out` = x @ embedding.T over the table that `embed` stored."""


class Float32Writer(WeightWriter):
    """Plain matrices and float32 throughout; subclasses override the methods."""

    dtype = np.dtype(np.float32)
    residual = 1.0

    def matmul(self, graph: Graph, x: str, names: Sequence[str], matrix: Callable[[str], np.ndarray]) -> list[str]:
        """One MatMul a projection; the weights are stored as [in, out]."""
        stored = [graph.tensor(f"{name}.weight", matrix(name).T.astype(self.dtype, copy=False)) for name in names]
        return [graph.node("MatMul", [x, weight], name) for weight, name in zip(stored, names, strict=True)]

    def embed(self, graph: Graph, ids: str, name: str, matrix: Callable[[str], np.ndarray]) -> str:
        """A Gather from the table [vocab, hidden]."""
        stored = graph.tensor(f"{name}.weight", matrix(name).astype(self.dtype, copy=False))
        return graph.node("Gather", [stored, ids], name)

    def head(self, graph: Graph, x: str, name: str, hidden: int, vocab: int, out: str) -> None:
        """A Gemm with the same table, transposed: it takes matrices, so `x` is flattened and the result unfolded."""
        table = f"{name}.weight"
        flat = graph.node("Reshape", [x, graph.ints("head.rows", [-1, hidden])], "lm_head/flat")
        product = graph.node("Gemm", [flat, table], "lm_head/product", transB=1)
        lead = graph.node("Shape", [x], "lm_head/lead", start=0, end=2)
        shape = graph.node("Concat", [lead, graph.ints("head.vocab", [vocab])], "lm_head/shape", axis=0)
        graph.node("Reshape", [product, shape], "lm_head", [out])
