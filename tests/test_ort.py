"""Generation on onnxruntime: the same answers whatever is shared or batched."""

import numpy as np
import pytest
from test_export import make_model

from fgtune.data.prefixes import common_prefix
from fgtune.engines.ort import OrtError, OrtModel
from fgtune.export.onnx import export_onnx
from fgtune.quantize.recipes import Recipe
from fgtune.quantize.variants import quantize
from fgtune.runtimes.onnxruntime import OrtGenerator

PREFIX = "<bos><start_of_turn>developer\nYou can call functions: weather, timer, lights.<end_of_turn>\n"
PROMPTS = [
    PREFIX + f"<start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n"
    for text in ("weather in Oslo", "set a timer for nine minutes please", "x", "lights", "weather in Osaka now")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("ort")
    export_onnx(make_model(base / "fused", seed=3), base / "onnx", max_positions=400)
    return base / "onnx"


def by_hand(folder, prompt: str, count: int) -> list[int]:
    """Greedy decoding without any cache."""
    generator = OrtGenerator(folder)
    ids, model = generator.encode(prompt), OrtModel(folder / "onnx" / "model.onnx")
    new = []
    while len(new) < count:
        logits, _ = model.run(np.array([ids + new]), model.empty())
        token = int(logits[0, -1].argmax())
        if token in generator.stop_ids:
            break
        new.append(token)
    return new


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_and_the_shared_prefix_change_nothing(folder, batch_size, monkeypatch):
    """Nor does what the memory holds that the past has as spare capacity."""
    allocate = OrtModel._allocate

    def poisoned(shape, kind):
        value = allocate(shape, kind)
        value.numpy()[:] = np.nan
        return value

    monkeypatch.setattr(OrtModel, "_allocate", staticmethod(poisoned))
    expected = [by_hand(folder, prompt, 10) for prompt in PROMPTS]
    assert len({tuple(ids) for ids in expected}) == len(PROMPTS)  # the answers differ, so a mix-up would show
    generator = OrtGenerator(folder, max_tokens=10, batch_size=batch_size)
    assert generator.generate_ids(PROMPTS) == expected
    assert generator.generate_ids(PROMPTS[::-1]) == expected[::-1]  # the prefix is known by now
    assert generator.generate_ids(PROMPTS[1:2]) == expected[1:2]
    assert generator.generate_ids(["<bos>hello"]) == [by_hand(folder, "<bos>hello", 10)]
    dated = [prompt.replace("You can", f"Day {day}. You can") for day, prompt in enumerate(PROMPTS)]
    assert generator.generate_ids(dated) == [by_hand(folder, prompt, 10) for prompt in dated], "turns that differ"


def test_rows_stop_each_at_their_own_stop_token(folder):
    whole = OrtGenerator(folder, max_tokens=10).generate_ids(PROMPTS)
    stops = {whole[0][4], whole[1][2], whole[2][0]}
    expected = []
    for ids in whole:
        end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
        expected.append(ids[:end])
    assert len({len(ids) for ids in expected}) > 2
    generator = OrtGenerator(folder, max_tokens=10, stop_ids=stops)
    assert generator.generate_ids(PROMPTS) == expected == generator.ids
    assert generator.finished == [len(end) < len(ids) for end, ids in zip(expected, whole)]
    assert generator.finished.count(True) >= 3 and not all(generator.finished)


def test_stop_ids_come_from_the_folder_and_the_prefix_is_run_once(folder, monkeypatch):
    generator = OrtGenerator(folder, max_tokens=2)
    assert generator.stop_ids == {1, 50, 106}
    runs = []
    run = OrtModel.run
    monkeypatch.setattr(OrtModel, "run", lambda self, ids, *a, **k: runs.append(ids.shape) or run(self, ids, *a, **k))
    generator.generate_ids(PROMPTS)
    common = common_prefix([generator.encode(prompt) for prompt in PROMPTS])
    assert common >= len(generator.encode(PREFIX))
    assert runs.count((1, common)) == 1
    assert sum(shape[1] for shape in runs if shape[0] == 1) < 2 * common + 200
    runs.clear()
    generator.generate_ids(PROMPTS)
    assert (1, common) not in runs


def test_max_tokens_bounds_the_answer(folder):
    for count in (0, 1, 3):
        answers = OrtGenerator(folder, max_tokens=count, stop_ids=[]).generate_ids(PROMPTS)
        assert [len(ids) for ids in answers] == [count] * len(PROMPTS)


def test_text_keeps_special_tokens(folder):
    generator = OrtGenerator(folder, max_tokens=5)
    assert generator.decode(generator.encode(PROMPTS[0])) == PROMPTS[0]
    assert generator.generate(PROMPTS[:2]) == [generator.decode(ids) for ids in generator.generate_ids(PROMPTS[:2])]
    assert generator.generate([]) == []


def test_logits_with_a_past_are_those_without(folder):
    generator = OrtGenerator(folder)
    ids = generator.encode(PROMPTS[1])
    for start in (0, 1, 40, len(ids) - 2):
        whole, stepwise = generator.logits(ids, start), generator.logits(ids, start, cached=True)
        assert whole.shape == stepwise.shape == (len(ids) - start, 2048)
        np.testing.assert_allclose(stepwise, whole, atol=2e-3)


@pytest.mark.parametrize("variant", ["fp32", "q4"])
def test_steps_into_one_past_leave_earlier_logits_alone(folder, tmp_path, variant):
    """The binding is kept from step to step; steps of one token and of more, each as without room for them."""
    if variant == "q4":
        quantize(
            folder,
            variant,
            tmp_path,
            recipe=Recipe(method="rtn", embed_bits=4, mixed_precision_rows=True),
            token_ids=[105, 107],
        )
        folder = tmp_path
    model, rng = OrtGenerator(folder, variant).model, np.random.default_rng(3)
    steps = [rng.integers(110, 2048, (1, count)) for count in (1, 1, 3, 2, 1)]
    start = np.array([[2, 105, 364, 107]])
    _, plain = model.run(start, model.empty())
    roomy, lengths, found, expected = model.stack(plain, 1, capacity=8), [4], [], []
    for ids in steps:
        logits, state = model.run(ids, roomy, lengths, keep=0)
        assert state is roomy
        found.append(logits)
        lengths = [lengths[0] + ids.shape[1]]
    for ids in steps:
        logits, plain = model.run(ids, plain, keep=0)
        expected.append(logits)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("alive", [[0, 1, 2, 3], [0, 2], [3], [1, 2, 3], [0, 3]])
def test_rows_that_go_on_are_moved_to_the_front(folder, alive):
    """Each finds its own past there, and the memory is the same."""
    model, lengths = OrtGenerator(folder).model, [3, 6, 5, 4]
    whole = model.stack(model.empty(), 4, 10)
    for k, length in enumerate(lengths):
        model.run(np.arange(k, k + length)[None] + 200, model.part(whole, slice(k, k + 1)), [0])
    before = [value.numpy().copy() for value in whole]
    kept, order = model.compact(whole, alive, lengths)
    assert sorted(order) == alive
    for old, new, memory in zip(before, kept, whole, strict=True):
        assert np.shares_memory(new.numpy(), memory.numpy())
        for array, row in zip(new.numpy(), order, strict=True):
            np.testing.assert_array_equal(array[:, : lengths[row]], old[row, :, : lengths[row]])


def test_a_prompt_cache_continues_as_the_whole_prompt(folder):
    generator = OrtGenerator(folder, max_tokens=6)
    expected, model, ids = generator.generate_ids(PROMPTS), generator.model, generator.encode(PREFIX)
    _, past = model.run(np.array([ids]), model.empty())
    arrays = {name: value.numpy() for name, value in zip(model.past_names, past, strict=True)}
    generator.use_prompt_cache(ids, arrays)
    assert generator.generate_ids(PROMPTS) == expected
    generator.use_prompt_cache(ids, {name: value * 0 for name, value in arrays.items()})
    assert generator.generate_ids(PROMPTS) != expected, "it is what the answers start from"
    with pytest.raises(OrtError, match=f"does not hold {len(ids) - 1} tokens"):
        generator.use_prompt_cache(ids[1:], arrays)


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ([], 0),
        ([[1, 2, 3]], 2),
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2], [1, 2, 3]], 1),
        ([[1], [2]], 0),
        ([[1, 2]] * 3, 1),
    ],
)
def test_shared_prefix_leaves_each_row_a_token(rows, count):
    assert common_prefix(rows) == count


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: OrtGenerator(folder, "q3"), "unknown variant"),
        (lambda folder: OrtGenerator(folder, "q4"), "does not exist"),
        (lambda folder: OrtGenerator(folder).generate(["", "a"]), "a prompt is empty"),
        (lambda folder: OrtGenerator(folder).generate("abc"), "one string"),
        (lambda folder: OrtGenerator(folder).generate([PROMPTS[0] * 99]), "do not fit"),
    ],
)
def test_errors_are_one_line(folder, call, message):
    with pytest.raises(OrtError, match=message) as caught:
        call(folder)
    assert "\n" not in str(caught.value)


def test_a_broken_file_is_named(folder, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(OrtError, match=r"m\.onnx does not load"):
        OrtModel(tmp_path / "m.onnx")


def test_a_stream_gives_the_tokens_one_by_one(folder):
    generator = OrtGenerator(folder, max_tokens=10)
    expected = generator.generate_ids(PROMPTS[:2])
    for prompt, ids in zip(PROMPTS, expected):
        stream = generator.stream_ids(prompt)
        assert next(stream) == ids[0]
        assert generator.generate_ids(PROMPTS[1:2]) == expected[1:], "another question between two tokens"
        assert [ids[0], *stream] == ids
    generator.run_prompt_cache(generator.encode(PREFIX))
    assert list(generator.stream_ids(PROMPTS[0])) == expected[0] and generator.generate_ids(PROMPTS[:2]) == expected
    assert not list(OrtGenerator(folder, max_tokens=0).stream_ids(PROMPTS[0]))
