"""Other values for the slots of an example: what may stand where, and the example with it."""

from __future__ import annotations

import copy
import json
import random
import re
from collections import Counter, defaultdict
from itertools import combinations, pairwise
from math import gcd
from typing import Any

from .examples import first_calls, first_query
from .phrases import schema_of, walk
from .slots import CLOCK, NUMERIC, TEXT, TIME, Reader, Reading, Slot, spoken, to_24_hours, values_of
from .spans import find_spans, put

INVENTED = 1 / 3  # share of the exchanged names that are made up
OPEN_FROM = 8  # different values of an argument that may take names nobody has seen
NAMES = 3 / 5  # share of names among the values of an argument that may take others
CLOSED_FROM = 3  # uses of each value, on average, of an argument whose words are a small set
FOLLOWS_FROM = 5  # different values that each come with another unsaid value: the second follows from the first
STAYS = 1 / 6  # share of the values that stay beside others that are exchanged
DRAWS = 20  # from the values that may take a place
WIDEST = 1000  # from the least to the most number that a schema allows, for the whole range to be used
CALENDAR = re.compile(
    r"(mon|tues|wednes|thurs|fri|satur|sun)day|january|february|march|april|may|june|july|august|september|october|"
    r"november|december|today|tomorrow|tonight|morning|noon|evening|night|christmas|easter",
    re.IGNORECASE,
)
ARTICLES = frozenset("a an the my some this der die das den dem le la les el los las un une il lo".split())
NAME = re.compile(r"[^\W\d_]{4,}")  # a longer word of a name
SAYABLE = re.compile(r"[^\W\d_]+(?: [^\W\d_]+)*")
ONLY_WRITTEN = ("pattern", "format", "maxLength", "minLength", "const")


class Pools:
    """What the slots of all examples may hold, as all examples together show it."""

    def __init__(self, examples: list[dict], reader: Reader):
        self.reader, self.readings = reader, reader.readings
        self.texts: dict[tuple, set] = defaultdict(set)
        self.used: dict[tuple, Counter] = defaultdict(Counter)
        self.beside: dict[tuple, set] = defaultdict(set)  # argument and value: the sets of arguments it comes with
        self.numbers: dict[tuple, set] = defaultdict(set)
        self.tuples: dict[tuple, set] = defaultdict(set)
        self.classes = self._classes()
        self.dependent, self.lacking = _dependent(examples), _lacking(examples)
        self.follows = self._follows()
        for example, reading in zip(examples, self.readings):
            for path, key, value, _ in values_of(example):
                self.used[key][str(value)] += 1
                self.beside[key, str(value)].add(_names(example, path[0]))
            for slot in reading.slots:
                if slot.kind == TEXT:
                    rest = reading.unsaid.get(slot.call, ())
                    for context in self.contexts(slot):
                        self.texts[slot.key, context, rest].add(slot.value)
                        if rest and slot.key in self.follows:
                            paths = tuple(path for path, _ in rest)
                            self.tuples[slot.key, context, paths].add((slot.value, rest))
                elif slot.kind == NUMERIC:
                    self.numbers[number_key(example, slot)].add(slot.value)
            for bundle in bundles(example, reading, self.dependent):
                if len(bundle) > 1:
                    where = bundle_key(example, bundle), reading.unsaid.get(bundle[0].call, ())
                    self.tuples[where].add(tuple(s.value for s in bundle))
        self.lists = {where: sorted(values) for where, values in self.texts.items()}
        self.closed = {key for key in self.used if self._is_closed(key)}
        self.halves = {key: halves for key in self.used if (halves := self._halves(key))}

    def _classes(self) -> dict[tuple, Any]:
        """{(argument, word before): class}: two words are of one class where two values come after both of them."""
        after: dict[tuple, set] = defaultdict(set)
        for reading in self.readings:
            for slot in reading.slots:
                if slot.kind == TEXT and slot.before not in ARTICLES:
                    after[slot.key, slot.before].add(slot.value)
        words: dict[tuple, list] = defaultdict(list)
        for key, word in after:
            words[key].append(word)
        out: dict[tuple, Any] = {}
        for key, some in words.items():
            for word in some:
                alike = (w for w in some if w == word or len(after[key, w] & after[key, word]) > 1)
                out[key, word] = min((out.get((key, w), w) for w in alike), key=str)
        return out

    def contexts(self, slot: Slot) -> list[Any]:
        """What a value must have in common with those whose place it takes, one of them at least."""
        if slot.item:
            return ["item"]
        before = self.classes.get((slot.key, slot.before), slot.before)
        if re.search(r"[.,;:?!]", slot.value):
            return [(before, slot.after)]
        if slot.start == 0 and slot.value[0].isupper():  # its capital may be that of the sentence
            return ["start", "name"] if is_name(slot.value) else ["start"]
        return [before, "name"] if is_name(slot.value) and slot.before not in ARTICLES else [before]

    def _follows(self) -> set[tuple]:
        """Arguments from which the unsaid ones of the same call follow: as a country from its city."""
        pairs: dict[tuple, dict] = defaultdict(lambda: defaultdict(set))
        for reading in self.readings:
            for slot in reading.slots:
                texts = [s for s in reading.slots if s.call == slot.call]
                if len(texts) == 1 and slot.kind == TEXT and (rest := reading.unsaid.get(slot.call)):
                    pairs[slot.key][slot.value].add(rest)
        return {
            key
            for key, values in pairs.items()
            if len(values) >= FOLLOWS_FROM
            and all(len(rest) == 1 for rest in values.values())
            and len({next(iter(rest)) for rest in values.values()}) >= 0.8 * len(values)
        }

    def _is_closed(self, key: tuple) -> bool:
        """Whether an argument holds a few common words again and again."""
        used = self.used[key]
        return used.total() >= CLOSED_FROM * len(used) and all(value == value.lower() for value in used)

    def _halves(self, key: tuple) -> list[str]:
        used = self.used[key]
        if len(used) < OPEN_FROM or 2 * len(used) < used.total():
            return []
        names = [value for value in used if is_name(value)]
        if len(names) < NAMES * len(used):
            return []
        return sorted({word for value in names for word in NAME.findall(value) if word[0].isupper()})


