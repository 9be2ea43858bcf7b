"""Local references of a JSON Schema: what they point to, and which lead back to themselves."""

from __future__ import annotations

import re
from urllib.parse import unquote

DEFINITIONS = ("$defs", "definitions", "components")  # where a schema keeps what its references point to


class References:
    """The references of one schema, written as `#` or `#/$defs/Name` (RFC 6901: `~1` is `/`, `~0` is `~`)."""

    def __init__(self, root: dict):
        self.root = root
        self._reached: dict[str, set[str]] = {}

    def find(self, target: str) -> dict | None:
        """What a reference points to; None when it leads nowhere."""
        pointer, found = unquote(target), self.root
        if not re.match(r"#(/|$)", pointer):
            return None
        for step in pointer.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list):
                found = found[int(step)] if step.isdecimal() and int(step) < len(found) else None
            else:
                found = found.get(step) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else None

    def cycle(self, target: str) -> set[str]:
        """The references that lie on one circle with `target`, itself included; none when it leads to an end."""
        if target not in self._reachable(target):
            return set()
        return {other for other in self._reachable(target) if target in self._reachable(other)}

    def _reachable(self, target: str) -> set[str]:
        """All references that are met on the way from `target`."""
        if target not in self._reached:
            found, waiting = set(), [target]
            while waiting:
                new = _references_in(self.find(waiting.pop())) - found
                found |= new
                waiting += new
            self._reached[target] = found
        return self._reached[target]


def names_referred_to(schema: dict) -> set[str]:
    """The last steps of all references in a schema: the names of the definitions it uses."""
    return {unquote(target).rsplit("/", 1)[-1] for target in _references_in(schema)}


def _references_in(schema: dict | None) -> set[str]:
    """The references in a schema, those in its definitions left out: they count where somebody points to them."""
    found, waiting = set(), [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            if "$ref" in part:
                found.add(str(part["$ref"]))
            waiting += [value for key, value in part.items() if key not in DEFINITIONS]
    return found
