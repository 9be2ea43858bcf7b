"""Calls as text: read back exactly, in Python and in JavaScript, in linear time."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_format_cases import CASES_FILE, PIECES, arguments, names
from test_prompt import in_node

from fgtune.format.calls import Call, CallSyntaxError, _Scanner, format_call, parse_calls, same_call
from fgtune.format.findings import FormatError
from fgtune.format.grammar import MAX_DEPTH as GRAMMAR_DEPTH
from fgtune.format.grammar import MAX_DIGITS, GrammarError, tool_grammar
from fgtune.format.template import render
from fgtune.format.tokens import CONTROL_TOKEN, CONTROL_TOKENS, ENDINGS, SPELLINGS, STOP_IDS, TOKEN_IDS
from fgtune.format.values import MAX_DEPTH, MAX_INTEGER

DATA = Path(__file__).parent / "data"
MALFORMED = json.loads((DATA / "malformed-calls.json").read_text(encoding="utf-8"))
ENDED = ["", *ENDINGS, "<end_of_turn>\n"]
CLEAN = ["", "Hello.", "call:f{a:1}", "a < b > c {x} [y] <escape", "<b>bold</b>", "It is 15°C 🌍\nin Paris."]
calls = st.builds(Call, names, arguments)


def kept_turns():
    """Every assistant turn with calls of the kept cases: its calls and its text."""
    for case in json.loads(CASES_FILE.read_text(encoding="utf-8")):
        for message in case["messages"]:
            if message.get("tool_calls"):
                made = [Call(**call["function"]) for call in message["tool_calls"]]
                yield made, (message["content"] or "") + "".join(map(format_call, made)), case["text"]


@settings(max_examples=300, deadline=None)
@given(st.lists(calls, min_size=1, max_size=3), st.sampled_from(ENDED), st.sampled_from(CLEAN))
def test_what_is_written_is_read_back(made, ending, before):
    read = parse_calls(before + "".join(map(format_call, made)) + ending)
    assert read == made
    assert all(map(same_call, read, made))
    assert json.dumps([call.arguments for call in read], sort_keys=True) == json.dumps(
        [json.loads(json.dumps(_whole(call.arguments))) for call in made], sort_keys=True
    )


def _whole(value):
    """The value with 2.0 as 2, so that types can be compared too."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["<start_function_call>", "<end_function_call>", "call:f{", "a:", "}", "]", "[", "{",
                                 ",", "1", "<escape>", "<end_of_turn>", *PIECES]) | st.text(max_size=3),
                max_size=12))  # fmt: skip
def test_any_text_is_read_or_refused_with_its_offset(parts):
    text = "".join(parts)
    try:
        found = parse_calls(text)
    except CallSyntaxError as error:
        assert 0 <= error.offset <= len(text)
    else:
        assert bool(found) == ("<start_function_call>" in text)


def test_the_text_of_a_call_is_the_templates():
    turns = list(kept_turns())
    assert len(turns) >= 300
    assert all(text in case_text for _, text, case_text in turns)


def test_kept_turns_read_alike_in_javascript(tmp_path):
    turns = list(kept_turns())
    texts = [text for _, text, _ in turns]
    for (made, text, _), result in zip(turns, in_node("parse_cases.mjs", texts, tmp_path), strict=True):
        assert [Call(**call) for call in result["calls"]] == made == parse_calls(text)
        assert text.endswith("".join(result["texts"]))


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case["text"])
def test_malformed_calls(case):
    with pytest.raises(CallSyntaxError) as caught:
        parse_calls(case["text"])
    assert caught.value.offset == case["offset"]
    assert str(case["offset"]) in str(caught.value)


def test_malformed_calls_in_javascript(tmp_path):
    results = in_node("parse_cases.mjs", [case["text"] for case in MALFORMED], tmp_path)
    for case, result in zip(MALFORMED, results, strict=True):
        assert "calls" not in result and result["offset"] == case["offset"], case["text"]
        with pytest.raises(CallSyntaxError) as caught:
            parse_calls(case["text"])
        assert result["message"] == str(caught.value)


@pytest.mark.parametrize("ending", ENDED)
@pytest.mark.parametrize("text", CLEAN)
def test_clean_answers_have_no_calls(text, ending):
    assert parse_calls(text + ending) == []


