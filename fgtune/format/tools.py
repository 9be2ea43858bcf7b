"""Tools in the one form of the engine, `{"name", "description", "parameters"}`; what it would lose is named."""

import copy
import json
from collections.abc import Callable
from functools import lru_cache

from .findings import Finding, FormatError, SchemaError, did_you_mean, reporter
from .references import DEFINITIONS, names_referred_to
from .schema import SchemaNormalizer, checkable_schema, is_plain, normalized_description
from .values import check_name

_PARAMETER_KEYS = ("parameters", "inputSchema", "input_schema", "parametersJsonSchema", "parameters_json_schema")
_KEYS = ("name", "description", *_PARAMETER_KEYS)
# Keys of OpenAI, MCP, Anthropic and Gemini that tell a client something and the model nothing.
_FOR_CLIENTS = ("type", "strict", "title", "annotations", "outputSchema", "_meta", "icons", "execution",
                "cache_control", "response", "responseJsonSchema", "behavior")  # fmt: skip
_LISTS = ("tools", "functions", "functionDeclarations", "function_declarations")
_TOOL_KEYS = {"name", "function", "parameters", "inputSchema", "input_schema", "description"}
_SCHEMA_KEYS = {"type", "description", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "properties", "items"}


def tools_of(value) -> list[dict]:
    """The tools in a value read from JSON, each as it was written. Raises FormatError when it holds none.

    Read are a list, one tool, `tools`, `functions` and `functionDeclarations` (also one inside of another or of a
    list), a JSON-RPC result, tools by name, a schema with a title (pydantic) and the component schemas of OpenAPI.
    """
    if isinstance(value, (list, tuple)):
        return [tool for item in value for tool in (tools_of(item) if _holds_tools(item) else [item])]
    if not isinstance(value, dict):
        raise FormatError(f"Tools are a list of objects, not {'null' if value is None else type(value).__name__}.")
    if isinstance(value.get("error"), dict) and "result" not in value:
        raise FormatError(f"This is an error message and holds no tools: {value['error'].get('message', '')}")
    if isinstance(value.get("result"), (dict, list)):
        return tools_of(value["result"])
    for key in _LISTS:
        if isinstance(value.get(key), list):
            return tools_of(value[key])
        if isinstance(value.get(key), dict):
            return _by_name(value[key]) or tools_of(value[key])
    if _is_tool(value):
        return [value]
    if isinstance(value.get("components"), dict):
        return _components(value)
    named = _by_name(value)
    if not named:
        raise FormatError(
            'No tools were found. Give a list [{"name", "description", "parameters"}], or an object that holds one '
            f"under {', '.join(_LISTS)}."
        )
    return named


def _holds_tools(item) -> bool:
    """Whether an entry of a list holds tools and is none itself (Gemini: `[{"functionDeclarations": […]}]`)."""
    return isinstance(item, dict) and "name" not in item and any(isinstance(item.get(key), list) for key in _LISTS)


def _is_tool(value: dict) -> bool:
    named = isinstance(value.get("name"), str) or isinstance(value.get("function"), dict)
    return named or ("properties" in value and isinstance(value.get("title"), str))


def _by_name(value: dict) -> list[dict]:
    """Tools that stand under their names; none when not every entry looks like a tool."""
    if not value or not all(isinstance(tool, dict) and _TOOL_KEYS & set(tool) for tool in value.values()):
        return []
    return [tool if _is_tool(tool) else {"name": name, **tool} for name, tool in value.items()]