def number_key(example: dict, slot: Slot) -> tuple:
    """What a number must have in common with those of its range: unit, factor, and the other arguments."""
    unit = slot.after[:1] if ord(slot.after[:1] or " ") > 0x0E00 else slot.after  # particles follow it
    return slot.key, unit, slot.scale, _names(example, slot.call)


def is_name(value: str) -> bool:
    """Whether all longer words have capitals, or a text without spaces between words has signs of names only."""
    if re.search(r"\d", value) or CALENDAR.search(value):
        return False
    if re.fullmatch(r"[\u30a0-\u30ff\u3400-\u9fff]+", value):
        return True
    words = re.findall(r"[^\W\d_]+", value)
    return bool(words) and words[0][0].isupper() and all(w[0].isupper() for w in words if len(w) > 3)


def _names(example: dict, call: int) -> frozenset:
    return frozenset(first_calls(example)[call].arguments)


def _lacking(examples: list[dict]) -> Counter:
    """How many calls of the examples come without each argument of their tool."""
    out: Counter = Counter()
    for example in examples:
        for call in first_calls(example):
            names = schema_of(example, call.name).get("properties") or {}
            out.update((call.name, name) for name in names if name not in call.arguments)
    return out


def _dependent(examples: list[dict]) -> set[tuple]:
    """Pairs of arguments of a tool where each value of the first that comes twice has the same value of the second."""
    beside: dict[tuple, dict] = defaultdict(lambda: defaultdict(list))
    for example in examples:
        for call in first_calls(example):
            leaves = [(path, v) for path, v, _ in walk(call.arguments, {}) if isinstance(v, str)]
            for (p, v), (q, w) in combinations(leaves, 2):
                if not any(isinstance(part, int) for part in (*p, *q)):
                    beside[(call.name, *p), (call.name, *q)][v].append(w)
                    beside[(call.name, *q), (call.name, *p)][w].append(v)
    out = set()
    for pair, values in beside.items():
        again = [set(w) for w in values.values() if len(w) > 1]
        if len(again) > 1 and all(len(w) == 1 for w in again) and len(set.union(*again)) > 1:
            out.add(pair)
    return out


def bundles(example: dict, reading: Reading, dependent: set[tuple]) -> list[list[Slot]]:
    """The slots, those together that move together: dependent ones, and texts side by side."""
    query, out = first_query(example), []
    for slot in sorted(reading.slots, key=lambda s: s.start):
        home = None
        for bundle in out:
            for other in bundle:
                tied = (other.key, slot.key) in dependent or (slot.key, other.key) in dependent
                apart = query[other.end : slot.start]
                near = apart in (" ", ", ", ",") and slot.kind == other.kind == TEXT and slot.key != other.key
                if slot.call == other.call and (tied or near) and not slot.item and not other.item:
                    home = bundle
        if home is None:
            out.append([slot])
        else:
            home.append(slot)
    return out


