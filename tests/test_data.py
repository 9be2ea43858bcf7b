"""Reading what users bring, splitting without leaks, marking what is learned."""

import hashlib
import json
import random
import time
import tracemalloc

import numpy as np
import pytest
from rapidfuzz import fuzz, process, utils

from fgtune.core.project import project_root
from fgtune.data.examples import first_calls, first_query, label
from fgtune.data.grouping import group_examples, near_texts
from fgtune.data.readers.examples import read_examples
from fgtune.data.readers.files import DataError, json_files
from fgtune.data.readers.tools import read_tools
from fgtune.data.rows import case_of, load_rows, mask_html, tokenize, write_jsonl
from fgtune.data.splits import (
    held_out_per_tool,
    held_out_sizes,
    leaks,
    lint_splits,
    nearest_neighbour_score,
    random_split,
    split_examples,
)
from fgtune.format.calls import Call
from fgtune.format.lint import lint_examples
from fgtune.format.template import TRIGGER, render
from fgtune.format.tools import lint_tools
from fgtune.models.base import resolve_base
from fgtune.models.tokenizer_files import load_tokenizer

TOOL = {
    "name": "set_timer",
    "description": "Start a timer.",
    "parameters": {
        "type": "object",
        "properties": {"minutes": {"type": "integer", "description": "How long"}},
        "required": ["minutes"],
    },
}


def write(tmp_path, value, name="x.json"):
    path = tmp_path / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(resolve_base("tiny").path)


def test_the_shipped_data_is_what_the_readme_promises(shipped):
    tools, examples = shipped
    assert len(tools) == 9 and len(examples) == 4475
    assert len({first_query(e) for e in examples}) == len(examples)
    assert not lint_tools(tools) and not lint_examples(examples, tools)
    calls = [first_calls(e) for e in examples]
    assert sum(len(c) > 1 for c in calls) >= 40
    assert 1 / 10 <= sum(not c for c in calls) / len(calls) <= 1 / 5
    assert sum(len(e["messages"]) > 4 for e in examples) >= 20
    kinds = {type(v) for c in calls for call in c for v in call.arguments.values()}
    assert kinds == {str, int, bool, list, dict}


def test_tools_from_a_folder_in_order(tmp_path):
    write(tmp_path, [TOOL | {"name": "b"}], "2.json")
    write(tmp_path, {"tools": [{"type": "function", "function": TOOL | {"name": "a"}}]}, "1.json")
    assert [t["name"] for t in read_tools(tmp_path)] == ["a", "b"]


def test_examples_from_a_folder_in_order(tmp_path):
    write(tmp_path, json.dumps({"userQuery": "two", "expectedFinalResponse": "2"}) + "\n", "b.jsonl")
    write(tmp_path, [{"userQuery": "one", "expectedFinalResponse": "1"}], "a.json")
    (tmp_path / "README.md").write_text("not examples")
    rows = read_examples(tmp_path, [TOOL])
    assert [(row["id"], first_query(row)) for row in rows] == [("a-0001", "one"), ("b-0001", "two")]
    for file in json_files(tmp_path):
        file.unlink()
    with pytest.raises(DataError, match=r"holds no \.json, \.jsonl, \.ndjson or \.csv file with examples"):
        read_examples(tmp_path, [TOOL])


def test_the_everyday_examples_need_the_everyday_tools_alone():
    root = project_root() / "examples"
    tools = read_tools(root / "tools" / "everyday.json")
    examples = read_examples(root / "requests" / "everyday.json", tools)
    assert len(tools) == 6 and not lint_examples(examples, tools)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"name": "a"},]', r"x\.json, line 1, column 1\d: "),
        ("[]", "expected a list of tools"),
        ('[{"description": "no name"}]', 'tool 1 has no "name"'),
    ],
)
def test_broken_tools_are_one_clear_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_tools(write(tmp_path, text))


