"""Tools of files."""

from __future__ import annotations

from pathlib import Path

from ...format.findings import Finding, FormatError
from ...format.tools import plain_tool, repair_tools, tools_of
from .files import JSON_SUFFIXES, DataError, json_files, read_json


def read_tools(path: Path) -> list[dict]:
    """Plain tools of a JSON file, or of a folder of such files, in order of name. Raises DataError.

    A file holds a list, one tool, or one of the containers that `fgtune.format.tools.tools_of` opens.
    """
    tools = []
    for file in _tool_files(path):
        for number, tool in enumerate(_tools_in(file, path), 1):
            if not isinstance(tool, dict) or not isinstance(tool.get("name", tool.get("title")), str):
                raise DataError(f'tool {number} has no "name"', relative_name(file, path))
            tools.append(tool)
    return tools


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


def _tools_in(file: Path, root: Path) -> list:
    """The tools of one file, as they were written. Raises DataError."""
    name = relative_name(file, root)
    value = read_json(file)
    if not isinstance(value, list | dict) or not value:
        raise DataError('expected a list of tools [{"name", "description", "parameters"}]', name)
    try:
        return plain_tools(tools_of(value))
    except FormatError as error:
        raise DataError(str(error), name) from None


def relative_name(file: Path, root: Path) -> str:
    """The name of a file in messages: with its sub-folder where it stands in one below `root`."""
    return file.name if file == root else file.relative_to(root).as_posix()


def plain_tools(tools: list[dict]) -> list[dict]:
    """Tools as `{"name", "description", "parameters"}`, taken out of OpenAI's `{"type", "function"}` where needed."""
    return [plain_tool(tool) if isinstance(tool, dict) else tool for tool in tools]
