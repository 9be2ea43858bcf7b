"""Linear layers with adapters, several side by side in one product."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .torch_support import as_torch

# Trainable parameters of a linear layer by kind of fine-tuning, as mlx-lm names them; "frozen" has none.
PARAMETERS = {"frozen": (), "lora": ("lora_a", "lora_b"), "dora": ("lora_a", "lora_b", "m"), "full": ("weight",)}


@dataclass
class LinearPart:
    """One layer of a group: its outputs `[start, stop)`, and which of the group's parameters are its own.

    `kind` is a key of `PARAMETERS`; `scale` is LoRA's. `norm` `[stop - start]` are the lengths of the rows of
    W + scale * (A B)^T, for DoRA.
    """

    start: int
    stop: int
    kind: str
    scale: float
    frozen: torch.Tensor
    names: list[str]
    parameters: slice
    norm: torch.Tensor | None = None


class AdaptedLinears:
    """A group of linear layers that read the same input: effective weight, and the trainable parameters of each part.

    `modules` are (name, MLX module); products are made in `dtype`.
    """

    def __init__(self, prefix: str, modules: list, dtype):
        self.parts: list[LinearPart] = []
        start = count = 0
        for name, module in modules:
            lora = "lora_a" in module
            frozen = as_torch((module.linear if lora else module).weight)
            kind, scale = "frozen", 1.0
            if lora:
                kind, scale = "dora" if "m" in module else "lora", float(module.scale)
            elif "weight" in module.trainable_parameters():
                kind = "full"
            names = [f"{prefix}.{name}.{parameter}" for parameter in PARAMETERS[kind]]
            stop, own = start + len(frozen), slice(count, count + len(names))
            self.parts.append(LinearPart(start, stop, kind, scale, frozen, names, own))
            start, count = stop, count + len(names)
        self.trained = count > 0
        # A single weight that needs no change is used where it lies.
        self.in_place = len(self.parts) == 1 and self.parts[0].kind in ("frozen", "full") and dtype == torch.float32
        self.weight = None if self.in_place else torch.empty(start, self.parts[0].frozen.shape[1], dtype=dtype)
        if not self.in_place:
            for part in self.parts:
                if part.kind == "frozen":
                    self.weight[part.start : part.stop] = part.frozen

    def prepare(self, parameters: dict) -> None:
        """Form the effective weight of this step from the parameters' present values."""
        self.parameters = [parameters[name] for part in self.parts for name in part.names]
        for part in self.parts:
            values = [value.detach() for value in self.parameters[part.parameters]]
            if part.kind in ("lora", "dora"):
                self._merge(part, *values)
            elif self.in_place:
                self.weight = values[0] if part.kind == "full" else part.frozen
            elif part.kind == "full":
                self.weight[part.start : part.stop] = values[0]

    def _merge(self, part: LinearPart, a, b, m=None) -> None:
        """W + scale * (A B)^T, for DoRA with rows of length `m`; formed in float32."""
        exact, rows = self.weight.dtype == torch.float32, self.weight[part.start : part.stop]
        merged = rows if exact else torch.empty_like(part.frozen)
        torch.addmm(part.frozen, b.T, a.T, alpha=part.scale, out=merged)
        if m is not None:
            part.norm = torch.linalg.vector_norm(merged, dim=1)
            merged *= (m / part.norm)[:, None]
        if not exact:
            rows.copy_(merged)

    def __call__(self, x, float32_output: bool = True):
        """`[T, in] -> [T, out]` with a gradient for `x` and for the parameters; see `PackedLinear`."""
        return PackedLinear.apply(x, self.weight, float32_output, self.parts, *self.parameters)


class PackedLinear(torch.autograd.Function):
    """`x [T, in] @ weight^T` for a group of linear layers side by side; gradients go to each layer's own parameters.

    `parts` say where each layer's outputs and parameters are; the parameters follow. The result is float32 with
    `float32_output`, else of the weight's dtype.
    """

    @staticmethod
    def forward(ctx, x, weight, float32_output, parts: list[LinearPart], *parameters):
        ctx.parts, ctx.parameters, ctx.weight, ctx.input_dtype = parts, parameters, weight, x.dtype
        x = x.to(weight.dtype)
        y = x @ weight.T
        y = y.float() if float32_output else y
        dora = any(part.kind == "dora" for part in parts)
        ctx.norms = [part.norm for part in parts]
        ctx.save_for_backward(x, y) if dora else ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, *output = ctx.saved_tensors
        dy_low = dy.to(ctx.weight.dtype)
        dx = (dy_low @ ctx.weight).to(ctx.input_dtype) if ctx.needs_input_grad[0] else None
        gradients: list = [None] * len(ctx.parameters)
        low_rank = []  # (part, gradient of its outputs before DoRA's scaling)
        for part, norm in zip(ctx.parts, ctx.norms):
            d, index = dy_low[:, part.start : part.stop], part.parameters.start
            if part.kind == "full":
                gradients[index] = (d.T @ x).float()
            elif part.kind == "dora":
                m = ctx.parameters[index + 2]
                columns = slice(part.start, part.stop)
                gradients[index + 2] = _magnitude_gradient(dy[:, columns], output[0][:, columns], m)
                low_rank.append((part, d * (m / norm).to(d.dtype)))
            elif part.kind == "lora":
                low_rank.append((part, d))
        if low_rank:
            _low_rank_gradients(gradients, ctx.parameters, x, low_rank)
        return (dx, None, None, None, *gradients)


def _magnitude_gradient(dy, y, m):
    """Gradient `[out]` of DoRA's magnitudes `m`: each output is proportional to its own."""
    return torch.einsum("tj,tj->j", dy.float(), y.float()) / m


def _low_rank_gradients(gradients: list, parameters, x, low_rank: list) -> None:
    """Put the gradients of A `[in, rank]` and B `[rank, out]` of all parts into `gradients`.

    `x A` of all parts is one product, and so is what `x^T` is multiplied by: each alone is too thin to be fast.
    """
    pairs = [parameters[part.parameters][:2] for part, _ in low_rank]
    ranks = [a.shape[1] for a, _ in pairs]
    inner = (x @ torch.cat([a for a, _ in pairs], dim=1).to(x.dtype)).split(ranks, dim=1)
    thin = []  # gradients of the inner activations
    for (part, d), (_, b), xa in zip(low_rank, pairs, inner):
        thin.append(d @ b.T.to(x.dtype))
        gradients[part.parameters.start + 1] = (xa.T @ d).float().mul_(part.scale)
    together = (x.T @ torch.cat(thin, dim=1)).float().split(ranks, dim=1)
    for (part, _), da in zip(low_rank, together):
        gradients[part.parameters.start] = da * part.scale
