"""Settings that follow from the rows: sensible at every size, kept where given, each with its reason."""

import pytest

from fgtune.data.augment import default_copies
from fgtune.data.rows import Row
from fgtune.training.config import TrainConfig
from fgtune.training.recipe import DERIVED, FEWEST_STEPS, LARGEST_STEP, derive_settings


def rows(count, prefix=500, length=40, turns=1):
    """Rows over `turns` developer turns."""
    made = []
    for i in range(count):
        ids = (i % turns + 1,) * prefix + (9,) * length
        made.append(Row(ids, (False,) * (prefix + 10) + (True,) * (length - 10), prefix))
    return made


def settle(data, **given):
    return {setting.name: setting for setting in derive_settings(data, {**DERIVED, **given})}


@pytest.mark.parametrize("count", [1, 7, 40, 61, 200, 900, 6000, 30000])
def test_every_size_gets_settings_that_train(count):
    found = settle(rows(count, 20, 12))
    config = TrainConfig(**{name: s.value for name, s in found.items() if name not in ("epochs", "num_layers")})
    visits = config.iters * config.batch_size
    assert min(15 * count, 850) - 24 <= visits <= max(950, 3 * count)
    assert config.warmup <= config.iters / 10 and 1 <= config.iters / config.steps_per_eval <= 5
    assert all(setting.reason for setting in found.values())


def test_more_rows_take_more_visits_but_fewer_epochs():
    sizes = [settle(rows(count, 20, 12)) for count in (200, 900, 6000, 30000)]
    visits = [s["iters"].value * s["batch_size"].value for s in sizes]
    epochs = [s["epochs"].value for s in sizes]
    assert visits == sorted(visits) and epochs == sorted(epochs, reverse=True)
    assert sizes[0]["learning_rate"].value < sizes[-1]["learning_rate"].value
    assert sizes[0]["num_layers"].value == -1 and sizes[-1]["num_layers"].value == 12


def test_few_rows_get_enough_steps_by_smaller_batches():
    found = settle(rows(150))
    assert found["iters"].value >= FEWEST_STEPS and found["batch_size"].value < 24


def test_rows_with_tools_of_their_own_make_smaller_steps():
    """A batch that shares nothing runs every token of every row."""
    shared, own = settle(rows(2400, 700)), settle(rows(2400, 700, turns=2400))
    assert shared["batch_size"].value == 24 and own["batch_size"].value == 8
    assert 8 * 740 <= LARGEST_STEP < 16 * 740


def test_what_is_given_is_kept_and_iters_wins_over_epochs():
    data = rows(300)
    found = settle(data, iters=300, epochs=2.0, learning_rate=1e-4, num_layers=-1)
    assert [found[name].value for name in ("iters", "learning_rate", "num_layers")] == [300, 1e-4, -1]
    assert found["iters"].reason == "as given" and "epochs" not in found
    assert settle(data, epochs=2.0)["iters"].value == pytest.approx(
        600 / settle(data, epochs=2.0)["batch_size"].value, 0.01
    )
    halved = settle(data, epochs=2.0, batch_size=10, grad_accumulation_steps=2)
    assert halved["iters"].value == 30


def test_few_examples_get_more_copies():
    assert [default_copies(n) for n in (0, 1, 41, 100, 200, 400, 3000)] == [6, 6, 6, 4, 2, 1, 1]
