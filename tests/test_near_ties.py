"""Near ties: rounding is named, a real difference is reported, and equal answers cost nothing."""

import numpy as np
import pytest

from fgtune.data.rows import Case
from fgtune.evaluation.judging import judge
from fgtune.evaluation.near_ties import FLOAT32_ROUNDING, MARGIN, differences, unexplained_differences
from fgtune.evaluation.scorecards import Scorecard
from fgtune.format.calls import Call, format_call
from fgtune.format.template import TRIGGER, render
from fgtune.runtimes.constrained import Grammar
from fgtune.runtimes.onnxruntime import OrtGenerator

CASES = [Case(f"c{i}", f"query {i}", f"prompt {i}: ", (), "yes", ()) for i in range(3)]


class Toy:
    """A model of characters: after each token every logit is 0 but for `liked`, and a pass in pieces rounds."""

    def __init__(self, liked: dict[str, float], rounding: float = 0.0):
        self.liked, self.rounding, self.calls = liked, rounding, 0

    def encode(self, text):
        return [ord(char) for char in text]

    def logits(self, ids, start=0, cached=False):
        self.calls += 1
        out = np.zeros((len(ids) - start, 256), np.float32)
        for char, value in self.liked.items():
            out[:, ord(char)] = value
        return out + np.float32(self.rounding * cached)


def cards(reference: str, answer: str):
    """Two scorecards that differ in the second case only."""
    names = [[text, other, text] for text, other in (("same", reference), ("same", answer))]
    return [Scorecard("x", [judge(c, text) for c, text in zip(CASES, texts, strict=True)]) for texts in names]


def test_equal_answers_cost_nothing():
    model = Toy({})
    reference, card = cards("yes", "yes")
    assert differences(card, reference, model, CASES) == [] and model.calls == 0


def test_what_rounding_does_not_explain_is_reported():
    reference, card = cards("yes", "yet")
    (found,) = unexplained_differences(card, reference, Toy({"s": 8.0, "t": 7.9}, rounding=1e-3), CASES)
    assert (found.id, found.shared, found.tokens) == ("c1", 2, (ord("s"), ord("t")))
    assert found.gap == pytest.approx(0.1, rel=1e-4) and found.margin == pytest.approx(MARGIN * 1e-3, rel=1e-2)
    assert str(found).startswith("different: query 1\n    yes\n    yet\n")


def test_a_near_tie_is_named():
    reference, card = cards("yes", "yet")
    model = Toy({"s": 8.0, "t": 7.9}, rounding=0.03)
    (found,) = differences(card, reference, model, CASES)
    assert found.near_tie and str(found).startswith("near tie: query 1")
    assert unexplained_differences(card, reference, model, CASES) == []
    exact = Toy({"s": 8.0, "t": 8.0 - 0.5 * MARGIN * 8 * FLOAT32_ROUNDING})  # no rounding seen: that of float32 stays
    assert unexplained_differences(card, reference, exact, CASES) == []


def test_the_two_tokens_must_be_the_best():
    """Two tokens that are equally far from what the reference would say are no tie."""
    reference, card = cards("yes", "yet")
    assert unexplained_differences(card, reference, Toy({"s": 2.0, "t": 2.0, "a": 8.0}), CASES)


@pytest.mark.parametrize("answers", [("yes", "yes!"), ("yes!", "yes")])
def test_an_answer_may_end_where_the_other_goes_on(answers):
    reference, card = cards(*answers)
    assert unexplained_differences(card, reference, Toy({"!": 5.0, chr(106): 5.0}), CASES) == []
    (found,) = unexplained_differences(card, reference, Toy({"!": 5.0, chr(106): 1.0}), CASES)
    assert set(found.tokens) == {ord("!"), 106} and found.shared == 3


def test_the_same_calls_in_another_spelling_are_no_difference():
    calls = [
        "".join(map(format_call, [Call("f", {"a": 1.5})])),
        "<start_function_call>call:f{a:1.50}<end_function_call>",
    ]
    reference, card = cards(*calls)
    assert differences(card, reference, Toy({}), CASES) == []


def test_what_the_grammar_forbids_is_no_near_tie(tiny_onnx):
    tool = {"name": "f", "parameters": {"properties": {"x": {"type": "string", "enum": ["north", "south"]}}}}
    turns = [{"role": "developer", "content": TRIGGER}, {"role": "user", "content": "x"}]
    case = Case("c", "x", render(turns, [tool], add_generation_prompt=True), (), "", (tool,))
    model, grammar = OrtGenerator(tiny_onnx), Grammar(tiny_onnx)

    def part(*words):
        texts = [f"<start_function_call>call:f{{x:<escape>{word}<escape>}}<end_function_call>" for word in words]
        reference, card = (Scorecard("x", [judge(case, text)]) for text in texts)
        (found,) = differences(card, reference, model, [case], grammar)
        return found

    assert np.isfinite(part("north", "south").gap)
    assert part("north", "west").gap == np.inf and part("west", "north").gap == np.inf
    assert part("wind", "wing").gap == np.inf, "nor where the part they share is forbidden"
    assert not part("north", "west").near_tie
