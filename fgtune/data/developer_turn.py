"""The developer turn that was trained: its text, and the dates in it that are filled in at run time."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ..format.findings import Finding
from ..format.template import TRIGGER

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
MONTHS += ("November", "December")
# Two times that differ in every part, and in the first digit of each but of the minutes' and the seconds'.
TWO_TIMES = (datetime(1987, 2, 3, 4, 15, 26, 123000), datetime(2046, 11, 28, 17, 48, 59, 654000))
IN_UTC = ("Z", "+00:00")  # how a format of a time in UTC ends
SHOWN = 5  # ids of rows with another developer turn, at most

_MONTH = "|".join(f"{name}|{name[:3]}" for name in MONTHS)
_KINDS = {  # by kind: how it is found in a text, and the formats that it may have, the likeliest first
    "date": (
        rf"\b(?:\d{{4}}[-/]\d\d[-/]\d\d|\d\d?[/.]\d\d?[/.]\d{{4}}|\d\d?[ -](?:{_MONTH})[ -]\d{{4}}"
        rf"|(?:{_MONTH}) \d\d?,? \d{{4}})(?=T\d|\b)",
        ["%Y-%m-%d", "%Y/%m/%d"]
        + [f"{first}{mark}{second}{mark}%Y" for mark, first, second in (
            ("/", "%m", "%d"), ("/", "%-m", "%-d"), ("/", "%d", "%m"), ("/", "%-d", "%-m"),
            (".", "%d", "%m"), (".", "%-d", "%-m"))]
        + [f"{day}{mark}{month}{mark}%Y" for mark in " -" for month in ("%B", "%b") for day in ("%-d", "%d")]
        + [f"{month} {day}{mark} %Y" for mark in (",", "") for month in ("%B", "%b") for day in ("%-d", "%d")],
    ),
    "time": (
        r"(?<![\d:])\d\d?:\d\d(?::\d\d(?:\.\d{6}|\.\d{3})?(?:[+-]\d\d:\d\d)?)?(?:Z| ?[AP]M)?(?![\w:])",
        [f"{hour}:{rest}{end}" for rest in ("%M:%S.%f", "%M:%S.%3f", "%M:%S", "%M") for hour, end in (
            ("%H", ""), ("%-H", ""), *(("%H", end) for end in (*IN_UTC, "%:z")),
            ("%-I", " %p"), ("%I", " %p"), ("%-I", "%p"), ("%I", "%p"))],
    ),
    "weekday": (rf"\b(?:{'|'.join(WEEKDAYS)})\b", ["%A"]),
}  # fmt: skip
_FOUND = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, (pattern, _) in _KINDS.items()))
_DIRECTIVE = re.compile(r"%(?:-|:|3)?[A-Za-z]")
_READS = {"%Y": r"\d{4}", "%B": "|".join(MONTHS), "%b": "|".join(name[:3] for name in MONTHS), "%p": "AM|PM",
          "%A": "|".join(WEEKDAYS), "%f": r"\d{6}", "%3f": r"\d{3}", "%:z": r"[+-]\d\d:\d\d"}  # fmt: skip


@dataclass(frozen=True)
class DeveloperTurn:
    """A developer message: `template` is its text, in which `{name}` stands for each of `fields` (name, format).

    A format is one of strftime's, in English whatever the locale, with `%-d` for a day without a leading zero, `%3f`
    for milliseconds and `%:z` for an offset (+02:00). Where one ends in `Z` or `+00:00`, all are in UTC. `web/turn.js`
    fills in the same.
    """

    template: str
    fields: tuple[tuple[str, str], ...] = ()

    def fill(self, now: datetime) -> str:
        """The text at `now`; without a time zone it is taken as it stands, its offset as +00:00."""
        if now.tzinfo and any(form.endswith(IN_UTC) for _, form in self.fields):
            now = now.astimezone(UTC)
        text, rest = "", self.template
        for name, form in self.fields:
            before, _, rest = rest.partition(f"{{{name}}}")
            text += before + format_time(now, form)
        return text + rest

    def at_two_times(self) -> tuple[str, str]:
        """The text at two times that have nothing in common: what both begin with, every text begins with."""
        first, second = map(self.fill, TWO_TIMES)
        return first, second

    def to_json(self) -> dict:
        """`{"template", "fields": [{"name", "format"}]}`."""
        return {"template": self.template, "fields": [{"name": name, "format": form} for name, form in self.fields]}

    @classmethod
    def from_json(cls, value: dict) -> DeveloperTurn:
        """What `to_json` gave."""
        return cls(value["template"], tuple((field["name"], field["format"]) for field in value["fields"]))


def format_time(now: datetime, form: str) -> str:
    """`now` in a format of strftime's, in English. ValueError for a directive that is not supported."""
    hour, offset = now.hour % 12 or 12, now.isoformat(timespec="minutes")[16:22] or "+00:00"
    values = {"Y": f"{now.year:04}", "m": now.month, "d": now.day, "H": now.hour, "I": hour, "M": now.minute,
              "S": now.second, "f": f"{now.microsecond:06}", "3f": f"{now.microsecond // 1000:03}", ":z": offset,
              "B": MONTHS[now.month - 1], "b": MONTHS[now.month - 1][:3], "A": WEEKDAYS[now.weekday()],
              "p": "AM" if now.hour < 12 else "PM"}  # fmt: skip

    def part(match: re.Match) -> str:
        value = values.get(match[0].lstrip("%-"))
        if value is None:
            raise ValueError(f"{match[0]} is not supported in a developer turn")
        return str(value) if isinstance(value, str) or "-" in match[0] else f"{value:02}"

    return _DIRECTIVE.sub(part, form)


