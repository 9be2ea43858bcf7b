"""Train and test every combination of some parameters."""

from __future__ import annotations

import sys
from itertools import product
from typing import Any

from .runner import FAILED, OK, Plan, choose, run_series
from .stage import read_manifest, resolve_run


def sweep(plan: Plan, grid: dict[str, list[Any]], out=None) -> int:
    """Train and test once for every combination of `grid`; a table of exact match at the end."""
    out, rows = out or sys.stdout, []
    for combination in product(*grid.values()):
        chosen = dict(zip(grid, combination))
        name = "_".join(f"{k}-{v}" for k, v in chosen.items()).replace("/", "-")
        values = plan.values | chosen | {"run_dir": f"{plan.values['run_dir']}-sweep/{name}", "min_exact": 0.0}
        print(f"· {name}", file=out)
        code = run_series(Plan(choose(None, "03", [], []), values, plan.force), out)
        manifest = read_manifest(resolve_run(values["run_dir"]), "03_test_adapters") if code == OK else None
        rows.append((name, manifest["metrics"]["tuned"]["exact"] if manifest else None))
    width = max(len(name) for name, _ in rows)
    for name, exact in sorted(rows, key=lambda row: -(row[1] or 0)):
        print(f"{name:<{width}}  {'failed' if exact is None else f'{exact:.1%}'}", file=out)
    return FAILED if any(exact is None for _, exact in rows) else OK
