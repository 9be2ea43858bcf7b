"""The WebAssembly kernels: built from their source, and the same decoder as onnxruntime's over each variant's bytes.

tests/js/kernels.test.mjs holds each kernel against plain loops.
"""

import importlib.metadata
import importlib.util
import json
import subprocess
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from fgtune.core.errors import DeployError
from fgtune.core.project import project_root
from fgtune.engines.ort import OrtModel
from fgtune.export.layout import model_file
from fgtune.quantize.recipes import RECIPES
from fgtune.quantize.variants import quantize
from fgtune.runtimes.node import find_node
from fgtune.site.kernel_layout import BLOCKS, KERNEL_FORMAT, kernel_layout

KERNELS = project_root() / "web" / "kernels"
VARIANTS = ("q4", "q4s", "int8")
ROWS = [[2, *np.random.default_rng(i).integers(0, 2048, 60).tolist()] for i in range(4)]
#: Longer than the tiny model's window of 128, then tokens one at a time and a draft of four.
CHUNKS = [[2, *np.random.default_rng(9).integers(0, 2048, 180).tolist()], [5], [900], [1, 2, 3, 4], [77]]


def build_script():
    spec = importlib.util.spec_from_file_location("kernel_build", KERNELS / "build.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture(scope="module")
def folder(tiny_onnx, tmp_path_factory):
    """The tiny model's variants that the kernels run."""
    target = tmp_path_factory.mktemp("kernels")
    for variant in VARIANTS:
        quantize(tiny_onnx, variant, target, calibration=ROWS)
    return target


def test_the_built_files_are_of_this_source():
    script, record = build_script(), json.loads((KERNELS / "build.json").read_text(encoding="utf-8"))
    assert record["source"] == script.sha256(script.SOURCE), "decoder.c changed: run web/kernels/build.py"
    assert record["files"] == {name: script.sha256(KERNELS / name) for name in script.BUILDS}
    pinned = project_root().joinpath("pyproject.toml").read_text(encoding="utf-8")
    assert record["compiler"].replace(" ", "==") in pinned


def test_the_compiler_gives_the_same_bytes(tmp_path):
    script, record = build_script(), json.loads((KERNELS / "build.json").read_text(encoding="utf-8"))
    try:
        found = script.compiler()
    except importlib.metadata.PackageNotFoundError:
        pytest.skip('ziglang is not installed: pip install -e ".[kernels]"')
    if found != record["compiler"]:
        pytest.skip(f"{found} is installed, the files are of {record['compiler']}")
    assert script.build(tmp_path) == record


def test_the_format_is_the_same_in_both_languages():
    assert f"export const FORMAT = {KERNEL_FORMAT};" in (KERNELS / "decoder.js").read_text(encoding="utf-8")


def kernel_logits(folder, variant, chunks, threads=1):
    """Logits after the last token of each chunk, or after each token of one of at most 8."""
    job = {"layout": kernel_layout(folder, variant), "folder": str(folder / "onnx"), "chunks": chunks}
    done = subprocess.run(
        [find_node(), str(project_root() / "tests" / "js" / "kernel_logits.mjs")],
        input=json.dumps(job | {"threads": threads}).encode(), capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return np.frombuffer(done.stdout, np.float32).reshape(-1, job["layout"]["vocab"])


def ort_logits(folder, variant, chunks):
    """The same of onnxruntime."""
    model, found = OrtModel(folder / "onnx" / model_file(variant), threads=1), []
    past = model.empty()
    for ids in chunks:
        logits, past = model.run(np.array([ids]), past, keep=len(ids) if len(ids) <= 8 else 1)
        found.append(logits[0])
    return np.concatenate(found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_logits_are_those_of_onnxruntime(folder, variant):
    """Both round activations to the same integers, so float32 sums alone differ."""
    chunks = [[2], [5], [900], [77]]
    found, wanted = kernel_logits(folder, variant, chunks), ort_logits(folder, variant, chunks)
    np.testing.assert_allclose(found, wanted, atol=2e-4 * wanted.std())
    assert (found.argmax(-1) == wanted.argmax(-1)).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_long_texts_stay_as_near_as_onnxruntime_to_itself(folder, variant):
    """An activation half-way between two integers goes one way here and the other way there, which moves a row of this
    model by a few hundredths of the logits' spread. onnxruntime does so to itself where a text is cut otherwise."""
    found, wanted = kernel_logits(folder, variant, CHUNKS), ort_logits(folder, variant, CHUNKS)
    single = ort_logits(folder, variant, [[token] for ids in CHUNKS for token in ids])[len(CHUNKS[0]) - 1 :]
    error, own = (np.abs(other - wanted).max(-1) / wanted.std(-1) for other in (found, single))
    assert error.max() < 2 * own.max() < 0.3, (error, own)
    assert np.array_equal(found, kernel_logits(folder, variant, CHUNKS, threads=2))


def test_a_layout_is_small_and_names_every_byte_once(folder):
    layout = kernel_layout(folder, "q4")
    assert len(json.dumps(layout)) < 400_000
    spans = []

    def walk(value):
        if isinstance(value, dict):
            if "file" in value:
                spans.append((value["offset"], value["length"]))
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(layout)
    spans = sorted(set(spans))
    assert all(a + length <= b for (a, length), (b, _) in pairwise(spans))
    size = (folder / "onnx" / "model_q4.onnx_data").stat().st_size
    assert size * 0.8 < sum(length for _, length in spans) <= size  # the rest serves the graph: positions, places


def test_graphs_that_the_kernels_do_not_run(folder, tiny_onnx, tmp_path):
    with pytest.raises(DeployError, match="not quantised"):
        kernel_layout(tiny_onnx, "fp32")
    with pytest.raises(DeployError, match="does not exist"):
        kernel_layout(folder, "q4f16")
    quantize(tiny_onnx, "q4f16", tmp_path / "half", calibration=ROWS)
    with pytest.raises(DeployError, match="float16"):
        kernel_layout(tmp_path / "half", "q4f16")
    recipe = replace(RECIPES["q4"], method="rtn", block=16)
    quantize(tiny_onnx, "q4", tmp_path / "narrow", calibration=ROWS, recipe=recipe)
    with pytest.raises(DeployError, match=f"blocks of {BLOCKS[0]}"):
        kernel_layout(tmp_path / "narrow", "q4")
