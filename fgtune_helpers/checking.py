"""`python -m fgtune_helpers check`: what the workbook makes of your tools and examples, before anything is trained."""

from __future__ import annotations

import sys
from pathlib import Path

from fgtune.data.examples import calls_per_tool
from fgtune.data.readers.canonical import canonical_json
from fgtune.data.readers.examples import load_examples
from fgtune.data.readers.files import DataError
from fgtune.data.readers.tools import load_tools
from fgtune.format.findings import Finding, FindingsTable

READY, REFUSED = 0, 2


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
    print(table.columns())
    print(f"\n{len(tool_list)} tools" + (f", {len(rows)} examples" if examples else ""))
    if rows:
        for name, count in sorted(calls_per_tool(rows, tool_list).items(), key=lambda item: -item[1]):
            print(f"{count:>6}  calls of {name}" + ("" if count else ": add examples that call it, or remove the tool"))
    if out:
        Path(out).write_text(canonical_json(tool_list, rows, table.findings), encoding="utf-8")
    print("refused: correct the errors above" if table.errors else "ready for stage 01")
    return REFUSED if table.errors else READY
