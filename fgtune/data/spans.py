"""Where a value stands in a sentence, and the sentence with another value there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate

from ..format.grammar import PIECE

# Korean particles: those of two forms (after a final consonant, after a vowel), and those of one form.
PAIRS = (("을", "를"), ("이", "가"), ("은", "는"), ("과", "와"), ("으로", "로"), ("이랑", "랑"), ("이나", "나"))
FIXED = ("에", "에서", "의", "도", "만", "까지", "부터", "에게", "한테", "께", "하고", "에는", "에서는", "에도")
PARTICLE = re.compile("|".join(sorted({*FIXED, *(form for pair in PAIRS for form in pair)}, key=len, reverse=True)))
READ_WITH_FINAL = "013678"  # digits whose Korean name ends in a consonant
READ_WITH_L = "178"  # in the consonant after which 로 keeps its short form
HANGUL = re.compile("[가-힣]")
NUMBER = re.compile(r"(?<![A-Za-z0-9_.,:/+\-])\d+(?:\.\d+)?(?![.,:/-]?\d)(?!(?:st|nd|rd|th)\b)")


@lru_cache(maxsize=1 << 15)
def joints(text: str) -> frozenset[int]:
    """The offsets at which pieces of `text` begin or end."""
    return frozenset(accumulate(map(len, PIECE.findall(text)), initial=0))


def find_spans(value: str, text: str, *, exact: bool = True) -> list[tuple[int, int]]:
    """(start, end) of each place where `value` stands at piece borders, or before a Korean particle.

    A part of a longer name, number, address or hyphenated word is no place. Without `exact`, case does not count.
    """
    if not value or value != value.strip():
        return []
    if value.casefold() not in text.casefold():
        return []
    borders, found = joints(text), []
    for start, end in _places(value, text) if exact else _alike(value, text):
        if start in borders and (end in borders or particle(text, end)) and not _goes_on(text, start, end):
            found.append((start, end))
    return found


def _places(value: str, text: str) -> Iterator[tuple[int, int]]:
    start = text.find(value)
    while start >= 0:
        yield start, start + len(value)
        start = text.find(value, start + len(value))


def _alike(value: str, text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in re.finditer(re.escape(value), text, re.IGNORECASE))


def _goes_on(text: str, start: int, end: int) -> bool:
    """Whether a hyphen, a point, a colon or the like ties the place to more letters or digits."""
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    tied = re.fullmatch(r"\w[-.:/@_+]", before) or re.fullmatch(r"[-@/_]\w|[.:]\w|,\d", after)
    return bool(tied) or (before[-1:] in ("@", "#", "+") and text[start].isalnum())


def particle(text: str, start: int) -> str:
    """The Korean particle that ends a word at `start`, or an empty text."""
    if not HANGUL.match(text, start):
        return ""
    word = re.compile(r"\w+").match(text, start)
    rest = word.group() if word else ""
    return rest if PARTICLE.fullmatch(rest) else ""


def _form(value: str, pair: tuple[str, str]) -> str | None:
    """The form of a particle that follows `value`; None where its sound is not known."""
    last = value[-1:]
    if HANGUL.match(last):
        final = (ord(last) - 0xAC00) % 28
        closed, short = final > 0, final == 8
    elif last.isdigit():
        closed, short = last in READ_WITH_FINAL, last in READ_WITH_L
    else:
        return None
    return pair[1] if not closed or (pair[1] == "로" and short) else pair[0]


def put(text: str, changes: list[tuple[int, int, str]]) -> str | None:
    """`text` with other words at (start, end); Korean particles follow their sound, None where that is not known."""
    for start, end, new in sorted(changes, reverse=True):
        said, rest = text[start:end], text[end:]
        for pair in PAIRS:
            after = particle(text, end)
            if after in pair and new != said:
                fitting = _form(new, pair)
                if fitting is None or after != _form(said, pair):
                    return None
                rest = fitting + rest[len(after) :]
                break
        text = text[:start] + new + rest
    return text


def word_before(text: str, start: int) -> str:
    """The last word or sign before `start`, in small letters; empty at the beginning."""
    found = re.findall(r"[\w']+|[^\w\s]", text[:start].casefold())
    return found[-1] if found else ""


def word_after(text: str, end: int) -> str:
    """The first word or sign from `end` on, in small letters; empty at the end."""
    found = re.compile(r"\s*([\w']+|[^\w\s])").match(text.casefold(), end)
    return found.group(1) if found else ""
