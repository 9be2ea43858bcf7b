"""Large files of a site stand as several pieces, because static hosts limit the size of a file."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import DeployError
from .manifest import PART, read_manifest


def piece_size(part_mb: float) -> int:
    """Bytes of a piece where a host takes files of `part_mb` MiB: whole checked parts. Raises DeployError."""
    size = int(part_mb * 1024 * 1024) // PART * PART
    if not size:
        raise DeployError(f"part_mb = {part_mb:g} is too small: the page checks parts of {PART // 2**20} MiB")
    return size


def piece_paths(entry: dict) -> list[str]:
    """The files in which a file of the manifest stands: itself, or `<path>.part00` and so on."""
    if not entry.get("piece"):
        return [entry["path"]]
    return [f"{entry['path']}.part{i:02d}" for i in range(-(-entry["bytes"] // entry["piece"]))]


def split_files(site: Path, entries: list[dict], part_mb: float) -> None:
    """Put pieces in the place of each file larger than `part_mb` MiB; its entry gets `piece`, the bytes of one.

    Raises DeployError for a file that is too large and that the page does not join.
    """
    size, limit = piece_size(part_mb), part_mb * 1024 * 1024
    for entry in entries:
        if entry["bytes"] <= limit:
            continue
        entry["piece"] = size
        with open(site / entry["path"], "rb") as whole:
            for path in piece_paths(entry):
                (site / path).write_bytes(whole.read(size))
        (site / entry["path"]).unlink()
    for path in site.rglob("*"):
        if path.is_file() and path.stat().st_size > limit:
            raise DeployError(f"{path.relative_to(site)} is larger than part_mb = {part_mb:g} MiB and cannot be split")


def join_file(site: Path, entry: dict, target: Path) -> None:
    """Write a file of the site to `target`, its pieces joined."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as whole:
        for path in piece_paths(entry):
            with open(site / path, "rb") as piece:
                shutil.copyfileobj(piece, whole)


@contextlib.contextmanager
def whole_model(site_dir: str | Path, variant: str | None = None) -> Iterator[Path]:
    """`with whole_model(site) as folder:` the site's model with whole files, for Python and Node to load.

    The site's own folder where nothing is split, else a temporary one (with a `variant`, of no other files than its
    own), which is gone after the block; what is loaded stays. Raises DeployError.
    """
    site, manifest = Path(site_dir), read_manifest(site_dir)
    entries = [entry for entry in manifest["files"] if entry["path"].startswith("model/")]
    if variant:
        entries = [entry for entry in entries if entry["path"] in manifest["variants"][variant]["files"]]
    if not any(entry.get("piece") for entry in entries):
        yield site / "model"
        return
    with tempfile.TemporaryDirectory() as temporary:
        for entry in entries:
            join_file(site, entry, Path(temporary) / entry["path"])
        yield Path(temporary) / "model"
