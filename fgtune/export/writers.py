"""How a variant stores its matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .graph import Graph


class Float32Writer:
    """How a variant stores its matrices and computes: here float32 throughout. Variants override the methods.

    `residual` is the power of two by which the residual stream is scaled: nothing else changes, because everything
    that reads the stream passes an RMS norm whose epsilon is scaled by its square.
    """

    dtype = np.dtype(np.float32)
    residual = 1.0

    def matmul(self, graph: Graph, x: str, names: Sequence[str], matrix: Callable[[str], np.ndarray]) -> list[str]:
        """x @ weight.T for each of the projections that read `x`; `matrix(name)` is float32 [out, in]."""
        stored = [graph.tensor(f"{name}.weight", matrix(name).T.astype(self.dtype, copy=False)) for name in names]
        return [graph.node("MatMul", [x, weight], name) for weight, name in zip(stored, names, strict=True)]

    def embed(self, graph: Graph, ids: str, name: str, matrix: Callable[[str], np.ndarray]) -> str:
        """Rows `ids` of the embedding, [batch, sequence, hidden]."""
        stored = graph.tensor(f"{name}.weight", matrix(name).astype(self.dtype, copy=False))
        return graph.node("Gather", [stored, ids], name)

    def head(self, graph: Graph, x: str, name: str, hidden: int, vocab: int, out: str) -> None:
        """`out` = x @ embedding.T over the table that `embed` stored."""
        table = f"{name}.weight"
        flat = graph.node("Reshape", [x, graph.ints("head.rows", [-1, hidden])], "lm_head/flat")
        product = graph.node("Gemm", [flat, table], "lm_head/product", transB=1)
        lead = graph.node("Shape", [x], "lm_head/lead", start=0, end=2)
        shape = graph.node("Concat", [lead, graph.ints("head.vocab", [vocab])], "lm_head/shape", axis=0)
        graph.node("Reshape", [product, shape], "lm_head", [out])