def bundle_key(example: dict, bundle: list[Slot]) -> tuple:
    query = first_query(example)
    between = tuple(query[a.end : b.start] for a, b in pairwise(bundle))
    return tuple(s.key for s in bundle), tuple(text if len(text) < 3 else "" for text in between), bundle[0].before


def exchange(example: dict, reading: Reading, pools: Pools, rng: random.Random) -> dict | None:
    """The example with other values in its slots; None where there are none, or where they do not fit."""
    query, changes, table = first_query(example), [], []
    together = bundles(example, reading, pools.dependent)
    for bundle in together:
        if len(together) > 1 and rng.random() < STAYS:
            continue
        for slot, said, value in _choose(example, bundle, reading, pools, rng, table):
            if slot is None:
                table.append(said + (value,))
            else:
                changes.append((slot.start, slot.end, said))
                table.append((slot.path, value))
    text = put(query, changes) if changes else None
    if text is None or not _fits(reading, changes, dict(table), text):
        return None
    messages = copy.deepcopy(example["messages"])
    calls = [call["function"]["arguments"] for call in messages[2]["tool_calls"]]
    for (*way, last), value in table:
        holder: Any = calls
        for part in way:
            holder = holder[part]
        holder[last] = value
    messages[1]["content"] = text
    return {**example, "messages": messages}


def _fits(reading: Reading, changes: list, table: dict, text: str) -> bool:
    """Whether each new value is said once, and numbers of a call have the order that they had."""
    for _, _, said in changes:
        if len(find_spans(said, text, exact=False)) > 1 or text.count(said) < 1:
            return False
        if len(said) > 3 and text.casefold().count(said.casefold()) > 1:
            return False
    numbers = [s for s in reading.slots if s.kind == NUMERIC or str(s.value).isdigit()]
    for one, other in combinations(numbers, 2):
        if one.call == other.call:
            mine, theirs = (table.get(s.path, s.value) for s in (one, other))
            if not all(isinstance(v, int | float) or v.isdigit() for v in (mine, theirs)):
                return False
            new = float(mine) - float(theirs)
            if (new > 0) != (float(one.value) > float(other.value)) or not new:
                return False
    return True


def _choose(example: dict, bundle: list[Slot], reading: Reading, pools: Pools, rng: random.Random, table: list):
    """[(slot, words, value)] for the slots of a bundle; a slot None for what follows, with its path as words."""
    slot, query = bundle[0], first_query(example)
    rest = reading.unsaid.get(slot.call, ())
    taken = {value for _, value in table if isinstance(value, str)}
    if len(bundle) > 1:
        others = pools.tuples[bundle_key(example, bundle), rest] - {tuple(s.value for s in bundle)}
        if not others or any(s.kind != TEXT for s in bundle):
            return []
        return [(s, value, value) for s, value in zip(bundle, rng.choice(sorted(others, key=repr)))]
    schema = _schema(example, slot)
    if slot.kind == TEXT:
        if rest and slot.key in pools.follows and sum(s.call == slot.call for s in reading.slots) == 1:
            return _with_what_follows(slot, rest, pools, rng)
        new = _another_text(example, slot, rest, taken, pools, rng)
        if new is None:
            return []
        if not rest and slot.key in pools.halves and is_name(new) and rng.random() < INVENTED:
            if not any(word in schema for word in ONLY_WRITTEN):
                new = NAME.sub(lambda m: _invent(pools.halves[slot.key], rng) if m[0][0].isupper() else m[0], new)
        return [(slot, new, new)]
    if rest:
        return []
    if slot.kind == NUMERIC:
        return _another_number(example, slot, schema, pools, rng)
    if slot.kind == TIME:
        old = CLOCK.fullmatch(query[slot.start : slot.end].rstrip())
        if not old:
            return []
        new = f"{rng.randint(1, 12)}{old[2] or ''}{old[3]}{old[4]}"
        return [(slot, new, to_24_hours(CLOCK.fullmatch(new)))]
    return _another_word(example, slot, schema, pools, rng)


def _another_text(example: dict, slot: Slot, rest: tuple, taken: set, pools: Pools, rng: random.Random) -> str | None:
    options = [o for c in pools.contexts(slot) for o in pools.lists.get((slot.key, c, rest), ())]
    for _ in range(min(len(options), DRAWS)):
        new = rng.choice(options)
        if new != slot.value and new not in taken and _may_stand(new, slot, example, pools):
            return new
    return None


def _schema(example: dict, slot: Slot) -> dict:
    return next((schema for path, _, _, schema in values_of(example) if path == slot.path), {})


