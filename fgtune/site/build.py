"""The deployed page: build the folder, serve it on this machine, try it in a real browser."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..core.errors import DeployError
from ..core.project import project_root
from ..export.dequantized import SESSION, write_dequantized
from ..export.layout import LOADING, data_files, loading, model_file
from ..models.prune import PruneError, prune_unused_merges
from ..runtimes.node import find_package
from .prefix import precompute_prompt_cache

PART = 4 * 1024 * 1024  # bytes per checked part of a download; the same number stands in web/store.js


HALF = ("fp16", "q4f16")  # 16-bit floats in and out: for WebGPU only


PROCESSOR_ONLY = ("int8",)  # its integer operators have no WebGPU version


SHELL = ("app.js", "calculator.js", "calls.js", "device.js", "engine.js", "functions.js", "grammar.js", "icon.svg",
         "index.html", "index.js", "schema.js", "store.js", "style.css", "worker.js")  # fmt: skip


MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
               "special_tokens_map.json", "chat_template.jinja")  # fmt: skip


READ_BY_PAGE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


RUNTIME = {"wasm": "ort-wasm-simd-threaded", "webgpu": "ort-wasm-simd-threaded.asyncify"}


@dataclass(frozen=True)
class SiteReport:
    """A built site: `path`, `hash` (over model and tools), `bytes` of the whole folder, and per variant what a visitor
    downloads (`variants[name]`: bytes, files, prefix tokens, dtype and bytes)."""

    path: Path
    hash: str
    bytes: int
    files: int
    variants: dict

    def as_dict(self) -> dict:
        """Plain values for a manifest."""
        return asdict(self) | {"path": self.path.name}


def build_site(
    model_dir,
    variants: str | Sequence[str],
    tools: list[dict],
    out_dir,
    examples: Iterable = (),
    prefix: bool = True,
    title: str | None = None,
    trigger: str | None = None,
    max_tokens: int = 256,
    functions_file=None,
    constrained: bool = False,
    copied: Iterable[str] = (),
) -> SiteReport:
    """Write the static site: page, runtime, model, tools. Replaces `out_dir`. Raises DeployError, ToolMissing.

    `model_dir` is in the transformers.js layout; `examples` are sample requests (texts, or rows with `userQuery`);
    with `prefix` the keys and values of the tool declarations are computed for each variant and shipped;
    `functions_file` is a JavaScript module that exports `functions` (tool name -> function) in place of the default;
    with `constrained` the page holds answers to the grammar unless told otherwise, `copied` as in `grammar.py`.
    """
    from ..format.template import TRIGGER
    from ..format.tools import for_template, normalize_tools

    model_dir, out_dir = Path(model_dir), Path(out_dir)
    names = [variants] if isinstance(variants, str) else list(dict.fromkeys(variants))
    _check_input(model_dir, names, out_dir)
    trigger = TRIGGER if trigger is None else trigger
    tools = for_template(normalize_tools(tools))
    samples = [text for text in (_query(example) for example in examples) if text][:8]
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=out_dir.name + ".", dir=out_dir.parent))
    try:
        _copy_page(work, functions_file)
        runtime = _copy_runtime(work)
        weights = {name: _copy_variant(model_dir, work, name) for name in names}
        _copy_model_files(model_dir, work, weights)
        entries = {path: _file_entry(work, path) for path in _paths(work) if _downloaded(path)}
        prefixes = dict.fromkeys(names)
        if prefix:
            (work / "prefix").mkdir()
            for name in names:
                report = precompute_prompt_cache(work / "model", name, tools, trigger, samples, work / f"prefix/{name}.safetensors",
                                     [entries[path]["sha256"] for path in weights[name]])  # fmt: skip
                prefixes[name] = report
                entries[report["path"]] = _file_entry(work, report["path"])
        site = {
            "format": 1,
            "title": title,
            "hash": "",
            "trigger": trigger,
            "max_tokens": max_tokens,
            "constrained": constrained,
            "copied": list(copied),
            "model": "model",
            "samples": samples,
            "runtime": runtime,
            "variants": {name: _variant(name, weights[name], prefixes[name], entries) for name in names},
            "shell": sorted(path for path in _paths(work) if not _downloaded(path)),
            "files": sorted(entries.values(), key=lambda entry: entry["path"]),
            "tools": tools,
        }
        model = [[entry["path"], entry["sha256"]] for entry in site["files"] if entry["path"].startswith("model/")]
        site["hash"] = hashlib.sha256(json.dumps([model, tools, trigger]).encode()).hexdigest()
        _write_json(work / "tools.json", tools)
        _write_json(work / "site.json", site)
        _swap(work, out_dir)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    sizes = [path.stat().st_size for path in out_dir.rglob("*") if path.is_file()]
    shown = {
        name: {key: value for key, value in variant.items() if key not in ("files", "weights", "load", "wide")}
        | {"files": len(variant["files"])}
        for name, variant in site["variants"].items()
    }
    return SiteReport(out_dir, site["hash"], sum(sizes), len(sizes), shown)


def _check_input(model_dir: Path, names: list[str], out_dir: Path) -> None:
    if not names:
        raise DeployError("no variant to deploy")
    for name in names:
        if name not in LOADING:
            raise DeployError(f"unknown variant {name!r}: one of {', '.join(LOADING)}")
        file = model_dir / "onnx" / model_file(name)
        if not file.exists():
            raise DeployError(f"{file} does not exist: export or quantise the variant {name!r} first")
    for name in READ_BY_PAGE:
        if not (model_dir / name).exists():
            raise DeployError(f"{model_dir} holds no {name}")
    if out_dir.exists() and any(out_dir.iterdir()) and not (out_dir / "site.json").exists():
        raise DeployError(f"{out_dir} exists and is no site: it is not overwritten")
    if out_dir.resolve() in [model_dir.resolve(), *model_dir.resolve().parents]:
        raise DeployError(f"{out_dir} holds the model itself: choose another folder")


def _query(example) -> str:
    text = example if isinstance(example, str) else example.get("userQuery", "")
    return text.strip()


def _copy_page(work: Path, functions_file) -> None:
    web = project_root() / "web"
    for name in (*SHELL, "sw.js"):
        shutil.copyfile(web / name, work / name)
    if functions_file is not None:
        shutil.copyfile(functions_file, work / "functions.js")


def _copy_runtime(work: Path) -> dict:
    """Copy transformers.js and onnxruntime-web with their licences; returns the paths for `site.json`."""
    transformers, ort = find_package("@huggingface/transformers"), find_package("onnxruntime-web")
    target = work / "runtime"
    target.mkdir()
    # This build carries everything it imports; transformers.web.js would need an import map, which workers lack.
    shutil.copyfile(transformers / "dist" / "transformers.min.js", target / "transformers.min.js")
    shutil.copyfile(transformers / "LICENSE", target / "LICENSE-transformers.js.txt")
    (target / "LICENSE-onnxruntime.txt").write_text(ORT_LICENSE, encoding="utf-8")
    runtime = {"module": "runtime/transformers.min.js"}
    for device, name in RUNTIME.items():
        runtime[device] = {}
        for kind in ("mjs", "wasm"):
            file = ort / "dist" / f"{name}.{kind}"
            if not file.exists():
                raise DeployError(f"onnxruntime-web holds no {file.name}: run 'npm ci' in the project's root")
            shutil.copyfile(file, target / file.name)
            runtime[device][kind] = f"runtime/{file.name}"
    return runtime


def _copy_variant(model_dir: Path, work: Path, name: str) -> list[str]:
    """Copy a variant's graph and weights, add its wide graph; returns the paths of the first two in the site."""
    (work / "model" / "onnx").mkdir(parents=True, exist_ok=True)
    graph = model_dir / "onnx" / model_file(name)
    paths = []
    for source in [graph, *data_files(graph)]:
        shutil.copyfile(source, work / "model" / "onnx" / source.name)
        paths.append(f"model/onnx/{source.name}")
    if name not in HALF:
        write_dequantized(graph, work / "model" / "onnx" / model_file(name, wide=True))
    return paths


