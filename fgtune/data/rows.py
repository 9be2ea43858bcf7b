"""Token rows with a target mask, and held-out cases."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..format.calls import Call
from ..format.findings import SchemaError
from ..format.template import render
from .examples import first_calls, first_query, first_turn, is_learned
from .readers.files import DataError, read_json


@dataclass(frozen=True)
class Row:
    """A tokenised dialogue: `ids`; `targets` (True: this token is learned); `prefix` (tokens of the developer turn)."""

    ids: tuple[int, ...]
    targets: tuple[bool, ...]
    prefix: int


@dataclass(frozen=True)
class Case:
    """A held-out case: `prompt` (rendered, ends where the model begins), expected `calls` (none: a text answer).

    `novelty` says whether these calls are trained on (see `novelty`); empty where it is not known, or without calls.
    """

    id: str
    query: str
    prompt: str
    calls: tuple[Call, ...]
    text: str
    tools: tuple[dict, ...]
    novelty: str = ""


def case_of(example: dict) -> Case:
    """The held-out case of an example: everything before the first learned turn is the prompt."""
    turn = first_turn(example)
    if turn is None:
        raise DataError(f"{example['id']} has no assistant turn: nothing to score")
    prompt = render(example["messages"][:turn], example["tools"], add_generation_prompt=True)
    answer = example["messages"][turn].get("content") or ""
    query, calls, tools = first_query(example), first_calls(example), tuple(example["tools"])
    return Case(example["id"], query, prompt, calls, answer, tools, example.get("novelty", ""))


def tokenize(example: dict, tokenizer, max_seq_length: int | None = None) -> Row:
    """Tokenise a dialogue; targets are all assistant turns but those of weight 0. Raises DataError when it is too long.

    `messages[:k]` with the generation prompt is an exact prefix of the whole text, so each assistant turn is
    what the text gains between its prompt and its end.
    """
    messages, tools = example["messages"], example["tools"]
    text = render(messages, tools)
    spans = []
    for k, message in enumerate(messages):
        if is_learned(message):
            start = len(render(messages[:k], tools, add_generation_prompt=True))
            spans.append((start, _turn_end(messages, k, tools, text)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if max_seq_length and len(ids) > max_seq_length:
        raise DataError(
            f"{example['id']} has {len(ids)} tokens, max_seq_length is {max_seq_length}: shorten it or raise the limit"
        )
    targets = [any(a <= begin < b for a, b in spans) for begin, _ in offsets]
    if not any(targets):
        raise DataError(f"{example['id']} has no assistant turn: nothing to learn from it")
    head = render(messages[:1], tools) if messages[0]["role"] == "developer" else "<bos>"
    prefix = _head_ids(tokenizer, head)
    if tuple(ids[: len(prefix)]) != prefix:
        raise DataError(f"{example['id']}: the developer turn is no token prefix of the dialogue")
    return Row(tuple(ids), tuple(targets), len(prefix))


@lru_cache(maxsize=64)
def _head_ids(tokenizer, head: str) -> tuple[int, ...]:
    """Token ids of a developer turn, the same for nearly all rows."""
    return tuple(tokenizer(head, add_special_tokens=False)["input_ids"])


def _turn_end(messages: list[dict], k: int, tools: list[dict], text: str) -> int:
    """Where the assistant turn k ends: its calls with `<start_function_response>`, or its text with `<end_of_turn>`."""
    upto = render(messages[: k + 1], tools)
    if text.startswith(upto):
        return len(upto)
    # a call turn that tool results follow: the marker opens the first response
    common = upto.removesuffix("<start_function_response>")
    if not text.startswith(common):
        raise SchemaError("the dialogue does not render turn by turn")
    end = len(common)
    return end + len("<start_function_response>") if text[end:].startswith("<start_function_response>") else end


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """One JSON object a line: the form that mlx-lm and TRL read."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def load_rows(folder: Path, split: str, tokenizer) -> list[Row]:
    """The tokenised rows of `<folder>/<split>.jsonl` as stage 01 wrote it."""
    return [tokenize(example, tokenizer) for example in read_json(folder / f"{split}.jsonl")]


def load_cases(folder: Path, split: str) -> list[Case]:
    """The cases of `<folder>/<split>.jsonl` as stage 01 wrote it."""
    return [case_of(example) for example in read_json(folder / f"{split}.jsonl")]


def mask_html(row: Row, tokenizer, skip: int = 0) -> str:
    """The tokens of a row after the first `skip` as HTML: learned ones on a coloured ground."""
    from html import escape

    parts = []
    for token, learned in list(zip(row.ids, row.targets))[skip:]:
        text = escape(tokenizer.decode([token], skip_special_tokens=False)).replace("\n", "↵<br>")
        style = "background:#cdeccd;color:#143d14" if learned else "color:#888"
        parts.append(f'<span style="{style};border-right:1px solid #fff">{text}</span>')
    return f'<div style="font-family:monospace;line-height:1.6;white-space:pre-wrap">{"".join(parts)}</div>'
