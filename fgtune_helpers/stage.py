"""The stage contract: parameters in, a manifest out, and checks between that print `ok` or raise.

A stage works in a folder of its own under `<run>/.work/` and `finish` moves it to `<run>/<stage>/` whole, with a
`stage.json` that says what went in, what came out (sha256 and bytes), and what was measured. A stage that is
killed leaves the previous result as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fgtune.core.environment import seed_all, versions
from fgtune.core.errors import ProjectError
from fgtune.core.files import hash_files, verify_files, write_json
from fgtune.core.folders import recover, replace_folder
from fgtune.core.project import project_root
from fgtune.data.readers.files import digest_of, read_json
from fgtune.data.rows import Case, Row, case_of, tokenize, write_jsonl
from fgtune.evaluation.scorecards import Scorecard
from fgtune.models.base_model import CONVERSION_VERSION
from fgtune.models.tokenizer_files import load_tokenizer
from fgtune.models.vocabulary import Vocabulary, keep_vocabulary
from fgtune.runtimes.constrained import Grammar
from fgtune.training.recipe import derive_settings

from . import __version__
from .params import PARAMETERS, SERIES, ParameterError, chosen_file, coerce, names_set, read_params, resolve_path

SCHEMA = 2  # of stage.json and of the names of the files beside it


@dataclass(frozen=True)
class Stage:
    """One notebook of the series: what it reads, what it makes, which parameters change its result."""

    title: str
    outcome: str
    needs: list[str]
    produces: str
    params: list[str]
    minutes: str  # on two cores without an accelerator, quickstart
    soft: list[str] = field(default_factory=list)  # parameters that never change the result
    mlx: bool = False

    @property
    def all_params(self) -> list[str]:
        return ["run_dir", *self.params, *self.soft]


STAGES = {name: Stage(**entry) for name, entry in SERIES["stages"].items()}
OPTIONAL = {name: Stage(**entry) for name, entry in SERIES["optional"].items()}  # run only where they are named
ALL = STAGES | OPTIONAL


class StageError(ProjectError):
    """A stage cannot start or finish; the message is one line that says what to do."""


class OldRunError(StageError):
    """A run folder was written in another format than this version's."""


class CheckFailed(AssertionError):
    """A checkpoint did not hold."""

    def _render_traceback_(self) -> list[str]:  # what IPython shows in place of a traceback
        return [str(self)]


def check(what: str, holds: bool, detail: str = "") -> None:
    """Print `ok   what` when `holds`, else raise CheckFailed with `detail` (which says what was seen)."""
    if not holds:
        raise CheckFailed(f"FAIL {what}" + (f": {detail}" if detail else ""))
    print(f"ok   {what}")


def resolve_run(run_dir: str) -> Path:
    """The folder of a run: absolute, or below the project's root."""
    return (project_root() / Path(run_dir).expanduser()).resolve()


def read_manifest(run: Path, stage: str) -> dict | None:
    """`stage.json` of a finished stage, or None. Raises StageError when it cannot be read, OldRunError for a format
    that this version does not read."""
    path = recover(run / stage, run / ".work" / f"{stage}.old") / "stage.json"
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        schema, _ = manifest["schema"], (manifest["outputs"], manifest["key"])
    except (ValueError, KeyError):
        raise StageError(f"{path} is damaged: run the stage again with --force") from None
    if schema != SCHEMA:
        text = f"{run} holds a run of format {schema}, this version reads format {SCHEMA}"
        raise OldRunError(f"{text}: write it anew (run --force), or choose another run_dir")
    return manifest


