"""FunctionGemma's format: dialogues and tools as text, calls back from text, and lint of what it would lose."""

from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "calls": ["Call", "CallSyntaxError", "format_call", "parse_calls", "same_call"],
        "findings": ["Finding", "FindingsTable", "FormatError", "SchemaError"],
        "grammar": ["GrammarError", "tool_grammar", "user_spans"],
        "lint": ["lint_examples", "repair_examples"],
        "messages": ["normalize_messages"],
        "template": ["TEMPLATE_FILE", "TRIGGER", "render"],
        "tokens": ["CONTROL_TOKEN", "CONTROL_TOKENS", "END_OF_TURN", "STOP_IDS", "TOKEN_IDS"],
        "tools": ["for_template", "lint_tools", "normalize_tools", "plain_tool", "repair_tools", "tools_of"],
    },
)
