"""Tools in the one form of the engine, `{"name", "description", "parameters"}`; what it would lose is named."""

import copy
import json
from collections.abc import Callable
from functools import lru_cache

import jsonschema

from .findings import Finding, SchemaError, reporter
from .schema import SchemaNormalizer, checkable_schema, normalized_description
from .values import check_name, check_text


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
        try:
            text = json.dumps(tool)
        except (TypeError, ValueError) as error:
            reporter(findings, source, tool=f"tool {number + 1}")("error", "tool-form", "", f"Not JSON: {error}.")
            continue
        new, notes = _normalized_tool(text, describe)
        report = reporter(findings, source, tool=new["name"])
        for note in notes:
            report(*note)
        if new["name"] in seen:
            report("error", "tool-duplicate", "", "Two tools have this name. Rename one of them or remove it.")
        seen.add(new["name"])
        normalized.append(new)
    return normalized, findings


@lru_cache(maxsize=4096)
def _normalized_tool(text: str, describe: bool) -> tuple[dict, list[tuple]]:
    """One tool, given as JSON: its plain form, and notes (level, code, where, message)."""
    notes = []

    def report(level, code, where, message):
        notes.append((level, code, where, message))

    tool = json.loads(text)
    function = plain_tool(tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        report("error", "tool-form", "", 'A tool is an object with "name", "description" and "parameters".')
        return {"name": "unnamed", "description": ""}, notes
    new = {key: value for key, value in function.items() if value is not None}
    new["name"] = check_name(function.get("name"), "", report)
    check_text(new["name"], "", report)
    new["description"] = normalized_description(new, "", report)
    if not new["description"]:
        report("warning", "no-description", "", "The tool has no description, and the model chooses by it. Add one.")
    if new.get("parameters"):
        new["parameters"] = _normalized_parameters(new["parameters"], report, describe)
        if not any(level == "error" for level, *_ in notes):
            _check_schema(new["parameters"], report)
    return new, notes


def _normalized_parameters(parameters, report: Callable, describe: bool) -> dict:
    """The parameters as a normalised schema of an object, without the definitions it referred to."""
    if isinstance(parameters, dict) and "type" not in parameters:
        report("repair", "parameters-type", "parameters", 'The parameters have no type: "object" is added.')
        parameters = {"type": "object", **parameters}
    parameters, _ = SchemaNormalizer(parameters, report, describe).normalize(parameters, "")
    if str(parameters.get("type")).lower() != "object":
        report("error", "parameters-type", "parameters", 'The parameters must have the type "object".')
    for definitions in ("$defs", "definitions"):
        parameters.pop(definitions, None)
    return parameters


def _check_schema(parameters: dict, report: Callable) -> None:
    try:
        jsonschema.Draft202012Validator.check_schema(checkable_schema(parameters))
    except jsonschema.SchemaError as error:
        place = ".".join(str(step) for step in error.absolute_path)
        report("error", "schema-invalid", place, f"This is no valid JSON Schema: {error.message}. Correct it.")
