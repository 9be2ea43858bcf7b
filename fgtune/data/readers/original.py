"""The original project's format."""

from __future__ import annotations

from ...format.template import TRIGGER
from .files import DataError

_ORIGINAL_KEYS = {"id", "userQuery", "expectedToolCalls", "toolResponses", "expectedFinalResponse"}


def from_original(item: dict, tools: list[dict], where: str) -> dict:
    unknown = set(item) - _ORIGINAL_KEYS
    if unknown:
        raise DataError(
            f"{where}: {sorted(unknown)[0]!r} is not understood (known: {', '.join(sorted(_ORIGINAL_KEYS))})"
        )
    query, calls, final = item["userQuery"], item.get("expectedToolCalls") or [], item.get("expectedFinalResponse")
    if not isinstance(query, str) or not query.strip():
        raise DataError(f'{where}: "userQuery" is empty')
    if not calls and not final:
        raise DataError(f'{where}: no "expectedToolCalls" and no "expectedFinalResponse": nothing to learn')
    messages = [{"role": "developer", "content": TRIGGER}, {"role": "user", "content": query}]
    if calls:
        for call in calls:
            if not isinstance(call, dict) or not isinstance(call.get("name"), str):
                raise DataError(f'{where}: a call without a "name"')
        messages.append(_assistant_calls(calls))
    responses = item.get("toolResponses") or []
    if responses:
        if len(responses) != len(calls):
            raise DataError(f"{where}: {len(calls)} calls but {len(responses)} tool responses")
        for response in responses:
            if not isinstance(response, dict) or not {"name", "response"} <= set(response):
                raise DataError(f'{where}: a tool response needs "name" and "response"')
            messages.append({"role": "tool", "name": response["name"], "content": response["response"]})
    if final and (responses or not calls):
        messages.append({"role": "assistant", "content": final})
    elif final and calls:
        raise DataError(f'{where}: "expectedFinalResponse" after calls needs "toolResponses" between them')
    return {"tools": tools, "messages": messages}


def _assistant_calls(calls: list[dict]) -> dict:
    functions = [{"name": c["name"], "arguments": c.get("arguments", {})} for c in calls]
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": f} for f in functions]}
