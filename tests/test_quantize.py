"""The smaller variants: packing as onnxruntime reads it, rounding that looks at data, fp16 that does not overflow."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from test_export import WINDOW, make_model, random_ids

from fgtune.engines.ort import OrtModel
from fgtune.evaluation.divergence import MlxLogits, divergence, log_softmax
from fgtune.export.decoder import write_decoder
from fgtune.export.graph import Graph
from fgtune.export.layout import model_file, read_config
from fgtune.export.onnx import export_onnx
from fgtune.export.weights import OnnxWeights
from fgtune.export.writers import Float32Writer
from fgtune.models.gemma3 import EMBEDDING
from fgtune.quantize import calibration
from fgtune.quantize.blocks import block_size, dequantize, grid, pack, pack_zeros, round_nearest
from fgtune.quantize.calibration import calibrate, collect_activation_statistics, packed_rows
from fgtune.quantize.gptq import damped_inverse, round_decoder, round_gptq, upper_factor
from fgtune.quantize.half import measure_peaks, residual_scale
from fgtune.quantize.recipes import RECIPES, SENSITIVE_MATRICES, QuantizeError, Recipe
from fgtune.quantize.smoothquant import SmoothQuant
from fgtune.quantize.variants import quantize
from fgtune.quantize.writer import QuantizedWriter
from fgtune.runtimes.onnxruntime import OrtGenerator

ROWS = [[*random_ids(30, seed=9), *random_ids(12, seed=i)[1:]] for i in range(12)]
HELD_OUT = [[*random_ids(30, seed=9), *random_ids(12, seed=i)[1:]] for i in range(50, 54)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model, exported, with every variant made from calibration rows."""
    base = tmp_path_factory.mktemp("quantize")
    fused = make_model(base / "fused", spread=0.15)
    export_onnx(fused, base / "onnx", max_positions=256)
    reports = {variant: quantize(base / "onnx", variant, calibration=ROWS) for variant in RECIPES}
    return base, reports


@pytest.mark.parametrize("bits, token_ids", [(4, []), (4, [0, 3, 7, 19, 48]), (8, [])])
@pytest.mark.parametrize("half", [False, True])
def test_onnxruntime_unpacks_what_was_packed(tmp_path, bits, token_ids, half):
    """Three blocks a row, an odd number, so that packed zero points have a padding half byte."""
    weight = np.random.default_rng(0).normal(0.3, 1, (50, 96)).astype(np.float32)
    recipe = Recipe(bits=bits, block=32, method="rtn", embed_bits=bits, embed_block=32, half=half, accuracy_level=0,
                    mixed_precision_rows=bool(token_ids))  # fmt: skip
    style = QuantizedWriter(recipe, {}, token_ids=token_ids)
    graph = Graph(tmp_path / "m.onnx")
    info, kind = onnx.helper.make_tensor_value_info, onnx.helper.np_dtype_to_tensor_dtype(style.dtype)
    graph.inputs += [info("ids", 7, ["b", "s"]), info("x", kind, ["b", "s", 96])]
    graph.node("Identity", [style.embed(graph, "ids", EMBEDDING, lambda _: weight)], "rows")
    style.head(graph, "x", EMBEDDING, 96, 50, "logits")
    (product,) = style.matmul(graph, "x", ["layer.q_proj"], lambda _: weight)
    graph.node("Identity", [product], "product")
    graph.outputs += [info(name, kind, None) for name in ("rows", "logits", "product")]
    graph.save({})
    matrix = round_nearest(weight, bits, 32)
    expected = dequantize(matrix)
    inside = (matrix.qweight > 0) & (matrix.qweight < (1 << bits) - 1)  # a 4-bit grid may cut off what lies far out
    assert inside.mean() > 0.85
    assert (np.abs(expected - weight) <= np.repeat(matrix.scales, 32, axis=1) / 2 * 1.001)[inside].all()
    x = np.random.default_rng(1).normal(0, 1, (1, 4, 96)).astype(style.dtype)
    ids = np.array([[0, 49, 7, 7, 19, 20]])
    table = expected.copy()
    if token_ids:
        table[token_ids] = dequantize(round_nearest(weight[token_ids], 8, 32))
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    rows, logits, product = session.run(None, {"ids": ids, "x": x})
    np.testing.assert_allclose(rows[0], table[ids[0]], atol=2e-3 if half else 1e-6)
    np.testing.assert_allclose(logits[0], x[0].astype(np.float32) @ table.T, atol=6e-2 if half else 1e-4)
    others = np.setdiff1d(np.arange(50), token_ids)
    np.testing.assert_array_equal(product[..., others], logits[..., others])


