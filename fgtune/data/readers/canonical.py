"""Tools and examples in canonical form as one JSON value, for other programs."""

from __future__ import annotations

import json

from ...format.findings import Finding


def canonical(tools: list[dict], examples: list[dict], findings: list[Finding]) -> dict:
    """`{"tools", "examples", "findings"}`; an example has "tools" only where they are its own."""
    shared = json.dumps(tools, sort_keys=True)
    own = {id(row["tools"]): json.dumps(row["tools"], sort_keys=True) != shared for row in examples}
    rows = [row if own[id(row["tools"])] else {k: v for k, v in row.items() if k != "tools"} for row in examples]
    return {"tools": tools, "examples": rows, "findings": [finding.as_json() for finding in findings]}


def canonical_json(tools: list[dict], examples: list[dict], findings: list[Finding]) -> str:
    """The canonical form as JSON text; NaN, which is refused elsewhere, becomes null, since JSON has no such number."""
    value = json.loads(json.dumps(canonical(tools, examples, findings)), parse_constant=lambda _: None)
    return json.dumps(value, indent=1) + "\n"
