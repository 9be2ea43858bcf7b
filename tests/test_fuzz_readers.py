"""Files that are nearly right: the readers and the check command make canonical rows of them, or say one line.

`FGTUNE_FUZZ_SECONDS=600 python -m pytest tests/test_fuzz_readers.py` looks for new ones for so long in each test. What
it finds is kept in ROWS_FOUND.
"""

import contextlib
import copy
import io
import json
import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from test_readers import ASKED, CALL, SHAPES, TIDE, TOOLS, called, dialogue

from fgtune.data.examples import all_calls, first_calls, first_query, label
from fgtune.data.readers.examples import load_examples
from fgtune.data.readers.files import DataError
from fgtune.data.readers.tools import load_tools
from fgtune.format.template import TRIGGER, render
from fgtune_helpers.__main__ import main

SECONDS = float(os.environ.get("FGTUNE_FUZZ_SECONDS", 0))
EXAMPLES = 600  # of each test where no time is set
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "print_blob": False}

LEAVES = {
    "type": "object",
    "description": "All kinds",
    "properties": {
        "when": {"type": "string", "enum": ["now", "later"], "default": "now"},
        "count": {"type": "integer", "minimum": 1, "maximum": 9, "description": "How many"},
        "share": {"type": ["number", "null"]},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "free": {"type": "object", "additionalProperties": {"type": "number"}},
        "either": {"anyOf": [{"const": 1}, {"const": 2}, {"type": "null"}]},
        "known": {"$ref": "#/$defs/place"},
        "both": {"allOf": [{"type": "object", "properties": {"a": {"type": "boolean"}}}, {"required": ["a"]}]},
    },
    "required": ["when"],
    "$defs": {"place": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}},
}
ALL = {"name": "all_kinds", "description": "Everything.", "parameters": LEAVES}
TOOL_FILES = [
    TOOLS,
    [ALL],
    [{"type": "function", "function": ALL, "strict": True}],
    {"tools": [{"name": "mcp", "title": "M", "description": "d", "inputSchema": LEAVES, "annotations": {}}]},
    {"jsonrpc": "2.0", "result": {"tools": [{"name": "mcp", "inputSchema": TIDE["parameters"]}]}},
    [{"name": "anthropic", "description": "d", "input_schema": LEAVES}],
    [{"functionDeclarations": [ALL, TIDE]}],
    {"functions": {"by_name": {"description": "d", "parameters": LEAVES}}},
    {
        "title": "Pydantic",
        "description": "d",
        "type": "object",
        "properties": LEAVES["properties"],
        "$defs": LEAVES["$defs"],
    },
    {"openapi": "3.1.0", "components": {"schemas": {"Booking": LEAVES, "Place": TIDE["parameters"]}}},
    [{"name": "xlam", "description": "d", "parameters": {"city": {"type": "str, optional", "description": "c"}}}],
]
USED = {"type": "tool_use", "id": "t", "name": "tide_at", "input": {"port": "Brest"}}
RETURNED = {"type": "tool_result", "tool_use_id": "t", "content": [{"text": "9"}]}
DATED = {"role": "system", "content": "On 2026-03-01 at 10:15, a Sunday."}
HELLO = {"role": "assistant", "content": "Hello"}
RESULTS = [
    {"userQuery": "a", "expectedToolCalls": [CALL], "toolResponses": [{"name": "tide_at", "response": {"h": 3.5}}],
     "expectedFinalResponse": "3.5 m."},
    {"messages": dialogue("ab", "ba"), "split": "test", "metadata": {"split": "dev"}},
    {"messages": [DATED, ASKED, HELLO, *dialogue(("", ""), ("", ""))]},
    {"messages": [ASKED, HELLO, ASKED, called() | {"weight": 1}], "tools": [ALL, TIDE]},
    {"messages": [ASKED, {"role": "assistant", "content": [USED]}, {"role": "user", "content": [RETURNED]}, HELLO]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": f"<tool_call>{CALL}</tool_call>"},
                       {"from": "tool", "value": '<tool_response>{"name": "tide_at", "content": 9}</tool_response>'}]},
    {"train": [SHAPES["OpenAI"]], "valid": [SHAPES["xLAM"]], "test": [SHAPES["original"]]},
    {"examples": [SHAPES["OpenAI"]]},
]  # fmt: skip
ROW_FILES = [[row] for row in (*SHAPES.values(), *RESULTS[:-2])] + RESULTS[-2:] + [[*SHAPES.values()]]

