"""What a teacher is told, and the schema that its answer must fit."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from .plan import NEAR, STYLES, Task

WRITE = (
    "You write what users say to an assistant that has tools. Write one request, as a user would type it, and the calls "
    "that it asks for. Copy texts of arguments word for word from the request. Say every argument; say nothing that "
    "would need another one. Invent new names, places and numbers. Answer in JSON."
)
WRITE_NONE = (
    "You write what users say to an assistant that has tools. Write one request that none of the tools can do, and the "
    "assistant's short answer to it in words. Answer in JSON."
)
READ = (
    "You turn a user's request into calls of tools, in the order of the request. Copy texts of arguments word for word. "
    "Leave out what the request does not say. No call where no tool fits, or where a required argument is missing. "
    "Answer in JSON."
)
MOST_CALLS = 4  # that a request is read as


def write_messages(
    task: Task, tools: Sequence[dict], shots: Sequence[dict] = (), *, schema_told: bool
) -> tuple[list[dict], dict]:
    """Messages and schema that ask for the example of a task. `shots`: answers that show how the user's own examples
    are written. `schema_told`: the schema is told in words as well, for servers that do not hold answers to it."""
    schema = _example_schema(task, tools)
    about = [tool for tool in tools if tool["name"] in {name for name, _ in task.calls} | {task.tool}]
    lines = [_declared(tools if not task.calls and not about else about)]
    if shots:
        lines.append("Others, not to be repeated: " + "\n".join(json.dumps(s, ensure_ascii=False) for s in shots))
    if task.calls:
        said = "; then ".join(f"{tool} with {', '.join(names) or 'no argument'}" for tool, names in task.calls)
        lines.append(f"Calls: {said}.")
    elif task.kind == NEAR:
        lines.append(f"The request is close to {task.tool}, but it cannot do it, or a required argument is missing.")
    else:
        lines.append("The request is about something else entirely, or it is small talk.")
    lines.append(f"Style: {STYLES.get(task.style, task.style)}.")
    return _messages(WRITE if task.calls else WRITE_NONE, lines, schema, schema_told), schema


def read_messages(query: str, tools: Sequence[dict], *, schema_told: bool) -> tuple[list[dict], dict]:
    """Messages and schema of the blind pass: the tools and the request, and nothing of the task."""
    calls = {"type": "array", "maxItems": MOST_CALLS, "items": _any_of([_call_schema(tool) for tool in tools])}
    schema = _object({"calls": calls})
    return _messages(READ, [_declared(tools), f"Request: {query}"], schema, schema_told), schema


def parse_answer(text: str) -> dict | None:
    """The JSON object of an answer, also of one in a code fence or after a model's thoughts; None where there is none."""
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", text):
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        return value
    return None


def _messages(system: str, lines: list[str], schema: dict, schema_told: bool) -> list[dict]:
    if schema_told:
        lines = [*lines, f"JSON Schema of the answer: {json.dumps(schema, ensure_ascii=False)}"]
    return [{"role": "system", "content": system}, {"role": "user", "content": "\n".join(lines)}]


def _declared(tools: Sequence[dict]) -> str:
    return "Tools: " + json.dumps(list(tools), ensure_ascii=False)


def _example_schema(task: Task, tools: Sequence[dict]) -> dict:
    if not task.calls:
        return _object({"query": {"type": "string"}, "answer": {"type": "string"}})
    by_name = {tool["name"]: tool for tool in tools}
    items = [_call_schema(by_name[name], arguments) for name, arguments in task.calls]
    calls = {"type": "array", "minItems": len(items), "maxItems": len(items), "items": _any_of(items)}
    return _object({"query": {"type": "string"}, "calls": calls})


def _call_schema(tool: dict, arguments: Sequence[str] | None = None) -> dict:
    """The schema of a call: with exactly these `arguments`, or (None) with any that the tool allows."""
    parameters = tool.get("parameters") or {}
    properties = parameters.get("properties") or {}
    shown = {name: part for name, part in properties.items() if arguments is None or name in arguments}
    required = parameters.get("required") or [] if arguments is None else list(shown)
    inner = {"type": "object", "properties": shown, "required": required, "additionalProperties": False}
    return _object({"name": {"type": "string", "enum": [tool["name"]]}, "arguments": inner})


def _any_of(schemas: list[dict]) -> dict:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _object(properties: dict) -> dict:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
