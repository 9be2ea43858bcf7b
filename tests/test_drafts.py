"""Speculative decoding on onnxruntime: whatever is guessed, answers are those of plain decoding, in fewer passes."""

import random
import shutil

import numpy as np
import pytest
from test_export import make_model
from test_ort import PREFIX, PROMPTS

from fgtune.data.rows import Row
from fgtune.engines.ort import OrtModel
from fgtune.export.onnx import export_onnx
from fgtune.runtimes.constrained import Grammar
from fgtune.runtimes.drafts import Drafts, NgramTable
from fgtune.runtimes.onnxruntime import OrtGenerator

TOOLS = [
    {
        "name": name,
        "parameters": {
            "type": "object",
            "properties": {"where": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
            "required": ["where", "unit"],
        },
    }
    for name in ("weather_now", "weather_later")
]


class Garbage:
    """Proposes whatever comes: random tokens, more than asked for, stop tokens, too."""

    def __init__(self, seed: int = 0):
        self.chooser, self.asked = random.Random(seed), []

    def propose(self, ids, count, constraint=None):
        self.asked.append(count)
        return [self.chooser.choice([1, 50, 52, 106, self.chooser.randrange(2048)]) for _ in range(count + 3)]


class Known:
    """Proposes the answers to the prompts (token ids) it was given, every `wrong`-th token another."""

    def __init__(self, answers: dict[tuple[int, ...], list[int]], wrong: int = 0):
        self.answers, self.wrong, self.asked = answers, wrong, 0

    def propose(self, ids, count, constraint=None):
        self.asked += 1
        for prompt, answer in self.answers.items():
            done = len(ids) - len(prompt)
            if ids == [*prompt, *answer[:done]]:
                draft = answer[done : done + count]
                return [t if not self.wrong or (done + n) % self.wrong else 300 for n, t in enumerate(draft, 1)]
        raise AssertionError("asked about an answer that plain decoding does not give")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("drafts")
    export_onnx(make_model(base / "fused", seed=3), base / "onnx", max_positions=400)
    return base / "onnx"


@pytest.fixture
def passes(monkeypatch):
    """The number of tokens of each pass."""
    seen, run = [], OrtModel.run
    monkeypatch.setattr(OrtModel, "run", lambda self, ids, *a, **k: seen.append(ids.shape) or run(self, ids, *a, **k))
    return seen


def answers(folder, drafts=None, constrained=False, prompts=PROMPTS, stop_ids=None, **options):
    """(token ids, which of them came to a stop token)"""
    grammar = Grammar(folder, ["weather_now.where"])
    generator = OrtGenerator(folder, drafts=drafts, stop_ids=stop_ids, **{"max_tokens": 24, **options})
    constraints = [grammar.constraint(TOOLS, prompt, text=False) for prompt in prompts] if constrained else None
    return generator.generate_ids(prompts, constraints), generator.finished


def known(folder, found, wrong: int = 0) -> Known:
    encode = OrtGenerator(folder).encode
    return Known({tuple(encode(prompt)): ids for prompt, ids in zip(PROMPTS, found, strict=True)}, wrong)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("constrained", [False, True])
def test_garbage_changes_no_answer(folder, batch_size, constrained):
    expected = answers(folder, constrained=constrained)
    assert len(set(map(tuple, expected[0]))) > 1
    for seed in range(3):
        garbage = Garbage(seed)
        assert answers(folder, garbage, constrained, batch_size=batch_size) == expected
        assert garbage.asked or batch_size == 8, "a row decodes alone"


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("wrong", [0, 1, 2, 3, 5])
def test_right_and_wrong_guesses_mixed(folder, passes, constrained, wrong):
    """What a wrong guess left in the past is written over; a right one saves a pass."""
    expected = answers(folder, constrained=constrained, batch_size=1)
    plain = len(passes)
    drafts = known(folder, expected[0], wrong)
    passes.clear()
    assert answers(folder, drafts, constrained, batch_size=1) == expected
    assert len(passes) >= drafts.asked + 1  # the prefix that all share; nothing is asked before the last token
    assert len(passes) - 1 == len(PROMPTS) if wrong == 0 else len(passes) <= plain
    assert (len(passes) < plain) is (wrong != 1)


def test_a_row_left_of_a_batch_goes_on_with_drafts(folder, passes):
    whole, _ = answers(folder)
    stops = {whole[0][4], whole[1][2], whole[2][0]}
    expected = answers(folder, stop_ids=stops)
    assert len(set(map(len, expected[0]))) > 2
    for batch_size in (2, 5):
        drafts = known(folder, whole, 4)
        passes.clear()
        assert answers(folder, drafts, stop_ids=stops, batch_size=batch_size) == expected
        assert drafts.asked and any(batch == 1 and count > 1 for batch, count in passes[-3:])


def test_a_graph_that_takes_its_whole_past_is_asked_for_one_token_a_pass(folder, tmp_path, passes):
    """What was guessed wrong could not be written over there."""
    import onnx

    shutil.copytree(folder, tmp_path / "onnx")
    path = tmp_path / "onnx" / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    del model.metadata_props[:]  # as another exporter leaves it
    onnx.save(model, path)
    expected = answers(tmp_path / "onnx")
    garbage = Garbage()
    passes.clear()
    assert answers(tmp_path / "onnx", garbage) == expected
    assert not garbage.asked and passes.count((1, 1)) > 60


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_max_tokens_bounds_answers_and_drafts(folder, count):
    expected = answers(folder, stop_ids=[], max_tokens=count)
    garbage = Garbage()
    assert answers(folder, garbage, stop_ids=[], max_tokens=count, batch_size=1) == expected
    assert [len(ids) for ids in expected[0]] == [count] * len(PROMPTS)
    assert all(0 < asked < count for asked in garbage.asked)


def test_a_stop_token_ends_the_answer_within_a_draft(folder, passes):
    whole, _ = answers(folder)
    stops = [whole[0][3]]
    expected = answers(folder, stop_ids=stops)
    assert expected[1][0] and len(expected[0][0]) <= 3
    passes.clear()
    assert answers(folder, known(folder, whole), stop_ids=stops, batch_size=1) == expected
    encode, shared = OrtGenerator(folder).encode, passes[0][1]
    lengths = [len(encode(prompt)) - shared + len(ids) for prompt, ids in zip(PROMPTS, expected[0])]
    lengths = [length - (not ended) for length, ended in zip(lengths, expected[1])]  # the last of max_tokens is not run
    assert [count for _, count in passes[1:]] == lengths, "one pass an answer, and nothing from the stop token on"


def test_drafts_stay_within_the_positions_of_the_export(folder):
    """Nothing is refused with drafts that is not refused without them."""
    generator = OrtGenerator(folder, max_tokens=24)
    prompt = PREFIX + "x" * 350
    while len(generator.encode(prompt)) > 380:
        prompt = prompt[:-1]
    assert len(generator.encode(prompt)) + 24 > 400
    stop = answers(folder, prompts=[prompt], max_tokens=20, stop_ids=[])[0][0][-1]
    expected = answers(folder, prompts=[prompt], max_tokens=90, stop_ids=[stop])
    assert expected[1] == [True]
    assert answers(folder, Garbage(), prompts=[prompt], max_tokens=90, stop_ids=[stop], batch_size=1) == expected


def test_the_three_sources_of_drafts_each_save_passes(folder, passes):
    expected = answers(folder, constrained=True, batch_size=1)
    assert all(ids for ids in expected[0])
    table, counts = NgramTable(expected[0]), []
    for drafts in (None, Drafts(lookup=False), Drafts(), Drafts(table)):
        passes.clear()
        assert answers(folder, drafts, constrained=True, batch_size=1) == expected
        counts.append(len(passes))
    assert counts[0] > counts[1] >= counts[2] > counts[3]


def test_a_draft_fits_the_grammar_and_leaves_it_where_it_is(folder):
    generator, grammar = OrtGenerator(folder), Grammar(folder)
    constraint = grammar.constraint(TOOLS, PROMPTS[0], text=False)
    constraint.start()
    prompt = generator.encode(PROMPTS[0])
    before = constraint.allowed()
    assert before.sum() == 1  # llguidance meets an error if it is asked for forced bytes where it made this mask
    draft = generator.encode("<start_function_call>call:weather_now{unit:")
    table = NgramTable([[prompt[-1], *draft, 1999]])
    found = Drafts(table, longest=99, likely=0).propose(prompt, 99, constraint)
    assert found[: len(draft)] == draft and 1999 not in found
    np.testing.assert_array_equal(constraint.allowed(), before)
    assert all(constraint.allowed()[token] and constraint.accept(token) for token in found)


def test_lookup_follows_three_tokens_rather_than_two():
    drafts = Drafts(likely=0.3)
    assert drafts.propose([7, 8, 9, 1, 6, 8, 9, 2, 7, 8, 9], 1) == [1]
    assert drafts.propose([5, 8, 9, 1, 6, 8, 9, 2, 7, 8, 9], 1) == [2], "the last place where two stand"
    assert drafts.propose([5, 8, 9, 1, 6, 8, 9, 2, 7, 8, 9], 9) == [2, 7, 8], "0.7 to the fourth is below 0.3"
    assert drafts.propose([1, 2, 3], 3) == drafts.propose([], 3) == []
    assert Drafts(lookup=False).propose([7, 8, 9, 1, 7, 8, 9], 1) == []


def test_the_table_knows_the_longest_end_and_how_sure_it_is():
    table = NgramTable([[1, 2, 3], [1, 2, 3], [9, 2, 4], [9, 2, 4], [9, 2, 4]], order=2)
    assert table.guess([1, 2]) == (3, 2 / 3)
    assert table.guess([7, 2]) == (4, 3 / 6), "one token is known"
    assert table.guess([7, 7]) is table.guess([]) is None
    row = Row(own=(5, 6, 7, 8, 9), learned=(False, True, True, False, True), prefix=0)
    learned = NgramTable.of_rows([row], order=2)
    assert learned.guess([5]) == (6, 1 / 2) and learned.guess([8]) == (9, 1 / 2)
    assert learned.guess([4]) is None and len(learned) == 6