def test_not_utf8(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'["\xff"]')
    with pytest.raises(DataError, match=r"x\.json is not UTF-8"):
        read_tools(path)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"userQuery": "a"}, "nothing to learn"),
        ({"userQuery": " ", "expectedToolCalls": [{"name": "x"}]}, '"userQuery" is empty'),
        ({"query": "a"}, r'neither "userQuery" nor "messages" is there \(found query\)'),
        ({"userQuery": "a", "expectedCalls": []}, "'expectedCalls' is not understood"),
        ({"userQuery": "a", "expectedToolCalls": [{"arguments": {}}]}, 'a call without a "name"'),
        (
            {"userQuery": "a", "expectedToolCalls": [{"name": "x"}], "toolResponses": [{"name": "x"}, {"name": "y"}]},
            "1 calls but 2 tool responses",
        ),
        (
            {"userQuery": "a", "expectedToolCalls": [{"name": "x"}], "expectedFinalResponse": "b"},
            'needs "toolResponses" between them',
        ),
        ({"messages": [{"role": "robot", "content": "a"}]}, "message 1: the role must be one of"),
        ({"messages": [{"role": "user", "content": "a", "audio": 1}]}, "'audio' is not understood"),
        ({"messages": [], "label": 3}, '"messages" must be a list with at least one message'),
        ("text", "expected an object, found str"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path, item, message):
    with pytest.raises(DataError, match=message) as error:
        read_examples(write(tmp_path, [item]), [TOOL])
    assert "x.json, example 1" in str(error.value)


def test_doubled_ids(tmp_path):
    rows = [{"id": 1, "userQuery": "a", "expectedFinalResponse": "b"}] * 2
    with pytest.raises(DataError, match="id '1' is there 2 times"):
        read_examples(write(tmp_path, rows), [TOOL])


