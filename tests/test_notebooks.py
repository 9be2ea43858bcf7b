"""The notebooks as documents: structure, style, one clean run, nothing that drifts from the helpers."""

import ast
import importlib
import re

import nbformat
import pytest
from readme import navigation, needs_line

from fgtune.core.project import project_root
from fgtune_helpers.params import PARAMETERS
from fgtune_helpers.stage import ALL, STAGES

ROOT = project_root()
NOTEBOOKS = {stage: ROOT / "notebooks" / f"{stage}.ipynb" for stage in ALL}
GOLDEN = {stage: ROOT / "tests" / "golden" / f"{stage}.ipynb" for stage in STAGES}
ABSOLUTE = re.compile(r"(?<![\w.])/(?:home|root|work|tmp|Users|usr|var|opt|mnt)/")
SECRET = re.compile(r"\bhf_[A-Za-z0-9]{20,}")

each = pytest.mark.parametrize("stage", ALL)


def counts(path):
    return [cell.execution_count for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


#: notebooks/ is committed either as one whole recorded run or without any output; a mixture fails below.
RECORDED = any(n is not None for path in NOTEBOOKS.values() for n in counts(path))
KINDS = ["golden", "notebooks"] if RECORDED else ["golden"]
#: Optional stages need a server: they are recorded in notebooks/ alone.
each_recorded = pytest.mark.parametrize(
    ("stage", "kind"), [(stage, kind) for kind in KINDS for stage in (STAGES if kind == "golden" else ALL)]
)


def load(path):
    return nbformat.read(path, 4)


def code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def tagged(notebook, tag):
    return [c for c in notebook.cells if tag in c.metadata.get("tags", [])]


@pytest.mark.skipif(not RECORDED, reason="no run on the real model is recorded")
def test_recorded_figures_are_pictures():
    shown = [
        output.data
        for path in NOTEBOOKS.values()
        for cell in code_cells(load(path))
        for output in cell.outputs
        if "data" in output and " size " in output.data.get("text/plain", "")
    ]
    assert len(shown) >= 10 and all("image/png" in data for data in shown)


def test_one_notebook_a_stage():
    assert sorted(p.name for p in (ROOT / "notebooks").glob("*.ipynb")) == sorted(f"{stage}.ipynb" for stage in ALL)


@each
def test_parameters_are_literals_that_agree_with_the_registry(stage):
    (cell,) = tagged(load(NOTEBOOKS[stage]), "parameters")
    lines = cell.source.splitlines()
    assert [line.split(":")[0] for line in lines] == list(ALL[stage].all_params)
    for line, node in zip(lines, ast.parse(cell.source).body):
        param = PARAMETERS[node.target.id]
        assert ast.literal_eval(node.value) == param.default
        assert node.annotation.id == type(param.default).__name__
        assert line.split("  # ", 1)[1] == param.help


@each
def test_the_next_cell_starts_the_stage_and_one_of_the_last_finishes_it(stage):
    cells = code_cells(load(NOTEBOOKS[stage]))
    first = next(i for i, c in enumerate(cells) if "parameters" in c.metadata.get("tags", []))
    assert first == 0 and f'start_stage("{stage}", globals()' in cells[1].source
    assert "run.finish(" in cells[-1].source and sum("run.finish(" in c.source for c in cells) == 1


@each
def test_generated_lines_are_current(stage):
    head = load(NOTEBOOKS[stage]).cells[0].source
    assert head.startswith(f"# {stage.split('_')[0]} · {ALL[stage].title}")
    assert navigation(stage) in head and needs_line(stage) in head


@each
def test_style(stage):
    notebook = load(NOTEBOOKS[stage])
    assert 14 <= len(notebook.cells) <= 30
    for _before, cell in zip([None, *notebook.cells], notebook.cells):
        if cell.cell_type != "code":
            continue
        lines = cell.source.splitlines()
        assert len(lines) <= 30, f"{len(lines)} lines: {lines[0]}"
        assert max(map(len, lines)) <= 160, max(lines, key=len)
        assert not re.search(r"^\s*[%!]|sys\.exit|subprocess|os\.system", cell.source, re.M), cell.source
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert node.end_lineno - node.lineno < 10, (
                    f"{node.name} is defined in the notebook: move it to the helpers"
                )
    code = code_cells(notebook)
    imports = [c for c in code if re.search(r"^(import|from) ", c.source, re.M)]
    assert len(imports) <= 2, "imports stand in one cell (beside start_stage's own)"


@each
def test_imports_are_used_and_names_stay_clear_of_parameters(stage):
    """An unused import teaches nothing; a name that hides a parameter would be taken for one when a cell runs again."""
    cells = [c for c in code_cells(load(NOTEBOOKS[stage])) if "parameters" not in c.metadata.get("tags", [])]
    nodes = [node for cell in cells for node in ast.walk(ast.parse(cell.source))]
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = [(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names]
    used = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    assert not set(imported) - used and len(set(imported)) == len(imported)
    assert not (stored | set(imported)) & set(PARAMETERS)
    private = [n.attr for n in nodes if isinstance(n, ast.Attribute) and n.attr.startswith("_")]
    assert not private, private


@each
def test_what_is_imported_is_offered(stage):
    for cell in code_cells(load(NOTEBOOKS[stage])):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("fgtune"):
                module = importlib.import_module(node.module)
                assert all(callable(getattr(module, a.name)) or a.name.isupper() for a in node.names), node.module


@each
def test_every_check_stands_in_a_cell_that_nbval_compares(stage):
    notebook = load(NOTEBOOKS[stage])
    compared = tagged(notebook, "nbval-check-output")
    assert compared and any("check(" in c.source for c in compared)


@each
def test_prose_holds_no_number_of_a_run(stage):
    for cell in load(NOTEBOOKS[stage]).cells:
        if cell.cell_type == "markdown":
            found = re.findall(
                r"\d+(?:\.\d+)? ?(?:%|MB|GB|seconds|tok/s|cases right)", re.sub(r"`[^`]*`|95 %", "", cell.source)
            )
            assert not found, f"{found} in: {cell.source[:80]}"


@each_recorded
def test_committed_as_one_clean_run_leaves_it(stage, kind):
    notebook = load({"notebooks": NOTEBOOKS, "golden": GOLDEN}[kind][stage])
    assert notebook.metadata.kernelspec.name == "python3" and set(notebook.metadata) <= {"kernelspec", "language_info"}
    seen = [c.execution_count for c in code_cells(notebook)]
    assert seen == list(range(1, len(seen) + 1))
    assert bool(tagged(notebook, "injected-parameters")) == (kind == "golden")
    for cell in code_cells(notebook):
        assert set(cell.metadata) <= {"tags"}
        for output in cell.outputs:
            assert output.output_type != "error"
            text = output.get("text", "") or str(output.get("data", {}).get("text/plain", ""))
            assert not ABSOLUTE.search(text), text
            assert not SECRET.search(text)
            if "nbval-check-output" in cell.metadata.get("tags", []):
                assert output.get("name") != "stderr"


@each_recorded
def test_recorded_checks_all_say_ok(stage, kind):
    notebook = load({"notebooks": NOTEBOOKS, "golden": GOLDEN}[kind][stage])
    (cell,) = tagged(notebook, "nbval-check-output")
    lines = "".join(o.get("text", "") for o in cell.outputs).splitlines()
    assert len(lines) >= 2 and all(line.startswith("ok   ") for line in lines), lines


@pytest.mark.parametrize("stage", STAGES)
def test_recordings_are_of_these_notebooks(stage):
    source = [c.source for c in load(NOTEBOOKS[stage]).cells]
    recorded = [c.source for c in load(GOLDEN[stage]).cells if "injected-parameters" not in c.metadata.get("tags", [])]
    assert recorded == source, f"{stage} has changed since it was recorded: python tests/record.py"
