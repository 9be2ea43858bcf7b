"""Whether a request says what an argument holds, and by which rule."""

from __future__ import annotations

import re
from typing import Any

from ...format.schema import key_schema
from ..verbatim import is_verbatim

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = {word: 10 * i for i, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
_NUMBERS = {**{word: i for i, word in enumerate(_ONES)}, **_TENS, "dozen": 12, "hundred": 100, "thousand": 1000}
_PHRASES = {  # what English says instead of a number
    r"\ba week\b": 7, r"\ba fortnight\b": 14, r"\bhalf an hour\b": 30, r"\bquarter of an hour\b": 15,
    r"\b(?:an?|one) (?:hour|minute|day|second)\b": 1, r"\bhours? and a half\b": 30, r"\bonce\b": 1, r"\btwice\b": 2,
    r"\ba couple\b": 2,
}  # fmt: skip
_DIGITS = re.compile(r"(?:(?<![\w.)])-)?\d+(?:\.\d+)?")  # a minus that follows a word or a number is a dash
_NO = re.compile(r"(?:no|not|never|without|off|don['’]?t|stop|disable|disabled)")
_NEAR = 3  # words between a "no" and what it denies
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_MONTHS = "january february march april may june july august september october november december".split()
_EXPRESSION = re.compile(r"[\d.\s+\-*/()%^]*\d[\d.\s+\-*/()%^]*")
_OPERATORS = {  # how a request says an operator
    "+": r"\+|\bplus\b|\badd|\bsum\b|\band\b|\btotal", "*": r"[*×]|\bx\b|\btimes\b|\bmultipl|\bof\b|\bproduct\b",
    "-": r"[-−]|\bminus\b|\bsubtract|\bless\b|\btake\b|\bdifference\b", "%": r"%|\bper ?cent|\bmod",
    "/": r"[/÷]|\bdivide|\bover\b|\bsplit\b|\bper\b|\bhalf\b|\bthird\b", "^": r"\^|\*\*|\bpower\b|\bsquare|\bcube",
}  # fmt: skip


def evidence(value: Any, schema: dict, name: str, query: str) -> str | None:
    """The rule by which `query` says an argument's value, or None where it does not.

    `verbatim`: a text stands there word for word. `number`: in digits, in English words, or as a phrase that means it
    (a week is 7). `word of the enum`: the value, `_` and `-` as spaces, in whatever letters. `name`: true where a word
    of the argument's name is there, false where a "no" is near it as well. `expression`: digits and operators, each of
    which is said. `date`: an ISO date whose day, month and year are said. Lists and objects: all that they hold.
    """
    schema = schema if isinstance(schema, dict) else {}
    if isinstance(value, list):
        return _all([evidence(item, schema.get("items") or {}, name, query) for item in value])
    if isinstance(value, dict):
        return _all([evidence(item, key_schema(schema, key), key, query) for key, item in value.items()])
    if isinstance(value, bool):
        return "name" if _named(name, query) is value else None
    if isinstance(value, int | float):
        return "number" if value in said_numbers(query) else None
    if not isinstance(value, str):
        return None
    if "enum" in schema:
        plain = re.sub(r"[_\-]", " ", value).casefold()
        return "word of the enum" if is_verbatim(plain, re.sub(r"[_\-]", " ", query).casefold()) else None
    if is_verbatim(value, query):
        return "verbatim"
    if _EXPRESSION.fullmatch(value) and _says_expression(value, query):
        return "expression"
    if (date := _DATE.fullmatch(value)) and _says_date(*map(int, date.groups()), query):
        return "date"
    return None


def said_numbers(query: str) -> set[float]:
    """The numbers that a request says: in digits, in words ("forty-two"), or as a phrase."""
    text = query.casefold()
    found = {float(number) for number in _DIGITS.findall(re.sub(r"(?<=\d),(?=\d{3}\b)", "", text))}
    found |= {float(number) for phrase, number in _PHRASES.items() if re.search(phrase, text)}
    words = re.findall(r"[^\W\d_]+", text)
    for i, word in enumerate(words):
        if word in _NUMBERS:
            found.add(float(_NUMBERS[word]))
            after = _NUMBERS.get(words[i + 1]) if i + 1 < len(words) else None
            if after is not None and word in _TENS and 0 < after < 10:
                found.add(float(_TENS[word] + after))
            elif after in (100, 1000) and _NUMBERS[word] < 100:
                found.add(float(_NUMBERS[word] * after))
    return found


def _says_expression(value: str, query: str) -> bool:
    """Whether a request says every number and every operator of a text like `12 * (3 + 4)`, which has one at least."""
    text, numbers = query.casefold(), {float(n) for n in re.findall(r"\d+(?:\.\d+)?", value)}
    operators = set(re.findall(r"[+\-*/%^]", value))
    said = all(re.search(_OPERATORS[operator], text) for operator in operators)
    return bool(operators) and said and numbers <= {abs(number) for number in said_numbers(query)}


def _says_date(year: int, month: int, day: int, query: str) -> bool:
    """Whether a request says a day, its month by name, and the year."""
    name = _MONTHS[month - 1] if 1 <= month <= 12 else "?"
    there = re.search(rf"\b(?:{re.escape(name)}|{re.escape(name[:3])})\b", query.casefold())
    numbers = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", query.casefold())
    return bool(there) and {float(day), float(year)} <= said_numbers(numbers)


def _named(name: str, query: str) -> bool | None:
    """True where a word of an argument's name is in the request, False where a "no" is near it; None: it is not."""
    stems = [word.casefold().removesuffix("e") for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name) if len(word) > 2]
    words = re.findall(r"[\w'’]+", query.casefold())
    places = [i for i, word in enumerate(words) if any(word.startswith(stem) for stem in stems)]
    if not places:
        return None
    near = (words[max(0, i - _NEAR) : i] + words[i + 1 : i + 2] for i in places)
    return not any(_NO.fullmatch(word) for around in near for word in around)


def _all(rules: list[str | None]) -> str | None:
    return None if not rules or None in rules else ", ".join(dict.fromkeys(filter(None, rules)))