def trained_turn(examples: Iterable[dict]) -> tuple[DeveloperTurn, list[str]]:
    """The developer turn of most examples, and the ids of the examples that have another one.

    Turns that differ in dates, times and weekdays alone are one. Those of them that are the same in all examples stay
    as they are, and so does everything else.
    """
    texts = {example["id"]: turn_text(example) for example in examples}
    shapes: dict[str, tuple] = {text: _shape(text) for text in set(texts.values())}
    rows: dict[tuple, Counter] = defaultdict(Counter)
    for text in texts.values():
        rows[shapes[text]][text] += 1
    if not rows:
        return DeveloperTurn(TRIGGER), []
    shape = max(rows, key=lambda shape: rows[shape].total())
    turn, fitting = _turn_of(shape, rows[shape])
    return turn, [name for name, text in texts.items() if text not in fitting]


def lint_developer_turn(examples: Sequence[dict], source: str = "") -> list[Finding]:
    """What there is to say about the examples' developer turns: the dates in them, and rows with another turn."""
    turn, others = trained_turn(examples)
    findings = []
    if turn.fields:
        forms = ", ".join(f"{name} ({form})" for name, form in turn.fields)
        text = f"The developer turn has dates, which the page fills in as they were trained: {forms}."
        findings.append(Finding("info", "dated-turn", text, source))
    if others:
        shown = ", ".join(others[:SHOWN]) + (", …" if len(others) > SHOWN else "")
        text = f"{len(others)} of {len(examples)} rows have another developer turn than the page will send: {shown}."
        findings.append(Finding("warning", "other-turn", text, source))
    return findings


