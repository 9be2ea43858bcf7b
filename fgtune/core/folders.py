"""Folders that appear whole or not at all.

A rename is atomic, so a folder is filled under another name and then renamed. Replacing a folder takes two renames:
the present one steps aside as `<name>.old`, then the new one takes its name. `recover` undoes the first rename when
the process was killed before the second.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `target` when the block ends without an error.

    When another process has made `target` in the meantime, its folder is kept and this one is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=target.name + ".", dir=target.parent))
    try:
        yield fresh
        fresh.chmod(0o755)  # mkdtemp makes a folder that only its owner can read
        try:
            fresh.rename(target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def rewritten_folder(folder: Path) -> Iterator[Path]:
    """Yield the empty folder `<name>.new` to fill; it takes the place of `folder` when the block ends without an error.

    For one writer at a time: what a killed writer left in `<name>.new` is removed.
    """
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        replace_folder(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def replace_folder(fresh: Path, folder: Path, old: Path | None = None) -> None:
    """Rename `fresh` to `folder`, in the place of what is there; all on one file system.

    What was there steps aside to `old` (default `<name>.old`, removed when it exists) and is deleted at the end. A kill
    between the two renames leaves `old` for `recover`.
    """
    old = old or old_folder(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path, old: Path | None = None) -> Path:
    """Rename `old` (default `<name>.old`) back when a killed `replace_folder` left no `folder`. Returns `folder`."""
    old = old or old_folder(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)
    return folder


def old_folder(folder: Path) -> Path:
    """Where `replace_folder` puts what it replaces: `<name>.old` beside it."""
    return folder.with_name(folder.name + ".old")