# What json.dumps cannot write: the text that stands in its place.
RAW = {"@deep": "[" * 40 + "]" * 40, "@deeper": '{"a":' * 300 + "1" + "}" * 300, "@abyss": "[" * 99999,
       "@bottom": "[" * 3000 + "]" * 3000, "@digits": "9" * 5000, "@infinite": "1e999", "@tiny": "1e-999"}  # fmt: skip
TEXTS = ["", " ", "tide_at", "user", "assistant", "tool", "object", "string", "null", "{}", "[]", '{"a": null}', "1",
         "{'a': 1}", "\ud800", "a\ud800", "\u2581", "<end_of_turn>", "<escape>", "\u2028", "a\nb", "\x00", "\u202e",
         "😀", "Ǆ", "ß" * 99, "#/$defs/place", "#", "#/", "https://x/y", "2026-03-01", "train", "<tool_call>", *RAW,
         "NaN", "<tools>[1]</tools>", "<tool_call>{}</tool_call>", "<tool_response>1</tool_response>"]  # fmt: skip
NUMBERS = [
    0,
    1,
    -1,
    2.5,
    0.1,
    1e-7,
    2**53,
    -(10**400),
    float("nan"),
    float("inf"),
    -0.0,
    1e308,
    5e-324,
    True,
    False,
    None,
]
KEYS = (
    "name description parameters properties type items enum required anyOf $ref $defs const default allOf oneOf "
    "function additionalProperties tools role content tool_calls arguments id weight messages split data text value "
    "from format nullable title minimum pattern not prefixItems patternProperties if tool_call_id result error lc"
).split()
SMALL = [[], {}, [[]], [{}], [None], {"": 1}, {"a": {"a": []}}, {"name": None}, [1, "a"], {"type": "text", "text": "x"}]
ATOMS = st.one_of(*map(st.sampled_from, (TEXTS, NUMBERS, SMALL, KEYS)), st.text(max_size=4), st.integers(), st.floats())


class Again(str):
    """A key that stands in an object beside its equal: json.dumps then writes it twice."""

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