def test_neighbours_of_the_same_bits_are_one_product(tmp_path):
    """Their outputs are to the bit those of products of their own, whichever of them was rounded beforehand."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(0.3, 1, (rows, 96)).astype(np.float32) for name, rows in
               (("q_proj", 64), ("k_proj", 32), ("v_proj", 16), ("gate_proj", 32))}  # fmt: skip
    rounded = {"k_proj": round_nearest(weights["k_proj"] / 2, 8, 32)}
    recipe = Recipe(bits_overrides={"k_proj": 8, "v_proj": 8}, method="rtn")
    info, x = onnx.helper.make_tensor_value_info, rng.normal(0, 1, (1, 3, 96)).astype(np.float32)
    found, nodes = {}, {}
    for how, groups in (("together", [list(weights)]), ("alone", [[name] for name in weights])):
        style, graph = QuantizedWriter(recipe, rounded), Graph(tmp_path / f"{how}.onnx")
        graph.inputs.append(info("x", 1, ["b", "s", 96]))
        names = [name for group in groups for name in style.matmul(graph, "x", group, weights.__getitem__)]
        assert names == list(weights)
        graph.outputs += [info(name, 1, None) for name in names]
        graph.save({})
        nodes[how] = [(node.op_type, len(node.output)) for node in graph.nodes if node.op_type != "Cast"]
        found[how] = onnxruntime.InferenceSession(str(tmp_path / f"{how}.onnx")).run(None, {"x": x})
    assert nodes["alone"] == [("MatMulNBits", 1)] * 4
    product = ("MatMulNBits", 1)
    assert nodes["together"] == [product, product, ("Split", 2), product]  # 4 bits, twice 8, 4 bits
    for ours, alone in zip(found["together"], found["alone"], strict=True):
        np.testing.assert_array_equal(ours, alone)


def test_packing_puts_the_first_integer_low():
    qweight = np.arange(32, dtype=np.uint8)[None] % 16
    assert pack(qweight, 4, 32).shape == (1, 1, 16)
    assert pack(qweight, 4, 32)[0, 0, :2].tolist() == [0x10, 0x32]
    assert pack_zeros(np.array([[1, 2, 3]], np.uint8), 4).tolist() == [[0x21, 0x03]]
    assert block_size(128, 96) == 32
    with pytest.raises(QuantizeError, match="width 24"):
        block_size(128, 24)


def test_the_grid_is_the_best_of_those_tried():
    """No worse than the whole range in any block, and clearly better where one weight stands out."""
    rng = np.random.default_rng(1)
    blocks = rng.standard_t(4, (200, 32)).astype(np.float32)

    def errors(scale, zero):
        codes = np.clip(np.rint(blocks / scale[:, None]) + zero[:, None], 0, 15)
        return ((codes - zero[:, None]) * scale[:, None] - blocks).__pow__(2).sum(-1)

    span = np.maximum(blocks.max(-1), 0) - np.minimum(blocks.min(-1), 0)
    whole = (span / 15).astype(np.float16).astype(np.float32)
    ours, plain = errors(*grid(blocks, 4)), errors(whole, np.clip(np.rint(-blocks.min(-1) / whole), 0, 15))
    assert (ours <= plain * (1 + 1e-5)).all() and ours.sum() < 0.97 * plain.sum()
    np.testing.assert_array_equal(grid(blocks, 8)[0], (span / 255).astype(np.float16).astype(np.float32))


def test_a_4_bit_embedding_is_rounded_by_what_the_output_layer_sees(folder):
    """Its logits come nearer to the exact ones than by rounding to the nearest, its rows stay near."""
    base, _ = folder
    source = base / "onnx"
    weights, rows = OnnxWeights(source / "onnx" / "model.onnx"), packed_rows(ROWS)
    config, recipe = read_config(source), RECIPES["q4"]
    squares, outer = collect_activation_statistics(source, config, rows)
    assert len(squares) == 4 * config["num_hidden_layers"]
    model = OrtModel(source / "onnx" / "model.onnx", collect=["model.norm", "model.layers.2.mlp.product"])
    tapped = []
    for row in ROWS:
        model.run(np.array([row]), model.empty())
        tapped.append([value[0, 30:] for value in model.collected.values()])
    states, products = (np.concatenate(values) for values in zip(*tapped, strict=True))
    np.testing.assert_allclose(outer, states.T @ states, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(squares["model.layers.2.mlp.product"], np.square(products).mean(0), rtol=1e-2)
    found = calibrate(source, config, weights, recipe, ROWS)[1][EMBEDDING]
    table = np.array(weights.matrix(EMBEDDING))
    ours, theirs = (dequantize(rounded) - table for rounded in (found, round_nearest(table, 4, 32)))
    off = lambda difference: np.square(states @ difference.T).sum()
    assert off(ours) < 0.8 * off(theirs)
    assert np.square(ours).sum() < 1.6 * np.square(theirs).sum()


def test_the_layers_are_rounded_behind_the_embedding_as_it_is_stored(folder, monkeypatch):
    """Of rows with 8 bits and of those with 4, each from where it is."""
    base, _ = folder
    source, seen = base / "onnx", []

    def instead(config, weights, rows, embedded, *rest):
        seen.append(embedded)
        return ({},)

    monkeypatch.setattr(calibration, "round_decoder", instead)
    weights, rows = OnnxWeights(source / "onnx" / "model.onnx"), packed_rows(ROWS)
    precise = np.unique(rows.ids)[::2]
    found = calibrate(source, read_config(source), weights, RECIPES["q4"], ROWS, precise)[1]
    table = np.array(weights.matrix(EMBEDDING))
    expected = dequantize(found[EMBEDDING])
    expected[precise] = dequantize(round_nearest(table[precise], 8, 32))
    ((exact, stored),) = seen
    np.testing.assert_array_equal(exact, table[rows.ids])
    np.testing.assert_array_equal(stored, expected[rows.ids])


def test_gptq_is_plain_rounding_for_uncorrelated_inputs_and_better_for_correlated_ones():
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 1, (64, 128)).astype(np.float32)
    plain = round_nearest(weight, 4, 32)
    for ours, theirs in zip(round_gptq(weight, upper_factor(damped_inverse(np.eye(128))), 4, 32), plain):
        np.testing.assert_array_equal(ours, theirs)
    inputs = rng.normal(0, 1, (400, 20)) @ rng.normal(0, 1, (20, 128)) + 0.1 * rng.normal(0, 1, (400, 128))
    hessian = (inputs.T @ inputs).astype(np.float32)
    hessian[5], hessian[:, 5] = 0, 0  # an input that is never seen
    codes = round_gptq(weight, upper_factor(damped_inverse(hessian)), 4, 32)

    def error(result):
        difference = dequantize(result) - weight
        return np.sum((difference @ hessian) * difference)

    assert error(codes) < 0.3 * error(plain)


def test_variants_are_smaller_and_close(folder):
    base, reports = folder
    generators = {variant: OrtGenerator(base / "onnx", variant) for variant in ("fp32", *RECIPES)}
    found = {variant: divergence(generators["fp32"], generators[variant], HELD_OUT, last=12, window=WINDOW)
             for variant in RECIPES}  # fmt: skip
    assert found["fp16"]["kl"] < 1e-3
    assert found["int8"]["kl"] < 2e-2
    assert found["fp16"]["argmax_agreement"] > 0.95
    assert found["q4"]["kl"] < found["q4s"]["kl"]
    assert found["q4f16"]["kl"] == pytest.approx(found["q4"]["kl"], rel=0.2)
    assert found["int8"]["kl"] < found["q4"]["kl"]
    sizes = {variant: reports[variant].bytes for variant in RECIPES}
    assert sizes["fp16"] > sizes["int8"] > sizes["q4"] > sizes["q4s"]
    kl = {}
    for method in ("rtn", "gptq"):
        quantize(base / "onnx", "q4", base / method, ROWS, Recipe(bits_overrides=SENSITIVE_MATRICES, method=method))
        kl[method] = divergence(generators["fp32"], OrtGenerator(base / method, "q4"), HELD_OUT, last=12)["kl"]
    assert kl["gptq"] < kl["rtn"]


def test_variants_share_one_folder_and_store_the_embedding_once(folder):
    base, reports = folder
    config = json.loads((base / "onnx" / "config.json").read_text())["transformers.js_config"]
    files = {model_file(variant) for variant in ("fp32", *RECIPES)}
    assert config["use_external_data_format"] == dict.fromkeys(files, 1)
    assert {device: entry["dtype"] for device, entry in config["device_config"].items()} == {
        "wasm": "q4", "webgpu": "q4f16", "cpu": "q4"}  # fmt: skip
    for variant, report in reports.items():
        graph = onnx.load(report.path, load_external_data=False).graph
        parts = [tensor for tensor in graph.initializer if tensor.name.startswith(EMBEDDING)]
        rows = [tensor.dims[0] for tensor in parts if tensor.name.endswith((".qweight", ".weight"))]
        precise = len({token for row in ROWS for token in row}) if RECIPES[variant].mixed_precision_rows else 0
        assert rows == ([2048, precise] if precise else [2048]), variant
        tables = [tensor.name for tensor in graph.initializer if tensor.dims and tensor.dims[0] == 2048]
        # the floats, or what is packed, with the places of the high-precision rows
        assert len(tables) == (1 if variant == "fp16" else 3 + bool(precise))
        assert "GatherBlockQuantized" not in report.ops
        expected = 1 if variant == "fp16" else 0
        assert report.ops.get("Gemm", 0) == expected
        layers = {"fp16": 0, "q4s": 7 * 5 - 1}.get(variant, 7 * 4)  # k and v have more bits than q but in layer 3
        assert report.ops.get("MatMulNBits", 0) == layers + (variant != "fp16") * (1 + bool(precise))


def test_out_dir_gets_all_but_the_fp32_model(folder, tmp_path):
    base, _ = folder
    report = quantize(base / "onnx", "int8", tmp_path / "out", ROWS)
    assert {path.name for path in (tmp_path / "out" / "onnx").iterdir()} == {"model_int8.onnx", "model_int8.onnx_data"}
    assert (tmp_path / "out" / "tokenizer.json").exists()
    announced = json.loads((tmp_path / "out" / "config.json").read_text())["transformers.js_config"]
    assert announced["use_external_data_format"] == {"model_int8.onnx": 1}
    assert report.residual_scale == 1.0
    assert OrtGenerator(tmp_path / "out", "int8").model.positions == 256


def shrink(weights):
    """An embedding so small that the epsilons of the norms matter."""
    weights["model.embed_tokens.weight"] *= np.float32(1e-3)
    for name in weights:
        if "post_" in name:
            weights[name] = (weights[name] + 1) * np.float32(4e-4) - 1


def test_scaling_the_residual_stream_changes_nothing(tmp_path):
    export_onnx(make_model(tmp_path / "fused", change=shrink), tmp_path / "onnx")
    style = Float32Writer()
    style.residual = 1 / 8
    path = tmp_path / "onnx" / "onnx" / "model.onnx"
    weights = OnnxWeights(path)
    write_decoder(path.with_name("scaled.onnx"), read_config(tmp_path / "onnx"), weights, style, weights.positions)
    ids = np.array([random_ids(40)])
    plain, scaled = (
        OrtModel(path),
        OrtModel(path.with_name("scaled.onnx"), collect=["model.layers.3.input_layernorm.stream"]),
    )
    reference, _ = plain.run(ids, plain.empty(), keep=0)
    found, _ = scaled.run(ids, scaled.empty(), keep=0)
    np.testing.assert_allclose(found, reference, atol=2e-4)
    stream = OrtModel(path, collect=["model.layers.3.input_layernorm.stream"])
    stream.run(ids, stream.empty())
    np.testing.assert_allclose(
        scaled.collected["model.layers.3.input_layernorm.stream"] * 8,
        stream.collected["model.layers.3.input_layernorm.stream"], rtol=1e-3, atol=1e-6)  # fmt: skip


def swell(weights):
    """A residual stream that ends near 100,000, as the real model's does."""
    for name in weights:
        if "post_" in name:
            weights[name] = (weights[name] + 1) * np.float32(700) - 1


