"""Checkpoints that a training run goes on from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from ..core import blas
from ..core.folders import recover, rewritten_folder
from ..models.adapters import named_trainable_parameters
from .config import History, TrainConfig


def run_fingerprint(model, train_rows, valid_rows, config: TrainConfig) -> str:
    """sha256 of what makes two runs the same: settings, adapters, model sizes and rows."""
    digest = hashlib.sha256()
    settings = {k: v for k, v in asdict(config).items() if k not in ("steps_per_report", "save_every")}
    about = [settings, model.adapter_settings, vars(model.args)]
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for row in [*train_rows, *valid_rows]:
        digest.update(repr((row.ids, row.targets, row.prefix)).encode())
    return digest.hexdigest()


class Checkpoint:
    """The checkpoint of a run: adapters, optimiser state and history in the folder `checkpoint`, replaced whole."""

    def __init__(self, model, optimizer, out_dir: Path, fingerprint: str):
        self.model, self.optimizer, self.fingerprint = model, optimizer, fingerprint
        self.folder = out_dir / "checkpoint"

    def save(self, history: History) -> None:
        """Replace the checkpoint by the present state."""
        from mlx.utils import tree_flatten

        mx = blas.mlx()
        with rewritten_folder(self.folder) as fresh:
            mx.save_safetensors(str(fresh / "adapters.safetensors"), named_trainable_parameters(self.model))
            mx.save_safetensors(str(fresh / "optimizer.safetensors"), dict(tree_flatten(self.optimizer.state)))
            history.save(fresh / "history.json")
            run = {"fingerprint": self.fingerprint}
            (fresh / "run.json").write_text(json.dumps(run) + "\n", encoding="utf-8")

    def resume(self) -> History | None:
        """Load adapters and optimiser state, and return the history; None without a checkpoint of the same run."""
        from mlx.utils import tree_unflatten

        mx = blas.mlx()
        folder = recover(self.folder)
        if not (folder / "run.json").exists():
            return None
        if json.loads((folder / "run.json").read_text())["fingerprint"] != self.fingerprint:
            return None
        self.model.load_weights(list(mx.load(str(folder / "adapters.safetensors")).items()), strict=False)
        self.optimizer.state = tree_unflatten(list(mx.load(str(folder / "optimizer.safetensors")).items()))
        mx.eval(self.model.parameters(), self.optimizer.state)
        return History.load(folder / "history.json")
