"""The stage contract: nothing half-written, nothing stale, nothing passed over in silence."""

import json
from types import SimpleNamespace

import nbformat
import papermill
import pytest

from fgtune.core.files import verify_files
from fgtune.core.project import project_root
from fgtune.data.rows import Row
from fgtune_helpers import stage
from fgtune_helpers.params import PARAMETERS, ParameterError, names_set
from fgtune_helpers.runner import load_params
from fgtune_helpers.stage import (
    OPTIONAL,
    STAGES,
    CheckFailed,
    OldRunError,
    StageError,
    check,
    digest_of,
    read_manifest,
    resolve_path,
    resolve_run,
    stage_key,
    start_stage,
)


def values(name, run_dir, **given):
    return {p: PARAMETERS[p].default for p in STAGES[name].all_params} | {"run_dir": str(run_dir)} | given


def finished(tmp_path, name="00_setup", **metrics):
    run = start_stage(name, values(name, tmp_path))
    run.file("base.json").write_text('{"sha256": "x"}')
    run.finish(metrics)
    return run


@pytest.fixture(autouse=True)
def no_mlx(monkeypatch):
    monkeypatch.setattr(stage, "seed_all", lambda seed, mlx: None)


def test_finish_moves_the_folder_into_place_with_its_hashes(tmp_path, capsys):
    finished(tmp_path, headline="fine")
    manifest = read_manifest(tmp_path, "00_setup")
    assert manifest["outputs"]["base.json"]["bytes"] == 15 and len(manifest["outputs"]["base.json"]["sha256"]) == 64
    assert manifest["metrics"] == {"headline": "fine"} and manifest["skipped"] is None
    assert not (tmp_path / ".work" / "00_setup").exists()
    assert "base_model" in capsys.readouterr().out


def test_the_base_model_is_the_one_whose_vocabulary_was_kept(tmp_path):
    cached = tmp_path / "cache"
    cached.mkdir()
    (cached / "config.json").write_text("{}")
    finished(tmp_path, path=str(cached))
    run = start_stage("01_data", values("01_data", tmp_path))
    run.finish()
    assert run.base() == start_stage("02_train", values("02_train", tmp_path)).base() == cached
    run = start_stage("01_data", values("01_data", tmp_path, vocabulary="auto"))
    run.file("base/config.json").write_text("{}")
    assert run.base() == cached, "01 itself starts from all entries"
    run.finish()
    later = start_stage("02_train", values("02_train", tmp_path))
    assert later.base() == later.folder("00_setup") == tmp_path / "01_data" / "base"
    start_stage("01_data", values("01_data", tmp_path)).finish()
    (cached / "config.json").unlink()
    with pytest.raises(StageError, match="the base model is no longer at"):
        start_stage("02_train", values("02_train", tmp_path)).base()


def test_a_killed_stage_leaves_the_previous_result_whole(tmp_path):
    finished(tmp_path)
    run = start_stage("00_setup", values("00_setup", tmp_path))
    run.file("base.json").write_text("half")  # and then nothing: the process is gone
    assert verify_files(tmp_path / "00_setup", read_manifest(tmp_path, "00_setup")["outputs"]) is None


def test_killed_between_the_two_renames(tmp_path):
    finished(tmp_path)
    (tmp_path / ".work").mkdir(exist_ok=True)
    (tmp_path / "00_setup").rename(tmp_path / ".work" / "00_setup.old")
    assert read_manifest(tmp_path, "00_setup") is not None


def test_downstream_refuses_what_is_missing_or_has_changed(tmp_path):
    with pytest.raises(StageError, match=r"01_data needs 00_setup.*python -m fgtune_helpers run --to 00_setup"):
        start_stage("01_data", values("01_data", tmp_path))
    finished(tmp_path)
    start_stage("01_data", values("01_data", tmp_path))
    (tmp_path / "00_setup" / "base.json").write_text('{"sha256": "y"}')
    with pytest.raises(StageError, match=r"base\.json has changed since it was written"):
        start_stage("01_data", values("01_data", tmp_path))
    (tmp_path / "00_setup" / "base.json").write_text("{}")
    with pytest.raises(StageError, match="has 2 bytes, the manifest says 15"):
        start_stage("01_data", values("01_data", tmp_path))


