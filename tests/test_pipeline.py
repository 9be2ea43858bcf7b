"""The runner: plans, exit codes, one-line errors. The series itself is in test_series.py."""

import io
import json
import shutil

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from fgtune.core.notebooks import unfinished
from fgtune_helpers.__main__ import main
from fgtune_helpers.runner import HUGE_PAGES, Plan, load_params, run_series, state
from fgtune_helpers.stage import STAGES


def test_bad_parameters_exit_2_with_one_line(capsys):
    for argv, message in [
        (["run", "-p", "itres", "3"], "did you mean 'iters'"),
        (["run", "-p", "iters", "-1"], "outside"),
        (["run", "--params", "params/nowhere.yaml"], "does not exist"),
        (["run", "-p", "tools_file", "nowhere.json"], "does not exist"),
        (["run", "--only", "12"], "no stage '12'"),
        (["run", "-p", "run_dir", "runs/{x}"], "braces"),
        (["sweep", "-p", "rank", "4"], "several values"),
        (["serve", "nowhere"], "nowhere"),
    ]:
        assert main(argv) == 2, argv
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_audit_of_nothing(tmp_path, capsys):
    assert main(["audit", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().out


def test_a_params_file_that_is_no_yaml(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text("iters: [1\n")
    assert main(["run", "--params", str(tmp_path / "x.yaml")]) == 2
    assert "is no YAML" in capsys.readouterr().err


def test_dry_run_and_list_start_nothing(tmp_path, capsys):
    assert main(["run", "--dry-run", "-p", "run_dir", str(tmp_path / "r")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == list(STAGES) and lines[0].startswith("run ")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("how", [["01b"], ["--only", "01b_generate"], ["generate"]])
def test_an_optional_stage_runs_where_it_is_named(tmp_path, capsys, how):
    assert main(["run", *how, "--dry-run", "-p", "run_dir", str(tmp_path / "r"), "-p", "examples_file", ""]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[:2] == ["run", "01b_generate"]


def notebook(tmp_path, *cells):
    path = tmp_path / "n.ipynb"
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


def test_done_is_more_than_an_exit_code(tmp_path):
    ran = new_code_cell("1", execution_count=1)
    assert unfinished(notebook(tmp_path, ran)) is None
    assert unfinished(notebook(tmp_path, ran, new_code_cell("2"))) == "cell 1 never ran"
    raised = new_code_cell("3", execution_count=2)
    raised.outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    assert unfinished(notebook(tmp_path, ran, raised)) == "cell 1 raised"


@pytest.fixture
def fake_project(tmp_path, monkeypatch):
    """A project whose 00_setup runs the given lines: the real runner and a real kernel, no model."""
    (tmp_path / "pyproject.toml").write_text("")
    for name in ("notebooks", "params", "examples"):
        (tmp_path / name).mkdir()
    for name in ("tools", "requests"):
        (tmp_path / "examples" / name).mkdir()
        (tmp_path / "examples" / name / "everyday.json").write_text("[]")
    monkeypatch.setenv("FGTUNE_ROOT", str(tmp_path))

    def run(source):
        parameters = new_code_cell(
            'run_dir: str = ""\nseed: int = 7\nbase_model: str = "x"', metadata={"tags": ["parameters"]}
        )
        start = new_code_cell(
            "from fgtune_helpers import stage\nstage.seed_all = lambda *_: None\n"
            'run = stage.start_stage("00_setup", globals())'
        )
        cells = [parameters, start, *map(new_code_cell, source)]
        spec = {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
        nbformat.write(new_notebook(cells=cells, metadata=spec), tmp_path / "notebooks" / "00_setup.ipynb")
        out = io.StringIO()
        values = load_params([], [("run_dir", "runs/x")])
        code = run_series(Plan(["00_setup"], values), out)
        return code, out.getvalue()

    return run


def test_a_failed_check_is_the_line_that_is_shown(fake_project, tmp_path):
    code, out = fake_project(['stage.check("the sky is green", False, "it is blue")', "run.finish()"])
    assert code == 1 and "FAIL the sky is green: it is blue" in out and "00_setup.ipynb" in out
    assert not (tmp_path / "runs/x/00_setup").exists()


def test_leaving_early_is_not_done(fake_project):
    code, out = fake_project(["raise SystemExit(0)", "run.finish()"])
    assert code == 1 and "FAILED" in out
    code, out = fake_project(["pass"])
    assert code == 1 and "never called finish" in out


def test_done_is_kept_and_a_changed_parameter_runs_again(fake_project, tmp_path):
    code, out = fake_project(['run.file("a").write_text("1")', 'run.finish({"headline": "fine"})'])
    assert code == 0 and "fine" in out
    values = load_params([], [("run_dir", "runs/x")])
    assert state("00_setup", values)[0] == "done"
    assert state("00_setup", values | {"seed": 8})[0] == "changed"
    (tmp_path / "runs/x/00_setup/a").write_text("2")
    assert state("00_setup", values)[0] == "damaged"
    out = io.StringIO()
    assert run_series(Plan(["00_setup"], values), out) == 0 and "done before" not in out.getvalue()
    assert run_series(Plan(["00_setup"], values), out) == 0 and "done before" in out.getvalue()
    assert json.loads((tmp_path / "runs/x/00_setup/stage.json").read_text())["outputs"]["a"]["bytes"] == 1


def test_a_notebook_can_be_run_twice_in_one_kernel(fake_project):
    """The same cells once more, as "Run all" does it: what they left in the kernel is not taken for parameters."""
    cells = ['texts = ["left"]\nrun.file("a").write_text("1")', 'run.finish({"headline": texts[0]})']
    parameters = 'run_dir: str = "runs/x"\nseed: int = 7\nbase_model: str = "x"'
    code, out = fake_project([*cells, parameters, 'run = stage.start_stage("00_setup", globals())', *cells])
    assert code == 0, out


def test_stock_papermill_with_a_misspelt_parameter(fake_project, tmp_path):
    assert fake_project(["run.finish()"])[0] == 0
    source = str(tmp_path / "notebooks" / "00_setup.ipynb")
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter 'itres'; did you mean 'iters'"):
        papermill.execute_notebook(source, None, {"run_dir": "runs/x", "itres": 3}, progress_bar=False)
    with pytest.raises(papermill.PapermillExecutionError, match="00_setup has no parameter 'iters'; it belongs to 02"):
        papermill.execute_notebook(source, None, {"iters": 3}, progress_bar=False)
    papermill.execute_notebook(source, None, {"run_dir": "runs/x", "iters": 3}, progress_bar=False)  # a file's keys


def test_a_run_of_another_format_stops_with_one_line_unless_forced(fake_project, tmp_path, capsys, monkeypatch):
    assert fake_project(["run.finish()"])[0] == 0
    path = tmp_path / "runs" / "x" / "00_setup" / "stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 1}))
    argv = ["run", "--only", "00", "-p", "run_dir", "runs/x"]
    for flags in ([], ["--list"]):
        assert main([*argv, *flags]) == 2
        error = capsys.readouterr().err
        assert "format 1" in error and "--force" in error and error.count("\n") == 1
    assert main(["audit", "runs/x"]) == 2
    monkeypatch.setenv("FGTUNE_FRESH", "1")  # the runner sets it for its kernels: undone after this test
    assert main([*argv, "--force"]) == 0
    assert json.loads(path.read_text())["schema"] == 2


def test_kernels_get_huge_pages_unless_something_else_is_asked_for(fake_project, monkeypatch, tmp_path):
    name, value = HUGE_PAGES
    show = [f'run.finish({{"headline": __import__("os").environ["{name}"]}})']
    monkeypatch.setenv(name, "glibc.malloc.arena_max=4")
    assert "arena_max=4\n" in fake_project(show)[1]
    monkeypatch.delenv(name)
    shutil.rmtree(tmp_path / "runs")
    assert f"{value}\n" in fake_project(show)[1]
