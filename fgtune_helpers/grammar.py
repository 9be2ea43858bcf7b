"""Constrained calls with llguidance: a grammar made from tool definitions and from what the user has said.

web/grammar.js does the same in JavaScript. What both let through: calls of declared tools with declared arguments in
the order of the format (required ones present), values of the declared types and enums, several calls in a row, or a
text answer; never a control token inside a text, not even spelled out in ordinary characters. Arguments that every
training example copies word for word (`copied_arguments`) hold words of the dialogue and nothing else: a small model
that means *Córdoba* and would write *Cordoba* cannot.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

import numpy as np

from .calls import format_call
from .data import case_of, first_calls, first_query, leaves, plain_tools

TOKEN_IDS = {"call": 48, "end_call": 49, "response": 50, "escape": 52, "eos": 1, "end_of_turn": 106}
MAX_DEPTH = 16
TYPES = ("string", "integer", "number", "boolean", "array", "object", "any")
_CONTROL = (
    "<(?:pad|eos|bos|unk|mask|escape|image_soft_token|unused[0-9]+"
    "|(?:start|end)_(?:function_declaration|function_call|function_response|of_turn|of_image))>"
)
PIECE = re.compile(r"\w+|\W")  # a word or one other character; a copied argument is whole pieces
COPIED_FROM = 10  # values that must have been copied, each of them, for an argument to count as copied
# 15 digits: the longest integers that are exact in JavaScript and in Python alike.
_HEAD = f"""
CONTENT: /(?s:.*)/ & ~/(?s:.*){_CONTROL}(?s:.*)/
TEXT: /(?s:.+)/ & ~/(?s:.*){_CONTROL}(?s:.*)/
INTEGER: /-?(0|[1-9][0-9]{{0,14}})/
NUMBER: /-?(0|[1-9][0-9]{{0,14}})(\\.[0-9]{{1,15}})?/
KEY: /[A-Za-z_][A-Za-z0-9_]*/
string: <[{TOKEN_IDS["escape"]}]> CONTENT <[{TOKEN_IDS["escape"]}]>
boolean: "true" | "false"
any: string | NUMBER | boolean
"""
# Any tokens that spell what must come, as in JavaScript; llguidance would insist on the tokenizer's own.
_FREE = '%llguidance {"no_forcing": true}'


class GrammarError(ValueError):
    """A tool that no grammar can be made for; the message is one line."""


def said(prompt: str) -> list[str]:
    """What stands in a rendered prompt after its first turn, the developer's, without control tokens and roles."""
    _, _, rest = prompt.partition("<end_of_turn>")
    parts = re.split(_CONTROL, re.sub(r"<start_of_turn>\w+\n", "<bos>", rest))
    return [part for part in parts if part.strip()]


def is_copied(value: str, text: str) -> bool:
    """Whether `value` stands in `text` as whole pieces, with no space at its ends."""
    if not value or value != value.strip():
        return False
    joints = set(accumulate(map(len, PIECE.findall(text)), initial=0))
    return any(m.start() in joints and m.start() + len(value) in joints for m in re.finditer(re.escape(value), text))


def copied_arguments(examples: Iterable[dict]) -> dict[str, int]:
    """Text arguments that all `examples` copy from the request, as `tool.argument` (`.` between levels, none for the
    items of a list), with the number of values. Fewer than ten show nothing; enumerated values need no copying."""
    count, copied = Counter(), Counter()
    for example in examples:
        schemas = {tool["name"]: tool.get("parameters") or {} for tool in plain_tools(example["tools"])}
        for call in first_calls(example):
            for path, value in leaves(call.arguments, schemas.get(call.name, {})):
                if isinstance(value, str):
                    key = ".".join([call.name, *(part for part in path if isinstance(part, str))])
                    count[key] += 1
                    copied[key] += is_copied(value, first_query(example))
    return {key: n for key, n in sorted(count.items()) if n == copied[key] >= COPIED_FROM}


def refused_answers(grammar: Grammar, examples: Iterable[dict], tokenizer) -> list[dict]:
    """The `examples` whose gold calls the grammar does not let through. Raises GrammarError."""
    out = []
    for example in examples:
        case = case_of(example)
        if case.calls:
            constraint = grammar.constraint(case.tools, case.prompt)
            constraint.start()
            answer = "".join(map(format_call, case.calls)) + "<start_function_response>"
            if not all(map(constraint.accept, tokenizer.encode(answer, add_special_tokens=False))):
                out.append(example)
    return out


