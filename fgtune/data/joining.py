"""Several requests in one: calls for several things are learned from more sentences than somebody wrote."""

from __future__ import annotations

import copy
import random
import re

from ..format.grammar import UNSPACED
from .examples import first_calls, first_query, origin
from .slots import is_single_turn
from .verbatim import text_arguments

AND = (". ", "; ", ", then ", " and ", ". Also, ", ". Then ")  # what may stand between two requests in English
ENGLISH = re.compile(r"\b(and|then|also)\b", re.IGNORECASE)  # in a request for several calls, it shows the language
THREE = 1 / 4  # share of three requests in one, where the examples have such
LONGEST = 3  # words of a value that may end the first of two requests: a dictated text would swallow the second


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
    single = [e for e in examples if is_single_turn(e) and len(first_calls(e)) == 1]
    firsts = [e for e in single if _may_go_on(e)]
    out: dict[str, dict] = {}
    for _ in range(4 * count):  # some do not fit
        if len(out) >= count or not firsts:
            break
        parts = [rng.choice(firsts), rng.choice(single)]
        if most > 2 and rng.random() < THREE:
            parts.insert(0, rng.choice(firsts))
        families = {origin(part["id"]) for part in parts}  # never copies of one example
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


def _texts(example: dict) -> list[str]:
    """The strings among the arguments of an example."""
    return [value for call in first_calls(example) for _, value, _ in text_arguments(call, {})]


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