def test_fp16_of_a_model_whose_stream_overflows_is_right(tmp_path):
    export_onnx(make_model(tmp_path / "fused", spread=0.1, change=swell), tmp_path / "onnx")
    report = quantize(tmp_path / "onnx", "fp16", calibration=ROWS)
    assert report.peaks["residual stream"] > 65504 / 2
    assert report.residual_scale < 0.5
    assert report.peaks["residual stream"] * report.residual_scale * 4 <= 65504
    assert report.peaks["residual stream"] * report.residual_scale * 8 > 65504
    reference, half = (OrtGenerator(tmp_path / "onnx", variant) for variant in ("fp32", "fp16"))
    result = divergence(reference, half, HELD_OUT, last=12)
    assert result["kl"] < 1e-3
    assert result["argmax_agreement"] == 1
    taps = [f"model.layers.{i}.pre_feedforward_layernorm.stream" for i in range(7)]
    model = OrtModel(tmp_path / "onnx" / "onnx" / "model_fp16.onnx", collect=taps)
    model.run(np.array(HELD_OUT[:1]), model.empty())
    assert all(value.dtype == np.float16 and np.isfinite(value).all() for value in model.collected.values())


def test_an_overflow_that_scaling_cannot_reach_fails_loudly(tmp_path):
    def change(weights):
        weights["model.layers.2.self_attn.v_proj.weight"] *= np.float32(1e5)

    export_onnx(make_model(tmp_path / "fused", change=change), tmp_path / "onnx")
    with pytest.raises(QuantizeError, match=r"float16 would overflow: [vo]_proj reaches [0-9,]+ and cannot be scaled"):
        quantize(tmp_path / "onnx", "fp16", calibration=ROWS)
    assert not (tmp_path / "onnx" / "onnx" / "model_fp16.onnx").exists()


