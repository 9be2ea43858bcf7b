"""Tools as people have them: read out of what holds them, converted without a loss, each conversion with a note."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgtune.format.findings import FormatError
from fgtune.format.template import render
from fgtune.format.tools import normalize_tools, repair_tools, tools_of
from fgtune.format.type_names import read_type

TEXT = {"type": "string", "description": "a text"}
NOTE = {
    "name": "add_note",
    "description": "Keep a note.",
    "parameters": {
        "type": "object",
        "properties": {"text": {"type": "string", "description": "the note"}},
        "required": ["text"],
    },
}


def tool(schema, required=(), **root):
    """A tool with one parameter `p` of a schema."""
    schema = {"description": "d", **schema} if isinstance(schema, dict) else schema
    parameters = {"type": "object", "properties": {"p": schema}, "required": list(required), **root}
    return {"name": "f", "description": "d", "parameters": parameters}


def normalized(one, *codes):
    """The one tool normalised without an error, after a look at the repairs: exactly these codes."""
    [found], findings = repair_tools([one], "t.json")
    assert not [str(finding) for finding in findings if finding.level == "error"]
    assert {finding.code for finding in findings if finding.level == "repair"} == set(codes), findings
    assert repair_tools([found])[0] == [found]
    user = [{"role": "user", "content": "hi"}]
    assert render(user, [one]) == render(user, normalize_tools([one]))
    return found


def errors_of(*tools):
    return [finding for finding in repair_tools(list(tools))[1] if finding.level == "error"]


@pytest.mark.parametrize(
    ("schema", "codes", "becomes"),
    [
        # constants
        ({"oneOf": [{"const": "low"}, {"const": "high"}]}, ["any-of"], {"type": "string", "enum": ["low", "high"]}),
        ({"anyOf": [{"enum": ["a", "b"], "type": "STRING"}, {"const": "b"}]}, ["any-of"],
         {"type": "string", "enum": ["a", "b"]}),
        ({"anyOf": [{"const": 2}, {"const": 4.5}]}, ["any-of", "enum-not-string"],
         {"type": "number", "enum": [2, 4.5], "description": "d One of 2, 4.5."}),
        ({"anyOf": [{"const": True}, {"const": False}]}, ["any-of"], {"type": "boolean", "enum": [True, False]}),
        ({"oneOf": [{"const": "q", "description": "quiet"}, {"const": "l", "title": "loud"}]}, ["any-of"],
         {"type": "string", "enum": ["q", "l"], "description": "d q: quiet l: loud"}),
        # types
        ({"type": ["number", "integer"], "minimum": 0}, ["type-union", "not-declared"],
         {"type": "number", "minimum": 0, "description": "d Minimum 0."}),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, ["any-of"], {"type": "number"}),
        ({"anyOf": [{"type": "string", "title": "A"}, {"type": "string", "title": "B"}]}, ["any-of"],
         {"type": "string", "title": "A"}),
        ({"enum": [3, 5]}, ["type-missing", "enum-not-string"],
         {"type": "integer", "enum": [3, 5], "description": "d One of 3, 5."}),
        ({"enum": [0.5, 5]}, ["type-missing", "enum-not-string"],
         {"type": "number", "enum": [0.5, 5], "description": "d One of 0.5, 5."}),
        ({"const": True}, ["type-missing", "enum-not-string"],
         {"type": "boolean", "const": True, "enum": [True], "description": "d One of true."}),
        ({"type": "int, optional"}, ["type-name"], {"type": "integer"}),
        ({"type": "List[float]"}, ["type-name"], {"type": "array", "items": {"type": "number"}}),
        ({"type": "Optional[bool]"}, ["type-name"], {"type": "boolean"}),
        ({"type": "Literal['x', 'y']"}, ["type-name"], {"type": "string", "enum": ["x", "y"]}),
        # unions with null
        ({"anyOf": [{"type": "string", "description": "inner"}, {"type": "null"}]}, ["any-of"], {"type": "string"}),
        ({"anyOf": [{"const": "x"}, {"const": None}]}, ["any-of", "type-missing"],
         {"type": "string", "enum": ["x"]}),
        # allOf
        ({"allOf": [{"type": "string"}, {"enum": ["a", "b"]}, {"enum": ["b", "c"]}]}, ["any-of"],
         {"type": "string", "enum": ["b"]}),
        ({"properties": {"a": TEXT}, "allOf": [{"type": "object", "required": ["a"]}]}, ["any-of"],
         {"type": "object", "properties": {"a": TEXT}, "required": ["a"]}),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)  # fmt: skip
def test_conversions(schema, codes, becomes):
    found = normalized(tool(schema), *codes)["parameters"]["properties"]["p"]
    found.pop("const", None) if "anyOf" in schema else None
    assert found == {"description": "d", **becomes}


def test_an_all_of_of_objects_is_one_object():
    def part(name, kind, required):
        return {"type": "object", "properties": {name: {"type": kind, "description": name}}, "required": required}

    schema = {"allOf": [part("street", "string", ["street"]), {"$ref": "#/$defs/Town"}]}
    one = tool(schema, **{"$defs": {"Town": part("zip", "integer", ["zip"])}})
    found = normalized(one, "any-of", "reference")["parameters"]
    assert "$defs" not in found
    assert list(found["properties"]["p"]["properties"]) == ["street", "zip"]
    assert found["properties"]["p"]["required"] == ["street", "zip"]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "str, optional"},
        {"type": "Union[str, None]"},
        {"type": "str | None"},
        {"enum": ["a", None]},
        {"anyOf": [{"type": "string"}, {"enum": [None]}]},
        {"anyOf": [{"type": ["string", "null"]}, {"type": "string"}]},
    ],
)
def test_what_may_be_none_is_not_required(schema):
    [found], findings = repair_tools([tool(schema, ["p"])])
    assert found["parameters"]["required"] == [] and found["parameters"]["properties"]["p"]["type"] == "string"
    assert "nullable" in {finding.code for finding in findings}


def test_a_required_of_ones_own_moves_to_the_parent():
    number = {"type": "number", "description": "a number"}
    spot = {"type": "object", "properties": {"x": {**number, "required": True}, "y": {**number, "required": False}}}
    found = normalized(tool(spot), "required-place")["parameters"]["properties"]["p"]
    assert found["required"] == ["x"] and not any("required" in part for part in found["properties"].values())
    in_items = tool({"type": "array", "items": {"type": "string", "required": True}})
    assert normalized(in_items, "required-place")["parameters"]["properties"]["p"]["items"] == {"type": "string"}


def test_null_properties_are_none():
    one = json.loads(json.dumps(NOTE))
    one["parameters"]["properties"] |= {"tag": None, "due": None}
    assert normalized(one, "null-property") == NOTE


def test_references_with_escapes():
    defs = {"a/b~c d": {"type": "string", "title": "odd"}, "list": {"anyOf": [{"type": "boolean"}]}}
    for target, kind in (("#/$defs/a~1b~0c%20d", "string"), ("#/$defs/list/anyOf/0", "boolean")):
        found = normalized(tool({"$ref": target}, **{"$defs": defs}), "reference")
        assert found["parameters"]["properties"]["p"]["type"] == kind
    for target in ("#/$defs/none", "#/$defs/list/anyOf/7", "#/$defs/list/anyOf", "other.json#/a", "#a"):
        [error] = errors_of(tool({"$ref": target}, **{"$defs": defs}))
        assert error.code == "reference" and target in error.message


def person(**parts):
    return {"type": "object", "properties": {"name": {"type": "string", "description": "n"}, **parts}}


RECURSIVE = {
    "two ways": ({"$ref": "#/$defs/P"}, {"P": person(mother={"$ref": "#/$defs/P"}, father={"$ref": "#/$defs/P"})}),
    "a circle of two": ({"$ref": "#/$defs/P"}, {"P": person(pet={"$ref": "#/$defs/Q"}),
                                                "Q": person(owner={"$ref": "#/$defs/P"})}),
    "itself": ({"$ref": "#/$defs/P"}, {"P": {"$ref": "#/$defs/P"}}),
    "a list": ({"type": "array", "items": {"$ref": "#/$defs/P"}},
               {"P": person(children={"type": "array", "items": {"$ref": "#/$defs/P"}})}),
    "a union with null": ({"anyOf": [{"$ref": "#/$defs/P"}, {"type": "null"}]},
                          {"P": person(next={"anyOf": [{"$ref": "#/$defs/P"}, {"type": "null"}]})}),
    "a map": ({"type": "object", "additionalProperties": {"$ref": "#/$defs/P"}},
              {"P": person(more={"type": "object", "additionalProperties": {"$ref": "#/$defs/P"}})}),
    "the root": (person(whole={"$ref": "#"}), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", RECURSIVE)
def test_a_recursive_reference_is_one_error_that_names_it(case):
    schema, defs = RECURSIVE[case]
    one = tool(schema, **{"$defs": defs})
    one["parameters"]["properties"]["q"] = {"$ref": "#/$defs/Q"} if "Q" in defs else {"type": "string"}
    [error] = errors_of(one)
    assert "$ref" in error.message and ("#/$defs/P" in error.message or case == "the root")


def test_definitions_used_twice_are_fine_until_they_are_too_many():
    defs = {f"L{i}": person(a={"$ref": f"#/$defs/L{i + 1}"}, b={"$ref": f"#/$defs/L{i + 1}"}) for i in range(30)}
    defs["L30"] = person()
    assert errors_of(tool({"$ref": "#/$defs/L25"}, **{"$defs": defs})) == []
    [error] = errors_of(tool({"$ref": "#/$defs/L0"}, **{"$defs": defs}))
    assert error.code == "reference" and "1000" in error.message


@pytest.mark.parametrize(
    ("schema", "code"),
    [
        ({"anyOf": [{"type": "string"}, {"type": "object", "properties": {}}]}, "any-of"),
        ({"anyOf": [{"const": "auto"}, {"type": "integer"}]}, "any-of"),
        ({"anyOf": [{"const": "auto"}, {"const": 5}]}, "any-of"),
        ({"anyOf": [{"type": "integer", "minimum": 3}, {"type": "number"}]}, "any-of"),
        ({"anyOf": [{"type": "null"}]}, "any-of"),
        ({"allOf": [person(a={"type": "string"}), person(a={"type": "integer"})]}, "any-of"),
        ({"not": {"type": "string"}}, "keyword"),
        ({"$ref": "#/$defs/none"}, "reference"),
        ({"type": ["string", "boolean"]}, "type-union"),
        ({"type": "Callable"}, "type-unknown"),
        ({"enum": [[1], [2]]}, "type-missing"),
    ],
)
def test_what_has_no_plain_form_is_one_error(schema, code):
    [error] = errors_of(tool(schema))
    assert (error.code, error.where) == (code, "p")


@pytest.mark.parametrize(("text", "schema", "optional"), [
    ("Dict[str, List[int]]",
     {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "integer"}}}, False),
    ("typing.Optional[typing.List[str]]", {"type": "array", "items": {"type": "string"}}, True),
    ("Tuple[float, float]", {"type": "array", "items": {"type": "number"}}, False),
    ("Tuple[float, str]", {"type": "array"}, False),
    ("tuple[int, ...]", {"type": "array", "items": {"type": "integer"}}, False),
    ("Union[int, float]", {"type": "number"}, False),
    ("string, required", {"type": "string"}, False),
    ("List[Any]", {"type": "array"}, False),
])  # fmt: skip
def test_names_of_types(text, schema, optional):
    assert read_type(text) == (schema, optional)


@pytest.mark.parametrize(
    "text", ["any", "None", "", "List[", "str, int", "list of str", "f()", "Union[int, str]", "(" * 300]
)
def test_names_that_are_no_types(text):
    assert read_type(text) is None


def test_free_keys_are_allowed_with_a_note():
    def notes(schema):
        return {(f.level, f.code) for f in repair_tools([tool(schema)])[1]}

    assert notes({"type": "object"}) == {("info", "open-object")}
    map_of_lists = {"type": "object", "additionalProperties": {"type": ["array", "null"], "items": {"type": "STRING"}}}
    assert notes(map_of_lists) == {("warning", "open-object")}
    [found], _ = repair_tools([tool(map_of_lists)])
    assert found["parameters"]["properties"]["p"]["additionalProperties"] == {
        "type": "array", "items": {"type": "STRING"}}  # fmt: skip
    assert notes({"type": "object", "additionalProperties": {"type": ["string", "number"]}}) == {
        ("warning", "open-object")
    }
    assert notes({"type": "array", "items": {}}) == {("warning", "items")}
    hyphens = tool({"type": "object", "properties": {"x-axis": {"type": "number", "description": "x"}}})
    assert repair_tools([hyphens])[1] == []


# ------------------------------------------------------------------------------------------------- a tool's own keys


@pytest.mark.parametrize("key", ["inputSchema", "input_schema", "parametersJsonSchema"])
def test_other_names_of_parameters(key):
    assert normalized({"name": NOTE["name"], key: NOTE["parameters"], "description": NOTE["description"]},
                      "parameters-key") == NOTE  # fmt: skip
    [error] = errors_of({**NOTE, key: NOTE["parameters"]})
    assert error.code == "parameters-twice" and key in error.message


def test_keys_without_a_place_are_named():
    found, findings = repair_tools([{**NOTE, "paramaters": {}, "strict": True, "annotations": {"readOnlyHint": True}}])
    assert found == [NOTE]
    assert [(f.level, f.code, f.where) for f in findings] == [
        ("warning", "tool-key", "paramaters"), ("info", "tool-key", "")]  # fmt: skip
    assert 'Did you mean "parameters"?' in findings[0].message and "annotations" in findings[1].message


def test_properties_in_place_of_parameters():
    one = {"name": "trip", "description": "d", "parameters": {
        "city": {"description": "where", "type": "str"},
        "nights": {"description": "how long", "type": "int, optional", "default": 2},
        "stars": {"description": "class", "type": "List[int]", "required": True},
        "old": None,
    }}  # fmt: skip
    found = normalized(one, "parameters-form", "type-name", "not-declared", "required-place", "null-property")
    properties = found["parameters"]["properties"]
    assert [part["type"] for part in properties.values()] == ["string", "integer", "array"]
    assert found["parameters"]["required"] == ["stars"] and properties["nights"]["default"] == 2
    [error] = errors_of(
        {"name": "f", "description": "d", "parameters": {"type": {"type": "str", "description": "kind"}}}
    )
    assert error.code == "reserved-name"


def test_a_schema_with_a_title_is_a_tool():
    schema = {"title": "AddNote", "description": "Keep a note.", **NOTE["parameters"]}
    assert normalized(schema, "schema-tool") == {**NOTE, "name": "AddNote"}


def test_an_unnamed_pair_has_one_cause_each():
    found = errors_of({"description": "a"}, {"description": "b"})
    assert [(error.code, error.tool) for error in found] == [("tool-name", "tool 1"), ("tool-name", "tool 2")]


def test_names_with_single_spaces_are_carried():
    one = {**NOTE, "name": "Market Trends API"}
    assert repair_tools([one]) == ([one], [])
    assert "declaration:Market Trends API{" in render([{"role": "user", "content": "hi"}], [one])


# --------------------------------------------------------------------------------------------------------- containers

PING = {"name": "ping", "description": "Is it there?"}


@pytest.mark.parametrize("value", [
    [NOTE, PING],
    {"tools": [NOTE, PING]},
    {"functions": [NOTE, PING]},
    {"functionDeclarations": [NOTE, PING]},
    [{"functionDeclarations": [NOTE]}, {"function_declarations": [PING]}],
    {"tools": [{"functionDeclarations": [NOTE, PING]}]},
    {"jsonrpc": "2.0", "id": 1, "result": {"tools": [NOTE, PING], "nextCursor": None}},
    {"add_note": {key: NOTE[key] for key in ("description", "parameters")}, "ping": {"description": "Is it there?"}},
    {"tools": {"add_note": NOTE, "ping": PING}},
], ids=lambda value: json.dumps(value)[:40])  # fmt: skip
def test_containers(value):
    before = json.dumps(value)
    assert tools_of(value) == [NOTE, PING]
    assert json.dumps(value) == before


def test_one_tool_is_a_list_of_one():
    for one in (NOTE, {"type": "function", "function": NOTE}, {"title": "T", "properties": {}}, {"name": "tools"}):
        assert tools_of(one) == [one]
    assert tools_of([]) == tools_of({"tools": []}) == []
    assert tools_of(["x", NOTE]) == ["x", NOTE]  # what is no tool is refused later, by its number


def test_component_schemas():
    document = {"openapi": "3.1.0", "paths": {}, "components": {"schemas": {
        "AddNote": {"description": "Keep a note.", "type": "object", "required": ["text"], "properties": {
            "text": {"type": "string", "description": "the note"},
            "place": {"$ref": "#/components/schemas/Place"}}},
        "Place": {"type": "object", "description": "where", "properties": {
            "town": {"type": "string", "description": "t"}}},
        "Color": {"type": "string", "enum": ["red"]},
    }}}  # fmt: skip
    [one] = tools_of(document)
    found = normalized(one, "reference")
    assert (found["name"], found["description"]) == ("AddNote", "Keep a note.")
    assert found["parameters"]["properties"]["place"]["properties"]["town"]["type"] == "string"
    assert set(found["parameters"]) == {"type", "properties", "required"}


@pytest.mark.parametrize("value", [
    None, 5, "tools", {}, {"a": 1}, {"error": {"code": -32601, "message": "Method not found"}}, {"components": {}},
    {"components": {"schemas": {"A": {"type": "string"}}}}, {"components": {"schemas": "A"}},
    {"paths": {"/a": {}}, "components": {"schemas": {}}},
], ids=lambda value: json.dumps(value)[:40])  # fmt: skip
def test_what_holds_no_tools_is_one_sentence(value):
    with pytest.raises(FormatError, match=r"^[A-Z].*[.d]$"):
        tools_of(value)


def test_what_nests_too_deep_is_one_error():
    schema = {"type": "string"}
    for _ in range(300):
        schema = {"type": "array", "description": "d", "items": schema}
    [error] = errors_of(tool({"$ref": "#/$defs/deep"}, **{"$defs": {"deep": schema}}))
    assert error.code == "too-deep"


words = st.sampled_from(
    """type properties items $ref # #/$defs/a $defs a anyOf allOf oneOf enum const required object array string null
    List[str] tools name parameters additionalProperties nullable description result components schemas title""".split()
)
trees = st.recursive(
    words | st.none() | st.booleans() | st.integers(-2, 2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(trees)
def test_any_json_is_read_or_refused_in_words(tree):
    for value in (tree, {"name": "f", "parameters": tree}, tool(tree)):
        try:
            tools = tools_of(value)
        except FormatError as error:
            assert str(error)
            continue
        fixed, findings = repair_tools(tools)
        if not any(finding.level == "error" for finding in findings):
            render([{"role": "user", "content": "hi"}], fixed)
