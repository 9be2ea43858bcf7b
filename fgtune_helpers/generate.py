"""Stage 01b: examples that a language model writes, planned before it is asked and verified after."""

from __future__ import annotations

from collections.abc import Sequence

from fgtune.data.teacher import ExamplePlan, Generated, Teacher, generate

from .stage import Run


def plan_examples(run: Run, tools: Sequence[dict], known: Sequence[dict]) -> ExamplePlan:
    """The stage's plan. The teacher's answers are kept in `<run>/teacher.jsonl`, a line each. Raises TeacherError."""
    teacher = Teacher(run.p.teacher_url, run.p.teacher_model, run.root / "teacher.jsonl")
    return ExamplePlan.make(tools, known, teacher, run.p.teacher_examples, run.p.seed)


def write_examples(plan: ExamplePlan, similarity: int) -> Generated:
    """Have the plan carried out, with ten lines of progress a step. Raises TeacherError."""
    due = lambda done, of: done == of or done % max(1, of // 10) == 0
    return generate(plan, similarity, lambda step, done, of: due(done, of) and print(step, f"{done}/{of}"))
