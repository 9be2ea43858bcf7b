"""Constrained calls with llguidance: a grammar made from tool definitions, and greedy generation under it.

web/grammar.js does the same in the browser. What both let through: calls of declared tools with declared arguments in
the order of the format (required ones present), values of the declared types and enums, several calls in a row, or a
text answer; never a control token inside a text, not even spelled out in ordinary characters.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import numpy as np

TOKEN_IDS = {"call": 48, "end_call": 49, "response": 50, "escape": 52, "eos": 1, "end_of_turn": 106}
MAX_DEPTH = 16
TYPES = ("string", "integer", "number", "boolean", "array", "object", "any")
_CONTROL = (
    "<(pad|eos|bos|unk|mask|escape|image_soft_token|unused[0-9]+"
    "|(start|end)_(function_declaration|function_call|function_response|of_turn|of_image))>"
)
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


class GrammarError(ValueError):
    """A tool that no grammar can be made for; the message is one line."""


def tool_grammar(tools: list[dict], text: bool = True, calls: bool = True, parallel: bool = True) -> str:
    """A Lark grammar (llguidance's dialect) of answers about `tools`, the stop token included. Raises GrammarError."""
    if not (text or calls):
        raise GrammarError("neither calls nor text are allowed: nothing is left to say")
    if calls and not tools:
        raise GrammarError("no tool to call")
    rules = _Rules()
    starts = []
    if calls:
        names = []
        for entry in tools:
            tool = entry.get("function", entry)
            arguments = rules.object(tool.get("parameters") or {}, depth=0)
            names.append(f"{json.dumps('call:' + tool['name'])} {arguments}")
        rules.add("call", f"<[{TOKEN_IDS['call']}]> ({' | '.join(names)}) <[{TOKEN_IDS['end_call']}]>")
        rules.add("calls", f"{'call+' if parallel else 'call'} <[{TOKEN_IDS['response']}]>")
        starts.append("calls")
    if text:
        rules.add("text", f"TEXT (<[{TOKEN_IDS['end_of_turn']}]> | <[{TOKEN_IDS['eos']}]>)")
        starts.append("text")
    return "\n".join([f"start: {' | '.join(starts)}", *rules.lines]) + "\n" + _HEAD


class _Rules:
    """Rules made while walking through schemas."""

    def __init__(self):
        self.lines: list[str] = []
        self.count = 0

    def add(self, name: str, body: str) -> str:
        self.lines.append(f"{name}: {body}")
        return name

    def new(self, body: str) -> str:
        self.count += 1
        return self.add(f"r{self.count}", body)

    def value(self, schema: dict, depth: int) -> str:
        """The rule of a value."""
        if depth > MAX_DEPTH:
            raise GrammarError(f"a schema nests deeper than {MAX_DEPTH} levels")
        if schema.get("enum"):
            return self.new(" | ".join(_literal(item) for item in schema["enum"]))
        kind = str(schema.get("type") or ("object" if schema.get("properties") else "any")).lower()
        if kind not in TYPES:
            raise GrammarError(f"the type {kind!r} is not known")
        if kind == "array":
            item = self.value(schema.get("items") or {}, depth + 1)
            body = f'{item} ("," {item})*'
            return self.new(f'"[" {body} "]"' if schema.get("minItems", 0) > 0 else f'"[" ({body})? "]"')
        if kind == "object":
            return self.object(schema, depth)
        return {"integer": "INTEGER", "number": "NUMBER"}.get(kind, kind)

    def object(self, schema: dict, depth: int) -> str:
        """The rule of an object: keys sorted as the format sorts them, optional ones may be left out."""
        properties = sorted((schema.get("properties") or {}).items(), key=lambda item: item[0].lower())
        required = set(schema.get("required") or [])
        if not properties:
            # Anything goes, but a key must not come twice: none or one entry is what a grammar can promise.
            return self.new('"{" "}"' if depth == 0 else '"{" (KEY ":" any)? "}"')
        entries = [f"{json.dumps(key + ':')} {self.value(part, depth + 1)}" for key, part in properties]
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


class Constraint:
    """The grammar over one tokenizer: `start()`, then `allowed()` and `accept(token)` in turn.

    `tokenizer_file` is a `tokenizer.json`; `vocab_size` the number of logits.
    """

    def __init__(self, tokenizer_file, vocab_size: int, tools: list[dict], **options):
        from llguidance import LLMatcher, LLTokenizer, grammar_from

        with open(tokenizer_file, encoding="utf-8") as file:
            self.tokenizer = LLTokenizer(file.read(), n_vocab=vocab_size, eos_token=TOKEN_IDS["eos"])
        self.vocab_size = vocab_size
        self.grammar = grammar_from("lark", tool_grammar(tools, **options))
        self._fresh = LLMatcher(self.tokenizer, self.grammar)
        if self._fresh.is_error():
            raise GrammarError(self._fresh.get_error().splitlines()[0])
        self.start()

    def start(self) -> None:
        """Begin an answer."""
        self.matcher = self._fresh.deep_copy()
        self.seconds = 0.0
        self.steps = 0

    def allowed(self) -> np.ndarray:
        """Which tokens may come next: bool [vocab_size]."""
        begin = time.perf_counter()
        mask = np.frombuffer(self.matcher.compute_logit_bias(), np.uint8)[: self.vocab_size] > 0
        self.seconds += time.perf_counter() - begin
        self.steps += 1
        return mask

    def accept(self, token: int) -> bool:
        """Go on by one token; False when it does not fit."""
        begin = time.perf_counter()
        fits = self.matcher.consume_token(int(token))
        self.seconds += time.perf_counter() - begin
        return fits

    @property
    def ms_per_token(self) -> float:
        """What the grammar cost since `start`."""
        return 1000 * self.seconds / max(self.steps, 1)


class ConstrainedGenerator:
    """Greedy answers of an `OrtGenerator` under the grammar of `tools`, with the same protocol.

    An answer that reaches `max_tokens` inside a call is cut after the last whole call, so that it stays well-formed.
    """

    def __init__(self, generator, tools: list[dict], tokenizer_file, **options):
        self.generator = generator
        self.stops = {TOKEN_IDS["eos"], TOKEN_IDS["end_of_turn"], TOKEN_IDS["response"]}
        self.tools, self.tokenizer_file, self.options = tools, tokenizer_file, options
        self.constraint: Constraint | None = None
        self.ms_per_token: list[float] = []

    def generate(self, prompts: Sequence[str]) -> list[str]:
        """Answer texts without the stop token."""
        return [self.generator.decode(ids) for ids in self.generate_ids(prompts)]

    def generate_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Answer ids without the stop id."""
        if isinstance(prompts, str):
            raise TypeError("prompts is a list of strings, not one string")
        from .generate import common_prefix

        model = self.generator.model
        rows = [self.generator.encode(prompt) for prompt in prompts]
        count = common_prefix(rows) if len(rows) > 1 else 0
        past = model.run(np.array([rows[0][:count]]), model.empty())[1] if count else model.empty()
        self.ms_per_token = []
        return [self._answer(row[count:], past) for row in rows]

    def _answer(self, own: list[int], past) -> list[int]:
        model = self.generator.model
        made: list[int] = []
        past, (length,) = model.stack([past], room=len(own) + self.generator.max_tokens)
        while len(made) < self.generator.max_tokens:
            logits, past = model.run(np.array([own]), past, [length])
            length += len(own)
            scores = logits[0, -1]
            if self.constraint is None:
                self.constraint = Constraint(self.tokenizer_file, len(scores), self.tools, **self.options)
            if not made:
                self.constraint.start()
            token = int(np.where(self.constraint.allowed(), scores, -np.inf).argmax())
            if not self.constraint.accept(token):
                raise GrammarError(f"token {token} was allowed and then refused")
            if token in self.stops:
                break
            made.append(token)
            own = [token]
        else:
            made = cut_to_whole_calls(made)
        if self.constraint:
            self.ms_per_token.append(self.constraint.ms_per_token)
        return made


def cut_to_whole_calls(ids: list[int]) -> list[int]:
    """An unfinished answer up to its last whole call; a text stays as it is."""
    if TOKEN_IDS["call"] not in ids:
        return ids
    ends = [i for i, token in enumerate(ids) if token == TOKEN_IDS["end_call"]]
    return ids[: ends[-1] + 1] if ends else []
