"""Examples made of examples: what is exchanged, what is left alone, and that query and call still agree."""

import hashlib
import json
import re

import pytest

from fgtune.data.augment import augment, combine
from fgtune.data.examples import first_calls, first_query
from fgtune.format.lint import lint_examples

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
        (call,) = first_calls(fresh)
        query = first_query(fresh)
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
        (call,) = first_calls(row)
        a, b = call.arguments["people"]
        assert first_query(row) == f"Invite {a} and {b} to {call.arguments['place']['street']}"


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
    again = [row for row in augment(rows, 5, 0) if row["id"].startswith("e1")]
    assert len(again) == 5 and all(row["messages"] == rows[0]["messages"] for row in again), "it comes again as it is"


def test_dialogues_with_tool_results_are_left_alone():
    row = example(1, "Weather in Oslo", weather(city="Oslo"))
    row["messages"] += [{"role": "tool", "name": "get_weather", "content": "9 degrees in Oslo"},
                        {"role": "assistant", "content": "9 degrees in Oslo."}]  # fmt: skip
    fresh = augment([row, example(2, "Weather in Bergen", weather(city="Bergen"))], 3, 0)
    assert all(again["messages"] == row["messages"] for again in fresh if again["id"].startswith("e1"))


def test_a_call_with_a_text_that_was_not_said_is_left_alone():
    rows = [
        example(1, "Invite Hassan to the party", invite("Hassan", "Nile Street")),  # the street follows from him
        example(2, "Invite Mireille to the party", invite("Mireille", "Ring Road")),
        example(3, "Weather in Oslo", weather(city="Oslo")),
        example(4, "Weather in Bergen", weather(city="Bergen")),
    ]
    fresh = augment(rows, 6, 0)
    assert all(row["messages"] == rows[0]["messages"] for row in fresh if row["id"].startswith("e1"))
    assert any(row["messages"] != rows[2]["messages"] for row in fresh if row["id"].startswith("e3"))


def test_a_call_with_a_number_that_may_follow_from_a_text_is_left_alone():
    """Another place lies at other degrees. The length of a week follows from no place."""
    cities = ("Oslo", "Rome", "Lima", "Quito", "Cairo", "Delhi", "Seoul", "Tunis", "Sofia", "Kyiv", "Bern", "Riga")

    def changed(more, query="Weather in {}"):
        rows = [example(i, query.format(c), weather(city=c, **more(i))) for i, c in enumerate(cities)]
        return [row for row in augment(rows, 1, 0) if row["messages"] != rows[int(row["id"][1:-2])]["messages"]]

    assert not changed(lambda i: {"latitude": 10.5 + i}) and not changed(lambda i: {"zone": 100 + i})
    assert changed(lambda i: {"days": 7}, "Weather in {} this week")


def test_common_words_of_a_small_set_are_not_exchanged():
    """A song is no album; the cities, each of which comes once, are exchanged."""
    words, cities = ("song", "album"), [a + b for a in ("Kor", "Bel", "Tam", "Rin") for b in ("dale", "ford", "by", "")]
    calls = [weather(city=city, kind=words[i % 2]) for i, city in enumerate(cities)]
    rows = [example(i, f"Play the {c['kind']} in {c['city']}", (name, c)) for i, (name, c) in enumerate(calls)]
    fresh = augment(rows, 2, 0)
    assert all(words[int(row["id"].split("+")[0][1:]) % 2] == first_calls(row)[0].arguments["kind"] for row in fresh)
    assert any(first_calls(row)[0].arguments["city"] not in cities for row in fresh)


def test_the_shipped_examples_give_what_they_gave(shipped):
    """The recorded run is trained on them: a rule for other data must not touch these."""
    made = augment(shipped[1], 2, 7)
    text = json.dumps(made + combine(shipped[1] + made, 400, 7), sort_keys=True)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "d976bd869317feb27d873cd117b3e8c638defd690fb40045ecdf1189cc834a66"
    )


def test_seeded_distinct_and_clean(shipped):
    tools, examples = shipped[0], shipped[1][:400]
    fresh = augment(examples, 2, 7)
    assert fresh == augment(examples, 2, 7) and fresh != augment(examples, 2, 8)
    assert len(fresh) > len(examples) // 2
    assert len({row["id"] for row in fresh}) == len(fresh) and not augment(examples, 0, 7)
    by_id = {row["id"]: row for row in examples}
    share = [sum(not first_calls(row) for row in rows) / len(rows) for rows in (examples, fresh)]
    assert abs(share[0] - share[1]) < 0.02, "as many rows without a call as before"
    for row in fresh:
        old = by_id[re.sub(r"\+\d+$", "", row["id"])]
        assert first_query(row) != first_query(old) or row["messages"] == old["messages"]
        assert [c.name for c in first_calls(row)] == [c.name for c in first_calls(old)]
        shape = [sorted(c.arguments) for c in first_calls(row)]
        assert shape == [sorted(c.arguments) for c in first_calls(old)]
        assert json.loads(json.dumps(row)) == row
    assert not [f for f in lint_examples(fresh, tools, source="copies") if f.level == "error"]


# ---------------------------------------------------------------- two requests in one


