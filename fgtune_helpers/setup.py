"""Stage 00: what this machine has, and the base model."""

from __future__ import annotations

from fgtune.core.blas import device_report
from fgtune.core.environment import versions
from fgtune.core.errors import ToolMissing
from fgtune.format.tokens import CONTROL_TOKENS
from fgtune.models.base import resolve_base
from fgtune.runtimes.node import find_node, find_package
from fgtune.site.browser import find_chromium

__all__ = ["CONTROL_TOKENS", "machine_report", "missing_program", "resolve_base"]

PROGRAMS = {"Node": (find_node, "@huggingface/transformers"), "Chromium": (find_chromium, "playwright-core")}


def machine_report() -> dict[str, dict]:
    """What this machine has: `versions` of the packages that decide a result, the `device` that trains (its speed is
    measured by one product), and of each program that later stages need what is `missing` (a sentence, or None)."""
    missing = {program: missing_program(program) for program in PROGRAMS}
    return {"versions": versions(), "device": device_report(), "missing": missing}


def missing_program(name: str) -> str | None:
    """What `Node` (with transformers.js) or `Chromium` (with the package that drives it) lacks here, in one sentence
    that says how to get it; None when all is there."""
    find, package = PROGRAMS[name]
    try:
        find(), find_package(package)
    except ToolMissing as error:
        return str(error)
    return None
