"""Tools of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...format.findings import Finding
from ...format.tools import repair_tools
from .files import JSON_SUFFIXES, DataError, json_files, read_json


def tools_of(value: Any) -> list[dict]:
    """Stand-in for the function of the same name in `fgtune.format.tools`."""
    if isinstance(value, dict):
        value = value.get("tools", [value])
    return [tool.get("function", tool) if isinstance(tool, dict) else tool for tool in value]


def read_tools(path: Path) -> list[dict]:
    """Tools of a JSON file, or of a folder of such files, in order of name. Raises DataError.

    A file holds a list, one tool, or one of the containers that `fgtune.format.tools.tools_of` opens.
    """
    return [tool for file in _tool_files(path) for tool in _tools_in(file, path)]


def load_tools(path: Path) -> tuple[list[dict], list[Finding]]:
    """The tools of `path` in canonical form `{"name", "description", "parameters"}`, and the findings of all files.

    What cannot be read is a finding of the level "error". Raises DataError where there is no file at all.
    """
    tools, findings = [], []
    for file in _tool_files(path):
        try:
            tools += _tools_in(file, path)
        except DataError as error:
            findings.append(Finding("error", "unreadable", error.message, error.file, error.row))
    repaired, notes = repair_tools(tools, path.name)
    return plain_tools(repaired), findings + notes


def _tool_files(path: Path) -> list[Path]:
    files = json_files(path, JSON_SUFFIXES)
    if not files:
        raise DataError(f"{path} holds no .json file with tools")
    return files


def _tools_in(file: Path, root: Path) -> list[dict]:
    """The tools of one file, each with a name. Raises DataError."""
    name = relative_name(file, root)
    value = read_json(file)
    if not isinstance(value, list | dict) or not value:
        raise DataError('expected a list of tools [{"name", "description", "parameters"}]', name)
    tools = tools_of(value)
    for number, tool in enumerate(tools, 1):
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise DataError(f'tool {number} has no "name"', name)
    return tools


def relative_name(file: Path, root: Path) -> str:
    """The name of a file in messages: with its sub-folder where it stands in one below `root`."""
    return file.name if file == root else file.relative_to(root).as_posix()


def plain_tools(tools: list[dict]) -> list[dict]:
    """Tools as `{"name", "description", "parameters"}`, taken out of OpenAI's `{"type", "function"}` where needed."""
    return [tool.get("function", tool) for tool in tools]
