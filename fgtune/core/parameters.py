"""A parameter: a typed default with a range or a set of choices, and what is made of a text given for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .errors import FgtuneError

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list"}


class ParameterError(FgtuneError, ValueError):
    """A parameter is unknown, of the wrong type or out of range; the message is one line."""


def hint(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` when a known name is close, else an empty string."""
    near = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


@dataclass(frozen=True)
class Param:
    """A parameter: `default` (its type is the parameter's type), `help`, and a range or a set of `choices`. A text with
    both is one of the choices, or a whole number in the range, as text."""

    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: list[str] | None = None

    def coerce(self, name: str, value: Any) -> Any:
        """`value` as this parameter's type, range-checked; `name` is for messages. Raises ParameterError.

        papermill hands `-p dry true` over as a string and YAML reads `1e-4` as one, so strings are converted.
        """
        kind = type(self.default)
        if self.choices and self.low is not None:
            return value if value in self.choices else str(self._number(name, value))
        try:
            value = _converted(value, kind)
        except (ValueError, KeyError, TypeError, OverflowError):
            raise ParameterError(f"{name} must be {KINDS[kind]}, not {value!r}") from None
        if self.low is not None and not self.low <= value <= self.high:
            raise ParameterError(f"{name} = {value!r} is outside {self.low:g} to {self.high:g}")
        if self.choices and value not in self.choices:
            raise ParameterError(f"{name} = {value!r} is none of {', '.join(self.choices)}{hint(value, self.choices)}")
        return value

    def _number(self, name: str, value: Any) -> int:
        """The number that stands in the place of a choice. Raises ParameterError."""
        try:
            number = _converted(value, int)
        except (ValueError, TypeError, OverflowError):
            number = None
        if number is None or not self.low <= number <= self.high:
            near = hint(str(value), self.choices)
            choices = f"{', '.join(self.choices)} or a number from {self.low} to {self.high}"
            raise ParameterError(f"{name} = {value!r} is none of {choices}{near}")
        return number


def _converted(value: Any, kind: type) -> Any:
    if kind is list:
        return [v.strip() for v in value.split(",") if v.strip()] if isinstance(value, str) else list(value)
    if kind is bool:
        return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
    if isinstance(value, bool) or (kind is str and not isinstance(value, str)):
        raise ValueError
    if kind is int and float(value) != int(float(value)):
        raise ValueError
    return int(float(value)) if kind is int else kind(value)
