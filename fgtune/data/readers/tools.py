"""Tools of files."""

from __future__ import annotations

from pathlib import Path

from .files import DataError, json_files, read_json


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


def plain_tools(tools: list[dict]) -> list[dict]:
    """Tools as `{"name", "description", "parameters"}`, taken out of OpenAI's `{"type", "function"}` where needed."""
    return [tool.get("function", tool) for tool in tools]
