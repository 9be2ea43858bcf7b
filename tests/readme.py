"""Write the generated parts of README.md and docs/parameters.md from the code, and the results from a finished run."""

import sys
from pathlib import Path

import nbformat

from fgtune.core.project import project_root
from fgtune_helpers.report import parameter_table, replace_block, result_table, size_table, stage_table
from fgtune_helpers.stage import read_manifest, resolve_run

README = project_root() / "README.md"
PAGES = {"parameters": project_root() / "docs" / "parameters.md"}  # blocks that stand elsewhere
NOT_RECORDED = "*No run on the real model is recorded in this version.*"


def code_blocks() -> dict[str, str]:
    """The parts that follow from the code alone."""
    return {"stages": stage_table(), "parameters": parameter_table()}


def run_blocks(run: Path) -> dict[str, str]:
    """The parts that follow from a finished run."""
    rows = read_manifest(run, "08_test_onnx")["metrics"]["rows"]
    return {"results": result_table(run), "sizes": size_table(rows)}


def write(blocks: dict[str, str]) -> None:
    for name, body in blocks.items():
        page = PAGES.get(name, README)
        page.write_text(replace_block(page.read_text(encoding="utf-8"), name, body), encoding="utf-8")


def recorded_scores() -> dict[str, str]:
    """`name -> "47/48"` as the recorded report notebook shows them."""
    notebook = nbformat.read(project_root() / "notebooks" / "11_report.ipynb", 4)
    tables = [
        output["data"]["text/plain"]
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.source.endswith("Comparison(cards)")
        for output in cell.outputs
        if "data" in output
    ]
    lines = [line for line in tables[0].splitlines()[1:] if line.strip()] if tables else []
    return {line.split("  ")[0].strip(): next(word for word in line.split() if "/" in word) for line in lines}


if __name__ == "__main__":
    write(code_blocks() | (run_blocks(resolve_run(sys.argv[1])) if len(sys.argv) > 1 else {}))
