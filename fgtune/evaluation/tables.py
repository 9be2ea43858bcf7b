"""Tables as text and as HTML."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from html import escape


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, each as wide as its widest cell; a Chinese or Japanese character is two columns wide."""
    table = [head, *rows]
    widths = [max(_width(row[i]) for row in table) for i in range(len(head))]
    lines = ("  ".join(cell + " " * (w - _width(cell)) for cell, w in zip(row, widths)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are shown as they are, with or without (empty) a head."""
    left = "style='text-align:left'"
    top = "".join(f"<th {left}>{escape(cell)}</th>" for cell in head)
    body = ("".join(f"<td {left}>{escape(cell)}</td>" for cell in row) for row in rows)
    return "<table>" + (f"<tr>{top}</tr>" if head else "") + "".join(f"<tr>{row}</tr>" for row in body) + "</table>"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
