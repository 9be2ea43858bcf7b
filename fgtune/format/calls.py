"""Calls as text: write them, read them back exactly, compare them. `web/calls.js` does the same in JavaScript."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .template import render
from .tokens import CALL_END, CALL_START, CONTROL_TOKEN, ENDINGS, ESCAPE, RESPONSE_START
from .tools import plain_tool
from .values import KEY, MAX_DEPTH, MAX_INTEGER, NAME

_SPACE = " \t\r\n"
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Call:
    """One call: the tool's name and its arguments by name (JSON values without null)."""

    name: str
    arguments: dict = field(default_factory=dict)


class CallSyntaxError(ValueError):
    """Text that is neither a clean answer nor well-formed calls; `offset` is where, in characters (code points)."""

    def __init__(self, message: str, offset: int):
        super().__init__(f"{message} (at character {offset})")
        self.offset = offset


def format_call(call: Call) -> str:
    """The call as the model writes it, `<start_function_call>call:…`. Raises FormatError for what cannot be carried."""
    function = {"name": call.name, "arguments": call.arguments}
    text = render([{"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}])
    return text[text.index(CALL_START) : -len(RESPONSE_START)]


def parse_calls(text: str) -> list[Call]:
    """All calls in a generated text; a clean text answer has none. Raises CallSyntaxError, in linear time.

    Text may stand before the first call; one `<start_function_response>`, `<end_of_turn>` or `<eos>` may end it all.
    """
    return _Scanner(text).calls()


def same_call(a: Call, b: Call, tool: dict | None = None) -> bool:
    """Whether two calls do the same: 2.0 is 2, 5 is not "5", True is not 1, the order of keys means nothing.

    With the tool's schema an argument left out also equals one that is given its declared default.
    """
    if a.name != b.name:
        return False
    defaults = _defaults(tool)
    return _same({**defaults, **a.arguments}, {**defaults, **b.arguments})


def _defaults(tool: dict | None) -> dict:
    properties = (plain_tool(tool or {}).get("parameters") or {}).get("properties") or {}
    return {name: part["default"] for name, part in properties.items() if part.get("default") is not None}


def _same(a, b) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and a == b


class _Scanner:
    """Reads a generated text once, from left to right; every step moves on (`steps` counts them)."""

    def __init__(self, text: str):
        text = text.rstrip(_SPACE)
        ending = next((token for token in ENDINGS if text.endswith(token)), "")
        self.text, self.at, self.steps = text.removesuffix(ending), 0, 0

    def fail(self, message: str, offset: int | None = None):
        raise CallSyntaxError(message, self.at if offset is None else offset)

    def calls(self) -> list[Call]:
        text = self.text
        first = text.find(CALL_START)
        stray = CONTROL_TOKEN.search(text, 0, len(text) if first < 0 else first)
        if stray:
            self.fail(f"The control token {stray.group()} stands in plain text", stray.start())
        if first < 0:
            return []
        self.at, calls = first, []
        while self.at < len(text):
            calls.append(self.call())
            while self.at < len(text) and text[self.at] in _SPACE:
                self.at += 1
                self.steps += 1
        return calls

    def take(self, token: str, message: str) -> None:
        self.steps += 1
        if not self.text.startswith(token, self.at):
            self.fail(message)
        self.at += len(token)

    def call(self) -> Call:
        self.take(CALL_START + "call:", "A call begins with <start_function_call>call:")
        name = self.word(NAME, "A call needs the name of a tool")
        self.take("{", "The arguments begin with {")
        arguments = self.mapping(1)
        self.take(CALL_END, "A call ends with <end_function_call>")
        return Call(name, arguments)

    def word(self, pattern: re.Pattern, message: str) -> str:
        match = pattern.match(self.text, self.at)
        if not match:
            self.fail(message)
        stray = CONTROL_TOKEN.search(match.group())
        if stray:
            self.fail(f"The control token {stray.group()} stands in a name", self.at + stray.start())
        self.at = match.end()
        self.steps += 1
        return match.group()

    def mapping(self, depth: int) -> dict:
        """The rest of a mapping whose { has been read."""
        found = {}
        if self.text.startswith("}", self.at):
            self.at += 1
            return found
        while True:
            start = self.at
            key = self.word(KEY, "An argument needs a name")
            if key in found:
                self.fail("This argument is given twice", start)
            self.take(":", "A colon follows the name of an argument")
            found[key] = self.value(depth)
            if self.text.startswith("}", self.at):
                self.at += 1
                return found
            self.take(",", "After a value comes , or }")

    def sequence(self, depth: int) -> list:
        """The rest of a list whose [ has been read."""
        found = []
        if self.text.startswith("]", self.at):
            self.at += 1
            return found
        while True:
            found.append(self.value(depth))
            if self.text.startswith("]", self.at):
                self.at += 1
                return found
            self.take(",", "After a value comes , or ]")

    def value(self, depth: int):
        self.steps += 1
        if self.text.startswith(ESCAPE, self.at):
            return self.string()
        opening = self.text[self.at] if self.at < len(self.text) else ""
        if opening in ("{", "["):
            if depth >= MAX_DEPTH:
                self.fail(f"Values nest deeper than {MAX_DEPTH} levels")
            self.at += 1
            return self.mapping(depth + 1) if opening == "{" else self.sequence(depth + 1)
        for word, value in (("true", True), ("false", False)):
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return value
        return self.number()

    def string(self) -> str:
        start = self.at + len(ESCAPE)
        stop = self.text.find(ESCAPE, start)
        if stop < 0:
            self.fail("This text is not closed by <escape>")
        stray = CONTROL_TOKEN.search(self.text, start, stop)
        if stray:
            self.fail(f"The control token {stray.group()} stands in a text", stray.start())
        self.at = stop + len(ESCAPE)
        return self.text[start:stop]

    def number(self) -> int | float:
        match = _NUMBER.match(self.text, self.at)
        if not match:
            self.fail("A value is <escape>text<escape>, a number, true, false, a list or an object")
        digits = match.group()
        # more digits than any number needs: decided by length, since reading a very long one is not linear
        value = float(digits) if len(digits) <= 400 else float("inf")
        if abs(value) > MAX_INTEGER:
            self.fail("This number is too large to be read exactly")
        self.at = match.end()
        return int(value) if value.is_integer() else value
