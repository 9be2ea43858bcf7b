"""Lint: everything that the format would lose is refused or repaired, and said in a sentence with the remedy."""

import json

import pytest
from hypothesis import given, settings
from make_format_cases import tool_lists

from fgtune.format.findings import Finding, FindingsTable, SchemaError
from fgtune.format.lint import lint_examples, repair_examples
from fgtune.format.template import TRIGGER, render
from fgtune.format.tools import lint_tools, repair_tools

WEATHER = {
    "name": "get_weather",
    "description": "Weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "City"},
            "unit": {"type": "string", "description": "Unit", "enum": ["C", "F"]},
            "days": {"type": "integer", "description": "Days"},
            "spot": {
                "type": "object",
                "description": "Spot",
                "properties": {"x": {"type": "number", "description": "x"}},
            },
            "tags": {"type": "array", "description": "Tags", "items": {"type": "string"}},
        },
        "required": ["city"],
    },
}
TIMER = {
    "name": "set_timer",
    "description": "Timer",
    "parameters": {"type": "object", "properties": {"seconds": {"type": "integer", "description": "s"}}},
}


def tool(schema, name="p", **rest):
    """A tool with one parameter of a schema."""
    properties = {name: {"description": "d", **schema} if isinstance(schema, dict) else schema}
    return {"name": "f", "description": "d", "parameters": {"type": "object", "properties": properties, **rest}}


def row(*turns, number=1, tools=None):
    """A chat row with an answer of each turn: a text, or the calls as (name, arguments) pairs."""
    messages = [{"role": "developer", "content": TRIGGER}, {"role": "user", "content": "hi"}]
    for turn in turns:
        made = (
            [{"function": {"name": name, "arguments": arguments}} for name, arguments in turn]
            if turn != str(turn)
            else []
        )
        messages.append({"role": "assistant", "tool_calls": made} if made else {"role": "assistant", "content": turn})
    return {"id": f"e{number}", "messages": messages} | ({"tools": tools} if tools else {})


def codes(findings, *levels):
    return {finding.code for finding in findings if not levels or finding.level in levels}


