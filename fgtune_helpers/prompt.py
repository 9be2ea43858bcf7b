"""The prompt format: render dialogues and tools as FunctionGemma reads them, and name what the format would lose.

One description of the format exists, `chat_template.jinja`; this module feeds it values that Python's and
JavaScript's template engines print alike, and refuses or repairs the rest (`lint_tools`, `lint_examples`).
Source of the format: https://ai.google.dev/gemma/docs/functiongemma/formatting-and-best-practices
"""

import copy
import difflib
import html
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.sandbox
import jsonschema

TRIGGER = "You are a model that can do function calling with the following functions"
STOP_IDS = (1, 50, 106)  # <eos>, <start_function_response> (after calls), <end_of_turn> (after text)
TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")

CONTROL_TOKEN = re.compile(
    r"<(?:pad|eos|bos|unk|mask|escape|image_soft_token|unused[0-9]+"
    r"|(?:start|end)_(?:function_declaration|function_call|function_response|of_turn|of_image))>"
)
NAME = re.compile(r"[^\x00-\x20{}\[\],<>]+")  # a tool's name: dots, hyphens, slashes and colons are fine
KEY = re.compile(r"[^{}\[\]:,]+")  # an argument's name
RESERVED = ("description", "type", "properties", "required", "nullable")
_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_INTEGER = 2**53 - 1  # JavaScript's Number.MAX_SAFE_INTEGER
MAX_DEPTH = 32

_TYPES = ("string", "number", "integer", "boolean", "object", "array")
_TYPE_ALIASES = {
    "str": "string", "text": "string", "int": "integer", "long": "integer", "float": "number", "double": "number",
    "bool": "boolean", "dict": "object", "map": "object", "list": "array", "tuple": "array",
}  # fmt: skip
_ROLES = ("developer", "system", "user", "assistant", "tool")
_MESSAGE_KEYS = {"role", "content", "tool_calls", "function_call", "name", "tool_call_id", "id"}
# What Python's strip() and JavaScript's trim() remove; the two differ by U+001C…1F, U+0085 and U+FEFF.
_WHITESPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace()) + "\ufeff"
_UNDECLARED = {
    "default": "Default {}.", "minimum": "Minimum {}.", "maximum": "Maximum {}.", "multipleOf": "A multiple of {}.",
    "exclusiveMinimum": "More than {}.", "exclusiveMaximum": "Less than {}.", "pattern": "Pattern {}.",
    "format": "Format {}.", "minLength": "At least {} characters.", "maxLength": "At most {} characters.",
    "minItems": "At least {} entries.", "maxItems": "At most {} entries.", "uniqueItems": "No entry twice.",
}  # fmt: skip
_UNSUPPORTED = ("oneOf", "allOf", "anyOf", "not", "if", "then", "else", "prefixItems", "patternProperties",
                "dependentSchemas", "dependentRequired", "contains", "propertyNames")  # fmt: skip
LEVELS = ("error", "repair", "warning", "info")


class FormatError(ValueError):
    """A message or a value that the format cannot carry."""


class SchemaError(FormatError):
    """A tool that `lint_tools` refuses."""


@dataclass(frozen=True)
class Finding:
    """One thing lint has to say. `level`: "error" (refused), "repair" (mended, and how), "warning" or "info"."""

    level: str
    code: str
    message: str
    file: str = ""
    example: str = ""
    tool: str = ""
    where: str = ""

    def __str__(self) -> str:
        place = " · ".join(part for part in (self.file, self.example, self.tool, self.where) if part)
        return f"{self.level}: {place}: {self.message}" if place else f"{self.level}: {self.message}"


