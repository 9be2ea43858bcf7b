"""Arguments that are copied word for word from the request."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate

from ..format.calls import Call
from ..format.grammar import PIECE
from .examples import first_calls, first_query
from .phrases import walk

VERBATIM_FROM = 10  # values that must have been copied, each of them, for an argument to count as copied
DISTINCT_FROM = 5  # values that are enough where no two are alike and the schema allows any text
# Where every text of every argument is copied, so many in so many arguments, two values are enough for one of these.
ALL_COPIED_FROM, ALL_ARGUMENTS_FROM, REPEATED_FROM = 30, 5, 2
NOT_ANY_TEXT = ("enum", "const", "format", "pattern")  # what a schema may say of a text that is not copied as it is


def is_verbatim(value: str, text: str) -> bool:
    """Whether `value` stands in `text` as whole pieces, with no space at its ends."""
    if not value or value != value.strip():
        return False
    joints = set(accumulate(map(len, PIECE.findall(text)), initial=0))
    return any(m.start() in joints and m.start() + len(value) in joints for m in re.finditer(re.escape(value), text))


def text_arguments(call: Call, schema: dict) -> Iterator[tuple[str, str, dict]]:
    """(`tool.argument`, value, its schema) of the texts of a call that `schema`, the tool's parameters, does not
    enumerate; names as `verbatim_arguments` gives them."""
    for path, value, inner in walk(call.arguments, schema):
        if isinstance(value, str) and "enum" not in inner:
            yield ".".join([call.name, *(part for part in path if isinstance(part, str))]), value, inner


def verbatim_arguments(examples: Iterable[dict]) -> dict[str, int]:
    """Text arguments that all `examples` copy from the request, as `tool.argument` (`.` between levels, none for the
    items of a list), with the number of values.

    Fewer than ten values show it only where there are five at least, no two alike, and the schema allows any text.
    Two are enough where the examples copy all that the schema leaves open, 30 values of five arguments at least: then
    a further argument that does not is unlikely. Enumerated values need no copying.
    """
    values: dict[str, list[str]] = defaultdict(list)
    copied: Counter = Counter()
    limited = set()
    for example in examples:
        schemas = {tool["name"]: tool.get("parameters") or {} for tool in example["tools"]}
        for call in first_calls(example):
            for key, value, schema in text_arguments(call, schemas.get(call.name, {})):
                values[key].append(value)
                copied[key] += is_verbatim(value, first_query(example))
                if any(word in schema for word in NOT_ANY_TEXT):
                    limited.add(key)
    free = [key for key in values if key not in limited]
    count = sum(len(values[key]) for key in free)
    many = count >= ALL_COPIED_FROM and len(free) >= ALL_ARGUMENTS_FROM
    all_copied = many and count == sum(copied[key] for key in free)
    out = {}
    for key, held in sorted(values.items()):
        distinct = len(held) >= DISTINCT_FROM and len(set(held)) == len(held)
        enough = distinct or (all_copied and len(held) >= REPEATED_FROM)
        if copied[key] == len(held) and (len(held) >= VERBATIM_FROM or (enough and key not in limited)):
            out[key] = len(held)
    return out
