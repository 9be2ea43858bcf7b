"""The grammar of answers: declared calls, or a text, in llguidance's dialect of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from .tokens import CONTROL_TOKEN, TOKEN_IDS
from .values import KEY, MAX_INTEGER

MAX_DEPTH = 16
FREE_DEPTH = 4  # lists and objects, one in the other, where a schema says nothing of what they hold
MAX_DIGITS = 15  # integers of so many digits are all exact in JavaScript and in Python; of one digit more, some
TYPES = ("string", "integer", "number", "boolean", "array", "object", "any")
# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# A word, or one other character; one character of a script without spaces. A verbatim argument is whole pieces.
PIECE = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|\W")


def _up_to(most: int) -> str:
    """A pattern of the integers from 10^(n-1) to `most`, which has n digits."""
    digits = str(most)
    branches = []
    for i, digit in enumerate(digits):
        low, high = int(i == 0), int(digit) - 1
        if low <= high:
            branches.append(f"{digits[:i]}[{low}-{high}][0-9]{{{len(digits) - i - 1}}}")
    return "|".join([*branches, digits])


# Numbers as both languages print them: integers up to 2^53 - 1, decimals, and an exponent for what is very small.
_SHORT = f"0|[1-9][0-9]{{0,{MAX_DIGITS - 1}}}"
_INTEGER = f"-?({_SHORT}|{_up_to(MAX_INTEGER)})"
_DECIMAL = f"-?({_SHORT}|[1-8][0-9]{{{MAX_DIGITS}}})\\.[0-9]{{1,22}}"
_SMALL = "-?[1-9](\\.[0-9]{1,16})?e-[1-9][0-9]{0,2}"
_NO_CONTROL = f"~/(?s:.*){CONTROL_TOKEN.pattern}(?s:.*)/"

_HEAD = f"""
CONTENT: /(?s:.*)/ & {_NO_CONTROL}
TEXT: /(?s:.+)/ & {_NO_CONTROL}
INTEGER: /{_INTEGER}/
NUMBER: /{_INTEGER}|{_DECIMAL}|{_SMALL}/
string: <[{TOKEN_IDS["escape"]}]> CONTENT <[{TOKEN_IDS["escape"]}]>
boolean: "true" | "false"
"""
# Any tokens that spell what must come, as in JavaScript; llguidance would insist on the tokenizer's own.
_FREE = '%llguidance {"no_forcing": true}'


class GrammarError(ValueError):
    """A tool that no grammar can be made for; the message is one line."""


def user_spans(prompt: str) -> list[str]:
    """The texts of a rendered prompt after the developer's turn (requests, answers, tool results), without markup."""
    _, _, rest = prompt.partition("<end_of_turn>")
    parts = re.split(CONTROL_TOKEN, re.sub(r"<start_of_turn>\w+\n", "<bos>", rest))
    return [part for part in parts if part.strip()]


def tool_grammar(
    tools: list[dict],
    text: bool = True,
    calls: bool = True,
    parallel: bool = True,
    verbatim: Iterable[str] = (),
    context: Iterable[str] = (),
) -> str:
    """A Lark grammar (llguidance's dialect) of answers about `tools`, the stop token included. Raises GrammarError.

    `tools` are plain (`{"name", "parameters"}`). The text arguments `verbatim` (`tool.argument`) hold whole words of
    one of the texts `context`; without a context they are free.
    """
    if not (text or calls):
        raise GrammarError("neither calls nor text are allowed: nothing is left to say")
    if calls and not tools:
        raise GrammarError("no tool to call")
    context = [PIECE.findall(each) for each in context]
    rules = _Rules(verbatim if context else ())
    starts = []
    if calls:
        names = []
        for tool in tools:
            arguments = rules.object(tool.get("parameters") or {}, 0, tool["name"])
            names.append(f"{json.dumps('call:' + tool['name'])} {arguments}")
        rules.add("call", f"<[{TOKEN_IDS['call']}]> ({' | '.join(names)}) <[{TOKEN_IDS['end_call']}]>")
        rules.add("calls", f"{'call+' if parallel else 'call'} <[{TOKEN_IDS['response']}]>")
        starts.append("calls")
    if text:
        rules.add("text", f"TEXT (<[{TOKEN_IDS['end_of_turn']}]> | <[{TOKEN_IDS['eos']}]>)")
        starts.append("text")
    for i, pieces in enumerate(context):
        rules.add(f"CONTEXT{i}", f"%regex {json.dumps({'substring_chunks': pieces}, ensure_ascii=False)}")
    if context:
        spans = " | ".join(f"CONTEXT{i}" for i in range(len(context)))
        rules.add("VERBATIM", f"({spans}) & /(?s:\\S(.*\\S)?)/")
        rules.add("verbatim", f"<[{TOKEN_IDS['escape']}]> VERBATIM <[{TOKEN_IDS['escape']}]>")
    return "\n".join([_FREE, f"start: {' | '.join(starts)}", *rules.lines]) + "\n" + _HEAD + rules.free_rules()


