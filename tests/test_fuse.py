"""Fusing: the same logits as base + adapters, Hugging Face's names, nothing of LoRA left."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fgtune.core import blas
from fgtune.models.adapters import add_lora, load_model, save_adapters
from fgtune.models.base import resolve_base
from fgtune.models.fuse import FuseError, fuse

mx = blas.mlx()
IDS = [2, 400, 500, 600, 700, 106]


@pytest.fixture(scope="module")
def tiny():
    return resolve_base("tiny").path


def adapters(tiny, folder, kind, layers=-1, scale=4.0):
    """Adapters of `kind` with random values, saved; returns the logits of base + adapters."""
    from mlx.utils import tree_flatten, tree_unflatten

    model, _ = load_model(tiny)
    add_lora(model, 4, scale, 0.0, layers, kind)
    mx.random.seed(2)
    stirred = [(k, v + 0.05 * mx.random.normal(v.shape)) for k, v in tree_flatten(model.trainable_parameters())]
    model.update(tree_unflatten(stirred))
    save_adapters(model, folder)
    return np.array(model(mx.array([IDS])))


@pytest.mark.parametrize("kind, layers, merged", [("lora", -1, 42), ("lora", 2, 14), ("dora", -1, 42), ("full", 3, 39)])
def test_fused_model_says_the_same(tiny, tmp_path, kind, layers, merged):
    want = adapters(tiny, tmp_path / "adapters", kind, layers)
    report = fuse(tiny, tmp_path / "adapters", tmp_path / "fused")
    assert report.merged == merged and report.max_delta > 0.01 and report.left == () and report.dtype == "float32"
    base, fused = load_file(tiny / "model.safetensors"), load_file(tmp_path / "fused" / "model.safetensors")
    assert {k: v.shape for k, v in base.items()} == {k: v.shape for k, v in fused.items()}
    assert sum(not np.array_equal(base[k], fused[k]) for k in base) == merged
    assert report.tensors == len(fused) and report.parameters == sum(v.size for v in fused.values())
    model, _ = load_model(tmp_path / "fused")
    assert np.abs(np.array(model(mx.array([IDS]))) - want).max() < 1e-4 * np.abs(want).max()
    base_model, _ = load_model(tiny)
    assert np.abs(np.array(base_model(mx.array([IDS]))) - want).max() > 0.01  # the adapters did something


def test_transformers_reads_the_fused_model(tiny, tmp_path):
    import torch
    from transformers import AutoConfig, AutoTokenizer, Gemma3ForCausalLM

    want = adapters(tiny, tmp_path / "adapters", "lora")
    fuse(tiny, tmp_path / "adapters", tmp_path / "fused")
    config = AutoConfig.from_pretrained(tmp_path / "fused")
    assert config.model_type == "gemma3_text" and config.eos_token_id == [1, 50, 106]
    model = Gemma3ForCausalLM.from_pretrained(tmp_path / "fused").eval()
    with torch.no_grad():
        got = model(torch.tensor([IDS])).logits.numpy()
    assert np.abs(got - want).max() < 1e-3 * np.abs(want).max()
    a, b = (AutoTokenizer.from_pretrained(p) for p in (tiny, tmp_path / "fused"))
    assert a.encode("<start_function_call>call:x{}") == b.encode("<start_function_call>call:x{}")
    assert a.chat_template == b.chat_template
    for name in ("generation_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (tmp_path / "fused" / name).read_bytes() == (tiny / name).read_bytes()


def test_agrees_with_mlx_lms_own_fuse(tiny, tmp_path):
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.utils import load

    adapters(tiny, tmp_path / "adapters", "dora")
    fuse(tiny, tmp_path / "adapters", tmp_path / "fused")
    model, _ = load(str(tiny), adapter_path=str(tmp_path / "adapters"))
    model.update_modules(tree_unflatten([(n, m.fuse()) for n, m in model.named_modules() if hasattr(m, "fuse")]))
    theirs, ours = dict(tree_flatten(model.parameters())), load_file(tmp_path / "fused" / "model.safetensors")
    for name, value in ours.items():
        assert np.abs(np.array(theirs[name]) - value).max() < 1e-5, name


@pytest.mark.parametrize("dtype, size", [("bfloat16", 2), ("float16", 2)])
def test_other_dtypes(tiny, tmp_path, dtype, size):
    adapters(tiny, tmp_path / "adapters", "lora")
    report = fuse(tiny, tmp_path / "adapters", tmp_path / "fused", dtype)
    assert report.dtype == dtype and abs(report.bytes - size * report.parameters) < 20_000
    assert json.loads((tmp_path / "fused" / "config.json").read_text())["torch_dtype"] == dtype


def test_what_does_not_fit_is_refused(tiny, tmp_path):
    adapters(tiny, tmp_path / "a", "lora")
    with pytest.raises(FuseError, match="dtype"):
        fuse(tiny, tmp_path / "a", tmp_path / "x", "int8")
    with pytest.raises(FuseError, match=r"holds no model\*\.safetensors"):
        fuse(tmp_path / "a", tmp_path / "a", tmp_path / "x")
    good = load_file(tmp_path / "a" / "adapters.safetensors")

    def changed(name, weights, **settings):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "a", folder)
        save_file(weights, folder / "adapters.safetensors")
        config = json.loads((folder / "adapter_config.json").read_text()) | settings
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    first = next(k for k in good if k.endswith("lora_a"))
    cases = {
        "alien": ({**good, "model.layers.0.other": good[first]}, {}, "not understood"),
        "size": ({**good, first: good[first][:-1].copy()}, {}, "do not fit"),
        "kind": (good, {"fine_tune_type": "dora"}, "another kind"),
        "nan": ({**good, first: good[first] * np.nan}, {}, "not finite"),
        "full": (good, {"fine_tune_type": "full"}, "does not fit"),
        "empty": ({"nothing.lora_b": good[first]}, {}, "not understood"),
    }
    for name, (weights, settings, said) in cases.items():
        with pytest.raises(FuseError, match=said):
            fuse(tiny, changed(name, weights, **settings), tmp_path / "x")
    assert not (tmp_path / "x").exists()
