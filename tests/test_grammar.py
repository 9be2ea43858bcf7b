"""The grammar in Python: whatever the scores, answers parse and fit; and it agrees with the one in JavaScript."""

import json
import random

import numpy as np
import pytest

from fgtune.core.project import project_root
from fgtune.data.rows import case_of
from fgtune.data.verbatim import is_verbatim, verbatim_arguments
from fgtune.evaluation.coverage import refused_calls
from fgtune.format.calls import Call, CallSyntaxError, format_call, parse_calls
from fgtune.format.grammar import GrammarError, tool_grammar, user_spans
from fgtune.format.template import TRIGGER, render
from fgtune.format.tokens import TOKEN_IDS
from fgtune.models.base import resolve_base
from fgtune.runtimes.constrained import Grammar
from fgtune.runtimes.onnxruntime import OrtGenerator

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
def folder():
    return resolve_base("tiny").path


@pytest.fixture(scope="module")
def rules(folder):
    return Grammar(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def fits(constraint, ids):
    constraint.start()
    return all(constraint.allowed()[token] and constraint.accept(token) for token in ids)


@pytest.mark.parametrize("text", [True, False])
def test_random_scores_give_valid_answers(rules, tokenizer, text):
    import jsonschema

    constraint = rules.constraint(TOOLS, text=text)
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
            continue
        answer = tokenizer.decode(made, skip_special_tokens=False)
        for call in parse_calls(answer):  # raises when malformed
            seen.add(call.name)
            schema = json.loads(json.dumps(BY_NAME[call.name]).replace("STRING", "string"))
            jsonschema.validate(call.arguments, schema | {"additionalProperties": False})
            assert list(call.arguments) == sorted(call.arguments, key=str.lower)
    assert seen == set(BY_NAME) and whole >= 30


def test_a_choice_is_the_likeliest_of_the_mask(rules):
    """A token that fits is one of the mask, so the likeliest of all may be tried before a mask is made.

    One of the mask fits, but for <eos>: llguidance takes it in `accept` alone, where a mask is made first.
    """
    rng, kinds = np.random.default_rng(5), set()
    constraint = rules.constraint(TOOLS, "<bos>x<end_of_turn>\n<start_of_turn>user\nrain in Oslo<end_of_turn>\n")
    constraint.verbatim = ["weather.now.city"]
    for answer in range(4):
        constraint.start()
        for step in range(30):
            mask = constraint.allowed()
            fits = np.array([constraint.lookahead().accept(token) for token in range(rules.vocab_size)])
            assert set(np.flatnonzero(mask != fits)) <= {TOKEN_IDS["eos"]} and not (fits & ~mask).any()
            scores = rng.integers(0, 40, rules.vocab_size).astype(np.float32)  # many ties: the first counts
            scores[48] += 100 * (answer % 2 and not step)
            expected = int(np.where(mask, scores, -np.inf).argmax())
            kinds.add(bool(mask[scores.argmax()]))
            assert constraint.choose(scores) == expected
            if expected in (1, 50, 106):
                break
    assert kinds == {True, False}


def test_the_gold_calls_of_the_examples_are_allowed(rules, tokenizer):
    tools, rows = (
        json.loads((project_root() / "examples" / name / "everyday.json").read_text(encoding="utf-8"))
        for name in ("tools", "requests")
    )
    constraint = rules.constraint(tools)
    checked = 0
    for row in rows[:80]:
        expected = [call for call in row.get("expectedToolCalls") or [] if "arguments" in call]
        if not expected:
            continue
        text = "".join(format_call(Call(call["name"], call["arguments"])) for call in expected)
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
def test_what_is_wrong_is_not_allowed(rules, tokenizer, text):
    constraint = rules.constraint(TOOLS)
    assert not fits(constraint, ids_of(tokenizer, text))


@pytest.mark.parametrize("more", [-1, 64])
def test_tokenizer_and_logits_may_differ_in_size(folder, tokenizer, tmp_path, more):
    """FunctionGemma's tokenizer has one token more than logits; logits may also be filled up to a round number."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if more < 0:
        found["added_tokens"].append(
            {**found["added_tokens"][0], "id": config["vocab_size"], "content": "<image_soft_token>"}
        )
    else:
        config["vocab_size"] += more
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    constraint = Grammar(tmp_path).constraint(TOOLS)
    constraint.start()
    allowed = constraint.allowed()
    assert len(allowed) == config["vocab_size"] and not allowed[tokenizer.get_vocab_size() :].any()
    assert allowed[TOKEN_IDS["call"]] and constraint.accept(TOKEN_IDS["call"])


def test_without_tools_only_text_is_left(rules, tokenizer):
    constraint = rules.constraint([], "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n")
    assert fits(constraint, ids_of(tokenizer, "Hello<end_of_turn>"))
    assert not fits(constraint, ids_of(tokenizer, "<start_function_call>"))


def test_control_tokens_cannot_be_spelled_in_ordinary_characters(rules, tokenizer):
    constraint = rules.constraint(TOOLS)
    names = [char if tokenizer.token_to_id(char) else f"<0x{ord(char):02X}>" for char in "<escape>"]
    single = [tokenizer.token_to_id(name) for name in names]
    assert None not in single
    assert fits(constraint, single[:-1]) and not fits(constraint, single)


EXAMPLE = {
    "tools": TOOLS,
    "messages": [
        {"role": "developer", "content": TRIGGER},
        {"role": "user", "content": ""},
        {"role": "assistant", "tool_calls": []},
    ],
}


def example(query, **arguments):
    """An example that asks `query` and calls weather.now."""
    found = json.loads(json.dumps(EXAMPLE))
    found["messages"][1]["content"] = query
    found["messages"][2]["tool_calls"] = [
        {"type": "function", "function": {"name": "weather.now", "arguments": arguments}}
    ]
    return found


def test_verbatim_arguments_of_all_examples_are_found():
    """Whole words of the request, each time: not a part of a word, not another case, not an enumerated value."""
    place = {"lat": 1, "lon": 2}
    cities = ["Rome", "Zürich", "St. John's", "New York", "Rio", "Oslo", "Łódź", "Bern", "Kyiv", "Cork"]
    rows = [example(f"How is {city}, in celsius?", city=city, at=place, Unit="celsius") for city in cities]
    assert verbatim_arguments(rows) == {"weather.now.city": 10}
    assert verbatim_arguments([*rows[1:], rows[1]]) == {"weather.now.city": 10}
    assert verbatim_arguments([*rows[2:], rows[2]]) == {}, "nine with two alike"
    assert verbatim_arguments(rows[5:]) == {"weather.now.city": 5} and verbatim_arguments(rows[6:]) == {}
    for query, city in (
        ("In Romeo?", "Rome"),
        ("in rome", "Rome"),
        ("in Rome ", "Rome "),
        ("in  Rome", " Rome"),
        ("x", ""),
    ):
        assert verbatim_arguments([*rows, example(query, city=city, at=place)]) == {}
    assert verbatim_arguments([*rows, example("Rome2 or Rome", city="Rome", at=place)]) == {"weather.now.city": 11}


def test_two_values_are_enough_where_all_else_is_copied():
    """Thirty values of five arguments, all copied: an argument seen twice counts too, but not one whose schema says
    more than text, nor one that is seen once; a single value that is not copied ends it."""
    words = ["tea", "tea", "milk", "rice", "milk", "figs"]
    names = ["one", "two", "three", "four", "five"]
    texts = {"type": "object", "properties": {name: {"type": "string"} for name in [*names, "rare", "once", "day"]}}
    texts["properties"]["day"]["format"] = "date"

    def row(query, **arguments):
        call = {"type": "function", "function": {"name": "buy", "arguments": arguments}}
        messages = [{"role": "user", "content": query}, {"role": "assistant", "tool_calls": [call]}]
        return {"tools": [{"name": "buy", "parameters": texts}], "messages": messages}

    rows = [row(f"buy {word}", **dict.fromkeys(names, word)) for word in words[:-1]]
    rows += [row("some figs now", rare="figs", day="now"), row("and figs now", rare="figs", once="and", day="now")]
    few = {"rare": 2}
    assert verbatim_arguments(rows) == {}, "28 values of free text"
    rows += [row("buy figs", **dict.fromkeys(names, "figs"))]
    assert set(verbatim_arguments(rows)) == {f"buy.{name}" for name in [*names, *few]}
    assert verbatim_arguments([*rows, row("buy bread", five="loaf")]) == {}


def test_answers_that_hold_other_words_are_refused(folder, tokenizer):
    """The example that writes what was not said, or what its tool does not know."""

    class Tokens:
        def encode(self, text, add_special_tokens):
            return ids_of(tokenizer, text)

    rules, at = Grammar(folder, ["weather.now.city"]), {"lat": 1, "lon": 2}
    good, other = example("How is Łódź?", at=at, city="Łódź"), example("How is Łódź?", at=at, city="Lodz")
    wrong = example("How is Łódź?", at=at, city="Łódź", days="three")
    for i, row in enumerate((good, other, wrong)):
        row["id"] = str(i)
    assert refused_calls(rules, [good, other, wrong], Tokens()) == [other, wrong]
    assert refused_calls(Grammar(folder), [good, other], Tokens()) == []


def test_refused_are_those_that_the_grammar_of_their_own_request_refuses(folder, tokenizer):
    """Most are judged by one grammar for all; which are refused is what a grammar for each would say."""

    class Tokens:
        def encode(self, text, add_special_tokens):
            return ids_of(tokenizer, text)

    rules, at = Grammar(folder, ["weather.now.city"]), {"lat": 1, "lon": 2}
    cities = ["Łódź", "New York", "new york", "York", "New", "ork", "", "東京", " Oslo"]
    rows = [example(f"How is {said} today?", at=at, city=city) for said in cities for city in cities]
    rows += [
        example("How is Oslo?", at=at, city="Oslo", Unit=unit, days=days)
        for unit in ("celsius", "K")
        for days in (1, "1")
    ]
    for i, row in enumerate(rows):
        row["id"] = str(i)
    refused = []
    for row in rows:
        case = case_of(row)
        constraint = rules.constraint(case.tools, case.prompt)
        constraint.start()
        answer = "".join(map(format_call, case.calls)) + "<start_function_response>"
        if not all(map(constraint.accept, ids_of(tokenizer, answer))):
            refused.append(row)
    assert 20 < len(refused) < len(rows) - 9
    assert refused_calls(rules, rows, Tokens()) == refused


def test_user_spans_are_everything_after_the_developer():
    messages = [
        {"role": "developer", "content": TRIGGER},
        {"role": "user", "content": "Weather in\nBérn?"},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "ping", "arguments": {}}}]},
        {"role": "tool", "content": [{"name": "ping", "response": {"value": "user\nSunny"}}]},
    ]
    assert user_spans(render(messages[:2], TOOLS, True)) == ["Weather in\nBérn?"]
    spans = user_spans(render(messages, TOOLS, True))
    assert spans[0] == "Weather in\nBérn?" and "user\nSunny" in spans
    assert not any("Paris" in text or "weather.now" in text for text in spans)


NOTE_TOOLS = [
    {
        "name": "note",
        "parameters": {
            "type": "object",
            "properties": {
                "free": {"type": "string"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "text": {"type": "string"},
            },
        },
    }
]


@pytest.mark.parametrize(
    "request_text, arguments, allowed",
    [
        ("Buy crème, then go", "text:<escape>crème<escape>", True),
        ("Buy crème, then go", "text:<escape>Buy crème, then<escape>", True),
        ("Buy crème, then go", "text:<escape>crème,<escape>", True),
        ("Buy crème, then go", "text:<escape>creme<escape>", False),
        ("Buy crème, then go", "text:<escape>crè<escape>", False),
        ("Buy crème, then go", "text:<escape>hen go<escape>", False),
        ("Buy crème, then go", "text:<escape> crème<escape>", False),
        ("Buy crème, then go", "text:<escape>crème, <escape>", False),
        ("Buy crème, then go", "text:<escape><escape>", False),
        ("Buy crème, then go", "text:<escape>Buy go<escape>", False),
        ("Buy crème, then go", "tags:[<escape>Buy<escape>,<escape>go<escape>]", True),
        ("Buy crème, then go", "tags:[<escape>Buy<escape>,<escape>sell<escape>]", False),
        ("Buy crème, then go", "free:<escape>whatever<escape>", True),
        ('Say "{a\\b}" & 50% of\n日本', 'text:<escape>"{a\\b}" & 50% of\n日本<escape>', True),
    ],
)
def test_a_verbatim_argument_holds_words_of_the_request(folder, tokenizer, request_text, arguments, allowed):
    rules = Grammar(folder, ["note.text", "note.tags"])
    messages = [{"role": "developer", "content": TRIGGER}, {"role": "user", "content": request_text}]
    constraint = rules.constraint(NOTE_TOOLS, render(messages, NOTE_TOOLS, True))
    text = f"<start_function_call>call:note{{{arguments}}}<end_function_call><start_function_response>"
    assert fits(constraint, ids_of(tokenizer, text)) is allowed


QUERIES = ["Weather in Paris?", "Ping it", "Is it loud in Rome tomorrow?"]


def prompts_of(queries):
    return [
        render([{"role": "developer", "content": TRIGGER}, {"role": "user", "content": q}], TOOLS, True)
        for q in queries
    ]


def test_the_untuned_model_makes_no_malformed_call(tiny_onnx):
    """Every call is whole and its city a word of the question, in a batch as alone."""
    generator = OrtGenerator(tiny_onnx, "fp32", max_tokens=400)
    prompts = prompts_of(QUERIES)
    plain = generator.generate(prompts)
    rules = Grammar(tiny_onnx, ["weather.now.city"])
    constraints = [rules.constraint(TOOLS, each, text=False) for each in prompts]
    answers = generator.generate(prompts, constraints)
    assert answers != plain
    found = 0
    for query, answer, finished, constraint in zip(QUERIES, answers, generator.finished, constraints):
        assert constraint.ms_per_token > 0
        for call in parse_calls(answer) if finished else ():
            assert call.name in BY_NAME and call.arguments.get("city", "Rome") in [*query.rstrip("?").split(), "Rome"]
            found += 1
    assert found
    alone = [generator.generate([each], [constraint])[0] for each, constraint in zip(prompts, constraints)]
    assert alone == answers


def test_mlx_and_onnxruntime_choose_the_same_tokens(tiny_onnx, folder):
    from fgtune.models.adapters import load_model
    from fgtune.runtimes.mlx import MlxGenerator

    prompts, rules = prompts_of(QUERIES), Grammar(folder, ["weather.now.city"])
    constraints = lambda: [rules.constraint(TOOLS, each, text=False) for each in prompts]
    expected = OrtGenerator(tiny_onnx, "fp32", max_tokens=48).generate_ids(prompts, constraints())
    generator = MlxGenerator(*load_model(folder), max_tokens=48)
    assert generator.generate_ids(prompts, constraints()) == expected
    generator.exact_argmax = None  # the other way, for models that torch's kernels do not know
    assert generator.generate_ids(prompts, constraints()) == expected


def test_refusals_are_one_line():
    with pytest.raises(GrammarError, match="no tool"):
        tool_grammar([])
    with pytest.raises(GrammarError, match="'date' is not known"):
        tool_grammar([{"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "date"}}}}])
    with pytest.raises(GrammarError, match="nothing is left"):
        tool_grammar([], text=False, calls=False)


def tool_of(schema):
    return {"name": "f", "parameters": {"type": "object", "properties": {"a": schema}}}


def written(value):
    return f"<start_function_call>call:f{{a:{value}}}<end_function_call><start_function_response>"


FREE, SOME = {"type": "object"}, {"type": "array"}
MAP = {"type": "object", "additionalProperties": {"type": "integer"}}
LARGEST = 2**53 - 1
# What examples may hold, as values: both grammars must let it through.
GOLD = [
    ({"type": "number"}, [1e-7, -2.5e-10, 1.2345678901234567e-300, 5e-324, 0.30000000000000004, 1.2345678901234567e-6,
                          0.00001, 1000000000000000.5, 0, -0.5, 12, LARGEST, -LARGEST, 1e15, 9e15]),
    ({"type": "integer"}, [0, 7, -1, 10**15, LARGEST, -LARGEST, 9007199254740990, 8999999999999999, 9006999999999999]),
    ({"type": "string"}, ["<b>welcome</b>", "a\u2028b\u2029c", "", "{[:,]}", "日本", "🙂", "<", "a < b > c",
                           "line\nline"]),
    (FREE, [{}, {"bass": 1, "treble": 2}, {"x-y z": "a", "日": True, "a.b/c": 1e-7, "<b>": "<i>"},
            {"a": {"b": [1, "x", [2]]}, "c": []}, {"a": {"b": {"c": 1}}}]),
    (SOME, [[], [1, "a", True], [{"name": "x", "n": 1}, {"name": "y"}], [[1], []], [[[1]]]]),
    (MAP, [{}, {"one-two": 1}, {"a": 1, "b": LARGEST, "ü": -3}]),
    ({"type": "array", "items": FREE}, [[{"a": 1, "b": 2}, {}]]),
]  # fmt: skip
# What no example can hold: both grammars must refuse it.
WRONG = [
    ({"type": "number"}, ["01", "1.", ".5", "1e7", "1e-", "1e-07", "12e-7", "9007199254740992", "9007199254740991.9",
                          "--1", "+1", "1.5e3", "NaN", "", "1" + "0" * 16]),
    ({"type": "integer"}, ["1.5", "9007199254740992", "9999999999999999", "00", "-", "1" * 17]),
    (FREE, ["{:1}", "{a:1,}", "{,a:1}", "{a}", "{a:}", "{a:1", "{a:{b:{c:{d:{e:1}}}}}", "{<escape>a<escape>:1}",
            "{<eos>:1}", "{<unused7>:1}", "{a:<unused7>}", "1", "[]", "{a[:1}"]),
    (SOME, ["[,]", "[1,]", "[[[[[[1]]]]]]", "{}", "["]),
    (MAP, ["{a:<escape>x<escape>}", "{a:1.5}", "{a:{}}", "{a:1,b:true}"]),
]  # fmt: skip


def test_both_grammars_let_the_same_values_through(rules, tokenizer, tmp_path):
    """Numbers, texts, free objects, maps and lists of anything: what an example may hold, and nothing else."""
    from test_prompt import in_node

    cases = [(schema, [format_call(Call("f", {"a": value})) for value in values], True) for schema, values in GOLD]
    cases = [
        (schema, [f"{text}<start_function_response>" for text in answers], fits) for schema, answers, fits in cases
    ]
    cases += [(schema, [written(value) for value in values], False) for schema, values in WRONG]
    for schema, answers, expected in cases:
        constraint = rules.constraint([tool_of(schema)])
        for answer in answers:
            assert fits(constraint, ids_of(tokenizer, answer)) is expected, answer
    data = [{"tools": [tool_of(schema)], "answers": answers, "prompt": ""} for schema, answers, _ in cases]
    found = in_node("grammar_cases.mjs", data, tmp_path)
    for (_, answers, expected), allowed in zip(cases, found, strict=True):
        assert dict(zip(answers, allowed, strict=True)) == dict.fromkeys(answers, expected)


def test_a_key_that_comes_twice_is_refused_by_the_parser(rules, tokenizer):
    """No finite grammar can tell; the parser does."""
    twice = written("{b:1,b:2}")
    assert fits(rules.constraint([tool_of(FREE)]), ids_of(tokenizer, twice))
    with pytest.raises(CallSyntaxError, match="twice"):
        parse_calls(twice)


@pytest.mark.parametrize(
    "query, value, allowed",
    [("横浜駅を探して", "横浜", True), ("横浜駅を探して", "駅", True), ("横浜駅を探して", "横駅", False),
     ("佐々木さんに電話", "佐々木", True), ("ไปเชียงใหม่พรุ่งนี้", "เชียงใหม่", True), ("서울역 날씨", "서울", False),
     ("iPhoneを買う", "iPhone", True), ("iPhoneを買う", "Phone", False)],
)  # fmt: skip
def test_scripts_without_spaces_are_copied_by_characters(folder, tokenizer, tmp_path, query, value, allowed):
    """Japanese, Chinese and Thai have no words between spaces: each character may begin or end a verbatim argument."""
    from test_prompt import in_node

    assert is_verbatim(value, query) is allowed
    tools, answer = [tool_of({"type": "string"})], written(f"<escape>{value}<escape>")
    prompt = render([{"role": "developer", "content": TRIGGER}, {"role": "user", "content": query}], tools, True)
    assert fits(Grammar(folder, ["f.a"]).constraint(tools, prompt), ids_of(tokenizer, answer)) is allowed
    data = [{"tools": tools, "answers": [answer], "verbatim": ["f.a"], "prompt": prompt}]
    assert in_node("grammar_cases.mjs", data, tmp_path) == [[allowed]]


def test_items_of_a_list_are_copied_too(folder, tokenizer):
    """Found in the examples, and held to by the grammar, in scripts with and without spaces."""
    rows = [example(f"ask {a} and {b}", city=[a, b]) for a, b in ("AB", "CD", "EF")]
    assert verbatim_arguments(rows) == {"weather.now.city": 6}
    assert verbatim_arguments([*rows, example("ask X", city=["X", "Y"])]) == {}
    tools = [tool_of({"type": "array", "items": {"type": "string"}})]
    for query, items, allowed in (
        ("buy milk and eggs", ("milk", "eggs"), True),
        ("buy milk and eggs", ("milk", "egg"), False),
        ("牛乳と卵", ("牛乳", "卵"), True),
        ("牛乳と卵", ("牛乳", "肉"), False),
    ):
        prompt = render([{"role": "developer", "content": TRIGGER}, {"role": "user", "content": query}], tools, True)
        answer = written("[" + ",".join(f"<escape>{item}<escape>" for item in items) + "]")
        assert fits(Grammar(folder, ["f.a"]).constraint(tools, prompt), ids_of(tokenizer, answer)) is allowed


def test_the_vocabulary_is_that_of_llguidances_own_reader(folder, tokenizer, rules):
    """Bytes and markers of every token; and a file that has a token more than the model has logits."""
    from llguidance import LLTokenizer

    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    own, theirs = rules.tokens, LLTokenizer(text, n_vocab=2048, eos_token=TOKEN_IDS["eos"])
    given = Grammar(folder, tokenizer=tokenizer).tokens
    for i in range(2048):
        expected = theirs.decode_bytes([i]), theirs.is_special_token(i)
        assert (own.decode_bytes([i]), own.is_special_token(i)) == expected, i
        assert (given.decode_bytes([i]), given.is_special_token(i)) == expected, i
    assert own.vocab_size == theirs.vocab_size == 2048