def test_a_damaged_manifest_is_one_clear_line(tmp_path):
    finished(tmp_path)
    (tmp_path / "00_setup" / "stage.json").write_text("{")
    with pytest.raises(StageError, match=r"stage\.json is damaged"):
        read_manifest(tmp_path, "00_setup")


def test_unknown_and_missing_parameters(tmp_path):
    namespace = values("00_setup", tmp_path) | {"_hidden": 1, "In": [], "json": json}
    start_stage("00_setup", namespace)
    with pytest.raises(ParameterError, match="unknown parameter 'base_modle'; did you mean 'base_model'"):
        start_stage("00_setup", namespace | {"base_modle": "x"})
    namespace.pop("seed")
    with pytest.raises(ParameterError, match="lacks seed"):
        start_stage("00_setup", namespace)


def test_only_the_cells_of_parameters_are_searched_for_misspelt_ones(tmp_path):
    """What an earlier run of the notebook left in the kernel is no parameter; what papermill injected is one."""
    given = values("00_setup", tmp_path)
    cell = "\n".join(f"{name}: {type(value).__name__} = {value!r}  # help" for name, value in given.items())
    start = 'from fgtune_helpers.stage import start_stage\n\nrun = start_stage("00_setup", globals())'
    later = ["", cell, start, "texts = [3]\nprint(texts)", "lengths = [1, 2]"]
    left = given | {"texts": [3], "lengths": [1, 2], "itres": 3}
    start_stage("00_setup", left | {"In": [*later, cell, start]})
    start_stage("00_setup", left | {"In": [*later, start, start]})
    with pytest.raises(ParameterError, match="unknown parameter 'itres'; did you mean 'iters'"):
        start_stage("00_setup", left | {"In": [*later, cell, "# Parameters\nrun_dir = 'x'\nitres = 3\n", start]})
    with pytest.raises(ParameterError, match="unknown parameter 'itres'"):
        start_stage("00_setup", left | {"In": [*later, cell + "\nitres: int = 2 * 3", "# a remark", start]})


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("a = 1\nb: str = 'x'  # help", ["a", "b"]),
        ("a = -1\nb = [1, {'c': None}]", ["a", "b"]),
        ("", []),
        ("a = b", None),
        ("a = f(1)", None),
        ("a = 1\nprint(a)", None),
        ("import os", None),
        ("a, b = 1, 2", None),
        ("a.b = 1", None),
        ("a: int", None),
        ("for a in [1]: pass", None),
        ("a = (", None),
    ],
)
def test_cells_of_plain_assignments(cell, found):
    assert [*names_set({"In": ["x = x", cell, "run = start_stage(…)"]}, ["run_dir"])] == (found or [])
    assert [*names_set({"In": ["z = 0", cell, "run = start_stage(…)"]}, ["run_dir"])] == (
        [] if found is None else ["z", *found]
    )


def test_a_run_of_another_format_is_one_clear_line(tmp_path):
    finished(tmp_path)
    path = tmp_path / "00_setup" / "stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 1}))
    with pytest.raises(OldRunError, match=r"format 1, this version reads format 2: write it anew \(run --force\)"):
        start_stage("01_data", values("01_data", tmp_path))
    assert not list(start_stage("00_setup", values("00_setup", tmp_path), keep=True).dir.iterdir()), "not taken over"


def cell(name, given):
    """The parameters cell of a notebook with these values."""
    return "\n".join(f"{p}: {type(given[p]).__name__} = {given[p]!r}  # help" for p in STAGES[name].all_params)