def test_numbers_as_models_write_them():
    text = "<start_function_call>call:f{a:2.0,b:-0,c:1e3,d:1E-7,e:-1.50}<end_function_call>"
    [call] = parse_calls(text)
    assert call.arguments == {"a": 2, "b": 0, "c": 1000, "d": 1e-7, "e": -1.5}
    assert [type(value) for value in call.arguments.values()] == [int, int, int, float, float]


def test_depth_is_limited_not_the_stack():
    start = "<start_function_call>call:f{a:"
    assert parse_calls(start + "[" * 31 + "]" * 31 + "}<end_function_call>")
    with pytest.raises(CallSyntaxError, match="deeper"):
        parse_calls(start + "[" * 100_000)


def test_format_refuses_what_cannot_be_read_back():
    for call in (
        Call("f", {"a": None}),
        Call("a  b"),
        Call(" a"),
        Call("f", {"a": "x\u2581y"}),
        Call("f", {"a{": 1}),
        Call("f", {"a": "<escape>"}),
        Call("f", [1]),
    ):
        with pytest.raises(FormatError):
            format_call(call)


def test_format_call_equals_the_rendered_call():
    arguments = {"B": 1, "a": {"z": [True, "x"], "Y": {}}}
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    assert format_call(Call("f", arguments)) in render([{"role": "user", "content": "hi"}, turn])
    assert format_call(Call("f")) == "<start_function_call>call:f{}<end_function_call>"


