"""Lint of chat rows against the tools that they use."""

import json
from collections import Counter
from collections.abc import Callable, Mapping

from .findings import Finding, FormatError, did_you_mean, reporter
from .messages import normalized_messages
from .schema import arguments_validator
from .template import TRIGGER, render_parts
from .tools import normalized_tools, repair_tools


def lint_examples(
    examples: list[dict],
    tools: list[dict] | None = None,
    *,
    source: str = "examples",
    tools_source: str = "tools",
    count_tokens: Callable[[str], int] | None = None,
    max_seq_length: int | None = None,
) -> list[Finding]:
    """Everything wrong with chat rows `{"id", "tools", "messages"}`; rows without tools of their own use `tools`.

    `count_tokens` gives the length in tokens of a rendered row, to be held against `max_seq_length`.
    """
    findings, ids, called, offered = [], Counter(), Counter(), {}
    tool_sets = _ToolSets(tools or [], tools_source, source)
    length = _Length(count_tokens, max_seq_length) if count_tokens and max_seq_length else None
    for number, row in enumerate(examples):
        name = str(row.get("id", f"row {number + 1}")) if isinstance(row, Mapping) else f"row {number + 1}"
        report = reporter(findings, source, name)
        if not isinstance(row, Mapping) or "messages" not in row:
            report("error", "row-form", "", 'A row is an object with "messages". Convert it with the data loader.')
            continue
        ids[name] += 1
        by_name, tool_notes = tool_sets.of_row(row, findings)
        offered.update(dict.fromkeys(by_name))
        before = len(findings)
        messages = normalized_messages(row["messages"], report)
        called.update(_lint_turns(messages, by_name, report))
        if not any(finding.level == "error" for finding in findings[before:] + tool_notes):
            _lint_text(messages, list(by_name.values()), report, length)
    for name, count in ids.items():
        if count > 1:
            reporter(findings, source, name)(
                "warning", "duplicate-id", "", f"{count} rows have this id. Renumber them."
            )
    _lint_balance(called, list(offered), reporter(findings, source))
    return findings


class _ToolSets:
    """The tools of each row, normalised once for each different set; what a tool has to say is said once."""

    def __init__(self, tools: list[dict], tools_source: str, source: str):
        self.tools, self.tools_source, self.source = tools, tools_source, source
        self.known: dict[str, tuple[dict, list[Finding]]] = {}
        self.texts: dict[int, tuple[object, str]] = {}  # by identity: most rows share one list, which is kept here
        self.told: set[Finding] = set()

    def of_row(self, row: Mapping, findings: list[Finding]) -> tuple[dict[str, dict], list[Finding]]:
        """The row's tools by name and what was found in them; what is new goes to `findings`."""
        own = row.get("tools")
        offered = own if own is not None else self.tools
        if id(offered) not in self.texts:
            self.texts[id(offered)] = offered, json.dumps(offered, sort_keys=True, default=str)
        key = self.texts[id(offered)][1]
        if key not in self.known:
            source = self.source if own else self.tools_source
            normalized, notes = normalized_tools(offered, source, describe=True)
            refused = {"unnamed", *(note.tool for note in notes if note.level == "error")}
            tools = [{"name": t["name"]} if t["name"] in refused else t for t in normalized]  # no call is held to these
            self.known[key] = {tool["name"]: tool for tool in tools}, notes
            findings += [note for note in notes if note not in self.told]
            self.told.update(notes)
        return self.known[key]


class _Length:
    """Lengths of rendered rows in tokens, held against a limit."""

    def __init__(self, count_tokens: Callable[[str], int], limit: int):
        self.count, self.limit = count_tokens, limit
        self.firsts: dict[str, int] = {}

    def beyond(self, first: str, rest: str) -> int:
        """The tokens of a row that has more than the limit, else 0. The first turn, which rows share, is counted once.

        A control token stands where the parts meet, so they have as many tokens apart as together.
        """
        if first not in self.firsts:
            self.firsts[first] = self.count(first)
        if self.firsts[first] + self.count(rest) <= self.limit:
            return 0
        length = self.count(first + rest)
        return length if length > self.limit else 0


def _lint_text(messages: list[dict], tools: list[dict], report: Callable, length: _Length | None) -> None:
    """Whether the row can be rendered, and within the limit in tokens."""
    try:
        parts = render_parts(messages, tools)
    except FormatError as error:
        report("error", "dialogue", "messages", str(error))
        return
    if length and (tokens := length.beyond(*parts)):
        report("error", "too-long", "messages", f"The row has {tokens} tokens and max_seq_length is "
               f"{length.limit}. Shorten it, give it fewer tools, or raise the limit.")  # fmt: skip