def test_a_parameter_of_another_stage_is_an_error_unless_it_comes_with_a_params_file(tmp_path, capsys):
    given = values("00_setup", tmp_path)
    start, declared = 'run = start_stage("00_setup", globals())', cell("00_setup", given)
    for wrong in (["# Parameters\niters = 300\n"], ["# Parameters\niters = 300\nseed = 7\n"], []):
        cells = [declared if wrong else declared + "\niters: int = 300", *wrong, start]
        with pytest.raises(ParameterError, match=r"^00_setup has no parameter 'iters'; it belongs to 02_train$"):
            start_stage("00_setup", given | {"iters": 300, "In": cells})
    injected = f"# Parameters\nrun_dir = {str(tmp_path)!r}\niters = 300\nrank = 4\n"
    start_stage("00_setup", given | {"iters": 300, "rank": 4, "In": [declared, injected, start]})
    assert capsys.readouterr().out.splitlines()[-1].split(maxsplit=3)[3] == "iters, rank"
    with pytest.raises(ParameterError, match="iters must be a whole number"):
        start_stage("00_setup", given | {"iters": "x", "rank": 4, "In": [declared, injected, start]})


@pytest.fixture
def run_yaml(tmp_path, monkeypatch):
    """A project of its own without FGTUNE_PARAMS, and the run.yaml that a test may write there."""
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("FGTUNE_ROOT", str(tmp_path))
    monkeypatch.delenv("FGTUNE_PARAMS")
    return tmp_path / "run.yaml"


def test_run_yaml_stands_in_for_the_defaults_of_a_notebook(run_yaml, tmp_path, monkeypatch, capsys):
    defaults = {p: PARAMETERS[p].default for p in STAGES["00_setup"].all_params}
    start = 'run = start_stage("00_setup", globals())'

    def shown(*cells, **changed):
        given = defaults | changed
        run = start_stage("00_setup", given | {"In": [cell("00_setup", given), *cells, start]})
        rows = capsys.readouterr().out.splitlines()
        return run.p, {row.split()[0]: row.split(maxsplit=2)[2] for row in rows}

    assert set(shown()[1].values()) == {"default"}
    run_yaml.write_text("run_dir: runs/mine\nseed: '9'\nbase_model: tiny\niters: 5\n")
    p, source = shown(base_model="google/x")
    assert (p.run_dir, p.seed, p.base_model) == ("runs/mine", 9, "google/x")
    assert source["run_dir"] == "run.yaml (default 'runs/quickstart')" and source["seed"] == "run.yaml (default 7)"
    assert source["base_model"] == "given (default 'pypi:gemma3-270m')" and "iters" not in source
    p, source = shown("# Parameters\nseed = 7\n")  # injected, although it is the default
    assert (p.run_dir, p.seed, source["seed"]) == ("runs/mine", 7, "default")
    other = tmp_path / "other.yaml"
    other.write_text("seed: 11\n")
    monkeypatch.setenv("FGTUNE_PARAMS", "other.yaml")
    p, source = shown()
    assert (p.run_dir, p.seed, source["seed"]) == ("runs/quickstart", 11, "other.yaml (default 7)")
    monkeypatch.setenv("FGTUNE_PARAMS", "")
    assert shown()[0].seed == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede: 9", "run.yaml: unknown parameter 'sede'; did you mean 'seed'?"),
        ("seed: many", "run.yaml: seed must be a whole number, not 'many'"),
        ("- seed", "run.yaml: must be a flat list of name: value"),
        ("seed: [", "run.yaml is no YAML"),
    ],
)
def test_a_wrong_run_yaml_is_the_same_line_in_a_notebook_and_in_the_runner(run_yaml, tmp_path, text, message):
    run_yaml.write_text(text)
    given = {p: PARAMETERS[p].default for p in STAGES["00_setup"].all_params}
    cells = [cell("00_setup", given), "run = start_stage(…)"]
    for start in (lambda: start_stage("00_setup", given | {"In": cells}), lambda: load_params([], [])):
        with pytest.raises(ParameterError) as error:
            start()
        assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_the_runner_takes_run_yaml_unless_it_is_given_a_file(run_yaml, tmp_path):
    for name in ("tools", "requests"):
        (tmp_path / "examples" / name).mkdir(parents=True)
        (tmp_path / "examples" / name / "everyday.json").write_text("[]")
    run_yaml.write_text("run_dir: runs/mine\nseed: 9\n")
    (tmp_path / "other.yaml").write_text("iters: 5\n")
    assert load_params([], [("seed", "8")]) == load_params(["other.yaml"], []) | {
        "run_dir": "runs/mine",
        "seed": 8,
        "iters": PARAMETERS["iters"].default,
    }
    assert load_params(["other.yaml"], [])["run_dir"] == "runs/quickstart"


