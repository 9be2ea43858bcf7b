"""Settings of a training run, and what it measured."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..core.errors import TrainError


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run, by mlx-lm's names where it has them. Raises TrainError for a value that is out of range.

    `iters` counts optimiser steps, each over `batch_size * grad_accumulation_steps` rows. `warmup`, `steps_per_report`,
    `steps_per_eval` and `save_every` count optimiser steps too.
    `beta2`: decay of AdamW's second moment, an average over about 1 / (1 - beta2) steps; a run has a few hundred.
    `grad_clip`: largest norm of the gradient (0: no clipping).
    `steps_per_eval` 0: evaluate at the end only. `save_every`: how often a checkpoint is written; at every evaluation
    as well (0: only then). `patience`: stop after so many evaluations without a better one (0: never).
    `prefix_chunk`: queries per attention block in the prefix; `logits_chunk`: rows of logits held at a time.
    `engine`: "mlx", "torch" (CPU only, several times faster there) or "auto".
    `precision`: "auto" multiplies in the dtype of the model (float32 on CPU); "bfloat16" rounds the operands of matmuls
    to bfloat16, on CPUs that are fast at it.
    `softmax`: "exact", or "sampled" (engine "torch"): gradients from the target tokens and a sample of the rest of the
    vocabulary.
    """

    iters: int = 100
    batch_size: int = 8
    learning_rate: float = 1e-4
    warmup: int = 10
    lr_schedule: str = "cosine"
    min_learning_rate: float = 0.0
    beta2: float = 0.99
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    grad_accumulation_steps: int = 1
    steps_per_report: int = 10
    steps_per_eval: int = 50
    patience: int = 0
    seed: int = 0
    prefix_chunk: int = 256
    logits_chunk: int = 64
    save_every: int = 25
    engine: str = "auto"
    precision: str = "auto"
    softmax: str = "exact"

    def __post_init__(self):
        counts = ("iters", "batch_size", "grad_accumulation_steps", "steps_per_report", "prefix_chunk", "logits_chunk")
        for name in counts:
            if getattr(self, name) < 1:
                raise TrainError(f"{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "grad_clip", "steps_per_eval", "patience", "save_every"):
            if getattr(self, name) < 0:
                raise TrainError(f"{name} must not be negative, but is {getattr(self, name)}")
        if not 0 <= self.beta2 < 1:
            raise TrainError(f"beta2 must be at least 0 and below 1, not {self.beta2}")
        if not self.learning_rate > 0:
            raise TrainError(f"learning_rate must be positive, not {self.learning_rate}")
        if self.lr_schedule not in ("cosine", "constant", "linear"):
            raise TrainError(f"lr_schedule is cosine, linear or constant, not {self.lr_schedule!r}")
        if self.engine not in ("auto", "mlx", "torch"):
            raise TrainError(f"engine is auto, mlx or torch, not {self.engine!r}")
        if self.precision not in ("auto", "bfloat16"):
            raise TrainError(f"precision is auto or bfloat16, not {self.precision!r}")
        if self.softmax not in ("exact", "sampled"):
            raise TrainError(f"softmax is exact or sampled, not {self.softmax!r}")


@dataclass
class History:
    """What a run measured.

    `reports`: iter, loss (mean since the last report), learning_rate, tokens_per_second, seconds_per_step,
    seconds_left, peak_memory_gb. `evals`: iter, valid_loss, exact (share of cases, or None), seconds, best.
    `best_iter`: the step whose adapters were kept. `losses`: one per optimiser step. `seconds`: of the whole run.
    `config`: its settings.
    """

    reports: list[dict] = field(default_factory=list)
    evals: list[dict] = field(default_factory=list)
    best_iter: int = 0
    stopped_early: bool = False
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    config: dict = field(default_factory=dict)

    @property
    def best(self) -> dict | None:
        """The evaluation whose adapters were kept."""
        return next((e for e in self.evals if e["iter"] == self.best_iter), None)

    def save(self, path: str | Path) -> None:
        """Write everything as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read what `save` wrote."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """Learning rate of optimiser step `step` (from 0): a linear warm-up, then the schedule down to the minimum."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.lr_schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup) / max(1, config.iters - config.warmup)
    decay = 0.5 * (1 + math.cos(math.pi * progress)) if config.lr_schedule == "cosine" else 1 - progress
    return config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * decay
