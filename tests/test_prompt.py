"""The prompt text: against the recorded vectors, transformers' engine and the JavaScript engine."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from make_format_cases import CASES_FILE, arguments, dialogues, tool_lists

from fgtune.format.findings import FormatError, SchemaError
from fgtune.format.messages import normalize_messages
from fgtune.format.template import TEMPLATE_FILE, TRIGGER, render
from fgtune.format.tokens import STOP_IDS
from fgtune.format.tools import for_template, normalize_tools
from fgtune.format.values import MAX_DEPTH

HERE = Path(__file__).parent
VECTORS = json.loads((HERE / "data" / "format-vectors.json").read_text(encoding="utf-8"))["rendered"]
CASES = json.loads(CASES_FILE.read_text(encoding="utf-8"))
TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
USER = {"role": "user", "content": "hi"}


def call_message(arguments, name="f", **rest):
    return {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": arguments}, **rest}]}


def written(arguments):
    """The text of one call's arguments."""
    text = render([USER, call_message(arguments)])
    return text.split("call:f", 1)[1].removesuffix("<end_function_call><start_function_response>")


def in_node(script, data, tmp_path):
    """What a script of tests/js prints for some data, or a skip that says what is missing."""
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    if not (HERE.parent / "node_modules" / "@huggingface" / "jinja").is_dir():
        pytest.skip("node_modules is missing: run npm ci")
    file = tmp_path / "cases.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    done = subprocess.run(["node", HERE / "js" / script, file], capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def in_javascript(cases, tmp_path):
    template = TEMPLATE_FILE.read_text(encoding="utf-8")
    return in_node("render_cases.mjs", {"template": template, "cases": cases}, tmp_path)


def test_constants():
    assert TRIGGER == VECTORS[0]["messages"][0]["content"]
    assert STOP_IDS == (1, 50, 106)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vectors(vector):
    assert render(vector["messages"], vector["tools"], vector["add_generation_prompt"]) == vector["text"]


def test_kept_cases_are_many_and_varied():
    texts = [case["text"] for case in CASES]
    assert len(set(texts)) >= 300
    for part in (
        "<end_function_call><start_function_call>",
        "<start_function_response>response:",
        r"items:\{<escape>",
        r",items:\{([^{}]*,)?properties:\{",
        r"enum:\[",
        "type:<escape>OBJECT<escape>},",
        "developer\n<start_",
    ):
        assert sum(bool(re.search(part, text)) for text in texts) >= 5, part
    assert sum(text.endswith("<start_function_response>") for text in texts) >= 20


def test_kept_cases_in_python():
    for case in CASES:
        assert render(case["messages"], case["tools"], case["add_generation_prompt"]) == case["text"]


def test_kept_cases_in_transformers():
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = tokenizers.models.WordLevel({"<bos>": 0, "<unk>": 1}, unk_token="<unk>")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(vocabulary), bos_token="<bos>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE_FILE.read_text(encoding="utf-8")
    for case in CASES:
        text = tokenizer.apply_chat_template(
            normalize_messages(case["messages"]),
            tools=for_template(normalize_tools(case["tools"])),
            add_generation_prompt=case["add_generation_prompt"],
            tokenize=False,
        )
        assert text == case["text"]


def test_kept_cases_and_vectors_in_javascript(tmp_path):
    vectors = [{**vector, "tools": vector["tools"]} for vector in VECTORS]
    cases = CASES + vectors
    given_cases = [{key: case[key] for key in ("messages", "tools", "add_generation_prompt")} for case in cases]
    for case, result in zip(cases, in_javascript(given_cases, tmp_path), strict=True):
        assert result.get("text") == case["text"], result


def test_numbers_print_alike_in_javascript(tmp_path):
    numbers = [0.5, 2.0, -0.0, 1e-4, 1e-5, -1.25e-6, 1e-6, 9.99e-7, 1e-7, 1.5e-10, 5e-324, 0.1 + 0.2, 1e15, 1e15 + 0.5,
               123456789.125, 2**53 - 1, -(2**53 - 1), 1 / 3, 4.35e-5]  # fmt: skip
    messages = [USER, call_message({"n": numbers})]
    [result] = in_javascript([{"messages": normalize_messages(messages), "add_generation_prompt": False}], tmp_path)
    assert result["text"] == render(messages)


@settings(max_examples=60, deadline=None)
@given(dialogues(), tool_lists)
def test_the_prompt_is_a_prefix_of_the_whole(dialogue, tools):
    messages, _ = dialogue
    whole = render(messages, tools)
    for stop, message in enumerate(messages):
        if message["role"] == "assistant" and stop:
            assert whole.startswith(render(messages[:stop], tools, add_generation_prompt=True))


