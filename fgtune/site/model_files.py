"""A model's graphs, weights and small files, copied into a site."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

from ..core.errors import DeployError
from ..core.files import write_json
from ..export.layout import data_files, model_file
from ..models.prune import PruneError, prune_unused_merges
from .kernel_layout import kernel_layout

MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
               "special_tokens_map.json", "chat_template.jinja")  # fmt: skip


def copy_variant(model_dir: Path, site: Path, name: str) -> list[str]:
    """Copy a variant's graph and weights; returns their paths in the site."""
    (site / "model" / "onnx").mkdir(parents=True, exist_ok=True)
    graph = model_dir / "onnx" / model_file(name)
    paths = []
    for source in [graph, *data_files(graph)]:
        shutil.copyfile(source, site / "model" / "onnx" / source.name)
        paths.append(f"model/onnx/{source.name}")
    return paths


def write_layout(model_dir: Path, site: Path, name: str) -> str | None:
    """Write where the page's own kernels find a variant's weights; its path, None where they cannot run it."""
    try:
        layout = kernel_layout(model_dir, name)
    except DeployError:
        return None  # the page runs it on onnxruntime
    path = f"model/onnx/{Path(model_file(name)).stem}.kernels.json"
    (site / path).write_text(json.dumps(layout), encoding="utf-8")
    return path


def copy_model_files(model_dir: Path, site: Path, weights: dict[str, list[str]]) -> None:
    """Copy the small files; announce external data; put the chat template where transformers.js looks for it.

    `weights` are the paths that `copy_variant` gave for each variant.
    """
    target = site / "model"
    for name in MODEL_FILES:
        if (model_dir / name).exists():
            shutil.copyfile(model_dir / name, target / name)
    with contextlib.suppress(PruneError):  # a tokenizer of another kind travels as it is
        prune_unused_merges(target / "tokenizer.json")
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    options = config.get("transformers.js_config", {})
    outside = {Path(paths[0]).name: len(paths) - 1 for paths in weights.values() if len(paths) > 1}
    options.pop("use_external_data_format", None)
    if outside:
        options["use_external_data_format"] = outside
    config["transformers.js_config"] = options
    write_json(target / "config.json", config)
    tokenizer = json.loads((target / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = target / "chat_template.jinja"
    if not tokenizer.get("chat_template"):
        if not template.exists():
            raise DeployError(f"{model_dir} holds no chat template: neither in tokenizer_config.json nor as a file")
        tokenizer["chat_template"] = template.read_text(encoding="utf-8")
        write_json(target / "tokenizer_config.json", tokenizer)
