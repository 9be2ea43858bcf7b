"""More training examples from the user's own: the same sentences about other things, so that copying is learned.

A small model that sees each example a few times remembers its names instead of reading them. A copy of an example
exchanges every argument that stands word for word in the query, in the query and in the call alike, for what another
example has for the same argument after the same word, or for a name that nobody has ever seen. Two or three requests
said in one breath make a further example: calls for several things are learned from more sentences than somebody wrote.
"""

from __future__ import annotations

import copy
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..format.grammar import UNSPACED
from .examples import first_calls, first_query, leaves
from .splits import leaks

AND = (". ", "; ", ", then ", " and ", ". Also, ", ". Then ")  # what may stand between two requests in English
ENGLISH = re.compile(r"\b(and|then|also)\b", re.IGNORECASE)  # in a request for several calls, it shows the language
SHOWS_FROM = 10  # whole numbers, each beside one text only, that show that they follow from it
CLOSED_FROM = 8  # uses of each value, on average, of an argument whose words are a small set rather than names
THREE = 1 / 4  # share of three requests in one, where the examples have such
LONGEST = 3  # words of a value that may end the first of two requests: a dictated text would swallow the second
INVENTED = 1 / 3  # share of the exchanged values whose capitalised words are made up
SHORTEST = 3  # letters of a value that is exchanged


class Augmented(NamedTuple):
    """New training `examples`: `copies` with other names and numbers and `joined` requests, without those whose ids
    are in `too_near` because they came near a held-out case."""

    examples: list[dict]
    copies: list[dict]
    joined: list[dict]
    too_near: set[str]


def augment_examples(splits: dict, *, copies: int, joined: float, similarity: float, seed: int) -> Augmented:
    """`copies` of each training example with other names and numbers, and several requests in one, `joined` times the
    number of training examples. Held-out examples are only compared with."""
    train = splits["train"]
    varied = augment(train, copies, seed)
    several = combine(train + varied, round(joined * len(train)), seed)
    near = {other for _, other, _ in leaks({**splits, "train": varied + several}, similarity)}
    return Augmented([e for e in varied + several if e["id"] not in near], varied, several, near)


def augment(examples: list[dict], copies: int, seed: int) -> list[dict]:
    """`copies` new examples of each one (fewer where chance repeats itself), in order; ids end in `+1`, `+2`, …

    Varied are single-turn examples. Values that a schema enumerates, and values that the query does not contain exactly
    once, stay as they are. So do all values of a call in which a text is not taken from the query, because the country
    may follow from the city, or a number that may follow in the same way. Common words of a small set stay too: "song"
    and "album" are no names that could stand for each other. What cannot be varied at all, a text answer say, comes
    again as it is: else its share of the rows would fall, and the model would make calls where words are due.
    """
    rng = random.Random(seed)
    places = _open_places([_places(example) for example in examples])
    following = _following_numbers(examples)
    places = [[p for p in found if not _changes(e, p, following)] for e, found in zip(examples, places)]
    pool: dict[tuple, set] = defaultdict(set)
    for found in places:
        for place in found:
            pool[place.key].add(place.value)
    choices = {key: sorted(values) for key, values in pool.items()}
    halves = sorted({word for values in pool.values() for value in values for word in _names(value)})
    out = []
    for example, found in zip(examples, places):
        queries = {first_query(example)}
        for number in range(1, copies + 1):
            fresh = _vary(example, found, choices, halves, rng) if found else example
            if not found or first_query(fresh) not in queries:
                queries.add(first_query(fresh))
                out.append({**fresh, "id": f"{example['id']}+{number}"})
    return out


