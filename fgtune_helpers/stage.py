"""The stage contract: parameters in, a manifest out, and checks between that print `ok` or raise.

A stage works in a folder of its own under `<run>/.work/` and `finish` moves it to `<run>/<stage>/` whole, with a
`stage.json` that says what went in, what came out (sha256 and bytes), and what was measured. A stage that is
killed leaves the previous result as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import shutil
import sys
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fgtune.core.errors import ProjectError
from fgtune.core.files import file_sha256, write_json
from fgtune.core.project import project_root
from fgtune.data.readers.files import json_files
from fgtune.models.base_model import CONVERSION_VERSION

from . import __version__
from .params import PARAMETERS, ParameterError, coerce

SCHEMA = 1


@dataclass(frozen=True)
class Stage:
    """One notebook of the series: what it reads, what it makes, which parameters change its result."""

    title: str
    outcome: str
    needs: tuple[str, ...]
    produces: str
    params: tuple[str, ...]
    minutes: str  # on two cores without an accelerator, quickstart
    soft: tuple[str, ...] = ()  # parameters that never change the result
    mlx: bool = False

    @property
    def all_params(self) -> tuple[str, ...]:
        return ("run_dir", *self.params, *self.soft)


_TRAIN = (
    *("iters", "batch_size", "grad_accumulation_steps", "learning_rate", "precision", "softmax", "warmup"),
    *("fine_tune_type", "num_layers", "rank", "scale", "dropout", "steps_per_eval", "patience", "max_tokens"),
)


STAGES: dict[str, Stage] = {
    "00_setup": Stage("Set up", "the base model is on disk and answers", (), "base model in the cache",
                      ("seed", "base_model"), "1", mlx=True),
    "01_data": Stage("Data", "your tools and examples become linted, leak-free training data", ("00_setup",),
                     "train, valid and test rows",
                     ("seed", "tools_file", "examples_file", "test_cases", "valid_cases", "similarity",
                      "augment", "combine", "max_seq_length"), "1"),
    "02_train": Stage("Train", "a LoRA adapter, the best one by exact match", ("00_setup", "01_data"),
                      "best and last adapters, history", ("seed", *_TRAIN), "15",
                      ("steps_per_report", "workers", "report_to"), mlx=True),
    "03_test_adapters": Stage("Test the adapter", "exact match on held-out cases, base beside tuned",
                              ("00_setup", "01_data", "02_train"), "scorecards",
                              ("max_tokens", "constrained", "min_exact"), "1", mlx=True),
    "04_fuse": Stage("Fuse", "one model without adapters", ("00_setup", "02_train"), "fused model (safetensors)",
                     (), "1", mlx=True),
    "05_test_fused": Stage("Test the fused model", "the fused model answers as the adapter did",
                           ("01_data", "03_test_adapters", "04_fuse"), "scorecard",
                           ("max_tokens", "constrained"), "1", mlx=True),
    "06_export_onnx": Stage("Export to ONNX", "the fused model as an ONNX graph", ("01_data", "04_fuse"), "fp32 ONNX",
                            ("exporter", "max_positions"), "1", mlx=True),
    "07_quantize": Stage("Quantise", "smaller variants of the graph", ("01_data", "04_fuse", "06_export_onnx"),
                         "the ONNX variants", ("seed", "variants"), "4"),
    "08_test_onnx": Stage("Test with onnxruntime", "every variant takes the same held-out cases",
                          ("01_data", "05_test_fused", "06_export_onnx", "07_quantize"), "a scorecard per variant",
                          ("max_tokens", "constrained", "max_drop"), "2"),
    "09_test_node": Stage("Test with transformers.js in Node", "JavaScript gives the same tokens as Python",
                          ("01_data", "07_quantize", "08_test_onnx"), "a scorecard per variant",
                          ("max_tokens", "constrained", "node_variants"), "2"),
    "10_deploy_browser": Stage("Deploy to the browser", "a static page that a real browser has run",
                               ("01_data", "07_quantize", "08_test_onnx", "09_test_node"), "a static site",
                               ("deploy_variant", "browser_cases", "max_tokens", "constrained"), "1"),
    "11_report": Stage("Report", "every gate and every figure of the run on one page",
                       ("00_setup", "01_data", "02_train", "03_test_adapters", "04_fuse", "05_test_fused",
                        "06_export_onnx", "07_quantize", "08_test_onnx", "09_test_node", "10_deploy_browser"),
                       "report.html", (), "1"),
}  # fmt: skip


class StageError(ProjectError):
    """A stage cannot start or finish; the message is one line that says what to do."""


class CheckFailed(AssertionError):
    """A checkpoint did not hold."""


def check(what: str, holds: bool, detail: str = "") -> None:
    """Print `ok   what` when `holds`, else raise CheckFailed with `detail` (which says what was seen)."""
    if not holds:
        raise CheckFailed(f"FAIL {what}" + (f": {detail}" if detail else ""))
    print(f"ok   {what}")


def resolve_path(value: str) -> Path:
    """An input path: absolute, or below the project's root, or below the working directory. Raises ParameterError."""
    path = Path(value).expanduser()
    tried = [path] if path.is_absolute() else [project_root() / path, Path.cwd() / path]
    for candidate in tried:
        if candidate.exists():
            return candidate.resolve()
    raise ParameterError(f"{value!r} does not exist (looked at {' and '.join(str(p) for p in dict.fromkeys(tried))})")


