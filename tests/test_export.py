"""The ONNX export: right against transformers and MLX across the window, laid out as transformers.js reads it."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from fgtune.core.errors import ExportError
from fgtune.engines.ort import OrtError, OrtModel
from fgtune.export.layout import model_file, write_transformers_js_config
from fgtune.export.onnx import export_onnx
from fgtune.models.base import resolve_base
from fgtune.models.config_files import write_config
from fgtune.models.gemma3 import Gemma3Config, Rope, embedding_scale

WINDOW = 16
SIZES = {
    "vocab_size": 2048,
    "hidden_size": 96,
    "num_hidden_layers": 7,
    "intermediate_size": 160,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "sliding_window": WINDOW,
    "max_position_embeddings": 512,
}


def make_model(folder: Path, seed: int = 0, spread: float = 0.25, change=None, **sizes) -> Path:
    """A random gemma3_text model whose answers vary; `change(weights)` may alter the float32 arrays by name."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tiny = resolve_base("tiny").path
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        shutil.copyfile(tiny / name, folder / name)
    sizes = {**SIZES, **sizes}
    write_config(folder, **sizes)
    rng = np.random.default_rng(seed)
    hidden, inner, width = sizes["hidden_size"], sizes["intermediate_size"], sizes["head_dim"]
    shapes = {"model.embed_tokens": (sizes["vocab_size"], hidden)}
    norms = {"model.norm": hidden}
    for i in range(sizes["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.self_attn.q_proj": (sizes["num_attention_heads"] * width, hidden),
            f"{layer}.self_attn.k_proj": (sizes["num_key_value_heads"] * width, hidden),
            f"{layer}.self_attn.v_proj": (sizes["num_key_value_heads"] * width, hidden),
            f"{layer}.self_attn.o_proj": (hidden, sizes["num_attention_heads"] * width),
            f"{layer}.mlp.gate_proj": (inner, hidden),
            f"{layer}.mlp.up_proj": (inner, hidden),
            f"{layer}.mlp.down_proj": (hidden, inner),
        }
        norms |= {
            f"{layer}.{name}": hidden
            for name in (
                "input_layernorm",
                "post_attention_layernorm",
                "pre_feedforward_layernorm",
                "post_feedforward_layernorm",
            )
        }
        norms |= {f"{layer}.self_attn.{name}": width for name in ("q_norm", "k_norm")}
    weights = {f"{name}.weight": rng.normal(0, spread, shape).astype(np.float32) for name, shape in shapes.items()}
    weights |= {f"{name}.weight": rng.normal(0, 0.2, size).astype(np.float32) for name, size in norms.items()}
    for name in weights:
        if ".post_" in name:
            weights[name] += 5  # the layers outweigh the embedding, or a tied model only repeats its input
    if change:
        change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("fused") / "model")


@pytest.fixture(scope="module")
def exported(fused, tmp_path_factory):
    out = tmp_path_factory.mktemp("onnx") / "model"
    return out, export_onnx(fused, out, max_positions=128)


def random_ids(count: int, seed: int = 1) -> list[int]:
    return [2, *np.random.default_rng(seed).integers(110, 2048, count - 1).tolist()]


def run_in_steps(model: OrtModel, ids: list[int], cuts: list[int]) -> np.ndarray:
    past, found = model.empty(), []
    for begin, end in zip([0, *cuts], [*cuts, len(ids)]):
        logits, past = model.run(np.array([ids[begin:end]]), past, keep=0)
        found.append(logits[0])
    return np.concatenate(found)


@pytest.mark.parametrize("cuts", [[], [5], [WINDOW - 1], [WINDOW, WINDOW + 1], [30, 31, 32, 33, 50]])
def test_logits_are_those_of_mlx_with_and_without_a_past(fused, exported, cuts):
    from fgtune.evaluation.divergence import MlxLogits

    ids = random_ids(60)
    reference = MlxLogits(fused).logits(ids)
    ours = run_in_steps(OrtModel(exported[0] / "onnx" / "model.onnx"), ids, cuts)
    assert ours.shape == reference.shape == (60, 2048)
    np.testing.assert_allclose(ours, reference, atol=5e-3)
    assert (ours.argmax(-1) == reference.argmax(-1)).all()


@pytest.mark.parametrize("heads", [{}, {"num_attention_heads": 4, "num_key_value_heads": 2}])
def test_logits_are_those_of_transformers(fused, exported, tmp_path, heads):
    import torch
    from transformers import Gemma3ForCausalLM

    ids = random_ids(60)
    if heads:
        fused = make_model(tmp_path / "fused", **heads)
        exported = (tmp_path / "onnx", export_onnx(fused, tmp_path / "onnx", max_positions=128))
    model = Gemma3ForCausalLM.from_pretrained(fused, dtype=torch.float32).eval()
    model.model.embed_tokens.embed_scale.fill_(float(embedding_scale(96)))  # transformers rounds it only in bfloat16
    with torch.no_grad():
        reference = model(torch.tensor([ids])).logits[0].numpy()
    ours, _ = OrtModel(exported[0] / "onnx" / "model.onnx").run(np.array([ids]), _empty(exported), keep=0)
    np.testing.assert_allclose(ours[0], reference, atol=5e-3)