def test_the_scale_is_a_power_of_two_with_a_margin():
    assert residual_scale({"residual stream": 100.0}) == 1.0
    assert residual_scale({"residual stream": 104000.0}) == 1 / 8
    assert residual_scale({"residual stream": 104000.0}, margin=1) == 1 / 2


def test_peaks_are_measured_with_the_prefix_run_once(folder, monkeypatch):
    base, _ = folder
    runs = []
    run = OrtModel.run
    monkeypatch.setattr(
        OrtModel, "run", lambda self, ids, *a, **k: runs.append(ids.shape[1]) or run(self, ids, *a, **k)
    )
    peaks = measure_peaks(base / "onnx", ROWS)
    assert runs == [30, *[11] * 12]
    taps = {"down_proj": [f"model.layers.{i}.mlp.down_proj" for i in range(7)], "logits": ["lm_head/product"]}
    for kind, names in taps.items():
        model = OrtModel(base / "onnx" / "onnx" / "model.onnx", collect=names)
        largest = 0.0
        for row in ROWS:
            model.run(np.array([row]), model.empty())
            largest = max(largest, *(float(np.abs(value).max()) for value in model.collected.values()))
        assert peaks[kind] == pytest.approx(largest, rel=1e-3)
    assert set(peaks) >= {"residual stream", "mlp product", "norm", "v_proj"}