RESERVED = ("description", "type", "properties", "required", "nullable")
REFUSED = [
    *(("reserved-name", tool({"type": "string"}, name), name) for name in RESERVED),
    ("reserved-name", tool({"type": "object", "properties": {"type": {"type": "string"}}}), "p.type"),
    ("reserved-name", tool({"type": "array", "items": {"properties": {"type": {"type": "string"}}}}), "p[].type"),
    ("type-union", tool({"type": ["string", "integer"]}), "p"),
    ("type-union", tool({"type": []}), "p"),
    ("any-of", tool({"anyOf": [{"type": "string"}, {"type": "integer"}]}), "p"),
    ("any-of", tool({"allOf": [{"type": "string"}, {"type": "integer"}]}), "p"),
    ("any-of", tool({"anyOf": [{"type": "object", "properties": {}}, {"type": "string"}, {"type": "null"}]}), "p"),
    ("keyword", tool({"type": "object", "patternProperties": {"x": {}}}), "p"),
    ("reference", tool({"$ref": "#/$defs/Missing"}), "p"),
    ("reference", tool({"$ref": "https://example.com/schema"}), "p"),
    ("type-missing", tool({}), "p"),
    ("type-unknown", tool({"type": "any"}), "p"),
    ("type-unknown", tool({"type": "null"}), "p"),
    ("type-unknown", tool({"type": {"a": 1}}), "p"),
    ("enum-empty", tool({"type": "string", "enum": []}), "p"),
    ("enum-empty", tool({"type": "string", "enum": [None]}), "p"),
    ("enum-mixed", tool({"type": "string", "enum": ["a", 1]}), "p"),
    ("required-undeclared", tool({"type": "string"}, required=["q"]), "q"),
    ("required-undeclared", tool({"type": "object", "properties": {}, "required": ["q"]}), "p.q"),
    ("schema-invalid", tool({"type": "string", "minLength": "x"}), "properties.p.minLength"),
    ("schema-invalid", tool({"type": "string", "enum": "a"}), "p"),
    ("schema-invalid", tool({"type": "string", "description": 5}), "p"),
    ("schema-invalid", tool("string"), "p"),
    ("schema-invalid", {"name": "f", "description": "d", "parameters": {"type": "object", "properties": []}}, ""),
    ("schema-invalid", {"name": "f", "description": "d", "parameters": ["a"]}, ""),
    ("parameters-type", {"name": "f", "description": "d", "parameters": {"type": "string"}}, "parameters"),
    ("key", tool({"type": "string"}, "a:b"), ""),
    ("key", tool({"type": "string"}, ""), ""),
    ("tool-name", {"name": "get  weather", "description": "d"}, ""),
    ("tool-name", {"name": "get_weather ", "description": "d"}, ""),
    ("tool-name", {"description": "d"}, ""),
    ("tool-form", "get_weather", ""),
    ("tool-form", {"function": "x"}, ""),
    ("tool-form", {"name": "f", "parameters": {1, 2}}, ""),
    ("control-token", {"name": "f", "description": "a <escape> b"}, ""),
    ("control-token", tool({"type": "string", "description": "<end_of_turn>"}), "p"),
    ("control-token", tool({"type": "string", "enum": ["<pad>"]}), "p[0]"),
    ("control-token", tool({"type": "array", "items": {"type": "string", "pattern": "<eos>"}}), "p[].pattern"),
    ("control-token", tool({"type": "string", "pattern": "<eos>"}), "p"),
    ("metaspace", {"name": "f", "description": "a\u2581b"}, ""),
    ("metaspace", {"name": "a\u2581b", "description": "d"}, ""),
    ("metaspace", tool({"type": "string", "enum": ["a\u2581"]}), "p[0]"),
    ("tool-form", {"name": "f", "parameters": {"type": "object", "properties": {}}, "x": float("nan")}, ""),
    ("half-character", tool({"type": "string", "description": "\ud800"}), "p"),
    ("number-too-large", tool({"type": "array", "items": {"type": "integer", "maximum": 2**63}}), "p[].maximum"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "bad", "where"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_refused_tools(code, bad, where):
    errors = [finding for finding in lint_tools([bad], "tools.json") if finding.level == "error"]
    assert code in codes(errors), errors
    found = next(finding for finding in errors if finding.code == code)
    assert (found.file, found.where) == ("tools.json", where)
    assert found.message[0].isupper() or found.message[0] in '"{[0123456789'
    assert found.message.endswith((".", '".')) and "tools.json" in str(found)
    # what only the sentences of repair_tools would say is refused there; all else by render itself
    tools = repair_tools([bad])[0] if "'pattern'" in str(bad) and where == "p" else [bad]
    with pytest.raises(SchemaError):
        render([{"role": "user", "content": "hi"}], tools)


def test_duplicate_tool_names_are_refused():
    assert codes(lint_tools([WEATHER, {"type": "function", "function": WEATHER}]), "error") == {"tool-duplicate"}
    assert codes(lint_tools({"name": "f"}), "error") == {"tool-form"}


@pytest.mark.parametrize(
    ("code", "schema", "normalized"),
    [
        ("nullable", {"type": ["string", "null"]}, {"type": "string"}),
        ("nullable", {"type": ["null", "STRING"]}, {"type": "STRING"}),
        ("any-of", {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}, {"type": "string"}),
        ("any-of", {"allOf": [{"type": "integer"}]}, {"type": "integer"}),
        ("reference", {"$ref": "#/$defs/City"}, {"type": "string", "title": "City"}),
        ("type-missing", {"enum": ["a"]}, {"type": "string", "enum": ["a"]}),
        ("type-missing", {"const": "a"}, {"type": "string", "const": "a", "enum": ["a"]}),
        ("type-missing", {"properties": {}}, {"type": "object", "properties": {}}),
        ("type-missing", {"items": {"type": "string"}}, {"type": "array", "items": {"type": "string"}}),
        ("type-name", {"type": "dict", "properties": {}}, {"type": "object", "properties": {}}),
        ("type-name", {"type": "float"}, {"type": "number"}),
        ("enum-null", {"type": "string", "enum": ["a", None]}, {"type": "string", "enum": ["a"]}),
    ],
)
def test_repairs_of_the_structure(code, schema, normalized):
    bad = tool(schema)
    bad["parameters"]["$defs"] = {"City": {"type": "string", "title": "City"}}
    [fixed], findings = repair_tools([bad], "tools.json")
    assert codes(findings) == {code}
    assert {finding.level for finding in findings} == {"repair"}
    assert fixed["parameters"]["properties"]["p"] == {**normalized, "description": "d"}
    assert "$defs" not in fixed["parameters"]
    assert lint_tools([fixed]) == []
    assert render([{"role": "user", "content": "hi"}], [bad]) == render([{"role": "user", "content": "hi"}], [fixed])


@pytest.mark.parametrize("schema", [{"type": ["string", "null"]}, {"anyOf": [{"type": "string"}, {"type": "null"}]},
                                    {"type": "string", "nullable": True}])  # fmt: skip
def test_a_parameter_that_may_be_null_is_optional(schema):
    [fixed], findings = repair_tools([tool(schema, required=["p"])])
    assert fixed["parameters"]["required"] == []
    assert "nullable" in codes(findings, "repair")
    assert "required" not in render([{"role": "user", "content": "hi"}], [tool(schema, required=["p"])])


def test_parameters_without_a_type_become_an_object():
    bad = {"name": "f", "description": "d", "parameters": {"properties": {"p": {"type": "string", "description": "d"}}}}
    assert codes(lint_tools([bad]), "repair") == {"parameters-type"}
    text = render([{"role": "user", "content": "hi"}], [bad])
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ({"type": "integer", "enum": [1, 2]}, "One of 1, 2."),
        ({"type": "number", "const": 0.5}, "One of 0.5."),
        ({"type": "boolean", "default": False}, "Default false."),
        ({"type": "string", "default": "metric"}, "Default metric."),
        ({"type": "string", "default": ""}, 'Default "".'),
        ({"type": "integer", "minimum": 0, "maximum": 10}, "Minimum 0. Maximum 10."),
        ({"type": "string", "pattern": "^a+$"}, "Pattern ^a+$."),
        ({"type": "string", "format": "date"}, "Format date."),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 3}, "At most 3 entries."),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "No entry twice."),
    ],
)  # fmt: skip
def test_what_has_no_place_goes_into_the_description(schema, sentence):
    bad = tool(schema)
    findings = lint_tools([bad], "tools.json")
    assert codes(findings, "repair") == ({"enum-not-string"} if sentence.startswith("One") else {"not-declared"})
    assert all(part in " ".join(map(str, findings)) for part in ("tools.json", "f", "p", sentence.split(". ")[0]))
    [fixed], _ = repair_tools([bad])
    normalized = fixed["parameters"]["properties"]["p"]
    assert normalized["description"] == f"d {sentence}"
    assert schema.items() <= normalized.items()  # arguments are still checked against it
    assert lint_tools([fixed]) == [] and repair_tools([fixed])[0] == [fixed]
    assert f"d {sentence}<escape>" in render([{"role": "user", "content": "hi"}], [fixed])


