"""Which examples a teacher is to write: the calls themselves, values included, and the style of the request."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise

from ...format.calls import Call
from .task import CALL, FAR, NEAR, SEVERAL, STYLES, Task
from .values import Values

NO_CALL_EVERY = 7  # of that many tasks one is without a call, a near miss and far off in turn
SEVERAL_EVERY = 6  # of that many tasks with a call one has a second call, of another tool


def make_plan(
    tools: Sequence[dict], values: Mapping[tuple[str, str], Values], count: int, seed: int, *, several: bool = True
) -> list[Task]:
    """`count` tasks; the same `seed` gives the same plan, and a longer plan begins with the shorter one.

    Tools, sets of optional arguments, values and styles take turns in orders that the seed decides, so that each is
    there about equally often. `several`: whether one request may ask for two tools.
    """
    return list(islice(_tasks(tools, values, seed, several), count))


def summary(tasks: Sequence[Task]) -> dict[str, dict[str, int]]:
    """How many tasks there are of each kind and style, how often each tool is called and each argument given."""
    calls = [call for task in tasks for call in task.calls]
    return {
        "kind": dict(Counter(task.kind for task in tasks)),
        "style": dict(Counter(task.style for task in tasks)),
        "tool": dict(Counter(call.name for call in calls)),
        "argument": dict(Counter(f"{call.name}.{name}" for call in calls for name in call.arguments)),
    }


def _tasks(tools: Sequence[dict], values: Mapping, seed: int, several: bool) -> Iterator[Task]:
    """Tasks without end."""
    rng = random.Random(seed)
    styles, turns, near = _Turns(STYLES, rng), _Turns(tools, rng), _Turns(tools, rng)
    calls, number, with_call, without = _Calls(values, rng), 0, 0, 0
    while True:
        number += 1
        name, style, own_seed = f"generated-{seed}-{number:04d}", styles.next(), rng.randrange(2**31)
        if number % NO_CALL_EVERY == 0:
            without += 1
            about = near.next()["name"] if without % 2 else ""
            yield Task(name, NEAR if about else FAR, about, style, (), own_seed)
            continue
        with_call += 1
        tool = turns.next()
        made = [calls.next(tool)]
        if several and with_call % SEVERAL_EVERY == 0 and len(tools) > 1:
            made.append(calls.next(rng.choice([other for other in tools if other["name"] != tool["name"]])))
        yield Task(name, SEVERAL if len(made) > 1 else CALL, tool["name"], style, tuple(made), own_seed)


class _Turns:
    """Takes things in turn: all of them once in a drawn order, then all again in another."""

    def __init__(self, things: Sequence, rng: random.Random):
        self.things, self.rng, self.left = list(things), rng, []

    def next(self):
        if not self.left:
            self.left = self.rng.sample(self.things, len(self.things))
        return self.left.pop()


class _Calls:
    """Calls of a tool: sets of optional arguments take turns, and so do the values of each argument."""

    def __init__(self, values: Mapping[tuple[str, str], Values], rng: random.Random):
        self.values, self.rng, self.sets, self.drawn = values, rng, {}, {}

    def next(self, tool: dict) -> Call:
        name, parameters = tool["name"], tool.get("parameters") or {}
        properties = [part for part in parameters.get("properties") or {} if (name, part) in self.values]
        required = [part for part in properties if part in (parameters.get("required") or ())]
        if name not in self.sets:
            self.sets[name] = _Turns(_optional_sets(required, [p for p in properties if p not in required]), self.rng)
        chosen = {*required, *self.sets[name].next()}
        return Call(name, {part: self._value(name, part) for part in properties if part in chosen})

    def _value(self, tool: str, name: str):
        key = (tool, name)
        if key not in self.drawn:
            self.drawn[key] = _Turns(self.values[key].values, self.rng)
        return self.drawn[key].next()


def _optional_sets(required: list[str], optional: list[str]) -> list[tuple[str, ...]]:
    """None of the optional arguments (where something else is left to say), each one alone, neighbours, and all."""
    sets = [(), *((name,) for name in optional)] if required or not optional else [(name,) for name in optional]
    pairs = list(pairwise(optional))
    return list(dict.fromkeys([*sets, *pairs, *([tuple(optional)] if len(optional) > 1 else [])]))
