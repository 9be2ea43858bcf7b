"""The rows of the first stage: every call is valid, every text argument stands in its request."""

import json
import random
from collections import Counter

import pytest

from benchmarks.first_stage.declare import declare
from benchmarks.first_stage.episodes import HELD_OUT, Episodes
from benchmarks.first_stage.kinds import Unusable, read_kinds, slots
from benchmarks.first_stage.leaderboard import Item, _said
from fgtune.data.examples import all_calls, first_calls, first_query
from fgtune.data.verbatim import text_arguments
from fgtune.format.lint import lint_examples

COUNT = 40
TWO = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
ITEMS = [
    Item(
        f"i{n}",
        f"{word} {n} and {n + 1}",
        ({"name": f"{word}_two", "description": "Two numbers.", "parameters": TWO},),
        ((f"{word}_two", {"a": n, "b": n + 1}),),
    )
    for n, word in enumerate(("multiply", "divide", "average", "subtract", "compare", "order", "halve", "round"))
]


def made(seed: int = 1) -> tuple[list[list[dict]], list[dict]]:
    source = Episodes(seed, ITEMS)
    return list(source.training(COUNT)), source.check(30)


@pytest.fixture(scope="module")
def rows() -> tuple[list[list[dict]], list[dict]]:
    return made()


def test_every_row_lints(rows):
    episodes, check = rows
    findings = lint_examples([row for episode in episodes for row in episode] + check)
    assert [finding for finding in findings if finding.level == "error"] == []


def test_texts_stand_in_the_request_and_values_in_the_schema(rows):
    seen = Counter()
    for row in [row for episode in rows[0] for row in episode] + rows[1]:
        schemas = {tool["name"]: tool["parameters"] for tool in row["tools"]}
        for call in first_calls(row):
            schema = schemas[call.name]
            assert set(schema.get("required", [])) <= call.arguments.keys() <= schema["properties"].keys()
            for name, value, _ in text_arguments(call, schema):
                assert value in first_query(row), (first_query(row), name, value)
                seen["text"] += 1
            for name, value in call.arguments.items():
                if "enum" in schema["properties"][name]:
                    assert value in schema["properties"][name]["enum"]
                    seen["enum"] += 1
    assert seen["text"] > 300 and seen["enum"] > 50


def test_an_episode_is_one_tool_set_and_no_two_are_equal(rows):
    episodes, check = rows
    sets = []
    for episode in episodes:
        assert len({json.dumps(row["tools"]) for row in episode}) == 1
        assert 9 <= len(episode) <= 16
        sets.append(frozenset(tool["name"] for tool in episode[0]["tools"]))
    assert len(set(sets)) == len(sets)
    trained = frozenset().union(*sets)
    assert not any(tool["name"] in trained for row in check for tool in row["tools"])


def test_all_sources_and_kinds_of_answer_appear(rows):
    episodes, _ = rows
    assert {episode[0]["id"][0] for episode in episodes} == {"k", "l"}
    counts = Counter(min(len(all_calls(row)), 2) for episode in episodes for row in episode)
    assert counts[0] > 20 and counts[1] > 200 and counts[2] > 40


def test_the_same_seed_gives_the_same_rows(rows):
    assert made() == rows
    assert made(2)[0] != rows[0]


def test_every_sentence_is_of_known_arguments_and_every_kind_can_be_asked_for():
    rng = random.Random(0)
    kinds = read_kinds()
    assert {kind.names[0] for kind in kinds} >= set(HELD_OUT) and len(kinds) > 50
    for kind in kinds:
        known = {argument.key for argument in kind.arguments}
        assert set().union(*(slots(parts) for _, parts in kind.sentences)) <= known, kind.names
        for _ in range(20):
            declared = declare(kind, rng, "snake", "snake", False)
            try:
                request = declared.request(rng)
            except Unusable:  # an optional argument that was made required need not fit a sentence
                continue
            assert "{" not in request.text and "|" not in request.text and "[" not in request.text


def test_what_a_request_does_not_say_is_no_gold_value():
    assert _said("three songs by Abba", 3, {"type": "integer"})
    assert not _said("a song by Abba", 3, {"type": "integer"})
    assert not _said("13 songs", 3, {"type": "integer"})
    assert _said("some drama", "Drama", {"enum": ["Drama", "dontcare"]})
    assert not _said("some film", "dontcare", {"enum": ["Drama", "dontcare"]})