def test_the_packed_pass_is_the_model(folder):
    """GPTQ's own forward pass against onnxruntime: the exact stream, and the rounded one as it is stored."""
    base, _ = folder
    path = base / "onnx" / "onnx" / "model.onnx"
    weights, rows = OnnxWeights(path), packed_rows(ROWS)
    assert rows.prefix == 30 and len(rows.ids) == 30 + 12 * 11 and rows.positions[41:43].tolist() == [30, 31]
    embedded = np.array(weights.matrix(EMBEDDING)[rows.ids])
    stored = dequantize(round_nearest(embedded, 8, 32))
    config, recipe = read_config(base / "onnx"), Recipe(bits_overrides=SENSITIVE_MATRICES, smoothquant_alpha=0.5)
    quantization_parameters = lambda name: (recipe.bits_of(name), 32)
    squares = collect_activation_statistics(base / "onnx", config, rows)[0]
    weights = SmoothQuant(weights, squares, config, recipe.smoothquant_alpha)
    _, exact, ours = round_decoder(config, weights, rows, (embedded, stored), quantization_parameters)
    quantize(base / "onnx", "q4", base / "floats", ROWS, replace(recipe, accuracy_level=0))
    for name, states, tolerance in (("model.onnx", exact, 5e-3), ("model_q4.onnx", ours, 2e-2)):
        place = path if name == "model.onnx" else base / "floats" / "onnx" / name
        model = OrtModel(place, collect=["model.norm"])
        for start, end in rows.segments[1:]:
            model.run(np.array([[*rows.ids[:30], *rows.ids[start:end]]]), model.empty())
            found = model.collected["model.norm"][0]
            np.testing.assert_allclose(found[30:], states[start:end], atol=tolerance)
            np.testing.assert_allclose(found[:30], states[:30], atol=tolerance)


