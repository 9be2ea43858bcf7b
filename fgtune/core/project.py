"""Where the project lies: the page's sources, the npm packages and the shipped examples are below its root."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import ProjectError


def project_root() -> Path:
    """The folder that holds notebooks/ and params/, wherever the notebook was started from."""
    here = Path(os.environ.get("FGTUNE_ROOT") or Path(__file__).parents[2]).resolve()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").exists() and (folder / "notebooks").is_dir():
            return folder
    raise ProjectError("the project's root is not found: set FGTUNE_ROOT to the folder that holds notebooks/")
