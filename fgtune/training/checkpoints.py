"""Checkpoints that a training run goes on from."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from ..core import blas
from ..core.folders import replace_folder
from ..models.adapters import named_trainable_parameters
from .config import History, TrainConfig


def fingerprint(model, train_rows, valid_rows, config: TrainConfig) -> str:
    """What a checkpoint belongs to: settings, rows and sizes; a run with other ones starts afresh."""
    import hashlib

    digest = hashlib.sha256()
    settings = {k: v for k, v in asdict(config).items() if k not in ("steps_per_report", "save_every")}
    about = [settings, model.adapter_settings, vars(model.args)]
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for row in [*train_rows, *valid_rows]:
        digest.update(repr((row.ids, row.targets, row.prefix)).encode())
    return digest.hexdigest()


class Checkpoint:
    """The checkpoint of a run: adapters, optimiser state and history in one folder, replaced at once."""

    def __init__(self, model, optimizer, config: TrainConfig, out_dir: Path, mark: str):
        self.model, self.optimizer, self.mark = model, optimizer, mark
        self.folder = out_dir / "checkpoint"

    def save(self, history: History) -> None:
        from mlx.utils import tree_flatten

        mx = blas.mlx()
        fresh = self.folder.with_name("checkpoint.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        mx.save_safetensors(str(fresh / "adapters.safetensors"), named_trainable_parameters(self.model))
        mx.save_safetensors(str(fresh / "optimizer.safetensors"), dict(tree_flatten(self.optimizer.state)))
        history.save(fresh / "history.json")
        (fresh / "run.json").write_text(json.dumps({"fingerprint": self.mark}) + "\n", encoding="utf-8")
        replace_folder(fresh, self.folder)

    def resume(self) -> History | None:
        """Restore the last checkpoint of this very run, if there is one; anything else is left alone."""
        from mlx.utils import tree_unflatten

        mx = blas.mlx()
        old = self.folder.with_name("checkpoint.old")
        folder = self.folder if self.folder.exists() else old
        if not (folder / "run.json").exists():
            return None
        if json.loads((folder / "run.json").read_text())["fingerprint"] != self.mark:
            return None
        self.model.load_weights(list(mx.load(str(folder / "adapters.safetensors")).items()), strict=False)
        self.optimizer.state = tree_unflatten(list(mx.load(str(folder / "optimizer.safetensors")).items()))
        mx.eval(self.model.parameters(), self.optimizer.state)
        return History.load(folder / "history.json")