def test_the_divergence_is_that_of_the_distributions():
    class Fixed:
        def __init__(self, logits):
            self.values = np.array(logits, np.float32)

        def logits(self, ids, start, cached):
            return np.tile(self.values, (len(ids) - start, 1))

    a, b = Fixed([0.0, np.log(3)]), Fixed([np.log(3), 0.0])
    result = divergence(a, b, [[1] * 8, [1] * 3], last=4, window=5)
    assert result["kl"] == pytest.approx(0.5 * np.log(3))
    assert result["argmax_agreement"] == 0 and result["tv"] == pytest.approx(0.5) and result["tv_error"] < 1e-9
    assert result["positions"] == 2 * (4 + 2)
    assert result["beyond_window"]["positions"] == 2 * 3
    assert result["below_window"]["positions"] == 2 * (1 + 2)
    assert divergence(a, b, [[1] * 8, [1] * 9], last=[2, 5])["positions"] == 2 * (2 + 5)  # of each prompt its own
    assert divergence(a, a, [[1] * 4])["beyond_window"] is None
    alone = divergence(a, b, [[1] * 8, [1] * 3], 4, 5, modes=["without_cache"])
    assert alone["positions"] == 4 + 2 and alone["with_cache"] is None
    with pytest.raises(ValueError, match="not finite"):
        divergence(a, Fixed([np.nan, 0]), [[1] * 8])
    with pytest.raises(ValueError, match="no prompts"):
        divergence(a, b, [])
    np.testing.assert_allclose(np.exp(log_softmax(np.array([[1e4, 1e4]], np.float32))), 0.5)


def test_mlx_and_the_export_agree_below_and_beyond_the_window(folder):
    base, _ = folder
    result = divergence(MlxLogits(base / "fused"), OrtGenerator(base / "onnx"), [*HELD_OUT, random_ids(14)], 12, WINDOW)
    for part in ("with_cache", "without_cache", "below_window", "beyond_window"):
        assert result[part]["kl"] < 1e-5, part
        assert result[part]["argmax_agreement"] == 1, part


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        ("q5", {}, "unknown variant"),
        ("fp32", {}, "unknown variant"),
        ("q4", {}, "needs calibration"),
        ("fp16", {}, "needs calibration"),
        ("int8", {"recipe": Recipe(bits=3)}, "bits must be"),
        ("int8", {"recipe": Recipe(bits_overrides={"k_proj": 5})}, "bits must be"),
        ("int8", {"recipe": Recipe(block=48)}, "a block must hold"),
        (
            "q4",
            {"recipe": Recipe(mixed_precision_rows=True), "calibration": ROWS},
            "mixed_precision_rows is for an embedding of 4 bits",
        ),
        ("int8", {"recipe": Recipe(method="best")}, "method must be"),
        ("int8", {"recipe": Recipe(smoothquant_alpha=50)}, "smoothquant_alpha must be"),
        ("q4", {"calibration": [[2]]}, "fewer than two tokens"),
    ],
)
def test_bad_arguments_say_so_in_one_line(folder, tmp_path, variant, options, message):
    base, _ = folder
    with pytest.raises(QuantizeError, match=message) as caught:
        quantize(base / "onnx", variant, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)


def test_only_a_direct_fp32_export_is_a_source(folder, tmp_path):
    base, _ = folder
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((base / "onnx" / name).read_bytes())
    with pytest.raises(QuantizeError, match="does not exist: export first"):
        quantize(tmp_path, "int8", calibration=ROWS)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes((base / "onnx" / "onnx" / "model_fp16.onnx").read_bytes())
    model = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "onnx" / "model.onnx")
    with pytest.raises(QuantizeError, match="variants are made from"):
        quantize(tmp_path, "int8", calibration=ROWS)