SHAPES = {
    "one long text": lambda n: "a:<escape>" + "x<" * (n // 2) + "<escape>",
    "many arguments": lambda n: ",".join(f"k{i}:{i}" for i in range(n // 8)),
    "a long list": lambda n: "a:[" + ",".join(["<escape>x<escape>"] * (n // 18)) + "]",
    "nested objects": lambda n: "a:[" + ",".join(["{b:{c:1}}"] * (n // 10)) + "]",
    "a long number": lambda n: "a:[" + ",".join(["1234567.25"] * (n // 11)) + "]",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_cost_is_linear(shape):
    """A hundred times the text takes a hundred times the steps, and no step reads what another one read."""
    steps = []
    for size in (10_000, 1_000_000):
        reads = []
        scanner = _Scanner("<start_function_call>call:f{" + SHAPES[shape](size) + "}<end_function_call>")
        scanner.text = Watched(scanner.text, reads)
        scanner.calls()
        steps.append((scanner.steps, sum(reads)))
    for small, large in zip(*steps, strict=True):
        assert large <= 130 * small


class Watched(str):
    """A text that notes how many characters are copied out of it."""

    def __new__(cls, text, reads):
        made = super().__new__(cls, text)
        made.reads = reads
        return made

    def __getitem__(self, place):
        found = str.__getitem__(self, place)
        self.reads.append(len(found))
        return found


def test_the_cost_of_broken_text_is_linear_too():
    start = "<start_function_call>call:f{"
    for text in (start + "k" * 10**6, start + "a:<escape>" + "x" * 10**6, start + "a:" + "9" * 10**6, "<unused" * 10**5,
                 start + "a:1," * 250_000, "<start_function_call>" * 50_000, "<unused" + "1" * 10**6):  # fmt: skip
        scanner = _Scanner(text)
        try:
            scanner.calls()
        except CallSyntaxError:
            assert scanner.steps <= len(text)
        else:
            assert "<unused" in text


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (5, "5", False), (5, 5.0, True), (2.5, 2.5, True), (True, 1, False), (False, 0, False), (1, True, False),
        (True, True, True), ("a", "a", True), ("a", "A", False), ("é", "e\u0301", False), ([1, 2], [2, 1], False),
        ([1, 2], [1, 2.0], True), ([1], [True], False), ([1], [1, 1], False), 
        ({"x": 1, "y": 2}, {"y": 2, "x": 1}, True), ([{"a": [1]}], [{"a": [1.0]}], True),
        ({"x": 1}, {"x": "1"}, False), ({"x": 1}, {"x": 1, "y": 2}, False), ({}, [], False), ("", {}, False),
    ],
)  # fmt: skip
def test_same_call(a, b, same, tmp_path):
    assert same_call(Call("f", {"v": a}), Call("f", {"v": b})) is same
    assert same_call(Call("f", {"v": b}), Call("f", {"v": a})) is same
    assert not same_call(Call("f", {"v": a}), Call("g", {"v": a}))


def test_a_declared_default_equals_leaving_it_out():
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"unit": {"type": "string", "default": "C"}}}}
    for given_tool in (tool, {"type": "function", "function": tool}):
        assert same_call(Call("f", {"unit": "C"}), Call("f"), given_tool)
        assert not same_call(Call("f", {"unit": "F"}), Call("f"), given_tool)
    assert not same_call(Call("f", {"unit": "C"}), Call("f"))
    assert same_call(Call("f"), Call("f"), {"name": "f"})


def passes(function, value):
    """Whether the function takes the value."""
    try:
        function(value)
    except (FormatError, CallSyntaxError, GrammarError):
        return False
    return True


def nested(depth, wrap, inner):
    for _ in range(depth):
        inner = wrap(inner)
    return inner


def test_javascript_has_the_same_tokens_patterns_and_limits(tmp_path):
    """The facts that stand a second time in web/*.js: what JavaScript lets through is what Python lets through."""
    texts = [*SPELLINGS, "<unused0>", "<unused1234>", "<unused>", "<unused1", "<start_of_image", "<start_of_>",
             "< pad>", "<PAD>", "escape>", "</escape>", "<start_function>", "<end_image_soft_token>"]  # fmt: skip
    characters = [chr(code) for code in (*range(0x300), 0x2581, 0x3000, 0xFEFF, 0xFF0C, 0x1F30D)]
    depths, integers = range(10, 40), [str(sign * (MAX_INTEGER + more)) for sign in (1, -1) for more in (-1, 0, 1, 2)]
    digits = range(1, 25)
    found = in_node("limits.mjs", {"texts": texts, "characters": characters, "depths": list(depths),
                                   "integers": integers, "digits": list(digits)}, tmp_path)  # fmt: skip

    def read(value, name="f"):
        return parse_calls(f"<start_function_call>call:{name}{{a:{value}}}<end_function_call>")

    def compile_depth(depth):
        schema = nested(depth, lambda items: {"type": "array", "items": items}, {"type": "string"})
        return tool_grammar([{"name": "f", "parameters": {"type": "object", "properties": {"a": schema}}}])

    lists = [nested(depth - 1, lambda inner: [inner], []) for depth in depths]
    tokens = [CONTROL_TOKEN.search(text) for text in texts]
    assert found == {
        "stops": list(STOP_IDS),
        "controls": [token and token.group() for token in tokens],
        "grammarTexts": [token is None for token in tokens],
        "names": [passes(lambda char: format_call(Call(f"a{char}b")), char) for char in characters],
        "namesRead": [passes(lambda char: read(1, f"a{char}b"), char) for char in characters],
        "keys": [passes(lambda char: format_call(Call("f", {f"a{char}b": 1})), char) for char in characters],
        "depths": [passes(lambda value: format_call(Call("f", {"a": value})), value) for value in lists],
        "depthsRead": [passes(read, json.dumps(value)) for value in lists],
        "grammarDepths": [passes(compile_depth, depth) for depth in depths],
        "integers": [passes(lambda text: format_call(Call("f", {"a": int(text)})), text) for text in integers],
        "integersRead": [passes(read, text) for text in integers],
        "grammarDigits": [count <= MAX_DIGITS for count in digits],
    }
    assert sum(found["depths"]) == MAX_DEPTH - depths[0]
    assert sum(found["grammarDepths"]) == GRAMMAR_DEPTH - depths[0]


def test_token_ids_follow_from_the_control_tokens():
    assert {CONTROL_TOKENS[TOKEN_IDS[name]] for name in ("call", "end_call", "response", "escape")} == {
        "<start_function_call>", "<end_function_call>", "<start_function_response>", "<escape>"}  # fmt: skip
    assert (TOKEN_IDS["eos"], TOKEN_IDS["end_of_turn"]) == (1, 106) and STOP_IDS == (1, 50, 106)
    assert all(CONTROL_TOKEN.fullmatch(token) for token in (*SPELLINGS, "<unused0>", "<unused99>"))
    assert not CONTROL_TOKEN.search("<unused> <b> <start_of_x>")