class _Rules:
    """Rules made while walking through schemas."""

    def __init__(self, verbatim: Iterable[str] = ()):
        self.verbatim = frozenset(verbatim)
        self.lines: list[str] = []
        self.count = 0
        self.free = False  # whether a free value or a free key is used
        self.keys: dict[str, str] = {}  # rules of free keys, by those that they must not be

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
        if kind == "string" and path in self.verbatim:
            return "verbatim"
        if kind == "any":
            return self.any(FREE_DEPTH)
        return {"integer": "INTEGER", "number": "NUMBER"}.get(kind, kind)

    def any(self, depth: int) -> str:
        """The rule of a value that no schema describes, with at most `depth` lists and objects one in the other."""
        self.free = True
        return f"any{depth}"

    def free_value(self, schema: dict, depth: int, path: str) -> str | None:
        """The rule of what the free keys of an object hold; None where it has none."""
        values = schema.get("additionalProperties")
        if values is None:  # only an object in the arguments that names no keys has free ones without saying so
            values = depth > 0 and not schema.get("properties")
        if values is False:
            return None
        if isinstance(values, dict) and values:
            return self.value(values, depth + 1, f"{path}.*")
        return self.any(FREE_DEPTH - 1)

    def free_entry(self, declared: Iterable[str], value: str) -> str:
        """A key that is none of `declared`, and its value. That no key comes twice is left to the parser."""
        self.free, key = True, "KEY"
        if declared := sorted(declared):
            key = self.keys.setdefault(" | ".join(map(json.dumps, declared)), f"KEY{len(self.keys)}")
        return f'{key} ":" {value}'

    def free_rules(self) -> str:
        """The rules of free keys and values, where they are used."""
        if not self.free:
            return ""
        lines = [f"KEY: /{KEY.pattern}/ & {_NO_CONTROL}", "any0: string | NUMBER | boolean"]
        lines += [f"{name}: /{KEY.pattern}/ & {_NO_CONTROL} & ~({declared})" for declared, name in self.keys.items()]
        for depth in range(1, FREE_DEPTH + 1):
            item = f"any{depth - 1}"
            lines.append(f'any{depth}: any0 | "[" ({item} ("," {item})*)? "]" | {_free_object(item)}')
        return "\n".join(lines) + "\n"

    def object(self, schema: dict, depth: int, path: str) -> str:
        """The rule of an object: declared keys sorted as the format sorts them, optional ones may be left out.

        Free keys may come before, between and after them, in any order: the format sorts all keys together.
        """
        properties = sorted((schema.get("properties") or {}).items(), key=lambda item: item[0].lower())
        required = set(schema.get("required") or [])
        free = self.free_value(schema, depth, path)
        free = free and self.new(self.free_entry((key for key, _ in properties), free))
        more = f'("," {free})* ' if free else ""
        entries = [
            f"{json.dumps(key + ':')} {self.value(part, depth + 1, f'{path}.{key}')}" for key, part in properties
        ]
        # rest: what may follow when something is written and the first i keys are done
        rest = self.new('"}"')
        rests = [rest]
        for (key, _), entry in reversed(list(zip(properties, entries, strict=True))):
            body = f'"," {entry} {more}{rest}'
            rest = self.new(body if key in required else f"{body} | {rest}")
            rests.append(rest)
        rests.reverse()  # rests[i] belongs to keys i and later
        first = [f"{free} {more}{rest}"] if free else []
        for i, ((key, _), entry) in enumerate(zip(properties, entries, strict=True)):
            first.append(f"{entry} {more}{rests[i + 1]}")
            if key in required:
                break
        else:
            first.append('"}"')
        return self.new(f'"{{" ({" | ".join(first)})')


def _free_object(value: str) -> str:
    return f'"{{" (KEY ":" {value} ("," KEY ":" {value})*)? "}}"'


def _literal(item) -> str:
    if isinstance(item, bool):
        return '"true"' if item else '"false"'
    if isinstance(item, (int, float)):
        return json.dumps(str(int(item)) if float(item).is_integer() else repr(item))
    if isinstance(item, str):
        escape = f"<[{TOKEN_IDS['escape']}]>"
        return f"{escape} {json.dumps(item, ensure_ascii=False)} {escape}" if item else f"{escape} {escape}"
    raise GrammarError(f"an enum holds {item!r}, which the format cannot carry")
