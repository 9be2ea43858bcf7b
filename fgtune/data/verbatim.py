"""Arguments that are copied word for word from the request."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate

from ..format.calls import Call
from ..format.grammar import PIECE
from .examples import first_calls, first_query, leaves

VERBATIM_FROM = 10  # values that must have been copied, each of them, for an argument to count as copied


def is_verbatim(value: str, text: str) -> bool:
    """Whether `value` stands in `text` as whole pieces, with no space at its ends."""
    if not value or value != value.strip():
        return False
    joints = set(accumulate(map(len, PIECE.findall(text)), initial=0))
    return any(m.start() in joints and m.start() + len(value) in joints for m in re.finditer(re.escape(value), text))


def text_arguments(call: Call, schema: dict) -> Iterator[tuple[str, str]]:
    """(`tool.argument`, value) of the texts of a call that `schema` does not enumerate; names as `verbatim_arguments`
    gives them."""
    for path, value in leaves(call.arguments, schema):
        if isinstance(value, str):
            yield ".".join([call.name, *(part for part in path if isinstance(part, str))]), value


def verbatim_arguments(examples: Iterable[dict]) -> dict[str, int]:
    """Text arguments that all `examples` copy from the request, as `tool.argument` (`.` between levels, none for the
    items of a list), with the number of values. Fewer than ten show nothing; enumerated values need no copying."""
    count, copied = Counter(), Counter()
    for example in examples:
        schemas = {tool["name"]: tool.get("parameters") or {} for tool in example["tools"]}
        for call in first_calls(example):
            for key, value in text_arguments(call, schemas.get(call.name, {})):
                count[key] += 1
                copied[key] += is_verbatim(value, first_query(example))
    return {key: n for key, n in sorted(count.items()) if n == copied[key] >= VERBATIM_FROM}