def tool_grammar(
    tools: list[dict],
    text: bool = True,
    calls: bool = True,
    parallel: bool = True,
    copied: Iterable[str] = (),
    heard: Iterable[str] = (),
) -> str:
    """A Lark grammar (llguidance's dialect) of answers about `tools`, the stop token included. Raises GrammarError.

    The text arguments `copied` (`tool.argument`) are whole words of one of the texts `heard`.
    """
    if not (text or calls):
        raise GrammarError("neither calls nor text are allowed: nothing is left to say")
    if calls and not tools:
        raise GrammarError("no tool to call")
    heard = [PIECE.findall(each) for each in heard]
    rules = _Rules(copied if heard else ())
    starts = []
    if calls:
        names = []
        for entry in tools:
            tool = entry.get("function", entry)
            arguments = rules.object(tool.get("parameters") or {}, 0, tool["name"])
            names.append(f"{json.dumps('call:' + tool['name'])} {arguments}")
        rules.add("call", f"<[{TOKEN_IDS['call']}]> ({' | '.join(names)}) <[{TOKEN_IDS['end_call']}]>")
        rules.add("calls", f"{'call+' if parallel else 'call'} <[{TOKEN_IDS['response']}]>")
        starts.append("calls")
    if text:
        rules.add("text", f"TEXT (<[{TOKEN_IDS['end_of_turn']}]> | <[{TOKEN_IDS['eos']}]>)")
        starts.append("text")
    for i, pieces in enumerate(heard):
        rules.add(f"HEARD{i}", f"%regex {json.dumps({'substring_chunks': pieces}, ensure_ascii=False)}")
    if heard:
        rules.add("COPY", f"({' | '.join(f'HEARD{i}' for i in range(len(heard)))}) & /(?s:\\S(.*\\S)?)/")
        rules.add("copy", f"<[{TOKEN_IDS['escape']}]> COPY <[{TOKEN_IDS['escape']}]>")
    return "\n".join([_FREE, f"start: {' | '.join(starts)}", *rules.lines]) + "\n" + _HEAD


class _Rules:
    """Rules made while walking through schemas."""

    def __init__(self, copied: Iterable[str] = ()):
        self.copied = frozenset(copied)
        self.lines: list[str] = []
        self.count = 0

    def add(self, name: str, body: str) -> str:
        self.lines.append(f"{name}: {body}")
        return name

    def new(self, body: str) -> str:
        self.count += 1
        return self.add(f"r{self.count}", body)

    def value(self, schema: dict, depth: int, path: str) -> str:
        """The rule of a value; `path` is its tool and the names that lead to it."""
        if depth > MAX_DEPTH:
            raise GrammarError(f"a schema nests deeper than {MAX_DEPTH} levels")
        if schema.get("enum"):
            return self.new(" | ".join(_literal(item) for item in schema["enum"]))
        kind = str(schema.get("type") or ("object" if schema.get("properties") else "any")).lower()
        if kind not in TYPES:
            raise GrammarError(f"the type {kind!r} is not known")
        if kind == "array":
            item = self.value(schema.get("items") or {}, depth + 1, path)
            body = f'{item} ("," {item})*'
            return self.new(f'"[" {body} "]"' if schema.get("minItems", 0) > 0 else f'"[" ({body})? "]"')
        if kind == "object":
            return self.object(schema, depth, path)
        if kind == "string" and path in self.copied:
            return "copy"
        return {"integer": "INTEGER", "number": "NUMBER"}.get(kind, kind)

    def object(self, schema: dict, depth: int, path: str) -> str:
        """The rule of an object: keys sorted as the format sorts them, optional ones may be left out."""
        properties = sorted((schema.get("properties") or {}).items(), key=lambda item: item[0].lower())
        required = set(schema.get("required") or [])
        if not properties:
            # Anything goes, but a key must not come twice: none or one entry is what a grammar can promise.
            return self.new('"{" "}"' if depth == 0 else '"{" (KEY ":" any)? "}"')
        entries = [
            f"{json.dumps(key + ':')} {self.value(part, depth + 1, f'{path}.{key}')}" for key, part in properties
        ]
        # rest(i): what may follow when something is written and the first i keys are done
        rest = self.new('"}"')
        rests = [rest]
        for (key, _), entry in reversed(list(zip(properties, entries, strict=True))):
            body = f'"," {entry} {rest}'
            rest = self.new(body if key in required else f"{body} | {rest}")
            rests.append(rest)
        rests.reverse()  # rests[i] belongs to keys i and later
        first = []
        for i, ((key, _), entry) in enumerate(zip(properties, entries, strict=True)):
            first.append(f"{entry} {rests[i + 1]}")
            if key in required:
                break
        else:
            first.append('"}"')
        return self.new(f'"{{" ({" | ".join(first)})')


