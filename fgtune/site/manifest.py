"""`site.json`: what a site holds, and how the page checks and loads it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ..core.errors import DeployError
from ..export.layout import VARIANTS, loading
from ..models.vocabulary import SCRIPTS_KEY

SITE_FORMAT = 4  # of site.json; the same number stands in web/store.js
PART = 4 * 1024 * 1024  # bytes per checked part of a download; the same number stands in web/store.js
#: The files of the layout that the page reads on transformers.js, and on its own kernels.
READ_BY_PAGE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
READ_BY_KERNELS = ("tokenizer.json", "tokenizer_config.json")
#: Files that belong to the layout but that no page asks for.
NOT_READ = ("model/special_tokens_map.json", "model/chat_template.jinja")


def read_manifest(site_dir: str | Path) -> dict:
    """`site.json` of a built site. Raises DeployError for a folder without one, or one of another format."""
    path = Path(site_dir) / "site.json"
    if not path.exists():
        raise DeployError(f"{path} does not exist: build a site there first")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if manifest.get("format") != SITE_FORMAT:
        raise DeployError(f"{path} has format {manifest.get('format')}, not {SITE_FORMAT}: build the site again")
    return manifest


def file_entry(folder: Path, path: str) -> dict:
    """`{path, bytes, sha256, parts}`: one SHA-256 for the file and one for each part of it."""
    whole, parts, size = hashlib.sha256(), [], 0
    with open(folder / path, "rb") as file:
        while block := file.read(PART):
            whole.update(block)
            parts.append(hashlib.sha256(block).hexdigest())
            size += len(block)
    return {"path": path, "bytes": size, "sha256": whole.hexdigest(), "parts": parts}


def file_entries(folder: Path) -> dict[str, dict]:
    """The entry of each file that the page downloads itself, in checked parts, by path."""
    return {path: file_entry(folder, path) for path in _paths(folder) if _downloaded(path)}


def shell_paths(folder: Path) -> list[str]:
    """The files that the service worker keeps from the start: the page's own, and not the scripts of a runtime, which
    this device may not use."""
    return [path for path in _paths(folder) if not _downloaded(path) and not path.startswith("runtime/")]


def trained_scripts(model: Path) -> list[str]:
    """Unicode's names of the scripts whose entries the vocabulary kept; none where it is whole."""
    return json.loads((model / "config.json").read_text(encoding="utf-8")).get(SCRIPTS_KEY, [])


def variant_entry(name: str, weights: list[str], layout: str | None, prefix: dict | None, entries: dict) -> dict:
    """How the page loads a variant: `weights` are its graph and data, `layout` says where the page's own kernels find
    the weights (None where they cannot run them), `prefix` is the summary of its prompt cache."""
    files = [f"model/{file}" for file in READ_BY_PAGE] + weights
    own = [f"model/{file}" for file in READ_BY_KERNELS] + [layout, *weights[1:]] if layout else []
    return {
        "devices": list(VARIANTS[name].devices),
        "half": VARIANTS[name].half,
        "load": loading(name),
        "bytes": sum(entries[path]["bytes"] for path in own or files) + (prefix["bytes"] if prefix else 0),
        "files": files,
        "weights": weights,
        "kernels": {"layout": layout, "files": own} if layout else None,
        "prefix": prefix["path"] if prefix else None,
        "prefix_tokens": prefix["tokens"] if prefix else 0,
        "prefix_dtype": prefix["dtype"] if prefix else None,
        "prefix_bytes": prefix["bytes"] if prefix else 0,
    }


def _downloaded(path: str) -> bool:
    """Whether the page brings this file itself, in checked parts; the rest is the shell."""
    if path.startswith("model/"):
        return path.removeprefix("model/") in READ_BY_PAGE or path.startswith("model/onnx/")
    return path.startswith("prefix/") or path.endswith(".wasm")


def _paths(folder: Path) -> list[str]:
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    left_out = ("sw.js", "site.json", "tools.json", *NOT_READ)
    return [path for path in paths if path not in left_out and not path.startswith("runtime/LICENSE")]