def places(value):
    """(container, key) of everything within a value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in pairs:
        yield value, key
        yield from places(part)


def mutate(draw, value):
    """`value` with one thing in it changed in place: deleted, of another type, nested, renamed, doubled, moved."""
    found = list(places(value))
    if not found:
        return
    box, key = found[draw(st.integers(0, len(found) - 1))]
    what = draw(st.sampled_from(["put", "put", "delete", "nest", "key", "rename", "twice", "text", "move", "name"]))
    if what == "delete":
        del box[key]
    elif what == "nest":
        box[key] = [box[key]] if draw(st.booleans()) else {draw(st.sampled_from(KEYS)): box[key]}
    elif what == "text":
        box[key] = json.dumps(box[key])
    elif what == "move":
        other, place = found[draw(st.integers(0, len(found) - 1))]
        if place in other if isinstance(other, dict) else place < len(other):
            box[key] = copy.deepcopy(other[place])
    elif isinstance(box, list):
        box.append(copy.deepcopy(box[key])) if what == "twice" else box.__setitem__(key, copy.deepcopy(draw(ATOMS)))
    elif what in ("rename", "name"):
        new = draw(st.sampled_from(KEYS if what == "rename" else TEXTS))
        box[new] = box.pop(key)
    elif what == "twice":
        box[Again(key)] = copy.deepcopy(draw(ATOMS))
    else:
        box[draw(st.sampled_from(KEYS)) if what == "key" else key] = copy.deepcopy(draw(ATOMS))


def written(value) -> str:
    """The JSON text of a value, with what json.dumps cannot write put in."""
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text


@st.composite
def files(draw, valid):
    """The text of a file that is a few changes away from a valid one."""
    value = json.loads(json.dumps(draw(st.sampled_from(valid))))  # a copy in which no two places are one object
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3, 5]))):
        mutate(draw, value)
    return written(value)


def strict(text: str):
    """The value of JSON text that every parser reads: no NaN, no Infinity."""

    def refuse(word):
        raise AssertionError(f"{word} in the output")

    return json.loads(text, parse_constant=refuse)


def one_line(findings) -> bool:
    """Whether nothing is refused; every finding is one line that can be written."""
    for finding in findings:
        assert len(str(finding).splitlines()) == 1 and finding.message.strip(), finding
        strict(json.dumps(finding.as_json()))
    return not any(finding.level == "error" for finding in findings)


def try_tools(path) -> list[dict] | None:
    """The tools of a file, which render and survive JSON; None where they are refused in one line."""
    try:
        tools, findings = load_tools(path)
    except DataError as error:
        assert len(str(error).splitlines()) == 1
        return None
    assert strict(json.dumps(tools)) == tools
    if not one_line(findings):
        return None
    assert all(isinstance(tool["name"], str) and isinstance(tool["description"], str) for tool in tools)
    assert render([{"role": "developer", "content": TRIGGER}, {"role": "user", "content": "x"}], tools)
    return tools


def check(tools: Path, rows: Path | None) -> dict | None:
    """What the check command writes; None where it refuses."""
    out, shown = tools.with_name("out.json"), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    more = ["--examples", str(rows)] if rows else []
    with contextlib.redirect_stdout(shown):
        code = main(["check", "--tools", str(tools), *more, "--json", str(out)])
    value = strict(out.read_text(encoding="utf-8"))
    assert set(value) == {"tools", "examples", "findings"} and code in (0, 2)
    assert code == 2 if any(finding["level"] == "error" for finding in value["findings"]) else code == 0
    return value if code == 0 else None


def tools_hold(text: str, suffix: str = ".json"):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"tools{suffix}"
        path.write_text(text, encoding="utf-8")
        tools, checked = try_tools(path), check(path, None)
        assert (tools is None) == (checked is None)
        assert tools is None or checked["tools"] == tools


def rows_hold(text: str, suffix: str = ".json"):
    with tempfile.TemporaryDirectory() as folder:
        path, tools_path = Path(folder) / f"rows{suffix}", Path(folder) / "tools.json"
        path.write_text(text, encoding="utf-8")
        tools_path.write_text(json.dumps(TOOLS), encoding="utf-8")
        checked = check(tools_path, path)
        try:
            rows, findings = load_examples(path, load_tools(tools_path)[0], len, 10**6)
        except DataError as error:
            assert len(str(error).splitlines()) == 1 and checked is None
            return
        assert one_line(findings) == (checked is not None)
        if checked is None:
            return
        assert strict(json.dumps(rows)) == rows
        assert len(rows) == len(checked["examples"])
        for row in rows:
            assert render(row["messages"], row["tools"]).startswith("<bos>")
            assert isinstance(first_query(row), str) and isinstance(label(row), str)
            assert first_calls(row) is not None and all_calls(row) is not None


def search(hold, valid):
    """Tries `hold` on many files: the same ones each time, or others as long as FGTUNE_FUZZ_SECONDS says."""

    def tried(**options):
        @given(files(valid), st.sampled_from([".json", ".json", ".jsonl"]))
        @settings(**options, **QUIET)
        def property_(text, suffix):
            hold(text, suffix)

        return property_

    end, number = time.time() + SECONDS, 0
    if not SECONDS:
        tried(max_examples=EXAMPLES, derandomize=True)()
    while time.time() < end:
        seed(number + int(end))(tried(max_examples=500))()
        number += 1


def test_tools_near_every_shape_are_read_or_refused_in_one_line():
    search(tools_hold, TOOL_FILES)


def test_rows_near_every_shape_are_read_or_refused_in_one_line():
    search(rows_hold, ROW_FILES)


#: What was found: each raised another exception than DataError, or said more than one line.
ROWS_FOUND = [
    [{"messages": [ASKED, {"role": "assistant", "tool_calls": [{"name": "tide_at", "args": {"port": float("nan")}}]}]}],
    [{"messages": [{"content": "x"}, {"role": "assistant", "content": "<tool_call>{}</tool_call>"}]}],
    [{"messages": [ASKED, called()], "tools": [TIDE | {"parameters": {"type": "object", "properties": "{}"}}]}],
    [{"messages": [ASKED | {"a\nb": 1}, called()]}],
    [{"a\nb": 1}],
]


@pytest.mark.parametrize("value", ROWS_FOUND, ids=range(len(ROWS_FOUND)))
def test_what_was_found_is_mended(value):
    rows_hold(json.dumps(value))


@pytest.mark.parametrize("value", TOOL_FILES, ids=range(len(TOOL_FILES)))
def test_the_tools_that_are_changed_are_valid_ones(tmp_path, value):
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(value))
    assert try_tools(path)


@pytest.mark.parametrize("value", ROW_FILES, ids=range(len(ROW_FILES)))
def test_the_rows_that_are_changed_are_valid_ones(tmp_path, value):
    (tmp_path / "rows.json").write_text(json.dumps(value))
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    assert check(tmp_path / "tools.json", tmp_path / "rows.json")["examples"]
