"""The graph for WebAssembly: the same numbers from the same bytes."""

import numpy as np
import onnx
import pytest
from test_export import SIZES, make_model

from fgtune.engines.ort import OrtModel
from fgtune.export import dequantized
from fgtune.export.dequantized import MAX_WEIGHTS, SESSION, write_dequantized
from fgtune.export.layout import model_file
from fgtune.export.onnx import export_onnx
from fgtune.quantize.recipes import Recipe
from fgtune.quantize.variants import quantize
from fgtune.runtimes.onnxruntime import OrtGenerator

ROW = [2, 105, 364, 107, 65, 66, 67, 106]


@pytest.fixture(scope="module")
def packed(tiny_onnx, tmp_path_factory):
    """Two variants whose activations stay floats, so that both graphs compute the same."""
    out = tmp_path_factory.mktemp("packed")
    plain = {"method": "rtn", "accuracy_level": 0}
    quantize(tiny_onnx, "q4", out, recipe=Recipe(bits_overrides={"v_proj": 8}, **plain))
    quantize(
        tiny_onnx,
        "q4s",
        out,
        recipe=Recipe(embed_bits=4, embed_block=32, mixed_precision_rows=True, **plain),
        token_ids=ROW,
    )
    return out / "onnx"


def logits(path, settings=None):
    """What a graph says after each token of ROW."""
    model = OrtModel(path, settings=settings)
    return model.run(np.array([ROW]), model.empty(), keep=0)[0]


@pytest.mark.parametrize("variant", ["q4", "q4s"])
@pytest.mark.parametrize("largest", [MAX_WEIGHTS, 2**14])
def test_the_same_numbers_from_the_same_file(packed, monkeypatch, variant, largest):
    source, out = packed / model_file(variant), packed / model_file(variant, dequantized=True)
    before = {path.name for path in packed.iterdir()} - {out.name}
    expected = logits(source)
    monkeypatch.setattr(dequantized, "MAX_WEIGHTS", largest)
    assert write_dequantized(source, out)
    found = logits(out, SESSION)
    assert abs(found - expected).max() < 1e-4 * abs(expected).max()
    assert {path.name for path in packed.iterdir()} == before | {out.name}, "no data of its own"
    graph = onnx.load(str(out), load_external_data=False).graph
    ops = [node.op_type for node in graph.node]
    assert "MatMulNBits" not in ops and ops.count("DequantizeLinear") == ops.count("FusedMatMul")
    last = {"q4": "logits", "q4s": "lm_head.all"}[
        variant
    ]  # in q4s the logits of the user's tokens are put in at the end
    joined = "Concat" in [n.op_type for n in graph.node if n.output[0] == last]
    assert joined == (largest == 2**14)
    assert len({tensor.name for tensor in graph.initializer}) == len(graph.initializer)


def test_a_generator_takes_the_dequantized_graph(packed):
    """As the page runs it: told not to turn the nodes back, and with the answers of the packed one."""
    assert write_dequantized(packed / model_file("q4"), packed / model_file("q4", dequantized=True))
    asked = ["<bos><start_of_turn>user\nweather in Oslo", "<bos><start_of_turn>user\nhello"]
    plain, dequantized = (OrtGenerator(packed.parent, "q4", max_tokens=8, dequantized=d) for d in (False, True))
    assert dequantized.generate_ids(asked) == plain.generate_ids(asked)
    options = dequantized.model.session.get_session_options()
    assert {key: options.get_session_config_entry(key) for key in SESSION} == SESSION


def test_an_odd_number_of_zero_points_in_a_row(tmp_path, monkeypatch):
    """MatMulNBits leaves half a byte empty behind each row, DequantizeLinear goes on with the next."""
    export_onnx(make_model(tmp_path / "fused"), tmp_path / "onnx")
    quantize(tmp_path / "onnx", "q4", recipe=Recipe(method="rtn", accuracy_level=0, embed_bits=4, embed_block=32))
    source, out = (tmp_path / "onnx" / "onnx" / model_file("q4", dequantized=d) for d in (False, True))
    stored = {item.name: item.dims for item in onnx.load(str(source), load_external_data=False).graph.initializer}
    assert list(stored["model.embed_tokens.zeros"]) == [2048, 2] and SIZES["hidden_size"] == 3 * 32
    expected = logits(source)
    for largest in (MAX_WEIGHTS, 1001 * SIZES["hidden_size"]):  # one product, or parts with an odd number of rows
        monkeypatch.setattr(dequantized, "MAX_WEIGHTS", largest)
        assert write_dequantized(source, out)
        assert abs(logits(out, SESSION) - expected).max() < 1e-4 * abs(expected).max()


def test_nothing_to_do(tiny_onnx, tmp_path):
    assert not write_dequantized(tiny_onnx / "onnx" / model_file("fp32"), tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()
