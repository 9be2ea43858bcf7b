"""A plan carried out: every example asked for, verified, read blind, and either taken or kept with the reason."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...core.files import write_json
from ...format.findings import Finding, FindingsTable
from ..examples import first_calls, first_query, first_turn
from .client import Teacher
from .log import AnswerLog
from .plan import Task
from .prompts import parse_answer, read_messages, write_messages
from .verify import TWIN, UNREADABLE, Refused, Twins, as_example, blind_problem, problem_of

SHOTS = 3  # of the user's own examples that a teacher is shown


@dataclass
class Generated:
    """What came of a plan: `examples` in the original format, and the `refused` ones."""

    examples: list[dict] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)

    @property
    def reasons(self) -> dict[str, int]:
        """How many were refused for each reason, the most frequent first."""
        return dict(Counter(refused.reason for refused in self.refused).most_common())

    @property
    def table(self) -> FindingsTable:
        """The refused examples with what was seen."""
        return FindingsTable(
            Finding("warning", r.reason, f"{r.reason}: {r.detail}", example=r.task.id, tool=r.task.tool or "")
            for r in self.refused
        )

    def save(self, examples: Path, refused: Path) -> None:
        """Write the examples (JSONL for `.jsonl`, else a JSON list) and the refused ones (JSONL)."""
        examples.parent.mkdir(parents=True, exist_ok=True)
        if examples.suffix == ".jsonl":
            examples.write_text("".join(_line(example) for example in self.examples), encoding="utf-8")
        else:
            write_json(examples, self.examples)
        refused.write_text("".join(_line(asdict(one)) for one in self.refused), encoding="utf-8")


def generate(
    plan: Sequence[Task],
    tools: Sequence[dict],
    known: Iterable[dict],
    teacher: Teacher,
    log: AnswerLog,
    *,
    temperature: float,
    similarity: float,
    report: Callable[[str, int, int], None] = lambda step, done, of: None,
) -> Generated:
    """Carry out a plan; answers that `log` holds are not asked for again. Raises TeacherError.

    `known`: chat rows that are there already; those that have the id of a task are what an earlier run made of it.
    `report` is told the step (`written`, `read blind`), how many are done, and of how many.
    """
    ids = {task.id for task in plan}
    twins, known = Twins(similarity), [row for row in known if row["id"] not in ids]
    for row in known:
        twins.add(row["id"], first_query(row))
    written, out = [], Generated()
    for number, task in enumerate(plan, 1):
        shots = shots_for(task, known)
        make = lambda told, task=task, shots=shots: write_messages(task, tools, shots, schema_told=told)
        text = _asked(teacher, log, task, "write", make, temperature)
        written.append((task, text))
        report("written", number, len(plan))
    kept = []
    for task, text in written:
        example = as_example(task, parse_answer(text))
        problem = (UNREADABLE, "the answer is no object of the form asked for") if example is None else None
        problem = problem or problem_of(task, example, tools)
        if problem is None and (twin := twins.of(example["userQuery"])):
            problem = TWIN, f"{example['userQuery']!r} is nearly {twin}"
        if problem:
            out.refused.append(Refused(task, *problem, text))
        else:
            twins.add(task.id, example["userQuery"])
            kept.append((task, example, text))
    for number, (task, example, text) in enumerate(kept, 1):
        make = lambda told, example=example: read_messages(example["userQuery"], tools, schema_told=told)
        blind = _asked(teacher, log, task, "read", make, 0.0)
        problem = blind_problem(example, parse_answer(blind), tools)
        if problem:
            out.refused.append(Refused(task, *problem, text))
        else:
            out.examples.append(example)
        report("read blind", number, len(kept))
    order = {task.id: i for i, task in enumerate(plan)}
    out.refused.sort(key=lambda refused: order[refused.task.id])
    return out


def shots_for(task: Task, known: Sequence[dict]) -> list[dict]:
    """Up to `SHOTS` of the examples that are there already, as the teacher would answer them: such with the calls of the
    task's tools, or without a call where the task has none."""
    wanted = [name for name, _ in task.calls]
    fitting = [row for row in known if [call.name for call in first_calls(row)] == wanted]
    if not wanted:
        fitting = [row for row in fitting if _text(row)]
    shots = []
    for row in random.Random(task.seed).sample(fitting, min(SHOTS, len(fitting))):
        calls = [{"name": call.name, "arguments": call.arguments} for call in first_calls(row)]
        shots.append({"query": first_query(row), **({"calls": calls} if calls else {"answer": _text(row)})})
    return shots


def _text(row: dict) -> str:
    """The text that a row answers first."""
    turn = first_turn(row)
    return "" if turn is None else str(row["messages"][turn].get("content") or "")


def _asked(
    teacher: Teacher, log: AnswerLog, task: Task, step: str, make: Callable[[bool], tuple[list, dict]], warmth: float
) -> str:
    """The answer to one question, from the log where it is there. The schema is told in words as soon as the server
    has refused to hold answers to it; the log's key does not hang on that."""
    messages, schema = make(False)
    key = AnswerLog.key(model=teacher.model, messages=messages, schema=schema, temperature=warmth, seed=task.seed)
    if key not in log.answers:
        form = teacher.format
        answer = teacher.ask(make(form != "json_schema")[0], schema, temperature=warmth, seed=task.seed)
        if teacher.format != form == "json_schema":  # refused just now: ask again with the schema in words
            answer = teacher.ask(make(True)[0], schema, temperature=warmth, seed=task.seed)
        log.add(key, task.id, step, answer)
    return log.answers[key]


def _line(value: dict) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
