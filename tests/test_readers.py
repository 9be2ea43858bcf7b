"""One reader for each public shape: rows become the same chat rows, or are refused with a sentence that names them."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fgtune.data.examples import all_calls, calls_per_tool, first_calls, first_query
from fgtune.data.readers.examples import load_examples, read_examples
from fgtune.data.readers.files import DataError, read_json
from fgtune.data.readers.tools import load_tools, read_tools
from fgtune.data.rows import tokenize, write_jsonl
from fgtune.format.calls import Call
from fgtune.format.template import TRIGGER
from fgtune.models.base import resolve_base
from fgtune.models.tokenizer_files import load_tokenizer

PORT = {"type": "string", "description": "Harbour"}
TIDE = {
    "name": "tide_at",
    "description": "The tide.",
    "parameters": {"type": "object", "properties": {"port": PORT}, "required": ["port"]},
}
FERRY = {**TIDE, "name": "next_ferry", "description": "The next ferry."}
TOOLS = [TIDE, FERRY]
ARGUMENTS = {"port": "Brest"}
CALL = {"name": "tide_at", "arguments": ARGUMENTS}
QUERY = "Tide in Brest?"
ASKED = {"role": "user", "content": QUERY}


def called(**call):
    """An assistant's turn with one call."""
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": {**CALL, **call}}]}


def write(tmp_path, value, name="rows.json"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def read(tmp_path, row):
    (example,) = read_examples(write(tmp_path, [row]), TOOLS)
    return example


def refusal(tmp_path, row):
    with pytest.raises(DataError) as error:
        read(tmp_path, row)
    assert str(error.value).startswith("rows.json, example 1: ")
    return str(error.value)


text = json.dumps(ARGUMENTS)
SHAPES = {
    "original": {"userQuery": QUERY, "expectedToolCalls": [CALL]},
    "original, calls of the API": {"userQuery": QUERY, "expectedToolCalls": [{"function": CALL}]},
    "original, args": {"userQuery": QUERY, "expectedToolCalls": [{"name": "tide_at", "args": ARGUMENTS}]},
    "original, input": {"userQuery": QUERY, "expectedToolCalls": [{"name": "tide_at", "input": text}]},
    "OpenAI": {"messages": [ASKED, called(arguments=text)], "parallel_tool_calls": False},
    "encoded twice": {"messages": [ASKED, called(arguments=json.dumps(text))]},
    "content parts": {
        "messages": [ASKED | {"content": [{"type": "text", "text": QUERY}]}, called() | {"content": []}]
    },
    "thoughts and labels": {
        "messages": [ASKED, called() | {"reasoning_content": "…", "annotations": []}],
        "difficulty": 3,
    },
    "nulls": {"messages": [ASKED, called(arguments={"port": "Brest", "hour": None})]},
    "legacy": {"messages": [ASKED, {"role": "assistant", "function_call": {**CALL, "arguments": text}}]}
    | {"functions": TOOLS},
    "LangChain in OpenAI's": {
        "messages": [ASKED, {"role": "assistant", "tool_calls": [{"name": "tide_at", "args": ARGUMENTS, "id": "1"}]}]
    },
    "LangChain saved": {
        "messages": [
            {"type": "human", "data": {"content": QUERY, "additional_kwargs": {}}},
            {"type": "ai", "data": {"content": "", "tool_calls": [{"name": "tide_at", "args": ARGUMENTS, "id": "1"}]}},
        ]
    },
    "LangChain dumped": {
        "messages": [
            {"lc": 1, "type": "constructor", "id": ["langchain", "HumanMessage"], "kwargs": {"content": QUERY}},
            {"lc": 1, "type": "constructor", "id": ["langchain", "AIMessageChunk"],
             "kwargs": {"additional_kwargs": {"tool_calls": [{"function": {**CALL, "arguments": text}}]}}},
        ]
    },
    "Anthropic": {
        "messages": [ASKED, {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "…"},
            {"type": "tool_use", "id": "t", "name": "tide_at", "input": ARGUMENTS}]}],
        "tools": [{"name": "tide_at", "description": "The tide.", "input_schema": TIDE["parameters"]}],
    },
    "prompt and completion": {"prompt": [ASKED], "completion": [called()]},
    "xLAM": {"id": 4, "query": QUERY, "answers": json.dumps([CALL]), "tools": json.dumps(TOOLS)},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": QUERY}, {"from": "function_call", "value": json.dumps(CALL)}],
        "tools": json.dumps(TOOLS),
    },
    "Hermes": {
        "conversations": [
            {"from": "system", "value": f"Call functions. <tools>{json.dumps(TOOLS)}</tools> Use <tool_call> tags."},
            {"from": "human", "value": QUERY},
            {"from": "gpt", "value": f"<tool_call>\n{CALL}\n</tool_call>"},
        ]
    },
    "Hermes in messages": {
        "messages": [ASKED, {"role": "assistant", "content": f"<tool_call>{json.dumps(CALL)}</tool_call>"}]
    },
    "Google's tutorial": {"user_content": QUERY, "tool_name": "tide_at", "tool_arguments": text},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_becomes_the_same_row(tmp_path, shape):
    rows, findings = load_examples(write(tmp_path, [SHAPES[shape]]), load_tools(write(tmp_path, TOOLS, "t.json"))[0])
    assert not [finding for finding in findings if finding.level == "error"]
    (row,) = rows
    assert [message["role"] for message in row["messages"]] == ["developer", "user", "assistant"]
    assert row["messages"][0]["content"] == TRIGGER
    assert first_query(row) == QUERY and first_calls(row) == (Call("tide_at", ARGUMENTS),)
    assert row["tools"][0]["parameters"]["properties"] == {"port": PORT}


