"""What to ask a teacher for: which tools, how many calls, which optional arguments, in which style."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

CALL, SEVERAL, NEAR, FAR = "one call", "several calls", "near miss", "far off"  # kinds of tasks
SEVERAL_EVERY = 6  # of that many tasks for a tool, one asks for a second tool as well
CALLS_PER_NO_CALL = 6  # so about one example in seven is without a call
STYLES = {  # a style's name, and how a teacher is told of it
    "terse": "as few words as possible, no greeting",
    "polite": "a polite full sentence",
    "typo": "one typing error in a common word, none in a name or a number",
    "question": "a question",
    "context": "a short remark on why it is wanted, then the request",
}


@dataclass(frozen=True)
class Task:
    """One example to be written. `calls` are pairs (tool, names of the arguments that must be said), in order;
    `tool` is the tool it is about ("" for a request that is far from all of them)."""

    id: str
    kind: str
    tool: str
    style: str
    calls: tuple[tuple[str, tuple[str, ...]], ...]
    seed: int


def make_plan(tools: Sequence[dict], per_tool: int, styles: Sequence[str], seed: int) -> list[Task]:
    """`per_tool` tasks for each tool, then those without a call; the same `seed` gives the same plan.

    Styles and sets of optional arguments take turns, in an order that the seed decides, so that each is there about
    equally often. A style that is not one of `STYLES` is a description in your own words.
    """
    rng = random.Random(seed)
    turns = _Turns(list(styles), rng)
    tasks = []
    for tool in tools:
        optional = _Turns(_optional_sets(tool, rng), rng)
        for number in range(1, per_tool + 1):
            calls = [(tool["name"], _arguments(tool, optional.next()))]
            if number % SEVERAL_EVERY == 0 and len(tools) > 1:
                other = rng.choice([t for t in tools if t["name"] != tool["name"]])
                calls.append((other["name"], _arguments(other, rng.choice(_optional_sets(other, rng)))))
            kind, name = SEVERAL if len(calls) > 1 else CALL, f"generated-{seed}-{tool['name']}-{number:03d}"
            tasks.append(Task(name, kind, tool["name"], turns.next(), tuple(calls), rng.randrange(2**31)))
    abouts = _Turns([tool["name"] for tool in tools], rng)
    for number in range(1, max(2, round(len(tasks) / CALLS_PER_NO_CALL)) + 1 if tasks else 0):
        near = number % 2 == 1
        name, about = f"generated-{seed}-no-call-{number:03d}", abouts.next() if near else ""
        tasks.append(Task(name, NEAR if near else FAR, about, turns.next(), (), rng.randrange(2**31)))
    return tasks


def summary(tasks: Sequence[Task]) -> dict[str, dict[str, int]]:
    """How many tasks there are of each kind, style and tool, and how often each argument is to be said."""
    said = Counter(f"{tool}.{name}" for task in tasks for tool, names in task.calls for name in names)
    return {
        "kind": dict(Counter(task.kind for task in tasks)),
        "style": dict(Counter(task.style for task in tasks)),
        "tool": dict(Counter(tool for task in tasks for tool, _ in task.calls)),
        "argument": dict(said),
    }


class _Turns:
    """Takes things in turn: all of them once in a drawn order, then all again in another."""

    def __init__(self, things: list, rng: random.Random):
        self.things, self.rng, self.left = things, rng, []

    def next(self):
        if not self.left:
            self.left = self.rng.sample(self.things, len(self.things))
        return self.left.pop()


def _properties(tool: dict) -> tuple[list[str], list[str]]:
    """The names of a tool's required and of its optional parameters."""
    parameters = tool.get("parameters") or {}
    required = set(parameters.get("required") or ())
    names = list(parameters.get("properties") or {})
    return [n for n in names if n in required], [n for n in names if n not in required]


def _optional_sets(tool: dict, rng: random.Random) -> list[tuple[str, ...]]:
    """None of the optional arguments (where something else is left to say), each one alone, and several at once."""
    required, optional = _properties(tool)
    sets = [(), *((name,) for name in optional)] if required or not optional else [(name,) for name in optional]
    if len(optional) > 1:
        sets.append(tuple(sorted(rng.sample(optional, rng.randint(2, len(optional))), key=optional.index)))
    return sets


def _arguments(tool: dict, chosen: tuple[str, ...]) -> tuple[str, ...]:
    """The required arguments and the chosen ones, in the order of the schema."""
    required, optional = _properties(tool)
    return tuple(
        name for name in (tool.get("parameters") or {}).get("properties") or {} if name in {*required, *chosen}
    )
