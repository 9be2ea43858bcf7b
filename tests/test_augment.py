"""Examples made of examples: what is exchanged, what is left alone, and that query and call still agree."""

import json
import re

import pytest

from fgtune_helpers import data
from fgtune_helpers.augment import augment
from fgtune_helpers.prompt import lint_examples

TOOLS = [
    {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where"},
                "unit": {"type": "string", "description": "Unit", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": "integer", "description": "How many"},
            },
            "required": ["city"],
        },
    },
    {
        "name": "invite",
        "description": "Invite people.",
        "parameters": {
            "type": "object",
            "properties": {
                "people": {"type": "array", "description": "Who", "items": {"type": "string"}},
                "place": {
                    "type": "object",
                    "description": "Where",
                    "properties": {"street": {"type": "string", "description": "Street"}},
                },
            },
            "required": ["people"],
        },
    },
]


def example(number, query, *calls, text=None):
    """A chat row."""
    functions = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
    answer = {"role": "assistant", **({"tool_calls": functions} if calls else {"content": text})}
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": query}, answer]
    return {"id": f"e{number}", "tools": TOOLS, "messages": messages}


def weather(**arguments):
    return "get_weather", arguments


def invite(*people_and_street):
    *people, street = people_and_street
    return "invite", {"people": people, "place": {"street": street}}


def test_query_and_call_change_together():
    rows = [
        example(1, "Weather in Nuuk for 3 days in celsius", weather(city="Nuuk", unit="celsius", days=3)),
        example(2, "Is it wet in Bergen for 5 days?", weather(city="Bergen", days=5)),
    ]
    seen = set()
    for fresh in augment(rows, 12, 0):
        (call,) = data.first_calls(fresh)
        query = data.first_query(fresh)
        assert call.arguments["city"] in query and f"for {call.arguments['days']} days" in query
        assert call.arguments.get("unit") in (None, "celsius")  # what a schema enumerates stays
        seen.add((call.arguments["city"], call.arguments["days"]))
    assert {days for _, days in seen} == {3, 5} and len({city for city, _ in seen} - {"Nuuk", "Bergen"}) > 0
    assert rows[0]["messages"][1]["content"].startswith("Weather in Nuuk"), "the originals are untouched"


def test_lists_and_objects_are_reached():
    rows = [
        example(1, "Invite Hassan and Mireille to Nile Street", invite("Hassan", "Mireille", "Nile Street")),
        example(2, "Invite Odile and Vikram to Ring Road", invite("Odile", "Vikram", "Ring Road")),
    ]
    fresh = augment(rows, 8, 3)
    assert len(fresh) > 4
    for row in fresh:
        (call,) = data.first_calls(row)
        a, b = call.arguments["people"]
        assert data.first_query(row) == f"Invite {a} and {b} to {call.arguments['place']['street']}"


@pytest.mark.parametrize(
    "query, calls",
    [
        ("Bergen, Bergen, Bergen!", [weather(city="Bergen")]),  # which one?
        ("Is it wet over there in Norway", [weather(city="Bergen")]),  # not in the query
        ("Weather at 3:30 for the 3rd, 3.5 hours", [weather(city="x", days=3)]),  # inside other numbers
        ("Hello there", []),
    ],
)
def test_what_is_not_there_exactly_once_stays(query, calls):
    rows = [
        example(1, query, *calls, text="Hi"),
        example(2, "Weather in Oslo", weather(city="Oslo", days=7)),
        example(3, ", Oslo", weather(city="Oslo")),
    ]
    assert not [row for row in augment(rows, 5, 0) if row["id"].startswith("e1")]


def test_dialogues_with_tool_results_are_left_alone():
    row = example(1, "Weather in Oslo", weather(city="Oslo"))
    row["messages"] += [{"role": "tool", "name": "get_weather", "content": "9 degrees in Oslo"},
                        {"role": "assistant", "content": "9 degrees in Oslo."}]  # fmt: skip
    assert not augment([row, example(2, "Weather in Bergen", weather(city="Bergen"))][:1], 3, 0)


def test_seeded_distinct_and_clean(shipped):
    tools, examples = shipped[0], shipped[1][:400]
    fresh = augment(examples, 2, 7)
    assert fresh == augment(examples, 2, 7) and fresh != augment(examples, 2, 8)
    assert len(fresh) > len(examples) // 2
    assert len({row["id"] for row in fresh}) == len(fresh) and not augment(examples, 0, 7)
    by_id = {row["id"]: row for row in examples}
    for row in fresh:
        old = by_id[re.sub(r"\+\d+$", "", row["id"])]
        assert data.first_query(row) != data.first_query(old)
        assert [c.name for c in data.first_calls(row)] == [c.name for c in data.first_calls(old)]
        shape = [sorted(c.arguments) for c in data.first_calls(row)]
        assert shape == [sorted(c.arguments) for c in data.first_calls(old)]
        assert json.loads(json.dumps(row)) == row
    assert not [f for f in lint_examples(fresh, tools, source="copies") if f.level == "error"]
