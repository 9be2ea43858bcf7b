"""SmoothQuant: the same model, channels of one size, and what that saves where inputs are rounded to 8 bits."""

from dataclasses import replace

import numpy as np
import pytest
from test_export import make_model
from test_quantize import HELD_OUT, ROWS

from fgtune.engines.ort import OrtModel
from fgtune.evaluation.divergence import divergence
from fgtune.export.decoder import write_decoder
from fgtune.export.layout import model_file, read_config
from fgtune.export.onnx import export_onnx
from fgtune.export.weights import OnnxWeights
from fgtune.export.writers import Float32Writer
from fgtune.quantize.calibration import collect_activation_statistics, packed_rows
from fgtune.quantize.half import measure_peaks
from fgtune.quantize.recipes import RECIPES, Recipe
from fgtune.quantize.smoothquant import SmoothQuant, smoothable_inputs
from fgtune.quantize.variants import quantize
from fgtune.runtimes.onnxruntime import OrtGenerator


def uneven(weights):
    """A few channels of every input far larger than the others, as trained models have them."""
    for name in weights:
        if name.endswith(("input_layernorm.weight", "pre_feedforward_layernorm.weight")):
            weights[name][[3, 40]] = 60
        if name.endswith(("q_proj.weight", "k_proj.weight", "gate_proj.weight")):
            weights[name][:, [3, 40]] /= 60
        if name.endswith(("v_proj.weight", "up_proj.weight")):
            weights[name][:, [3, 40]] /= 60
            weights[name][[5, 20]] *= 40
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name][:, [5, 20]] /= 40


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    base = tmp_path_factory.mktemp("smooth")
    export_onnx(make_model(base / "fused", spread=0.15, change=uneven), base / "onnx", max_positions=256)
    return base / "onnx"


def smoothed(source, alpha):
    weights, config, rows = OnnxWeights(source / "onnx" / "model.onnx"), read_config(source), packed_rows(ROWS)
    return SmoothQuant(weights, collect_activation_statistics(source, config, rows)[0], config, alpha), config


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_the_model_stays_and_its_channels_become_alike(source, tmp_path, alpha):
    weights, config = smoothed(source, alpha)
    path = tmp_path / "model.onnx"
    write_decoder(path, config, weights, Float32Writer(), weights.positions)
    names = [name for name, _, _ in smoothable_inputs(config["num_hidden_layers"])]
    plain, ours = OrtModel(source / "onnx" / "model.onnx", collect=names), OrtModel(path, collect=names)
    own = {model: {name: [] for name in names} for model in (plain, ours)}
    for row in ROWS:
        logits = [model.run(np.array([row]), model.empty(), keep=0)[0] for model in own]
        np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-3)
        for model, found in own.items():
            for name, (value,) in model.collected.items():
                found[name].append(value[30:])
    for name in names:
        before, after = (np.log(np.square(np.concatenate(found[name])).mean(0)) / 2 for found in own.values())
        if name.endswith(".self_attn"):  # the heads of a group share their scales
            groups = config["num_key_value_heads"], -1, config["head_dim"]
            before, after = (np.log(np.exp(2 * x).reshape(groups).mean(1)) / 2 for x in (before, after))
        assert np.ptp(before) > 2, name
        np.testing.assert_allclose(after - after.mean(), (1 - alpha) * (before - before.mean()), atol=2e-3)
        np.testing.assert_allclose(after.mean(), before.mean(), atol=2e-3)  # the rest of them is no larger for it


def test_smoothed_inputs_lose_less_when_they_are_rounded(source, tmp_path):
    reference = OrtGenerator(source, "fp32")
    found = {}
    for alpha in (0, 0.5):
        quantize(source, "int8", tmp_path / str(alpha), ROWS, Recipe(bits=8, smoothquant_alpha=alpha))
        found[alpha] = divergence(reference, OrtGenerator(tmp_path / str(alpha), "int8"), HELD_OUT, last=12)["kl"]
    assert found[0.5] < 0.5 * found[0]
    assert RECIPES["int8"].smoothquant_alpha == 0.5


def test_float16_is_measured_on_smoothed_inputs(source, tmp_path):
    """The peaks are those of the graph that is written, not of the one before smoothing."""
    weights, config = smoothed(source, 0.5)
    path = tmp_path / "onnx" / model_file("fp32")
    path.parent.mkdir()
    write_decoder(path, config, weights, Float32Writer(), weights.positions)
    expected, before = measure_peaks(tmp_path, ROWS), measure_peaks(source, ROWS)
    found = quantize(source, "q4f16", tmp_path / "half", ROWS, replace(RECIPES["q4f16"], smoothquant_alpha=0.5)).peaks
    assert found == pytest.approx(expected, rel=1e-3)
    assert found["mlp product"] < before["mlp product"] and found["norm"] < before["norm"]


def test_a_silent_channel_is_not_blown_up():
    """One that calibration never lights keeps within reach of the others."""
    config = {"num_hidden_layers": 1, "num_key_value_heads": 1, "head_dim": 4}
    squares = {name: np.array([0.0, 1, 1, 1]) for name, _, _ in smoothable_inputs(1)}
    found = SmoothQuant(type("Weights", (), {"positions": 8}), squares, config, 0.5).channel_scales
    for scales in found.values():
        assert np.isfinite(scales).all() and scales.max() / scales.min() == pytest.approx(1000**0.5, rel=0.1)
