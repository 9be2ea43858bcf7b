"""The prompt format as notebooks use it; the engine has it in `fgtune.format`."""

from fgtune.format.findings import Finding, FormatError, SchemaError
from fgtune.format.template import TRIGGER, render
from fgtune.format.tools import lint_tools

__all__ = ["TRIGGER", "Finding", "FormatError", "SchemaError", "lint_tools", "render"]
