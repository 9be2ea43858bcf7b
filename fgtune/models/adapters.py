"""Models as mlx-lm loads them, and their adapters in mlx-lm's file format."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path

from ..core import blas
from ..core.errors import TrainError
from ..core.folders import recover, rewritten_folder

FINE_TUNE_TYPES = ("lora", "dora", "full")


def load_model(path: str | Path, dtype: str | None = None, adapter_path: str | Path | None = None):
    """(model, tokenizer) of a folder, by mlx-lm; `dtype` defaults to float32 on CPU, bfloat16 on Metal and CUDA.

    Raises TrainError when the folder holds no `gemma3_text` model.
    """
    mx = blas.mlx()
    if not (Path(path) / "config.json").exists():
        raise TrainError(f"{path} holds no config.json: not a model folder")
    quiet = logging.getLogger("transformers")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            from mlx_lm.utils import load

            model, tokenizer = load(str(path), adapter_path=None if adapter_path is None else str(adapter_path))
    finally:
        quiet.setLevel(level)
    wanted = getattr(mx, dtype or ("bfloat16" if mx.default_device() == mx.gpu else "float32"))
    if getattr(model, "model_type", "") != "gemma3_text":
        raise TrainError(f"{Path(path).name} is a {model.model_type} model; this workbook trains gemma3_text")
    model.set_dtype(wanted)
    mx.eval(model.parameters())
    return model, tokenizer


def add_lora(
    model,
    rank: int = 8,
    scale: float = 20.0,
    dropout: float = 0.0,
    num_layers: int = -1,
    fine_tune_type: str = "lora",
    seed: int = 0,
) -> int:
    """Freeze the model and add adapters (`lora`, `dora`) to every linear layer of the last `num_layers` (-1: all), or
    unfreeze those layers (`full`). Returns the number of trainable parameters."""
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers

    mx = blas.mlx()
    total = len(model.layers)
    if fine_tune_type not in FINE_TUNE_TYPES:
        raise TrainError(f"fine_tune_type is one of {', '.join(FINE_TUNE_TYPES)}, not {fine_tune_type!r}")
    if num_layers == 0 or num_layers < -1 or num_layers > total:
        raise TrainError(f"num_layers is -1 (all) or 1 to {total}, not {num_layers}")
    if fine_tune_type != "full" and (rank < 1 or not 0 <= dropout < 1):
        raise TrainError(f"rank must be 1 or more and dropout in [0, 1), not {rank} and {dropout}")
    if any("lora_a" in name for name, _ in tree_flatten(model.parameters())):
        raise TrainError("the model has adapters already: load it again")
    mx.random.seed(seed)
    count = total if num_layers == -1 else num_layers
    model.freeze()
    parameters = {"rank": rank, "scale": scale, "dropout": dropout}
    if fine_tune_type == "full":
        for layer in model.layers[-count:]:
            layer.unfreeze()
    else:
        linear_to_lora_layers(model, count, parameters, use_dora=fine_tune_type == "dora")
        dtype = model.model.norm.weight.dtype
        model.apply(lambda p: p.astype(dtype) if mx.issubdtype(p.dtype, mx.floating) else p)
    model.adapter_settings = {
        "fine_tune_type": fine_tune_type,
        "num_layers": count,
        "lora_parameters": None if fine_tune_type == "full" else parameters,
    }
    trainable = tree_flatten(model.trainable_parameters())
    mx.eval([value for _, value in trainable])
    return sum(value.size for _, value in trainable)


def named_trainable_parameters(model) -> dict:
    """Trainable parameters (MLX arrays) by name, as `adapters.safetensors` holds them."""
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.trainable_parameters()))


def save_adapters(model, folder: str | Path, extra: dict | None = None) -> None:
    """Write `adapters.safetensors` and `adapter_config.json` as mlx-lm reads them; what was there is replaced whole.

    `extra` goes into the config beside `model.adapter_settings`.
    """
    mx = blas.mlx()
    with rewritten_folder(Path(folder)) as fresh:
        mx.save_safetensors(str(fresh / "adapters.safetensors"), named_trainable_parameters(model))
        config = {**(extra or {}), **model.adapter_settings}
        (fresh / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_adapters(model, folder: str | Path):
    """Put saved adapters into `model`, in evaluation mode; adds the adapter layers when it has none. Returns the model.

    Raises TrainError when the folder holds no adapters or they do not fit.
    """
    from mlx.utils import tree_flatten

    mx = blas.mlx()
    folder = recover(Path(folder))
    if not (folder / "adapters.safetensors").exists():
        raise TrainError(f"{folder} holds no adapters.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if not hasattr(model, "adapter_settings"):
        settings = dict(config.get("lora_parameters") or {})
        kind = config.get("fine_tune_type", "lora")
        add_lora(model, num_layers=config["num_layers"], fine_tune_type=kind, **settings)
    weights = mx.load(str(folder / "adapters.safetensors"))
    known = {name: value.shape for name, value in tree_flatten(model.parameters())}
    for name, value in weights.items():
        if known.get(name) != value.shape:
            raise TrainError(f"{folder.name}: {name} {value.shape} does not fit the model ({known.get(name)})")
    model.load_weights(list(weights.items()), strict=False)
    model.eval()
    mx.eval(model.parameters())
    return model
