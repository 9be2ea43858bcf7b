"""The values of an example that its sentence says: where, in which form, and which of them depend on each other."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from .examples import first_calls, first_query
from .phrases import learn_phrases, schema_of, walk
from .spans import NUMBER, find_spans, word_after, word_before

TEXT, WORD, NUMERIC, TIME = "text", "word", "number", "time"  # kinds of slots
SHORTEST = 2  # letters of a text that is exchanged
CUE_FROM = 2  # sentences that show that a word, rather than another argument, stands for a value
SCALES = (60, 3600, 0.01)  # minutes to seconds, hours to minutes or to seconds, percent to a share of one
CLOCK = re.compile(r"(?<![\w:.])(1[0-2]|0?[1-9])(:[0-5]\d)?( ?)([ap]\.?m\b\.?)", re.IGNORECASE)
SPELLED = re.compile(
    r"\b(an?|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|\w+ty(-\w+)?|hundred|thousand|half|"
    r"quarter|dozen|couple|both|week|fortnight|once|twice)\b",
    re.IGNORECASE,
)  # numbers in English words
WORDY = re.compile(r"[^\W\d_]+|\d+")


@dataclass(frozen=True)
class Slot:
    """A said value: its call and path there, and where the sentence says it."""

    path: tuple  # index of the call, then names and indices
    key: tuple  # tool and names that lead to it
    kind: str
    value: Any
    start: int
    end: int
    before: str  # words beside it
    after: str
    scale: float = 1  # the value by the said number
    item: bool = False  # whether it is an item of a list

    @property
    def call(self) -> int:
        return self.path[0]


@dataclass(frozen=True)
class Reading:
    """What an example says: its slots, and for each call what is not said although it may follow from them."""

    slots: tuple[Slot, ...]
    unsaid: dict[int, tuple]


def is_single_turn(example: dict) -> bool:
    return [m["role"] for m in example["messages"]] == ["developer", "user", "assistant"]


class Reader:
    """Reads examples after forms that only many of them show, such as minutes for seconds."""

    def __init__(self, examples: list[dict]):
        self.phrases = learn_phrases([e for e in examples if is_single_turn(e)])
        self.scales, self.clocks = _learn_scales(examples), _learn_clocks(examples)
        found = [self._slots(e) for e in examples]
        self.cues = _learn_cues(examples, found)
        self.readings = [self._reading(e, slots) for e, slots in zip(examples, found)]

    def _slots(self, example: dict) -> list[Slot]:
        return _slots(example, self.phrases, self.scales, self.clocks) if is_single_turn(example) else []

    def read(self, example: dict) -> Reading:
        """The reading of an example; no slots but in single-turn ones."""
        return self._reading(example, self._slots(example))

    def _reading(self, example: dict, slots: list[Slot]) -> Reading:
        return Reading(tuple(slots), _unsaid(example, slots, self.cues) if slots else {})


def names_of(path: tuple) -> tuple:
    return tuple(part for part in path if isinstance(part, str))


def values_of(example: dict) -> list[tuple[tuple, tuple, Any, dict]]:
    """(path, key, value, schema) of every leaf of all calls."""
    out = []
    for i, call in enumerate(first_calls(example)):
        for path, value, schema in walk(call.arguments, schema_of(example, call.name)):
            out.append(((i, *path), (call.name, *names_of(path)), value, schema))
    return out


def numbers_in(query: str) -> list[tuple[int, int, float, str]]:
    """(start, end, number, unit) of the numbers in digits."""
    return [(*m.span(), float(m.group()), word_after(query, m.end())) for m in NUMBER.finditer(query)]


def _learn_scales(examples: list[dict]) -> dict[tuple, float]:
    """{(argument, unit): factor} where the same factor leads from the said number to the value every time."""
    seen: dict[tuple, list] = defaultdict(list)
    for example in examples:
        said = numbers_in(first_query(example))
        for _, key, value, _ in values_of(example):
            if _is_number(value) and len(said) == 1:
                seen[key, said[0][3]].append((said[0][2], value))
    out = {}
    for where, pairs in seen.items():
        for scale in SCALES:
            if len({v for _, v in pairs}) > 1 and all(abs(n * scale - v) < 1e-9 for n, v in pairs):
                out[where] = scale
    return out


def to_24_hours(match: re.Match) -> str:
    """`7 pm` as `19:00`."""
    hour = int(match[1]) % 12 + 12 * (match[4][0] in "pP")
    return f"{hour:02d}{match[2] or ':00'}"


def _learn_clocks(examples: list[dict]) -> set[tuple]:
    """Arguments that hold the time in 24 hours wherever the sentence says it in twelve."""
    right, wrong = Counter(), set()
    for example in examples:
        said = list(CLOCK.finditer(first_query(example)))
        for _, key, value, _ in values_of(example):
            if len(said) == 1 and isinstance(value, str):
                if to_24_hours(said[0]) == value:
                    right[key] += 1
                else:
                    wrong.add(key)
    return {key for key, count in right.items() if count >= CUE_FROM and key not in wrong}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def spoken(value: str) -> str:
    """An enumerated value as people say it: `living_room` as `living room`."""
    return value.replace("_", " ").replace("-", " ").strip()


def _place(query: str, key: tuple, value: Any, schema: dict, phrases: dict, scales: dict, clocks: set):
    """(kind, start, end, scale) where the sentence says the value exactly once, else None."""
    if _is_number(value):
        places = [
            (start, end, scale)
            for start, end, number, unit in numbers_in(query)
            for scale in (1, -1, scales.get((key, unit)))
            if scale and number and abs(number * scale - value) < 1e-9
        ]
        return (NUMERIC, *places[0]) if len(places) == 1 else None
    known = {phrase: v for phrase, (v, _) in phrases.get((key[0], key[1:]), {}).items()}
    said = {p: find_spans(p, query, exact=False) for p in known if p in query.casefold()}
    said = {p: spots for p, spots in said.items() if spots}
    if isinstance(value, bool) or schema.get("enum"):
        if isinstance(value, str):
            others = {spoken(str(v)) for v in schema.get("enum", ())}
            spots = {v: find_spans(v, query, exact=False) for v in others}
            if any(s and v.casefold() != spoken(value).casefold() for v, s in spots.items()):
                return None  # two of the values are said
            mine = spots.get(spoken(value), [])
            if len(mine) == 1 and all(known[p] == value for p in said):
                return WORD, *mine[0], 1
        if len(said) == 1 and len(spots := next(iter(said.values()))) == 1 and known[next(iter(said))] == value:
            return WORD, *spots[0], 1
        return None
    if not isinstance(value, str):
        return None
    spots = find_spans(value, query)
    if len(spots) == 1 and (len(WORDY.sub("", value)) < len(value)) and len(value) >= SHORTEST:
        return TEXT, *spots[0], 1
    if len(spots) == 1 and value.isdigit():
        return TEXT, *spots[0], 1
    times = list(CLOCK.finditer(query))
    if not spots and key in clocks and len(times) == 1 and to_24_hours(times[0]) == value:
        return TIME, times[0].start(), times[0].end(), 1
    if not spots and len(said) == 1 and len(at := next(iter(said.values()))) == 1 and known[next(iter(said))] == value:
        return WORD, *at[0], 1
    return None


def _slots(example: dict, phrases: dict, scales: dict, clocks: set) -> list[Slot]:
    query, out = first_query(example), []
    leaves = values_of(example)
    for path, key, value, schema in leaves:
        found = _place(query, key, value, schema, phrases, scales, clocks)
        if found:
            kind, start, end, scale = found
            beside = word_before(query, start), word_after(query, end)
            item = bool(path[1:]) and isinstance(path[-1], int)
            out.append(Slot(path, key, kind, value, start, end, *beside, scale, item))
    clear = [s for s in out if not any(s is not o and s.start < o.end and o.start < s.end for o in out)]
    return [s for s in clear if not _is_repeated(s, query, leaves)]


def _is_repeated(slot: Slot, query: str, leaves: list) -> bool:
    """Whether a word of the slot comes again, in the rest of the sentence or in another argument."""
    words = {w.casefold() for w in WORDY.findall(query[slot.start : slot.end]) if len(w) > 3 or not w.islower()}
    if slot.kind == NUMERIC:
        words = {query[slot.start : slot.end]}
    rest = query[: slot.start] + " " + query[slot.end :]
    others = [v for path, _, v, _ in leaves if path != slot.path and not isinstance(v, bool)]
    again = {w.casefold() for text in (rest, *map(str, others)) for w in WORDY.findall(text)}
    if slot.value in others:
        return True
    if not words and slot.end - slot.start <= 3:
        return False
    return bool(words & again)


def outside(query: str, slots: list[Slot] | tuple[Slot, ...]) -> set[str]:
    """The words of the sentence that belong to no slot, in small letters."""
    for slot in sorted(slots, key=lambda s: -s.start):
        query = query[: slot.start] + " " + query[slot.end :]
    return set(re.findall(r"[\w'%]+", query.casefold()))


def _learn_cues(examples: list[dict], found: list[list[Slot]]) -> dict[tuple, dict[str, str]]:
    """{argument: {word: value}}: words outside the slots that come with one value of the argument only."""
    seen: dict[tuple, dict] = defaultdict(lambda: defaultdict(Counter))
    keys: dict[str, set] = defaultdict(set)
    for example in examples:
        for _, key, _, _ in values_of(example):
            keys[key[0]].add(key)
    for example, slots in zip(examples, found):
        words = outside(first_query(example), slots)
        leaves = defaultdict(set)
        for _, key, value, _ in values_of(example):
            leaves[key].add(json.dumps(value, ensure_ascii=False))
        for call in {call.name for call in first_calls(example)}:
            for key in keys[call]:
                value = "|".join(sorted(leaves[key])) if key in leaves else ""
                for word in words:
                    seen[key][word][value] += 1
    return {
        key: {w: next(iter(c)) for w, c in words.items() if len(c) == 1 and c.total() >= CUE_FROM and "" not in c}
        for key, words in seen.items()
    }


def _unsaid(example: dict, slots: list[Slot], cues: dict) -> dict[int, tuple]:
    """{call: (path, value), …} of what is not said, no word of the sentence explains, and may follow from a slot."""
    query, out = first_query(example), defaultdict(list)
    said, words = {slot.path for slot in slots}, outside(query, slots)
    for path, key, value, _ in values_of(example):
        if path in said or (isinstance(value, str) and value.casefold() in query.casefold()):
            continue
        text = json.dumps(value, ensure_ascii=False)
        if any(cues.get(key, {}).get(word) == text for word in words):
            continue
        if _is_number(value) and value % 1 == 0 and (SPELLED.search(query) or str(value) in query):
            continue
        out[path[0]].append((path[1:], text))
    return {call: tuple(rest) for call, rest in out.items()}
