"""Constrained decoding with llguidance: a grammar made from tool definitions and from the words of the dialogue.

web/grammar.js does the same in JavaScript. What both let through: calls of declared tools with declared arguments in
the order of the format (required ones present), further ones where the schema says what they hold
(`additionalProperties`), values of the declared types and enums, several calls in a row, or a text answer; never a
control token inside a text, not even spelled out in ordinary characters. Verbatim arguments, which every training
example copies word for word (`verbatim_arguments`), hold words of the dialogue and nothing else: a small model that
means *Córdoba* and would write *Cordoba* cannot.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..format.grammar import GrammarError, tool_grammar, user_spans
from ..format.tokens import TOKEN_IDS
from ..format.values import METASPACE


class Grammar:
    """Grammars for one model: `constraint(case.tools, case.prompt)` limits the answer to a prompt.

    `model_dir` holds `tokenizer.json` and `config.json`; `verbatim` are arguments (`tool.argument`) that hold words of
    the dialogue and nothing else. A `tokenizer` (of tokenizers) that is loaded already saves reading the file.
    """

    def __init__(self, model_dir: str | Path, verbatim: Iterable[str] = (), tokenizer=None):
        self.folder, self.verbatim, self.tokenizer = Path(model_dir), list(verbatim), tokenizer

    @functools.cached_property
    def vocab_size(self) -> int:
        """The number of logits."""
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]

    @functools.cached_property
    def tokens(self):
        """llguidance's view of the tokenizer, which may have a token more than the model (`<image_soft_token>`)."""
        from llguidance import LLTokenizer, TokenizerWrapper
        from tokenizers import Tokenizer

        tokenizer = self.tokenizer or Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        entries = _Entries(tokenizer, self.vocab_size)
        # slices would speed up JSON's strings; the masks of these grammars take as long without them
        return LLTokenizer(TokenizerWrapper(entries), len(entries.tokens), TOKEN_IDS["eos"], slices=[])

    def constraint(self, tools: Iterable[dict], prompt: str = "", **options) -> Constraint:
        """For one answer to `prompt`; `options` as in `tool_grammar`."""
        tools = list(tools)
        return Constraint(self, tools, prompt, {"calls": bool(tools), **options})


class _Entries:
    """The vocabulary of a tokenizer (of tokenizers) as llguidance takes it: the bytes of each token, by id.

    llguidance could read `tokenizer.json` itself, but that takes a second copy of it, and longer.
    """

    eos_token_id, bos_token_id = TOKEN_IDS["eos"], None

    def __init__(self, tokenizer, size: int):
        self.tokenizer = tokenizer
        found, added = tokenizer.get_vocab(), tokenizer.get_added_tokens_decoder()
        names = [""] * max(size, max(found.values()) + 1)
        for name, i in found.items():
            names[i] = name
        holes = {i: f"<[{i}]>" for i, name in enumerate(names) if not name}
        markers = {i: token.content for i, token in added.items() if is_marker(token)} | holes
        self.tokens = "\0".join(names).replace(METASPACE, " ").encode().split(b"\0")  # at one go: there are many
        for i, name in markers.items():
            self.tokens[i] = name.encode()
        for byte in range(256):
            if (i := found.get(f"<0x{byte:02X}>")) is not None:
                self.tokens[i] = bytes([byte])
        self.special_token_ids = sorted(markers)

    def __call__(self, text: bytes | str) -> list[int]:
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def is_marker(token) -> bool:
    """Whether an added token stands for no text of its own: control tokens, `<unused0>` and their like."""
    return token.special or (token.content.startswith("<") and token.content.endswith(">"))


class Constraint:
    """What limits one answer: `start()`, then `allowed()` and `accept(token)` in turn, or `choose(scores)`."""

    def __init__(self, grammar: Grammar, tools: list[dict], prompt: str, options: dict):
        self.grammar, self.tools, self.prompt, self.options = grammar, tools, prompt, options
        self.verbatim = grammar.verbatim
        self.seconds, self.steps = 0.0, 0

    def start(self) -> None:
        """Begin the answer. Raises GrammarError."""
        from llguidance import LLMatcher, grammar_from

        begin = time.perf_counter()
        text = tool_grammar(self.tools, **self.options, verbatim=self.verbatim, context=user_spans(self.prompt))
        self.matcher = LLMatcher(self.grammar.tokens, grammar_from("lark", text))
        if self.matcher.is_error():
            raise GrammarError(self.matcher.get_error().splitlines()[0])
        self.seconds, self.steps = time.perf_counter() - begin, 0

    def allowed(self) -> np.ndarray:
        """Which tokens may come next: bool [vocab_size]."""
        begin = time.perf_counter()
        mask = np.frombuffer(self.matcher.compute_logit_bias(), np.uint8)[: self.grammar.vocab_size] > 0
        self.seconds += time.perf_counter() - begin
        self.steps += 1
        return mask

    def accept(self, token: int) -> bool:
        """Go on by one token; False when it does not fit."""
        begin = time.perf_counter()
        fits = self.matcher.consume_token(int(token))
        self.seconds += time.perf_counter() - begin
        return fits

    def choose(self, scores: np.ndarray) -> int:
        """The likeliest token that is allowed, by `scores` [vocab_size]; goes on by it.

        Mostly the likeliest of all is allowed: it is tried first, and the mask is made only where it does not fit.
        """
        begin = time.perf_counter()
        token = int(scores.argmax())
        fits = self.matcher.try_consume_tokens([token]) == 1
        self.seconds += time.perf_counter() - begin
        self.steps += fits
        if not fits:
            allowed = np.flatnonzero(self.allowed())
            if not len(allowed):
                raise GrammarError("the grammar allows no token")
            token = int(allowed[scores[allowed].argmax()])
            self.advance(token)
        return token

    def lookahead(self) -> Lookahead:
        """A copy to try tokens on, which leaves this constraint where it is."""
        return Lookahead(self.matcher.deep_copy())

    def advance(self, token: int) -> None:
        """Go on by a token that is allowed. Raises GrammarError for another."""
        if not self.accept(token):
            raise GrammarError(f"token {token} does not fit the grammar")

    @property
    def ms_per_token(self) -> float:
        """What the grammar cost since `start`, in milliseconds a token of the answer."""
        return 1000 * self.seconds / max(self.steps, 1)


class Lookahead:
    """A constraint's copy that drafts run ahead with, and then drop.

    A copy rather than a rollback of the constraint itself: a matcher that has once met an error stays there, and
    llguidance 1.9 meets one when it is asked for forced bytes where its mask held a lone control token. A copy takes
    0.01 ms.
    """

    def __init__(self, matcher):
        self.matcher = matcher

    def accept(self, token: int) -> bool:
        """Go on by one token; False, and nothing done, when it does not fit."""
        return self.matcher.try_consume_tokens([int(token)]) == 1

    def forced(self) -> list[int]:
        """Tokens that spell the bytes that must come next (others may spell them too); none where there is a choice."""
        # the bytes are found by the first call; the second alone gives none where a grammar forbids forcing
        return self.matcher.compute_ff_tokens() if self.matcher.compute_ff_bytes() else []