def turn_text(example: dict) -> str:
    """The text of an example's developer turn, the base model's own where it has none."""
    first = example["messages"][0] if example["messages"] else {}
    text = first.get("content") if first.get("role") in ("developer", "system") else None
    return text if isinstance(text, str) else TRIGGER


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of the parts of a text, in order; the kind of what is no date is ""."""
    end = 0
    for match in _FOUND.finditer(text):
        if not _formats(match.lastgroup, match[0]):
            continue
        yield "", text[end : match.start()]
        yield match.lastgroup, match[0]
        end = match.end()
    yield "", text[end:]


def _shape(text: str) -> tuple:
    """What turns that differ in dates alone have in common."""
    return tuple((kind, "" if kind else part) for kind, part in _parts(text))


def _formats(kind: str, text: str) -> list[str]:
    """The formats of `kind` that a text may be in."""
    return [form for form in _KINDS[kind][1] if _read(text, form) is not None]


def _read(text: str, form: str) -> datetime | None:
    """The time that a text in a format means, a day of 2000 where it has no date; None where it is in another."""
    pattern, end = "", 0
    for match in _DIRECTIVE.finditer(form):
        numbers = r"\d\d?" if "-" in match[0] else r"\d\d"
        pattern += re.escape(form[end : match.start()]) + f"(?P<{match[0][-1]}>{_READS.get(match[0], numbers)})"
        end = match.end()
    found = re.fullmatch(pattern + re.escape(form[end:]), text)
    if not found:
        return None
    got = found.groupdict()
    month = next((i for i, name in enumerate(MONTHS, 1) if got.get("B") == name or got.get("b") == name[:3]), 1)
    hour = int(got["I"]) % 12 + 12 * (got["p"] == "PM") if "I" in got else int(got.get("H", 0))
    day = WEEKDAYS.index(got["A"]) + 3 if "A" in got else int(got.get("d", 1))  # 3 January 2000 was a Monday
    try:
        date = datetime(int(got.get("Y", 2000)), int(got.get("m", month)), day, hour, int(got.get("M", 0)),
                        int(got.get("S", 0)), int(got.get("f", "").ljust(6, "0")),
                        datetime.strptime(got["z"], "%z").tzinfo if "z" in got else None)  # fmt: skip
    except ValueError:
        return None
    return date if format_time(date, form) == text else None


def _turn_of(shape: tuple, texts: Counter) -> tuple[DeveloperTurn, set[str]]:
    """The turn of texts of one shape, and which of the texts it can give."""
    columns = list(zip(*([part for _, part in _parts(text)] for text in texts), strict=True))
    weights = list(texts.values())
    fitting, template, fields = set(texts), "", []
    literal = "".join(part for kind, part in shape if not kind)
    for (kind, part), values in zip(shape, columns, strict=True):
        if not kind:
            template += part
        elif len(set(values)) == 1 and not _follows(kind, values, shape, columns):
            template += values[0]
        else:
            form = _common_format(kind, values, weights)
            fitting -= {text for text, value in zip(texts, values, strict=True) if _read(value, form) is None}
            number = sum(name.startswith(kind) for name, _ in fields) + 1
            while f"{{{kind}_{number}}}" in literal:
                number += 1
            fields.append((f"{kind}_{number}", form))
            template += f"{{{kind}_{number}}}"
    return DeveloperTurn(template, tuple(fields)), fitting


def _follows(kind: str, values: Sequence[str], shape: tuple, columns: list) -> bool:
    """Whether a weekday that never changes is that of a date beside it that does."""
    if kind != "weekday":
        return False
    for (other, _), dates in zip(shape, columns, strict=True):
        if other == "date" and len(set(dates)) > 1:
            form = _common_format(other, dates, [1] * len(dates))
            read = [_read(date, form) for date in dates]
            return all(date and WEEKDAYS[date.weekday()] == value for date, value in zip(read, values, strict=True))
    return False


def _common_format(kind: str, values: Sequence[str], weights: Sequence[int]) -> str:
    """The format that most of the values have, the likeliest of those."""
    total, counts = Counter(), Counter()
    for value, weight in zip(values, weights, strict=True):
        total[value] += weight
    for value, weight in total.items():
        for form in _formats(kind, value):
            counts[form] += weight
    return max(_KINDS[kind][1], key=lambda form: counts[form])