def resolve_run(run_dir: str) -> Path:
    """The folder of a run: absolute, or below the project's root."""
    return (project_root() / Path(run_dir).expanduser()).resolve()


def read_manifest(run: Path, stage: str) -> dict | None:
    """`stage.json` of a finished stage, or None. Raises StageError when it cannot be read."""
    final, old = run / stage, run / ".work" / f"{stage}.old"
    if not final.exists() and old.exists():  # killed between the two renames of finish
        old.rename(final)
    path = final / "stage.json"
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["outputs"], manifest["key"]
    except (ValueError, KeyError):
        raise StageError(f"{path} is damaged: run the stage again with --force") from None
    return manifest


def _outputs(folder: Path) -> dict[str, dict]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "stage.json")
    return {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in files}


def verify_outputs(folder: Path, manifest: dict) -> str | None:
    """Say what of a stage's outputs does not match its manifest (one phrase), or None."""
    for name, want in manifest["outputs"].items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != want["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes, the manifest says {want['bytes']:,}"
        if file_sha256(path) != want["sha256"]:
            return f"{name} has changed since it was written"
    return None


def digest_of(path: Path) -> str:
    """sha256 of a file, or of the JSON files of a folder."""
    if path.is_file():
        return file_sha256(path)
    return hashlib.sha256("".join(f"{p.name}:{file_sha256(p)}\n" for p in json_files(path)).encode()).hexdigest()


def stage_key(stage: str, values: dict[str, Any], upstream: dict[str, dict]) -> str:
    """Content hash of everything that decides a stage's result: parameters, input files, upstream outputs."""
    spec = STAGES[stage]
    decisive = {name: values[name] for name in spec.params}
    files = {
        name: digest_of(resolve_path(values[name])) for name in ("tools_file", "examples_file") if name in decisive
    }
    inputs = {name: {k: v["sha256"] for k, v in m["outputs"].items()} for name, m in upstream.items()}
    decisive = {k: v for k, v in decisive.items() if k not in files}
    if "base_model" in decisive:
        decisive["recipe"] = CONVERSION_VERSION
    text = json.dumps([SCHEMA, __version__, stage, decisive, files, inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Run:
    """A stage at work: `p` (resolved parameters), `dir` (write here), `input(stage)` (read there), `finish(...)`."""

    stage: str
    root: Path
    p: SimpleNamespace
    dir: Path
    key: str
    inputs: dict[str, dict]
    started: float = field(default_factory=time.time)

    def input(self, stage: str) -> Path:
        """Folder of a finished upstream stage."""
        if stage not in self.inputs:
            raise StageError(f"{self.stage} does not declare that it reads {stage}")
        return self.root / stage

    def metrics(self, stage: str) -> dict:
        """What an upstream stage measured."""
        return self.inputs[stage]["metrics"]

    def base(self) -> Path:
        """Folder of the base model that 00_setup resolved. Raises StageError when it is gone from the cache."""
        path = Path(self.metrics("00_setup")["path"])
        if not (path / "config.json").exists():
            raise StageError(f"the base model is no longer at {path}: python -m fgtune_helpers run --only 00 --force")
        return path

    def file(self, name: str) -> Path:
        """Path of one output file of this stage, its folder made."""
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self, metrics: dict | None = None, skipped: str | None = None) -> None:
        """Write `stage.json` and move the folder into place. A `skipped` stage fails where CI=true."""
        if skipped and os.environ.get("CI") == "true":
            raise CheckFailed(f"FAIL {self.stage} was skipped, which CI does not accept: {skipped}")
        manifest = {
            "schema": SCHEMA,
            "stage": self.stage,
            "key": self.key,
            "parameters": vars(self.p),
            "inputs": {name: m["key"] for name, m in self.inputs.items()},
            "outputs": _outputs(self.dir),
            "metrics": metrics or {},
            "skipped": skipped,
            "versions": versions(),
            "seconds": round(time.time() - self.started, 1),
        }
        write_json(self.dir / "stage.json", manifest)
        final, old = self.root / self.stage, self.root / ".work" / f"{self.stage}.old"
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        self.dir.rename(final)
        shutil.rmtree(old, ignore_errors=True)
        size = sum(entry["bytes"] for entry in manifest["outputs"].values())
        print(f"{'skipped: ' + skipped if skipped else 'done'} · {len(manifest['outputs'])} files, {size / 1e6:.1f} MB")


def start_stage(stage: str, namespace: dict[str, Any], *, keep: bool = False) -> Run:
    """Begin a stage from a notebook's globals: resolve parameters, check what it needs, seed, say what is used.

    `keep` lets work with the same content hash go on: that of an interrupted stage, or that of a finished one, which
    then has nothing left to do (`FGTUNE_FRESH=1`, or the runner's `--force`, begins anew all the same).
    Raises ParameterError or StageError, one line each.
    """
    spec = STAGES[stage]
    given = {k: v for k, v in namespace.items() if k in PARAMETERS or _looks_like_a_parameter(k, v)}
    values = {name: coerce(name, value) for name, value in given.items()}
    missing = [name for name in spec.all_params if name not in values]
    if missing:
        raise ParameterError(f"the parameters cell of {stage} lacks {', '.join(missing)}")
    values = {name: values[name] for name in spec.all_params}
    root = resolve_run(values["run_dir"])
    upstream = {}
    for need in spec.needs:
        manifest = read_manifest(root, need)
        command = f"python -m fgtune_helpers run --to {need} -p run_dir {values['run_dir']}"
        if manifest is None:
            raise StageError(f"{stage} needs {need}, which has not run in {values['run_dir']}: {command}")
        wrong = verify_outputs(root / need, manifest)
        if wrong:
            raise StageError(f"{need} is not what it was when it finished ({wrong}): {command} --force")
        upstream[need] = manifest
    key = stage_key(stage, values, upstream)
    _seed(values.get("seed", PARAMETERS["seed"].default), spec.mlx)
    work = root / ".work" / stage
    stamp = work.with_name(f"{stage}.key")
    keep = keep and os.environ.get("FGTUNE_FRESH") != "1"
    interrupted = keep and work.exists() and stamp.exists() and stamp.read_text() == key
    if not interrupted:
        shutil.rmtree(work, ignore_errors=True)
        done = read_manifest(root, stage) if keep else None
        if done and done["key"] == key and not verify_outputs(root / stage, done):
            shutil.copytree(root / stage, work, ignore=shutil.ignore_patterns("stage.json"))
            print(f"the same was done before: going on from {values['run_dir']}/{stage} (FGTUNE_FRESH=1 begins anew)")
    work.mkdir(parents=True, exist_ok=True)
    stamp.write_text(key)
    for name, value in values.items():
        default = PARAMETERS[name].default
        print(f"{name:<24} {value!r:<28} {'default' if value == default else f'given (default {default!r})'}")
    return Run(stage, root, SimpleNamespace(**values), work, key, upstream)


def _looks_like_a_parameter(name: str, value: Any) -> bool:
    """A plain global that papermill may have injected: not IPython's own, not private."""
    hidden = ("In", "Out", "get_ipython", "exit", "quit", "open")
    plain = isinstance(value, (bool, int, float, str, list, dict)) or value is None
    return plain and not name.startswith("_") and name not in hidden


def _seed(seed: int, mlx: bool) -> None:
    import numpy as np

    random.seed(seed)
    np.random.seed(seed)
    if mlx:
        from fgtune.core.blas import mlx as import_mlx

        import_mlx().random.seed(seed)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    names = (
        "mlx",
        "mlx-lm",
        "transformers",
        "torch",
        "onnx",
        "onnxruntime",
        "optimum-onnx",
        "numpy",
    )
    found = {"python": platform.python_version(), "platform": f"{sys.platform} {platform.machine()}"}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
