"""What to add: counts per tool, argument and kind of request, and the sentence that follows from them."""

import pytest

from fgtune.data.examples import written
from fgtune.data.rows import Case
from fgtune.evaluation.judging import judge
from fgtune.evaluation.needs import CUT, MISSING, NO_CALL, ONE_CALL, OTHER, SEVERAL, UNASKED, Tally
from fgtune.evaluation.scorecards import Scorecard
from fgtune.evaluation.shares import wilson
from fgtune.format.calls import Call, format_call


def tools(*names):
    return [{"name": name, "description": "", "parameters": {"type": "object", "properties": {}}} for name in names]


def example(id, *calls, names=("f", "g")):
    function = lambda call: {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    answer = {"role": "assistant", "tool_calls": [function(call) for call in calls]} if calls else {"content": "No."}
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": id}, {"role": "assistant"} | answer]
    return {"id": id, "tools": tools(*names), "messages": messages}


def card(*pairs):
    """A scorecard of (expected calls, answer) pairs; an answer is a list of calls or a text."""
    results = []
    for i, (expected, answer) in enumerate(pairs):
        text = answer if isinstance(answer, str) else "".join(map(format_call, answer)) or "Hello."
        results.append(judge(Case(f"c{i}", f"q{i}", f"p{i}", tuple(expected), "", ()), text))
    return Scorecard("m", results)


def f(**arguments):
    return Call("f", arguments)


def g(**arguments):
    return Call("g", arguments)


TRAIN = [example("a", f(x=1)), example("b", g(y="z")), example("c", f(x=1), g(y="z")), example("d")]


def test_copies_and_joined_requests_are_not_written():
    made = [example("a+1", f(x=2)), example("a&b", f(x=1), g(y="z")), example("a+1&d+12"), example("c+1")]
    own = [example("z+1"), example("R&D")]  # an id of somebody's own that looks like one of ours
    assert written(TRAIN + made + own) == TRAIN + own
    assert card(([f(x=1)], [f(x=1)])).needs(TRAIN + made).examples == 4


def test_calls_of_each_tool_with_their_interval():
    needs = card(
        ([f(x=1)], [f(x=1)]), ([f(x=1)], [f(x=2)]), ([f(x=1), g(y="z")], [g(y="z"), f(x=1)]), ([g(y="z")], "Hi."),
    ).needs(TRAIN)  # fmt: skip
    assert needs.tools == {"f": Tally(2, 3, 2, 3), "g": Tally(2, 2, 1, 2)}
    assert needs.tools["f"].interval == wilson(2, 3)
    assert needs.kinds == {NO_CALL: Tally(1, 0, 0, 0), ONE_CALL: Tally(2, 3, 1, 3), SEVERAL: Tally(1, 1, 0, 1)}
    assert (
        "2 of 3" in str(needs)
        and "21%–94%" in str(needs)
        and "<td style='text-align:left'>2 of 3</td>" in needs._repr_html_()
    )


@pytest.mark.parametrize(
    ("want", "have", "way"),
    [
        ({"x": "buy milk"}, {}, MISSING),
        ({}, {"x": "buy milk"}, UNASKED),
        ({"x": "buy milk"}, {"x": "Milk"}, CUT),
        ({"x": "milk"}, {"x": "buy milk"}, CUT),
        ({"x": ["a", "b"]}, {"x": ["b"]}, CUT),
        ({"x": ["a"]}, {"x": ["b"]}, OTHER),
        ({"x": "milk"}, {"x": "Milk"}, OTHER),
        ({"x": 5}, {"x": "5"}, OTHER),
        ({"x": 2}, {"x": 2.0}, None),
    ],
)
def test_how_an_argument_is_wrong(want, have, way):
    counts = card(([f(**want)], [f(**have)])).needs(TRAIN).arguments["f.x"]
    assert counts == {"calls": 1, **({way: 1} if way else {})}


def test_a_call_is_paired_with_its_equal_before_its_like():
    """The second of two calls of a tool is right although the first one is left out."""
    needs = card(([f(x=1), f(x=2)], [f(x=2)])).needs(TRAIN)
    assert needs.tools["f"] == Tally(2, 1, 1, 2) and needs.arguments == {"f.x": {"calls": 1}}


RIGHT = [([f(x=1)], [f(x=1)])] * 20 + [([g(y="z")], [g(y="z")])] * 20


def test_several_calls_are_asked_for_where_they_are_lost():
    both = [f(x=1), g(y="z")]
    needs = card(*RIGHT, *[(both, both)] * 3, *[(both, [f(x=1)])] * 6).needs(TRAIN)
    assert needs.sentence == (
        "Add requests that need several calls: 3 of 9 such cases are right, g is not called in all 6 others, and 1 of "
        "4 training examples is such."
    )


def test_requests_without_a_call_are_asked_for():
    needs = card(*RIGHT, *[([], [f(x=1)])] * 3, *[([], [g(y="z")])] * 2, *[([], "Hi.")] * 2).needs(TRAIN)
    assert needs.sentence.startswith("Add requests that need no call: 2 of 7 such cases are right, f is called unasked")


@pytest.mark.parametrize(
    ("want", "have", "advice"),
    [
        (f(x="buy milk"), f(x="milk"), "other values of x: 20 of 28 such cases are right, f.x is wrong, mostly cut"),
        (f(x=1, y=2), f(x=1), "for f alone that say y:"),
        (f(x=1), f(x=1, y=2), "for f alone that leave y out:"),
        (f(x=1), g(y="z"), "for f alone: 20 of 28 such cases are right, f is not called in all 8 others"),
    ],
)  # fmt: skip
def test_the_tool_and_the_argument_that_lose_most_are_named(want, have, advice):
    sentence = card(*RIGHT, *[([want], [have])] * 8).needs(TRAIN).sentence
    assert advice in sentence and sentence.endswith("1 of 4 training examples is such.")


def test_one_tool_alone_can_be_named_too():
    """There is nothing to compare it with, but all that is lost is lost there."""
    needs = card(*[([f(x=1)], [f(x=1)])] * 5, *[([f(x=1)], [f(x=2)])] * 5).needs([example("a", f(x=1), names=["f"])])
    assert needs.sentence.startswith("Add requests for f alone with other values of x: 5 of 10")


def test_two_lost_cases_may_be_chance():
    sentence = card(*RIGHT, *[([], [f(x=1)])] * 2).needs(TRAIN).sentence
    assert sentence.startswith("2 of 42 held-out cases are lost, and that is too little to say what to add; requests")
    assert "that need no call lose the most (0 of 2 are right, between 0% and 66%; 1 of 4 training" in sentence


def test_no_kind_is_named_where_all_lose_alike():
    names = ["f", "g", "h", "i"]
    pairs = [([Call(name, {"x": 1})], [Call(name, {"x": i % 2})]) for name in names for i in range(10)]
    sentence = card(*pairs).needs(TRAIN).sentence
    assert sentence.startswith(
        "20 of 40 held-out cases are lost, and no kind of request stands out, so add some of every"
    )


def test_all_right_is_said_with_what_it_is_worth_and_what_nobody_asked():
    train = [*TRAIN, example("e", Call("h", {}), names=["f", "g", "h"])]
    needs = card(*RIGHT).needs(train)
    assert needs.sentence == (
        "Nothing is lost that more examples could win: all 40 held-out cases are right, so between 91% and 100% of "
        "such requests are, though none of them calls h."
    )
    assert needs.tools["h"] == Tally(1, 0, 0, 0) and needs.tables()[0][1][-1] == ("h", "1", "0", "–", "–", "0%–100%")


def test_answers_that_are_none_ask_for_training_not_for_examples():
    sentence = card(*[([f(x=1)], "<escape>call:{")] * 9).needs(TRAIN).sentence
    assert "9 of the 9 lost cases have no well-formed answer" in sentence and "max_tokens" in sentence


def test_without_cases_without_calls_and_without_examples():
    assert "nothing can be said" in Scorecard("m").needs(TRAIN).sentence and str(Scorecard("m").needs([]))
    silent = card(*[([], "Hi.")] * 6).needs([example("d", names=())])
    assert silent.tools == {} and silent.kinds[NO_CALL] == Tally(1, 6, 6, 6)
    assert silent.sentence.endswith("so between 61% and 100% of such requests are.") and silent._repr_html_()


def test_names_in_japanese_stand_in_line_and_hostile_ones_as_text():
    timer = Call("タイマー", {"分": 5})
    needs = card(*RIGHT, *[([timer], [Call("タイマー", {"分": 6})])] * 5).needs(
        [example("a", timer, names=["タイマー", "<b>"])]
    )
    assert "Add requests for タイマー alone with other values of 分" in needs.sentence
    assert "<b></td>" not in needs._repr_html_() and "&lt;b&gt;" in needs._repr_html_()
    lines = str(needs).split("\n\n")[1].splitlines()
    wide = next(line for line in lines if line.startswith("タイマー"))
    assert wide.index("1") + 4 == lines[0].index("training")  # four characters that take two columns each


def test_the_same_counts_give_the_same_words():
    pairs = [*RIGHT, ([f(x=1)], [f(x=2)]), ([g(y="z")], [g(y="a")])]
    assert str(card(*pairs).needs(TRAIN)) == str(card(*pairs[::-1]).needs(TRAIN))
