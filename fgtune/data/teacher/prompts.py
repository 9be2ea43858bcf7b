"""What a teacher is told, and the JSON Schema that its answer must fit."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from ...format.calls import Call
from .task import STYLES, Task, style_of

WRITE = (
    "You write what a user says to an assistant, so that the assistant makes the calls that are given. Say every value "
    "of a call as it is written, and no other value. Never write as a program would. Answer in JSON."
)
WRITE_NONE = (
    "You write what a user says to an assistant that has tools, and the assistant's short answer in words. None of the "
    "tools can do what the user wants. Answer in JSON."
)
READ = (
    "You turn what a user says into calls of tools, in the order of the request. Copy texts word for word. Leave out "
    "what is not said. Make no call where no tool fits, or where a required argument is missing. Answer in JSON."
)
VALUES = "You think of what users say to an assistant that has tools. Answer in JSON."
MOST_CALLS = 4  # that a request is read as
LONGEST = 300  # characters of a request

Messages = list[dict[str, str]]


def write_messages(task: Task, tools: Sequence[dict], shots: Sequence[dict]) -> tuple[Messages, dict]:
    """Messages and schema that ask for the request of a task, without a call also for the answer. `shots` are dicts
    `request` and `calls` or `answer`: the user's own examples, shown as turns of the same dialogue."""
    named = {call.name for call in task.calls} | {task.tool}
    about = [tool for tool in tools if tool["name"] in named] or tools
    turns = []
    for shot in shots:
        told = {key: value for key, value in shot.items() if key != "calls"}
        asked = f"Style: {STYLES[style_of(shot['request'])]}.\n{_wanted(shot['calls'])}"
        turns.append((asked, json.dumps(told, ensure_ascii=False)))
    names = ("request",) if task.calls else ("request", "answer")
    schema = _object({name: {"type": "string", "maxLength": LONGEST} for name in names})
    last = f"Style: {STYLES[task.style]}.\n{_wanted(task.calls) if task.calls else _near(task, tools)}"
    return _messages(f"{WRITE if task.calls else WRITE_NONE}\n{_declared(about)}", turns, last), schema


def read_messages(request: str, tools: Sequence[dict], shots: Sequence[dict]) -> tuple[Messages, dict]:
    """Messages and schema of the blind pass: the tools, some of the user's own examples and the request, and nothing of
    the task. The answer is held to the schemas of the calls."""
    calls = {"type": "array", "maxItems": MOST_CALLS, "items": _any_of([_call_schema(tool) for tool in tools])}
    turns = [
        (shot["request"], json.dumps({"calls": [vars(call) for call in shot["calls"]]}, ensure_ascii=False))
        for shot in shots
    ]
    return _messages(f"{READ}\n{_declared(tools)}", turns, request), _object({"calls": calls})


def value_messages(tool: dict, name: str, schema: dict, count: int) -> tuple[Messages, dict]:
    """Messages and schema that ask for `count` values of an argument."""
    form = _object({"values": {"type": "array", "minItems": count, "maxItems": count, "items": schema}})
    last = f"Give {count} different values that users would say for the argument {name!r} of {tool['name']!r}."
    return _messages(f"{VALUES}\n{_declared([tool])}", [], last), form


def parse_answer(text: str) -> dict | None:
    """The JSON object of an answer, also in a code fence or after a model's thoughts; None where there is none."""
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", text):
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        return value
    return None


def _wanted(calls: Sequence[Call]) -> str:
    """The calls that a request must lead to, one a line."""
    shown = [f"{call.name} {json.dumps(call.arguments, ensure_ascii=False)}" for call in calls]
    return "\n".join(["Calls:" if len(shown) > 1 else "Call:", *shown]) if shown else "No call."


def _near(task: Task, tools: Sequence[dict]) -> str:
    """What a request without a call is about."""
    if not task.tool:
        return "No call. The user says something that has nothing to do with the tools, or talks a little."
    tool = next(tool for tool in tools if tool["name"] == task.tool)
    required = (tool.get("parameters") or {}).get("required") or []
    lacks = f", or does not say the {' and the '.join(required)}" if required else ""
    return f"No call. The user wants something near {task.tool} that it cannot do{lacks}."


def _messages(system: str, turns: Sequence[tuple[str, str]], last: str) -> Messages:
    said = [{"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn)]
    return [{"role": "system", "content": system}, *said, {"role": "user", "content": last}]


def _declared(tools: Sequence[dict]) -> str:
    return "Tools: " + json.dumps(list(tools), ensure_ascii=False)


def _call_schema(tool: dict) -> dict:
    """The schema of any call of a tool."""
    parameters = tool.get("parameters") or {}
    inner = {"type": "object", "properties": parameters.get("properties") or {}, "additionalProperties": False}
    inner["required"] = parameters.get("required") or []
    return _object({"name": {"type": "string", "enum": [tool["name"]]}, "arguments": inner})


def _any_of(schemas: list[dict]) -> dict:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _object(properties: dict) -> dict:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