def combine(examples: list[dict], count: int, seed: int) -> list[dict]:
    """Up to `count` new examples, each several of `examples` in one sentence with the calls of all; ids are `a&b`.

    Joined are single-turn examples with one call each. The examples say what may be joined: two requests where one of
    them makes several calls, two for the same tool where one calls a tool twice, three (a quarter) where one makes
    three calls; else the model is not meant to.
    """
    names = [[call.name for call in first_calls(e)] for e in examples]
    most = max(map(len, names), default=0)
    if most < 2:
        return []
    twice = any(len(set(called)) < len(called) for called in names)
    asked = [first_query(e) for e, called in zip(examples, names) if len(called) > 1]
    joints = AND if any(map(ENGLISH.search, asked)) else AND[:2]
    rng = random.Random(seed)
    single = [e for e in examples if _is_single_turn(e) and len(first_calls(e)) == 1]
    firsts = [e for e in single if _may_go_on(e)]
    out: dict[str, dict] = {}
    for _ in range(4 * count):  # some do not fit
        if len(out) >= count or not firsts:
            break
        parts = [rng.choice(firsts), rng.choice(single)]
        if most > 2 and rng.random() < THREE:
            parts.insert(0, rng.choice(firsts))
        families = {re.split(r"\+\d+$", part["id"])[0] for part in parts}  # never copies of one example
        called = {first_calls(part)[0].name for part in parts}
        if len(families) < len(parts) or (len(called) < len(parts) and not twice):
            continue
        if any(part["tools"] != parts[0]["tools"] for part in parts):
            continue
        messages = copy.deepcopy(parts[0]["messages"])
        messages[1]["content"] = _join(parts, rng, joints)
        messages[2]["tool_calls"] = [copy.deepcopy(c) for part in parts for c in part["messages"][2]["tool_calls"]]
        name = "&".join(part["id"] for part in parts)
        out.setdefault(name, {**parts[0], "id": name, "messages": messages})
    return list(out.values())


def _is_single_turn(example: dict) -> bool:
    return [m["role"] for m in example["messages"]] == ["developer", "user", "assistant"]


def _texts(example: dict) -> list[str]:
    """The strings among the arguments of an example."""
    return [v for call in first_calls(example) for _, v in leaves(call.arguments, {}) if isinstance(v, str)]


def _may_go_on(example: dict) -> bool:
    """Whether another request can follow: the query does not end in a longer text that would seem to go on."""
    query = first_query(example).rstrip(" .!?\"'”’")
    return not any(query.endswith(v.rstrip(" .!?\"'")) and len(v.split()) > LONGEST for v in _texts(example))


def _join(parts: list[dict], rng: random.Random, joints: tuple[str, ...] = AND) -> str:
    """The queries in one sentence, or in several where one has its full stop; three are a list with commas at times.
    `joints` may stand between them; a script without spaces has its own stop."""
    text = first_query(parts[0]).strip()
    for number, part in enumerate(parts[1:], 2):
        query = first_query(part).strip()
        if text[-1] in ".!?":
            text = f"{text} {query}"
            continue
        if text[-1] in "。！？" or re.search(f"[{UNSPACED}]$", text):
            text += query if text[-1] in "。！？" else f"。{query}"
            continue
        between = rng.choice((", ", *joints) if number < len(parts) else joints)
        capital = re.match(r"[A-Z][a-z]+", query)  # small where the sentence goes on, unless an argument has it so
        if capital and between != ". ":
            if any(capital.group() in said for said in _texts(part)):
                between = ". "
            else:
                query = query[0].lower() + query[1:]
        text += between + query
    return text


@dataclass(frozen=True)
class _Place:
    """A value that can be exchanged: where it stands in the calls, and what may take its place (the same `key`)."""

    path: tuple
    key: tuple
    value: str | int


def _places(example: dict) -> list[_Place]:
    """The exchangeable values of an example, none of which is part of another."""
    if not _is_single_turn(example):
        return []
    query, found = first_query(example), []
    schemas = {tool["name"]: tool.get("parameters", {}) for tool in example["tools"]}
    for i, call in enumerate(first_calls(example)):
        values = list(leaves(call.arguments, schemas.get(call.name, {})))
        if any(isinstance(value, str) and value.casefold() not in query.casefold() for _, value in values):
            continue
        for path, value in values:
            if isinstance(value, str) and len(re.findall(r"[^\W\d_]", value)) < SHORTEST:
                continue
            spots = [m.start() for m in re.finditer(_whole(value), query)]
            if len(spots) == 1:
                before = re.findall(r"[\w']+|[^\w\s]", query[: spots[0]].casefold())
                names = tuple(part for part in path if isinstance(part, str))
                key = (call.name, names, before[-1] if before else "", type(value).__name__)
                found.append(_Place((i, *path), key, value))
    texts = [str(place.value) for place in found]
    return [place for place in found if sum(str(place.value) in text for text in texts) == 1]  # none inside another