def test_what_is_not_used_is_noted_once_a_file(tmp_path):
    path = write(tmp_path, [SHAPES["thoughts and labels"] | {"id": n} for n in range(3)])
    findings = load_examples(path, TOOLS)[1]
    (note,) = [finding for finding in findings if finding.code == "not-used"]
    assert note.message == 'Read, but not used: "annotations", "difficulty", "reasoning_content".'
    (shape,) = [finding for finding in findings if finding.code == "shape"]
    assert shape.message.startswith("3 rows read as messages as OpenAI")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [ASKED, called(arguments="null")]}, "message 2: the arguments of tide_at are null"),
        ({"messages": [ASKED, called(arguments=["Brest"])]}, "the arguments of tide_at are a list"),
        ({"messages": [ASKED, called(arguments="{'port': 1}")]}, "cannot be read as JSON; Python text"),
        ({"messages": [ASKED, called()], "tools": str(TOOLS)}, '"tools" cannot be read as JSON; Python text'),
        ({"messages": [ASKED, called()], "tools": 3}, '"tools"'),
        ({"messages": [ASKED, called() | {"function_call": CALL}]}, "side by side"),
        ({"messages": [ASKED | {"tool_calls": [CALL]}]}, "a user message cannot make calls"),
        ({"messages": [ASKED, called() | {"weight": 0.5}]}, '"weight" must be 0'),
        ({"messages": [ASKED, called() | {"weight": 0}]}, "nothing to learn"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "holds 'image_url': only text"),
        ({"userQuery": "a", "expectedToolCalls": [{"name": "x", "kwargs": ARGUMENTS}]}, '"kwargs" but no "arguments"'),
        ({"userQuery": "a", "expectedToolCalls": [CALL | {"args": {"port": "x"}}]}, '"arguments" and "args": keep one'),
        ({"text": "<start_of_turn>user\nTide?<end_of_turn>"}, 'bring them as "messages"'),
        ({"prompt": "<start_of_turn>user", "completion": "x"}, "already applied"),
        ({"query": "a", "answers": "[]"}, '"answers" is empty'),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, 'turn 1: "from" must be one of'),
        ({"messages": [{"type": "human", "content": "x"}, {"type": "robot"}]}, "message 2: the type must be"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_without_loss_is_one_sentence(tmp_path, row, words):
    assert words in refusal(tmp_path, row)


def test_each_bad_row_is_a_finding_and_the_others_are_read(tmp_path):
    rows, findings = load_examples(write(tmp_path, [{"userQuery": ""}, SHAPES["OpenAI"], "x", 7]), TOOLS)
    assert [row["id"] for row in rows] == ["rows-0002"]
    assert [f.example for f in findings if f.code == "unreadable"] == ["example 1", "example 3", "example 4"]


# ---------------------------------------------------------------- results and their calls


def dialogue(ids, results):
    """A turn with calls of both tools that have `ids`, and results with these ids."""
    names = ("tide_at", "next_ferry")
    calls = [{"id": i, "type": "function", "function": {"name": n, "arguments": text}} for i, n in zip(ids, names)]
    answers = [{"role": "tool", "tool_call_id": i, "content": "9"} for i in results]
    return [ASKED, {"role": "assistant", "tool_calls": calls}, *answers, {"role": "assistant", "content": "9."}]


@pytest.mark.parametrize(
    ("ids", "results", "names"),
    [
        (("a", "b"), ("b", "a"), ["next_ferry", "tide_at"]),
        (("", ""), ("", ""), ["tide_at", "next_ferry"]),
        ((None, None), ("x", "y"), ["tide_at", "next_ferry"]),
        (("a", "a"), ("a", "a"), ["tide_at", "next_ferry"]),
    ],
)
def test_results_find_their_calls(tmp_path, ids, results, names):
    messages = read(tmp_path, {"messages": dialogue(ids, results)})["messages"]
    assert [message["name"] for message in messages if message["role"] == "tool"] == names
    assert not [message for message in messages if "tool_call_id" in message]


def test_ids_hold_within_their_turn(tmp_path):
    first, second = dialogue("ab", "ab"), dialogue("ba", "b")
    messages = read(tmp_path, {"messages": first + second})["messages"]
    assert [m["name"] for m in messages if m["role"] == "tool"] == ["tide_at", "next_ferry", "tide_at"]


def test_a_result_without_its_call_is_refused(tmp_path):
    assert "the id 'c'" in refusal(tmp_path, {"messages": dialogue("ab", "c")})
    stray = [ASKED, {"role": "tool", "content": "9"}]
    assert "a tool result that no call asked for" in refusal(tmp_path, {"messages": stray})


def test_results_of_anthropic_and_sharegpt(tmp_path):
    blocks = [
        ASKED,
        {"role": "assistant", "content": [{"type": "text", "text": "One moment."},
                                          {"type": "tool_use", "id": "t1", "name": "tide_at", "input": ARGUMENTS}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"text": "9"}]},
                                     {"type": "text", "text": "Well?"}]},
    ]  # fmt: skip
    messages = read(tmp_path, {"messages": blocks, "system": "Be brief."})["messages"]
    assert [m["role"] for m in messages] == ["developer", "user", "assistant", "tool", "user"]
    assert messages[0]["content"] == "Be brief." and messages[3] == {"role": "tool", "name": "tide_at", "content": "9"}
    turns = [
        ("human", "Tide?"),
        ("function_call", json.dumps([CALL, CALL])),
        ("observation", "8"),
        ("observation", "9"),
    ]
    row = {"conversations": [{"from": f, "value": v} for f, v in turns]}
    assert [m["content"] for m in read(tmp_path, row)["messages"] if m["role"] == "tool"] == ["8", "9"]
    tagged = [*turns[:2], ("tool", '<tool_response>{"name": "tide_at", "content": {"m": 4}}</tool_response>')]
    row = {"conversations": [{"from": f, "value": v} for f, v in tagged]}
    assert read(tmp_path, row)["messages"][-1] == {"role": "tool", "name": "tide_at", "content": {"m": 4}}


