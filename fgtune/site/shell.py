"""The page's own files and its runtime, copied into a site."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..core.errors import DeployError
from ..core.project import project_root
from ..runtimes.node import find_package

SHELL = ("app.js", "calculator.js", "calls.js", "decoding.js", "device.js", "dialogue.js", "disk.js", "drafts.js",
         "engine.js", "functions.js", "grammar.js", "icon.svg", "index.html", "index.js", "load.js", "native.js",
         "prompt_cache.js", "schema.js", "scripts.js", "store.js", "style.css", "turn.js", "words.js",
         "worker.js")  # fmt: skip
KERNELS = ("decoder.js", "helper.js")
#: Packages beside the kernels: tokens and prompts. Each with its file, and the name that this has in a site.
PACKAGES = {"tokenizers": ("tokenizers.min.mjs", "tokenizers.min.js"), "jinja": ("index.js", "jinja.js")}
RUNTIME = {"wasm": "ort-wasm-simd-threaded", "webgpu": "ort-wasm-simd-threaded.asyncify"}


def copy_page(site: Path, functions_file=None) -> None:
    """Copy the page and its service worker; `functions_file` takes the place of `functions.js`."""
    web = project_root() / "web"
    for name in (*SHELL, "sw.js"):
        shutil.copyfile(web / name, site / name)
    if functions_file is not None:
        shutil.copyfile(functions_file, site / "functions.js")


def copy_kernels(site: Path) -> dict:
    """Copy our own kernels, and tokenizer and templates for them with their licences; the paths for `site.json`."""
    web = project_root() / "web" / "kernels"
    (site / "kernels").mkdir()
    (site / "runtime").mkdir(exist_ok=True)
    found: dict = {"wasm": {}}
    for name in KERNELS:
        shutil.copyfile(web / name, site / "kernels" / name)
    for threads in ("threads", "single"):
        found["wasm"][threads] = {}
        for kind in ("relaxed", "simd"):
            path = f"kernels/{threads}.{kind}.wasm"
            shutil.copyfile(web.parent / path, site / path)
            found["wasm"][threads][kind] = path
    for name, (file, copy) in PACKAGES.items():
        package = find_package(f"@huggingface/{name}")
        found[name] = f"runtime/{copy}"
        shutil.copyfile(package / "dist" / file, site / found[name])
        shutil.copyfile(package / "LICENSE", site / f"runtime/LICENSE-{name}.txt")
    return found


def copy_runtime(site: Path) -> dict:
    """Copy transformers.js and onnxruntime-web with their licences; returns the paths for `site.json`."""
    transformers, ort = find_package("@huggingface/transformers"), find_package("onnxruntime-web")
    target = site / "runtime"
    target.mkdir(exist_ok=True)
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
            # Some hosts serve .mjs with a type that browsers refuse to run: it travels as .js.
            path = f"runtime/{file.stem}.js" if kind == "mjs" else f"runtime/{file.name}"
            shutil.copyfile(file, site / path)
            runtime[device][kind] = path
    return runtime


ORT_LICENSE = """onnxruntime-web (the ort-wasm files in this folder, and a part of transformers.min.js)

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
