"""What an executed notebook says of itself."""

from __future__ import annotations

import json
from pathlib import Path


def unfinished(notebook: Path) -> str | None:
    """Say which code cell has no execution count or raised; None when every one ran."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    for i, cell in enumerate(cells):
        if cell["cell_type"] != "code" or not "".join(cell["source"]).strip():
            continue
        if cell.get("execution_count") is None:
            return f"cell {i} never ran"
        if any(o["output_type"] == "error" for o in cell["outputs"]):
            return f"cell {i} raised"
    return None
