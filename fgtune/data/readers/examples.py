"""Examples of files as chat rows, whichever public shape they have.

An example is a chat row `{"id", "tools", "messages"}` throughout: `messages` are in OpenAI's form and begin with the
developer turn, and a turn that is not learned has `"weight": 0`. Where the files give splits of their own, it has
`"split"`: train, valid or test.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...format.findings import Finding
from ...format.lint import lint_examples, repair_examples
from ...format.tools import repair_tools
from ..conflicts import lint_conflicts
from ..developer_turn import lint_developer_turn
from .anthropic import from_anthropic, has_blocks
from .chat import from_chat
from .completion import from_completion
from .files import SUFFIXES, DataError, json_files, other_files, read_csv, read_json
from .google import from_google, from_table
from .langchain import from_langchain, is_langchain
from .official import file_splits, rows_of_splits, take_mark
from .original import from_original
from .parts import Note
from .sharegpt import from_hermes, from_sharegpt, has_tags
from .tools import relative_name
from .xlam import from_xlam


@dataclass(frozen=True)
class Shape:
    """A public shape of rows: its name in messages, the keys that show it, a further sign, and its reader."""

    name: str
    keys: tuple[str, ...]
    read: Callable[[dict, list[dict], Note], dict]
    sign: Callable[[dict], bool] | None = None

    def fits(self, item: dict) -> bool:
        """Whether a row has this shape."""
        if not all(key in item for key in self.keys):
            return False
        return self.sign is None or (isinstance(item["messages"], list) and self.sign(item))


SHAPES = (  # the first that fits reads the row
    Shape("the original project's format", ("userQuery",), from_original),
    Shape("LangChain messages", ("messages",), from_langchain, is_langchain),
    Shape("messages with Anthropic's content blocks", ("messages",), from_anthropic, has_blocks),
    Shape("messages with Hermes' tags", ("messages",), from_hermes, has_tags),
    Shape("messages as OpenAI, TRL and mlx-lm write them", ("messages",), from_chat),
    Shape("prompt and completion", ("prompt", "completion"), from_completion),
    Shape("ShareGPT conversations", ("conversations",), from_sharegpt),
    Shape("xLAM's query and answers", ("query", "answers"), from_xlam),
    Shape("Google's tutorial", ("user_content", "tool_name"), from_google),
)


def read_examples(path: Path, tools: list[dict]) -> list[dict]:
    """Chat rows of an examples file, or of a folder of them. Raises DataError for the first thing it cannot read."""
    rows, _, errors = _read(path, tools)
    if errors:
        raise errors[0]
    return rows


def load_examples(
    path: Path,
    tools: list[dict],
    count_tokens: Callable[[str], int] | None = None,
    max_seq_length: int | None = None,
) -> tuple[list[dict], list[Finding]]:
    """The chat rows of `path` in canonical form, and all that there is to say about them.

    `tools` are the tools of rows without their own. The findings name the shapes, the keys that are not used, what was
    repaired, and what is wrong: each row that cannot be read is left out and is an error. `count_tokens` gives the
    length of a rendered row, which `max_seq_length` bounds. Raises DataError where there is no file at all.
    """
    rows, findings, errors = _read(path, tools)
    findings += [Finding("error", "unreadable", error.message, error.file, error.row) for error in errors]
    rows, notes = _repair(rows, path.name)
    length = {"count_tokens": count_tokens, "max_seq_length": max_seq_length}
    lint = lint_examples(rows, tools, source=path.name, **length)
    return rows, findings + notes + lint + lint_conflicts(rows, path.name) + lint_developer_turn(rows, path.name)


def _repair(rows: list[dict], source: str) -> tuple[list[dict], list[Finding]]:
    """The rows with arguments and tools repaired; equal lists of tools become one object."""
    bare, findings = repair_examples([{**row, "tools": None} for row in rows], source)
    known: dict[str, list[dict]] = {}
    texts: dict[int, str] = {}
    for row, new in zip(rows, bare):
        tools = row["tools"]
        text = texts.setdefault(id(tools), "") or json.dumps(tools, sort_keys=True)
        texts[id(tools)] = text
        if text not in known:
            known[text], notes = repair_tools(tools, source)
            findings += [note for note in notes if note not in findings]
        new["tools"] = known[text]
    return bare, findings


def _read(path: Path, tools: list[dict]) -> tuple[list[dict], list[Finding], list[DataError]]:
    """Rows, findings of the level "info", and errors."""
    files = json_files(path)
    if not files:
        raise DataError(f"{path} holds no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file with examples")
    rows, findings, errors = [], [], []
    splits = file_splits(files, path)
    for file in files:
        name = relative_name(file, path)
        if splits and file not in splits:
            level = "info" if "tool" in file.stem.casefold() else "warning"
            text = "The file is not read: the others are named after the splits train, valid and test."
            findings.append(Finding(level, "file-not-read", text, name))
            continue
        try:
            rows += _read_file(file, name, splits.get(file), tools, findings, errors)
        except DataError as error:
            errors.append(error)
    findings += _name_splits(rows, path.name)
    for file in other_files(path, SUFFIXES):
        findings.append(Finding("info", "file-not-read", "The file is not read.", relative_name(file, path)))
    for name, count in Counter(row["id"] for row in rows).items():
        if count > 1:
            errors.append(DataError(f"the id {name!r} is there {count} times: renumber the rows", path.name))
    return rows, findings, errors


def _name_splits(rows: list[dict], source: str) -> list[Finding]:
    """Says which splits the rows are given in; an id that several splits have gets the split's name in front."""
    given = Counter(row["split"] for row in rows if "split" in row)
    if not given:
        return []
    owners = defaultdict(set)
    for row in rows:
        owners[row["id"]].add(row.get("split", "train"))
    for row in rows:
        if len(owners[row["id"]]) > 1:
            row["id"] = f"{row.get('split', 'train')}-{row['id']}"
    counts = " and ".join(f"{given[name]} {name}" for name in ("train", "valid", "test") if given[name])
    return [Finding("info", "split", f"{counts} examples are given as such: they stay in their splits.", source)]


