"""The reference exporter, optimum-onnx."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from ..core.errors import ExportError
from .layout import data_files

log = logging.getLogger(__name__)


def run_optimum(fused: Path, out: Path) -> int:
    """Run optimum-onnx offline, its output to a log; returns the peak memory in the unit of `ru_maxrss`.

    Raises ExportError with the last line of its output.
    """
    work = out / "onnx" / ".optimum"
    shutil.rmtree(work, ignore_errors=True)
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "onnx", "--model", str(fused),
               "--task", "text-generation-with-past", "--no-post-process", str(work)]  # fmt: skip
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    log.info("%s\n%s%s", " ".join(command), done.stdout, done.stderr)
    if done.returncode or not (work / "model.onnx").exists():
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise ExportError(f"optimum failed ({done.returncode}): {lines[-1]}")
    for path in [*data_files(out / "onnx" / "model.onnx"), out / "onnx" / "model.onnx"]:
        path.unlink(missing_ok=True)
    for path in work.glob("model.onnx*"):
        shutil.move(path, out / "onnx" / path.name)
    shutil.rmtree(work)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