@pytest.mark.parametrize("schema", [
    {"type": "string", "default": "metric", "description": "Units, metric by default"},
    {"type": "integer", "enum": [1, 2], "description": "1 for on, 2 for off"},
    {"type": "array", "uniqueItems": False, "items": {"type": "integer", "enum": [1], "minimum": 0.0}},
    {"type": "boolean", "enum": [True, False]},
])  # fmt: skip
def test_what_is_carried_or_said_needs_no_repair(schema):
    assert lint_tools([tool(schema)]) == []


def test_hints():
    assert codes(lint_tools([{"name": "f"}]), "warning") == {"no-description"}
    assert codes(lint_tools([tool({"type": "array"})]), "warning") == {"items"}
    assert codes(lint_tools([tool({"type": "object", "additionalProperties": {"type": "string"}})]), "warning") == {
        "open-object"
    }
    assert codes(lint_tools([tool({"type": "string", "description": ""})])) <= {"no-description"}


def test_upper_case_types_are_fine():
    text = json.dumps(WEATHER)
    for kind in ("object", "string", "integer", "number", "array"):
        text = text.replace(f'"type": "{kind}"', f'"type": "{kind.upper()}"')
    assert lint_tools([json.loads(text)]) == []
    good = row([("get_weather", {"city": "Bonn"})], tools=[json.loads(text)])
    bad = row([("get_weather", {"city": 5})], tools=[json.loads(text)])
    assert codes(lint_examples([good]), "error") == set()
    assert codes(lint_examples([bad]), "error") == {"wrong-type"}


@settings(max_examples=60, deadline=None)
@given(tool_lists)
def test_repairing_is_done_after_once(tools):
    fixed, findings = repair_tools(tools)
    assert codes(findings, "error") == set()
    assert repair_tools(fixed)[0] == fixed
    assert codes(lint_tools(fixed), "repair") == set()


