"""A plan of examples and how it is carried out: all written, verified, read blind; taken, or kept with the reason."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...format.findings import Finding, FindingsTable
from ...format.schema import key_schema
from ..examples import first_calls, first_query, first_turn
from .client import Teacher
from .evidence import evidence
from .plan import make_plan, summary
from .prompts import parse_answer, read_messages, write_messages
from .task import Task, style_of
from .values import Values, collect_values
from .verify import TWIN, UNREADABLE, Refused, Twins, Written, as_written, blind_problem, problem_of

SHOTS, READ_SHOTS = 3, 6  # of the user's own examples that a teacher is shown when it writes, and when it reads
WARMTH = 0.7  # temperature at which requests are written; they are read at 0


@dataclass
class Generated:
    """What came of a plan: what is `taken`, and what is `refused` and why."""

    taken: list[Written] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)

    @property
    def examples(self) -> list[dict]:
        """What is taken, in the original format, as stage 01 reads it."""
        return [written.example for written in self.taken]

    @property
    def reasons(self) -> dict[str, int]:
        """How many were refused for each reason, the most frequent first."""
        return dict(Counter(refused.reason for refused in self.refused).most_common())

    @property
    def table(self) -> FindingsTable:
        """The refused requests with what was seen."""
        return FindingsTable(
            Finding("warning", r.reason, f"{r.reason}: {r.detail}", example=r.task.id, where=r.request)
            for r in self.refused
        )

    def save_refused(self, path: Path) -> None:
        """Write the refused ones with their tasks: JSON, one object a line."""
        lines = [json.dumps(asdict(refused), ensure_ascii=False) + "\n" for refused in self.refused]
        path.write_text("".join(lines), encoding="utf-8")


@dataclass(frozen=True)
class ExamplePlan:
    """What a `teacher` is to write: `tasks`, whose calls hold `values` (by tool and argument) of the `tools`. `known`:
    chat rows that are there already; some are shown to the teacher."""

    tools: Sequence[dict]
    known: Sequence[dict]
    teacher: Teacher
    values: dict[tuple[str, str], Values]
    tasks: list[Task]

    @classmethod
    def make(cls, tools: Sequence[dict], known: Sequence[dict], teacher: Teacher, count: int, seed: int) -> ExamplePlan:
        """A plan of `count` examples; a request asks for two tools only where one of the `known` ones does, or where
        there are none. Raises TeacherError."""
        values = collect_values(tools, known, teacher, seed)
        several = not known or any(len(first_calls(row)) > 1 for row in known)
        return cls(tools, known, teacher, values, make_plan(tools, values, count, seed, several=several))

    @property
    def summary(self) -> dict[str, dict[str, int]]:
        """How many tasks there are of each kind and style, how often each tool is called and each argument given."""
        return summary(self.tasks)


def generate(
    plan: ExamplePlan, similarity: float, report: Callable[[str, int, int], None] = lambda step, done, of: None
) -> Generated:
    """Carry out a plan; what the teacher's log holds is not asked for again. Raises TeacherError.

    A request at least `similarity` (0 to 100) like one that is there already is refused. `report` is told the step, how
    many are done, and of how many.
    """
    teacher, tools = plan.teacher, plan.tools
    ids = {task.id for task in plan.tasks}
    known = [row for row in plan.known if row["id"] not in ids]  # what an earlier run made of the same tasks
    shots, kept, out, twins, read_before = _shots(known, tools), [], Generated(), Twins(), Twins()
    for row in known:
        twins.add(first_query(row), row["id"])
    for shot in shots:
        read_before.add(shot["request"], shot)
    for number, task in enumerate(plan.tasks, 1):
        messages, schema = write_messages(task, tools, writing_shots(task, shots))
        text = teacher.ask(messages, schema, temperature=WARMTH, seed=task.seed, about=f"{task.id} written")
        written = as_written(task, parse_answer(text))
        if written is None:
            out.refused.append(Refused(task, UNREADABLE, f"the answer is not of the form asked for: {text[:80]!r}", ""))
        elif problem := problem_of(written, tools):
            out.refused.append(Refused(task, *problem, written.request))
        elif twin := twins.near(written.request, 1, similarity):
            out.refused.append(Refused(task, TWIN, f"nearly the request of {twin[0]}", written.request))
        else:
            twins.add(written.request, task.id)
            kept.append(written)
        report("written", number, len(plan.tasks))
    for number, written in enumerate(kept, 1):
        alike = read_before.near(written.request, READ_SHOTS)[::-1]  # by the request alone, the likest last
        messages, schema = read_messages(written.request, tools, alike)
        text = teacher.ask(messages, schema, temperature=0.0, seed=0, about=f"{written.task.id} read blind")
        if problem := blind_problem(written, parse_answer(text), tools):
            out.refused.append(Refused(written.task, *problem, written.request))
        else:
            out.taken.append(written)
        report("read blind", number, len(kept))
    order = {task.id: i for i, task in enumerate(plan.tasks)}
    out.refused.sort(key=lambda refused: order[refused.task.id])
    return out


def writing_shots(task: Task, shots: Sequence[dict]) -> list[dict]:
    """Up to `SHOTS` examples of the task's tools, or without a call: such with the same arguments last, because what
    stands last is followed most, and among them those of the same style."""
    fitting = [shot for shot in shots if [call.name for call in shot["calls"]] == [call.name for call in task.calls]]
    random.Random(task.seed).shuffle(fitting)
    named = [set(call.arguments) for call in task.calls]
    same = lambda shot: [set(call.arguments) for call in shot["calls"]] == named
    fitting.sort(key=lambda shot: (same(shot), style_of(shot["request"]) == task.style))
    return fitting[-SHOTS:]


def _shots(known: Sequence[dict], tools: Sequence[dict]) -> list[dict]:
    """The user's own examples as a teacher is shown them: `request`, `calls` and `answer`; only such whose request says
    every argument, as is asked of the new ones."""
    schemas = {tool["name"]: tool.get("parameters") or {} for tool in tools}
    shots = []
    for row in known:
        query, calls = first_query(row), first_calls(row)
        said = all(
            call.name in schemas and evidence(value, key_schema(schemas[call.name], name), name, query)
            for call in calls
            for name, value in call.arguments.items()
        )
        if query and said and (calls or _text(row)):
            shots.append({"request": query, "calls": calls, **({} if calls else {"answer": _text(row)})})
    return shots


def _text(row: dict) -> str:
    """The text that a row answers first."""
    turn = first_turn(row)
    return "" if turn is None else str(row["messages"][turn].get("content") or "")
