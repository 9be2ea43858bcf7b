"""Reports of a training run: as printed lines, and to Weights & Biases, SwanLab or TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..core import blas
from ..core.clock import clock
from ..core.errors import TrainError


class Reporter:
    """Passes the records of a run to `on_report` (default: printed) and to an mlx-lm TrainingCallback, if any."""

    def __init__(self, on_report: Callable[[dict], None] | None = None, callback=None):
        self.on_report, self.callback = on_report or print_report, callback

    def report(self, record: dict) -> None:
        """A report of training, as in `History.reports`."""
        self.on_report(record)
        if self.callback is not None:
            self.callback.on_train_loss_report(
                {
                    "iteration": record["iter"],
                    "train_loss": record["loss"],
                    "learning_rate": record["learning_rate"],
                    "iterations_per_second": 1 / record["seconds_per_step"],
                    "tokens_per_second": record["tokens_per_second"],
                    "trained_tokens": None,
                    "peak_memory": record["peak_memory_gb"],
                }
            )

    def evaluation(self, record: dict) -> None:
        """An evaluation, as in `History.evals`."""
        self.on_report(record)
        if self.callback is not None and record["valid_loss"] is not None:
            self.callback.on_val_loss_report(
                {"iteration": record["iter"], "val_loss": record["valid_loss"], "val_time": record["seconds"]}
            )


def reporting_callback(report_to: str, folder: str | Path, config: dict):
    """mlx-lm's callback for `wandb` or `swanlab`, one of our own for `tensorboard`, None for "". Raises TrainError."""
    folder = Path(folder)
    try:
        if report_to == "tensorboard":
            return TensorBoardCallback(folder)
        from mlx_lm.tuner.callbacks import get_reporting_callbacks

        return get_reporting_callbacks(report_to, "fgtune", str(folder), config)
    except ImportError:
        raise TrainError(f"report_to {report_to!r} needs its package: pip install {report_to}") from None


class TensorBoardCallback:
    """Loss, learning rate and validation loss as TensorBoard scalars; the interface of mlx-lm's TrainingCallback."""

    def __init__(self, folder: str | Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def on_train_loss_report(self, info: dict) -> None:
        """Scalars of a training report."""
        self._write(info, ("train_loss", "learning_rate", "tokens_per_second", "peak_memory"))

    def on_val_loss_report(self, info: dict) -> None:
        """Scalars of a validation."""
        self._write(info, ("val_loss",))

    def _write(self, info: dict, names: Sequence[str]) -> None:
        for name in names:
            self.writer.add_scalar(name, info[name], info["iteration"])
        self.writer.flush()


def peak_memory_gb() -> float:
    """Peak memory in GB: of the device on Metal and CUDA, of the whole process on CPU."""
    mx = blas.mlx()
    if mx.default_device() == mx.gpu:
        return mx.get_peak_memory() / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def format_record(record: dict) -> str:
    """A report or an evaluation as one line."""
    if record["kind"] == "eval":
        parts = [f"iter {record['iter']:4d}"]
        if record["valid_loss"] is not None:
            parts.append(f"validation loss {record['valid_loss']:.4f}")
        if record["exact"] is not None:
            parts.append(f"exact match {record['exact']:.1%}")
        return " · ".join(parts + [f"{record['seconds']:.1f} s", "kept" if record["best"] else "not better"])
    return (
        f"iter {record['iter']:4d}/{record['iters']} · loss {record['loss']:.4f} · "
        f"learning rate {record['learning_rate']:.1e} · "
        f"{record['tokens_per_second']:.0f} tokens/s · {record['seconds_per_step']:.2f} s/step · "
        f"peak {record['peak_memory_gb']:.1f} GB · {clock(record['seconds_left'])} left"
    )


def print_report(record: dict) -> None:
    """Print a report or an evaluation as one line, at once."""
    print(format_record(record), flush=True)
