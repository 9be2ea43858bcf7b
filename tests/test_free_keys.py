"""Objects with declared and free keys: the check of rows, both grammars, stage 01 and the page agree on every call."""

import itertools
import random

import numpy as np
import pytest
from test_grammar import fits, folder, ids_of, rules, tokenizer  # noqa: F401 (fixtures)
from test_lint import row
from test_prompt import in_node

from fgtune.data.grouping import has_open_value
from fgtune.data.verbatim import text_arguments
from fgtune.evaluation.coverage import refused_calls
from fgtune.format.calls import Call, CallSyntaxError, format_call, parse_calls
from fgtune.format.grammar import GrammarError, tool_grammar
from fgtune.format.lint import lint_examples
from fgtune.format.tools import repair_tools

CITY, COUNT, LOUD = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}


def open_object(values, **more):
    declared = {"city": CITY, "Größe": LOUD, "n": COUNT}
    return {"type": "object", "properties": declared, "required": ["n"], "additionalProperties": values, **more}


def nested(schema, required=()):
    return {"type": "object", "properties": {"to": schema}, "required": list(required)}


CLOSED = {key: value for key, value in open_object(False).items() if key != "additionalProperties"}
NAMELESS = {"type": "object", "additionalProperties": False}
PAIR = {"type": "object", "properties": {"x": COUNT, "y": COUNT}, "required": ["y"]}
# parameters, arguments that fit them, arguments that do not
CASES = [
    (schema, [{"n": 1}, {"city": "Bonn", "n": 1}, {"a": 1, "n": 1}, {"n": 1, "z": 1}, {"City hall": 5, "n": 1},
              {"a": 1, "b": 2, "city": "x", "cityhall": 4, "d": 5, "Größe": True, "grün": 7, "n": 1, "na": 9, "z": 0},
              {"cit": 1, "gr": 2, "Größ": 4, "n": 1, "größe": 3, "Größer": 5}],
     [{}, {"a": 1}, {"city": 1, "n": 1}, {"a": 1, "city": True, "n": 1}, {"n": "1", "z": 1}, {"Größe": 1, "n": 1}])
    for schema in (open_object(True), open_object({}), open_object(COUNT))
] + [
    (open_object(True), [{"n": 1, "z": [{"deep": [True, "x"]}, 1.5]}, {"a": {"n": 1}, "n": 2}], []),
    (open_object(COUNT), [], [{"n": 1, "z": "1"}, {"a": True, "n": 1}, {"a": {"b": 1}, "n": 1}]),
    (open_object({"type": "string", "enum": ["on", "off"]}), [{"a": "on", "n": 1, "z": "off"}], [{"a": "no", "n": 1}]),
    (open_object({"type": "array", "items": LOUD}), [{"a": [], "n": 1, "z": [True]}], [{"a": [1], "n": 1}]),
    (open_object(PAIR), [{"a": {"y": 1}, "n": 1, "z": {"x": 1, "y": 2}}], [{"a": {"x": 1}, "n": 1},
                                                                          {"n": 1, "z": {"y": 1, "z": 2}}]),
    (open_object(open_object(COUNT)), [{"a": {"n": 1, "q": 2}, "n": 3}], [{"a": {"q": 2}, "n": 3}]),
    (open_object(COUNT, required=[]), [{}, {"a": 1}, {"a": 1, "city": "x", "z": 2}, {"city": "x"}], [{"a": "1"}]),
    (nested(open_object(COUNT)), [{}, {"to": {"a": 1, "city": "x", "n": 1}}], [{"to": {"a": 1}}, {"a": 1}]),
    (nested(open_object(True), ["to"]), [{"to": {"a": [1], "n": 1, "z": "x"}}], [{}, {"to": {"n": 1, "city": 2}}]),
    (nested({"type": "array", "items": open_object(COUNT)}),
     [{"to": [{"n": 1}, {"n": 1, "z": 2}]}], [{"to": [{"z": 2}]}]),
    (CLOSED, [{"n": 1}], [{"a": 1, "n": 1}, {"n": 1, "z": 1}]),
    (open_object(False), [{"n": 1}], [{"a": 1, "n": 1}, {"n": 1, "z": 1}]),
    (nested(CLOSED), [{"to": {"n": 1}}], [{"to": {"a": 1, "n": 1}}]),
    (nested(NAMELESS), [{"to": {}}], [{"to": {"a": 1}}]),
    ({"type": "object", "additionalProperties": COUNT}, [{}, {"a": 1}], [{"a": "x"}]),
    ({"type": "object"}, [{}], [{"a": 1}]),
]  # fmt: skip


def tool_of(parameters):
    return {"name": "f", "description": "Does it.", "parameters": parameters}


def answer(arguments):
    return format_call(Call("f", arguments)) + "<start_function_response>"


def written(text):
    return f"<start_function_call>call:f{text}<end_function_call><start_function_response>"


class Tokens:
    def __init__(self, tokenizer):  # noqa: F811
        self.tokenizer = tokenizer

    def encode(self, text, add_special_tokens):
        return ids_of(self.tokenizer, text)


