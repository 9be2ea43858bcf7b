"""Round-trips the gold calls of the Berkeley Function-Calling Leaderboard (`bfcl-eval` from PyPI, data files only).

    python benchmarks/bfcl.py [--wheel FILE | --cache FOLDER] [--no-node] [--json FILE]

Prints how many gold calls come back equal, which tool sets lint refuses and why, and on how many prompts Python and
JavaScript agree; exits 1 if a gold call is lost or a prompt differs.
"""

import argparse
import ast
import json
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# ruff: noqa: E402
sys.path[0] = str(ROOT)  # not this folder: its onnx.py would hide the package

from fgtune.format.calls import Call, format_call, parse_calls, same_call
from fgtune.format.findings import FormatError
from fgtune.format.messages import normalize_messages
from fgtune.format.template import TEMPLATE_FILE, TRIGGER, render
from fgtune.format.tools import normalize_tools, repair_tools

PACKAGE = "bfcl-eval==2026.3.23"
# The suite's own names for types, as its loader translates them for every model it evaluates.
DIALECT = {"String": "string", "any": "string", "char": "string", "Array": "array", "ArrayList": "array",
           "HashMap": "object", "Boolean": "boolean"}  # fmt: skip


def find_wheel(cache: Path) -> Path:
    """The wheel in the cache folder, downloaded without its dependencies when it is not there."""
    cache.mkdir(parents=True, exist_ok=True)
    if not list(cache.glob("bfcl_eval-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", cache, PACKAGE]
        subprocess.run(command, check=True)
    return sorted(cache.glob("bfcl_eval-*.whl"))[-1]


def read_lines(wheel: zipfile.ZipFile, name: str) -> list[dict]:
    return [
        json.loads(line) for line in wheel.read(f"bfcl_eval/data/{name}").decode("utf-8").splitlines() if line.strip()
    ]


def one_of(value):
    """The first of the accepted values that is given at all ("" stands for: may be left out); None if none is."""
    if isinstance(value, list):
        given = [item for item in value if item not in ("", None)]
        return plain(given[0]) if given else (None if value else [])
    return plain(value)


def plain(value):
    """A gold value without the lists of accepted values inside of it."""
    if isinstance(value, dict):
        found = {key: one_of(item) for key, item in value.items()}
        return {key: item for key, item in found.items() if item is not None}
    return [plain(item) for item in value] if isinstance(value, list) else value


def gold_calls(wheel: zipfile.ZipFile) -> list[tuple[str, Call]]:
    """Every gold call of the suite: accepted values of the single-turn sets, call texts of the multi-turn sets."""
    names = sorted(
        Path(name).name for name in wheel.namelist() if name.startswith("bfcl_eval/data/possible_answer/BFCL")
    )
    parameters = {}
    for name in wheel.namelist():
        if name.startswith("bfcl_eval/data/multi_turn_func_doc/") and name.endswith(".json"):
            for tool in read_lines(wheel, name.removeprefix("bfcl_eval/data/")):
                parameters[tool["name"]] = list(tool["parameters"]["properties"])
    found = []
    for name in names:
        for row in read_lines(wheel, f"possible_answer/{name}"):
            for part in row["ground_truth"]:
                if isinstance(part, dict):
                    found += [(row["id"], Call(tool, plain(accepted))) for tool, accepted in part.items()]
                elif isinstance(part, list):
                    found += [(row["id"], read_call(text, parameters)) for text in part]
    return found


def read_call(text: str, parameters: dict[str, list[str]]) -> Call:
    """A call written as Python: `sort('a.txt')` becomes the call with its arguments by name."""
    node = ast.parse(text, mode="eval").body
    name = ast.unparse(node.func)
    positional = zip(parameters[name], node.args, strict=False)
    pairs = [*positional, *((keyword.arg, keyword.value) for keyword in node.keywords)]
    return Call(name, {key: plain(ast.literal_eval(value)) for key, value in pairs})


def tool_sets(wheel: zipfile.ZipFile) -> list[tuple[str, list[dict], list[dict]]]:
    """Every row that brings tools: its id, its tools and its first turn."""
    found = []
    for name in sorted(wheel.namelist()):
        if name.startswith("bfcl_eval/data/BFCL_v4_") and "format_sensitivity" not in name:
            for row in read_lines(wheel, name.removeprefix("bfcl_eval/data/")):
                if row.get("function"):
                    found.append((row["id"], [translate(tool) for tool in row["function"]], row["question"][0]))
    return found


def translate(schema):
    if isinstance(schema, list):
        return [translate(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    new = {key: translate(value) for key, value in schema.items()}
    if isinstance(schema.get("type"), str):
        new["type"] = DIALECT.get(schema["type"], schema["type"])
    return new


def in_node(script: str, data) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.json"
        file.write_text(json.dumps(data), encoding="utf-8")
        command = ["node", ROOT / "tests" / "js" / script, file]
        return json.loads(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout)


def round_trip(gold: list[tuple[str, Call]], node: bool) -> list[dict]:
    rows = []
    for number, call in gold:
        row = {"kind": "call", "id": number, "name": call.name, "arguments": call.arguments}
        try:
            row["text"] = format_call(call)
            row["python"] = came_back(parse_calls(row["text"]), call)
        except (FormatError, ValueError) as error:
            row.update(python=False, error=str(error))
        rows.append(row)
    if node:
        written = [row for row in rows if "text" in row]
        for row, result in zip(written, in_node("parse_cases.mjs", [row["text"] for row in written]), strict=True):
            read = [Call(**call) for call in result.get("calls", [])]
            row["javascript"] = came_back(read, Call(row["name"], row["arguments"])) and result["texts"] == [
                row["text"]
            ]
    return rows


def came_back(read: list[Call], call: Call) -> bool:
    return len(read) == 1 and same_call(read[0], call)


def prompts(sets: list[tuple[str, list[dict], list[dict]]], node: bool) -> list[dict]:
    rows, cases = [], []
    for number, tools, turn in sets:
        _, findings = repair_tools(tools)
        row = {"kind": "tools", "id": number, "tools": len(tools)}
        for level, key in (("error", "refused"), ("repair", "repaired")):
            row[key] = sorted({finding.code for finding in findings if finding.level == level})
        rows.append(row)
        if row["refused"]:
            continue
        tools = repair_tools(tools)[0]
        opening = [] if turn[0]["role"] == "system" else [{"role": "developer", "content": TRIGGER}]
        try:
            messages = normalize_messages(opening + turn)
            row["text"] = render(messages, tools, add_generation_prompt=True)
        except FormatError as error:
            row["not_rendered"] = str(error)
            continue
        cases.append((row, {"messages": messages, "tools": normalize_tools(tools), "add_generation_prompt": True}))
    if node:
        results = in_node(
            "render_cases.mjs", {"template": TEMPLATE_FILE.read_text("utf-8"), "cases": [case for _, case in cases]}
        )
        for (row, _), result in zip(cases, results, strict=True):
            row["agree"] = result.get("text") == row["text"]
    return rows


def share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / max(whole, 1):.1f} %)"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, help="the bfcl-eval wheel, instead of a download")
    parser.add_argument(
        "--cache", type=Path, default=ROOT / "runs" / "cache" / "bfcl", help="where the download is kept"
    )
    parser.add_argument("--no-node", action="store_true", help="leave the JavaScript side out")
    parser.add_argument("--json", type=Path, help="write every row to this file")
    options = parser.parse_args(argv)
    with zipfile.ZipFile(options.wheel or find_wheel(options.cache)) as wheel:
        gold, sets = gold_calls(wheel), tool_sets(wheel)
    calls, rows = round_trip(gold, not options.no_node), prompts(sets, not options.no_node)
    for language in ("python", "javascript")[: 1 if options.no_node else 2]:
        equal = sum(bool(row.get(language)) for row in calls)
        print(f"gold calls that come back equal, {language}: {share(equal, len(calls))}")
    for row in calls:
        if not all(row.get(language, True) for language in ("python", "javascript")):
            print(f"  lost: {row['id']} {row['name']} {row.get('error', row.get('text'))}")
    refused = [row for row in rows if row["refused"]]
    print(f"tool sets that lint refuses: {share(len(refused), len(rows))}")
    for code, count in Counter(code for row in refused for code in row["refused"]).most_common():
        print(f"  {code}: {share(count, len(rows))}")
    print(f"tool sets that lint repairs: {share(sum(bool(row['repaired']) for row in rows), len(rows))}")
    for code, count in Counter(code for row in rows for code in row["repaired"]).most_common():
        print(f"  {code}: {share(count, len(rows))}")
    rendered = [row for row in rows if "text" in row]
    for row in rows:
        if "not_rendered" in row:
            print(f"  not rendered: {row['id']}: {row['not_rendered']}")
    agree = sum(bool(row.get("agree")) for row in rendered)
    if not options.no_node:
        print(f"prompts where Python and JavaScript agree: {share(agree, len(rendered))}")
    if options.json:
        options.json.write_text(json.dumps(calls + rows, ensure_ascii=False, indent=1), encoding="utf-8")
    whole = all(row["python"] and row.get("javascript", True) for row in calls)
    return 0 if whole and (options.no_node or agree == len(rendered)) else 1


if __name__ == "__main__":
    sys.exit(main())