def _literal(item) -> str:
    if isinstance(item, bool):
        return '"true"' if item else '"false"'
    if isinstance(item, (int, float)):
        return json.dumps(str(int(item)) if float(item).is_integer() else repr(item))
    if isinstance(item, str):
        escape = f"<[{TOKEN_IDS['escape']}]>"
        return f"{escape} {json.dumps(item, ensure_ascii=False)} {escape}" if item else f"{escape} {escape}"
    raise GrammarError(f"an enum holds {item!r}, which the format cannot carry")


class Grammar:
    """Grammars for one model: `constraint(case.tools, case.prompt)` is what an answer to a prompt is held to.

    `model_dir` holds `tokenizer.json` and `config.json`; `copied` are the arguments that are copied word for word.
    """

    def __init__(self, model_dir: str | Path, copied: Iterable[str] = ()):
        self.folder, self.copied = Path(model_dir), list(copied)

    @functools.cached_property
    def vocab_size(self) -> int:
        """The number of logits."""
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]

    @functools.cached_property
    def tokens(self):
        """llguidance's view of the tokenizer, which may have a token more than the model (`<image_soft_token>`)."""
        from llguidance import LLTokenizer

        text = (self.folder / "tokenizer.json").read_text(encoding="utf-8")
        size = max(self.vocab_size, *(token["id"] + 1 for token in json.loads(text)["added_tokens"]))
        return LLTokenizer(text, n_vocab=size, eos_token=TOKEN_IDS["eos"])

    def constraint(self, tools: Iterable[dict], prompt: str = "", **options) -> Constraint:
        """For one answer to `prompt`; `options` as in `tool_grammar`."""
        tools = list(tools)
        return Constraint(self, tools, prompt, {"calls": bool(tools), **options})


class Constraint:
    """What one answer is held to: `start()`, then `allowed()` and `accept(token)` in turn, or `choose(scores)`."""

    def __init__(self, grammar: Grammar, tools: list[dict], prompt: str, options: dict):
        self.grammar, self.tools, self.prompt, self.options = grammar, tools, prompt, options
        self.copied = grammar.copied
        self.seconds, self.steps = 0.0, 0

    def start(self) -> None:
        """Begin the answer. Raises GrammarError."""
        from llguidance import LLMatcher, grammar_from

        begin = time.perf_counter()
        text = tool_grammar(self.tools, **self.options, copied=self.copied, heard=said(self.prompt))
        self.matcher = LLMatcher(self.grammar.tokens, grammar_from("lark", text))
        if self.matcher.is_error():
            raise GrammarError(self.matcher.get_error().splitlines()[0])
        self.seconds, self.steps = time.perf_counter() - begin, 0

    def allowed(self) -> np.ndarray:
        """Which tokens may come next: bool [vocab_size]."""
        begin = time.perf_counter()
        mask = np.frombuffer(self.matcher.compute_logit_bias(), np.uint8)[: self.grammar.vocab_size] > 0
        self.seconds += time.perf_counter() - begin
        self.steps += 1
        return mask

    def accept(self, token: int) -> bool:
        """Go on by one token; False when it does not fit."""
        begin = time.perf_counter()
        fits = self.matcher.consume_token(int(token))
        self.seconds += time.perf_counter() - begin
        return fits

    def choose(self, scores: np.ndarray) -> int:
        """The likeliest token that is allowed, by `scores` [vocab_size]; goes on by it."""
        token = int(np.where(self.allowed(), scores, -np.inf).argmax())
        self.advance(token)
        return token

    def advance(self, token: int) -> None:
        """Go on by a token that is allowed. Raises GrammarError for another."""
        if not self.accept(token):
            raise GrammarError(f"token {token} does not fit the grammar")

    @property
    def ms_per_token(self) -> float:
        """What the grammar cost since `start`."""
        return 1000 * self.seconds / max(self.steps, 1)
