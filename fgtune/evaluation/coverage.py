"""Gold calls that constrained decoding would not let through."""

from __future__ import annotations

from collections.abc import Iterable

from ..data.rows import case_of
from ..format.calls import format_call
from ..runtimes.constrained import Grammar


def refused_calls(grammar: Grammar, examples: Iterable[dict], tokenizer) -> list[dict]:
    """The `examples` whose gold calls the grammar does not let through. Raises GrammarError."""
    out = []
    for example in examples:
        case = case_of(example)
        if case.calls:
            constraint = grammar.constraint(case.tools, case.prompt)
            constraint.start()
            answer = "".join(map(format_call, case.calls)) + "<start_function_response>"
            if not all(map(constraint.accept, tokenizer.encode(answer, add_special_tokens=False))):
                out.append(example)
    return out
