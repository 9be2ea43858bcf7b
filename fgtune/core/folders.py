"""Folders that appear whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path


class new_folder:
    """A folder that appears under its name only when the block ends without an error."""

    def __init__(self, target: Path):
        self.target = target

    def __enter__(self) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = Path(tempfile.mkdtemp(prefix=self.target.name + ".", dir=self.target.parent))
        return self.temporary

    def __exit__(self, kind, *_):
        if kind is None:
            try:
                self.temporary.chmod(0o755)
                self.temporary.rename(self.target)
                return
            except OSError:
                if not self.target.exists():  # another process was first: take its folder
                    raise
        shutil.rmtree(self.temporary, ignore_errors=True)


def replace_folder(fresh: Path, folder: Path) -> None:
    """Put `fresh` in the place of `folder`; a kill between the two renames leaves the old one as `.old`."""
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