def test_the_key_follows_what_decides_the_result(tmp_path):
    finished(tmp_path)
    upstream = {"00_setup": read_manifest(tmp_path, "00_setup")}
    before = stage_key("01_data", values("01_data", tmp_path), upstream)
    assert before == stage_key("01_data", values("01_data", "elsewhere"), upstream)
    assert before != stage_key("01_data", values("01_data", tmp_path, seed=8), upstream)
    copy = tmp_path / "tools.json"
    copy.write_text((project_root() / "examples" / "tools" / "everyday.json").read_text())
    assert before == stage_key("01_data", values("01_data", tmp_path, tools_file=str(copy)), upstream)
    copy.write_text(copy.read_text() + "\n")
    assert before != stage_key("01_data", values("01_data", tmp_path, tools_file=str(copy)), upstream)
    folder = project_root() / "examples" / "tools"
    assert digest_of(folder) != digest_of(folder / "everyday.json")
    lines = tmp_path / "lines"
    lines.mkdir()
    empty = digest_of(lines)
    (lines / "a.jsonl").write_text("{}\n")
    assert digest_of(lines) != empty, "a folder of JSONL decides as well"
    upstream["00_setup"]["outputs"]["base.json"]["sha256"] = "other"
    assert before != stage_key("01_data", values("01_data", tmp_path), upstream)


def test_keep_lets_an_interrupted_stage_go_on_only_with_the_same_parameters(tmp_path):
    finished(tmp_path)
    given = values("01_data", tmp_path)
    start_stage("01_data", given).file("half").write_text("x")
    assert (start_stage("01_data", given, keep=True).dir / "half").exists()
    assert not (start_stage("01_data", given | {"seed": 8}, keep=True).dir / "half").exists()


def test_keep_takes_over_what_is_done_with_the_same_parameters(tmp_path, monkeypatch, capsys):
    """02 run again, by hand or by nbval, does not train again; a changed file, another key or FGTUNE_FRESH does."""
    finished(tmp_path)
    given = values("01_data", tmp_path)

    def again(**changed):
        work = start_stage("01_data", given | changed, keep=True).dir
        return sorted(p.name for p in work.iterdir()), "done before" in capsys.readouterr().out

    first = start_stage("01_data", given)
    first.file("half").write_text("x")
    first.finish()
    assert again() == (["half"], True)
    monkeypatch.setenv("FGTUNE_FRESH", "1")
    assert again() == ([], False)
    monkeypatch.delenv("FGTUNE_FRESH")
    assert again(seed=8) == ([], False)
    (tmp_path / "01_data" / "half").write_text("y")
    assert again() == ([], False)