# ---------------------------------------------------------------- turns that are not learned


def test_a_turn_of_weight_0_is_not_learned(tmp_path):
    greeting = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there!", "weight": 0}]
    row = {"messages": [*greeting, ASKED, called() | {"weight": 1}]}
    ((example,), findings) = load_examples(write(tmp_path, [row]), TOOLS)
    assert not [f for f in findings if f.code == "message-key"]
    assert [m.get("weight") for m in example["messages"]] == [None, None, 0, None, None]
    tokenizer = load_tokenizer(resolve_base("tiny").path)
    tokens = tokenize(example, tokenizer)
    learned = tokenizer.decode([i for i, t in zip(tokens.ids, tokens.targets) if t], skip_special_tokens=False)
    assert "call:tide_at" in learned and "Hello there!" not in learned
    assert first_query(example) == QUERY and first_calls(example) == (Call("tide_at", ARGUMENTS),)


def test_the_prompt_of_a_completion_is_not_learned(tmp_path):
    row = {"prompt": [ASKED, called(), {"role": "tool", "content": "9"}], "completion": "Nine."}
    example = read(tmp_path, row)
    assert [m.get("weight") for m in example["messages"] if m["role"] == "assistant"] == [0, None]
    assert all_calls(example) == () and first_calls(example) == ()


def test_calls_of_later_turns_count(tmp_path):
    later = [*dialogue("ab", "ab"), ASKED, called(name="next_ferry")]
    assert calls_per_tool([read(tmp_path, {"messages": later})], [*TOOLS, {"name": "horn"}]) == {
        "tide_at": 1,
        "next_ferry": 2,
        "horn": 0,
    }


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_lines_end_at_line_feeds_only(tmp_path, mark):
    row = {"userQuery": f"Tide{mark}in Brest?", "expectedToolCalls": [CALL]}
    path = write(tmp_path, json.dumps(row, ensure_ascii=False) + "\n", "rows.jsonl")
    (example,) = read_examples(path, TOOLS)
    assert first_query(example) == row["userQuery"]
    write_jsonl(path, [example, example])
    assert read_json(path) == [example, example]


