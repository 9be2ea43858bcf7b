"""Scores: exact match, three states, what differs, intervals, and the order that everyone expects."""

import pytest

from fgtune.data.rows import Case
from fgtune.evaluation.judging import judge
from fgtune.evaluation.scorecards import Comparison, Scorecard, score
from fgtune.evaluation.shares import percent, wilson
from fgtune.format.calls import Call, format_call
from fgtune_helpers.plots import plot_sizes

TOOLS = (
    {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}},
    {"name": "g", "parameters": {"type": "object", "properties": {"x": {"type": "number"}}}},
)


def case(*calls, id="c", text=""):
    return Case(id, f"query {id}", f"prompt {id}", tuple(calls), text, TOOLS)


def said(*calls):
    return "".join(map(format_call, calls))


F, G = Call("f", {"a": 1, "b": "x"}), Call("g", {"x": 2.0})


@pytest.mark.parametrize(
    ("expected", "output", "exact", "state"),
    [
        ((F,), said(F), True, "call"),
        ((F,), said(Call("f", {"b": "x", "a": 1})), True, "call"),
        ((G,), said(Call("g", {"x": 2})), True, "call"),
        ((F,), said(Call("f", {"a": 2, "b": "x"})), False, "call"),
        ((F,), said(Call("f", {"a": 1})), False, "call"),
        ((F,), said(Call("f", {"a": "1", "b": "x"})), False, "call"),
        ((F,), said(F, F), False, "call"),
        ((F, G), said(F), False, "call"),
        ((F, G), said(G, F), False, "call"),
        ((F,), "I can't do that.", False, "text"),
        ((F,), said(F)[:-5], False, "malformed"),
        ((), "Hello!", True, "text"),
        ((), said(F), False, "call"),
        ((), "<start_function_call>call:f{", False, "malformed"),
    ],
)
def test_exact_match(expected, output, exact, state):
    result = judge(case(*expected), output)
    assert (result.exact, result.state) == (exact, state)
    assert bool(result.differs) == (not exact) or not expected or state == "text"


def test_parallel_calls_in_another_order():
    result = judge(case(F, G), said(G, F))
    assert not result.exact and result.exact_any_order
    assert not judge(case(F, F), said(F, G)).exact_any_order


def test_a_swapped_argument_is_named():
    swapped = judge(case(Call("f", {"a": 1, "b": "x"})), said(Call("f", {"a": 1, "b": "y"})))
    assert swapped.differs == ['f.b: "y" instead of "x"'] and (swapped.arguments_right, swapped.arguments) == (1, 2)
    assert judge(case(F), said(Call("f", {"a": 1, "b": "x", "c": True}))).differs == ["f.c: true instead of nothing"]
    assert judge(case(F), said(G)).differs == ["f: called g"]
    assert judge(case(F), said(F, G)).differs == ["g: not asked for"]
    assert "'y'" not in str(Scorecard("m", [swapped])) and 'f.b: "y" instead of "x"' in str(Scorecard("m", [swapped]))
    assert "f.b: &quot;y&quot; instead of &quot;x&quot;" in Scorecard("m", [swapped])._repr_html_()


def test_the_order_that_everyone_expects():
    cases = [case(F, id="1"), case(G, id="2"), case(F, G, id="3"), case(id="4", text="Hi.")]
    right = {c.prompt: said(*c.calls) or "Hello." for c in cases}
    tuned = dict(right) | {"prompt 3": said(F)}
    cards = {
        "perfect": score(lambda p: [right[x] for x in p], cases),
        "tuned": score(lambda p: [tuned[x] for x in p], cases),
        "always text": score(lambda p: ["Sorry."] * len(p), cases),
        "always the same call": score(lambda p: [said(F)] * len(p), cases),
        "noise": score(lambda p: ["<escape>call:{"] * len(p), cases),
    }
    assert [round(c.exact, 2) for c in cards.values()] == [1.0, 0.75, 0.25, 0.25, 0.0]
    text, call = cards["always text"].summary(), cards["always the same call"].summary()
    assert text["abstained"] == 1.0 and call["abstained"] == 0.0 and cards["noise"].summary()["malformed"] == 4
    assert cards["tuned"].lost_against(cards["perfect"])[0].id == "3"
    assert cards["tuned"].same_outputs(cards["perfect"]) == 3
    assert cards["tuned"].states()["text expected"] == {"text": 1}


