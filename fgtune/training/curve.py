"""Refits on parts of the training examples: what fewer examples would have given.

Each part is trained as the whole was, in a temporary folder, with steps in proportion. A refit begins only if it should
end within the time that is left, and stops when its own pace says that it will not.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ..core.clock import clock
from ..core.errors import TrainError
from ..data.examples import NO_CALL, all_calls, label
from ..data.grouping import group_examples
from ..data.rows import Row
from ..models.adapters import add_lora, load_model
from .config import History, TrainConfig
from .loop import train

PARTS = {"a quarter": 1 / 4, "a half": 1 / 2}


class Point(NamedTuple):
    """What a model that was trained on so many `examples` got: `right` of `cases`."""

    examples: int
    right: int
    cases: int


@dataclass(frozen=True)
class Finished:
    """A finished training: the folders of its model (`base`) and of its `best` adapters, and `add_lora`'s arguments.

    `seconds_per_step` are those of its steps, `seconds_beside` those of all its evaluations.
    """

    base: Path
    best: Path
    adapters: dict
    config: TrainConfig
    seconds_per_step: float
    seconds_beside: float

    @classmethod
    def load(cls, base: Path, out_dir: Path) -> Finished:
        """The training whose files `train` wrote to `out_dir`."""
        history = History.load(out_dir / "history.json")
        adapters = json.loads((out_dir / "best" / "adapter_config.json").read_text(encoding="utf-8"))
        chosen = {name: adapters[name] for name in ("fine_tune_type", "num_layers")}
        chosen |= adapters["lora_parameters"] or {}
        config = TrainConfig(**history.config)
        beside = sum(record["seconds"] for record in history.evals)
        per_step = max(0.0, history.seconds - beside) / max(1, len(history.losses))
        return cls(base, out_dir / "best", {**chosen, "seed": config.seed}, config, per_step, beside)

    def seconds(self, steps: int) -> float:
        """How long so many steps should take, evaluations included."""
        return steps * self.seconds_per_step + self.seconds_beside

    def settings(self, steps: int) -> TrainConfig:
        """The same settings for so many steps: what counts steps is in proportion, and no checkpoint is written
        between evaluations."""
        part = steps / self.config.iters
        every = math.ceil(self.config.steps_per_eval * part)
        warmup = round(self.config.warmup * part)
        return replace(self.config, iters=steps, warmup=warmup, steps_per_eval=every, save_every=0)


@dataclass
class Refits:
    """The `points` of the refits, by size, and `notes` on the parts that were left out."""

    points: list[Point] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class OutOfTime(Exception):
    """A refit is slower than the training was; the message says how long it would take."""


def nested_parts(
    examples: list[dict], similarity: float, seed: int, parts: Mapping[str, float] = PARTS
) -> dict[str, list[dict]]:
    """Parts of the `examples`, each inside the next larger one and in their order.

    Groups stay together (see `group_examples`), each label has its share, and every part holds an example of every tool
    that is called, and one without a call if there is any. So a part may be larger than its share.
    """
    cover, others, seen = [], [], set()
    for group in _order(examples, group_examples(examples, similarity), seed):
        topics = _topics(examples, group)
        (cover if topics - seen else others).append(group)
        seen |= topics
    found = {}
    for name, part in sorted(parts.items(), key=lambda item: item[1]):
        chosen: set[int] = set()
        for number, group in enumerate(cover + others):
            if number >= len(cover) and len(chosen) >= part * len(examples):
                break
            chosen.update(group)
        found[name] = [examples[i] for i in sorted(chosen)]
    return found


def _order(examples: list[dict], groups: list[list[int]], seed: int) -> list[list[int]]:
    """The groups such that any first part of them has each label's share."""
    rng = random.Random(seed)
    strata: dict[str, list[list[int]]] = {}
    for group in groups:
        strata.setdefault(label(examples[group[0]]), []).append(group)
    places = []
    for name in sorted(strata):
        rng.shuffle(strata[name])
        places += [((i + rng.random()) / len(strata[name]), name, group) for i, group in enumerate(strata[name])]
    return [group for _, _, group in sorted(places)]


def _topics(examples: list[dict], group: list[int]) -> set[str | None]:
    """The tools that the examples of a group call; None where one of them calls none."""
    called = {call.name for i in group for call in all_calls(examples[i])}
    return called | ({None} if any(label(examples[i]) == NO_CALL for i in group) else set())


def refit(
    finished: Finished,
    rows: Sequence[Row],
    valid_rows: Sequence[Row],
    steps: int,
    folder: Path,
    evaluate: Callable | None = None,
    on_report: Callable[[dict], None] | None = None,
):
    """Train the base model anew on `rows` as the `finished` training was; returns it with its best adapters.

    `evaluate` and `on_report` are `train`'s.
    """
    model, tokenizer = load_model(finished.base)
    add_lora(model, **finished.adapters)
    train(model, tokenizer, rows, valid_rows, finished.settings(steps), folder, evaluate, on_report)
    return model


def refit_parts(
    finished: Finished,
    parts: Mapping[str, list[dict]],
    whole: int,
    rows_of: Callable[[list[dict]], Sequence[Row]],
    steps: Callable[[int], int],
    score: Callable[..., tuple[int, int]],
    *,
    minutes: float,
    folder: Path,
    valid_rows: Sequence[Row] = (),
    evaluate: Callable | None = None,
    seconds_to_score: float = 0.0,
    say: Callable[[str], None] = print,
) -> Refits:
    """Refit and score each of the `parts` (see `nested_parts`) of `whole` examples that fits into so many `minutes`.

    `rows_of(part)` gives the rows that a part is trained on, `steps(rows)` how many steps so many rows need, and
    `score(model)` (cases right, cases). Temporary folders lie in `folder` and are gone at the end, also after Ctrl-C.
    """
    end, done = time.monotonic() + 60 * minutes, Refits()
    sizes = [*map(len, parts.values()), whole]
    for (name, part), larger in zip(parts.items(), sizes[1:]):
        if len(part) >= larger:
            done.notes.append(f"{name}: left out, because no fewer than {larger} examples hold one of every tool")
            continue
        rows = rows_of(part)
        count = max(1, steps(len(rows)))
        left, need = end - time.monotonic(), finished.seconds(count) + seconds_to_score
        if need > left:
            done.notes.append(f"{name}: left out, it takes about {clock(need)} min and {clock(left)} are left")
            continue
        say(f"{name} of the examples, {len(part)} of {whole}: {count} steps, about {clock(need)} min")
        try:
            with tempfile.TemporaryDirectory(prefix="refit.", dir=folder) as place:
                in_time = _watch(end - seconds_to_score)
                model = refit(finished, rows, valid_rows, count, Path(place), evaluate, in_time)
                done.points.append(Point(len(part), *score(model)))
        except (OutOfTime, TrainError) as error:
            done.notes.append(f"{name}: given up, {error}")
    return done


def _watch(end: float) -> Callable[[dict], None]:
    """An `on_report` that raises OutOfTime once a training will not be done by `end` (of `time.monotonic`)."""

    def in_time(record: dict) -> None:
        now = time.monotonic()
        if record["kind"] == "train" and now + record["seconds_left"] > end:
            more = record["seconds_left"]
            raise OutOfTime(f"it would take {clock(more)} min more and {clock(end - now)} are left")

    return in_time