def asked(*people):
    return "invite", {"people": list(people)}


BOTH = example(9, "Oslo and Bergen, please", weather(city="Oslo"), weather(city="Bergen"))


def test_combined_requests_make_the_calls_of_both_in_order():
    rows = [
        example(1, "Weather in Oslo", weather(city="Oslo")),
        example(2, "Is Bergen invited?", asked("Bergen")),
        example(3, "Hello", text="Hi"),
        BOTH,
    ]
    made = combine(rows, 40, 0)
    assert {row["id"] for row in made} == {"e1&e2", "e2&e1"}
    for row in made:
        names = [call.name for call in first_calls(row)]
        query = first_query(row)
        assert (
            names == ["get_weather", "invite"]
            if query.index("Oslo") < query.index("Bergen")
            else ["invite", "get_weather"]
        )
    (question,) = [first_query(row) for row in made if row["id"] == "e2&e1"]
    assert question == "Is Bergen invited? Weather in Oslo"
    assert len(rows[0]["messages"][2]["tool_calls"]) == 1, "the originals are untouched"


def test_a_capital_becomes_small_unless_an_argument_has_it():
    rows = [example(1, "rain in Oslo", weather(city="Oslo")), example(2, "Is Ada invited", asked("Ada")),
            example(3, "Paris now", weather(city="Paris")), BOTH]  # fmt: skip
    joined = {first_query(row) for seed in range(40) for row in combine(rows, 6, seed)}
    assert any("Oslo and is Ada invited" in query for query in joined)
    assert all(". Is Ada" in query for query in joined if query.endswith("Is Ada invited"))
    assert all("Paris" in query for query in joined if "now" in query)


def test_requests_are_joined_without_english_words_where_the_examples_have_none():
    two = example(9, "Oslo, Bergen bitte", weather(city="Oslo"), weather(city="Bergen"))
    rows = [example(1, "Wetter in Oslo", weather(city="Oslo")), example(2, "Wetter in Rom", weather(city="Rom")), two]
    joined = {first_query(row) for seed in range(20) for row in combine(rows, 4, seed)}
    assert joined and all(re.fullmatch(r"Wetter in \w+[.;] [Ww]etter in \w+", query) for query in joined)
    rows = [example(1, "東京の天気は？", weather(city="東京")), example(2, "今日の銀座", weather(city="銀座")), two]
    assert {first_query(row) for row in combine(rows, 4, 0)} == {
        "東京の天気は？今日の銀座",
        "今日の銀座。東京の天気は？",
    }


def test_a_dictated_text_is_not_followed_by_anything():
    long = "the third house behind the old mill"
    rows = [
        example(1, f"weather at {long}", weather(city=long)),
        example(2, "Is Ada invited?", asked("Ada")),
        BOTH,
    ]
    assert {row["id"] for row in combine(rows, 20, 1)} == {"e2&e1"}


def test_two_requests_for_one_tool_are_combined_where_an_example_calls_a_tool_twice():
    rows = [example(1, "Rain in Oslo?", weather(city="Oslo")), example(2, "Rain in Rome?", weather(city="Rome"))]
    two_tools = example(8, "Rain in Oslo, and is Ada invited?", weather(city="Oslo"), asked("Ada"))
    assert combine([*rows, two_tools], 10, 0) == []
    assert {row["id"] for row in combine([*rows, BOTH], 10, 0)} == {"e1&e2", "e2&e1"}


def test_a_request_is_not_combined_with_a_copy_of_itself():
    one = example(1, "Rain in Oslo?", weather(city="Oslo"))
    assert combine([one, {**one, "id": "e1+1"}, BOTH], 10, 0) == []


def test_three_requests_are_combined_where_an_example_makes_three_calls():
    cities = ("Oslo", "Rome", "Bonn", "Kiel", "Nice")
    rows = [example(i, f"rain in {city}", weather(city=city)) for i, city in enumerate(cities)]
    assert {row["id"].count("&") for row in combine([*rows, BOTH], 60, 0)} == {1}
    thrice = example(8, "Rain in A, B and C?", *(weather(city=c) for c in "ABC"))
    made = combine([*rows, thrice], 60, 0)
    assert {row["id"].count("&") for row in made} == {1, 2}
    for row in made:
        said = re.findall("|".join(cities), first_query(row))
        assert said == [call.arguments["city"] for call in first_calls(row)] and len(set(said)) == len(said)


def test_nothing_is_combined_where_no_example_makes_several_calls():
    rows = [example(1, "Rain in Oslo?", weather(city="Oslo")), example(2, "Is Ada invited?", asked("Ada"))]
    assert combine(rows, 10, 0) == [] and combine([*rows, BOTH], 10, 0) and combine([*rows, BOTH], 0, 0) == []


def test_combined_examples_are_seeded_and_clean(shipped):
    tools, examples = shipped[0], shipped[1][:400]
    made = combine(examples, 100, 7)
    assert len(made) == 100 == len({row["id"] for row in made})
    assert made == combine(examples, 100, 7) and made != combine(examples, 100, 8)
    assert not [f for f in lint_examples(made, tools, source="combined") if f.level == "error"]
