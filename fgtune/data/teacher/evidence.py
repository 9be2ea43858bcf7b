"""Whether a request says what an argument holds, and by which rule."""

from __future__ import annotations

import re
from typing import Any

from ..verbatim import is_verbatim

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = {word: 10 * i for i, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
_NUMBERS = {**{word: i for i, word in enumerate(_ONES)}, **_TENS, "dozen": 12, "hundred": 100, "thousand": 1000}
_PHRASES = {  # what English says instead of a number
    r"\ba week\b": 7, r"\ba fortnight\b": 14, r"\bhalf an hour\b": 30, r"\bquarter of an hour\b": 15,
    r"\b(?:an?|one) (?:hour|minute|day|second)\b": 1, r"\band a half\b": 30, r"\b(?:once|a couple)\b": 1, r"\btwice\b": 2,
}  # fmt: skip
_NO = re.compile(r"\b(?:no|not|never|without|off|don'?t|stop|disable)\b", re.IGNORECASE)
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_MONTHS = "january february march april may june july august september october november december".split()
_EXPRESSION = re.compile(r"[\d.\s+\-*/()%^]*\d[\d.\s+\-*/()%^]*")


def evidence(value: Any, schema: dict, name: str, query: str) -> str | None:
    """The rule by which `query` says an argument's value, or None where it does not.

    `verbatim`: a text stands there word for word. `number`: in digits, in English words, or as a phrase that means it
    (a week is 7). `word of the enum`: the value, `_` and `-` as spaces, in whatever letters. `name`: true where a word
    of the argument's name is there, false where a "no" is there as well. `expression`: digits and operators, all of
    whose numbers are said. `date`: an ISO date whose day and month are said. Lists and objects: all that they hold.
    """
    schema = schema if isinstance(schema, dict) else {}
    if isinstance(value, list):
        return _all([evidence(item, schema.get("items") or {}, name, query) for item in value])
    if isinstance(value, dict):
        inner = schema.get("properties") or {}
        return _all([evidence(item, inner.get(key) or {}, key, query) for key, item in value.items()])
    if isinstance(value, bool):
        return "name" if _names(name, query) and (value or _NO.search(query)) else None
    if isinstance(value, int | float):
        return "number" if value in said_numbers(query) else None
    if "enum" in schema:
        plain = re.sub(r"[_\-]", " ", str(value)).casefold()
        return "word of the enum" if is_verbatim(plain, re.sub(r"[_\-]", " ", query).casefold()) else None
    if is_verbatim(value, query):
        return "verbatim"
    if _EXPRESSION.fullmatch(value):
        numbers = {float(n) for n in re.findall(r"\d+(?:\.\d+)?", value)}
        if re.search(r"\d\s*[+\-*/%^(]", value) and numbers <= said_numbers(query):
            return "expression"
    if date := _DATE.fullmatch(value):
        month = _MONTHS[int(date[2]) - 1] if 1 <= int(date[2]) <= 12 else "?"
        if float(date[3]) in said_numbers(query) and re.search(rf"\b{re.escape(month[:3])}", query.casefold()):
            return "date"
    return None


def said_numbers(query: str) -> set[float]:
    """The numbers that a request says: in digits, in words ("forty-two"), or as a phrase."""
    text = query.casefold()
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    found = {float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", plain)}
    found |= {float(n) for n in re.findall(r"\d+(?:\.\d+)?", plain)}
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


def _names(name: str, query: str) -> bool:
    """Whether a word of an argument's name is in the request."""
    words = [word.casefold() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name) if len(word) > 2]
    return any(re.search(rf"\b{re.escape(word)}", query.casefold()) for word in words)


def _all(rules: list[str | None]) -> str | None:
    return None if not rules or None in rules else ", ".join(dict.fromkeys(filter(None, rules)))
