"""Docstrings in Google's, numpy's and reST's style: the summary, and what is said of each argument."""

from __future__ import annotations

import inspect
import re

_REST = re.compile(r":(?:param|parameter|arg|argument|key|keyword)\s+(?:[^:]*\s)?\*{0,2}(\w+)\s*:\s*(.*)")
_FIELD = re.compile(r":\w+[^:]*:")
_SECTION = re.compile(r"(Args|Arguments|Parameters|Keyword Args|Keyword Arguments|Other Parameters|Params)\s*:?\s*$")
_HEADING = re.compile(r"[A-Z][A-Za-z ]*:\s*$")
_GOOGLE = re.compile(r"\*{0,2}(\w+)\s*(?:\((?:[^()]|\([^()]*\))*\))?\s*:(?:\s+|$)(.*)")
_NUMPY = re.compile(r"\*{0,2}(\w+(?:\s*,\s*\*{0,2}\w+)*)\s*(?::.*)?$")


def parse_docstring(text: str | None) -> tuple[str, dict[str, str]]:
    """The first paragraph as one line, and the descriptions of the arguments by name."""
    lines = inspect.cleandoc(text or "").splitlines()
    summary = []
    for i, line in enumerate(lines):
        if not line.strip() or _FIELD.match(line) or _is_heading(lines, i):
            break
        summary.append(line.strip())
    found: dict[str, list[str]] = {}
    names: list[str] = []  # whose description goes on
    section, depth = "", 0  # the style of the section that the line is in, and the indentation of its entries
    for i, line in enumerate(lines):
        own = len(line) - len(line.lstrip())
        match = _REST.match(line.strip())
        if match:
            names, section, depth = [match[1]], "rest", own
            found[match[1]] = [match[2]]
        elif _is_heading(lines, i):
            known = _SECTION.match(line.strip())
            section, names, depth = ("numpy" if _is_ruled(lines, i) else "google") if known else "", [], -1
        elif not line.strip() or set(line.strip()) == {"-"} or not section:
            names = names if section == "numpy" or section == "google" else []
        else:
            depth = own if depth < 0 else depth
            entry = own <= depth and {"google": _GOOGLE, "numpy": _NUMPY}.get(section)
            if entry and (match := entry.match(line.strip())):
                names = [name.strip(" *") for name in match[1].split(",")]
                found.update({name: [match[2] if section == "google" else ""] for name in names})
            elif own > depth:
                for name in names:
                    found[name].append(line.strip())
            else:
                names, section = [], ""
    return " ".join(summary), {name: " ".join(filter(None, parts)) for name, parts in found.items()}


def _is_ruled(lines: list[str], i: int) -> bool:
    rule = lines[i + 1].strip() if i + 1 < len(lines) else ""
    return len(rule) > 2 and set(rule) == {"-"}


def _is_heading(lines: list[str], i: int) -> bool:
    """Whether a section begins in line `i`: underlined, or words and a colon with something indented below."""
    if _is_ruled(lines, i):
        return True
    below = next((line for line in lines[i + 1 :] if line.strip()), "")
    indent = len(lines[i]) - len(lines[i].lstrip())
    return bool(_HEADING.match(lines[i].strip())) and len(below) - len(below.lstrip()) > indent
