"""Calls as text and back, as notebooks use them; the engine has them in `fgtune.format`."""

from fgtune.format.calls import Call, CallSyntaxError, format_call, parse_calls, same_call

__all__ = ["Call", "CallSyntaxError", "format_call", "parse_calls", "same_call"]
