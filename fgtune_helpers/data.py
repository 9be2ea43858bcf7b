"""Stage 01: tools and examples become linted rows of tokens, in splits without leaks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from fgtune.data.augment import augment_examples
from fgtune.data.examples import first_calls, first_query, label
from fgtune.data.readers.examples import load_examples
from fgtune.data.readers.tools import load_tools
from fgtune.data.rows import ShownRow
from fgtune.data.rows import tokenize as row_of
from fgtune.data.split_audit import audit_split
from fgtune.data.splits import split_examples
from fgtune.data.verbatim import verbatim_arguments
from fgtune.evaluation.coverage import refused_calls as calls_refused
from fgtune.format.findings import FindingsTable
from fgtune.runtimes.constrained import Grammar

from .stage import resolve_path

__all__ = ["about", "audit_split", "augment_examples", "read_examples", "read_tools", "refused_calls"]
__all__ += ["split_examples", "tokenize", "verbatim_arguments"]


Read = tuple[list[dict], FindingsTable]  # what a file holds, and what lint says


def read_tools(path: str) -> Read:
    """The tools of a file or a folder, normalised, as `{"name", "description", "parameters"}`; and what lint says."""
    tools, findings = load_tools(resolve_path(path))
    return tools, FindingsTable(findings)


def read_examples(path: str, tools: list[dict], tokenizer=None, max_seq_length=None) -> Read:
    """The examples of a file or a folder as normalised chat rows `{"id", "tools", "messages"}`; and what lint says."""
    count = tokenizer and (lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    examples, findings = load_examples(resolve_path(path), tools, count, max_seq_length)
    return examples, FindingsTable(findings)


def about(example: dict) -> SimpleNamespace:
    """What an example asks (`query`, text), what it answers first (`calls`, `Call`s; none: a text) and the name of the
    tool it is about (`label`)."""
    return SimpleNamespace(query=first_query(example), calls=first_calls(example), label=label(example))


def tokenize(example: dict, tokenizer, max_seq_length: int | None = None) -> ShownRow:
    """The row of an example: `ids`, `targets` (True: learned) and the length of its `prefix`. Raises DataError."""
    return ShownRow(**vars(row_of(example, tokenizer, max_seq_length)), tokenizer=tokenizer)


def refused_calls(model_dir: Path, verbatim: Iterable[str], examples: Iterable[dict], tokenizer) -> list[dict]:
    """The examples whose gold calls constrained decoding with these `verbatim` arguments would not let through."""
    return calls_refused(Grammar(model_dir, verbatim), examples, tokenizer)