def _components(document: dict) -> list[dict]:
    """The component schemas of an OpenAPI document that no other one refers to, as tools of their names."""
    if document.get("paths"):
        raise FormatError(
            "This OpenAPI document describes paths. Keep the component schemas that are tools, and no paths."
        )
    schemas = document["components"].get("schemas")
    parts = schemas.items() if isinstance(schemas, dict) else ()
    schemas = {name: schema for name, schema in parts if isinstance(schema, dict)}
    inner = {name for schema in schemas.values() for name in names_referred_to(schema)}
    tools = []
    for name, schema in schemas.items():
        if name not in inner and (schema.get("type") == "object" or "properties" in schema or "allOf" in schema):
            parameters = {key: part for key, part in schema.items() if key != "description"}
            parameters["components"] = document["components"]
            tools.append({"name": name, "description": schema.get("description", ""), "parameters": parameters})
    if not tools:
        raise FormatError("No component schema of this OpenAPI document is an object that stands by itself.")
    return tools


def plain_tool(tool: dict) -> dict:
    """The tool itself, taken out of OpenAI's `{"type": "function", "function": …}` where it is in it."""
    return tool.get("function", tool)


def for_template(tools: list[dict]) -> list[dict]:
    """Plain tools in OpenAI's form, in which they are commonly handed to a chat template (transformers.js)."""
    return [{"type": "function", "function": tool} for tool in tools]


def normalize_tools(tools: list[dict] | None) -> list[dict]:
    """The tools as plain objects, structure normalised, as both template engines print them. Raises SchemaError."""
    normalized, findings = normalized_tools(tools or [], "tools", describe=False)
    errors = [str(finding) for finding in findings if finding.level == "error"]
    if errors:
        raise SchemaError("\n".join(errors))
    return copy.deepcopy(normalized)


def lint_tools(tools: list[dict], source: str = "tools") -> list[Finding]:
    """Everything the declarations of these tools would lose, and everything that is refused or repaired."""
    return repair_tools(tools, source)[1]


def repair_tools(tools: list[dict], source: str = "tools") -> tuple[list[dict], list[Finding]]:
    """The plain tools with all that can be repaired repaired, and the findings; errors are left for their author.

    What a declaration has no place for (a default, bounds, a list of numbers to choose from) goes into the
    description, where the model reads it, and stays in the schema, where arguments are checked against it.
    """
    normalized, findings = normalized_tools(tools, source, describe=True)
    return copy.deepcopy(normalized), findings


def normalized_tools(tools: list[dict], source: str, describe: bool) -> tuple[list[dict], list[Finding]]:
    """The door: plain tools out of any form they come in, and the findings. The tools are shared: copy before a change.

    With `describe`, keywords that a declaration has no place for are told in the descriptions.
    """
    findings, normalized, seen = [], [], set()
    if not isinstance(tools, (list, tuple)):
        reporter(findings, source)("error", "tool-form", "", "The tools must be a list of objects.")
        return [], findings
    for number, tool in enumerate(tools):
        label = f"tool {number + 1}"
        try:
            new, notes = _normalized_tool(json.dumps(tool, allow_nan=False), describe)
        except (TypeError, ValueError) as error:
            reporter(findings, source, tool=label)("error", "tool-form", "", f"Not JSON: {error}.")
            continue
        except RecursionError:
            reporter(findings, source, tool=label)("error", "too-deep", "", "The tool nests too deep. Flatten it.")
            continue
        named = new["name"] != "unnamed"
        report = reporter(findings, source, tool=new["name"] if named else label)
        for note in notes:
            report(*note)
        if named and new["name"] in seen:
            report("error", "tool-duplicate", "", "Two tools have this name. Rename one of them or remove it.")
        seen.add(new["name"])
        normalized.append(new)
    return normalized, findings