def _empty(exported):
    return OrtModel(exported[0] / "onnx" / "model.onnx").empty()


def test_the_multiplier_is_rounded_to_bfloat16():
    assert embedding_scale(640) == 25.25
    assert embedding_scale(96) != np.float32(96**0.5)


def test_num_logits_to_keep_cuts_from_the_end(exported):
    model, ids = OrtModel(exported[0] / "onnx" / "model.onnx"), np.array([random_ids(20)])
    every, _ = model.run(ids, model.empty(), keep=0)
    for keep in (1, 3):
        some, _ = model.run(ids, model.empty(), keep=keep)
        assert some.shape == (1, keep, 2048)
        np.testing.assert_allclose(some[0], every[0, -keep:], atol=1e-4)


@pytest.mark.parametrize("capacity", [0, 2, 8])  # none; used up on the way, and then the past grows; enough
def test_rows_of_different_length_decode_as_they_do_alone(exported, capacity):
    model = OrtModel(exported[0] / "onnx" / "model.onnx")
    rows = [random_ids(n, seed=n) for n in (9, 40, 23)]
    pasts = [model.run(np.array([row]), model.empty())[1] for row in rows]
    lengths = list(map(len, rows))
    state = model.stack(model.empty(), 3, max(lengths) + capacity)
    for k, row in enumerate(rows):
        model.run(np.array([row]), model.part(state, slice(k, k + 1)), [0])
    for step in range(4):
        tokens = [300 + step, 400 + step, 500 + step]
        before = state
        together, state = model.run(np.array(tokens)[:, None], state, lengths)
        assert (state is before) == (step < capacity), "a past with capacity is written in place"
        lengths = [length + 1 for length in lengths]
        for k, token in enumerate(tokens):
            alone, pasts[k] = model.run(np.array([[token]]), pasts[k])
            np.testing.assert_allclose(together[k], alone[0], atol=1e-3)


def test_a_position_beyond_max_positions_is_refused(exported):
    model = OrtModel(exported[0] / "onnx" / "model.onnx")
    model.run(np.array([random_ids(128)]), model.empty())
    with pytest.raises(OrtError, match="129 tokens do not fit"):
        model.run(np.array([random_ids(129)]), model.empty())


def test_a_killed_export_leaves_no_graph_that_lies(fused, tmp_path, monkeypatch):
    export_onnx(fused, tmp_path, max_positions=128)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "onnx").iterdir()}

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fgtune.export.writers.Float32Writer.head", killed)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(fused, tmp_path, max_positions=64)
    left = {path.name: path.read_bytes() for path in (tmp_path / "onnx").iterdir()}
    assert {name: left.get(name) for name in whole} == whole


def test_the_folder_is_laid_out_for_transformers_js(fused, exported):
    out, report = exported
    config = json.loads((out / "config.json").read_text())
    assert config["transformers.js_config"]["use_external_data_format"] == {"model.onnx": 1}
    assert config["eos_token_id"] == [1, 50, 106]
    assert config["max_position_embeddings"] == 128 == report.max_positions
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [1, 50, 106]
    template = (fused / "chat_template.jinja").read_text(encoding="utf-8")
    assert json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"] == template
    assert {path.name for path in out.iterdir()} == {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "chat_template.jinja", "onnx"}  # fmt: skip
    assert {path.name for path in (out / "onnx").iterdir()} == {"model.onnx", "model.onnx_data"}


def test_every_weight_is_stored_once_and_no_table_beside_them(fused, exported):
    from safetensors import safe_open

    with safe_open(str(fused / "model.safetensors"), framework="np") as file:
        count = sum(file.get_tensor(name).size for name in file.keys())
    out, report = exported
    tensors = onnx.load(out / "onnx" / "model.onnx", load_external_data=False).graph.initializer
    stored = sum(int(np.prod(tensor.dims)) for tensor in tensors)
    assert count <= stored < count * 1.01
    assert sum(2048 in tensor.dims for tensor in tensors) == 1
    files = [path.stat().st_size for path in (out / "onnx").iterdir()]
    assert report.bytes == sum(files)


def test_only_operators_of_the_browser_builds(exported):
    known = {"Cast", "Concat", "Cos", "Gather", "Gelu", "Gemm", "GroupQueryAttention", "MatMul", "Mul", "Neg",
             "ReduceSum", "Reshape", "Shape", "SimplifiedLayerNormalization", "Sin", "SkipSimplifiedLayerNormalization",
             "Slice", "Sub"}  # fmt: skip
    assert set(exported[1].ops) == known
    assert exported[1].ops["GroupQueryAttention"] == SIZES["num_hidden_layers"]


