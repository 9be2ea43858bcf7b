"""Which engine, precision and softmax a run trains with on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from ..core import blas
from ..core.errors import TrainError
from ..data.rows import Row
from ..engines.mlx_step import MlxEngine
from .config import TrainConfig

#: Up to so many entries `auto` takes them all: a sample has 40,960 and more of them, and saves a few percent of a step.
SMALL_VOCABULARY = 65536


def choose_precision(model, wanted: str = "auto") -> str:
    """`TrainConfig.precision` for `auto` (bfloat16 matmuls where this CPU is fast at them), `float32` or `bfloat16`."""
    from ..engines.torch_support import bfloat16_unsupported_reason, unsupported_reason

    if wanted == "auto" and unsupported_reason(model) is None and bfloat16_unsupported_reason() is None:
        return "bfloat16"
    return "bfloat16" if wanted == "bfloat16" else "auto"


def choose_softmax(model, wanted: str = "auto") -> str:
    """`TrainConfig.softmax` for `auto` (sampled where the torch engine trains and the vocabulary is large), `exact` or
    `sampled`."""
    from ..engines.torch_support import unsupported_reason

    large = model.args.vocab_size > SMALL_VOCABULARY
    return ("sampled" if large and unsupported_reason(model) is None else "exact") if wanted == "auto" else wanted


def make_engine(model, config: TrainConfig, rows: Sequence[Row] = ()):
    """The step engine that `config.engine` names; "auto" takes torch on CPU where it can train this model.

    A sampled softmax must know the target tokens to come: those of `rows`. Raises TrainError.
    """
    from ..engines.torch_step import TorchEngine
    from ..engines.torch_support import bfloat16_unsupported_reason, unsupported_reason

    half = config.precision == "bfloat16" and blas.mlx().default_device() != blas.mlx().gpu
    reason = unsupported_reason(model) or (bfloat16_unsupported_reason() if half else None)
    if config.engine != "mlx" and reason is None:
        sampled = rows if config.softmax == "sampled" else ()
        targets = {i for row in sampled for i, target in zip(row.ids, row.targets) if target}
        return TorchEngine(model, config, targets)
    if half:
        raise TrainError(f"precision bfloat16 cannot be used: {reason or 'MLX has no fast bfloat16 matmuls on CPU'}")
    if config.softmax == "sampled":
        raise TrainError(f"softmax sampled cannot be used: {reason or 'MLX takes the whole vocabulary'}")
    if config.engine == "torch":
        raise TrainError(f"engine torch cannot be used: {reason}")
    return MlxEngine(model, config)
