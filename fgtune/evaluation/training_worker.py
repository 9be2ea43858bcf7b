"""One worker of `training.train_on_workers`, as `mlx.launch` starts it: it trains and validates by exact match."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def work(job_file: str) -> None:
    """Train by a job file of `train_on_workers`; the first worker prints its reports as JSON lines."""
    from ..core import blas
    from ..data.rows import load_cases, load_rows
    from ..models.adapters import add_lora, load_model
    from ..runtimes.mlx import MlxGenerator
    from ..training.config import TrainConfig
    from ..training.loop import train
    from .scorecards import score

    job = json.loads(Path(job_file).read_text())
    group = blas.mlx().distributed.init(strict=True, backend="ring")
    model, tokenizer = load_model(job["base"])
    add_lora(model, **job["adapters"])
    folder = Path(job["data"])
    rows = [load_rows(folder, split, tokenizer._tokenizer) for split in ("train", "valid")]
    cases = load_cases(folder, "valid")

    def exact_match(model):
        return score(MlxGenerator(model, tokenizer, max_tokens=job["max_tokens"]), cases).exact

    def print_json(record):
        print(json.dumps(record), flush=True)

    train(model, tokenizer, *rows, TrainConfig(**job["config"]), job["out"], exact_match, print_json, group=group)


if __name__ == "__main__":
    work(sys.argv[1])
