"""Write the generated parts of README.md and docs/parameters.md from the code, and the results from a finished run.

The generated lines of the notebooks (previous and next, needs and time) are made here as well; tests compare them."""

import sys
from pathlib import Path

import nbformat

from fgtune.core.project import project_root
from fgtune.evaluation.scorecards import Comparison
from fgtune_helpers.params import PARAMETERS
from fgtune_helpers.report import RunReport
from fgtune_helpers.stage import ALL, STAGES, read_manifest, resolve_run

README = project_root() / "README.md"
PAGES = {"parameters": project_root() / "docs" / "parameters.md"}  # blocks that stand elsewhere
NOT_RECORDED = "*No run on the real model is recorded in this version.*"


def stage_table() -> str:
    """The table of stages."""
    lines = ["| notebook | outcome | produces | minutes |", "|---|---|---|---|"]
    lines += [
        f"| [{name}](notebooks/{name}.ipynb) | {s.outcome} | {s.produces} | {s.minutes} |" for name, s in STAGES.items()
    ]
    return "\n".join(lines)


def parameter_table() -> str:
    """The table of parameters."""
    lines = ["| parameter | default | meaning |", "|---|---|---|"]
    for name, p in PARAMETERS.items():
        default = ",".join(p.default) if isinstance(p.default, list) else p.default
        lines.append(f"| `{name}` | `{default}` | {p.help} |")
    return "\n".join(lines)


def result_table(run: Path) -> str:
    """The table of results, from the scorecards of one run."""
    lines = ["| model | exact match | 95 % | right tools | right arguments | abstained |", "|---|---|---|---|---|---|"]
    rows = Comparison(RunReport(run).cards).rows()
    for name, hits, exact, interval, tools, arguments, abstained, *_ in rows:
        lines.append(f"| {name} | {hits} = {exact} | {interval} | {tools} | {arguments} | {abstained} |")
    return "\n".join(lines)


def size_table(rows: list[dict]) -> str:
    """The table of variants: size, accuracy, speed; rows as stage 08 records them."""
    lines = ["| variant | MB | exact match | tokens/s (two cores) |", "|---|---|---|---|"]
    lines += [f"| {r['variant']} | {r['mb']:.0f} | {r['exact']:.1%} | {r['tokens_per_s']:.0f} |" for r in rows]
    return "\n".join(lines)


def navigation(stage: str) -> str:
    """The previous/next line of a notebook."""
    names = list(STAGES)
    if stage not in names:  # an optional one, beside the stage whose number it has
        beside = next(name for name in names if name.split("_")[0] == stage.split("_")[0].rstrip("b"))
        return f"optional, before [{beside}]({beside}.ipynb) · [README](../README.md) →"
    i = names.index(stage)
    before = f"← [{names[i - 1]}]({names[i - 1]}.ipynb)" if i else "← [README](../README.md)"
    after = f"[{names[i + 1]}]({names[i + 1]}.ipynb) →" if i + 1 < len(names) else "[README](../README.md) →"
    return f"{before} · {after}"


def needs_line(stage: str) -> str:
    """The **Needs · Produces · Time** line of a notebook."""
    spec = ALL[stage]
    needs = ", ".join(spec.needs[-3:]) or "nothing"
    return f"**Needs** {needs} · **Produces** {spec.produces} · **Time** about {spec.minutes} min on two cores"


def replace_block(text: str, name: str, body: str) -> str:
    """Put `body` between `<!-- name -->` and `<!-- /name -->`. Raises ValueError where the markers are missing."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, found, rest = text.partition(start)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"no block {name!r}")
    return f"{head}{start}\n{body}\n{end}{tail}"


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