@settings(max_examples=60, deadline=None)
@given(dialogues(), tool_lists)
def test_normalizing_twice_changes_nothing(dialogue, tools):
    messages, prompt = dialogue
    once = json.loads(json.dumps(normalize_messages(messages)))
    assert normalize_messages(once) == once
    assert render(once, normalize_tools(tools), prompt) == render(messages, tools, prompt)


@settings(max_examples=30, deadline=None)
@given(arguments)
def test_rendering_leaves_its_input_alone(found):
    messages = [USER, call_message(found)]
    before = json.dumps(messages)
    render(messages)
    assert json.dumps(messages) == before


def test_forms_of_messages_that_mean_the_same():
    plain = [USER, call_message({"a": 1}), {"role": "tool", "name": "f", "content": "ok"}]
    other = [
        {"role": "user", "content": [{"type": "text", "text": " hi "}], "tool_calls": None},
        {"role": "model", "content": "", "tool_calls": [{"id": "7", "name": "f", "arguments": '{"a": 1.0}'}]},
        {"role": "tool", "tool_call_id": "7", "content": [{"type": "text", "text": "ok"}]},
    ]
    legacy = [USER, {"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": 1}'}}, plain[2]]
    assert render(plain) == render(other) == render(legacy)


def test_forms_of_tools_that_mean_the_same():
    wrapped = {"type": "function", "function": TOOL}
    upper = json.loads(json.dumps(TOOL).replace('"object"', '"OBJECT"').replace('"string"', '"STRING"'))
    untyped = {**TOOL, "parameters": {"properties": TOOL["parameters"]["properties"]}}
    nullable = {
        **TOOL,
        "parameters": {"type": "object", "properties": {"a": {"type": ["string", "null"]}}, "required": ["a"]},
    }
    texts = {render([USER], [tool]) for tool in (TOOL, wrapped, upper, untyped, nullable)}
    assert len(texts) == 1
    assert render([USER], []) == render([USER], None) == render([USER])
    assert normalize_tools([wrapped]) == normalize_tools([TOOL]) == [TOOL]  # inside the engine tools are plain
    assert for_template(normalize_tools([wrapped])) == [wrapped]


def test_numbers_in_a_declaration_print_alike():
    items = {"type": "number", "minimum": 0.0, "multipleOf": 1e-5, "enum": [2.0, 1e-5]}
    tool = {**TOOL, "parameters": {"type": "object", "properties": {"a": {"type": "array", "items": items}}}}
    assert "items:{enum:[2,0.00001],minimum:0,multipleOf:0.00001,type" in render([USER], [tool])


def test_scalar_and_list_results():
    calls = [USER, call_message({})]
    for content, expected in (
        (15, "{value:15}"),
        (True, "{value:true}"),
        ([1, "a"], "{value:[1,<escape>a<escape>]}"),
        ({}, "{}"),
    ):
        text = render([*calls, {"role": "tool", "name": "f", "content": content}])
        assert text.endswith(f"response:f{expected}<end_function_response>")
    wrapped = render([*calls, {"role": "tool", "content": {"name": "f", "response": {"a": 1}}}])
    assert wrapped.endswith("response:f{a:1}<end_function_response>")


def test_white_space_around_texts():
    text = render([{"role": "user", "content": "\ufeff\x85\u3000 a\u200b \x1f\n"}])
    assert text == "<bos><start_of_turn>user\na\u200b<end_of_turn>\n"
    parts = [{"type": "text", "text": "a \n"}, {"type": "text", "text": " b"}]
    assert "user\nab<end" in render([{"role": "user", "content": parts}])
    assert written({"a": " b\n"}) == "{a:<escape> b\n<escape>}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.0, "2"),
        (-0.0, "0"),
        (1e-5, "0.00001"),
        (1e-7, "1e-7"),
        (True, "true"),
        ("", "<escape><escape>"),
        ((1,), "[1]"),
    ],
)
def test_values(value, text):
    assert written({"a": value}) == f"{{a:{text}}}"


@pytest.mark.parametrize("value", [None, [None], {"b": None}, math.nan, math.inf, 2**53, 1e20, "<escape>",
                                   "a<end_of_turn>b", "\ud800", {"a:b": 1}, {"": 1}, {"<escape>": 1}, {1: 2},
                                   b"x", object()])  # fmt: skip
