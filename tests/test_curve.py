"""The learning curve: nested parts, refits of the tiny model within a time, and the extrapolation with its error."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fgtune.core.errors import TrainError
from fgtune.data.examples import all_calls, label
from fgtune.data.readers.examples import read_examples
from fgtune.data.readers.tools import read_tools
from fgtune.data.rows import case_of, tokenize
from fgtune.data.splits import split_examples
from fgtune.evaluation.extrapolation import accuracies, interval
from fgtune.evaluation.learning_curve import LearningCurve, learning_curve
from fgtune.evaluation.scorecards import score
from fgtune.evaluation.shares import wilson
from fgtune.models.adapters import add_lora, load_model, named_trainable_parameters
from fgtune.models.base import resolve_base
from fgtune.runtimes.mlx import MlxGenerator
from fgtune.training.config import TrainConfig
from fgtune.training.curve import Finished, Point, nested_parts, refit, refit_parts
from fgtune.training.loop import train
from fgtune_helpers.plots import plot_curve

CI = Path(__file__).parent / "data" / "ci"
AUGMENTED = {"copies": 1, "joined": 0.1, "similarity": 85, "seed": 7}


@pytest.fixture(scope="module")
def splits():
    examples = read_examples(CI / "examples.json", read_tools(CI / "tools.json"))
    return split_examples(examples, valid=4, test=8, similarity=85, seed=7)


@pytest.fixture(scope="module")
def trained(splits, tmp_path_factory):
    """(a finished training of the tiny model with dropout, its rows, its test scorecard)."""
    out, base = tmp_path_factory.mktemp("trained"), resolve_base("tiny").path
    model, tokenizer = load_model(base)
    add_lora(model, 4, 20.0, 0.1, 2, seed=3)
    rows = {name: [tokenize(e, tokenizer._tokenizer) for e in splits[name]] for name in ("train", "valid")}
    config = TrainConfig(iters=8, batch_size=4, learning_rate=2e-3, warmup=2, steps_per_eval=4, save_every=3, seed=3)
    train(model, tokenizer, rows["train"], rows["valid"], config, out, on_report=lambda record: None)
    cases = [case_of(example) for example in splits["test"]]
    return Finished.load(base, out), rows, score(MlxGenerator(model, tokenizer, max_tokens=8), cases, "adapter")


# ---------------------------------------------------------------- parts


def test_parts_are_nested_and_hold_every_tool_and_their_share(splits):
    parts, whole = nested_parts(splits["train"], 85, 7), splits["train"]
    ids = {name: [example["id"] for example in part] for name, part in parts.items()}
    assert list(parts) == ["a quarter", "a half"] and set(ids["a quarter"]) < set(ids["a half"])
    assert len(whole) / 4 <= len(ids["a quarter"]) <= len(whole) / 4 + 6 and len(ids["a half"]) <= len(whole) / 2 + 6
    called = lambda rows: {call.name for example in rows for call in all_calls(example)}
    assert called(parts["a quarter"]) == called(whole) and "no call" in map(label, parts["a quarter"])
    assert parts == nested_parts(whole, 85, 7) != nested_parts(whole, 85, 8)


def test_a_rare_tool_is_in_every_part(splits):
    timers = [example for example in splits["train"] if label(example) == "set_timer"]
    rare = next(example for example in splits["train"] if label(example) == "get_weather")
    for seed in range(8):
        assert all(rare in part for part in nested_parts([*timers, rare], 85, seed).values())


def test_groups_are_not_torn(splits):
    twins = [dict(example, id=f"{example['id']}/{i}") for example in splits["train"] for i in (1, 2)]
    for part in nested_parts(twins, 85, 7).values():
        ids = {example["id"] for example in part}
        assert all(f"{id.split('/')[0]}/{i}" in ids for id in ids for i in (1, 2))


def test_one_tool_and_no_calls_at_all(splits):
    calm = [example for example in splits["train"] if label(example) == "no call"]
    timers = [example for example in splits["train"] if label(example) == "set_timer"]
    for rows in (calm, timers):
        quarter, half = nested_parts(rows, 85, 7).values()
        assert 0 < len(quarter) <= len(half) < len(rows)
    assert nested_parts([], 85, 7) == {"a quarter": [], "a half": []}


# ---------------------------------------------------------------- refits


def test_a_finished_training_is_read_with_its_settings(trained):
    finished, *_ = trained
    assert finished.adapters == {
        "fine_tune_type": "lora", "num_layers": 2, "rank": 4, "scale": 20.0, "dropout": 0.1, "seed": 3,
    }  # fmt: skip
    history = json.loads((finished.best.parent / "history.json").read_text())
    assert finished.seconds(8) == pytest.approx(history["seconds"])
    half = finished.settings(4)
    assert (half.iters, half.warmup, half.steps_per_eval) == (4, 1, 2)
    assert replace(half, iters=8, warmup=2, steps_per_eval=4, save_every=3) == finished.config


def test_a_refit_on_all_rows_is_the_training(trained, tmp_path):
    """The same settings, seeds and order: the same bits."""
    finished, rows, _ = trained
    model = refit(finished, rows["train"], rows["valid"], 8, tmp_path, on_report=lambda record: None)
    again, _ = load_model(finished.base, adapter_path=finished.best)
    old = dict(named_trainable_parameters(model))
    fresh = {name: value for name, value in _parameters(again).items() if name in old}
    assert len(old) == len(fresh) > 0
    for name, value in old.items():
        assert np.array_equal(np.array(value), np.array(fresh[name])), name


def _parameters(model):
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.parameters()))


def test_the_curve_of_a_real_training(trained, splits, tmp_path):
    finished, _, card = trained
    said = []
    curve = learning_curve(
        finished, card, splits, AUGMENTED, minutes=5, max_tokens=8, folder=tmp_path, say=said.append
    )  # fmt: skip
    parts = nested_parts(splits["train"], 85, 3)
    sizes = [*map(len, parts.values()), len(splits["train"])]
    assert [p.examples for p in curve.points] == sizes and {p.cases for p in curve.points} == {12}
    assert not curve.notes and len(said) == 2 and f"a quarter of the examples, {sizes[0]} of {sizes[2]}" in said[0]
    assert not list(tmp_path.iterdir())
    assert curve.twice == 2 * sizes[2] and str(curve.twice) in curve.sentence
    figure = plot_curve(curve)
    assert figure._repr_png_()[:4] == b"\x89PNG" and len(figure.axes[0].collections) == 2


def run(trained, splits, folder, minutes=5, steps=lambda rows: 2, score=lambda model: (1, 12), evaluate=None):
    finished, rows, _ = trained
    said, parts = [], nested_parts(splits["train"], 85, 3)
    tokens = {example["id"]: row for example, row in zip(splits["train"], rows["train"])}
    rows_of = lambda part: [tokens[example["id"]] for example in part]
    done = refit_parts(
        finished, parts, len(splits["train"]), rows_of, steps, score, minutes=minutes, folder=folder,
        valid_rows=rows["valid"], evaluate=evaluate, say=said.append,
    )  # fmt: skip
    return done, said


def test_steps_are_those_that_the_rows_need(trained, splits, tmp_path):
    asked = []
    _, said = run(trained, splits, tmp_path, steps=lambda rows: asked.append(rows) or len(asked))
    sizes = [len(part) for part in nested_parts(splits["train"], 85, 3).values()]
    assert asked == sizes and ": 1 steps, " in said[0] and ": 2 steps, " in said[1]


def test_a_budget_too_small_for_any_refit(trained, splits, tmp_path):
    finished, rows, card = trained
    slow = replace(finished, seconds_per_step=60.0, seconds_beside=0.0)
    done, said = run((slow, rows, card), splits, tmp_path, minutes=1)
    assert not done.points and not said
    assert done.notes[0].startswith("a quarter: left out, it takes about 2:00 min and ") and len(done.notes) == 2
    curve = learning_curve(slow, card, splits, AUGMENTED, minutes=0.01, max_tokens=8, folder=tmp_path)
    assert len(curve.points) == 1 and "a half: left out" in curve.sentence and "Twice" not in curve.sentence


def test_a_budget_for_one_refit_says_which_is_left_out(trained, splits, tmp_path):
    finished, rows, card = trained
    slow = replace(finished, seconds_per_step=60.0, seconds_beside=0.0)
    done, _ = run((slow, rows, card), splits, tmp_path, minutes=1.5, steps=lambda rows: 1 if rows < 30 else 2)
    assert [point.examples for point in done.points] == [len(nested_parts(splits["train"], 85, 3)["a quarter"])]
    assert [note.split(":")[0] for note in done.notes] == ["a half"]


def test_a_refit_that_is_slower_than_promised_stops(trained, splits, tmp_path):
    finished, rows, card = trained
    config = replace(finished.config, iters=4000, steps_per_report=1)
    hopeful = replace(finished, config=config, seconds_per_step=0.0, seconds_beside=0.0)
    done, _ = run((hopeful, rows, card), splits, tmp_path, minutes=0.05, steps=lambda rows: 2000)
    assert not done.points and done.notes[0].startswith("a quarter: given up, it would take ")
    assert not list(tmp_path.iterdir())


def test_parts_that_are_the_whole_are_not_fitted(trained, splits, tmp_path):
    finished, rows, _ = trained
    few = splits["train"][:3]
    done = refit_parts(
        finished, {"a quarter": few, "a half": few}, 3, lambda part: rows["train"][:3], lambda rows: 1, None,
        minutes=5, folder=tmp_path,
    )  # fmt: skip
    assert not done.points and [note.split(":")[0] for note in done.notes] == ["a quarter", "a half"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, TrainError])
def test_an_interrupted_refit_leaves_nothing_behind(trained, splits, tmp_path, error):
    """In the midst of training, when its first adapters are on disk; a training that fails is said and passed over."""
    seen = []

    def evaluate(model):
        seen.append(sorted(path.name.split(".")[0] for path in tmp_path.iterdir()))
        if len(seen) == 2:
            assert any((path / "best").exists() for path in tmp_path.iterdir())
            raise error("stopped")
        return 0.0

    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            run(trained, splits, tmp_path, steps=lambda rows: 4, evaluate=evaluate)
    else:
        done, _ = run(trained, splits, tmp_path, steps=lambda rows: 4, evaluate=evaluate)
        assert done.notes == ["a quarter: given up, stopped"] and len(done.points) == 1
    assert seen[0] == ["refit"] and not list(tmp_path.iterdir())


# ---------------------------------------------------------------- extrapolation


def points(*wrong, cases=80, smallest=100):
    return [Point(smallest * 2**i, cases - n, cases) for i, n in enumerate(wrong)]


def test_a_known_law_is_found_with_many_cases():
    """Error rates 0.4, 0.2, 0.1 fall with the power 1: 0.05 comes next."""
    low, high = interval(accuracies(points(4000, 2000, 1000, cases=10000), [800]))[:, 0]
    assert low < 0.95 < high and high - low < 0.012


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng, sizes, hits, tries = np.random.default_rng(0), np.array([100, 200, 400]), 0, 40
    for _ in range(tries):
        error = 0.1 * (sizes / 400) ** -0.5
        drawn = [Point(int(n), 80 - int(rng.binomial(80, e)), 80) for n, e in zip(sizes, error)]
        low, high = interval(accuracies(drawn, [800], draws=200))[:, 0]
        hits += low <= 1 - 0.1 * 2**-0.5 <= high
    assert hits >= 34


def test_more_examples_do_no_harm_and_a_rate_stays_a_rate():
    for wrong in ((10, 20, 30), (80, 80, 80), (0, 0, 0), (80, 40, 0)):
        found = accuracies(points(*wrong), [100, 200, 400, 800, 10**9])
        assert (np.diff(found, axis=1) >= -1e-12).all() and (found >= 0).all() and (found <= 1).all()


def test_the_same_points_give_the_same_band():
    assert (accuracies(points(30, 20, 10), [800]) == accuracies(points(30, 20, 10), [800])).all()


@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [
        ((60, 40, 20), "more examples of the same kinds help."),
        ((8, 8, 8), "whether more examples of the same kinds help is open."),
        ((0, 0, 0), "more examples of the same kinds would hardly help."),
    ],
)
def test_the_sentence_gives_two_bounds_and_a_verdict(wrong, verdict):
    sentence = LearningCurve(points(*wrong)).sentence
    assert sentence.startswith("Twice as many training examples, 800, would get between ") and sentence.endswith(
        verdict
    )
    assert sentence.count("between ") == 2


def test_all_right_and_all_wrong_keep_an_error():
    for wrong in ((0, 0, 0), (80, 80, 80)):
        low, high = LearningCurve(points(*wrong)).band([800])[:, 0]
        assert high - low > 0.01


@pytest.mark.parametrize("count", [1, 2])
def test_two_points_are_no_curve(count):
    curve = LearningCurve(points(*[20, 10][:count]), minutes=11.2)
    assert curve.band([800]) is None and "takes 3 scores to say" in curve.sentence and "about 12 min" in curve.sentence
    low, high = wilson(curve.points[-1].right, 80)
    assert f"between {low:.0%} and {high:.0%}" in curve.sentence and "extrapolated" not in str(curve)
    assert len(plot_curve(curve).axes[0].collections) == 0


def test_without_a_minute_nothing_is_fitted(trained, splits, tmp_path):
    finished, _, card = trained
    gone = replace(finished, base=tmp_path / "gone", best=tmp_path / "gone")  # a model could not even be loaded
    curve = learning_curve(gone, card, splits, AUGMENTED, minutes=0, max_tokens=8, folder=tmp_path)
    assert curve.points == [Point(len(splits["train"]), card.hits, 8)] and curve.minutes > 0
    assert curve._repr_html_().count("<tr>") == 2
