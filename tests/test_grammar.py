"""The grammar in Python: whatever the scores, answers parse and fit; and it agrees with the one in JavaScript."""

import json
import random

import numpy as np
import pytest

from fgtune_helpers import calls, grammar, prompt
from fgtune_helpers.base import resolve_base
from fgtune_helpers.stage import project_root

TOOLS = [
    {"name": "ping", "parameters": {"type": "object", "properties": {}}},
    {
        "name": "weather.now",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "STRING"},
                "Unit": {"type": "string", "enum": ["celsius", "degrees F"]},
                "days": {"type": "integer"},
                "at": {
                    "type": "object",
                    "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
                    "required": ["lat", "lon"],
                },
                "loud": {"type": "boolean"},
                "tags": {"type": "array", "items": {"type": "string", "enum": ["x", "yz"]}},
            },
            "required": ["city", "at"],
        },
    },
]
BY_NAME = {tool["name"]: tool["parameters"] for tool in TOOLS}


@pytest.fixture(scope="module")
def tokenizer_file():
    return resolve_base("tiny").path / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tokenizer_file))


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def fits(constraint, ids):
    constraint.start()
    return all(constraint.allowed()[token] and constraint.accept(token) for token in ids)


@pytest.mark.parametrize("text", [True, False])
def test_random_scores_give_valid_answers(tokenizer_file, tokenizer, text):
    import jsonschema

    constraint = grammar.Constraint(tokenizer_file, tokenizer.get_vocab_size(), TOOLS, text=text)
    chooser = random.Random(1)
    seen, whole = set(), 0
    stops = {1, 50, 106}
    for n in range(60):
        constraint.start()
        made = []
        while len(made) < 150:
            choices = np.flatnonzero(constraint.allowed())
            close = [c for c in choices if c in (*stops, 49, 52)]
            first = [48] if not made and n % 2 and 48 in choices else []
            token = int(
                first[0] if first else chooser.choice(close if close and chooser.random() < 0.3 else list(choices))
            )
            assert constraint.accept(token)
            if token in stops:
                whole += 1
                break
            made.append(token)
        else:
            made = grammar.cut_to_whole_calls(made)
        answer = tokenizer.decode(made, skip_special_tokens=False)
        for call in calls.parse_calls(answer):  # raises when malformed
            seen.add(call.name)
            schema = json.loads(json.dumps(BY_NAME[call.name]).replace("STRING", "string"))
            jsonschema.validate(call.arguments, schema | {"additionalProperties": False})
            assert list(call.arguments) == sorted(call.arguments, key=str.lower)
    assert seen == set(BY_NAME) and whole >= 30


def test_the_gold_calls_of_the_examples_are_allowed(tokenizer_file, tokenizer):
    tools, rows = (
        json.loads((project_root() / "examples" / name / "everyday.json").read_text(encoding="utf-8"))
        for name in ("tools", "requests")
    )
    constraint = grammar.Constraint(tokenizer_file, tokenizer.get_vocab_size(), tools)
    checked = 0
    for row in rows[:80]:
        expected = [call for call in row.get("expectedToolCalls") or [] if "arguments" in call]
        if not expected:
            continue
        text = "".join(calls.format_call(calls.Call(call["name"], call["arguments"])) for call in expected)
        assert fits(constraint, ids_of(tokenizer, text + "<start_function_response>")), text
        checked += 1
    assert checked > 30


@pytest.mark.parametrize(
    "text",
    [
        "<start_function_call>call:pong{}<end_function_call><start_function_response>",
        "<start_function_call>call:ping{a:1}<end_function_call><start_function_response>",
        "<start_function_call>call:weather.now{city:<escape>x<escape>}<end_function_call>",
        "<start_function_call>call:weather.now{city:<escape>x<escape>,at:{lat:1,lon:2}}<end_function_call>",
        "<start_function_call>call:weather.now{at:{lat:1,lon:2},city:<escape>x<escape>,days:1.5}<end_function_call>",
        "<start_function_call>call:ping{}<end_function_call><end_of_turn>",
        "hello <escape>",
        "hello <start_function_call>",
    ],
)
def test_what_is_wrong_is_not_allowed(tokenizer_file, tokenizer, text):
    constraint = grammar.Constraint(tokenizer_file, tokenizer.get_vocab_size(), TOOLS)
    assert not fits(constraint, ids_of(tokenizer, text))


def test_control_tokens_cannot_be_spelled_in_ordinary_characters(tokenizer_file, tokenizer):
    constraint = grammar.Constraint(tokenizer_file, tokenizer.get_vocab_size(), TOOLS)
    names = [char if tokenizer.token_to_id(char) else f"<0x{ord(char):02X}>" for char in "<escape>"]
    single = [tokenizer.token_to_id(name) for name in names]
    assert None not in single
    assert fits(constraint, single[:-1]) and not fits(constraint, single)


def test_the_untuned_model_makes_no_malformed_call(tiny_onnx, tokenizer_file):
    from fgtune_helpers import ort

    generator = ort.OrtGenerator(tiny_onnx, "fp32", max_tokens=240)
    queries = ["Weather in Paris?", "Ping it", "Is it loud in Rome tomorrow?"]
    prompts = [
        prompt.render([{"role": "developer", "content": prompt.TRIGGER}, {"role": "user", "content": q}], TOOLS, True)
        for q in queries
    ]
    plain = generator.generate(prompts)
    constrained = grammar.ConstrainedGenerator(generator, TOOLS, tokenizer_file, text=False)
    answers = constrained.generate(prompts)
    assert answers != plain
    names = [[call.name for call in calls.parse_calls(answer)] for answer in answers]
    assert all(set(found) <= set(BY_NAME) for found in names) and any(names)
    assert len(constrained.ms_per_token) == 3 and all(cost > 0 for cost in constrained.ms_per_token)


def test_refusals_are_one_line():
    with pytest.raises(grammar.GrammarError, match="no tool"):
        grammar.tool_grammar([])
    with pytest.raises(grammar.GrammarError, match="'date' is not known"):
        grammar.tool_grammar([{"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "date"}}}}])
    with pytest.raises(grammar.GrammarError, match="nothing is left"):
        grammar.tool_grammar([], text=False, calls=False)
