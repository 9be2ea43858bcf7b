"""`python -m fgtune_helpers check`: what the workbook makes of your tools and examples, before anything is trained."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from fgtune.data.examples import calls_per_tool
from fgtune.data.readers.examples import load_examples
from fgtune.data.readers.files import DataError
from fgtune.data.readers.tools import load_tools
from fgtune.format.findings import LEVELS, Finding, FindingsTable

READY, REFUSED = 0, 2
COLUMNS = ("level", "file", "row", "tool", "where")
WIDEST = 60  # characters of a cell, the last ones; the message may be longer


def check_files(tools: str, examples: str | None = None, out: str | None = None) -> int:
    """Read, convert and lint the files, print what was found, and return 0, or 2 where something is refused.

    `out` is a JSON file for the canonical tools and examples and for the findings.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a text may hold what the terminal cannot show
    try:
        tool_list, findings = load_tools(Path(tools))
        rows: list[dict] = []
        if examples:
            rows, more = load_examples(Path(examples), tool_list)
            findings += more
    except (DataError, OSError) as error:
        tool_list, rows, findings = [], [], [Finding("error", "unreadable", str(error))]
    table = FindingsTable(findings)
    print(findings_text(table))
    print(f"\n{len(tool_list)} tools" + (f", {len(rows)} examples" if examples else ""))
    if rows:
        for name, count in sorted(calls_per_tool(rows, tool_list).items(), key=lambda item: -item[1]):
            print(f"{count:>6}  calls of {name}" + ("" if count else ": add examples that call it, or remove the tool"))
    if out:
        text = json.dumps(as_json(tool_list, rows, table.findings), indent=1)
        Path(out).write_text(text + "\n", encoding="utf-8")
    print("refused: correct the errors above" if table.errors else "ready for stage 01")
    return REFUSED if table.errors else READY


def findings_text(table: FindingsTable) -> str:
    """The findings as a table in text, errors first, at most `table.limit` of them."""
    shown = table.findings[: table.limit]
    cells = [(f.level, f.file, f.example, f.tool, f.where) for f in shown]
    cells = [tuple(cell if len(cell) <= WIDEST else "…" + cell[1 - WIDEST :] for cell in row) for row in cells]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *cells)]
    used = [i for i, column in enumerate(zip(*cells)) if any(column)]
    lines = ["  ".join([*(COLUMNS[i].ljust(widths[i]) for i in used), "what to do"])] if shown else []
    for row, finding in zip(cells, shown):
        lines.append("  ".join([*(row[i].ljust(widths[i]) for i in used), finding.message]))
    if len(table) > table.limit:
        hidden = Counter(finding.level for finding in table.findings[table.limit :])
        lines.append("… and " + ", ".join(f"{hidden[level]} of level {level}" for level in LEVELS if hidden[level]))
    return "\n".join([*lines, table.summary])


def as_json(tools: list[dict], examples: list[dict], findings: list[Finding]) -> dict:
    """The canonical form as JSON; an example has "tools" only where they are its own, a message says its place."""
    shared = json.dumps(tools, sort_keys=True)
    own = {id(row["tools"]): json.dumps(row["tools"], sort_keys=True) != shared for row in examples}
    rows = [row if own[id(row["tools"])] else {k: v for k, v in row.items() if k != "tools"} for row in examples]
    return {"tools": tools, "examples": rows, "findings": [_entry(finding) for finding in findings]}


def _entry(finding: Finding) -> dict:
    where = " · ".join(filter(None, (finding.file, finding.example, finding.tool, finding.where)))
    message = f"{where}: {finding.message}" if where else finding.message
    return {"level": finding.level, "code": finding.code, "where": where, "message": message}