def _copy_model_files(model_dir: Path, work: Path, weights: dict[str, list[str]]) -> None:
    """Copy the small files; write_transformers_js_config external data; put the chat template where transformers.js looks for it."""
    target = work / "model"
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
    _write_json(target / "config.json", config)
    tokenizer = json.loads((target / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = target / "chat_template.jinja"
    if not tokenizer.get("chat_template"):
        if not template.exists():
            raise DeployError(f"{model_dir} holds no chat template: neither in tokenizer_config.json nor as a file")
        tokenizer["chat_template"] = template.read_text(encoding="utf-8")
        _write_json(target / "tokenizer_config.json", tokenizer)


def _variant(name: str, weights: list[str], prefix: dict | None, entries: dict) -> dict:
    common = [f"model/{file}" for file in READ_BY_PAGE]
    files, wide = common + weights, f"model/onnx/{model_file(name, wide=True)}"
    return {
        "devices": ["webgpu"] if name in HALF else ["wasm"] if name in PROCESSOR_ONLY else ["webgpu", "wasm"],
        "half": name in HALF,
        "load": dict(zip(("model_file_name", "dtype"), LOADING[name], strict=True)),
        "bytes": sum(entries[path]["bytes"] for path in files) + (prefix["bytes"] if prefix else 0),
        "files": files,
        "weights": weights,
        "wide": _wide(name, [*common, wide, *weights[1:]]) if wide in entries else None,
        "prefix": prefix["path"] if prefix else None,
        "prefix_tokens": prefix["tokens"] if prefix else 0,
        "prefix_dtype": prefix["dtype"] if prefix else None,
        "prefix_bytes": prefix["bytes"] if prefix else 0,
    }


def _wide(name: str, files: list[str]) -> dict:
    """How the page loads the graph of `wide.py`, which shares the data files of the variant."""
    data = [Path(path).name for path in files if path.startswith("model/onnx/")][1:]
    return {
        "load": dict(zip(("model_file_name", "dtype"), loading(name, wide=True), strict=True)),
        "files": files,
        "session": {
            "extra": {"session": {key.removeprefix("session."): value for key, value in SESSION.items()}},
            "externalData": [{"path": name, "data": f"onnx/{name}"} for name in data],
        },
    }


def _downloaded(path: str) -> bool:
    """Whether the page brings this file itself, in checked parts; the rest is the shell."""
    if path.startswith("model/"):
        return path.removeprefix("model/") in READ_BY_PAGE or path.startswith("model/onnx/")
    return path.startswith("prefix/") or path.endswith(".wasm")


def _paths(folder: Path) -> list[str]:
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if path not in ("sw.js", "site.json", "tools.json") and not _idle(path)]


def _idle(path: str) -> bool:
    """Files that belong to the layout but that no page asks for."""
    return path.startswith("runtime/LICENSE") or path in ("model/special_tokens_map.json", "model/chat_template.jinja")


def _file_entry(folder: Path, path: str) -> dict:
    """`{path, bytes, sha256, parts}`: one SHA-256 for the file and one for each part of it."""
    whole, parts, size = hashlib.sha256(), [], 0
    with open(folder / path, "rb") as file:
        while block := file.read(PART):
            whole.update(block)
            parts.append(hashlib.sha256(block).hexdigest())
            size += len(block)
    return {"path": path, "bytes": size, "sha256": whole.hexdigest(), "parts": parts}


def _swap(work: Path, out_dir: Path) -> None:
    work.chmod(0o755)
    if out_dir.exists():
        old = Path(tempfile.mkdtemp(prefix=out_dir.name + ".old.", dir=out_dir.parent))
        out_dir.rename(old / "site")
        work.rename(out_dir)
        shutil.rmtree(old)
    else:
        work.rename(out_dir)


def _write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


ORT_LICENSE = """onnxruntime-web (the .mjs and .wasm files in this folder, and a part of transformers.min.js)

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