def stage_key(stage: str, values: dict[str, Any], upstream: dict[str, dict]) -> str:
    """Content hash of everything that decides a stage's result: parameters, input files, upstream outputs."""
    spec = ALL[stage]
    named = [name for name in ("tools_file", "examples_file") if name in spec.params and values[name]]
    files = {name: digest_of(resolve_path(values[name])) for name in named}
    inputs = {name: {k: v["sha256"] for k, v in m["outputs"].items()} for name, m in upstream.items()}
    decisive = {name: values[name] for name in spec.params if name not in files}
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
    given: dict[str, Any] = field(default_factory=dict)  # what `p` held before `settings`

    def input(self, stage: str) -> Path:
        """Folder of a finished upstream stage."""
        if stage not in self.inputs:
            raise StageError(f"{self.stage} does not declare that it reads {stage}")
        return self.root / stage

    def metrics(self, stage: str) -> dict:
        """What an upstream stage measured."""
        return self.inputs[stage]["metrics"]

    def base(self) -> Path:
        """Folder of the base model, with the vocabulary that 01_data kept. Raises StageError when it is gone."""
        pruned, path = self.root / "01_data" / "base", Path(self.metrics("00_setup")["path"])
        path = pruned if "01_data" in self.inputs and pruned.exists() else path
        if not (path / "config.json").exists():
            raise StageError(f"the base model is no longer at {path}: python -m fgtune_helpers run --only 00 --force")
        return path

    def vocabulary(self, rows: list[Row], tokenizer) -> Vocabulary:
        """The base model of all later stages: it keeps what the training `rows` need, as `vocabulary` says."""
        return keep_vocabulary(self.base(), self.p.vocabulary, rows, tokenizer, self.dir / "base")

    def file(self, name: str) -> Path:
        """Path of one output file of this stage, its folder made."""
        (self.dir / name).parent.mkdir(parents=True, exist_ok=True)
        return self.dir / name

    def folder(self, where: str | Path) -> Path:
        """The model folder that `where` names: a stage (`00_setup` is the base model), or the folder itself."""
        return self.base() if where == "00_setup" else self.input(where) if where in STAGES else Path(where)

    def tokenizer(self, where: str | Path = "00_setup"):
        """The tokenizer of a model folder (see `folder`), as transformers loads it."""
        return load_tokenizer(self.folder(where))

    def examples(self, split: str = "test") -> list[dict]:
        """The chat rows of a split, as stage 01 wrote them."""
        return read_json(self.input("01_data") / f"{split}.jsonl")

    def rows(self, split: str, tokenizer) -> list[Row]:
        """The token rows of a split; `tokenizer` is transformers', or mlx-lm's wrapper of one."""
        plain = tokenizer if callable(tokenizer) else tokenizer._tokenizer
        return [tokenize(example, plain) for example in self.examples(split)]

    def cases(self, split: str = "test") -> list[Case]:
        """The cases of a split: its prompts with what is expected."""
        return [case_of(example) for example in self.examples(split)]

    def settings(self, rows: list[Row]) -> list:
        """The settings of training that nobody gave, as the training rows say, each `(name, value, reason)`; they are
        put into `p`."""
        self.given = self.given or dict(vars(self.p))
        settings = derive_settings(rows, self.given, self.p.seed)
        vars(self.p).update({setting.name: setting.value for setting in settings})
        return settings

    def verbatim_arguments(self) -> dict[str, int]:
        """The arguments that every training example copies from its request, as stage 01 found them."""
        return read_json(self.input("01_data") / "verbatim_arguments.json")

    def grammar(self, where: str | Path) -> Grammar | None:
        """What answers of the model in `where` (see `folder`) are constrained to; None when `constrained` is off."""
        return Grammar(self.folder(where), self.verbatim_arguments()) if self.p.constrained else None

    def scorecard(self, stage: str, name: str = "scorecard") -> Scorecard:
        """A scorecard of an upstream stage."""
        return Scorecard.load(self.input(stage) / f"{name}.json")

    def save_json(self, name: str, value: Any) -> None:
        """Write one output file as JSON."""
        write_json(self.file(name), value)

    def save_jsonl(self, name: str, rows: list[dict]) -> None:
        """Write one output file as JSON, one object a line: the form that mlx-lm and TRL read."""
        write_jsonl(self.file(name), rows)

    def finish(self, metrics: dict | None = None, skipped: str | None = None) -> None:
        """Write `stage.json` and move the folder into place. A `skipped` stage fails where CI=true."""
        if skipped and os.environ.get("CI") == "true":
            raise CheckFailed(f"FAIL {self.stage} was skipped, which CI does not accept: {skipped}")
        outputs, seconds = hash_files(self.dir), round(time.time() - self.started, 1)
        manifest = {"schema": SCHEMA, "stage": self.stage, "key": self.key, "parameters": vars(self.p)}
        manifest |= {"inputs": {name: m["key"] for name, m in self.inputs.items()}, "outputs": outputs}
        manifest |= {"metrics": metrics or {}, "skipped": skipped, "versions": versions(), "seconds": seconds}
        write_json(self.dir / "stage.json", manifest)
        replace_folder(self.dir, self.root / self.stage, self.root / ".work" / f"{self.stage}.old")
        size = sum(entry["bytes"] for entry in outputs.values())
        print(f"{'skipped: ' + skipped if skipped else 'done'} · {len(outputs)} files, {size / 1e6:.1f} MB")


