"""Which engine trains."""

from __future__ import annotations

from collections.abc import Sequence

from ..core import blas
from ..core.errors import TrainError
from ..data.batches import make_batch
from ..data.rows import Row
from ..engines.mlx_step import MlxEngine
from .batches import plan_epoch
from .config import TrainConfig


def choose_precision(model, wanted: str = "auto") -> str:
    """`TrainConfig.precision` for `auto` (bfloat16 products where this CPU has them), `float32` or `bfloat16`."""
    from ..engines.torch_support import bfloat16_unsupported_reason, unsupported_reason

    if wanted == "auto" and unsupported_reason(model) is None and bfloat16_unsupported_reason() is None:
        return "bfloat16"
    return "bfloat16" if wanted == "bfloat16" else "auto"


def choose_softmax(model, wanted: str = "auto") -> str:
    """`TrainConfig.softmax` for `auto` (sampled where torch's kernels train), `exact` or `sampled`."""
    from ..engines.torch_support import unsupported_reason

    return ("exact" if unsupported_reason(model) else "sampled") if wanted == "auto" else wanted


def make_engine(model, config: TrainConfig, rows: Sequence[Row] = ()):
    """The engine `config.engine` names; "auto" takes torch's kernels on CPU where they can be used. A sampled softmax
    must know the `rows` to come."""
    from ..engines.torch_step import TorchEngine
    from ..engines.torch_support import bfloat16_unsupported_reason, unsupported_reason

    half = config.precision == "bfloat16" and blas.mlx().default_device() != blas.mlx().gpu
    reason = unsupported_reason(model) or (bfloat16_unsupported_reason() if half else None)
    if config.engine != "mlx" and reason is None:
        sampled = rows if config.softmax == "sampled" else ()
        learned = {i for row in sampled for i, target in zip(row.ids, row.targets) if target}
        return TorchEngine(model, config, learned)
    if half:
        raise TrainError(f"precision bfloat16 cannot be used: {reason or 'MLX has no fast bfloat16 products on CPU'}")
    if config.softmax == "sampled":
        raise TrainError(f"softmax sampled cannot be used: {reason or 'MLX takes the whole vocabulary'}")
    if config.engine == "torch":
        raise TrainError(f"engine torch cannot be used: {reason}")
    return MlxEngine(model, config)


def validation_loss(model, rows: Sequence[Row], config: TrainConfig, engine=None) -> float:
    """Mean cross-entropy per learned token over all rows."""
    engine = engine or make_engine(model, config)
    total = count = 0
    for indices in plan_epoch(rows, config.batch_size, 0, 0):
        loss, n = engine.loss(make_batch([rows[i] for i in indices]))
        total, count = total + loss, count + n
    return total / count
