"""Adapters merged into the base model: a plain transformers folder without a trace of LoRA."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.errors import FgtuneError
from ..core.files import write_json
from ..format.tokens import STOP_IDS

COPIED = ("*.json", "*.jinja", "tokenizer.model")
NOT_COPIED = ("model.safetensors.index.json", "adapter_config.json", ".sha256.json")


class FuseError(FgtuneError, ValueError):
    """The adapters cannot be merged into this base model."""


@dataclass(frozen=True)
class FuseReport:
    """`merged`: changed tensors; `max_delta`: largest change of a weight; `tensors`, `parameters`, `dtype` and `bytes`
    of the fused file; `left`: names that still look like adapters (must be empty)."""

    path: Path
    merged: int
    max_delta: float
    tensors: int
    parameters: int
    dtype: str
    bytes: int
    left: tuple[str, ...]


def fuse(base_dir: str | Path, adapter_dir: str | Path, out_dir: str | Path, dtype: str = "float32") -> FuseReport:
    """Write base + adapters as safetensors with Hugging Face's names to `out_dir`, in float32, float16 or bfloat16.

    Handles LoRA, DoRA and full fine-tuning as mlx-lm saves them. Raises FuseError.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    base_dir, adapter_dir, out_dir = Path(base_dir), Path(adapter_dir), Path(out_dir)
    wanted = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}.get(dtype)
    if wanted is None:
        raise FuseError(f"dtype is float32, float16 or bfloat16, not {dtype!r}")
    weights = _base_weights(base_dir)
    settings = json.loads((adapter_dir / "adapter_config.json").read_text(encoding="utf-8"))
    with safe_open(adapter_dir / "adapters.safetensors", "pt") as source:
        adapters = {name: source.get_tensor(name).float() for name in source.keys()}
    merged, max_delta = 0, 0.0
    for name, fused in merge(weights, adapters, settings):
        delta = float((fused - weights[name].float()).abs().max())
        if not np.isfinite(delta):
            raise FuseError(f"{name} is not finite after the merge: the training has diverged")
        max_delta, merged = max(max_delta, delta), merged + (delta > 0)
        weights[name] = fused
    _copy_other_files(base_dir, out_dir, dtype)
    weights = {name: value.to(wanted).contiguous() for name, value in weights.items()}
    path = out_dir / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    left = tuple(name for name in weights if "lora" in name or name.endswith(".m") or ".linear." in name)
    count = sum(w.numel() for w in weights.values())
    return FuseReport(out_dir, merged, max_delta, len(weights), count, dtype, path.stat().st_size, left)


def _base_weights(base_dir: Path) -> dict:
    """The base model's torch tensors by name, in the dtype of its files. Raises FuseError."""
    from safetensors import safe_open

    weights = {}
    for file in sorted(base_dir.glob("model*.safetensors")):
        with safe_open(file, "pt") as source:
            weights.update({name: source.get_tensor(name) for name in source.keys()})
    if not weights:
        raise FuseError(f"{base_dir} holds no model*.safetensors")
    if any(name.endswith((".scales", ".biases")) for name in weights):
        raise FuseError(f"{base_dir.name} is quantised: fuse into the float model it was made from")
    return weights


def _copy_other_files(base_dir: Path, out_dir: Path, dtype: str) -> None:
    """Copy the base model's tokenizer files, and its config with the new dtype and FunctionGemma's stop ids."""
    out_dir.mkdir(parents=True, exist_ok=True)
    for pattern in COPIED:
        for file in base_dir.glob(pattern):
            if file.name not in NOT_COPIED:
                shutil.copyfile(file, out_dir / file.name)
    config = json.loads((base_dir / "config.json").read_text(encoding="utf-8"))
    for key in ("quantization", "quantization_config", "dtype"):
        config.pop(key, None)
    write_json(out_dir / "config.json", {**config, "torch_dtype": dtype, "eos_token_id": STOP_IDS})


def merge(weights: dict, adapters: dict, settings: dict):
    """Yield (name, merged float32 tensor) for each weight that the adapters change; torch tensors by name.

    LoRA: `W + scale · (A B)ᵀ`. DoRA: that with each row scaled to the norm `m`. Full: the trained weight itself.
    The merge is our own since mlx-lm's `fuse()` rounds to float32 on the way. Here sums are taken in float64 and
    rounded once, so that every machine writes the same bits. Raises FuseError.
    """
    kind = settings.get("fine_tune_type", "lora")
    if kind == "full":
        for name, value in adapters.items():
            if name not in weights or weights[name].shape != value.shape:
                raise FuseError(f"{name} {tuple(value.shape)} does not fit the base model")
            yield name, value
        return
    scale = float(settings["lora_parameters"]["scale"])
    used = set()
    for key, a in adapters.items():
        if not key.endswith(".lora_a"):
            continue
        module = key.removesuffix(".lora_a")
        name, b, m = module + ".weight", adapters.get(module + ".lora_b"), adapters.get(module + ".m")
        if name not in weights or b is None or weights[name].shape != (b.shape[1], a.shape[0]):
            raise FuseError(f"the adapters of {module} do not fit the base model")
        if (kind == "dora") != (m is not None):
            raise FuseError(f"{module}: adapter_config.json says {kind}, the file holds another kind")
        merged = (weights[name].double() + scale * (b.double().T @ a.double().T)).float()
        if m is not None:
            merged = (m / merged.norm(dim=1))[:, None] * merged
        used |= {key, module + ".lora_b", module + ".m"}
        yield name, merged
    unknown = sorted(set(adapters) - used)
    if unknown:
        raise FuseError(f"adapter tensor {unknown[0]} is not understood")
    if not used:
        raise FuseError("the adapter file holds no adapters")
