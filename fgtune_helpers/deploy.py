"""The deployed page: build the folder, serve it on this machine, try it in a real browser."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import re
import shutil
import socketserver
import struct
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

from . import export
from .node import NodeProcess, ToolMissing, find_package
from .slim import SlimError, slim_tokenizer
from .stage import project_root
from .wide import SESSION, widen

PART = 4 * 1024 * 1024  # bytes per checked part of a download; the same number stands in web/store.js
HALF = ("fp16", "q4f16")  # 16-bit floats in and out: for WebGPU only
PROCESSOR_ONLY = ("int8",)  # its integer operators have no WebGPU version
SHELL = ("app.js", "calculator.js", "calls.js", "device.js", "engine.js", "functions.js", "grammar.js", "icon.svg",
         "index.html", "index.js", "schema.js", "store.js", "style.css", "worker.js")  # fmt: skip
MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
               "special_tokens_map.json", "chat_template.jinja")  # fmt: skip
READ_BY_PAGE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
ROUNDING_TOKENS = 32  # answers are compared that far when the prefix is rounded to 16 bits
RUNTIME = {"wasm": "ort-wasm-simd-threaded", "webgpu": "ort-wasm-simd-threaded.asyncify"}


class DeployError(RuntimeError):
    """The site cannot be built or tried; the message is one line."""


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


# ---------------------------------------------------------------- the folder


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
    from . import prompt

    model_dir, out_dir = Path(model_dir), Path(out_dir)
    names = [variants] if isinstance(variants, str) else list(dict.fromkeys(variants))
    _check_input(model_dir, names, out_dir)
    trigger = prompt.TRIGGER if trigger is None else trigger
    tools = prompt.normalize_tools(tools)
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
                report = bake_prefix(work / "model", name, tools, trigger, samples, work / f"prefix/{name}.safetensors",
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
        if name not in export.LOADING:
            raise DeployError(f"unknown variant {name!r}: one of {', '.join(export.LOADING)}")
        file = model_dir / "onnx" / export.model_file(name)
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
    graph = model_dir / "onnx" / export.model_file(name)
    paths = []
    for source in [graph, *export.data_files(graph)]:
        shutil.copyfile(source, work / "model" / "onnx" / source.name)
        paths.append(f"model/onnx/{source.name}")
    if name not in HALF:
        widen(graph, work / "model" / "onnx" / export.model_file(name, wide=True))
    return paths


def _copy_model_files(model_dir: Path, work: Path, weights: dict[str, list[str]]) -> None:
    """Copy the small files; announce external data; put the chat template where transformers.js looks for it."""
    target = work / "model"
    for name in MODEL_FILES:
        if (model_dir / name).exists():
            shutil.copyfile(model_dir / name, target / name)
    with contextlib.suppress(SlimError):  # a tokenizer of another kind travels as it is
        slim_tokenizer(target / "tokenizer.json")
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
    files, wide = common + weights, f"model/onnx/{export.model_file(name, wide=True)}"
    return {
        "devices": ["webgpu"] if name in HALF else ["wasm"] if name in PROCESSOR_ONLY else ["webgpu", "wasm"],
        "half": name in HALF,
        "load": dict(zip(("model_file_name", "dtype"), export.LOADING[name], strict=True)),
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
        "load": dict(zip(("model_file_name", "dtype"), export.loading(name, wide=True), strict=True)),
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


# ---------------------------------------------------------------- the prefix


def bake_prefix(
    model_dir, variant: str, tools: list[dict], trigger: str, samples: Sequence[str], path, weights: list[str]
) -> dict:
    """Write the keys and values of the developer turn (trigger and declarations) as safetensors; returns a summary.

    Stored as float16 when the answers to `samples` stay the same token for token, else as the graph has them.
    `weights` are the SHA-256 of the variant's files: with the token ids they make the hash that the page checks.
    """
    from . import ort

    generator = ort.OrtGenerator(model_dir, variant, max_tokens=ROUNDING_TOKENS)
    ids = prefix_ids(generator.encode, tools, trigger)
    if not ids:
        raise DeployError("two prompts share no tokens: nothing can be baked")
    model = generator.model
    _, past = model.run(np.array([ids]), model.empty())
    exact = [value.numpy() for value in past]
    with np.errstate(over="ignore"):
        arrays = [array.astype(np.float16) for array in exact]
    asked = [_question(text, tools, trigger) for text in list(samples)[:4] or ["a"]]
    if exact[0].dtype == np.float32 and not _same_answers(generator, asked, len(ids), arrays):
        arrays = exact
    hash = hashlib.sha256("\n".join([*weights, ",".join(map(str, ids))]).encode()).hexdigest()
    named = dict(zip(model.past_names, arrays, strict=True))
    _write_safetensors(Path(path), named, {"hash": hash, "ids": json.dumps(ids)})
    dtype = str(arrays[0].dtype)
    return {"path": f"prefix/{Path(path).name}", "tokens": len(ids), "dtype": dtype, "bytes": Path(path).stat().st_size}


def prefix_ids(encode, tools: list[dict], trigger: str) -> list[int]:
    """The token ids that every question about `tools` begins with (as web/engine.js finds them)."""
    a, b = (encode(_question(text, tools, trigger)) for text in ("a", "7"))
    count = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return list(a[:count])


def _question(query: str, tools: list[dict], trigger: str) -> str:
    from . import prompt

    messages = [{"role": "developer", "content": trigger}, {"role": "user", "content": query}]
    return prompt.render(messages, tools, add_generation_prompt=True)


def _same_answers(generator, prompts: list[str], count: int, rounded: list[np.ndarray]) -> bool:
    """Whether greedy answers stay the same token for token when the first `count` positions are the rounded ones."""
    if not all(np.isfinite(array).all() for array in rounded):
        return False
    model = generator.model
    for prompt, made in zip(prompts, generator.generate_ids(prompts), strict=True):
        own = generator.encode(prompt)[count:]
        past = [model._value(array.astype(model.past_dtype)) for array in rounded]
        logits, _ = model.run(np.array([own + made]), past, keep=0)
        chosen = logits[0, len(own) - 1 :].argmax(-1).tolist()  # what is chosen after the prompt and each answer token
        if chosen[: len(made)] != made:
            return False
        if len(made) < generator.max_tokens and chosen[-1] not in generator.stop_ids:
            return False
    return True


def _write_safetensors(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write arrays one after the other; the header is padded so that the data starts at a multiple of 8 bytes."""
    header, offset = {"__metadata__": metadata}, 0
    for name, array in arrays.items():
        kind = {"float16": "F16", "float32": "F32"}[str(array.dtype)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())


