"""Check a finished run from its files alone."""

from __future__ import annotations

import re
import sys

from fgtune.core.files import verify_files
from fgtune.core.notebooks import unfinished
from fgtune.data.rows import load_cases
from fgtune.evaluation.judging import judge
from fgtune.evaluation.scorecards import Scorecard

from .runner import BAD, FAILED, OK
from .stage import STAGES, read_manifest, resolve_run

_SECRET = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,})\b")


def audit(run_dir: str, out=None) -> int:
    """Check a finished run from its files alone: hashes, scorecards judged anew, no secrets. Returns 0 or 1."""
    run, bad, out = resolve_run(run_dir), 0, out or sys.stdout
    if not (run / "01_data" / "stage.json").exists():
        print(f"{run} holds no run", file=out)
        return BAD
    cases = {case.id: case for case in load_cases(run / "01_data", "test")}
    for stage in STAGES:
        manifest = read_manifest(run, stage)
        if manifest is None:
            print(f"none {stage:<18} has not run", file=out)
            continue
        problems = [verify_files(run / stage, manifest["outputs"])]
        for need, key in manifest["inputs"].items():
            if (read_manifest(run, need) or {}).get("key") != key:
                problems.append(f"was made from another {need}")
        for path in sorted((run / stage).glob("scorecard*.json")):
            for result in Scorecard.load(path).results:
                if result.id in cases and judge(cases[result.id], result.output, result.finished) != result:
                    problems.append(f"{path.name}: {result.id} is judged otherwise today")
        notebook = run / "notebooks" / f"{stage}.ipynb"
        problems.append(unfinished(notebook) if notebook.exists() else "its notebook is missing")
        if notebook.exists() and _SECRET.search(notebook.read_text(encoding="utf-8")):
            problems.append("its notebook holds what looks like an access token")
        problems = list(filter(None, problems))
        bad += bool(problems)
        skipped = f" (skipped: {manifest['skipped']})" if manifest["skipped"] else ""
        print(f"{'FAIL' if problems else 'ok  '} {stage:<18} {'; '.join(problems)}{skipped}".rstrip(), file=out)
    return FAILED if bad else OK
