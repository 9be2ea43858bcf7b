"""Errors that several rooms raise; each message is one line that says what to do."""

from __future__ import annotations


class ProjectError(RuntimeError):
    """The project's root is not found, or a stage cannot start or finish; one line that says what to do."""


class TrainError(ValueError):
    """Training cannot start or go on; the message is one line that says what to do."""


class ToolMissing(RuntimeError):
    """A program that this stage needs is not on this machine; the message is one line that says how to get it."""


class ExportError(RuntimeError):
    """The model cannot be exported; the message is one line."""


class DeployError(RuntimeError):
    """The site cannot be built or tried; the message is one line."""
