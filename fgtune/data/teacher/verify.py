"""What is wrong with an example that a teacher wrote: one reason, the first that is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...format.calls import Call, same_call
from ...format.findings import FormatError
from ...format.lint import lint_examples, repair_examples
from ..grouping import sorted_words
from ..readers.files import DataError
from ..readers.original import from_original
from .evidence import evidence
from .plan import Task

__all__ = ["Refused", "Twins", "as_example", "blind_problem", "evidence", "problem_of"]

UNREADABLE, OFF_PLAN, LINT, UNSAID, TWIN, BLIND = (
    "no JSON", "not the plan", "lint", "not said", "near duplicate", "read otherwise",
)  # fmt: skip


@dataclass(frozen=True)
class Refused:
    """An example that is not taken: its task, the `reason` (a word or two), what was seen, and the teacher's answer."""

    task: Task
    reason: str
    detail: str
    answer: str


def as_example(task: Task, value: Any) -> dict | None:
    """An answer as an object of the original format; None where it is none."""
    if not isinstance(value, dict) or not isinstance(value.get("query"), str) or not value["query"].strip():
        return None
    example = {"id": task.id, "userQuery": " ".join(value["query"].split()), "expectedToolCalls": []}
    if not task.calls:
        if not isinstance(value.get("answer"), str) or not value["answer"].strip():
            return None
        return {**example, "expectedFinalResponse": value["answer"].strip()}
    calls = value.get("calls")
    if not isinstance(calls, list) or not all(
        isinstance(c, dict) and isinstance(c.get("name"), str) and isinstance(c.get("arguments"), dict) for c in calls
    ):
        return None
    plain = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
    return {**example, "expectedToolCalls": plain}


def problem_of(task: Task, example: dict, tools: Sequence[dict]) -> tuple[str, str] | None:
    """Why an example is refused, as (reason, detail), without asking anybody: by the plan, lint and evidence."""
    query, calls = example["userQuery"], example["expectedToolCalls"]
    made = [(call["name"], tuple(sorted(call["arguments"]))) for call in calls]
    if made != [(name, tuple(sorted(names))) for name, names in task.calls]:
        return OFF_PLAN, f"calls {_shown(made)}, the plan says {_shown(task.calls)}"
    try:
        row = {"id": task.id, **from_original(example, list(tools), lambda key: None)}
        repaired, notes = repair_examples([row])
        notes = notes + lint_examples(repaired, list(tools))
    except (DataError, FormatError) as error:
        return LINT, str(error)
    if errors := [note.message for note in notes if note.level == "error"]:
        return LINT, errors[0]
    schemas = {tool["name"]: (tool.get("parameters") or {}).get("properties") or {} for tool in tools}
    for call in calls:
        for name, value in call["arguments"].items():
            if evidence(value, schemas[call["name"]].get(name, {}), name, query) is None:
                return UNSAID, f"{call['name']}.{name} = {value!r} is not in the request"
    return None


def blind_problem(example: dict, value: Any, tools: Sequence[dict]) -> tuple[str, str] | None:
    """Why an example is refused after the blind pass, whose answer is `value`: other calls, or none."""
    read = as_calls(value)
    if read is None:
        return BLIND, "the blind pass gave no calls that can be read"
    by_name = {tool["name"]: tool for tool in tools}
    wanted = [Call(call["name"], call["arguments"]) for call in example["expectedToolCalls"]]
    if len(read) == len(wanted) and all(same_call(a, b, by_name.get(a.name)) for a, b in zip(wanted, read)):
        return None
    return BLIND, "read as " + ("; ".join(f"{call.name} {call.arguments}" for call in read) or "no call")


def as_calls(value: Any) -> list[Call] | None:
    """The calls of a blind answer, absent (null) arguments left out; None where it is none."""
    calls = value.get("calls") if isinstance(value, dict) else None
    if not isinstance(calls, list):
        return None
    try:
        return [Call(c["name"], {k: v for k, v in c["arguments"].items() if v is not None}) for c in calls]
    except (KeyError, TypeError, AttributeError):
        return None


class Twins:
    """Requests that are there already, by id, and whether a new one is at least `similarity` (0 to 100) like one of
    them: the likeness by which stage 01 keeps examples in one split."""

    def __init__(self, similarity: float):
        self.similarity, self.words, self.ids = similarity, [], []

    def add(self, name: str, query: str) -> None:
        """Take a request into those that are there."""
        self.words.append(sorted_words(query))
        self.ids.append(name)

    def of(self, query: str) -> str | None:
        """The id of the request that is most like this one; None where none is like it."""
        from rapidfuzz import fuzz, process

        found = process.extractOne(
            sorted_words(query), self.words, scorer=fuzz.ratio, score_cutoff=self.similarity, processor=None
        )
        return self.ids[found[2]] if found else None


def _shown(calls: Sequence[tuple[str, Sequence[str]]]) -> str:
    return "; ".join(f"{name}({', '.join(names)})" for name, names in calls) or "none"