def test_a_skip_is_explicit_and_fails_in_ci(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("CI", raising=False)
    start_stage("00_setup", values("00_setup", tmp_path)).finish(skipped="no Node")
    assert read_manifest(tmp_path, "00_setup")["skipped"] == "no Node" and "skipped: no Node" in capsys.readouterr().out
    monkeypatch.setenv("CI", "true")
    with pytest.raises(CheckFailed, match="no Node"):
        start_stage("00_setup", values("00_setup", tmp_path)).finish(skipped="no Node")


def test_check_prints_or_raises(capsys):
    check("two is two", True)
    assert capsys.readouterr().out == "ok   two is two\n"
    with pytest.raises(CheckFailed, match="FAIL two is three: it is 2"):
        check("two is three", False, "it is 2")


def test_a_failed_check_is_one_line_in_a_notebook(tmp_path):
    """The cell shows the sentence alone, and the runner still gets the exception."""
    cell = nbformat.v4.new_code_cell("from fgtune_helpers.stage import check\ncheck('two is three', False, 'it is 2')")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    source, out = tmp_path / "check.ipynb", tmp_path / "out.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), source)
    with pytest.raises(papermill.PapermillExecutionError) as error:
        papermill.execute_notebook(source, out, progress_bar=False, cwd=project_root())
    assert (error.value.ename, error.value.evalue) == ("CheckFailed", "FAIL two is three: it is 2")
    (shown,) = [
        output for cell in nbformat.read(out, 4).cells for output in cell.get("outputs", ()) if "ename" in output
    ]
    assert shown.traceback == ["FAIL two is three: it is 2"]


def test_paths_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_path("examples/tools") == project_root() / "examples" / "tools"
    (tmp_path / "mine.json").write_text("[]")
    assert resolve_path("mine.json") == tmp_path / "mine.json"
    with pytest.raises(ParameterError, match=r"'none\.json' does not exist"):
        resolve_path("none.json")
    with pytest.raises(ParameterError, match="has no name"):
        resolve_path("")
    assert resolve_run("runs/x") == project_root() / "runs" / "x"


def test_a_stage_reads_only_what_it_declares(tmp_path):
    run = start_stage("00_setup", values("00_setup", tmp_path))
    with pytest.raises(StageError, match="does not declare"):
        run.input("02_train")


def test_the_series_is_in_order():
    names = list(STAGES)
    for i, (name, spec) in enumerate(STAGES.items()):
        assert name.startswith(f"{i:02d}_") and all(names.index(need) < i for need in spec.needs)


def test_an_optional_stage_needs_no_other_and_no_examples(tmp_path):
    given = {p: PARAMETERS[p].default for p in OPTIONAL["01b_generate"].all_params}
    first = start_stage("01b_generate", given | {"run_dir": str(tmp_path)}, keep=True)
    without = start_stage("01b_generate", given | {"run_dir": str(tmp_path), "examples_file": ""}, keep=True)
    elsewhere = start_stage("01b_generate", given | {"run_dir": str(tmp_path), "teacher_url": "http://x/v1"})
    assert first.key != without.key and elsewhere.key == first.key and not set(OPTIONAL) & set(STAGES)


def test_settings_that_nobody_gave_follow_from_the_rows_and_stay_open(tmp_path):
    """They are put into `p`, and asked again for other rows they follow those: only what was given is kept."""
    few, many = ([Row((5,) * 40, (False,) * 20 + (True,) * 20, 20)] * count for count in (150, 3000))
    p = SimpleNamespace(**{name: PARAMETERS[name].default for name in STAGES["02_train"].all_params})
    p.learning_rate = 3e-3
    run = stage.Run("02_train", tmp_path, p, tmp_path, "key", {})
    first = {setting.name: setting.value for setting in run.settings(few)}
    assert {name: vars(p)[name] for name in first} == first and p.iters > 0 and p.num_layers == -1
    second = {setting.name: setting.value for setting in run.settings(many)}
    assert second["iters"] > first["iters"] and p.batch_size == 24 and p.num_layers == 12 and p.learning_rate == 3e-3
    assert {setting.name: setting.value for setting in run.settings(few)} == first
