"""Record notebooks: run the series and keep the executed notebooks as they should be committed.

    python tests/record.py golden      tests/golden, with params/ci.yaml (minutes)
    python tests/record.py notebooks   notebooks/ themselves, with params/quickstart.yaml (the real model)
    python tests/record.py optional    01b_generate in notebooks/, against the server of tests/teacher_server.py

`--from-run` keeps what a finished run left instead of running it again.
"""

import argparse
import re
import sys
from pathlib import Path

import nbformat

from fgtune.core.notebooks import unfinished
from fgtune.core.project import project_root
from fgtune_helpers.runner import Plan, load_params, run_series
from fgtune_helpers.stage import OPTIONAL, STAGES, resolve_run

TARGETS = {
    "golden": ("params/ci.yaml", "runs/golden", STAGES),
    "notebooks": ("params/quickstart.yaml", "runs/quickstart", STAGES),
    "optional": ("params/quickstart.yaml", "runs/quickstart", OPTIONAL),
}
NOISE = re.compile(r"^\[IPKernelApp\].*\n?", re.M)


def clean(notebook, keep_injected: bool):
    """Strip what changes from run to run, join streams, count code cells from 1; cell ids are kept."""
    if not keep_injected:
        notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    count = 0
    for i, cell in enumerate(notebook.cells):
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = f"injected-{i:02d}"
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        outputs = []
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = NOISE.sub("", output.text)
                if not output.text or output.name == "stderr":
                    continue
                if outputs and outputs[-1].output_type == "stream":
                    outputs[-1].text += output.text
                    continue
            if "execution_count" in output:
                output.execution_count = count
            output.get("metadata", {}).clear()
            outputs.append(output)
        cell.outputs = outputs
    return notebook


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--from-run", action="store_true")
    args = parser.parse_args()
    params, run_dir, stages = TARGETS[args.target]
    values = load_params([params], [("run_dir", run_dir)])
    if not args.from_run:
        code = run_series(Plan(list(stages), values, force=args.target != "notebooks"))
        if code:
            return code
    out = project_root() / ("tests/golden" if args.target == "golden" else "notebooks")
    out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        path = resolve_run(run_dir) / "notebooks" / f"{stage}.ipynb"
        problem = unfinished(path)
        if problem:
            print(f"{path}: {problem}", file=sys.stderr)
            return 1
        nbformat.write(clean(nbformat.read(path, 4), args.target == "golden"), out / path.name)
        print("recorded", Path(out.name) / path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