class FindingsTable:
    """Findings as a table, errors first: text when printed, HTML in a notebook. At most `limit` rows are shown."""

    def __init__(self, findings: Iterable[Finding], limit: int = 60):
        self.findings = sorted(findings, key=lambda finding: LEVELS.index(finding.level))
        self.limit = limit

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def summary(self) -> str:
        counts = Counter(finding.level for finding in self.findings)
        parts = [f"{counts[level]} {level}{'s' * (counts[level] != 1 and level != 'info')}" for level in LEVELS]
        return (
            ", ".join(part for part, level in zip(parts, LEVELS, strict=True) if counts[level]) or "nothing to report"
        )

    def __len__(self) -> int:
        return len(self.findings)

    def _rest(self) -> str:
        hidden = len(self.findings) - self.limit
        return f"… and {hidden} more" if hidden > 0 else ""

    def __str__(self) -> str:
        lines = [str(finding) for finding in self.findings[: self.limit]]
        return "\n".join([*lines, *([self._rest()] if self._rest() else []), self.summary])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        columns = ("level", "file", "example", "tool", "where", "message")
        head = "".join(f"<th style='text-align:left'>{column}</th>" for column in columns)
        rows = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(getattr(finding, column))}</td>"
                             for column in columns) + "</tr>"
            for finding in self.findings[: self.limit]
        )  # fmt: skip
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else ""
        return f"{table}<p>{html.escape(' '.join(filter(None, [self._rest(), self.summary])))}</p>"


def findings_table(findings: Iterable[Finding], limit: int = 60) -> FindingsTable:
    """The findings as an object that shows itself as a table in a notebook and as lines when printed."""
    return FindingsTable(findings, limit)


# ---------------------------------------------------------------------------------------------------- rendering