def test_lint_leaves_its_input_alone():
    tools = [tool({"type": ["integer", "null"], "minimum": 0}, required=["p"])]
    before = json.dumps(tools)
    first = repair_tools(tools)[0]
    first[0]["parameters"]["properties"]["p"]["type"] = "broken"
    assert json.dumps(tools) == before
    assert repair_tools(tools)[0] != first


# ----------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize(
    ("code", "call", "where"),
    [
        ("unknown-tool", ("get_wether", {"city": "Bonn"}), ""),
        ("missing-argument", ("get_weather", {}), ".arguments.city"),
        ("undeclared-argument", ("get_weather", {"city": "Bonn", "units": "C"}), ".arguments.units"),
        ("undeclared-argument", ("get_weather", {"city": "Bonn", "spot": {"z": 1}}), ".arguments.spot.z"),
        ("wrong-type", ("get_weather", {"city": 5}), ".arguments.city"),
        ("wrong-type", ("get_weather", {"city": "Bonn", "days": "5"}), ".arguments.days"),
        ("wrong-type", ("get_weather", {"city": "Bonn", "days": 1.5}), ".arguments.days"),
        ("wrong-type", ("get_weather", {"city": "Bonn", "days": True}), ".arguments.days"),
        ("wrong-type", ("get_weather", {"city": "Bonn", "tags": ["a", 1]}), ".arguments.tags.1"),
        ("enum-violation", ("get_weather", {"city": "Bonn", "unit": "K"}), ".arguments.unit"),
        ("null", ("get_weather", {"city": None}), ".arguments.city"),
        ("not-finite", ("get_weather", {"city": "Bonn", "spot": {"x": float("nan")}}), ".arguments.spot.x"),
        ("number-too-large", ("get_weather", {"city": "Bonn", "days": 10**20}), ".arguments.days"),
        ("control-token", ("get_weather", {"city": "<start_of_turn>"}), ".arguments.city"),
        ("metaspace", ("get_weather", {"city": "Bad\u2581Orb"}), ".arguments.city"),
        ("arguments", ("get_weather", "{city}"), ""),
        ("arguments", ("get_weather", ["Bonn"]), ""),
    ],
)
def test_refused_calls(code, call, where):
    findings = lint_examples([row([call])], [WEATHER], source="train.jsonl")
    [found] = [finding for finding in findings if finding.code == code]
    assert (found.level, found.file, found.example, found.tool) == ("error", "train.jsonl", "e1", call[0])
    assert found.where == f"messages[2].tool_calls[0]{where}"
    assert found.message.endswith(".")


def test_a_slip_gets_a_suggestion():
    findings = lint_examples(
        [row([("get_wether", {"city": "Bonn"})]), row([("get_weather", {"city": "a", "unti": "C"})])], [WEATHER]
    )
    assert 'Did you mean "get_weather"?' in str(FindingsTable(findings))
    assert 'Did you mean "unit"?' in str(FindingsTable(findings))


def test_a_tool_without_parameters_takes_no_argument():
    bare = {"name": "ping", "description": "d"}
    assert codes(lint_examples([row([("ping", {"a": 1})])], [bare]), "error") == {"undeclared-argument"}
    assert lint_examples([row([("ping", {})])], [bare]) == []


def test_constraints_are_checked():
    bounded = tool({"type": "integer", "minimum": 0})
    assert codes(lint_examples([row([("f", {"p": -1})])], [bounded]), "error") == {"constraint"}
    assert codes(lint_examples([row([("f", {"p": 2.0})])], [bounded]), "error") == set()


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        ("row-form", {"userQuery": "hi"}),
        ("row-form", "hi"),
        ("messages", {"messages": []}),
        ("messages", {"messages": ["hi"]}),
        ("role", {"messages": [{"role": "bot", "content": "hi"}]}),
        ("content", {"messages": [{"role": "user", "content": 5}]}),
        ("no-target", {"messages": [{"role": "user", "content": "hi"}]}),
        ("empty-answer", row("")),
        ("empty-answer", row("  \n", "hello")),
        ("control-token", row("hello <end_of_turn>")),
        ("dialogue", row([("set_timer", {})], "Done.")),
        ("result-name", {"messages": [*row([("set_timer", {})])["messages"], {"role": "tool", "content": "x"}]}),
    ],
)
def test_refused_rows(code, bad):
    assert code in codes(lint_examples([bad], [TIMER]), "error")