def test_rows_grammars_stage_and_page_say_the_same(rules, tokenizer, tmp_path):  # noqa: F811
    calls = [[*good, *bad] for _, good, bad in CASES]
    expected = [[True] * len(good) + [False] * len(bad) for _, good, bad in CASES]
    tools = [tool_of(schema) for schema, _, _ in CASES]
    by_rows = [[not any(f.level == "error" for f in lint_examples([row([("f", each)])], [tool])) for each in some]
               for tool, some in zip(tools, calls, strict=True)]  # fmt: skip
    in_python, refused = [], []
    for tool, some in zip(tools, calls, strict=True):
        constraint = rules.constraint([tool])
        in_python.append([fits(constraint, ids_of(tokenizer, answer(each))) for each in some])
        examples = [row([("f", each)], number=i, tools=[tool]) for i, each in enumerate(some)]
        gone = refused_calls(rules, examples, Tokens(tokenizer))
        refused.append([example not in gone for example in examples])
    data = [{"tools": [tool], "answers": list(map(answer, some)), "prompt": "",
             "calls": [{"name": "f", "arguments": each} for each in some]}
            for tool, some in zip(tools, calls, strict=True)]  # fmt: skip
    in_javascript, page = (in_node(f"{script}_cases.mjs", data, tmp_path) for script in ("grammar", "check"))
    for i, (schema, _, _) in enumerate(CASES):
        found = by_rows[i], in_python[i], refused[i], in_javascript[i], page[i]
        assert found == (expected[i],) * 5, (schema, calls[i])


@pytest.mark.parametrize(
    "text, allowed",
    [
        ("{z:1,a:2,n:1}", True),  # free keys come in any order, as in an object that names no keys
        ("{n:1,a:2,z:1,b:3}", True),
        ("{n:1,city:<escape>x<escape>}", False),  # declared ones in the order of the format, and once
        ("{n:1,z:2,city:<escape>x<escape>}", False),
        ("{n:1,n:2}", False),
        ("{n:1,z:2,n:3}", False),
        ("{city:1,n:2}", False),  # a declared key is never a free one
        ("{a:1,city:1,n:2}", False),
        ("{n:1,city:2}", False),
        ("{n:1,}", False),
        ("{,n:1}", False),
        ("{a:1,,n:1}", False),
        ("{:1,n:1}", False),
        ("{n:1,:1}", False),
        ("{a:1 n:1}", False),
        ("{<eos>:1,n:1}", False),
        ("{<unused7>:1,n:1}", False),
    ],
)
def test_where_free_keys_may_stand(rules, tokenizer, tmp_path, text, allowed):  # noqa: F811
    tools = [tool_of(open_object(COUNT))]
    assert fits(rules.constraint(tools), ids_of(tokenizer, written(text))) is allowed
    data = [{"tools": tools, "answers": [written(text)], "prompt": ""}]
    assert in_node("grammar_cases.mjs", data, tmp_path) == [[allowed]]


def test_a_free_key_is_none_of_the_declared(rules, tokenizer, tmp_path):  # noqa: F811
    """All keys of up to three of some characters, beside declared ones that begin alike, are refused where declared."""
    declared = ["a", "ab", "bé", "b<", "<", "éé", "日a"]
    schema = {"type": "object", "properties": dict.fromkeys(declared, COUNT), "additionalProperties": LOUD}
    keys = ["".join(some) for n in (1, 2, 3) for some in itertools.product("ab<é日", repeat=n)]
    tools, answers = [tool_of(schema)], [written(f"{{{key}:true}}") for key in keys]
    expected = {key: key not in declared for key in keys}
    constraint = rules.constraint(tools)
    assert {key: fits(constraint, ids_of(tokenizer, text)) for key, text in zip(keys, answers)} == expected
    [found] = in_node("grammar_cases.mjs", [{"tools": tools, "answers": answers, "prompt": ""}], tmp_path)
    assert dict(zip(keys, found, strict=True)) == expected


def test_random_scores_write_free_keys(rules, tokenizer):  # noqa: F811
    """Calls under random scores hold free keys and pass the check of rows; only a free key may come twice."""
    tool = tool_of(open_object({"type": "integer"}))
    constraint, chooser = rules.constraint([tool], text=False, parallel=False), random.Random(3)
    pieces = {id for piece in (":", ",", "}", "n", "1", "a", "city") for id in ids_of(tokenizer, piece)}
    free = 0
    for _ in range(80):
        constraint.start()
        made = []
        while len(made) < 60 and (not made or made[-1] != 50):
            choices = np.flatnonzero(constraint.allowed())
            likely = [token for token in choices if token in pieces]
            made.append(int(chooser.choice(likely if likely and chooser.random() < 0.9 else list(choices))))
            assert constraint.accept(made[-1])
        if made[-1] != 50:
            continue
        try:
            [call] = parse_calls(tokenizer.decode(made, skip_special_tokens=False))
        except CallSyntaxError as error:
            assert "twice" in str(error)
            continue
        assert not [f for f in lint_examples([row([("f", call.arguments)])], [tool]) if f.level == "error"]
        free += bool(set(call.arguments) - {"city", "Größe", "n"})
    assert free > 10


def test_what_free_keys_hold_is_checked_when_the_grammar_is_made():
    with pytest.raises(GrammarError, match="'date' is not known"):
        tool_grammar([tool_of(open_object({"type": "date"}))])


def test_that_a_declaration_cannot_tell_of_free_keys_is_noted():
    def notes(schema):
        return [note.level for note in repair_tools([tool_of(nested(schema))])[1] if note.code == "open-object"]

    for schema in (open_object(True), open_object({}), open_object(COUNT)):
        assert notes(schema) == ["warning"]
    for schema in (open_object(False), CLOSED, NAMELESS):
        assert notes(schema) == []


def test_values_of_free_keys_that_the_schema_enumerates_are_closed():
    """They are no open values that a copy of an example could exchange, or that a split holds out."""
    values = {"enum": ["a", "b"]}
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "additionalProperties": values}
    tool = {"name": "f", "description": "F.", "parameters": schema}
    call = Call("f", {"city": "Oslo", "mood": "a"})
    assert [name for name, *_ in text_arguments(call, schema)] == ["f.city"]
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"mood": "a"}}}]}
    assert not has_open_value({"tools": [tool], "messages": [{"role": "user", "content": "a"}, turn]})