def render(messages: list[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False) -> str:
    """The text the model reads, from `<bos>` on. Raises SchemaError (tools) or FormatError (messages)."""
    return _template().render(
        messages=normalize_messages(messages),
        tools=normalize_tools(tools),
        add_generation_prompt=add_generation_prompt,
        bos_token="<bos>",
    )


def normalize_tools(tools: list[dict] | None) -> list[dict]:
    """The tools in OpenAI's form, structure mended, as both template engines expect them. Raises SchemaError."""
    mended, findings = _mend_tools(tools or [], "tools", describe=False)
    errors = [str(finding) for finding in findings if finding.level == "error"]
    if errors:
        raise SchemaError("\n".join(errors))
    return copy.deepcopy(mended)


def normalize_messages(messages: list[dict]) -> list[dict]:
    """The messages in OpenAI's form with values that both template engines print alike. Raises FormatError."""
    findings = []
    mended = _mend_messages(messages, _reporter(findings, "messages"))
    errors = [str(finding) for finding in findings if finding.level == "error"]
    if errors:
        raise FormatError("\n".join(errors))
    return mended


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    """The chat template, in an environment set up like the one of transformers' `apply_chat_template`."""

    def raise_exception(message):
        raise FormatError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(TEMPLATE_FILE.read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------------------- values and texts


class _Number(float):
    """A float that prints as JavaScript prints it (0.00001, not 1e-05)."""

    def __str__(self) -> str:
        mantissa, _, exponent = repr(self).partition("e")
        if not exponent:
            return mantissa
        return format(Decimal(repr(self)), "f") if int(exponent) >= -6 else f"{mantissa}e{int(exponent)}"


def _reporter(findings: list[Finding], file: str = "", example: str = "", tool: str = "") -> Callable:
    """A function report(level, code, where, message, tool=…) that adds to `findings`."""

    def report(level, code, where, message, tool=tool):
        findings.append(Finding(level, code, message, file, example, tool, where))

    return report


def _check_text(text: str, where: str, report: Callable) -> str:
    if token := CONTROL_TOKEN.search(text):
        report("error", "control-token", where,
               f"The text holds the control token {token.group()}, which steers the model. Remove it.")  # fmt: skip
    if _SURROGATE.search(text):
        report("error", "half-character", where, "The text holds half of a character (a lone surrogate). Remove it.")
    return text


def _carry(value, where: str, report: Callable, drop_null: bool = False, depth: int = 0):
    """The value as both engines print it alike; what the format cannot carry is reported."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _check_text(value, where, report)
    if isinstance(value, float) and not math.isfinite(value):
        report("error", "not-finite", where, f"{value} is no number the format can carry. Leave it out.")
        return 0
    if isinstance(value, (int, float)):
        if isinstance(value, float) and not value.is_integer():
            return value if "e" not in repr(value) else _Number(value)
        if abs(value) > MAX_INTEGER:
            report("error", "number-too-large", where,
                   f"{value} is beyond 2^53 - 1 and would change in JavaScript. Pass it as a string.")  # fmt: skip
        return int(value)
    if depth >= MAX_DEPTH:
        report("error", "too-deep", where, f"Values nest deeper than {MAX_DEPTH} levels. Flatten them.")
        return {}
    if isinstance(value, (list, tuple)):
        return [_carry(item, f"{where}[{i}]", report, drop_null, depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        _check_keys(list(value), where, report)
        carried = {}
        for key, item in value.items():
            place = f"{where}.{key}" if where else str(key)
            if item is None and drop_null:
                report("repair", "null-dropped", place, "null means absent here: the key is left out.")
            else:
                carried[str(key)] = _carry(item, place, report, drop_null, depth + 1)
        return carried
    if value is None:
        report("error", "null", where, "The format has no null. Leave the key out (repair_examples does).")
        return ""
    report("error", "not-json", where, f"A {type(value).__name__} is no JSON value. Convert it to one.")
    return ""


def _check_keys(keys: list, where: str, report: Callable) -> None:
    for key in keys:
        if not isinstance(key, str):
            report("error", "key", where, f"The key {key!r} is not a string. Write it as one.")
            return
        if not KEY.fullmatch(key):
            report("error", "key", where, f"The key {key!r} is empty or has one of {{ }} [ ] : , in it. Rename it.")
        _check_text(key, where, report)
    lowered = [key.lower() for key in keys]
    if sorted(lowered) != sorted(lowered, key=lambda key: key.encode("utf-16-be", "surrogatepass")):
        report("error", "key-order", where, "Python and JavaScript sort these keys differently. Rename the rarest one.")


def _check_name(name, where: str, report: Callable, what: str = "tool") -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        report("error", f"{what}-name", where, f"The {what} needs a name without spaces and without any of "
               f"{{ }} [ ] , < >; it is {name!r}. Rename it.")  # fmt: skip
        return "unnamed"
    return name


# ----------------------------------------------------------------------------------------------------- messages


def _mend_messages(messages: list[dict], report: Callable, drop_null: bool = False) -> list[dict]:
    if not isinstance(messages, (list, tuple)) or not messages:
        report("error", "messages", "messages", "There are no messages. Give a list with at least one.")
        return []
    names_by_id, mended = {}, []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping):
            report("error", "messages", where, f'A message is an object such as {{"role": "user", "content": "…"}}, '
                   f"not a {type(message).__name__}.")  # fmt: skip
            continue
        role = {"model": "assistant"}.get(message.get("role"), message.get("role"))
        if role not in _ROLES:
            report("error", "role", where, f"Unknown role {role!r}. Use one of {', '.join(_ROLES)}.")
            continue
        for key in message:
            if key not in _MESSAGE_KEYS and message[key] not in (None, "", [], {}):
                report(
                    "warning", "message-key", f"{where}.{key}", f'"{key}" has no place in the format and is not used.'
                )
        if role == "tool":
            mended.append(_mend_result(message, where, report, names_by_id, drop_null))
            continue
        new = {"role": role, "content": _mend_text(message.get("content"), f"{where}.content", report)}
        calls = message.get("tool_calls") or (
            [{"function": message["function_call"]}] if message.get("function_call") else []
        )
        if calls and role != "assistant":
            report("error", "role", where, f"A {role} message cannot make calls. Use the role assistant.")
        elif calls:
            new["tool_calls"] = [
                _mend_call(call, f"{where}.tool_calls[{i}]", report, names_by_id, drop_null)
                for i, call in enumerate(calls)
            ]
            new["content"] = new["content"] or None
        mended.append(new)
    return mended


def _mend_text(content, where: str, report: Callable) -> str:
    """A message's text: a string or a list of text parts, without the white space around it."""
    if content is None:
        return ""
    parts = [content] if isinstance(content, (str, Mapping)) else content
    texts = []
    for part in parts if isinstance(parts, (list, tuple)) else [parts]:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            report("error", "content", where, "Only text can be carried. Write the content as a string.")
            continue
        texts.append(text.strip(_WHITESPACE))
    return _check_text("".join(texts), where, report)


def _mend_call(call, where: str, report: Callable, names_by_id: dict, drop_null: bool) -> dict:
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    if not isinstance(function, Mapping):
        function = {}
    name = _check_name(function.get("name"), where, report)
    if isinstance(call, Mapping) and call.get("id"):
        names_by_id[call["id"]] = name
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        report("repair", "arguments-text", where, "The arguments are a JSON text: it is parsed.", tool=name)
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            report("error", "arguments", where, f"The arguments are no JSON ({error}). Correct the text.", tool=name)
            arguments = {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        report("error", "arguments", where, "The arguments must be an object with a key per argument.", tool=name)
        arguments = {}

    def report_tool(level, code, place, message):
        report(level, code, place, message, tool=name)

    carried = _carry(arguments, f"{where}.arguments", report_tool, drop_null)
    return {"type": "function", "function": {"name": name, "arguments": carried}}


def _mend_result(message: Mapping, where: str, report: Callable, names_by_id: dict, drop_null: bool) -> dict:
    content, place = message.get("content"), f"{where}.content"
    if isinstance(content, Mapping) and set(content) == {"name", "response"}:
        content = [content]
    if content and isinstance(content, (list, tuple)):
        if all(isinstance(item, Mapping) and set(item) == {"name", "response"} for item in content):
            return {"role": "tool", "content": [
                {"name": _check_name(item["name"], place, report),
                 "response": _carry(item["response"], place, report, drop_null)} for item in content
            ]}  # fmt: skip
        if all(isinstance(item, Mapping) and item.get("type") == "text" for item in content):
            content = "".join(str(item.get("text", "")) for item in content)
    name = message.get("name") or names_by_id.get(message.get("tool_call_id"))
    if not name:
        report("error", "result-name", where, 'The result does not say whose it is. Add "name" with the tool\'s name.')
    name = _check_name(name or "unnamed", where, report)
    carried = _carry(content, place, report, drop_null)
    return {
        "role": "tool",
        "name": name,
        "content": carried if isinstance(carried, (str, dict)) else {"value": carried},
    }


# -------------------------------------------------------------------------------------------------------- tools


def lint_tools(tools: list[dict], source: str = "tools") -> list[Finding]:
    """Everything the declarations of these tools would lose, and everything that is refused or repaired."""
    return repair_tools(tools, source)[1]


def repair_tools(tools: list[dict], source: str = "tools") -> tuple[list[dict], list[Finding]]:
    """The tools with all that can be repaired repaired, and the findings; errors are left for their author.

    What a declaration has no place for (a default, bounds, a list of numbers to choose from) goes into the
    description, where the model reads it, and stays in the schema, where arguments are checked against it.
    """
    mended, findings = _mend_tools(tools, source, describe=True)
    return copy.deepcopy(mended), findings


def _mend_tools(tools: list[dict], source: str, describe: bool) -> tuple[list[dict], list[Finding]]:
    findings, mended, seen = [], [], set()
    if not isinstance(tools, (list, tuple)):
        _reporter(findings, source)("error", "tool-form", "", "The tools must be a list of objects.")
        return [], findings
    for number, tool in enumerate(tools):
        try:
            text = json.dumps(tool)
        except (TypeError, ValueError) as error:
            _reporter(findings, source, tool=f"tool {number + 1}")("error", "tool-form", "", f"Not JSON: {error}.")
            continue
        new, notes = _mend_tool(text, describe)
        name = new["function"]["name"]
        findings += [Finding(level, code, message, source, "", name, where) for level, code, where, message in notes]
        if name in seen:
            text = "Two tools have this name. Rename one of them or remove it."
            findings.append(Finding("error", "tool-duplicate", text, source, "", name))
        seen.add(name)
        mended.append(new)
    return mended, findings


@lru_cache(maxsize=4096)
def _mend_tool(text: str, describe: bool) -> tuple[dict, list[tuple]]:
    """One tool, given as JSON: OpenAI's form of it, and notes (level, code, where, message)."""
    notes = []

    def report(level, code, where, message):
        notes.append((level, code, where, message))

    tool = json.loads(text)
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        report("error", "tool-form", "", 'A tool is an object with "name", "description" and "parameters".')
        return {"type": "function", "function": {"name": "unnamed", "description": ""}}, notes
    new = {key: value for key, value in function.items() if value is not None}
    new["name"] = _check_name(function.get("name"), "", report)
    _check_text(new["name"], "", report)
    new["description"] = _mend_description(new, "", report)
    if not new["description"]:
        report("warning", "no-description", "", "The tool has no description, and the model chooses by it. Add one.")
    if new.get("parameters"):
        parameters = new["parameters"]
        if isinstance(parameters, dict) and "type" not in parameters:
            report("repair", "parameters-type", "parameters", 'The parameters have no type: "object" is added.')
            parameters = {"type": "object", **parameters}
        parameters, _ = _Mender(parameters, report, describe).mend(parameters, "")
        if str(parameters.get("type")).lower() != "object":
            report("error", "parameters-type", "parameters", 'The parameters must have the type "object".')
        parameters.pop("$defs", None), parameters.pop("definitions", None)
        new["parameters"] = parameters
        if not any(level == "error" for level, *_ in notes):
            try:
                jsonschema.Draft202012Validator.check_schema(_checkable(parameters))
            except jsonschema.SchemaError as error:
                place = ".".join(str(step) for step in error.absolute_path)
                report("error", "schema-invalid", place, f"This is no valid JSON Schema: {error.message}. Correct it.")
    return {"type": "function", "function": new}, notes


def _mend_description(schema: dict, where: str, report: Callable) -> str:
    description = schema.get("description", "")
    if not isinstance(description, str):
        report("error", "schema-invalid", where, "The description must be a text.")
        return ""
    return _check_text(description, where, report)


class _Mender:
    """Walks one tool's parameters; `root` holds the definitions that local references point to."""

    def __init__(self, root: dict, report: Callable, describe: bool):
        self.root, self.report, self.describe = root, report, describe

    def mend(self, schema, where: str, in_items: bool = False, depth: int = 0) -> tuple[dict, bool]:
        """The mended schema, and whether null was allowed (so that the parameter is optional)."""
        report = self.report
        if not isinstance(schema, dict):
            report("error", "schema-invalid", where, 'A schema is an object such as {"type": "string"}.')
            return {"type": "string"}, False
        if depth > MAX_DEPTH:
            report("error", "too-deep", where, f"The schema nests deeper than {MAX_DEPTH} levels. Flatten it.")
            return {"type": "string"}, False
        schema, optional = self._unite({key: value for key, value in schema.items() if value is not None}, where)
        self._type(schema, where)
        kind = str(schema["type"]).lower()
        if "description" in schema:
            schema["description"] = _mend_description(schema, where, report)
        elif where and not in_items:
            report("info", "no-description", where, "The parameter has no description; the model gets an empty one.")
        self._enum(schema, kind, where, in_items)
        if kind == "object":
            self._properties(schema, where, depth)
        elif kind == "array" and isinstance(schema.get("items"), dict):
            schema["items"], _ = self.mend(schema["items"], f"{where}[]", True, depth + 1)
        elif kind == "array":
            report("warning", "items", where, 'The list does not say what it holds. Add "items" with a type.')
            schema.pop("items", None)
        if in_items:
            rest = {
                key: value for key, value in schema.items() if key not in ("properties", "items", "description", "enum")
            }
            schema.update(_carry(rest, where, report))
        elif where:
            self._note(schema, kind, where)
        return schema, optional

    def _unite(self, schema: dict, where: str) -> tuple[dict, bool]:
        """One type out of references, unions with null and OpenAPI's nullable."""
        report, optional = self.report, bool(schema.pop("nullable", False))
        for _ in range(MAX_DEPTH):
            if "$ref" in schema:
                target, found = str(schema.pop("$ref")), self.root
                for step in target.split("/")[1:]:
                    found = found.get(step) if isinstance(found, dict) else None
                if not target.startswith("#/") or not isinstance(found, dict):
                    report(
                        "error", "reference", where, f"The reference {target} leads nowhere. Write the schema in place."
                    )
                else:
                    report("repair", "reference", where, f"The reference {target} is replaced by what it points to.")
                    schema = {**copy.deepcopy(found), **schema}
                continue
            union = next((key for key in ("anyOf", "oneOf", "allOf") if isinstance(schema.get(key), list)), None)
            if not union:
                break
            variants = [part for part in schema[union] if isinstance(part, dict)]
            real = [part for part in variants if part.get("type") != "null"]
            if len(real) != 1:
                break
            optional = optional or len(real) < len(variants)
            report("repair", "any-of", where, f"{union} with one type is replaced by that type.")
            schema = {**{key: value for key, value in schema.items() if key != union}, **real[0]}
        for key in _UNSUPPORTED:
            if key in schema:
                report("error", "any-of" if key.endswith("Of") else "keyword", where,
                       f'"{key}" cannot be declared. Give the parameter one plain type, or split it.')  # fmt: skip
                del schema[key]
        if isinstance(schema.get("type"), list):
            real = [kind for kind in schema["type"] if kind != "null"]
            if len(real) == 1:
                optional = optional or len(schema["type"]) > 1
                report("repair", "nullable", where, f'The type {json.dumps(schema["type"])} becomes "{real[0]}".')
                schema["type"] = real[0]
            else:
                kinds = json.dumps(schema["type"])
                report("error", "type-union", where, f"A parameter has one type, not {kinds}. Choose one, or split it.")
                schema["type"] = "string"
        return schema, optional

    def _type(self, schema: dict, where: str) -> None:
        """A type that the format knows, in the case it was written in."""
        kind = schema.get("type")
        if kind is None:
            values = [schema["const"]] if "const" in schema else schema.get("enum")
            strings = isinstance(values, list) and any(isinstance(value, str) for value in values)
            kind = (
                "object" if "properties" in schema else "array" if "items" in schema else "string" if strings else None
            )
            if kind:
                self.report("repair", "type-missing", where, f'No type is given: "{kind}" follows from the rest.')
            else:
                self.report("error", "type-missing", where, f"No type is given. Add one of {', '.join(_TYPES)}.")
        elif str(kind).lower() not in _TYPES:
            known = _TYPE_ALIASES.get(str(kind).lower())
            if known:
                self.report("repair", "type-name", where, f'The type "{kind}" is written "{known}".')
            else:
                self.report("error", "type-unknown", where, f'"{kind}" is no type. Use one of {", ".join(_TYPES)}.')
            kind = known
        schema["type"] = kind or "string"

    def _enum(self, schema: dict, kind: str, where: str, in_items: bool) -> None:
        if "const" in schema and "enum" not in schema:
            schema["enum"] = [schema["const"]]
        values = schema.get("enum")
        if values is None:
            return
        if not isinstance(values, list):
            self.report("error", "schema-invalid", where, '"enum" must be a list.')
            del schema["enum"]
            return
        if None in values:
            self.report(
                "repair", "enum-null", where, "null is taken out of the allowed values; leave the argument out."
            )
            values = schema["enum"] = [value for value in values if value is not None]
        if not values:
            self.report("error", "enum-empty", where, "No value is allowed. Fill the enum or remove it.")
        elif kind == "string" and not all(isinstance(value, str) for value in values):
            self.report("error", "enum-mixed", where, "The type is string, but not all allowed values are. Quote them.")
        elif kind == "string" or in_items:
            schema["enum"] = _carry(values, where, self.report)

    def _properties(self, schema: dict, where: str, depth: int) -> None:
        report, properties = self.report, schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            report("error", "schema-invalid", where, '"properties" must be an object and "required" a list of names.')
            return
        if isinstance(schema.get("additionalProperties"), dict):
            report(
                "warning", "open-object", where, "Free keys cannot be declared. Name them, or describe them in words."
            )
        _check_keys(list(properties), where, report)
        mended, optional = {}, []
        for name, part in properties.items():
            place = f"{where}.{name}" if where else name
            if name in RESERVED:
                report("error", "reserved-name", place, f'A parameter named "{name}" vanishes from the declaration. '
                       f'Rename it, for example to "{where.rpartition(".")[2] or "item"}_{name}".')  # fmt: skip
            mended[name], may_be_null = self.mend(part, place, False, depth + 1)
            if may_be_null and name in required:
                optional.append(name)
                report("repair", "nullable", place, "The parameter may be null: it is no longer required.")
        for name in required:
            if name not in properties:
                report("error", "required-undeclared", f"{where}.{name}" if where else str(name),
                       f'"{name}" is required but not declared. Declare it or take it out of "required".')  # fmt: skip
        if "properties" in schema:
            schema["properties"] = mended
        if optional:
            schema["required"] = [name for name in required if name not in optional]

    def _note(self, schema: dict, kind: str, where: str) -> None:
        """Writes what the declaration has no place for into the description."""
        description, sentences = schema.get("description", ""), []

        def add(keyword, sentence, values):
            shown = [
                value if value and isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values
            ]
            text = sentence.format(", ".join(shown))
            named = keyword == "enum" or keyword.lower() in description.lower()
            if text in description or (named and all(value in description for value in shown)):
                return
            sentences.append(text)
            code = "enum-not-string" if keyword == "enum" else "not-declared"
            self.report("repair", code, where,
                        f'"{keyword}" would be lost: repair_tools adds "{text}" to the description.')  # fmt: skip

        if kind != "string" and schema.get("enum") and not (kind == "boolean" and len(schema["enum"]) == 2):
            add("enum", "One of {}.", schema["enum"])
        for keyword, sentence in _UNDECLARED.items():
            if keyword in schema and not (keyword == "uniqueItems" and not schema[keyword]):
                add(keyword, sentence, [schema[keyword]])
        if sentences and self.describe:
            schema["description"] = " ".join(filter(None, [description.rstrip(), *sentences]))
            _check_text(schema["description"], where, self.report)


def _checkable(schema):
    """A schema that jsonschema checks arguments by: lower-case types, and no keys beyond the declared ones."""
    if isinstance(schema, list):
        return [_checkable(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    new = {}
    for key, value in schema.items():
        if key == "properties" and isinstance(value, dict):
            new[key] = {name: _checkable(part) for name, part in value.items()}
        elif key == "type" and isinstance(value, str):
            new[key] = value.lower()
        else:
            new[key] = _checkable(value) if key == "items" else value
    if new.get("properties") and "additionalProperties" not in new:
        new["additionalProperties"] = False
    return new


# ----------------------------------------------------------------------------------------------------- examples


def lint_examples(
    examples: list[dict],
    tools: list[dict] | None = None,
    *,
    source: str = "examples",
    tools_source: str = "tools",
    count_tokens: Callable[[str], int] | None = None,
    max_seq_length: int | None = None,
) -> list[Finding]:
    """Everything wrong with chat rows `{"id", "tools", "messages"}`; rows without tools of their own use `tools`.

    `count_tokens` gives the length in tokens of a rendered row, to be held against `max_seq_length`.
    """
    findings, ids, linted, called, offered = [], Counter(), {}, Counter(), {}
    told = set()  # what one tool has to say is said once, however many rows carry it
    for number, row in enumerate(examples):
        name = str(row.get("id", f"row {number + 1}")) if isinstance(row, Mapping) else f"row {number + 1}"
        report = _reporter(findings, source, name)
        if not isinstance(row, Mapping) or "messages" not in row:
            report("error", "row-form", "", 'A row is an object with "messages". Convert it with the data loader.')
            continue
        ids[name] += 1
        own = row.get("tools")
        key = json.dumps(own if own is not None else tools, sort_keys=True, default=str)
        if key not in linted:
            mended, notes = _mend_tools(own if own is not None else tools or [], source if own else tools_source, True)
            linted[key] = {tool["function"]["name"]: tool["function"] for tool in mended}, notes
            findings += [note for note in notes if note not in told]
            told.update(notes)
        functions, notes = linted[key]
        offered.update(dict.fromkeys(functions))
        before = len(findings)
        messages = _mend_messages(row["messages"], report)
        called.update(_lint_turns(messages, functions, report))
        if any(finding.level == "error" for finding in findings[before:] + notes):
            continue
        try:
            text = render(messages, list(functions.values()))
        except FormatError as error:
            report("error", "dialogue", "messages", str(error))
            continue
        if count_tokens and max_seq_length and (length := count_tokens(text)) > max_seq_length:
            report("error", "too-long", "messages", f"The row has {length} tokens and max_seq_length is "
                   f"{max_seq_length}. Shorten it, give it fewer tools, or raise the limit.")  # fmt: skip
    report = _reporter(findings, source)
    for name, count in ids.items():
        if count > 1:
            _reporter(findings, source, name)(
                "warning", "duplicate-id", "", f"{count} rows have this id. Renumber them."
            )
    for name in offered:
        if name not in called:
            report("warning", "tool-unused", "", "No example calls this tool. Add some, or remove the tool.", tool=name)
    counts = Counter({name: called[name] for name in offered if called[name]})
    if len(counts) > 1:
        (most, high), (least, low) = counts.most_common()[0], counts.most_common()[-1]
        if high > 10 * low:
            report(
                "warning", "imbalance", "", f"{low} calls, but {high} of {most}. Add examples of {least}.", tool=least
            )
    return findings


def repair_examples(examples: list[dict], source: str = "examples") -> tuple[list[dict], list[Finding]]:
    """The rows with arguments parsed, absent (null) arguments left out and tools repaired, and the findings."""
    findings, mended, told = [], [], set()
    for number, row in enumerate(examples):
        if not isinstance(row, Mapping) or not isinstance(row.get("messages"), list):
            mended.append(row)
            continue
        notes = []
        messages = _mend_messages(
            row["messages"], _reporter(notes, source, str(row.get("id", f"row {number + 1}"))), True
        )
        new = dict(row)
        if not any(note.level == "error" for note in notes):
            new["messages"] = messages
        if row.get("tools"):
            new["tools"], tool_notes = repair_tools(row["tools"], source)
            notes += [note for note in tool_notes if note not in told]
            told.update(tool_notes)
        findings += notes
        mended.append(new)
    return mended, findings


def _lint_turns(messages: list[dict], functions: dict[str, dict], report: Callable) -> Counter:
    """Checks the assistant's turns of one row; how often each tool is called."""
    called, answers, last_calls = Counter(), 0, []
    if functions and messages and messages[0]["role"] not in ("developer", "system"):
        report("warning", "no-trigger", "messages", f'The base model expects a developer message: "{TRIGGER}".')
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if message["role"] == "tool":
            names = [message["name"]] if "name" in message else [item["name"] for item in message["content"]]
            for name in names:
                if name not in last_calls:
                    report(
                        "warning",
                        "result-name",
                        where,
                        "A result of a tool that was not called. Check its name.",
                        tool=name,
                    )
        if message["role"] != "assistant":
            continue
        calls = [call["function"] for call in message.get("tool_calls", [])]
        last_calls = [call["name"] for call in calls]
        answers += bool(calls or message["content"])
        if not calls and not message["content"]:
            report("error", "empty-answer", where, "The answer is empty. Write a text or a call.")
        for i, call in enumerate(calls):
            called[call["name"]] += 1
            _lint_call(call, functions, f"{where}.tool_calls[{i}]", report)
    if not answers:
        report("error", "no-target", "messages", "No assistant turn, so there is nothing to learn. Add the answer.")
    elif messages[-1]["role"] != "assistant":
        report(
            "warning", "no-last-answer", "messages", "The last turn is no answer and is not trained. Add the answer."
        )
    return called


def _lint_call(call: dict, functions: dict[str, dict], where: str, report: Callable) -> None:
    name = call["name"]
    if name not in functions:
        report(
            "error",
            "unknown-tool",
            where,
            f"No such tool.{_meant(name, functions)} Declare it or correct the name.",
            tool=name,
        )
        return
    parameters = functions[name].get("parameters") or {"type": "object"}
    for error in _validator(json.dumps(parameters)).iter_errors(call["arguments"]):
        place = ".".join([f"{where}.arguments", *(str(step) for step in error.absolute_path)])
        value = json.dumps(error.instance, ensure_ascii=False)
        if error.validator == "required":
            for missing in error.validator_value:
                if missing not in error.instance:
                    text = f'The required argument "{missing}" is missing. Add it, or make it optional.'
                    report("error", "missing-argument", f"{place}.{missing}", text, tool=name)
            continue
        if error.validator == "additionalProperties":
            declared = error.schema.get("properties", {})
            for extra in sorted(set(error.instance) - set(declared)):
                text = f'"{extra}" is not declared.{_meant(extra, declared)} Declare it or leave it out.'
                report("error", "undeclared-argument", f"{place}.{extra}", text, tool=name)
            continue
        if error.validator == "type":
            code, text = (
                "wrong-type",
                f"{value} should be of the type {error.validator_value}. Correct the value or the schema.",
            )
        elif error.validator == "enum":
            code, text = (
                "enum-violation",
                f"{value} is not one of {json.dumps(error.validator_value, ensure_ascii=False)}.",
            )
            text += " Use one of them, or add it."
        else:
            code, text = "constraint", f"{error.message}. Correct the value or the schema."
        report("error", code, place, text, tool=name)


@lru_cache(maxsize=4096)
def _validator(parameters: str) -> jsonschema.Draft202012Validator:
    schema = _checkable(json.loads(parameters))
    if not schema.get("properties"):
        schema = {**schema, "additionalProperties": False}
    return jsonschema.Draft202012Validator(schema)


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f' Did you mean "{close[0]}"?' if close else ""