def test_a_share_of_nothing_is_no_share():
    """Neither 0 nor 100 %: where no case expects a text answer, nobody can abstain."""
    calls, texts, empty = (score(lambda p: [said(F)] * len(p), cases) for cases in ([case(F)], [case()], []))
    assert calls.summary()["abstained"] is None and calls.summary()["right_tools"] == 1.0
    assert texts.summary()["abstained"] == 0.0 and texts.summary()["right_tools"] is None
    assert texts.summary()["arguments"] is None and calls.summary()["arguments"] == 1.0
    assert empty.exact is None and empty.summary()["exact_any_order"] is None
    for card, shares in ((calls, ("100.0%", "100.0%", "–")), (texts, ("–", "–", "0.0%")), (empty, ("–", "–", "–"))):
        ((_, _, exact, _, *found),) = [row[:7] for row in Comparison([card]).rows()]
        assert tuple(found) == shares and exact == percent(card.exact)
        assert ("–" in card._repr_html_()) == (card is not calls)
    assert "–" in str(empty) and Comparison([calls])._repr_html_().count("–</td>") == 1


def test_confusion_counts_the_first_call():
    card = score(lambda p: [said(G), "no"], [case(F, id="1"), case(F, id="2")])
    assert card.confusion() == {("f", "g"): 1, ("f", "no call"): 1}


def test_saves_and_loads(tmp_path):
    card = score(lambda p: [said(F), "<escape>"], [case(F, id="1"), case(G, id="2")], "m")
    card.save(tmp_path / "card.json")
    assert Scorecard.load(tmp_path / "card.json") == card


def test_different_means_neither_the_same_text_nor_the_same_calls():
    cases = [case(F, id="1"), case(id="2"), case(F, id="3")]
    a = score(lambda p: [said(F), "Hi.", said(F)], cases)
    b = score(lambda p: ["Sure. " + said(F), "Hi!", said(F)], cases)
    assert a.different_from(a) == [] and a.same_outputs(b) == 1
    assert b.different_from(a) == [("query 2", "Hi.", "Hi!")]


def test_a_truncated_answer_is_malformed():
    class Rambling:
        def generate(self, prompts):
            self.finished = [True, False, False]
            return ["Hi.", "Well, well, well", said(F)]

    card = score(Rambling(), [case(id="1"), case(id="2"), case(F, id="3")])
    assert [r.state for r in card.results] == ["text", "malformed", "malformed"] and card.hits == 1
    assert "truncated at max_tokens" in card.results[1].differs[0]


def test_missing_answers_are_an_error():
    with pytest.raises(ValueError, match="1 answers to 2 prompts"):
        score(lambda p: ["x"], [case(F), case(G)])


def test_wilson_against_published_values():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81/263, 15/148, 0/20, 1/29
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(hits, n) == pytest.approx((low, high), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_hostile_text_is_shown_as_text():
    card = score(lambda p: ["<img src=x onerror=alert(1)>"], [case(F)], "<b>m")
    html = card._repr_html_() + Comparison([card])._repr_html_()
    assert "<img" not in html and "<b>m" not in html.replace("<b>&lt;b&gt;m", "")


@pytest.mark.parametrize("exact", [(45, 45, 45, 45), (46, 45, 45, 45), (44, 46, 45, 20)])
def test_names_of_variants_stay_inside_the_picture_of_sizes(exact):
    """Whether the variants are equally right or not: below the title, above the axis."""
    sizes = zip(("q4", "int8", "fp16", "fp32"), (198, 286, 536, 1073), exact, (70, 61, 32, 33))
    rows = [{"variant": v, "mb": mb, "exact": hits / 48, "tokens_per_s": speed} for v, mb, hits, speed in sizes]
    figure = plot_sizes(rows)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    frame = axes.get_window_extent()
    for label in axes.texts:
        box = label.get_window_extent()
        assert frame.y0 < box.y0 and box.y1 < frame.y1, label.get_text()
