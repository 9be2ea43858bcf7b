"""Training on several processes or machines: the same `train`, started by `mlx.launch`, one worker a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ..core.errors import TrainError
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

    `adapters` are `add_lora`'s arguments, `data_dir` is stage 01's folder; every batch of `config.batch_size` rows is
    shared among the workers, so the loss curve is the one of a single worker. Machines of a hostfile:
    `FGTUNE_HOSTFILE`, as `mlx.launch --hostfile` reads it; the folders must be there under the same paths.
    Raises TrainError with the last words of a worker that failed.
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
    where = os.environ.get("FGTUNE_HOSTFILE")
    threads = max(1, (os.cpu_count() or 1) // workers)
    command = [str(Path(sys.executable).with_name("mlx.launch")), "--backend", "ring"]
    command += ["--hostfile", where] if where else ["-n", str(workers)]
    command += ["--env", f"OMP_NUM_THREADS={threads}", "--env", f"PYTHONPATH={Path(__file__).parents[2]}"]
    command += [sys.executable, "-m", "fgtune.evaluation.training_worker", str(job)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    words: deque[str] = deque(maxlen=20)
    try:
        for line in process.stdout:
            if line.startswith('{"kind"'):
                (on_report or print)(json.loads(line))
            else:
                words.append(line.rstrip())
    except BaseException:
        process.terminate()
        process.wait()
        raise
    job.unlink()
    if process.wait() or not (out_dir / "history.json").exists():
        said = next((w for w in reversed(words) if "Error" in w), words[-1] if words else "no message")
        raise TrainError(f"a worker failed: {said[:300]}")
    return History.load(out_dir / "history.json")
