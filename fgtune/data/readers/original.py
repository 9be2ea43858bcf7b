"""The original project's format.

The project that this workbook grew from keeps its examples as a list of objects
`{"userQuery", "expectedToolCalls", "toolResponses", "expectedFinalResponse"}`: one question, the calls that answer it
(none: a text answers it), and optionally the tools' results and the text that follows them.
"""

from __future__ import annotations

from ...format.template import TRIGGER
from .chat import name_results
from .files import DataError
from .parts import Note, calls_of, own_tools, parse_json, some, unused_keys

KEYS = {"id", "userQuery", "expectedToolCalls", "toolResponses", "expectedFinalResponse", "tools"}


def from_original(item: dict, tools: list[dict], note: Note) -> dict:
    """The row `{"tools", "messages"}` of an object with "userQuery". Raises DataError."""
    unused_keys(item, KEYS, note)
    query, final = some(item["userQuery"], '"userQuery"'), item.get("expectedFinalResponse")
    calls = calls_of(item.get("expectedToolCalls") or [], '"expectedToolCalls"', note)
    if final is not None and not isinstance(final, str):
        raise DataError('"expectedFinalResponse" must be a text')
    if not calls and not final:
        raise DataError('no "expectedToolCalls" and no "expectedFinalResponse": nothing to learn')
    messages = [{"role": "developer", "content": TRIGGER}, {"role": "user", "content": query}]
    if calls:
        messages.append({"role": "assistant", "tool_calls": calls})
    responses = parse_json(item.get("toolResponses") or [], '"toolResponses"')
    if not isinstance(responses, list) or len(responses) not in (0, len(calls)):
        count = len(responses) if isinstance(responses, list) else "no list of"
        raise DataError(f"{len(calls)} calls but {count} tool responses")
    for response in responses:
        if not isinstance(response, dict) or not {"name", "response"} <= set(response):
            raise DataError('a tool response needs "name" and "response"')
        messages.append({"role": "tool", "name": response["name"], "content": response["response"]})
    if final and (responses or not calls):
        messages.append({"role": "assistant", "content": final})
    elif final:
        raise DataError('"expectedFinalResponse" after calls needs "toolResponses" between them')
    name_results(messages)
    return {"tools": own_tools(item, tools), "messages": messages}
