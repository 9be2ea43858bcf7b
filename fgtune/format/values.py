"""Names, texts and values as Python's and JavaScript's template engines print them alike."""

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal

from .tokens import CONTROL_TOKEN

# A tool's name: dots, hyphens, slashes and colons are fine, and single spaces between its words.
NAME = re.compile(r"[^\x00-\x20{}\[\],<>]+(?: [^\x00-\x20{}\[\],<>]+)*")
KEY = re.compile(r"[^{}\[\]:,]+")  # an argument's name
RESERVED = ("description", "type", "properties", "required", "nullable")
METASPACE = "\u2581"  # stands for a space in the vocabulary
_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_INTEGER = 2**53 - 1  # JavaScript's Number.MAX_SAFE_INTEGER
MAX_DEPTH = 32
# What Python's strip() and JavaScript's trim() remove; the two differ by U+001C…1F, U+0085 and U+FEFF.
WHITESPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace()) + "\ufeff"


class _Number(float):
    """A float that prints as JavaScript prints it (0.00001, not 1e-05)."""

    def __str__(self) -> str:
        mantissa, _, exponent = repr(self).partition("e")
        if not exponent:
            return mantissa
        return format(Decimal(repr(self)), "f") if int(exponent) >= -6 else f"{mantissa}e{int(exponent)}"


def check_text(text: str, where: str, report: Callable) -> str:
    if token := CONTROL_TOKEN.search(text):
        report("error", "control-token", where,
               f"The text holds the control token {token.group()}, which steers the model. Remove it.")  # fmt: skip
    if METASPACE in text:
        report("error", "metaspace", where, f'The text holds "{METASPACE}" (U+2581), which the tokenizer reads as a '
               "space. Write a space or an underscore.")  # fmt: skip
    if _SURROGATE.search(text):
        report("error", "half-character", where, "The text holds half of a character (a lone surrogate). Remove it.")
    return text


def carry_value(value, where: str, report: Callable, drop_null: bool = False, depth: int = 0):
    """The value as both engines print it alike; what the format cannot carry is reported."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return check_text(value, where, report)
    if isinstance(value, float) and not math.isfinite(value):
        report("error", "not-finite", where, f"{value} is no number the format can carry. Leave it out.")
        return 0
    if isinstance(value, (int, float)):
        if isinstance(value, float) and not value.is_integer():
            return value if "e" not in repr(value) else _Number(value)
        if abs(value) > MAX_INTEGER:
            report("error", "number-too-large", where,
                   f"{value} is beyond 2^53 - 1 and would change in JavaScript. Pass it as a string.")  # fmt: skip
        return int(value)
    if depth >= MAX_DEPTH:
        report("error", "too-deep", where, f"Values nest deeper than {MAX_DEPTH} levels. Flatten them.")
        return {}
    if isinstance(value, (list, tuple)):
        return [carry_value(item, f"{where}[{i}]", report, drop_null, depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        check_keys(list(value), where, report)
        carried = {}
        for key, item in value.items():
            place = f"{where}.{key}" if where else str(key)
            if item is None and drop_null:
                report("repair", "null-dropped", place, "null means absent here: the key is left out.")
            else:
                carried[str(key)] = carry_value(item, place, report, drop_null, depth + 1)
        return carried
    if value is None:
        report("error", "null", where, "The format has no null. Leave the key out (repair_examples does).")
        return ""
    report("error", "not-json", where, f"A {type(value).__name__} is no JSON value. Convert it to one.")
    return ""


def check_keys(keys: list, where: str, report: Callable) -> None:
    for key in keys:
        if not isinstance(key, str):
            report("error", "key", where, f"The key {key!r} is not a string. Write it as one.")
            return
        if not KEY.fullmatch(key):
            report("error", "key", where, f"The key {key!r} is empty or has one of {{ }} [ ] : , in it. Rename it.")
        check_text(key, where, report)
    lowered = [key.lower() for key in keys]
    if sorted(lowered) != sorted(lowered, key=lambda key: key.encode("utf-16-be", "surrogatepass")):
        report("error", "key-order", where, "Python and JavaScript sort these keys differently. Rename the rarest one.")


def check_name(name, where: str, report: Callable, what: str = "tool") -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        report("error", f"{what}-name", where, f"The {what} needs a name without any of {{ }} [ ] , < > "
               f"and with single spaces between words at most; it is {name!r}. Rename it.")  # fmt: skip
        return "unnamed"
    return check_text(name, where, report)
