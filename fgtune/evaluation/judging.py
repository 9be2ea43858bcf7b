"""One answer against what its case expects."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from ..data.rows import Case
from ..format.calls import Call, CallSyntaxError, parse_calls, same_call

TEXT, CALL, MALFORMED = "text", "call", "malformed"


@dataclass(frozen=True)
class Result:
    """One case and what a runtime made of it.

    `state` is text, call or malformed. `exact` means the expected calls in order, `exact_any_order` in whatever order;
    a case that expects none is exact when nothing is called. `arguments` counts the names of arguments that are
    expected or given, call by call, `arguments_right` those whose values are the same. `differs` says what is not as
    expected, `finished` whether the answer came to a stop token. `novelty` is the case's.
    """

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
    novelty: str = ""


def judge(case: Case, output: str, finished: bool = True) -> Result:
    """Compare one output with what its case expects; one that is not `finished` is malformed."""
    expected = list(case.calls)
    got, state, fault = _parse(output, finished)
    comparable = state != MALFORMED and len(got) == len(expected)
    exact = comparable and all(map(same_call, expected, got))
    any_order = comparable and _same_calls_in_any_order(expected, got)
    right, total, differs = _compare_arguments(expected, got)
    if state == MALFORMED:
        differs = [f"malformed: {fault}"]
    return Result(case.id, case.query, output, [asdict(c) for c in expected], [asdict(c) for c in got], state, exact,
                  any_order, right, total, differs, finished, case.novelty)  # fmt: skip


def _parse(output: str, finished: bool) -> tuple[list[Call], str, str]:
    """(calls, state, what is wrong with a malformed answer)."""
    try:
        got = parse_calls(output)
        if not finished:
            raise CallSyntaxError("truncated at max_tokens", len(output))
    except CallSyntaxError as error:
        return [], MALFORMED, str(error)
    return got, CALL if got else TEXT, ""


def _same_calls_in_any_order(expected: list[Call], got: list[Call]) -> bool:
    """Whether each expected call has one of its own in `got`."""
    rest = list(got)
    for want in expected:
        hit = next((i for i, have in enumerate(rest) if same_call(want, have)), None)
        if hit is None:
            return False
        rest.pop(hit)
    return True


def _compare_arguments(expected: list[Call], got: list[Call]) -> tuple[int, int, list[str]]:
    """(arguments with the expected value, arguments expected or given, what differs), the calls paired by position.

    A call of another tool, or none, has no right argument. Calls beyond the expected ones are only named.
    """
    right, total, differs = 0, 0, []
    for want, have in zip(expected, got + [None] * len(expected)):
        names = sorted(set(want.arguments) | (set(have.arguments) if have else set()))
        total += len(names)
        if have is None or have.name != want.name:
            differs.append(f"{want.name}: {'no call' if have is None else 'called ' + have.name}")
            continue
        for name in names:
            a, b = ({name: c.arguments[name]} if name in c.arguments else {} for c in (want, have))
            if same_call(Call(want.name, a), Call(want.name, b)):
                right += 1
            else:
                differs.append(f"{want.name}.{name}: {_value(b, name)} instead of {_value(a, name)}")
    differs += [f"{call.name}: not asked for" for call in got[len(expected) :]]
    return right, total, differs


def _value(arguments: dict, key: str) -> str:
    return json.dumps(arguments[key], ensure_ascii=False) if key in arguments else "nothing"