# ---------------------------------------------------------------- serving on this machine

MIME = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
    "style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class SiteHandler(http.server.BaseHTTPRequestHandler):
    """Files below one folder, read only: no listing, nothing outside it, ranges, and the headers threads need."""

    root: Path
    isolated = True
    quiet = True
    protocol_version = "HTTP/1.1"
    server_version = "fgtune"
    sys_version = ""

    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        if host not in ("127.0.0.1", "localhost", "[::1]"):
            return self._refuse(403)  # another name that points here: not ours to answer
        file = self.locate()
        if file is None:
            return self._refuse(404)
        size = file.stat().st_size
        try:
            start, stop = byte_range(self.headers.get("Range"), size)
        except ValueError:
            return self._refuse(416, {"Content-Range": f"bytes */{size}"})
        partial = (start, stop) != (0, size) or bool(self.headers.get("Range"))
        self.send_response(206 if partial else 200)
        self.send_header("Content-Type", MIME.get(file.suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Cache-Control", "no-cache")
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if body:
            self.send_file(file, start, stop)

    def send_file(self, file: Path, start: int, stop: int) -> None:
        """Send the bytes `start` to `stop` (exclusive) of a file."""
        try:
            with open(file, "rb") as stream:
                stream.seek(start)
                left = stop - start
                while left and (block := stream.read(min(left, 1 << 18))):
                    self.wfile.write(block)
                    left -= len(block)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the page paused or was closed

    def locate(self) -> Path | None:
        """The file that a request means, or None."""
        path = unquote(urlsplit(self.path).path)
        if "\0" in path or "\\" in path:
            return None
        parts = [part for part in path.split("/") if part]
        if any(part.startswith(".") for part in parts):
            return None  # '..' and hidden files alike
        root = self.root.resolve()
        file = root.joinpath(*parts).resolve()
        if file.is_dir():
            file = file / "index.html"
        return file if file.is_file() and file.is_relative_to(root) else None

    def _refuse(self, status: int, headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def end_headers(self):
        if self.isolated:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        super().end_headers()

    def log_message(self, format, *args):
        if not self.quiet:
            sys.stderr.write(f"{self.address_string()} {format % args}\n")


def byte_range(header: str | None, size: int) -> tuple[int, int]:
    """`(start, stop)` of a Range header with one range; the whole file without one. Raises ValueError when outside."""
    if not header:
        return 0, size
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if not found or found[0] == "bytes=-":
        return 0, size  # several ranges, or another unit: the whole file is a valid answer
    first, last = found.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(int(last) + 1 if last else size, size)
    if start >= size or start >= stop:
        raise ValueError(header)
    return start, stop


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    def server_bind(self):
        socketserver.TCPServer.server_bind(self)  # without the name look-up of HTTPServer
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]


def make_server(site_dir, port: int = 0, isolated: bool = True, quiet: bool = True, handler=SiteHandler):
    """A server of `site_dir` on 127.0.0.1 (port 0: any free one). Raises DeployError."""
    root = Path(site_dir)
    if not (root / "index.html").exists():
        raise DeployError(f"{root} holds no index.html: build a site there first")
    bound = type("BoundHandler", (handler,), {"root": root, "isolated": isolated, "quiet": quiet})
    try:
        return _Server(("127.0.0.1", port), bound)
    except OSError as error:
        raise DeployError(f"port {port} cannot be used: {error.strerror or error}") from None


@contextlib.contextmanager
def serving(site_dir, isolated: bool = True, handler=SiteHandler):
    """`with serving(folder) as url:` serves in a thread, on loopback, until the block ends."""
    server = make_server(site_dir, isolated=isolated, handler=handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def serve(site_dir, port: int = 8000, isolated: bool = True) -> None:
    """Preview a site until Ctrl-C, on this machine only."""
    server = make_server(site_dir, port, isolated, quiet=False)
    print(f"http://127.0.0.1:{server.server_port}/  (this machine only; Ctrl-C ends)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


# ---------------------------------------------------------------- a real browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge", "brave-browser")
MAC_BROWSERS = tuple(
    f"{home}/Applications/{name}.app/Contents/MacOS/{name}"
    for name in ("Google Chrome", "Chromium", "Microsoft Edge", "Brave Browser")
    for home in ("", str(Path.home()))
)


def find_chromium() -> str:
    """Path of a Chromium-based browser: FGTUNE_CHROMIUM, then PATH, then macOS's applications. Raises ToolMissing."""
    how = "install Chromium or Chrome, or set FGTUNE_CHROMIUM to its program"
    if wanted := os.environ.get("FGTUNE_CHROMIUM"):
        program = shutil.which(wanted)
        if not program:
            raise ToolMissing(f"FGTUNE_CHROMIUM is {wanted!r}, which is no program here: {how}")
        return program
    found = next((shutil.which(name) for name in (*BROWSERS, *MAC_BROWSERS) if shutil.which(name)), None)
    if not found:
        raise ToolMissing(f"no Chromium-based browser on this machine: {how}")
    return found


def browser_job(scenario: str = "ask", **options) -> dict:
    """What web/node/browser.mjs needs to know to run one scenario."""
    find_package("playwright-core")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    args = ["--no-sandbox"] if root or os.environ.get("FGTUNE_NO_SANDBOX") else []
    return {"scenario": scenario, "executable": find_chromium(), "args": args, **options}


def run_browser(job: dict, script: Path | None = None) -> list[dict]:
    """Run a scenario; returns its answers, one dict a line. Raises NodeError with the browser's words."""
    with NodeProcess(script or project_root() / "web" / "node" / "browser.mjs") as process:
        return list(process.ask(job, last=lambda answer: answer.get("done", False)))


def try_in_browser(
    site_dir,
    cases: Sequence,
    device: str = "wasm",
    isolated: bool = True,
    variant: str = "auto",
    threads: int = 0,
    use_prefix: bool = True,
    memory: str = "auto",
    run_tools: bool = False,
    constrained: bool | str | None = None,
    screenshots=None,
    timeout: float = 600,
) -> list[dict]:
    """Serve the site on loopback, ask the cases in headless Chromium through the page itself, as a person would.

    `cases` are texts or rows with `userQuery`. Returns per case `{query, text, ids, calls, error, problems, seconds,
    ttft, tokens_per_second, new_tokens, prompt_tokens, reused_tokens, grammar_ms (per token, where held to it),
    answer}`; the first also carries `page` (device, variant, why, load seconds, memory) and `screenshots` (paths, when
    a folder is given). Without `isolated` the headers are left out and the service worker is blocked: one thread. With
    `memory` "small" the weights stay packed. `constrained` (True, False, "call") chooses in place of the site.
    `timeout` is seconds for each step.
    """
    queries = [_query(case) for case in cases]
    if not queries or not all(queries):
        raise DeployError("no case to ask, or one without a text")
    folder = Path(screenshots).resolve() if screenshots else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    with serving(site_dir, isolated=isolated) as url:
        job = browser_job(
            "ask", url=url, queries=queries, device=device, variant=variant, threads=threads, usePrefix=use_prefix,
            memory=memory, runTools=run_tools, constrained=constrained, screenshots=str(folder) if folder else None,
            serviceWorkers="allow" if isolated else "block", timeout=timeout * 1000,
        )  # fmt: skip
        answers = run_browser(job)
    results = [answer for answer in answers if "query" in answer]
    final = answers[-1]
    if len(results) != len(queries):
        raise DeployError(f"{len(results)} of {len(queries)} cases were answered")
    results[0] |= {"page": final["page"], "screenshots": final["screenshots"]}
    return results
