"""What lint has to say, one finding at a time and as a table."""

import difflib
import html
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

LEVELS = ("error", "repair", "warning", "info")
_BREAK = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def one_line(text: str) -> str:
    """The text with its line breaks written out (`\\n`): a name of the user's may hold one."""
    return _BREAK.sub(lambda found: repr(found[0])[1:-1], text)


class FormatError(ValueError):
    """A message or a value that the format cannot carry."""


class SchemaError(FormatError):
    """A tool that `lint_tools` refuses."""


@dataclass(frozen=True)
class Finding:
    """One thing lint has to say. `level`: "error" (refused), "repair" (normalized, and how), "warning" or "info"."""

    level: str
    code: str
    message: str
    file: str = ""
    example: str = ""
    tool: str = ""
    where: str = ""

    def __post_init__(self) -> None:
        for name, text in vars(self).items():
            if _BREAK.search(text):
                object.__setattr__(self, name, one_line(text))

    def __str__(self) -> str:
        place = " · ".join(part for part in (self.file, self.example, self.tool, self.where) if part)
        return f"{self.level}: {place}: {self.message}" if place else f"{self.level}: {self.message}"

    def as_json(self) -> dict:
        """`level`, `code`, `where` (file, row, tool, place) and `message`, which begins with the place."""
        where = " · ".join(part for part in (self.file, self.example, self.tool, self.where) if part)
        message = f"{where}: {self.message}" if where else self.message
        return {"level": self.level, "code": self.code, "where": where, "message": message}


class FindingsTable:
    """Findings as a table, errors first: text when printed, HTML in a notebook. At most `limit` rows are shown."""

    def __init__(self, findings: Iterable[Finding], limit: int = 60):
        self.findings = sorted(findings, key=lambda finding: LEVELS.index(finding.level))
        self.limit = limit

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def summary(self) -> str:
        counts = Counter(finding.level for finding in self.findings)
        parts = [f"{counts[level]} {level}{'s' * (counts[level] != 1 and level != 'info')}" for level in LEVELS]
        return (
            ", ".join(part for part, level in zip(parts, LEVELS, strict=True) if counts[level]) or "nothing to report"
        )

    def __len__(self) -> int:
        return len(self.findings)

    def _rest(self) -> str:
        hidden = Counter(finding.level for finding in self.findings[self.limit :])
        return (
            "… and " + ", ".join(f"{hidden[level]} more of level {level}" for level in LEVELS if hidden[level])
            if hidden
            else ""
        )

    def __str__(self) -> str:
        lines = [str(finding) for finding in self.findings[: self.limit]]
        return "\n".join([*lines, *([self._rest()] if self._rest() else []), self.summary])

    def columns(self, widest: int = 60) -> str:
        """The findings in columns of text, the last `widest` characters of each, and the whole message."""
        shown = self.findings[: self.limit]
        cells = [[f.level, f.file, f.example, f.tool, f.where] for f in shown]
        cells = [[cell if len(cell) <= widest else "…" + cell[1 - widest :] for cell in row] for row in cells]
        widths = [max(map(len, column)) for column in zip(("level", "file", "row", "tool", "where"), *cells)]
        used = [i for i, column in enumerate(zip(*cells)) if any(column)]
        rows = [["level", "file", "row", "tool", "where"], *cells] if shown else []
        messages = ["what to do", *(finding.message for finding in shown)]
        lines = ["  ".join([*(row[i].ljust(widths[i]) for i in used), message]) for row, message in zip(rows, messages)]
        return "\n".join([*lines, *([self._rest()] if self._rest() else []), self.summary])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        columns = ("level", "file", "example", "tool", "where", "message")
        head = "".join(f"<th style='text-align:left'>{column}</th>" for column in columns)
        rows = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(getattr(finding, column))}</td>"
                             for column in columns) + "</tr>"
            for finding in self.findings[: self.limit]
        )  # fmt: skip
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else ""
        return f"{table}<p>{html.escape(' '.join(filter(None, [self._rest(), self.summary])))}</p>"


def reporter(findings: list[Finding], file: str = "", example: str = "", tool: str = "") -> Callable:
    """A function report(level, code, where, message, tool=…) that adds to `findings`."""

    def report(level, code, where, message, tool=tool):
        findings.append(Finding(level, code, message, file, example, tool, where))

    return report


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the known one that is close to it, if there is one."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f' Did you mean "{close[0]}"?' if close else ""
