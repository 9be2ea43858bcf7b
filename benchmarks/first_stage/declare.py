"""Declarations: names in many styles, hints in other words, arguments and values left out."""

from __future__ import annotations

import random
import re

from fgtune.format.values import RESERVED

from .kinds import Argument, Declared, Kind
from .words import closed_set

HINTS = {
    "As said": ("As said", "As said", "Word for word", "Copied from the request", "In the user's words", "Text"),
    "Only if said": (
        "Only if said",
        "Only if said",
        "Optional",
        "If given",
        "Leave out unless said",
        "Only when named",
    ),
}
TYPES = {"int": "integer", "num": "number", "minutes": "integer", "delta": "integer", "bool": "boolean"}
STYLES = ("snake", "snake", "snake", "camel", "camel", "pascal", "joined", "upper")


def styled(name: str, style: str) -> str:
    """`some_name` in another style."""
    words = [word for word in name.split("_") if word]
    if style == "camel":
        return words[0] + "".join(word.capitalize() for word in words[1:])
    if style == "pascal":
        return "".join(word.capitalize() for word in words)
    return "".join(words) if style == "joined" else "_".join(words).upper() if style == "upper" else "_".join(words)


def shortened(name: str, rng: random.Random) -> str:
    """A name with a long word abbreviated."""
    words = name.split("_")
    i = max(range(len(words)), key=lambda i: len(words[i]))
    word = words[i]
    if len(word) > 5:
        words[i] = word[0] + re.sub("[aeiou]", "", word[1:]) if rng.random() < 0.5 else word[:4]
    return "_".join(words)


def tool_name(names: list[str], family: str, style: str, rng: random.Random) -> str:
    """A name for a tool."""
    name = rng.choice(names)
    if rng.random() < 0.1:
        name = shortened(name, rng)
    if rng.random() < 0.12:
        name = f"{family}_{name}"
    if rng.random() < 0.1:
        name = f"{name}_{rng.choice(('v2', 'tool', 'api', 'fn', 'now', 'request', 'action', 'service'))}"
    return styled(name, style)


def declare(kind: Kind, rng: random.Random, style: str, argument_style: str, plain: bool) -> Declared:
    """The kind as a tool of one set. `plain`: without descriptions of arguments."""
    arguments: dict[str, dict] = {}
    for argument in kind.arguments:
        if not argument.required and rng.random() < 0.2:
            continue
        taken = {a["name"] for a in arguments.values()}
        name = styled(rng.choice(argument.names) if rng.random() < 0.75 else argument.key, argument_style)
        if name in taken or name in RESERVED:
            name = styled(argument.key, argument_style)
        if name in taken or name in RESERVED:
            name = styled(argument.key + "_value", argument_style)
        required = argument.required or rng.random() < 0.04
        arguments[argument.key] = {
            "name": name,
            "required": required,
            "of": argument.of,
            **_schema(argument, rng, plain),
        }
    keys = list(arguments)
    rng.shuffle(keys)
    declared = Declared(kind, tool_name(kind.names, kind.family, style, rng), {key: arguments[key] for key in keys})
    declared.description = rng.choice(kind.descriptions)
    return declared


def _schema(argument: Argument, rng: random.Random, plain: bool) -> dict:
    """`schema` of an argument, and the `values` of a closed set with the words that say them."""
    how = argument.of.split(" ")[0]
    schema: dict = {"type": TYPES.get(how, "string")}
    found: dict = {"schema": schema}
    hint = rng.choice(argument.hints)
    if how == "list":
        schema.update(type="array", items={"type": "string"})
    elif how == "enum":
        pool = closed_set(argument.of.split(" ", 1)[1])
        some = rng.sample(sorted(pool), min(len(pool), rng.randint(2, 6)))
        style = rng.choice(("snake", "snake", "upper", "pascal", "camel", "spaced"))
        restyled = {v: v.replace("_", " ") if style == "spaced" else styled(v, style) for v in some}
        found["values"] = {restyled[value]: pool[value] for value in some}
        schema["enum"] = [restyled[value] for value in some]
    elif how in ("int", "num", "minutes") and not plain and rng.random() < 0.1:
        schema["type"], hint = "string", rng.choice(("As said", "In the words of the request", "Text as said"))
    if not plain:
        for known, others in HINTS.items():
            if hint.startswith(known):
                hint = rng.choice(others) + hint[len(known) :]
        schema["description"] = hint
    return found
