"""The same request said otherwise: politeness, capitals and stops, as people type."""

from __future__ import annotations

import random
import re

from .affixes import Affixes

ENGLISH = re.compile(
    r"\b(the|a|an|is|are|to|for|my|me|in|on|of|what|what's|how|please|can|you|and|with|it|i|at|set|show|put)\b", re.I
)
VERBS = frozenset(
    "add alert arrange book bring buy calculate call cancel change check close compute convert create decrease delete "
    "dim email find get give google help increase list look lower make mark move navigate note open order pause play "
    "put raise rate read remind remove reserve resume save schedule search send set show skip start stop switch tell "
    "text translate turn type update write".split()
)
BEFORE = ("please ", "can you ", "could you ", "would you ", "could you please ", "hey, ", "hi, please ", "now ")
ASKS = ("can you ", "could you ", "would you ", "could you please ")
GREETS = ("hey, ", "hi, ", "hello, ", "so, ")
GREETED = frozenset("what what's how is will who where when which are does do i i'm".split())
ASKING = frozenset("what how is are will who where when why which do does did can could would may should".split())
POLITE = re.compile(r"\b(please|pls|can you|could you|would you|will you|hey|hi|hello|thanks|kindly)\b", re.I)


def is_english(queries: list[str]) -> bool:
    """Whether most of the sentences have small words of English, and few other letters."""
    some = [q for q in queries if q.strip()]
    return bool(some) and 2 * sum(bool(ENGLISH.search(q)) for q in some) > len(some)


def reframe(query: str, kept: list[str], english: bool, affixes: Affixes, rng: random.Random) -> str | None:
    """`query` said otherwise, or None where nothing fits; the words `kept` stay as they are."""
    ways = [affixes.vary, affixes.vary, _lower_first, _no_stop]
    if english and ENGLISH.search(query):
        ways += [_before, _before, _behind, _lower_all]
    rng.shuffle(ways)
    for way in (*ways, _add_stop):
        new = way(query, kept, rng)
        if new and new != query and all(word in new for word in kept):
            return new
    return None


def _begins(query: str, kept: list[str]) -> bool:
    """Whether the first word is free to change: it is of no kept word, no name of capitals, and no I."""
    first = re.match(r"[^\W\d_][\w'’]*", query)
    if not first or any(query.startswith(word) for word in kept):
        return False
    word = first.group()
    return word[1:] == word[1:].lower() and word.split("'")[0].split("’")[0] != "I"


def _first_word(query: str) -> str:
    """In small letters; empty where the sentence begins with something else."""
    first = re.match(r"[\w'’]+", query)
    return first.group().lower() if first else ""


def _lower_first(query: str, kept: list[str], rng: random.Random) -> str | None:
    return query[0].lower() + query[1:] if _begins(query, kept) else None


def _lower_all(query: str, kept: list[str], rng: random.Random) -> str | None:
    """All in small letters, where nothing is kept and the words are common ones."""
    return None if kept else query.lower()


def _ends_in_kept(query: str, kept: list[str]) -> bool:
    return any(word and query.endswith(word) for word in kept)


def _no_stop(query: str, kept: list[str], rng: random.Random) -> str | None:
    """Without the stop or question mark at the end, where it is the only one."""
    if query[-1:] in ".?。？!" and query[-2:-1] not in (*".?。？!", "") and not _ends_in_kept(query, kept):
        inside = re.search(r"[.?!。？]", query[:-1])
        return None if inside or re.search(r"\b\w\.$", query) else query[:-1]
    return None


def _add_stop(query: str, kept: list[str], rng: random.Random) -> str | None:
    last = max(kept, key=lambda word: query.rfind(word), default="")
    if not re.search(r"\w$", query) or (_ends_in_kept(query, kept) and len(last.split()) > 3):
        return None
    if re.search(r"[぀-ヿ一-鿿]$", query):
        return query + "。"
    asks = re.match(
        r"(what|how|is|are|will|who|where|when|why|which|do|does|did|can|could|would|may|should)\b", query, re.I
    )
    if re.search(r"@\S+$|\d$|://", query):
        return None
    return query + ("?" if asks and asks.group() in ASKING else ".")


def _before(query: str, kept: list[str], rng: random.Random) -> str | None:
    if not _begins(query, kept) or POLITE.search(query):
        return None
    first = _first_word(query)
    sentences = len(re.findall(r"[.?!;]\s", query))
    if first in VERBS:
        word = rng.choice(BEFORE)
        if word in ASKS:
            if sentences or _ends_in_kept(query, [w for w in kept if len(w.split()) > 3]):
                word = "please "
            elif query.endswith("?"):
                return None
            else:
                query = query.rstrip(".!") + rng.choice(("?", "", "?"))
    elif first in GREETED:
        word = rng.choice(GREETS)
    else:
        return None
    low = query if first in ("i", "i'm") else query[0].lower() + query[1:]
    return (word[0].upper() + word[1:] if query[0].isupper() else word) + low


def _behind(query: str, kept: list[str], rng: random.Random) -> str | None:
    """With a please at the end, where no longer text stands there that it would seem to belong to."""
    if _first_word(query) not in VERBS or POLITE.search(query):
        return None
    if re.search(r"[?!;:\"'”]|[.]\s", query) or any(query.rstrip(".").endswith(w) and len(w.split()) > 2 for w in kept):
        return None
    stop = "." if query.endswith(".") and not _ends_in_kept(query, kept) else ""
    return (query[:-1] if stop else query) + ", please" + stop