def test_the_original_format_and_chat_rows_say_the_same(tmp_path):
    original = {
        "userQuery": "five minutes",
        "expectedToolCalls": [{"name": "set_timer", "arguments": {"minutes": 5}}],
        "toolResponses": [{"name": "set_timer", "response": {"ok": True}}],
        "expectedFinalResponse": "Started.",
    }
    chat = {
        "tools": json.dumps([{"type": "function", "function": TOOL}]),
        "messages": [
            {"role": "system", "content": TRIGGER},
            {"role": "user", "content": "five minutes"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "function": {"name": "set_timer", "arguments": '{"minutes": 5}'}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": {"ok": True}},
            {"role": "assistant", "content": "Started."},
        ],
    }
    a = read_examples(write(tmp_path, [original]), [TOOL])[0]
    b = read_examples(write(tmp_path, json.dumps(chat) + "\n", "x.jsonl"), [])[0]
    assert a["messages"] == b["messages"] and a["tools"] == b["tools"] == [TOOL]


def test_mobile_actions_nulls_are_left_out(tmp_path):
    row = {
        "messages": [
            {"role": "user", "content": "five minutes"},
            {
                "role": "model",
                "tool_calls": [{"function": {"name": "set_timer", "arguments": {"minutes": 5, "label": None}}}],
            },
        ]
    }
    example = read_examples(write(tmp_path, [row]), [TOOL])[0]
    assert first_calls(example) == (Call("set_timer", {"minutes": 5}),)
    assert example["messages"][0] == {"role": "developer", "content": TRIGGER}


# ---------------------------------------------------------------- splits


def test_split_sizes_seed_and_strata(shipped):
    _, examples = shipped
    kwargs = {"valid": 32, "test": 48, "similarity": 85}
    splits = split_examples(examples, **kwargs, seed=7)
    assert [len(splits[k]) for k in ("train", "valid", "test")] == [len(examples) - 80, 32, 48]
    assert splits == split_examples(examples, **kwargs, seed=7)
    assert splits["test"] != split_examples(examples, **kwargs, seed=8)["test"]
    ids = [e["id"] for split in splits.values() for e in split]
    assert sorted(ids) == sorted(e["id"] for e in examples)
    assert {label(e) for e in splits["test"]} == {label(e) for e in examples}


def paraphrases():
    """24 questions, each asked twice in other words."""
    first = [f"set a timer for {n} minutes please" for n in range(10, 34)]
    second = [f"{n} on the clock, starting now, for my tea" for n in range(10, 34)]
    return [
        {
            "id": f"{k}{n}",
            "tools": [TOOL],
            "messages": [
                {"role": "developer", "content": TRIGGER},
                {"role": "user", "content": query},
                {"role": "assistant", "tool_calls": [{"function": {"name": "set_timer", "arguments": {"minutes": n}}}]},
            ],
        }
        for k, queries in (("a", first), ("b", second))
        for n, query in zip(range(10, 34), queries)
    ]


def test_paraphrases_of_a_test_case_are_never_trained_on():
    examples = paraphrases()
    grouped = split_examples(examples, valid=4, test=8, similarity=100, seed=0)
    assert leaks(grouped, 100) == []
    random = random_split(examples, valid=4, test=8, seed=0)
    assert len(leaks(random, 100)) >= 6


def test_near_duplicates_stay_together():
    groups = group_examples(paraphrases(), similarity=85)
    assert len(groups) == 1  # "set a timer for 10 minutes please" and "… 11 …" are alike
    assert len(group_examples(paraphrases(), similarity=100)) == 24


def test_what_cannot_be_split_is_one_clear_line(shipped):
    with pytest.raises(DataError, match=r"5 examples are too few to hold any out"):
        split_examples(shipped[1][:5], valid=32, test=48, similarity=85, seed=0)
    with pytest.raises(DataError, match="too many examples ask for the same calls"):
        split_examples(paraphrases(), valid=4, test=8, similarity=85, seed=0)


def test_the_split_of_the_shipped_data_is_as_it_was():
    """The figures of the recorded runs belong to these held-out cases."""
    root = project_root() / "examples"
    tools = read_tools(root / "tools" / "everyday.json")
    examples = read_examples(root / "requests" / "everyday.json", tools)
    splits = split_examples(examples, valid=32, test=48, similarity=85, seed=7)
    ids = json.dumps({name: [e["id"] for e in rows] for name, rows in splits.items()}, sort_keys=True)
    assert (
        hashlib.sha256(ids.encode()).hexdigest() == "89a29b9613e4bfea255712bcdb33785c2a26fd8233b909aab003b0ee61f5b946"
    )
    assert lint_splits(splits, tools, valid=32, test=48) == []


def test_held_out_cases_are_at_most_a_third():
    assert held_out_sizes(240, valid=32, test=48) == {"test": 48, "valid": 32}
    assert held_out_sizes(61, valid=32, test=48) == {"test": 12, "valid": 8}
    assert held_out_sizes(6, valid=32, test=48) == {"test": 1, "valid": 1}
    assert held_out_sizes(30, valid=0, test=48) == {"test": 10, "valid": 0}
    splits = split_examples(paraphrases(), valid=32, test=48, similarity=100, seed=0)
    assert [len(splits[k]) for k in ("train", "valid", "test")] == [32, 6, 10]
    (finding,) = lint_splits(splits, [TOOL], valid=32, test=48)
    assert finding.level == "warning" and "10 test and 6 validation cases instead of 48 and 32" in finding.message


def test_groups_that_do_not_fill_the_test_cases_give_fewer():
    rows = [
        said(f"{i}-{j}", f"{NUMBERS[i]} {NUMBERS[j]} {'abcdefghij'[j] * 9}", minutes=i)
        for i in range(6)
        for j in range(5)
    ]
    splits = split_examples(rows, valid=4, test=6, similarity=100, seed=0)
    assert [len(splits[k]) for k in ("train", "valid", "test")] == [20, 5, 5]
    assert not leaks(splits, 100)


NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
LAMP = {
    "name": "lamp",
    "description": "Switch a lamp.",
    "parameters": {"type": "object", "properties": {"state": {"type": "string", "enum": ["on", "off"]}}},
}
HORN = {"name": "horn", "description": "Sound the horn."}


def said(name, query, tool=TOOL, **arguments):
    call = {"type": "function", "function": {"name": tool["name"], "arguments": arguments}}
    messages = [{"role": "user", "content": query}, {"role": "assistant", "tool_calls": [call]}]
    return {"id": name, "tools": [TOOL, LAMP, HORN], "messages": [{"role": "developer", "content": TRIGGER}, *messages]}


def test_calls_without_open_values_are_grouped_by_their_words():
    ways = ("{} please", "I would like {}", "make it {}", "{}, and quickly", "could we have {} here", "now {}")
    rows = [said(f"h{i}", way.format("the horn"), HORN) for i, way in enumerate(ways)]
    rows += [said(f"l{i}", way.format("light"), LAMP, state="on") for i, way in enumerate(ways)]
    assert len(group_examples(rows, 95)) == 12
    assert len(group_examples([*rows, said("twin", "PLEASE, the horn!", HORN)], 95)) == 12
    rows += [said(f"t{i}", way.format("a timer"), minutes=3) for i, way in enumerate(ways)]
    assert sorted(map(len, group_examples(rows, 95)))[-2:] == [1, 6], "an open value is held out by value"
    rows += [said(f"u{i}", f"wait {word} minutes", minutes=i + 4) for i, word in enumerate(NUMBERS)]
    splits = split_examples(rows, valid=3, test=4, similarity=95, seed=1)
    assert not leaks(splits, 95)
    counts = held_out_per_tool(splits, [TOOL, LAMP, HORN])
    assert set(counts) == {"set_timer", "lamp", "horn"} and all(counts.values())


def test_a_rare_tool_is_held_out_and_an_untested_one_is_named():
    rows = [
        said(f"u{i}", f"{a} {b} minutes", minutes=100 * i + j)
        for i, a in enumerate(NUMBERS)
        for j, b in enumerate("abcd")
    ]
    rows += [
        said("h1", "hoot", HORN),
        said("h2", "a long blast of the horn", HORN),
        said("l1", "bright", LAMP, state="on"),
    ]
    splits = split_examples(rows, valid=2, test=3, similarity=100, seed=3)
    assert held_out_per_tool(splits, [TOOL, LAMP, HORN]) == {"set_timer": 4, "lamp": 0, "horn": 1}
    (finding,) = lint_splits(splits, [TOOL, LAMP, HORN], valid=2, test=3)
    assert finding.tool == "lamp" and "Add varied examples" in finding.message


def synthetic_queries(count):
    """Queries of many lengths in which near-duplicates, equal ones and chains of like ones occur."""
    rng = random.Random(5)
    words = ["".join(rng.choices("aeioulmnrst", k=rng.randint(1, 9))) for _ in range(60)]
    queries = [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(count // 2)]
    while len(queries) < count:
        letters = list(rng.choice(queries))
        letters[rng.randrange(len(letters))] = rng.choice("xyz QÄ!")
        queries.append("".join(letters))
    return ["", "?!", *queries]


@pytest.mark.parametrize("similarity", [60, 85, 100])
def test_groups_are_those_of_the_plain_search(similarity, monkeypatch):
    monkeypatch.setattr("fgtune.data.grouping.CELLS", 40_000)  # many blocks
    queries = synthetic_queries(1500)
    rows = [said(str(i), query, HORN) for i, query in enumerate(queries)]
    alike = (
        process.cdist(*[[utils.default_process(q) for q in queries]] * 2, scorer=fuzz.token_sort_ratio) >= similarity
    )
    group, groups = {}, []
    for i in range(len(queries)):
        if i not in group:
            members, waiting = {i}, [i]
            while waiting:
                new = set(np.flatnonzero(alike[waiting.pop()]).tolist()) - members
                members |= new
                waiting += new
            group.update(dict.fromkeys(members, i))
            groups.append(sorted(members))
    assert len(groups) > (1 if similarity > 60 else 0)
    assert group_examples(rows, similarity) == groups


def test_all_texts_are_alike_at_similarity_0():
    assert sum(len(others) for _, others in near_texts(["ab", "bc", "cd", "da"], 50)) == 4
    assert len(group_examples(paraphrases(), 0)) == 1


def test_leaks_and_neighbours_are_those_of_the_plain_search():
    queries = synthetic_queries(300)
    rows = [said(str(i), query, minutes=i % 90) for i, query in enumerate(queries)]
    splits = random_split(rows, valid=20, test=30, seed=2)
    plain, right = [], 0
    for split in ("valid", "test"):
        for case in splits[split]:
            scores = [
                fuzz.token_sort_ratio(first_query(case), first_query(e), processor=utils.default_process)
                for e in splits["train"]
            ]
            same = [first_calls(e) == first_calls(case) for e in splits["train"]]
            plain += [(case["id"], e["id"], s) for e, s, k in zip(splits["train"], scores, same) if s >= 85 or k]
            right += split == "test" and same[scores.index(max(scores))]
    assert leaks(splits, 85) == plain and len(plain) > 100
    assert nearest_neighbour_score(splits) == right / 30


def test_thirteen_thousand_rows_are_grouped_in_little_time_and_memory():
    rows = [said(str(i), query, HORN) for i, query in enumerate(synthetic_queries(13_000))]
    start = time.perf_counter()
    tracemalloc.start()
    groups = group_examples(rows, 85)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(map(len, groups)) == len(rows)
    assert time.perf_counter() - start < 60 and peak < 500e6


# ---------------------------------------------------------------- rows


def learned(row, tokenizer):
    return tokenizer.decode([i for i, t in zip(row.ids, row.targets) if t], skip_special_tokens=False)


def test_every_assistant_turn_is_learned_and_nothing_else(shipped, tokenizer):
    example = next(e for e in shipped[1] if len(e["messages"]) > 4 and first_calls(e)[0].name == "get_weather")
    row = tokenize(example, tokenizer)
    city, final = first_calls(example)[0].arguments["city"], example["messages"][-1]["content"]
    text = learned(row, tokenizer)
    assert text.startswith("<start_function_call>call:get_weather{") and city in text
    assert "}<end_function_call><start_function_response>" in text and text.endswith(f"{final}<end_of_turn>\n")
    assert "response:" not in text and "declaration" not in text and example["messages"][1]["content"] not in text
    assert not any(row.targets[: row.prefix])


def test_parallel_calls_are_learned_up_to_the_marker(shipped, tokenizer):
    example = next(e for e in shipped[1] if len(first_calls(e)) == 2)
    text = learned(tokenize(example, tokenizer), tokenizer)
    assert text.count("<start_function_call>") == 2 and text.endswith("<end_function_call><start_function_response>")


def test_too_long_is_an_error_with_both_numbers(shipped, tokenizer):
    with pytest.raises(DataError, match=r"has \d+ tokens, max_seq_length is 64"):
        tokenize(shipped[1][0], tokenizer, 64)


def test_nothing_to_learn_is_an_error(tokenizer):
    row = {
        "id": "x",
        "tools": [TOOL],
        "messages": [{"role": "developer", "content": TRIGGER}, {"role": "user", "content": "a"}],
    }
    with pytest.raises(DataError, match="no assistant turn"):
        tokenize(row, tokenizer)


def test_a_case_prompt_is_what_training_rows_begin_with(shipped, tokenizer):
    for example in shipped[1][:20]:
        row, case = tokenize(example, tokenizer), case_of(example)
        ids = tokenizer(case.prompt, add_special_tokens=False)["input_ids"]
        assert list(row.ids[: len(ids)]) == ids and row.targets[len(ids)] and not any(row.targets[: len(ids)])


def test_the_mask_shows_what_is_learned(shipped, tokenizer):
    row = tokenize(shipped[1][0], tokenizer)
    html = mask_html(row, tokenizer, skip=row.prefix)
    assert html.count("#cdeccd") == sum(row.targets)


class Counting:
    """A tokenizer that keeps what it was asked for."""

    def __init__(self, tokenizer):
        self.tokenizer, self.texts, self.added_tokens_decoder = tokenizer, [], tokenizer.added_tokens_decoder

    def __call__(self, text, **options):
        self.texts.append(text)
        return self.tokenizer(text, **options)


def test_the_developer_turn_is_tokenised_once_and_the_ids_are_those_of_the_whole_text(shipped, tokenizer):
    rows = shipped[1][::20]
    counting = Counting(tokenizer)
    for example in rows:
        row = tokenize(example, counting)
        text = render(example["messages"], example["tools"])
        whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert list(row.ids) == whole["input_ids"]
        said = text.rindex("<start_of_turn>model\n") + len("<start_of_turn>model\n")
        if len(example["messages"]) == 3:
            assert list(row.targets) == [begin >= said for begin, _ in whole["offset_mapping"]]
        assert len(row.targets) == len(row.ids)
    assert len(rows) > 200
    assert sum("<start_function_declaration>" in text for text in counting.texts) == len(
        {render(example["messages"][:1], example["tools"]) for example in rows}
    )


def test_a_tokenizer_whose_marker_takes_what_is_before_it_reads_the_whole_text(shipped, tokenizer):
    class Greedy(Counting):
        def __init__(self, tokenizer):
            super().__init__(tokenizer)
            added = tokenizer.added_tokens_decoder
            self.added_tokens_decoder = {i: t for i, t in added.items() if t.content != "<start_of_turn>"}

    counting, example = Greedy(tokenizer), shipped[1][0]
    assert tokenize(example, counting).ids == tokenize(example, tokenizer).ids
    assert render(example["messages"], example["tools"]) in counting.texts


def test_rows_are_written_as_json_dumps_writes_them(shipped, tokenizer, tmp_path):
    rows = shipped[1][:30]
    write_jsonl(tmp_path / "train.jsonl", rows)
    plain = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert (tmp_path / "train.jsonl").read_text(encoding="utf-8") == plain
    assert load_rows(tmp_path, "train", tokenizer) == [tokenize(row, tokenizer) for row in rows]
