"""The old name of calls as text: what it promised stays importable here. The engine has it in `fgtune.format`."""

from fgtune.format.calls import Call, CallSyntaxError, format_call, parse_calls, same_call

__all__ = ["Call", "CallSyntaxError", "format_call", "parse_calls", "same_call"]
