"""Training on several processes or machines: the same `train`, started by `mlx.launch`, one worker a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from ..core import blas
from ..core.errors import TrainError
from .callbacks import print_report
from .config import History, TrainConfig


def train_on_workers(
    workers: int,
    base: Path,
    data_dir: Path,
    adapters: dict,
    config: TrainConfig,
    out_dir: Path,
    max_tokens: int,
    on_report: Callable[[dict], None] | None = None,
) -> History:
    """`train` shared by `workers` processes on this machine (MLX's ring backend over loopback).

    `adapters` are `add_lora`'s arguments, `data_dir` holds `train.jsonl` and `valid.jsonl`. Every batch of
    `config.batch_size` rows is divided among the workers, so the loss curve is the one of a single worker. For several
    machines `FGTUNE_HOSTFILE` names a file as `mlx.launch --hostfile` reads it; the folders must be there under the
    same paths.
    Raises TrainError with the message of a worker that failed.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    job = out_dir / "job.json"
    job.write_text(
        json.dumps(
            {
                "base": str(base),
                "data": str(data_dir),
                "adapters": adapters,
                "config": asdict(config),
                "out": str(out_dir),
                "max_tokens": max_tokens,
            }
        )
    )
    hostfile = os.environ.get("FGTUNE_HOSTFILE")
    threads = max(1, (os.cpu_count() or 1) // workers)
    command = [str(Path(sys.executable).with_name("mlx.launch")), "--backend", "ring"]
    command += ["--hostfile", hostfile] if hostfile else ["-n", str(workers)]
    command += ["--env", f"OMP_NUM_THREADS={threads}", "--env", f"PYTHONPATH={Path(__file__).parents[2]}"]
    command += [sys.executable, "-m", "fgtune.evaluation.training_worker", str(job)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output: deque[str] = deque(maxlen=20)
    try:
        for line in process.stdout:
            if line.startswith('{"kind"'):
                (on_report or print_report)(json.loads(line))
            else:
                output.append(line.rstrip())
    except BaseException:
        process.terminate()
        process.wait()
        raise
    job.unlink()
    if process.wait() or not (out_dir / "history.json").exists():
        message = next((line for line in reversed(output) if "Error" in line), output[-1] if output else "no message")
        raise TrainError(f"a worker failed: {message[:300]}")
    return History.load(out_dir / "history.json")


def sum_over_workers(group, gradients, figures: Sequence[float]) -> tuple[dict, list[float]]:
    """Sums over all workers of a tree of gradients and of a few figures, in one message of float32 (an all-reduce)."""
    from mlx.utils import tree_flatten, tree_unflatten

    mx = blas.mlx()
    leaves = tree_flatten(gradients)
    parts = [g.reshape(-1).astype(mx.float32) for _, g in leaves] + [mx.array([float(x) for x in figures])]
    whole = mx.distributed.all_sum(mx.concatenate(parts), group=group)
    out, start = [], 0
    for name, g in leaves:
        out.append((name, whole[start : start + g.size].reshape(g.shape).astype(g.dtype)))
        start += g.size
    mx.eval([g for _, g in out], whole)
    return tree_unflatten(out) if out else {}, whole[start:].tolist()
