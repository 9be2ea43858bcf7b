"""Messages in OpenAI's form, with values that both template engines print alike."""

import json
from collections.abc import Callable, Mapping

from .findings import FormatError, reporter
from .values import WHITESPACE, carry_value, check_name, check_text

_ROLES = ("developer", "system", "user", "assistant", "tool")
_MESSAGE_KEYS = {"role", "content", "tool_calls", "function_call", "name", "tool_call_id", "id", "weight"}


def normalize_messages(messages: list[dict]) -> list[dict]:
    """The messages in OpenAI's form with values that both template engines print alike. Raises FormatError."""
    findings = []
    normalized = normalized_messages(messages, reporter(findings, "messages"))
    errors = [str(finding) for finding in findings if finding.level == "error"]
    if errors:
        raise FormatError("\n".join(errors))
    return normalized


def normalized_messages(messages: list[dict], report: Callable, drop_null: bool = False) -> list[dict]:
    if not isinstance(messages, (list, tuple)) or not messages:
        report("error", "messages", "messages", "There are no messages. Give a list with at least one.")
        return []
    names_by_id, normalized = {}, []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping):
            report("error", "messages", where, f'A message is an object such as {{"role": "user", "content": "…"}}, '
                   f"not a {type(message).__name__}.")  # fmt: skip
            continue
        role = {"model": "assistant"}.get(message.get("role"), message.get("role"))
        if role not in _ROLES:
            report("error", "role", where, f"Unknown role {role!r}. Use one of {', '.join(_ROLES)}.")
            continue
        for key in message:
            if key not in _MESSAGE_KEYS and message[key] not in (None, "", [], {}):
                report(
                    "warning", "message-key", f"{where}.{key}", f'"{key}" has no place in the format and is not used.'
                )
        if role == "tool":
            normalized.append(_normalized_result(message, where, report, names_by_id, drop_null))
            continue
        new = {"role": role, "content": _normalized_text(message.get("content"), f"{where}.content", report)}
        calls = message.get("tool_calls") or (
            [{"function": message["function_call"]}] if message.get("function_call") else []
        )
        if calls and role != "assistant":
            report("error", "role", where, f"A {role} message cannot make calls. Use the role assistant.")
        elif calls:
            new["tool_calls"] = [
                _normalized_call(call, f"{where}.tool_calls[{i}]", report, names_by_id, drop_null)
                for i, call in enumerate(calls)
            ]
            new["content"] = new["content"] or None
        if role == "assistant" and message.get("weight") == 0:
            new["weight"] = 0  # this turn is not learned; the template does not print it
        normalized.append(new)
    return normalized


def _normalized_text(content, where: str, report: Callable) -> str:
    """A message's text: a string or a list of text parts, without the white space around it."""
    if content is None:
        return ""
    parts = [content] if isinstance(content, (str, Mapping)) else content
    texts = []
    for part in parts if isinstance(parts, (list, tuple)) else [parts]:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            report("error", "content", where, "Only text can be carried. Write the content as a string.")
            continue
        texts.append(text.strip(WHITESPACE))
    return check_text("".join(texts), where, report)


def _normalized_call(call, where: str, report: Callable, names_by_id: dict, drop_null: bool) -> dict:
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    if not isinstance(function, Mapping):
        function = {}
    name = check_name(function.get("name"), where, report)
    if isinstance(call, Mapping) and call.get("id"):
        names_by_id[call["id"]] = name
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        report("repair", "arguments-text", where, "The arguments are a JSON text: it is parsed.", tool=name)
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            report("error", "arguments", where, f"The arguments are no JSON ({error}). Correct the text.", tool=name)
            arguments = {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        report("error", "arguments", where, "The arguments must be an object with a key per argument.", tool=name)
        arguments = {}

    def report_tool(level, code, place, message):
        report(level, code, place, message, tool=name)

    carried = carry_value(arguments, f"{where}.arguments", report_tool, drop_null)
    return {"type": "function", "function": {"name": name, "arguments": carried}}


def _normalized_result(message: Mapping, where: str, report: Callable, names_by_id: dict, drop_null: bool) -> dict:
    content, place = message.get("content"), f"{where}.content"
    if isinstance(content, Mapping) and set(content) == {"name", "response"}:
        content = [content]
    if content and isinstance(content, (list, tuple)):
        if all(isinstance(item, Mapping) and set(item) == {"name", "response"} for item in content):
            return {"role": "tool", "content": [
                {"name": check_name(item["name"], place, report),
                 "response": carry_value(item["response"], place, report, drop_null)} for item in content
            ]}  # fmt: skip
        if all(isinstance(item, Mapping) and item.get("type") == "text" for item in content):
            content = "".join(str(item.get("text", "")) for item in content)
    name = message.get("name") or names_by_id.get(message.get("tool_call_id"))
    if not name:
        report("error", "result-name", where, 'The result does not say whose it is. Add "name" with the tool\'s name.')
    name = check_name(name or "unnamed", where, report)
    carried = carry_value(content, place, report, drop_null)
    return {
        "role": "tool",
        "name": name,
        "content": carried if isinstance(carried, (str, dict)) else {"value": carried},
    }
