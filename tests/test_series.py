"""The whole series by papermill on the tiny model: Node and Chromium included, resumed, tampered with."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fgtune import load
from fgtune.core.files import hash_files
from fgtune.core.notebooks import unfinished
from fgtune.core.project import project_root
from fgtune.data.rows import load_cases
from fgtune.evaluation.scorecards import Scorecard
from fgtune_helpers.stage import STAGES, read_manifest

ROOT = project_root()
pytestmark = pytest.mark.series


def fgtune(*args, cwd=ROOT):
    command = [sys.executable, "-m", "fgtune_helpers", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def custom(tmp_path_factory):
    """A tools file and an examples file that are not in the repository."""
    folder = tmp_path_factory.mktemp("custom")
    source = ROOT / "tests" / "data" / "ci"
    text = "".join((source / name).read_text() for name in ("tools.json",)).replace("set_timer", "egg-timer.start")
    (folder / "my tools.json").write_text(text)
    (folder / "my examples.json").write_text(
        (source / "examples.json").read_text().replace("set_timer", "egg-timer.start")
    )
    return folder


@pytest.fixture(scope="module")
def series(tmp_path_factory, custom):
    """All stages, once, with custom tools, started from another folder."""
    run = tmp_path_factory.mktemp("series") / "run"
    result = fgtune(
        "run", "--params", ROOT / "params" / "ci.yaml", "-p", "run_dir", run,
        "-p", "tools_file", "my tools.json", "-p", "examples_file", custom / "my examples.json", cwd=custom,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return run, result.stdout


def test_every_stage_finished_and_said_so(series):
    run, out = series
    for stage in STAGES:
        manifest = read_manifest(run, stage)
        assert manifest["skipped"] is None or os.environ.get("CI") != "true"
        assert f"] {stage}" in out and unfinished(run / "notebooks" / f"{stage}.ipynb") is None
    assert str(run / "11_report" / "report.html") in out


def test_the_same_cases_went_through_every_runtime(series):
    run, _ = series
    fused = Scorecard.load(run / "05_test_fused" / "scorecard.json")
    adapter = Scorecard.load(run / "03_test_adapters" / "scorecard_tuned.json")
    fp32 = Scorecard.load(run / "08_test_onnx" / "scorecard_fp32.json")
    assert fused.n == 8 and fused.same_outputs(adapter) == fused.same_outputs(fp32) == 8
    assert len({r.output for r in fused.results}) > 1, "a model that says one thing proves nothing"
    node = Scorecard.load(run / "09_test_node" / "scorecard_q4.json")
    assert node.same_outputs(Scorecard.load(run / "08_test_onnx" / "scorecard_q4.json")) == 8


def test_custom_tools_reach_the_page(series):
    run, _ = series
    site = run / "10_deploy_browser" / "site"
    names = [t.get("function", t)["name"] for t in json.loads((site / "tools.json").read_text())]
    assert "egg-timer.start" in names


def test_the_smaller_vocabulary_is_that_of_every_stage(series):
    run, _ = series
    entries = read_manifest(run, "01_data")["metrics"]["entries"]
    assert 1024 < entries < 2048
    for folder in ("01_data/base", "04_fuse", "06_export_onnx", "07_quantize", "10_deploy_browser/site/model"):
        assert json.loads((run / folder / "config.json").read_text())["vocab_size"] == entries, folder
        assert len(json.loads((run / folder / "tokenizer.json").read_text())["model"]["vocab"]) == entries, folder
    assert json.loads((run / "10_deploy_browser" / "site" / "site.json").read_text())["scripts"] == ["Latin"]


def test_running_again_keeps_everything(series):
    run, _ = series
    args = ("run", "--params", "params/ci.yaml", "-p", "run_dir", run)
    values = read_manifest(run, "01_data")["parameters"]
    custom = [x for name in ("tools_file", "examples_file") for x in ("-p", name, values[name])]
    again = fgtune(*args, *custom)
    assert again.returncode == 0 and again.stdout.count("done before") == len(STAGES), again.stdout
    listed = fgtune(*args, *custom, "-p", "iters", 13, "--list").stdout.splitlines()
    assert [line.split()[0] for line in listed[:3]] == ["keep", "keep", "run"] and "changed" in listed[2]


def test_audit_passes_and_catches_tampering(series, tmp_path):
    run, _ = series
    assert fgtune("audit", run).returncode == 0
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("*.onnx_data", "*.safetensors", "site", "checkpoint"))
    path = copy / "05_test_fused" / "scorecard.json"
    path.write_text(path.read_text().replace('"exact": false', '"exact": true', 1))
    result = fgtune("audit", copy)
    assert result.returncode == 1 and "FAIL 05_test_fused" in result.stdout and "judged otherwise" in result.stdout
    assert "FAIL 04_fuse" in result.stdout and "model.safetensors is missing" in result.stdout


def papermill(*args, cwd):
    command = [sys.executable, "-m", "papermill", *map(str, args), "--no-progress-bar"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("where", ["root", "notebooks", "elsewhere"])
def test_stock_papermill_from_any_folder(series, tmp_path, where):
    run, _ = series
    cwd = {"root": ROOT, "notebooks": ROOT / "notebooks", "elsewhere": tmp_path}[where]
    name = {
        "root": "notebooks/04_fuse.ipynb",
        "notebooks": "04_fuse.ipynb",
        "elsewhere": ROOT / "notebooks/04_fuse.ipynb",
    }[where]
    before = read_manifest(run, "04_fuse")["key"]
    flags = ("-p", "run_dir", run) if where != "elsewhere" else ("-y", f"run_dir: {run}")
    result = papermill(name, tmp_path / "out.ipynb", *flags, cwd=cwd)
    assert result.returncode == 0, result.stderr[-2000:]
    assert read_manifest(run, "04_fuse")["key"] == before


def test_stock_papermill_with_a_params_file_and_an_unknown_parameter(series, tmp_path):
    run, _ = series
    args = ("notebooks/04_fuse.ipynb", tmp_path / "o.ipynb", "-f", "params/ci.yaml", "-p", "run_dir", run)
    assert papermill(*args, cwd=ROOT).returncode == 0
    wrong = papermill(*args, "-p", "itres", "3", cwd=ROOT)
    assert wrong.returncode != 0 and "unknown parameter 'itres'; did you mean 'iters'?" in wrong.stderr


def test_a_stage_out_of_order_names_the_command(tmp_path):
    result = papermill("notebooks/04_fuse.ipynb", tmp_path / "o.ipynb", "-p", "run_dir", tmp_path / "none", cwd=ROOT)
    assert result.returncode != 0
    assert (
        "04_fuse needs 00_setup, which has not run" in result.stderr
        and "python -m fgtune_helpers run --to 00_setup" in result.stderr
    )


def broken(series, tmp_path, stage, change):
    """Run one stage over a copy of the run in which `change` broke something (hashes put right); its output."""
    run, _ = series
    copy = tmp_path / "run"
    shutil.copytree(run, copy, symlinks=True)
    change(copy)
    for name in STAGES:  # an honest manifest of dishonest files: only the stage's own checks can notice
        path = copy / name / "stage.json"
        manifest = json.loads(path.read_text())
        manifest["outputs"] = hash_files(copy / name)
        path.write_text(json.dumps(manifest))
    values = json.loads((copy / "01_data" / "stage.json").read_text())["parameters"]
    flags = [x for name in ("tools_file", "examples_file") for x in ("-p", name, values[name])]
    return fgtune("run", "--params", "params/ci.yaml", "-p", "run_dir", copy, *flags, "--only", stage, "--force")


def swap_layers(run: Path):
    from safetensors.numpy import load_file, save_file

    path = run / "04_fuse" / "model.safetensors"
    weights = load_file(path)
    for name in [n for n in weights if n.startswith("model.layers.1.")]:
        other = name.replace("layers.1.", "layers.4.")
        weights[name], weights[other] = weights[other], weights[name]
    save_file(weights, path, metadata={"format": "pt"})


def test_swapped_layers_are_caught(series, tmp_path):
    result = broken(series, tmp_path, "05", swap_layers)
    assert result.returncode == 1 and "FAIL" in result.stdout, result.stdout


def test_an_export_of_other_weights_is_caught(series, tmp_path):
    def change(run):
        shutil.copytree(run / "06_export_onnx", run / "kept")
        swap_layers(run)

    result = broken(series, tmp_path, "06", change)
    assert result.returncode == 0  # the export of a swapped model agrees with the swapped model …
    result = fgtune("run", "--params", "params/ci.yaml", "-p", "run_dir", tmp_path / "run", "--only", "05")
    assert result.returncode == 1  # … and stage 05 is the one that stops it


def test_a_template_that_differs_by_one_character_is_caught(series, tmp_path):
    def change(run):
        path = run / "07_quantize" / "tokenizer_config.json"
        path.write_text(path.read_text().replace("<start_of_turn>", "<start_of_turn> "))
        jinja = run / "07_quantize" / "chat_template.jinja"
        jinja.write_text(jinja.read_text().replace("<start_of_turn>", "<start_of_turn> "))

    result = broken(series, tmp_path, "09", change)
    assert result.returncode == 1 and "renders the same" in result.stdout, result.stdout


def test_a_truncated_file_is_refused(series, tmp_path):
    run, _ = series
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = next((copy / "07_quantize" / "onnx").glob("model_q4.onnx_data"))
    os.truncate(path, path.stat().st_size - 1)
    result = fgtune("run", "--params", "params/ci.yaml", "-p", "run_dir", copy, "--only", "08", "--force")
    assert result.returncode == 1 and "model_q4.onnx_data has" in result.stdout, result.stdout


def test_a_program_that_loads_the_run_gets_the_tokens_of_the_series(series):
    run, _ = series
    parameters, cases = read_manifest(run, "08_test_onnx")["parameters"], load_cases(run / "01_data", "test")
    expected = json.loads((run / "08_test_onnx" / "tokens_fp32.json").read_text())
    asked = {"max_tokens": parameters["max_tokens"], "constrained": parameters["constrained"]}
    answers = load(run, "fp32").batch([case.query for case in cases], **asked)
    assert [[*answer.ids] for answer in answers] == expected
    q4 = load(run)
    assert q4.source.site and q4.call(cases[0].query, max_tokens=4).ids
