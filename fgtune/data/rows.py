"""Token rows with a target mask, and held-out cases."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..format.calls import Call
from ..format.findings import SchemaError
from ..format.template import render, render_parts
from ..format.tokens import GEMMA_TOKENS
from .examples import first_calls, first_query, first_turn, is_learned
from .readers.files import DataError, read_json

TURN_START = GEMMA_TOKENS[105]
MODEL_TURN = f"{TURN_START}model\n"


@dataclass(frozen=True)
class Row:
    """A tokenised dialogue: `ids`; `targets` (True: this token is learned); `prefix` (tokens of the developer turn).

    `head` holds the first ids where rows share them, one object for all of them; `own` and `learned` go on from there.
    """

    own: tuple[int, ...]
    learned: tuple[bool, ...]
    prefix: int
    head: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """The token ids, put together anew each time."""
        return self.head + self.own

    @property
    def targets(self) -> tuple[bool, ...]:
        """Whether each token is learned; those of the head are not."""
        return (False,) * len(self.head) + self.learned


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
    what the text gains between its prompt and its end. The developer turn is tokenised once for all rows that share it.
    """
    messages, tools = example["messages"], example["tools"]
    first, rest = render_parts(messages, tools)
    spans = _learned_spans(messages, tools, rest)
    head, skip = (), len(first)
    if rest.startswith(TURN_START) and _turns_are_apart(tokenizer):
        head, skip = _head_ids(tokenizer, first), 0
    encoded = tokenizer(rest if head else first + rest, add_special_tokens=False, return_offsets_mapping=True)
    own, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if max_seq_length and len(head) + len(own) > max_seq_length:
        raise DataError(
            f"{example['id']} has {len(head) + len(own)} tokens, max_seq_length is {max_seq_length}: shorten it or "
            "raise the limit"
        )
    learned = tuple(any(a <= begin - skip < b for a, b in spans) for begin, _ in offsets)
    if not any(learned):
        raise DataError(f"{example['id']} has no assistant turn: nothing to learn from it")
    prefix = _head_ids(tokenizer, first if messages[0]["role"] == "developer" else "<bos>")
    if (head or tuple(own))[: len(prefix)] != prefix:
        raise DataError(f"{example['id']}: the developer turn is no token prefix of the dialogue")
    return Row(tuple(map(_IDS.setdefault, own, own)), learned, len(prefix), head)


_IDS: dict[int, int] = {}  # one object for each token id: rows by the hundred thousand hold them


@lru_cache(maxsize=64)
def _head_ids(tokenizer, head: str) -> tuple[int, ...]:
    """Token ids of a developer turn, the same for nearly all rows."""
    ids = tokenizer(head, add_special_tokens=False)["input_ids"]
    return tuple(map(_IDS.setdefault, ids, ids))


@lru_cache(maxsize=8)
def _turns_are_apart(tokenizer) -> bool:
    """Whether a text may be cut before `<start_of_turn>`: its parts then have the same ids as the whole.

    Added tokens are found before all else, and what stands between them is tokenised piece by piece. So it holds where
    the marker is one of them, takes no space from what is before it, and no other one can reach across the cut, which
    has a line break on its left.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    marker = next((token for token in added if token.content == TURN_START), None)
    reaches = any(f"\n{TURN_START[0]}" in token.content for token in added)
    return bool(marker and not marker.lstrip and not marker.normalized and not reaches)


def _learned_spans(messages: list[dict], tools: list[dict], text: str) -> list[tuple[int, int]]:
    """(begin, end) of the learned turns in the text that follows the first turn."""
    learned = [k for k, message in enumerate(messages) if is_learned(message)]
    if learned == [len(messages) - 1] and not any(m["role"] in ("assistant", "tool") for m in messages[:-1]):
        # no text holds a control token, so the only turn of the model begins behind its marker
        return [(text.index(MODEL_TURN) + len(MODEL_TURN), len(text))]
    starts = {k: len(render_parts(messages[:k], tools, add_generation_prompt=True)[1]) for k in learned}
    return [(starts[k], _turn_end(messages, k, tools, text)) for k in learned]


def _turn_end(messages: list[dict], k: int, tools: list[dict], text: str) -> int:
    """Where the assistant turn k ends: its calls with `<start_function_response>`, or its text with `<end_of_turn>`."""
    upto = render_parts(messages[: k + 1], tools)[1]
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
    shared: dict[int, tuple[list, str]] = {}  # the tools of many rows are one object, which is written once

    def text_of(key: str, value: object) -> str:
        if key != "tools":
            return json.dumps(value, ensure_ascii=False)
        if id(value) not in shared:
            shared[id(value)] = value, json.dumps(value, ensure_ascii=False)
        return shared[id(value)][1]

    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            parts = (f"{json.dumps(key, ensure_ascii=False)}: {text_of(key, value)}" for key, value in row.items())
            file.write(f"{{{', '.join(parts)}}}\n")


def load_rows(folder: Path, split: str, tokenizer) -> list[Row]:
    """The tokenised rows of `<folder>/<split>.jsonl` as stage 01 wrote it."""
    return [tokenize(example, tokenizer) for example in read_json(folder / f"{split}.jsonl")]


def load_cases(folder: Path, split: str) -> list[Case]:
    """The cases of `<folder>/<split>.jsonl` as stage 01 wrote it."""
    return [case_of(example) for example in read_json(folder / f"{split}.jsonl")]


@dataclass(frozen=True, repr=False)
class ShownRow(Row):
    """A tokenised dialogue that shows what follows its shared prefix in a notebook, learned tokens coloured."""

    tokenizer: Any = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"{len(self.ids)} tokens, {sum(self.targets)} of them learned"

    def _repr_html_(self) -> str:
        return mask_html(self, self.tokenizer, skip=self.prefix)


def mask_html(row: Row, tokenizer, skip: int = 0) -> str:
    """The tokens of a row after the first `skip` as HTML: learned ones on a coloured ground."""
    from html import escape

    parts = []
    for token, learned in list(zip(row.ids, row.targets))[skip:]:
        text = escape(tokenizer.decode([token], skip_special_tokens=False)).replace("\n", "↵<br>")
        style = "background:#cdeccd;color:#143d14" if learned else "color:#888"
        parts.append(f'<span style="{style};border-right:1px solid #fff">{text}</span>')
    return f'<div style="font-family:monospace;line-height:1.6;white-space:pre-wrap">{"".join(parts)}</div>'