def _parameters(stage: str, namespace: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values of a stage's parameters, and a table that says where each is from: the chosen params file stands in
    for the default of what nobody has set. Raises ParameterError."""
    own, cells = ALL[stage].all_params, names_set(namespace, ALL[stage].all_params)
    given = {name: coerce(name, namespace[name]) for name in (*cells, *own) if name in namespace}
    if missing := [name for name in own if name not in given]:
        raise ParameterError(f"the parameters cell of {stage} lacks {', '.join(missing)}")
    others = [name for name in given if name not in own]
    for name in others:  # papermill's -f hands over all keys of a params file of the series, and run_dir is one of them
        if not (cells[name] and cells.get("run_dir")):
            owners = ", ".join(other for other in ALL if name in ALL[other].all_params)
            raise ParameterError(f"{stage} has no parameter {name!r}; it belongs to {owners}")
    unset = [name for name in own if given[name] == PARAMETERS[name].default and not cells.get(name)]
    file = chosen_file() if unset else ""
    chosen = {name: value for name, value in read_params(file).items() if name in unset} if file else {}
    values, table = {name: given[name] for name in own} | chosen, []
    for name, value in values.items():
        default, source = PARAMETERS[name].default, file if name in chosen else "given"
        source = "default" if value == default else f"{source} (default {default!r})"
        table.append(f"{name:<24} {value!r:<28} {source}")
    return values, [*table, *([f"{'not used here':<24} {', '.join(others)}"] if others else [])]


def start_stage(stage: str, namespace: dict[str, Any], *, keep: bool = False) -> Run:
    """Begin a stage from a notebook's globals: resolve parameters, check what it needs, seed, say what is used.

    `keep` lets work with the same content hash go on: that of an interrupted stage, or that of a finished one, which
    then has nothing left to do (`FGTUNE_FRESH=1`, or the runner's `--force`, begins anew all the same).
    Raises ParameterError or StageError, one line each.
    """
    spec = ALL[stage]
    values, table = _parameters(stage, namespace)
    root = resolve_run(values["run_dir"])
    upstream = {}
    for need in spec.needs:
        upstream[need] = read_manifest(root, need)
        command = f"python -m fgtune_helpers run --to {need} -p run_dir {values['run_dir']}"
        if upstream[need] is None:
            raise StageError(f"{stage} needs {need}, which has not run in {values['run_dir']}: {command}")
        if wrong := verify_files(root / need, upstream[need]["outputs"]):
            raise StageError(f"{need} is not what it was when it finished ({wrong}): {command} --force")
    key = stage_key(stage, values, upstream)
    seed_all(values.get("seed", PARAMETERS["seed"].default), spec.mlx)
    work = root / ".work" / stage
    stamp = work.with_name(f"{stage}.key")
    keep = keep and os.environ.get("FGTUNE_FRESH") != "1"
    interrupted = keep and work.exists() and stamp.exists() and stamp.read_text() == key
    if not interrupted:
        shutil.rmtree(work, ignore_errors=True)
        with contextlib.suppress(OldRunError):
            done = read_manifest(root, stage) if keep else None
            if done and done["key"] == key and not verify_files(root / stage, done["outputs"]):
                shutil.copytree(root / stage, work, ignore=shutil.ignore_patterns("stage.json"))
                print(f"the same was done before: {values['run_dir']}/{stage} goes on (FGTUNE_FRESH=1 begins anew)")
    work.mkdir(parents=True, exist_ok=True)
    stamp.write_text(key)
    print(*table, sep="\n")
    return Run(stage, root, SimpleNamespace(**values), work, key, upstream)