def _read_file(file: Path, name: str, split: str | None, tools: list[dict], findings: list, errors: list) -> list[dict]:
    """The rows of one file, which is `split` as a whole unless it is None; adds to `findings` and `errors`.

    Raises DataError where the file as a whole is wrong.
    """
    shapes, unused, rows = Counter(), Counter(), []
    for number, (given, item) in enumerate(_items(file, name), 1):
        mark, item = take_mark(item)
        given = split or given or mark
        try:
            shape = shape_of(item)
            row = shape.read(item, tools, lambda key: unused.update([key]))
        except DataError as error:
            errors.append(error.at(name, f"example {number}"))
            continue
        except RecursionError:
            errors.append(DataError("the row nests too deeply", name, f"example {number}"))
            continue
        shapes[shape.name] += 1
        own = item.get("id")
        stem = name.rpartition(".")[0] or name
        rows.append({"id": f"{stem}-{number:04d}" if own is None else str(own), **row})
        if given:
            rows[-1]["split"] = given
    for shape, count in shapes.items():
        findings.append(Finding("info", "shape", f"{count} rows read as {shape}.", name))
    if unused:
        keys = ", ".join(f'"{key}"' for key in sorted(unused))
        findings.append(Finding("info", "not-used", f"Read, but not used: {keys}.", name))
    return rows


def _items(file: Path, name: str) -> list[tuple[str | None, Any]]:
    """(split that the file's keys give, row) of all rows."""
    if file.suffix.lower() == ".csv":
        try:
            value: Any = from_table(read_csv(file))
        except DataError as error:
            raise error.at(name, error.row) if not error.file else error from None
    else:
        value = read_json(file)
    if isinstance(value, dict) and not any(shape.fits(value) for shape in SHAPES):
        try:
            rows = rows_of_splits(value)
        except DataError as error:
            raise error.at(name) from None
        if rows:
            return rows
        value = value.get("examples", value.get("data", [value]))
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not value:
        raise DataError("expected a list of examples", name)
    return [(None, item) for item in value]


def shape_of(item: Any) -> Shape:
    """The shape of a row. Raises DataError for one that is not read."""
    if not isinstance(item, dict):
        raise DataError(f"expected an object, found {type(item).__name__}")
    for shape in SHAPES:
        if shape.fits(item):
            return shape
    if "text" in item:
        raise DataError('"text" holds rows in which a chat template is already applied: bring them as "messages"')
    known = ", ".join(sorted(map(str, item))) or "nothing"
    raise DataError(f'neither "userQuery" nor "messages" is there (found {known})')