def test_export_is_silent_and_needs_no_network(fused, tmp_path, monkeypatch, capfd):
    def refuse(*_):
        raise AssertionError("the export went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    export_onnx(fused, tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_shards_and_bfloat16_give_the_same_graph_as_one_float32_file(fused, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    weights = {name: value.to(torch.bfloat16) for name, value in load_file(fused / "model.safetensors").items()}
    shutil.copytree(fused, tmp_path / "shards")
    (tmp_path / "shards" / "model.safetensors").unlink()
    names = sorted(weights)
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({name: weights[name] for name in part}, tmp_path / "shards" / f"model-{i}.safetensors")
    shutil.copytree(fused, tmp_path / "whole")
    save_file({name: value.to(torch.float32) for name, value in weights.items()}, tmp_path / "whole/model.safetensors")
    for name in ("shards", "whole"):
        export_onnx(tmp_path / name, tmp_path / f"{name}-onnx")
    assert (tmp_path / "shards-onnx/onnx/model.onnx_data").read_bytes() == (
        tmp_path / "whole-onnx/onnx/model.onnx_data"
    ).read_bytes()


def test_optimum_is_run_offline_and_its_failure_is_one_line(fused, tmp_path, monkeypatch):
    seen = {}

    def fail(command, env, **_):
        seen.update(command=command, env=env)
        return subprocess.CompletedProcess(command, 3, "", "Traceback\nValueError: no such thing\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(ExportError, match=r"optimum failed \(3\): ValueError: no such thing"):
        export_onnx(fused, tmp_path / "out", exporter="optimum")
    assert seen["env"]["HF_HUB_OFFLINE"] == "1"
    assert seen["command"][0] == sys.executable


def test_layers_and_rope_of_either_config_generation():
    sizes = {**SIZES, "rms_norm_eps": 1e-6}
    linear = {"rope_type": "linear", "factor": 8}
    old = {**sizes, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": linear,
           "sliding_window_pattern": 3}  # fmt: skip
    new = {**sizes, "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2 + ["sliding_attention"],
           "rope_parameters": {"full_attention": {**linear, "rope_theta": 1e6},
                               "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}  # fmt: skip
    config = Gemma3Config.from_dict(old)
    assert config == Gemma3Config.from_dict(new)
    assert config.kinds == ("local", "local", "global") * 2 + ("local",) and config.layers == 7
    assert [config.window(i) for i in range(3)] == [WINDOW, WINDOW, None]
    assert config.rope == {"global": Rope(1e6, "linear", 8.0), "local": Rope(1e4)}
    np.testing.assert_allclose(config.rope["global"].frequencies(4), [[1 / 8, 1e-3 / 8]], rtol=1e-6)
    assert config.attention_scale == 32**-0.5
    assert Gemma3Config.from_dict({**old, "query_pre_attn_scalar": 64}).attention_scale == 1 / 8
    yarn = Gemma3Config.from_dict({**old, "rope_scaling": {"rope_type": "yarn"}})  # MLX may run it
    with pytest.raises(ExportError, match="rope scaling 'yarn' is not exported"):
        yarn.rope["global"].frequencies(32)


def test_the_config_of_the_model_and_of_the_file_agree(fused):
    from fgtune.models.adapters import load_model

    config = json.loads((fused / "config.json").read_text())
    assert Gemma3Config.from_args(load_model(fused)[0].args) == Gemma3Config.from_dict(config)


def test_announce_names_what_is_there(exported, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(exported[0], out)
    for name in ("model_q4.onnx", "model_q4.onnx_data", "model_q4.onnx_data_1", "model_q4s.onnx"):
        (out / "onnx" / name).write_bytes(b"x")
    entry = write_transformers_js_config(out)
    assert entry["use_external_data_format"] == {"model.onnx": 1, "model_q4.onnx": 2}
    assert entry["device_config"] == {"wasm": {"dtype": "q4"}, "cpu": {"dtype": "q4"}}
    assert model_file("q4s") == "model_q4s.onnx"
    assert model_file("int8") == "model_int8.onnx"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "has no config.json"),
        (lambda d: _edit(d, model_type="llama"), "'llama' model"),
        (lambda d: _edit(d, tie_word_embeddings=False), "head of its own"),
        (lambda d: _edit(d, final_logit_softcapping=30.0), "final_logit_softcapping"),
        (
            lambda d: _edit(
                d, rope_parameters=None, rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling={"rope_type": "yarn"}
            ),
            "rope scaling 'yarn' is not exported",
        ),
        (lambda d: _edit(d, num_hidden_layers=8, layer_types=["sliding_attention"] * 8), r"no tensor 'model.layers.7"),
        (lambda d: (d / "model.safetensors").unlink(), "no .safetensors"),
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda d: _rename(d, "model.layers.0.self_attn.q_proj.lora_a"), "not fused"),
    ],
)
def test_what_cannot_be_exported_says_so_in_one_line(fused, tmp_path, change, message):
    folder = tmp_path / "bad"
    shutil.copytree(fused, folder)
    change(folder)
    with pytest.raises(ExportError, match=message) as caught:
        export_onnx(folder, tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "message"), [({"exporter": "onnx"}, "unknown exporter"), ({"max_positions": 0}, "at")]
)
def test_bad_arguments(fused, tmp_path, kind, message):
    with pytest.raises(ExportError, match=message):
        export_onnx(fused, tmp_path, **kind)


def _edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def _rename(folder: Path, name: str) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights[name] = weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors")
