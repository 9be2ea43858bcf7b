"""The fast BLAS: found, checked, switched off, never in the way of torch and onnxruntime."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fgtune.core import blas

ROOT = Path(__file__).parent.parent
LINUX = sys.platform == "linux"


def in_new_process(code, **environment):
    """Output of `code` in a new interpreter; the test fails with its stderr if it does not end well."""
    env = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()


def test_report_is_made_once_and_is_one_line():
    report = blas.use_fast_blas()
    assert report is blas.use_fast_blas()
    assert "\n" not in str(report) and report.reason in str(report)
    assert report.correct


def test_device_report_has_what_setup_prints():
    report = blas.device_report()
    assert report["device"] in ("CPU", "Metal", "CUDA")
    assert report["dtype"] == ("float32" if report["device"] == "CPU" else "bfloat16")
    assert report["gflops"] > 0 and report["cores"] >= 1 and report["blas"] and report["blas_note"]


def test_torch_onnxruntime_and_mlx_multiply_in_one_process():
    """The library stays loaded for all symbols; whatever is imported afterwards must still compute right."""
    lines = in_new_process(
        "from fgtune.core import blas\n"
        "report = blas.use_fast_blas()\n"
        "import numpy as np, torch, onnxruntime, onnx\n"
        "from onnx import helper, TensorProto as T\n"
        "mx = blas.mlx()\n"
        "a = np.random.default_rng(0).standard_normal((70, 50)).astype('float32')\n"
        "want = a @ a.T\n"
        "print(np.abs(np.array(mx.array(a) @ mx.array(a).T) - want).max() < 1e-4)\n"
        "print(np.abs((torch.tensor(a) @ torch.tensor(a).T).numpy() - want).max() < 1e-4)\n"
        "graph = helper.make_graph([helper.make_node('MatMul', ['a', 'b'], ['c'])], 'g',\n"
        "  [helper.make_tensor_value_info(n, T.FLOAT, None) for n in 'ab'],\n"
        "  [helper.make_tensor_value_info('c', T.FLOAT, None)])\n"
        "model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)\n"
        "session = onnxruntime.InferenceSession(model.SerializeToString())\n"
        "print(np.abs(session.run(None, {'a': a, 'b': np.ascontiguousarray(a.T)})[0] - want).max() < 1e-4)\n"
        "print(report.correct)\n"
    )
    assert lines == ["True"] * 4


@pytest.mark.parametrize("value", ["off", "0", "OFF"])
def test_switched_off(value):
    lines = in_new_process(
        "from fgtune.core import blas; r = blas.use_fast_blas(); print(r.active); print(r.reason)", FGTUNE_BLAS=value
    )
    assert lines[0] == "False"
    assert (f"FGTUNE_BLAS={value}" in lines[1]) == LINUX


def test_a_library_that_is_none_is_reported_and_nothing_breaks():
    lines = in_new_process(
        "from fgtune.core import blas; r = blas.use_fast_blas(); print(r.active, r.correct); print(r.reason)",
        FGTUNE_BLAS=str(ROOT / "nothing.so"),
    )
    assert lines[0] == "False True"
    assert ("nothing.so" in lines[1]) == LINUX


def test_mlx_imported_too_early_is_told():
    lines = in_new_process(
        "import mlx.core; from fgtune.core import blas; r = blas.use_fast_blas(); print(r.active); print(r.reason)"
    )
    assert lines[0] == "False"
    assert ("before the fast BLAS" in lines[1]) == LINUX


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, platform):
    monkeypatch.setattr(blas.sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda *a, **k: pytest.fail("a library was loaded"))
    report = blas._decide()
    assert not report.active and platform in report.reason


def test_cuda_is_left_alone(monkeypatch):
    monkeypatch.setattr(blas.sys, "platform", "linux")
    monkeypatch.setattr(blas, "_has_cuda_wheel", lambda: True)
    monkeypatch.setattr(ctypes, "CDLL", lambda *a, **k: pytest.fail("a library was loaded"))
    assert "CUDA" in blas._decide().reason


@pytest.mark.skipif(not LINUX, reason="the fast BLAS is for Linux CPU")
def test_the_library_really_multiplies_mlx():
    """sgemm cannot be counted, but two processes can be compared: at least three times the reference BLAS."""
    code = "from fgtune.core import blas; r = blas.use_fast_blas(); print(r.active); print(r.gflops)"
    fast, slow = in_new_process(code), in_new_process(code, FGTUNE_BLAS="off")
    if fast[0] == "True":
        assert float(fast[1]) > 3 * float(slow[1])
    else:
        assert not blas.candidates()


def test_candidates_exist_and_work_or_are_passed_over(tmp_path):
    found = blas.candidates()
    assert len(found) == len(set(found))
    if LINUX:
        assert any("libtorch_cpu" in path for path in found)  # torch is a dependency
    broken = tmp_path / "libopenblas.so"
    broken.write_bytes(b"no library")
    assert not blas.library_works(str(broken))
    assert not blas.library_works("libm.so.6")  # a library without sgemm_


def test_only_one_place_imports_mlx_core():
    """Whoever imports mlx.core before `use_fast_blas` would train thirty times slower: the helper is the only way."""
    for path in (ROOT / "fgtune").rglob("*.py"):
        if path.name == "blas.py":
            continue
        text = path.read_text(encoding="utf-8")
        assert "import mlx.core" not in text and "from mlx import core" not in text, path.name
