"""What is wrong with an example that a teacher wrote: one reason, the first that is found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...format.calls import Call, same_call
from ...format.findings import FormatError
from ...format.lint import lint_examples, repair_examples
from ...format.schema import key_schema
from ..grouping import sorted_words
from ..readers.files import DataError
from ..readers.original import from_original
from .evidence import evidence
from .task import Task

UNREADABLE, PROGRAM, BARE, LINT, UNSAID, TWIN, BLIND = (
    "no JSON", "no user's words", "values alone", "lint", "not said", "near duplicate", "read otherwise",
)  # fmt: skip
_CODE = re.compile(r"""[{}\\]|["']\s*:|\w+_\w+\s*[(:]|\b(?:Call|Calls|Style|Tools):""")


@dataclass(frozen=True)
class Written:
    """What a teacher wrote for a task: the `request`, and without a call also the `answer`. `rules`: by which rule the
    request says each argument, as `tool.argument`."""

    task: Task
    request: str
    answer: str = ""
    rules: dict[str, str] = field(default_factory=dict)

    @property
    def example(self) -> dict:
        """An object of the original format, as stage 01 reads it."""
        calls = [{"name": call.name, "arguments": call.arguments} for call in self.task.calls]
        final = {} if calls else {"expectedFinalResponse": self.answer}
        return {"id": self.task.id, "userQuery": self.request, "expectedToolCalls": calls, **final}


@dataclass(frozen=True)
class Refused:
    """An example that is not taken: its task, the `reason` (a word or two), what was seen, and the request."""

    task: Task
    reason: str
    detail: str
    request: str


def as_written(task: Task, value: Any) -> Written | None:
    """A parsed answer as what was asked for; None where it is something else."""
    texts = [value.get(key) for key in ("request", "answer")] if isinstance(value, dict) else [None, None]
    request, answer = (" ".join(text.split()) if isinstance(text, str) else "" for text in texts)
    if not request or not (task.calls or answer):
        return None
    return Written(task, request, "" if task.calls else answer)


def problem_of(written: Written, tools: Sequence[dict]) -> tuple[str, str] | None:
    """Why an example is refused, as (reason, detail), without asking anybody; fills `rules` where it is not."""
    request, calls = written.request, written.task.calls
    if found := _CODE.search(request) or _tool_name(request, tools):
        return PROGRAM, f"{found[0]!r} is no user's word"
    for call in calls:
        parameters = next((tool.get("parameters") or {} for tool in tools if tool["name"] == call.name), {})
        for name, value in call.arguments.items():
            rule = evidence(value, key_schema(parameters, name), name, request)
            if rule is None:
                return UNSAID, f"{call.name}.{name} = {value!r} is not in the request"
            written.rules[f"{call.name}.{name}"] = rule
    if calls and not _other_words(request, calls):
        return BARE, "the request holds the arguments and nothing that asks for something"
    if not calls and sorted_words(request) == sorted_words(written.answer):
        return PROGRAM, "the answer is the request"
    try:
        row = {"id": written.task.id, **from_original(written.example, list(tools), lambda *note: None)}
        repaired, notes = repair_examples([row])
        notes = notes + lint_examples(repaired, list(tools))
    except (DataError, FormatError) as error:
        return LINT, str(error)
    errors = [note.message for note in notes if note.level == "error"]
    return (LINT, errors[0]) if errors else None


def blind_problem(written: Written, value: Any, tools: Sequence[dict]) -> tuple[str, str] | None:
    """Why an example is refused after the blind pass, whose parsed answer is `value`: other calls, or none."""
    read = as_calls(value)
    if read is None:
        return BLIND, "the blind pass gave no calls that can be read"
    by_name, wanted = {tool["name"]: tool for tool in tools}, written.task.calls
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
    """Requests that are there already, each with something that it stands for, and how alike a new one is to them: the
    likeness by which stage 01 keeps examples in one split (0 to 100)."""

    def __init__(self):
        self.words, self.things = [], []

    def add(self, query: str, thing: Any) -> None:
        """Take a request into those that are there."""
        self.words.append(sorted_words(query))
        self.things.append(thing)

    def near(self, query: str, count: int, similarity: float = 0) -> list:
        """What the `count` requests stand for that are most like this one, and at least so much; the likest first."""
        from rapidfuzz import fuzz, process

        found = process.extract(
            sorted_words(query), self.words, scorer=fuzz.ratio, limit=count, score_cutoff=similarity, processor=None
        )
        return [self.things[place] for _, _, place in found]


def _tool_name(request: str, tools: Sequence[dict]) -> re.Match | None:
    """Where a request holds the name of a tool that is no word of English: one with `_`, `.` or a capital inside."""
    names = [re.escape(tool["name"]) for tool in tools if re.search(r"[_.\-]|[a-z][A-Z]", tool["name"])]
    return re.search(rf"\b(?:{'|'.join(names)})\b", request) if names else None


def _other_words(request: str, calls: Sequence[Call]) -> set[str]:
    """The words of a request that are in no argument."""
    values = " ".join(str(value) for call in calls for value in call.arguments.values())
    return set(sorted_words(request).split()) - set(sorted_words(values).split())