def _may_stand(value: str, slot: Slot, example: dict, pools: Pools) -> bool:
    """Whether a value of the pool fits the article before it and the other arguments."""
    if slot.before in ("a", "an") and (value[0] in "aeiouAEIOU") != (slot.before == "an"):
        return False
    if slot.key in pools.closed and _names(example, slot.call) not in pools.beside[slot.key, value]:
        return False
    return value[0].isdigit() == str(slot.value)[0].isdigit() or not slot.item


def _with_what_follows(slot: Slot, rest: tuple, pools: Pools, rng: random.Random) -> list:
    paths = tuple(path for path, _ in rest)
    options = {o for c in pools.contexts(slot) for o in pools.tuples[slot.key, c, paths]}
    options = sorted(o for o in options if o[0] != slot.value)
    if not options:
        return []
    value, new = rng.choice(options)
    return [(slot, value, value), *((None, ((slot.call, *path),), json.loads(text)) for path, text in new)]


def _invent(halves: list[str], rng: random.Random) -> str:
    """A name made of the first half of one name and the second half of another."""
    first, second = rng.choice(halves), rng.choice(halves)
    return first[: (len(first) + 1) // 2] + second[(len(second) + 1) // 2 :].lower()


def _another_number(example: dict, slot: Slot, schema: dict, pools: Pools, rng: random.Random) -> list:
    """Another number of the range that the schema or the data shows, in its steps; one is left alone beside a word."""
    said = first_query(example)[slot.start : slot.end]
    seen = sorted(pools.numbers[number_key(example, slot)])
    if not seen:  # nobody has it with these other arguments
        return []
    if "enum" in schema:
        options = [v for v in schema["enum"] if isinstance(v, int)]
    elif all(isinstance(v, int) for v in seen):
        low, high = schema.get("minimum"), schema.get("maximum")
        step = gcd(*seen) or 1
        if low is None or high is None or high - low > WIDEST or low >= high:
            low, high = seen[0], seen[-1]
        if schema.get("multipleOf") and step % schema["multipleOf"]:
            return []
        options = list(range(-(-int(low) // step) * step, int(high) + 1, step)) if high - low <= 100000 else seen
    else:
        options = seen
    singular = re.match(r"[a-z]", slot.after)
    old = slot.value / slot.scale
    options = [v for v in options if v != slot.value and (v > 0) == (slot.value > 0) and v]
    if singular:
        options = [v for v in options if abs(v / slot.scale) != 1] if old != 1 else []
    options = [v for v in options if abs(round(v / slot.scale, 6) * slot.scale - v) < 1e-9]
    if "." not in said:
        options = [v for v in options if abs(v / slot.scale - round(v / slot.scale)) < 1e-6]
    if not options:
        return []
    value = rng.choice(options)
    number = round(value / slot.scale, 6)
    return [(slot, f"{number:g}" if number % 1 or abs(number) < 1e5 else str(int(number)), value)]


def _another_word(example: dict, slot: Slot, schema: dict, pools: Pools, rng: random.Random) -> list:
    """Another enumerated value by its own word, or the phrase that stands for another value."""
    query = first_query(example)
    said = query[slot.start : slot.end]
    names = _names(example, slot.call)
    options: list[tuple[str, Any]] = []
    if isinstance(slot.value, str) and said.casefold() == spoken(slot.value).casefold():
        families = [pools.beside[slot.key, str(v)] for v in schema.get("enum", ()) if pools.beside[slot.key, str(v)]]
        alike = all(a & b for a, b in combinations(families, 2))
        for value in schema.get("enum", ()):
            seen = pools.beside[slot.key, str(value)]
            if value != slot.value and isinstance(value, str) and SAYABLE.fullmatch(spoken(value)):
                if names in seen or (not seen and alike):
                    word = spoken(value)
                    options.append((word.lower() if said.islower() else word, value))
    else:
        known = pools.reader.phrases.get((slot.key[0], slot.key[1:]), {})
        for other in sorted(known.get(said.casefold(), (None, ()))[1]):
            if known[other][0] != slot.value and names in pools.beside[slot.key, str(known[other][0])]:
                options.append((other[0].upper() + other[1:] if said[0].isupper() else other, known[other][0]))
    if slot.before in ("a", "an"):
        options = [o for o in options if (o[0][0] in "aeiou") == (slot.before == "an")]
    options = [o for o in options if not find_spans(o[0], query, exact=False)]
    if not options:
        return []
    word, value = rng.choice(options)
    return [(slot, word, value)]
