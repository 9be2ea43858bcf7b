"""From the user's files to training rows: reading, splitting without leaks, tokenising with a target mask.

An example is a chat row `{"id", "tools", "messages"}` throughout: `tools` are plain
`{"name", "description", "parameters"}`, `messages` are in OpenAI form and begin with the developer turn.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .calls import Call
from .prompt import TRIGGER, SchemaError, render


class DataError(ValueError):
    """The user's tools or examples cannot be read; the message names the file, the place and the remedy."""


@dataclass(frozen=True)
class Row:
    """A tokenised dialogue: `ids`; `targets` (True: this token is learned); `prefix` (tokens of the developer turn)."""

    ids: tuple[int, ...]
    targets: tuple[bool, ...]
    prefix: int


@dataclass(frozen=True)
class Case:
    """A held-out case: `prompt` (rendered, ends where the model begins), expected `calls` (none: a text answer)."""

    id: str
    query: str
    prompt: str
    calls: tuple[Call, ...]
    text: str
    tools: tuple[dict, ...]


# ---------------------------------------------------------------- reading


def read_json(path: Path) -> Any:
    """Parsed JSON, or a list of the lines of a `.jsonl` file. Raises DataError with line and column."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    if path.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                rows.append(_loads(line, path, number))
        return rows
    return _loads(text, path)


def _loads(text: str, path: Path, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path.name}, line {line or error.lineno}, column {error.colno}: {error.msg}") from None


def json_files(path: Path) -> list[Path]:
    """The JSON and JSONL files of a folder, in order of name; or the file that `path` is."""
    return sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl")) if path.is_dir() else [path]


def read_tools(path: Path) -> list[dict]:
    """Tools of a JSON file (a list, one tool, or {"tools": […]}) or of a folder of such files, in order of name."""
    files = json_files(path)
    if not files:
        raise DataError(f"{path} holds no .json file with tools")
    tools = []
    for file in files:
        value = read_json(file)
        if isinstance(value, dict):
            value = value.get("tools", [value])
        if not isinstance(value, list) or not value:
            raise DataError(f'{file.name}: expected a list of tools [{{"name", "description", "parameters"}}]')
        for i, tool in enumerate(value):
            tool = tool.get("function", tool) if isinstance(tool, dict) else tool
            if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
                raise DataError(f'{file.name}: tool {i + 1} has no "name"')
            tools.append(tool)
    return tools


def read_examples(path: Path, tools: list[dict]) -> list[dict]:
    """Chat rows of an examples file, or of a folder of them: the seed's format or rows with "messages".

    Raises DataError for anything else.
    """
    files = json_files(path)
    if not files:
        raise DataError(f"{path} holds no .json or .jsonl file with examples")
    rows = [row for file in files for row in _rows_of(file, tools)]
    doubled = [i for i, n in Counter(row["id"] for row in rows).items() if n > 1]
    if doubled:
        raise DataError(
            f"{path.name}: the id {doubled[0]!r} is there {len([r for r in rows if r['id'] == doubled[0]])} times"
        )
    return rows


def _rows_of(file: Path, tools: list[dict]) -> list[dict]:
    value = read_json(file)
    if isinstance(value, dict):
        value = value.get("examples", value.get("data", [value]))
    if not isinstance(value, list) or not value:
        raise DataError(f"{file.name}: expected a list of examples")
    rows = []
    for i, item in enumerate(value):
        where = f"{file.name}, example {i + 1}"
        if not isinstance(item, dict):
            raise DataError(f"{where}: expected an object, found {type(item).__name__}")
        if "messages" in item:
            row = _from_chat(item, tools, where)
        elif "userQuery" in item:
            row = _from_seed(item, tools, where)
        else:
            known = ", ".join(sorted(item)) or "nothing"
            raise DataError(f'{where}: neither "userQuery" nor "messages" is there (found {known})')
        rows.append({"id": str(item.get("id", f"{file.stem}-{i + 1:04d}")), **row})
    return rows


_SEED_KEYS = {"id", "userQuery", "expectedToolCalls", "toolResponses", "expectedFinalResponse"}


def _from_seed(item: dict, tools: list[dict], where: str) -> dict:
    unknown = set(item) - _SEED_KEYS
    if unknown:
        raise DataError(f"{where}: {sorted(unknown)[0]!r} is not understood (known: {', '.join(sorted(_SEED_KEYS))})")
    query, calls, final = item["userQuery"], item.get("expectedToolCalls") or [], item.get("expectedFinalResponse")
    if not isinstance(query, str) or not query.strip():
        raise DataError(f'{where}: "userQuery" is empty')
    if not calls and not final:
        raise DataError(f'{where}: no "expectedToolCalls" and no "expectedFinalResponse": nothing to learn')
    messages = [{"role": "developer", "content": TRIGGER}, {"role": "user", "content": query}]
    if calls:
        for call in calls:
            if not isinstance(call, dict) or not isinstance(call.get("name"), str):
                raise DataError(f'{where}: a call without a "name"')
        messages.append(_assistant_calls(calls))
    responses = item.get("toolResponses") or []
    if responses:
        if len(responses) != len(calls):
            raise DataError(f"{where}: {len(calls)} calls but {len(responses)} tool responses")
        for response in responses:
            if not isinstance(response, dict) or not {"name", "response"} <= set(response):
                raise DataError(f'{where}: a tool response needs "name" and "response"')
            messages.append({"role": "tool", "name": response["name"], "content": response["response"]})
    if final and (responses or not calls):
        messages.append({"role": "assistant", "content": final})
    elif final and calls:
        raise DataError(f'{where}: "expectedFinalResponse" after calls needs "toolResponses" between them')
    return {"tools": tools, "messages": messages}


def _assistant_calls(calls: list[dict]) -> dict:
    functions = [{"name": c["name"], "arguments": c.get("arguments", {})} for c in calls]
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": f} for f in functions]}


def _from_chat(item: dict, tools: list[dict], where: str) -> dict:
    """A row as TRL, mlx-lm and Google's Mobile Actions write it."""
    unknown = set(item) - {"id", "messages", "tools", "metadata"}
    if unknown:
        raise DataError(f"{where}: {sorted(unknown)[0]!r} is not understood (known: id, tools, messages, metadata)")
    own = item.get("tools")
    if isinstance(own, str):  # TRL keeps tools as a JSON string
        own = json.loads(own)
    own = [t.get("function", t) if isinstance(t, dict) else t for t in own] if own else tools
    messages, roles = [], {"system": "developer", "developer": "developer", "user": "user", "model": "assistant",
                           "assistant": "assistant", "tool": "tool"}  # fmt: skip
    for j, message in enumerate(item["messages"]):
        spot = f"{where}, message {j + 1}"
        if not isinstance(message, dict) or message.get("role") not in roles:
            raise DataError(f"{spot}: the role must be one of {', '.join(roles)}")
        unknown = {k for k, v in message.items() if v is not None} - {
            "role", "content", "tool_calls", "name", "tool_call_id", "refusal"}  # fmt: skip
        if unknown:
            raise DataError(f"{spot}: {sorted(unknown)[0]!r} is not understood")
        new = {"role": roles[message["role"]]}
        for key in ("content", "name"):
            if message.get(key) is not None:
                new[key] = message[key]
        if message.get("tool_calls"):
            new["tool_calls"] = []
            for call in message["tool_calls"]:
                function = call.get("function", call)
                arguments = function.get("arguments") or {}
                if isinstance(arguments, str):
                    try:
                        arguments = json.loads(arguments)
                    except json.JSONDecodeError:
                        raise DataError(f"{spot}: the arguments of {function.get('name')} are no JSON") from None
                # Mobile Actions writes every argument of every tool, null where it is not used
                arguments = {k: v for k, v in arguments.items() if v is not None}
                new["tool_calls"].append(
                    {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
                )
        messages.append(new)
    if not messages or messages[0]["role"] != "developer":
        messages.insert(0, {"role": "developer", "content": TRIGGER})
    _name_tool_results(messages, item["messages"])
    return {"tools": own, "messages": messages}


def _name_tool_results(messages: list[dict], original: list[dict]) -> None:
    """Give tool results the name of the call that they answer, by its id or by their order."""
    names = {c.get("id"): c.get("function", c).get("name") for m in original for c in m.get("tool_calls") or []}
    by_id = {id(n): o for n, o in zip(messages[len(messages) - len(original) :], original)}
    waiting: list[str] = []
    for message in messages:
        if message.get("tool_calls"):
            waiting = [c["function"]["name"] for c in message["tool_calls"]]
        elif message["role"] == "tool" and "name" not in message and not isinstance(message.get("content"), list):
            called = by_id.get(id(message), {}).get("tool_call_id")
            name = names.get(called) or (waiting[0] if waiting else None)
            if name is None:
                raise DataError('a tool result that no call asked for: give it a "name"')
            message["name"] = name
        if message["role"] == "tool" and message.get("name") in waiting:
            waiting.remove(message["name"])


def plain_tools(tools: list[dict]) -> list[dict]:
    """Tools as `{"name", "description", "parameters"}`, taken out of OpenAI's `{"type", "function"}` where needed."""
    return [tool.get("function", tool) for tool in tools]


# ---------------------------------------------------------------- what an example asks and answers


def first_query(example: dict) -> str:
    """The first user message."""
    return next((str(m.get("content", "")) for m in example["messages"] if m["role"] == "user"), "")


def first_calls(example: dict) -> tuple[Call, ...]:
    """The calls of the first assistant turn; empty when it answers in text."""
    turn = next((m for m in example["messages"] if m["role"] == "assistant"), {})
    return tuple(Call(c["function"]["name"], c["function"]["arguments"]) for c in turn.get("tool_calls") or [])


def leaves(value: Any, schema: dict, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """(path, value) of every string and whole number that the schema does not enumerate."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, schema.get("properties", {}).get(name, {}), (*path, name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from leaves(inner, schema.get("items", {}), (*path, i))
    elif isinstance(value, str | int) and not isinstance(value, bool) and "enum" not in schema:
        yield path, value


def label(example: dict) -> str:
    """What an example is about, for stratifying: its tool, `several`, or `no call`."""
    names = {call.name for call in first_calls(example)}
    return "no call" if not names else names.pop() if len(names) == 1 else "several tools"


def case_of(example: dict) -> Case:
    """The held-out case of an example: everything before the first assistant turn is the prompt."""
    turn = next(i for i, m in enumerate(example["messages"]) if m["role"] == "assistant")
    prompt = render(example["messages"][:turn], example["tools"], add_generation_prompt=True)
    answer = example["messages"][turn].get("content") or ""
    return Case(
        example["id"], first_query(example), prompt, first_calls(example), answer, tuple(plain_tools(example["tools"]))
    )


# ---------------------------------------------------------------- splits


def group_examples(examples: list[dict], similarity: float) -> list[list[int]]:
    """Indices of examples that belong together: the same calls, or queries at least `similarity` (0 to 100) alike."""
    from rapidfuzz import fuzz, process, utils

    parent = list(range(len(examples)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[str, int] = {}
    for i, example in enumerate(examples):
        calls = first_calls(example)
        if calls:  # a paraphrase asks for the same calls
            key = json.dumps([[c.name, c.arguments] for c in calls], sort_keys=True).casefold()
            parent[find(i)] = find(seen.setdefault(key, i))
    queries = [utils.default_process(first_query(e)) for e in examples]
    alike = process.cdist(queries, queries, scorer=fuzz.token_sort_ratio, score_cutoff=similarity, dtype=float)
    for i, j in zip(*(alike > 0).nonzero()):
        if i < j:
            parent[find(int(j))] = find(int(i))
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(examples)):
        groups[find(i)].append(i)
    return list(groups.values())


def split_examples(
    examples: list[dict], *, valid: int, test: int, similarity: float, seed: int
) -> dict[str, list[dict]]:
    """Seeded train/valid/test split by group, stratified by tool. Raises DataError when too few groups are there."""
    if len(examples) < 3 * (valid + test) // 2 or len(examples) < valid + test + 2:
        raise DataError(
            f"{len(examples)} examples are too few for {test} test and {valid} validation cases: "
            "add examples, or lower test_cases and valid_cases"
        )
    rng = random.Random(seed)
    strata: dict[str, list[list[int]]] = defaultdict(list)
    for group in group_examples(examples, similarity):
        strata[Counter(label(examples[i]) for i in group).most_common(1)[0][0]].append(group)
    for groups in strata.values():
        rng.shuffle(groups)
        groups.sort(key=len, reverse=True)  # pop() takes the smallest first, so held-out cases stay varied
    chosen: dict[str, list[int]] = {"test": [], "valid": []}
    sizes = {name: sum(map(len, groups)) for name, groups in strata.items()}
    for split, wanted in (("test", test), ("valid", valid)):
        share = {name: wanted * size / len(examples) for name, size in sizes.items()}
        taken: Counter[str] = Counter()
        while len(chosen[split]) < wanted:
            # the label that is furthest behind its share; it must keep a group for training
            open_ = [
                n for n in sorted(strata) if len(strata[n]) > 1 and len(strata[n][-1]) <= wanted - len(chosen[split])
            ]
            if not open_:
                raise DataError(f"too many examples ask for the same calls to hold out {test} + {valid} of them")
            name = max(open_, key=lambda n: share[n] - taken[n])
            group = strata[name].pop()
            chosen[split] += group
            taken[name] += len(group)
    held = {i for indices in chosen.values() for i in indices}
    chosen["train"] = [i for i in range(len(examples)) if i not in held]
    return {name: [examples[i] for i in sorted(chosen[name])] for name in ("train", "valid", "test")}


def random_split(examples: list[dict], *, valid: int, test: int, seed: int) -> dict[str, list[dict]]:
    """The split that most recipes use, for comparison: shuffled, no groups."""
    order = random.Random(seed).sample(range(len(examples)), len(examples))
    parts = {"test": order[:test], "valid": order[test : test + valid], "train": order[test + valid :]}
    return {name: [examples[i] for i in indices] for name, indices in parts.items()}


def nearest_neighbour_score(splits: dict[str, list[dict]]) -> float:
    """Share of test cases that are right when each copies the calls of the most alike training query."""
    from rapidfuzz import fuzz, process, utils

    queries = [first_query(e) for e in splits["train"]]
    hits = 0
    for example in splits["test"]:
        _, _, i = process.extractOne(
            first_query(example), queries, scorer=fuzz.token_sort_ratio, processor=utils.default_process
        )
        hits += first_calls(splits["train"][i]) == first_calls(example)
    return hits / len(splits["test"])


def leaks(splits: dict[str, list[dict]], similarity: float) -> list[tuple[str, str, float]]:
    """(held-out id, training id, likeness) of every held-out example whose calls or near-same query are trained on."""
    from rapidfuzz import fuzz, utils

    found = []
    known = [(e, utils.default_process(first_query(e)), first_calls(e)) for e in splits["train"]]
    for split in ("valid", "test"):
        for example in splits[split]:
            query, calls = utils.default_process(first_query(example)), first_calls(example)
            for other, other_query, other_calls in known:
                alike = fuzz.token_sort_ratio(query, other_query)
                if alike >= similarity or (calls and calls == other_calls):
                    found.append((example["id"], other["id"], alike))
    return found


# ---------------------------------------------------------------- rows for training


def tokenize(example: dict, tokenizer, max_seq_length: int | None = None) -> Row:
    """Tokenise a dialogue and mark every assistant turn as target. Raises DataError when it is too long.

    `messages[:k]` with the generation prompt is an exact prefix of the whole text, so each assistant turn is
    what the text gains between its prompt and its end.
    """
    messages, tools = example["messages"], example["tools"]
    text = render(messages, tools)
    spans = []
    for k, message in enumerate(messages):
        if message["role"] == "assistant":
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
