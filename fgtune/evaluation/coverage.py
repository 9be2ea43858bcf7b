"""Gold calls that constrained decoding would not let through."""

from __future__ import annotations

from collections.abc import Iterable

from ..data.rows import Case, case_of
from ..data.verbatim import is_verbatim, text_arguments
from ..format.calls import format_call
from ..format.grammar import user_spans
from ..runtimes.constrained import Constraint, Grammar


def refused_calls(grammar: Grammar, examples: Iterable[dict], tokenizer) -> list[dict]:
    """The `examples` whose gold calls the grammar does not let through. Raises GrammarError.

    A grammar with verbatim arguments is another one for each request. Most gold calls need none of their own: they fit
    the grammar of their tools alone, which is made once, and their verbatim arguments are words of the request.
    """
    free = Grammar(grammar.folder)
    free.tokens, free.vocab_size = grammar.tokens, grammar.vocab_size
    shared: dict[int, tuple[list, Constraint]] = {}  # by the identity of the tools, which are kept here
    out = []
    for example in examples:
        case = case_of(example)
        if not case.calls:
            continue
        answer = "".join(map(format_call, case.calls)) + "<start_function_response>"
        ids = tokenizer.encode(answer, add_special_tokens=False)
        tools = example["tools"]
        if id(tools) not in shared:
            shared[id(tools)] = tools, free.constraint(tools)
            shared[id(tools)][1].start()
        constraint = shared[id(tools)][1]
        if _lets_through(constraint, ids) and _copies(case, grammar.verbatim):
            constraint.matcher.reset()
            continue
        del shared[id(tools)]  # a refusal is final for a matcher
        constraint = grammar.constraint(case.tools, case.prompt)
        constraint.start()
        if not _lets_through(constraint, ids):
            out.append(example)
    return out


def _lets_through(constraint: Constraint, ids: list[int]) -> bool:
    return all(map(constraint.accept, ids))


def _copies(case: Case, verbatim: Iterable[str]) -> bool:
    """Whether all `verbatim` arguments of the case's calls are whole words of its request, as the grammar asks."""
    spans, names = user_spans(case.prompt), set(verbatim)
    return all(
        name not in names or any(is_verbatim(value, span) for span in spans)
        for call in case.calls
        for name, value in text_arguments(call, {})
    )
