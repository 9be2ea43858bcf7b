"""Tools in one form, with what their declarations would lose named."""

import copy
import json
from functools import lru_cache

import jsonschema

from .findings import Finding, SchemaError, reporter
from .schema import SchemaNormalizer, checkable_schema, normalized_description
from .values import check_name, check_text


def normalize_tools(tools: list[dict] | None) -> list[dict]:
    """The tools in OpenAI's form, structure normalized, as both template engines expect them. Raises SchemaError."""
    normalized, findings = normalized_tools(tools or [], "tools", describe=False)
    errors = [str(finding) for finding in findings if finding.level == "error"]
    if errors:
        raise SchemaError("\n".join(errors))
    return copy.deepcopy(normalized)


def lint_tools(tools: list[dict], source: str = "tools") -> list[Finding]:
    """Everything the declarations of these tools would lose, and everything that is refused or repaired."""
    return repair_tools(tools, source)[1]


def repair_tools(tools: list[dict], source: str = "tools") -> tuple[list[dict], list[Finding]]:
    """The tools with all that can be repaired repaired, and the findings; errors are left for their author.

    What a declaration has no place for (a default, bounds, a list of numbers to choose from) goes into the
    description, where the model reads it, and stays in the schema, where arguments are checked against it.
    """
    normalized, findings = normalized_tools(tools, source, describe=True)
    return copy.deepcopy(normalized), findings


def normalized_tools(tools: list[dict], source: str, describe: bool) -> tuple[list[dict], list[Finding]]:
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
        name = new["function"]["name"]
        findings += [Finding(level, code, message, source, "", name, where) for level, code, where, message in notes]
        if name in seen:
            text = "Two tools have this name. Rename one of them or remove it."
            findings.append(Finding("error", "tool-duplicate", text, source, "", name))
        seen.add(name)
        normalized.append(new)
    return normalized, findings


@lru_cache(maxsize=4096)
def _normalized_tool(text: str, describe: bool) -> tuple[dict, list[tuple]]:
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
    new["name"] = check_name(function.get("name"), "", report)
    check_text(new["name"], "", report)
    new["description"] = normalized_description(new, "", report)
    if not new["description"]:
        report("warning", "no-description", "", "The tool has no description, and the model chooses by it. Add one.")
    if new.get("parameters"):
        parameters = new["parameters"]
        if isinstance(parameters, dict) and "type" not in parameters:
            report("repair", "parameters-type", "parameters", 'The parameters have no type: "object" is added.')
            parameters = {"type": "object", **parameters}
        parameters, _ = SchemaNormalizer(parameters, report, describe).mend(parameters, "")
        if str(parameters.get("type")).lower() != "object":
            report("error", "parameters-type", "parameters", 'The parameters must have the type "object".')
        parameters.pop("$defs", None), parameters.pop("definitions", None)
        new["parameters"] = parameters
        if not any(level == "error" for level, *_ in notes):
            try:
                jsonschema.Draft202012Validator.check_schema(checkable_schema(parameters))
            except jsonschema.SchemaError as error:
                place = ".".join(str(step) for step in error.absolute_path)
                report("error", "schema-invalid", place, f"This is no valid JSON Schema: {error.message}. Correct it.")
    return {"type": "function", "function": new}, notes
