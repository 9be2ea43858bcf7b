"""Tools of our own: what `kinds.txt` declares, and sentences that call them.

Each tool set declares a kind anew (`declare`): under another name, with other names of its arguments, with some of its
optional arguments and some of the values of its closed sets. A `Declared` tool makes requests, each with its call.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path

from .words import KINDS

FILE = Path(__file__).with_name("kinds.txt")
SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
TENS = {20: "twenty", 30: "thirty", 40: "forty", 50: "fifty", 60: "sixty", 70: "seventy", 80: "eighty", 90: "ninety"}
LONG = ("MESSAGE", "TOPIC", "TASK", "SUBJECT", "TITLE")  # texts that would swallow what follows them
NO_ON = re.compile(r"\bon (?=(today|tomorrow|next |this |the day after|the weekend|\d+/\d|\d{4}-))", re.IGNORECASE)


class Unusable(Exception):
    """A sentence needs an argument that this declaration lacks."""


@dataclass(frozen=True)
class Argument:
    """An argument of a kind: `of` says which values, `names` and `hints` how it may be declared."""

    key: str
    required: bool
    of: str
    names: tuple[str, ...]
    hints: tuple[str, ...]


@dataclass
class Kind:
    """A tool as `kinds.txt` has it; sentences are parsed, `asks` are (request, question back)."""

    family: str
    names: list[str]
    descriptions: list[str]
    arguments: list[Argument] = field(default_factory=list)
    sentences: list[tuple[bool, list]] = field(default_factory=list)
    asks: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Request:
    """A sentence and its calls `(name, arguments)`; `goes_on`: another request may follow in the same breath."""

    text: str
    calls: tuple[tuple[str, dict], ...]
    goes_on: bool = True
    answer: str = ""


def read_kinds(path: Path = FILE) -> list[Kind]:
    """The kinds of a file."""
    kinds: list[Kind] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if not line.startswith(" "):
            head, _, descriptions = text.partition(" : ")
            family, _, names = head.partition(": ")
            kinds.append(Kind(family, _split(names), _split(descriptions)))
        elif text.startswith(">"):
            kinds[-1].sentences.append((not text.startswith(">>"), parse(text.lstrip("> "))[0]))
        elif text.startswith("?"):
            asked, _, answer = text[1:].partition("=>")
            kinds[-1].asks.append((asked.strip(), answer.strip()))
        else:
            head, names, *hints = (part.strip() for part in re.split(r"\s:(?:\s|$)", text))
            key, of = head.split(" ", 1) if " " in head else (head, head)
            known = tuple(name.strip() for name in names.split(",") if name.strip())
            said = tuple(_split(hints[0])) if hints and hints[0] else ("As said",)
            kinds[-1].arguments.append(
                Argument(key.rstrip("?"), not key.endswith("?"), of, (key.rstrip("?"), *known), said)
            )
    return kinds


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(" / ")]


def parse(text: str, start: int = 0, end: str = "") -> tuple[list, int]:
    """A sentence as a list of texts, ("slot", name), ("opt", list) and ("alt", lists); and where it ends."""
    out, i = [""], start
    while i < len(text):
        sign = text[i]
        if end and sign in end + "|" and (sign == end or end == ")"):
            return out, i
        if sign == "{":
            close = text.index("}", i)
            out += [("slot", text[i + 1 : close]), ""]
            i = close
        elif sign == "[":
            inner, i = parse(text, i + 1, "]")
            out += [("opt", inner), ""]
        elif sign == "(":
            choices = []
            while text[i] != ")":
                inner, i = parse(text, i + 1, ")")
                choices.append(inner)
            out += [("alt", choices), ""]
        else:
            out[-1] += sign
        i += 1
    return out, i


def slots(parts: list) -> set[str]:
    """All slots of a parsed sentence."""
    found = set()
    for part in parts:
        if isinstance(part, str):
            continue
        kind, what = part
        found |= {what} if kind == "slot" else slots(what) if kind == "opt" else set().union(*map(slots, what))
    return found


class Declared:
    """A kind as one tool set declares it: `tool` is the declaration, `request` makes a sentence with its call."""

    def __init__(self, kind: Kind, name: str, arguments: dict[str, dict]):
        """`arguments`: by key, those that are declared: `name`, `required`, `schema`, and `values` of a closed set."""
        self.kind, self.name, self.arguments = kind, name, arguments
        self.description = kind.descriptions[0]

    @property
    def tool(self) -> dict:
        """The declaration."""
        properties = {a["name"]: a["schema"] for a in self.arguments.values()}
        required = [a["name"] for a in self.arguments.values() if a["required"]]
        parameters = {"type": "object", "properties": properties, "required": required}
        return {"name": self.name, "description": self.description, "parameters": parameters}

    def request(self, rng: random.Random, lower: bool = False) -> Request:
        """A sentence that says all required arguments. Raises Unusable when none can."""
        required = {key for key, a in self.arguments.items() if a["required"]}
        for _ in range(60):
            imperative, parts = rng.choice(self.kind.sentences)
            given: dict = {}
            last = [""]
            try:
                text = self._say(parts, rng, given, last)
            except Unusable:
                continue
            if required <= given.keys():
                break
        else:
            raise Unusable(self.name)
        text = re.sub(r"\s+", " ", NO_ON.sub("", text)).strip()
        starts_with_value = any(text.startswith(said) for said, _ in given.values())
        text = _polite(text, imperative, starts_with_value, rng)
        copied = [key for key, (said, value) in given.items() if isinstance(value, (str, list)) and self._open(key)]
        values = {key: value for key, (_, value) in given.items()}
        if lower:
            text = text.lower()
            values.update({k: _lower(values[k]) for k in copied})
        goes_on = len(self.kind.family) > 2 and last[0] not in LONG and not last[0].startswith("list")
        arguments = {self.arguments[key]["name"]: value for key, value in values.items()}
        return Request(text, ((self.name, arguments),), goes_on)

    def _open(self, key: str) -> bool:
        return "values" not in self.arguments[key]

    def _say(self, parts: list, rng: random.Random, given: dict, last: list) -> str:
        text = ""
        for part in parts:
            if isinstance(part, str):
                text += part
                last[0] = "" if part.strip() else last[0]
                continue
            kind, what = part
            if kind == "slot":
                if what not in self.arguments:
                    raise Unusable(what)
                given[what] = self._value(what, rng)
                text += given[what][0]
                last[0] = self.arguments[what]["of"]
            elif kind == "alt":
                usable = [inner for inner in what if slots(inner) <= self.arguments.keys()]
                if not usable:
                    raise Unusable(self.name)
                text += self._say(rng.choice(usable), rng, given, last)
            elif slots(what) <= self.arguments.keys() and rng.random() < 0.45:
                text += self._say(what, rng, given, last)
        return text

    def _value(self, key: str, rng: random.Random) -> tuple[str, object]:
        """(as said, as called)"""
        argument = self.arguments[key]
        how, *rest = argument["of"].split(" ", 1)
        if how == "enum":
            value = rng.choice(sorted(argument["values"]))
            return rng.choice(argument["values"][value]), value
        if how == "bool":
            yes, _, no = rest[0].partition("^")
            value = not no.strip() or rng.random() < 0.6
            return rng.choice([p.strip() for p in (yes if value else no).split(",")]), value
        if how == "list":
            return _list(rest[0], rng)
        if how == "delta":
            low, high = map(int, rest[0].split())
            n, up = rng.randint(low, high), rng.random() < 0.5
            return f"{'up' if up else 'down'} {rng.choice(('by ', ''))}{n}", n if up else -n
        if how in ("int", "num", "minutes"):
            said, value = _number(how, rest, rng)
            return said, said if argument["schema"]["type"] == "string" else value
        said = KINDS[how](rng)
        return said, said


def _lower(value):
    return [item.lower() for item in value] if isinstance(value, list) else value.lower()


def _list(kind: str, rng: random.Random) -> tuple[str, list[str]]:
    items = list(dict.fromkeys(KINDS[kind](rng) for _ in range(rng.choice((1, 2, 2, 3)))))
    mark = rng.choice((" and ", " and ", ", "))
    return mark.join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else items[0], items


def _number(how: str, rest: list[str], rng: random.Random) -> tuple[str, int | float]:
    if how == "minutes":
        if rng.random() < 0.3:
            return rng.choice((("half an hour", 30), ("an hour", 60), ("2 hours", 120), ("an hour and a half", 90),
                               ("a quarter of an hour", 15), ("three hours", 180), ("one minute", 1)))  # fmt: skip
        n = rng.choice((rng.randint(2, 16), 5 * rng.randint(1, 12), rng.randint(17, 59)))
        return f"{_said(n, rng)} {rng.choice(('minutes', 'minutes', 'min'))}", n
    low, high = map(int, rest[0].split())
    n = rng.randint(low, high)
    if how == "num" and rng.random() < 0.35:
        value = round(n + rng.randint(1, 99) / 100, 2)
        return str(value), value
    return _said(n, rng), n


def _said(n: int, rng: random.Random) -> str:
    if rng.random() < 0.25 and (n <= 16 or n in TENS):
        return SMALL[n] if n <= 16 else TENS[n]
    return str(n)


BEFORE = ("please ", "can you ", "could you ", "hey, ", "I want you to ", "would you ", "now ", "ok, ", "please, ")
AFTER = (" please", ", please", " for me", " now", ", thanks")


def _polite(text: str, imperative: bool, starts_with_value: bool, rng: random.Random) -> str:
    chance, question = rng.random(), False
    if imperative and not starts_with_value and chance < 0.3:
        before = rng.choice(BEFORE)
        text, question = before + text, before.endswith("you ")
    elif imperative and chance < 0.36 and text[-1].isalnum() and '"' not in text and ":" not in text:
        text += rng.choice(AFTER[:2])
    if not starts_with_value and rng.random() < 0.55:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.35:
        text += (
            "?"
            if question or re.match(r"(?i)(what|how|when|where|will|is|did|do|who|are|any|could|can)\b", text)
            else "."
        )
    return text