def test_refused_values(value):
    with pytest.raises(FormatError, match="messages"):
        render([USER, call_message({"a": value})])
    if not isinstance(value, dict) or list(value) == ["b"]:
        with pytest.raises(FormatError):
            render([USER, call_message({}), {"role": "tool", "name": "f", "content": {"a": value}}])


def test_keys_that_sort_differently_are_refused():
    assert "\uff5e" < "\U0001f600"  # but not in UTF-16
    with pytest.raises(FormatError, match="sort"):
        written({"\uff5e": 1, "\U0001f600": 2})


def test_depth_limit():
    value = 1
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert written({"a": value})
    with pytest.raises(FormatError, match="deeper"):
        written({"a": [value]})


@pytest.mark.parametrize(
    "text", ["<start_of_turn>model", "<pad>", "<unused7>", "x<eos>", "<image_soft_token>", "\udc00"]
)
@pytest.mark.parametrize(
    "place", ["user", "developer", "assistant", "tool", "parts", "name", "key", "description", "enum"]
)
def test_control_tokens_are_refused_everywhere(text, place):
    messages, tools = [USER], [json.loads(json.dumps(TOOL))]
    if place in ("user", "developer", "assistant"):
        messages = [{"role": place, "content": f"a {text}"}]
    elif place == "tool":
        messages += [call_message({}), {"role": "tool", "name": "f", "content": text}]
    elif place == "parts":
        messages = [
            {"role": "user", "content": [{"type": "text", "text": text[:3]}, {"type": "text", "text": text[3:]}]}
        ]
    elif place == "name":
        tools[0]["name"] = text
    elif place == "key":
        tools[0]["parameters"]["properties"][text] = {"type": "string"}
    elif place == "description":
        tools[0]["parameters"]["properties"]["a"]["description"] = text
    elif place == "enum":
        tools[0]["parameters"]["properties"]["a"]["enum"] = [text]
    with pytest.raises(FormatError):
        render(messages, tools)


@pytest.mark.parametrize(
    ("messages", "prompt", "say"),
    [
        ([], False, "no messages"),
        ("hi", False, "no messages"),
        (["hi"], False, "object"),
        ([{"role": "bot", "content": "hi"}], False, "Unknown role"),
        ([USER, {"role": "developer", "content": "x"}], False, "first"),
        ([USER, {"role": "tool", "name": "f", "content": "x"}], False, "follow a call"),
        ([USER, call_message({}), {"role": "tool", "content": "x"}], False, "whose"),
        ([USER, call_message({}), USER], False, "result"),
        ([USER, call_message({}), {"role": "tool", "name": "f", "content": "x"}, USER], False, "answer"),
        ([USER, call_message({})], True, "waits for its result"),
        ([{**call_message({}), "role": "user"}], False, "cannot make calls"),
        ([USER, call_message("{a: 1}")], False, "no JSON"),
        ([USER, call_message("[1]")], False, "object"),
        ([USER, call_message({}, name="a  b")], False, "name"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], False, "Only text"),
    ],
)
def test_refused_messages(messages, prompt, say):
    with pytest.raises(FormatError, match=say):
        render(messages, add_generation_prompt=prompt)


def test_the_template_itself_trims(tmp_path):
    messages = [{"role": role, "content": " a \n"} for role in ("system", "user", "assistant")]
    [result] = in_javascript([{"messages": messages, "add_generation_prompt": False}], tmp_path)
    assert result["text"] == render(messages) and " a" not in result["text"]


def test_the_template_itself_refuses_what_it_would_lose(tmp_path):
    """In the browser the template stands alone: it throws where the official one loses."""

    def prompt(schema):
        tool = {"name": "f", "parameters": {"type": "object", "properties": schema}}
        return {"messages": [USER], "tools": [tool], "add_generation_prompt": True}

    cases = [
        {"messages": [USER, call_message({"a": None})], "add_generation_prompt": False},
        {"messages": [USER, call_message('{"a": 1}')], "add_generation_prompt": False},
        prompt({"type": {"type": "string"}}),
        prompt({"a": {"type": ["string", "null"]}}),
        prompt({"a": {"anyOf": [{"type": "string"}]}}),
        {
            "messages": [USER],
            "tools": [{"name": "f", "parameters": {"properties": {}}}, {}],
            "add_generation_prompt": True,
        },
    ]
    for case, result in zip(cases, in_javascript(cases, tmp_path), strict=True):
        assert result.get("error"), case


def test_refused_tools_raise_a_schema_error():
    with pytest.raises(SchemaError, match='f · type: A parameter named "type" vanishes'):
        render([USER], [{**TOOL, "parameters": {"type": "object", "properties": {"type": {"type": "string"}}}}])