def test_sound_rows_say_nothing():
    done = row(
        [("get_weather", {"city": "Bonn", "days": 2, "spot": {"x": 1.5}, "tags": ["a"]}), ("set_timer", {"seconds": 5})]
    )
    done["messages"] += [{"role": "tool", "name": name, "content": "ok"} for name in ("get_weather", "set_timer")]
    done["messages"].append({"role": "assistant", "content": "Done."})
    assert (
        lint_examples([done, row("Hello.", number=2)], [WEATHER, TIMER], count_tokens=len, max_seq_length=10**6) == []
    )


def test_too_long_is_an_error_with_both_numbers():
    good = row("Hello.")
    length = len(render(good["messages"], [TIMER]))
    assert "too-long" not in codes(lint_examples([good], [TIMER], count_tokens=len, max_seq_length=length))
    [found] = [
        f for f in lint_examples([good], [TIMER], count_tokens=len, max_seq_length=length - 1) if f.code == "too-long"
    ]
    assert found.level == "error" and str(length) in found.message and str(length - 1) in found.message


def test_warnings_about_rows():
    untriggered = {"id": "a", "messages": row("Hello.")["messages"][1:]}
    open_end = {"id": "a", "messages": [*row("Hello.")["messages"], {"role": "user", "content": "more"}]}
    odd = row([("set_timer", {})], number=3)
    odd["messages"] += [
        {"role": "tool", "name": "other", "content": "x"},
        {"role": "assistant", "content": "ok", "mood": 1},
    ]
    found = lint_examples([untriggered, open_end, odd], [WEATHER, TIMER])
    assert codes(found, "error") == set()
    assert codes(found, "warning") == {
        "no-trigger",
        "no-last-answer",
        "duplicate-id",
        "result-name",
        "message-key",
        "tool-unused",
    }
    [unused] = [finding for finding in found if finding.code == "tool-unused"]
    assert unused.tool == "get_weather"


def test_imbalance():
    rows = [row([("get_weather", {"city": "Bonn"})], number=n) for n in range(11)] + [
        row([("set_timer", {})], number=99)
    ]
    [found] = lint_examples(rows, [WEATHER, TIMER])
    assert (found.code, found.tool) == ("imbalance", "set_timer") and "11 of get_weather" in found.message
    assert lint_examples(rows[1:], [WEATHER, TIMER]) == []


def test_rows_with_tools_of_their_own():
    rows = [
        row([("get_weather", {"city": "Bonn"})], number=n, tools=[WEATHER, tool({"type": "any"})]) for n in range(3)
    ]
    found = lint_examples(rows, [TIMER], source="chat.jsonl")
    assert [finding.code for finding in found if finding.level == "error"] == ["type-unknown"]  # said once, not thrice
    assert "unknown-tool" in codes(lint_examples([row([("get_weather", {"city": "a"})], tools=[TIMER])], [WEATHER]))


def test_repaired_examples():
    raw = row([("set_timer", '{"seconds": 5, "label": null}')], tools=[tool({"type": ["string", "null"]}), TIMER])
    [fixed, other], findings = repair_examples([raw, {"userQuery": "hi"}], "chat.jsonl")
    assert codes(findings) == {"arguments-text", "null-dropped", "nullable"} and codes(findings, "error") == set()
    assert fixed["messages"][2]["tool_calls"][0]["function"]["arguments"] == {"seconds": 5}
    assert other == {"userQuery": "hi"}
    assert codes(lint_examples([fixed]), "error", "repair") == set()
    assert "null" in codes(lint_examples([raw]), "error")


def test_the_table():
    findings = [Finding("warning", "w", "Second."), Finding("error", "e", "Use <b>.", "a.json", "e1", "f", "p")]
    table = FindingsTable(findings)
    assert str(table) == "error: a.json · e1 · f · p: Use <b>.\nwarning: Second.\n1 error, 1 warning"
    assert "Use &lt;b&gt;." in table._repr_html_() and table._repr_html_().index("Use") < table._repr_html_().index(
        "Second"
    )
    assert (len(table), len(table.errors)) == (2, 1)
    assert str(FindingsTable([])) == "nothing to report" and "nothing to report" in FindingsTable([])._repr_html_()
    many = FindingsTable(findings * 50, limit=3)
    hidden = "… and 47 more of level error, 50 more of level warning"
    assert hidden in str(many) and hidden in many._repr_html_() and hidden in many.columns()
    assert "50 errors, 50 warnings" in str(many)
