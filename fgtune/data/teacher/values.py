"""What the arguments of a planned call may hold: the schema's words, the user's own values, or a teacher's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..examples import first_calls, first_query
from .client import Teacher, TeacherError
from .evidence import evidence
from .prompts import parse_answer, value_messages

ENOUGH = 8  # of the user's own values; an argument that has fewer gets some of the teacher's
INVENTED, LONGEST = 12, 80  # how many a teacher is asked for, and the characters of the longest text that is taken
SCHEMA, OWN, TEACHER = "schema", "your examples", "teacher"


@dataclass(frozen=True)
class Values:
    """What an argument may hold, and where it is from: the schema, your examples, the teacher."""

    values: list
    source: str


def collect_values(
    tools: Sequence[dict], examples: Iterable[dict], teacher: Teacher, seed: int
) -> dict[tuple[str, str], Values]:
    """The values of every argument, by (tool, argument). Raises TeacherError where a required one has none.

    A value of the user's own counts where its request says it (see `evidence`): what is derived by a rule that is not
    known here would be refused in every new example. Only arguments with few of them are asked of the teacher.
    """
    own, found = _own_values(tools, examples), {}
    for tool in tools:
        parameters = tool.get("parameters") or {}
        for name, schema in (parameters.get("properties") or {}).items():
            key = (tool["name"], name)
            if listed := _listed(schema):
                found[key] = Values(listed, SCHEMA)
                continue
            values, source = own.get(key, []), OWN
            if len(values) < ENOUGH:
                invented = _invented(tool, name, schema, teacher, seed)
                source = f"{OWN}, {TEACHER}" if values and invented else TEACHER if invented else OWN
                values = _distinct([*values, *invented])
            if values:
                found[key] = Values(values, source)
            elif name in (parameters.get("required") or ()):
                raise TeacherError(f"the teacher has no value for {tool['name']}.{name}: give an example of that tool")
    return found


def _listed(schema: dict) -> list:
    """The values that a schema lists; empty where it is open."""
    if schema.get("enum"):
        return list(schema["enum"])
    if "const" in schema:
        return [schema["const"]]
    return [True, False] if str(schema.get("type")).lower() == "boolean" else []


def _own_values(tools: Sequence[dict], examples: Iterable[dict]) -> dict[tuple[str, str], list]:
    """The distinct values of the examples' calls that their own requests say."""
    schemas = {tool["name"]: (tool.get("parameters") or {}).get("properties") or {} for tool in tools}
    found: dict[tuple[str, str], list] = {}
    for example in examples:
        query = first_query(example)
        for call in first_calls(example):
            for name, value in call.arguments.items():
                schema = schemas.get(call.name, {}).get(name)
                if schema is not None and evidence(value, schema, name, query):
                    found.setdefault((call.name, name), []).append(value)
    return {key: _distinct(values) for key, values in found.items()}


def _invented(tool: dict, name: str, schema: dict, teacher: Teacher, seed: int) -> list:
    """Values that a teacher thinks of for an argument: those that fit its schema, each once."""
    import jsonschema

    messages, form = value_messages(tool, name, schema, INVENTED)
    text = teacher.ask(messages, form, temperature=0.7, seed=seed, about=f"values of {tool['name']}.{name}")
    given = (parse_answer(text) or {}).get("values")
    plain = {**schema, "type": schema["type"].lower()} if isinstance(schema.get("type"), str) else schema
    fits = jsonschema.Draft202012Validator(plain).is_valid
    values = [value.strip() if isinstance(value, str) else value for value in given or [] if isinstance(given, list)]
    return _distinct([value for value in values if fits(value) and _usable(value, name)])


def _usable(value: Any, name: str) -> bool:
    """Whether something can be said of a value: not empty, not endless, not the argument's own name."""
    if isinstance(value, str):
        return 0 < len(value) <= LONGEST and value.isprintable() and value.casefold() != name.casefold()
    return value not in (None, [], {})


def _distinct(values: Iterable) -> list:
    """Each value once, in order; capital and small letters are alike."""
    return list({repr(value).casefold(): value for value in reversed(list(values))}.values())[::-1]