def test_lines_in_json_arrays_in_jsonl_and_other_suffixes(tmp_path):
    row = SHAPES["original"]
    lines = "".join(json.dumps(row) + "\r\n" for _ in range(2))
    for name in ("a.json", "b.ndjson", "c.JSONL"):
        assert len(read_examples(write(tmp_path, lines, name), TOOLS)) == 2
    for value in (json.dumps([row, row]), json.dumps([row, row], indent=1)):
        assert len(read_examples(write(tmp_path, value, "d.jsonl"), TOOLS)) == 2
    with pytest.raises(DataError, match=r"e\.json, line 2, column 1: Expecting value"):
        read_examples(write(tmp_path, json.dumps(row) + "\n]", "e.json"), TOOLS)


def test_sub_folders_are_read_and_other_files_named(tmp_path):
    for name in ("a/x.json", "b/x.JSON", ".hidden/x.json"):
        write(tmp_path, [SHAPES["original"]], name)
    write(tmp_path, "x", "rows.parquet")
    rows, findings = load_examples(tmp_path, TOOLS)
    assert [row["id"] for row in rows] == ["a/x-0001", "b/x-0001"]
    assert [finding.file for finding in findings if finding.code == "file-not-read"] == ["rows.parquet"]
    write(tmp_path / "b", [TIDE], "tools.json")
    write(tmp_path / "b", "no,tools", "table.csv")
    (tmp_path / "b" / "x.JSON").unlink()
    assert read_tools(tmp_path / "b") == [TIDE]


@pytest.mark.parametrize("head", ["User Prompt,Tool Name,Tool Args\n", "user_content,tool_name,tool_arguments\n", ""])
def test_the_tuning_labs_table(tmp_path, head):
    path = write(tmp_path, head + 'Tide in Brest?,tide_at,"{""port"": ""Brest""}"\n', "rows.csv")
    (example,) = read_examples(path, TOOLS)
    assert first_calls(example) == (Call("tide_at", ARGUMENTS),)


def test_a_table_of_another_kind_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"rows\.csv: the columns must be user_content, tool_name, tool_arguments"):
        read_examples(write(tmp_path, "a,b\n1,2\n", "rows.csv"), TOOLS)
    with pytest.raises(DataError, match=r"rows\.csv, example 1: 4 cells instead of 3"):
        read_examples(write(tmp_path, 'prompt,tool,args\nx,y,{"a": 1, "b": 2}\n', "rows.csv"), TOOLS)


# ---------------------------------------------------------------- contradictions


def test_the_same_query_with_other_calls_is_a_warning_with_both_rows(tmp_path):
    other = {"id": "second", "userQuery": "tide in brest?", "expectedToolCalls": [{**CALL, "name": "next_ferry"}]}
    rows = [SHAPES["original"] | {"id": "first"}, other, other | {"id": "third", "userQuery": "Ferry from Brest?"}]
    findings = [f for f in load_examples(write(tmp_path, rows), TOOLS)[1] if f.code == "conflict"]
    assert [(f.level, f.example) for f in findings] == [("warning", "second")] and "in first." in findings[0].message
    dated = [
        {"messages": [{"role": "developer", "content": day}, ASKED, called(arguments={"port": day})]} for day in "ab"
    ]
    assert not [f for f in load_examples(write(tmp_path, dated), TOOLS)[1] if f.code == "conflict"]


# ---------------------------------------------------------------- whatever comes

KEYS = sorted({key for shape in SHAPES.values() for key in shape})
KEYS += ["role", "content", "function", "name", "arguments", "type", "from", "value", "text", "weight", "data"]
KEYS += ["tool_calls", "tool_call_id"]
WORDS = [
    "user",
    "assistant",
    "tool",
    "human",
    "ai",
    "tool_use",
    "tide_at",
    "<tool_call>{}</tool_call>",
    "null",
    "[]",
    "{",
]
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(WORDS) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shape=st.sampled_from(sorted(SHAPES)), change=st.dictionaries(st.sampled_from(KEYS), ANY, min_size=1, max_size=3)
)
def test_nobody_sees_a_traceback(tmp_path, shape, change):
    rows, findings = load_examples(write(tmp_path, [{**SHAPES[shape], **change}, change]), TOOLS)
    assert len(rows) == 2 or any(finding.level == "error" and finding.message for finding in findings)
