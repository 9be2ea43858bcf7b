"""One answer against what its case expects."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from ..data.rows import Case
from ..format.calls import Call, CallSyntaxError, parse_calls, same_call

TEXT, CALL, MALFORMED = "text", "call", "malformed"


@dataclass(frozen=True)
class Result:
    """One case and what a runtime made of it; `state` is text, call or malformed; `differs` says which keys differ."""

    id: str
    query: str
    output: str
    expected: list[dict]
    got: list[dict]
    state: str
    exact: bool
    exact_any_order: bool
    arguments_right: int
    arguments: int
    differs: list[str]
    finished: bool = True


def judge(case: Case, output: str, finished: bool = True) -> Result:
    """Compare one output with what its case expects; one that did not come to its end is malformed."""
    expected = list(case.calls)
    try:
        got = parse_calls(output)
        state = CALL if got else TEXT
        if not finished:
            raise CallSyntaxError("the answer has no end", len(output))
    except CallSyntaxError as error:
        got, state, fault = [], MALFORMED, str(error)

    def same(a: Call, b: Call) -> bool:
        return same_call(a, b)

    exact = state != MALFORMED and len(got) == len(expected) and all(map(same, expected, got))
    any_order = state != MALFORMED and len(got) == len(expected) and _match(expected, got, same)
    right, total, differs = 0, 0, []
    for want, have in zip(expected, got + [None] * len(expected)):
        keys = sorted(set(want.arguments) | (set(have.arguments) if have else set()))
        total += len(keys)
        if have is None or have.name != want.name:
            differs.append(f"{want.name}: {'no call' if have is None else 'called ' + have.name}")
            continue
        for key in keys:
            a, b = ({key: c.arguments[key]} if key in c.arguments else {} for c in (want, have))
            if same(Call(want.name, a), Call(want.name, b)):
                right += 1
            else:
                differs.append(f"{want.name}.{key}: {_value(b, key)} instead of {_value(a, key)}")
    differs += [f"{call.name}: not asked for" for call in got[len(expected) :]]
    if state == MALFORMED:
        differs = [f"malformed: {fault}"]
    return Result(case.id, case.query, output, [asdict(c) for c in expected], [asdict(c) for c in got], state, exact,
                  any_order, right, total, differs, finished)  # fmt: skip


def _match(expected: list[Call], got: list[Call], same: Callable[[Call, Call], bool]) -> bool:
    rest = list(got)
    for want in expected:
        hit = next((i for i, have in enumerate(rest) if same(want, have)), None)
        if hit is None:
            return False
        rest.pop(hit)
    return True


def _value(arguments: dict, key: str) -> str:
    return json.dumps(arguments[key], ensure_ascii=False) if key in arguments else "nothing"