@lru_cache(maxsize=4096)
def _normalized_tool(text: str, describe: bool) -> tuple[dict, list[tuple]]:
    """One tool, given as JSON: its plain form, and notes (level, code, where, message), each of them once."""
    notes: dict[tuple, None] = {}

    def report(level, code, where, message):
        notes[level, code, where, message] = None

    tool = json.loads(text)
    function = plain_tool(tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        report("error", "tool-form", "", 'A tool is an object with "name", "description" and "parameters".')
        return {"name": "unnamed", "description": ""}, list(notes)
    function = _with_known_keys({key: value for key, value in function.items() if value is not None}, report)
    new = {"name": check_name(function.get("name"), "", report)}
    new["description"] = normalized_description(function, "", report)
    if not new["description"]:
        report("warning", "no-description", "", "The tool has no description, and the model chooses by it. Add one.")
    if function.get("parameters"):
        new["parameters"] = _normalized_parameters(function["parameters"], report, describe)
        if not any(level == "error" for level, *_ in notes):
            _check_schema(new["parameters"], report)
    return new, list(notes)


def _with_known_keys(function: dict, report: Callable) -> dict:
    """Name, description and parameters, whatever the keys that hold them; keys without a place are named."""
    if "name" not in function and "title" in function and not set(_PARAMETER_KEYS) & set(function):
        schema = {key: value for key, value in function.items() if key not in ("title", "description")}
        if "properties" in schema:
            report("repair", "schema-tool", "", "A schema with a title: the title becomes the name of the tool.")
            kept = {"description": function["description"]} if "description" in function else {}
            return {"name": function["title"], **kept, "parameters": schema}
    given = [key for key in _PARAMETER_KEYS if function.get(key)]
    if len(given) > 1:
        report("error", "parameters-twice", "", f"The parameters stand under {' and '.join(given)}. Keep one of them.")
    elif given and given[0] != "parameters":
        report("repair", "parameters-key", given[0], f'"{given[0]}" is taken as "parameters".')
    for key in function:
        if key not in _KEYS and key not in _FOR_CLIENTS:
            report("warning", "tool-key", key, f'"{key}" has no place in a declaration and is not used.'
                   f"{did_you_mean(key, _KEYS)}")  # fmt: skip
    unused = [key for key in _FOR_CLIENTS[2:] if key in function]
    if unused:
        report("info", "tool-key", "", f"The model is not told {', '.join(unused)}.")
    known = {key: function[key] for key in ("name", "description") if key in function}
    return known | ({"parameters": function[given[0]]} if given else {})


def _normalized_parameters(parameters, report: Callable, describe: bool) -> dict:
    """The parameters as a normalised schema of an object, without the definitions it referred to."""
    if _looks_like_properties(parameters):
        report("repair", "parameters-form", "parameters", 'The parameters stand by their names: "properties" is added.')
        parameters = {"type": "object", "properties": parameters}
    elif isinstance(parameters, dict) and "type" not in parameters:
        report("repair", "parameters-type", "parameters", 'The parameters have no type: "object" is added.')
        parameters = {"type": "object", **parameters}
    parameters, _ = SchemaNormalizer(parameters, report, describe).normalize(parameters, "")
    if str(parameters.get("type")).lower() != "object":
        report("error", "parameters-type", "parameters", 'The parameters must have the type "object".')
    for definitions in DEFINITIONS:
        parameters.pop(definitions, None)
    return parameters


def _looks_like_properties(parameters) -> bool:
    """Whether parameters are the properties themselves: schemas by name, with no keyword of a schema around them."""
    if not isinstance(parameters, dict) or isinstance(parameters.get("properties"), dict):
        return False
    given = {name: part for name, part in parameters.items() if part is not None}
    return (
        bool(given)
        and not set(given) & {*DEFINITIONS, "anyOf", "oneOf", "allOf"}
        and all(isinstance(part, dict) and _SCHEMA_KEYS & set(part) for part in given.values())
    )


def _check_schema(parameters: dict, report: Callable) -> None:
    if is_plain(parameters):
        return
    import jsonschema  # its import can take a second

    try:
        jsonschema.Draft202012Validator.check_schema(checkable_schema(parameters))
    except jsonschema.SchemaError as error:
        place = ".".join(str(step) for step in error.absolute_path)
        report("error", "schema-invalid", place, f"This is no valid JSON Schema: {error.message}. Correct it.")