def _open_places(places: list[list[_Place]]) -> list[list[_Place]]:
    """The places without the single common words of arguments that have few values, each of them many times."""
    used: dict[tuple, Counter] = defaultdict(Counter)
    for place in (place for found in places for place in found):
        used[place.key[:2]][place.value] += 1
    closed = {key for key, values in used.items() if values.total() >= CLOSED_FROM * len(values)}
    common = lambda value: isinstance(value, str) and value.isalpha() and value == value.lower()
    return [[p for p in found if not (p.key[:2] in closed and common(p.value))] for found in places]


def _numbers(value: Any, names: tuple) -> Iterator[tuple[tuple, int | float]]:
    """(names that lead to it, number) of every number in a value, items of lists without a name."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, (*names, name))
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, names)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield names, value


def _unsaid_numbers(example: dict) -> Iterator[tuple[int, tuple, int | float, tuple]]:
    """The numbers of an example that its query does not hold: the number of the call, tool and names of the argument,
    value, and the texts of the same call."""
    for i, call in enumerate(first_calls(example)):
        texts = tuple(value for _, value in leaves(call.arguments, {}) if isinstance(value, str))
        for key, value in _numbers(call.arguments, (call.name,)):
            if not re.search(_whole(value), first_query(example)):
                yield i, key, value, texts


def _following_numbers(examples: list[dict]) -> set[tuple]:
    """Arguments whose unsaid numbers may follow from the texts beside them: none comes with two different texts.

    Few whole numbers show nothing: they may be said in words.
    """
    beside: dict[tuple, dict] = defaultdict(lambda: defaultdict(set))
    for example in examples:
        for _, key, value, texts in _unsaid_numbers(example):
            beside[key][value].add(texts)
    alone = {key: values for key, values in beside.items() if all(len(texts) == 1 for texts in values.values())}
    return {key for key, values in alone.items() if len(values) >= SHOWS_FROM or any(v % 1 for v in values)}


def _changes(example: dict, place: _Place, following: set[tuple]) -> bool:
    """Whether exchanging the place would make a number wrong that may follow from it."""
    return any(i == place.path[0] and key in following for i, key, _, _ in _unsaid_numbers(example))


def _whole(value: str | int | float) -> str:
    """A pattern for `value` where it stands as words of its own."""
    return rf"(?<![\w.,:]){re.escape(str(value))}(?![\w%]|[.,:]\d)"


def _vary(example: dict, places: list[_Place], choices: dict, halves: list[str], rng: random.Random) -> dict:
    """A copy of the example with every exchangeable value exchanged."""
    messages = copy.deepcopy(example["messages"])
    calls = [call["function"]["arguments"] for call in messages[2].get("tool_calls") or []]
    table = {}
    for place in places:
        new = rng.choice(choices[place.key])
        if rng.random() < INVENTED:
            for word in _names(new):
                new = new.replace(word, _invent(halves, rng), 1)
        table[str(place.value)] = str(new)
        *way, last = place.path
        holder: Any = calls
        for part in way:
            holder = holder[part]
        holder[last] = new
    if table:
        pattern = "|".join(map(_whole, sorted(table, key=len, reverse=True)))
        messages[1]["content"] = re.sub(pattern, lambda m: table[m.group()], messages[1]["content"])
    return {**example, "messages": messages}


def _names(value: str | int) -> list[str]:
    """The longer words of a name: of a value that has capitalised words only."""
    text = str(value)
    return [word for word in re.findall(r"[^\W\d_]{4,}", text) if text.istitle() and not re.search(r"\d", text)]


def _invent(halves: list[str], rng: random.Random) -> str:
    """A name made of the first half of one name and the second half of another."""
    first, second = rng.choice(halves), rng.choice(halves)
    return first[: (len(first) + 1) // 2] + second[(len(second) + 1) // 2 :].lower()