def _lint_balance(called: Counter, offered: list[str], report: Callable) -> None:
    """Tools that no row calls, and tools that are called more than ten times as often as another."""
    for name in offered:
        if name not in called:
            report("warning", "tool-unused", "", "No example calls this tool. Add some, or remove the tool.", tool=name)
    counts = Counter({name: called[name] for name in offered if called[name]})
    if len(counts) > 1:
        (most, high), (least, low) = counts.most_common()[0], counts.most_common()[-1]
        if high > 10 * low:
            report(
                "warning", "imbalance", "", f"{low} calls, but {high} of {most}. Add examples of {least}.", tool=least
            )


def repair_examples(examples: list[dict], source: str = "examples") -> tuple[list[dict], list[Finding]]:
    """The rows with arguments parsed, absent (null) arguments left out and plain, repaired tools, and the findings."""
    findings, normalized, told = [], [], set()
    for number, row in enumerate(examples):
        if not isinstance(row, Mapping) or not isinstance(row.get("messages"), list):
            normalized.append(row)
            continue
        notes = []
        messages = normalized_messages(
            row["messages"], reporter(notes, source, str(row.get("id", f"row {number + 1}"))), True
        )
        new = dict(row)
        if not any(note.level == "error" for note in notes):
            new["messages"] = messages
        if row.get("tools"):
            new["tools"], tool_notes = repair_tools(row["tools"], source)
            notes += [note for note in tool_notes if note not in told]
            told.update(tool_notes)
        findings += notes
        normalized.append(new)
    return normalized, findings


def _lint_turns(messages: list[dict], tools: dict[str, dict], report: Callable) -> Counter:
    """Checks the assistant's turns of one row; how often each tool is called."""
    called, answers, last_calls = Counter(), 0, []
    if tools and messages and messages[0]["role"] not in ("developer", "system"):
        report("warning", "no-trigger", "messages", f'The base model expects a developer message: "{TRIGGER}".')
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if message["role"] == "tool":
            names = [message["name"]] if "name" in message else [item["name"] for item in message["content"]]
            for name in names:
                if name not in last_calls:
                    report(
                        "warning",
                        "result-name",
                        where,
                        "A result of a tool that was not called. Check its name.",
                        tool=name,
                    )
        if message["role"] != "assistant":
            continue
        calls = [call["function"] for call in message.get("tool_calls", [])]
        last_calls = [call["name"] for call in calls]
        answers += bool(calls or message["content"])
        if not calls and not message["content"]:
            report("error", "empty-answer", where, "The answer is empty. Write a text or a call.")
        for i, call in enumerate(calls):
            called[call["name"]] += 1
            _lint_call(call, tools, f"{where}.tool_calls[{i}]", report)
    if not answers:
        report("error", "no-target", "messages", "No assistant turn, so there is nothing to learn. Add the answer.")
    elif messages[-1]["role"] != "assistant":
        report(
            "warning", "no-last-answer", "messages", "The last turn is no answer and is not trained. Add the answer."
        )
    return called


def _lint_call(call: dict, tools: dict[str, dict], where: str, report: Callable) -> None:
    name = call["name"]
    if name not in tools:
        report(
            "error",
            "unknown-tool",
            where,
            f"No such tool.{did_you_mean(name, tools)} Declare it or correct the name.",
            tool=name,
        )
        return
    parameters = tools[name].get("parameters") or {"type": "object"}
    for error in arguments_validator(json.dumps(parameters)).iter_errors(call["arguments"]):
        place = ".".join([f"{where}.arguments", *(str(step) for step in error.absolute_path)])
        value = json.dumps(error.instance, ensure_ascii=False)
        if error.validator == "required":
            for missing in error.validator_value:
                if missing not in error.instance:
                    text = f'The required argument "{missing}" is missing. Add it, or make it optional.'
                    report("error", "missing-argument", f"{place}.{missing}", text, tool=name)
            continue
        if error.validator == "additionalProperties":
            declared = error.schema.get("properties", {})
            for extra in sorted(set(error.instance) - set(declared)):
                text = f'"{extra}" is not declared.{did_you_mean(extra, declared)} Declare it or leave it out.'
                report("error", "undeclared-argument", f"{place}.{extra}", text, tool=name)
            continue
        if error.validator == "type":
            code, text = (
                "wrong-type",
                f"{value} should be of the type {error.validator_value}. Correct the value or the schema.",
            )
        elif error.validator == "enum":
            code, text = (
                "enum-violation",
                f"{value} is not one of {json.dumps(error.validator_value, ensure_ascii=False)}.",
            )
            text += " Use one of them, or add it."
        else:
            code, text = "constraint", f"{error.message}. Correct the value or the schema."
        report("error", code, place, text, tool=name)
