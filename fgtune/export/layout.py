"""Names and files of an exported folder, as transformers.js reads it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import ExportError
from ..core.files import write_json


@dataclass(frozen=True)
class Variant:
    """One ONNX variant: what its file is called, what its floats are, and where the page may run it.

    `file` and `dtype` are what transformers.js takes as `model_file_name` and `dtype`; the two make the file's name.
    `half` says that inputs and outputs are 16-bit floats. `devices` are execution providers of onnxruntime-web.
    """

    file: str
    dtype: str
    half: bool = False
    devices: tuple[str, ...] = ("webgpu", "wasm")


#: Every variant of a model, fp32 first.
VARIANTS = {
    "fp32": Variant("model", "fp32"),
    "fp16": Variant("model", "fp16", half=True, devices=("webgpu",)),
    "int8": Variant("model", "int8", devices=("wasm",)),  # its integer operators have no WebGPU version
    "q4": Variant("model", "q4"),
    "q4f16": Variant("model", "q4f16", half=True, devices=("webgpu",)),
    "q4s": Variant("model_q4s", "fp32"),  # transformers.js has no dtype of that name: the file is named whole
}
#: What transformers.js should load where nothing is said (device -> dtype).
DEVICE_DTYPES = {"wasm": "q4", "webgpu": "q4f16", "cpu": "q4"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def loading(variant: str) -> dict[str, str]:
    """`{"model_file_name", "dtype"}` as transformers.js takes them. Raises ExportError for an unknown variant."""
    if variant not in VARIANTS:
        raise ExportError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    found = VARIANTS[variant]
    return {"model_file_name": found.file, "dtype": found.dtype}


def model_file(variant: str) -> str:
    """`q4` -> `model_q4.onnx`, the name that transformers.js asks for. Raises ExportError for an unknown variant."""
    name, dtype = loading(variant).values()
    return f"{name}.onnx" if dtype == "fp32" else f"{name}_{dtype}.onnx"


def read_config(folder: Path) -> dict:
    """`config.json` of a gemma3_text model. Raises ExportError when it is none, or has what the writer does not do."""
    path = folder / "config.json"
    if not path.exists():
        raise ExportError(f"{folder} has no config.json")
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("model_type") != "gemma3_text":
        raise ExportError(f"{path} is a {config.get('model_type')!r} model, not 'gemma3_text'")
    if config.get("tie_word_embeddings") is False:
        raise ExportError(f"{path} has a head of its own; only tied embeddings are exported")
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention", "attention_bias"):
        if config.get(key):
            raise ExportError(f"{path} sets {key}, which is not exported")
    return config


def write_side_files(fused: Path, out: Path, positions: int) -> None:
    """Copy the tokenizer, put the chat template into its config, and write both config files."""
    missing = [name for name in ("tokenizer.json", "tokenizer_config.json") if not (fused / name).exists()]
    if missing:
        raise ExportError(f"{fused} has no {missing[0]}")
    for name in TOKENIZER_FILES:
        if (fused / name).exists() and fused.resolve() != out.resolve():
            shutil.copyfile(fused / name, out / name)
    settings = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = out / "chat_template.jinja"
    if template.exists():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    elif "chat_template" in settings:
        template.write_text(settings["chat_template"], encoding="utf-8")
    else:
        raise ExportError(f"{fused} has no chat template")
    write_json(out / "tokenizer_config.json", settings)
    config = json.loads((fused / "config.json").read_text(encoding="utf-8"))
    generation = fused / "generation_config.json"
    given = json.loads(generation.read_text(encoding="utf-8")) if generation.exists() else {}
    ids = {key: given.get(key, config.get(key)) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config["max_position_embeddings"] = positions
    config.pop("transformers.js_config", None)
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", {"do_sample": False, **given, **ids})


def write_transformers_js_config(out: Path) -> dict:
    """Name every variant's data files in `config.json`, with a dtype for each device; returns that entry.

    A file that is not announced loads in Node and fails in a browser.
    """
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    external, there = {}, set()
    for name, variant in VARIANTS.items():
        file = out / "onnx" / model_file(name)
        if file.exists():
            there.add(variant.dtype if variant.file == "model" else name)
        if data_files(file):
            external[file.name] = len(data_files(file))
    entry: dict = {"use_external_data_format": external}
    devices = {device: {"dtype": dtype} for device, dtype in DEVICE_DTYPES.items() if dtype in there}
    if devices:
        entry["device_config"] = devices
    config["transformers.js_config"] = entry
    write_json(out / "config.json", config)
    return entry


def data_files(model: Path) -> list[Path]:
    """The external data of an .onnx file, in order."""
    return sorted(model.parent.glob(model.name + "_data*"), key=lambda path: (len(path.name), path.name))


def variant_bytes(out: Path, variant: str) -> int:
    """Bytes of a variant's .onnx file with its data."""
    file = out / "onnx" / model_file(variant)
    return sum(path.stat().st_size for path in (file, *data_files(file)))


def op_counts(model: Path) -> dict[str, int]:
    """How often each operator occurs in an .onnx file, most frequent first."""
    import onnx

    nodes = onnx.load(str(model), load_external_data=False).graph.node
    return dict(Counter(node.op_type for node in nodes).most_common())


def copy_side_files(source: Path, out: Path) -> None:
    """Config, generation config and tokenizer files from one folder to another."""
    (out / "onnx").mkdir(parents=True, exist_ok=True)
    for name in (*TOKENIZER_FILES, "config.json", "generation_config.json"):
        if (source / name).exists():
            shutil.copyfile(source / name, out / name)
