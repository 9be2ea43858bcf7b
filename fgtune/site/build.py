"""Build the deployed page: one static folder with page, runtime, model and tools."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import DeployError
from ..core.files import write_json
from ..core.folders import replace_folder
from ..data.developer_turn import DeveloperTurn
from ..data.rows import Row
from ..export.layout import VARIANTS, model_file
from .drafts import answers_of, write_drafts
from .manifest import READ_BY_PAGE, SITE_FORMAT, file_entries, file_entry, shell_paths, trained_scripts, variant_entry
from .model_files import copy_model_files, copy_variant, write_layout
from .pieces import piece_size, split_files
from .prompt_cache import precompute_prompt_cache
from .shell import copy_kernels, copy_page, copy_runtime

DRAFTS = "prefix/drafts.bin"
SAMPLES = 8  # requests that the page offers, at most


@dataclass(frozen=True)
class SiteReport:
    """A built site: `path`, `hash` (over model and tools), `bytes` of the whole folder, and per variant what a visitor
    downloads (`variants[name]`: bytes, files, prefix tokens, dtype and bytes)."""

    path: Path
    hash: str
    bytes: int
    files: int
    variants: dict


def build_site(
    model_dir,
    variants: str | Sequence[str],
    tools: list[dict],
    out_dir,
    examples: Iterable = (),
    prefix: bool = True,
    title: str | None = None,
    developer_turn: DeveloperTurn | None = None,
    max_tokens: int = 256,
    functions_file=None,
    constrained: bool = False,
    verbatim: Iterable[str] = (),
    part_mb: float = 25,
    rows: Iterable[Row] = (),
) -> SiteReport:
    """Write the static site: page, runtime, model, tools. Replaces `out_dir`. Raises DeployError, ToolMissing.

    `model_dir` is in the transformers.js layout; `examples` are sample requests (texts, or rows with `userQuery`);
    with `prefix` the keys and values of the tool declarations are computed for each variant and shipped;
    `functions_file` is a JavaScript module that exports `functions` (tool name -> function) in place of the default;
    with `constrained` the page decodes under the grammar unless told otherwise, and the arguments `verbatim`
    (`tool.argument`) hold words of the dialogue. The page sends `developer_turn`, as it was trained, with the dates of
    the moment; the base model's own by default. A file larger than `part_mb` MiB, the host's limit, stands in pieces,
    which the page joins. From training `rows` a small table of what usually comes next in an answer is made, which
    saves the page passes of the model and never changes a token.
    """
    from ..format.template import TRIGGER
    from ..format.tools import for_template, normalize_tools

    model_dir, out_dir = Path(model_dir), Path(out_dir)
    names = [variants] if isinstance(variants, str) else list(dict.fromkeys(variants))
    check_input(model_dir, names, out_dir)
    piece_size(part_mb)
    turn = developer_turn or DeveloperTurn(TRIGGER)
    tools = for_template(normalize_tools(tools))
    samples = [text for text in map(query_text, examples) if text][:SAMPLES]
    about = {"title": title, "trigger": turn.template, "developer_turn": turn.to_json(), "max_tokens": max_tokens,
             "constrained": constrained, "verbatim": list(verbatim), "samples": samples, "tools": tools}  # fmt: skip
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=out_dir.name + ".", dir=out_dir.parent))
    try:
        copy_page(work, functions_file)
        manifest = _fill(work, model_dir, names, prefix, about, answers_of(rows))
        write_json(work / "tools.json", tools)
        split_files(work, manifest["files"], part_mb)
        write_json(work / "site.json", manifest)
        work.chmod(0o755)
        replace_folder(work, out_dir, work.with_name(work.name + ".old"))  # nothing else has this name
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return _report(out_dir, manifest)


def check_input(model_dir: Path, names: list[str], out_dir: Path) -> None:
    """Refuse what no site can be built from, and a folder that is not to be overwritten. Raises DeployError."""
    if not names:
        raise DeployError("no variant to deploy")
    for name in names:
        if name not in VARIANTS:
            raise DeployError(f"unknown variant {name!r}: one of {', '.join(VARIANTS)}")
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


def query_text(example) -> str:
    """The request of an example: a text, or a row with `userQuery`."""
    text = example if isinstance(example, str) else example.get("userQuery", "")
    return text.strip()


def _fill(work: Path, model_dir: Path, names: list[str], prefix: bool, about: dict, answers: list) -> dict:
    """Put runtime, model and prompt caches into the site; returns what `site.json` says."""
    runtime = {"kernels": copy_kernels(work), "transformers": copy_runtime(work)}
    weights = {name: copy_variant(model_dir, work, name) for name in names}
    layouts = {name: write_layout(model_dir, work, name) for name in names}
    copy_model_files(model_dir, work, weights)
    (work / "prefix").mkdir()
    if answers:
        write_drafts(answers, work / DRAFTS)
    entries = file_entries(work)
    prefixes: dict[str, dict | None] = dict.fromkeys(names)
    if prefix:
        turn = DeveloperTurn.from_json(about["developer_turn"])
        for name in names:
            hashes = [entries[path]["sha256"] for path in weights[name]]
            summary = precompute_prompt_cache(work / "model", name, about["tools"], turn, about["samples"],
                                              work / f"prefix/{name}.safetensors", hashes)  # fmt: skip
            prefixes[name] = summary
            entries[summary["path"]] = file_entry(work, summary["path"])
    files = sorted(entries.values(), key=lambda entry: entry["path"])
    said = [about["tools"], about["trigger"], *about["developer_turn"]["fields"]]
    model = [[entry["path"], entry["sha256"]] for entry in files if entry["path"].startswith("model/")]
    return {
        "format": SITE_FORMAT,
        "hash": hashlib.sha256(json.dumps([model, *said]).encode()).hexdigest(),
        **about,
        "scripts": trained_scripts(work / "model"),
        "model": "model",
        "runtime": runtime,
        "drafts": DRAFTS if answers else None,
        "variants": {
            name: variant_entry(name, weights[name], layouts[name], prefixes[name], entries) for name in names
        },
        "shell": shell_paths(work),
        "files": files,
    }


def _report(site: Path, manifest: dict) -> SiteReport:
    sizes = [path.stat().st_size for path in site.rglob("*") if path.is_file()]
    hidden = ("files", "weights", "load", "kernels")
    variants = {
        name: {key: value for key, value in entry.items() if key not in hidden} | {"files": len(entry["files"])}
        for name, entry in manifest["variants"].items()
    }
    return SiteReport(site, manifest["hash"], sum(sizes), len(sizes), variants)
