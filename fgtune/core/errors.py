"""Errors that several rooms raise, and the class that all errors of this project have in common.

Errors of one room live beside the code that raises them: BaseModelError, FuseError, PruneError and VocabularyError
(models), DataError (data), FormatError and GrammarError (format), QuantizeError (quantize), OrtError and NodeError
(runtimes), LoadError and ToolError (inference), and ParameterError (core).
"""

from __future__ import annotations


class FgtuneError(Exception):
    """An error that a user can act on: its message is one line that says what to do.

    Subclasses name a built-in exception as a second base, so that code that catches ValueError or RuntimeError works.
    """


class ProjectError(FgtuneError, RuntimeError):
    """The project's root is not found, or a stage cannot start or finish."""


class TrainError(FgtuneError, ValueError):
    """Training cannot start or go on."""


class ToolMissing(FgtuneError, RuntimeError):
    """A program that a stage needs is not on this machine; the message says how to get it."""


class ExportError(FgtuneError, RuntimeError):
    """The model cannot be exported."""


class DeployError(FgtuneError, RuntimeError):
    """The site cannot be built or tried."""
