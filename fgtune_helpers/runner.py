"""The series in order: papermill over the notebooks, one line a stage. A stage is done when its content hash is what
it would be and its outputs are as its manifest says."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgtune.core.clock import clock
from fgtune.core.files import stderr_to, verify_files
from fgtune.core.notebooks import unfinished
from fgtune.core.project import project_root

from .params import PARAMETERS, ParameterError, chosen_file, closest, coerce, read_params, resolve_path
from .stage import ALL, STAGES, OldRunError, StageError, read_manifest, resolve_run, stage_key

OK, FAILED, BAD = 0, 1, 2
#: For the kernels: glibc's memory in pages of 2 MB where Linux grants them. Training and decoding gain some percent.
HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Plan:
    """Which stages to run with which parameters; `values` is the flat set of all parameters."""

    stages: list[str]
    values: dict[str, Any]
    force: bool = False


def load_params(files: list[str], pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Defaults, then params files (none given: the chosen one), then `-p` pairs, checked. Raises ParameterError."""
    values = {name: param.default for name, param in PARAMETERS.items()}
    for file in files or filter(None, [chosen_file()]):
        values |= read_params(file)
    values |= {name: coerce(name, value) for name, value in pairs}
    for name in filter(values.get, ("tools_file", "examples_file")):  # kernels start elsewhere: hand the full path over
        path, root = resolve_path(values[name]), project_root()
        values[name] = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    if Path(values["base_model"]).expanduser().is_dir():
        values["base_model"] = str(Path(values["base_model"]).expanduser().resolve())
    if "{" in values["run_dir"]:
        raise ParameterError("run_dir must not contain braces: papermill would read them as a format")
    wanted = (values["deploy_variant"], *values["node_variants"])
    if unmade := [variant for variant in wanted if variant not in ("fp32", *values["variants"])]:
        raise ParameterError(f"variant {unmade[0]!r} is to be tested or deployed but variants does not make it")
    return values


def choose(start: str | None, end: str | None, only: list[str], skip: list[str]) -> list[str]:
    """The stages between `start` and `end`, or `only` those, without `skip`. Names may be shortened to `02`.
    An optional stage must be among `only`."""
    names = list(ALL)

    def find(word: str) -> str:
        hits = [n for n in names if word in (n, *n.split("_", 1))] or [n for n in names if n.startswith(word)]
        if len(hits) != 1:
            raise ParameterError(f"no stage {word!r}{closest(word, names)}: one of {', '.join(names)}")
        return hits[0]

    first = names.index(find(start)) if start else 0
    last = names.index(find(end)) if end else len(STAGES) - 1
    if first > last:
        raise ParameterError(f"--from {names[first]} comes after --to {names[last]}")
    chosen = {find(w) for w in only} or {*names[first : last + 1]} & {*STAGES}
    return [n for n in names if n in chosen - {find(w) for w in skip}]


def state(stage: str, values: dict[str, Any]) -> tuple[str, dict | None]:
    """What is known of a stage: `done`, `skipped`, `new`, `changed`, `damaged` or `waits`; and its manifest."""
    run = resolve_run(values["run_dir"])
    upstream = {need: read_manifest(run, need) for need in ALL[stage].needs}
    if None in upstream.values():
        return "waits", None
    manifest = read_manifest(run, stage)
    if manifest is None:
        return "new", None
    if manifest["key"] != stage_key(stage, values, upstream):
        return "changed", manifest
    if verify_files(run / stage, manifest["outputs"]):
        return "damaged", manifest
    if not (run / "notebooks" / f"{stage}.ipynb").exists():
        return "new", manifest
    return ("skipped" if manifest.get("skipped") else "done"), manifest


def run_series(plan: Plan, out=None) -> int:
    """Run the planned stages in order; one line each. Returns 0 (done), 1 (a stage failed) or 2 (bad parameters)."""
    out = out or sys.stdout
    run = resolve_run(plan.values["run_dir"])
    if plan.force:
        os.environ["FGTUNE_FRESH"] = "1"  # the kernels inherit it
    begin = time.time()
    for number, stage in enumerate(plan.stages, 1):
        head = f"[{number:>2}/{len(plan.stages)}] {stage:<18}"
        try:
            known, manifest = state(stage, plan.values)
        except (StageError, ParameterError) as error:
            if isinstance(error, OldRunError) and not plan.force:
                raise
            known, manifest = "damaged", None
            print(f"{head} {error}", file=out)
        if known == "done" and not plan.force:
            print(f"{head} done before ({manifest['seconds']:.0f} s)", file=out, flush=True)
            continue
        started = time.time()
        print(f"{head} …", end="\r" if out.isatty() else "\n", file=out, flush=True)
        error = execute(stage, plan.values, run)
        took = _clock(time.time() - started)
        if error:
            print(f"{head} FAILED after {took}: {error}\n     see {run}/notebooks/{stage}.ipynb", file=out, flush=True)
            return FAILED
        manifest = read_manifest(run, stage)
        note = f"skipped: {manifest['skipped']}" if manifest["skipped"] else manifest["metrics"].get("headline", "")
        print(f"{head} {took:>7}  {note}".rstrip(), file=out, flush=True)
    print(f"finished in {_clock(time.time() - begin)}", file=out)
    report = run / "11_report" / "report.html"
    if plan.stages[-1] == "11_report" and report.exists():
        print(f"report: {report}\npage:   python -m fgtune_helpers serve {run}/10_deploy_browser/site", file=out)
    return OK


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{clock(int(seconds))} min"


def execute(stage: str, values: dict[str, Any], run: Path) -> str | None:
    """Run one notebook by papermill into `<run>/notebooks/`; the error in one line, or None."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    root, folder = project_root(), run / "notebooks"
    source, partial = root / "notebooks" / f"{stage}.ipynb", folder / f"{stage}.running.ipynb"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    os.environ.setdefault(*HUGE_PAGES)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    options = {"progress_bar": False, "kernel_name": "python3", "cwd": str(root), "log_output": False}
    try:
        with stderr_to(folder / f"{stage}.log"):
            parameters = {name: values[name] for name in ALL[stage].all_params}
            papermill.execute_notebook(str(source), str(partial), parameters, **options)
        problem = unfinished(partial)
    except PapermillExecutionError as error:
        problem = str(error.evalue) if error.ename == "CheckFailed" else f"{error.ename}: {error.evalue}"
    except Exception as error:  # a kernel that died has many exceptions; all of them are one failed stage
        problem = f"{type(error).__name__}: {error}"
    if partial.exists():
        partial.replace(folder / f"{stage}.ipynb")
    if problem is None and read_manifest(run, stage) is None:
        problem = "the notebook ran but never called finish(...)"
    return " ".join(_ANSI.sub("", problem).split())[:400] if problem else None


def list_stages(plan: Plan) -> int:
    """Print one line a stage: what would happen and why; returns the exit code."""
    for stage in plan.stages:
        try:
            known, manifest = state(stage, plan.values)
        except OldRunError:
            raise
        except (StageError, ParameterError) as error:
            known, manifest = f"unreadable ({error})", None
        will = "keep" if known == "done" and not plan.force else "run"
        took = f"{manifest['seconds']:.0f} s last time" if manifest else f"about {ALL[stage].minutes} min"
        print(f"{will:<5} {stage:<18} {known:<9} {took:<18} {ALL[stage].outcome}")
    return OK
