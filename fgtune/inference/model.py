"""A loaded model: one answer, a stream, a batch, or a dialogue in which Python functions run."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from ..core.errors import DeployError
from ..engines.ort import OrtError
from ..format.calls import Call, CallSyntaxError, parse_calls
from ..format.findings import FormatError, did_you_mean, one_line, reporter
from ..format.grammar import GrammarError
from ..format.template import render
from ..format.tokens import CALL_START
from ..format.tools import repair_tools
from ..format.values import check_text
from ..runtimes.constrained import Grammar
from ..runtimes.drafts import Drafts
from ..runtimes.onnxruntime import OrtGenerator
from ..site.prompt_cache import prefix_ids, stored_prompt_cache
from .decorator import declarations
from .functions import Result, functions_by_name, run_call
from .sources import LoadError, Source, open_source

Tools = Sequence[dict | Callable]  # declarations or decorated functions


@dataclass(frozen=True)
class Answer:
    """What the model said: `calls` (none: a text answer), `text`, its token `ids`, and the `seconds` it took.

    `error` is empty, or says in one line what is wrong: truncated, or not well-formed (`text` is then what the model
    wrote, markers included). `results` are those of the functions that `run` called, in the order of `calls`.
    """

    calls: tuple[Call, ...]
    text: str
    ids: tuple[int, ...]
    seconds: float
    error: str = ""
    results: tuple[Result, ...] = ()


def load(folder: str | Path, variant: str = "q4", threads: int | None = None) -> Model:
    """The model of a finished run, of a deployed site, or of a folder with a model and `tools.json`.

    `threads` None takes one per core. Raises LoadError for anything else, and for a variant that is not there.
    """
    if threads is not None:
        _check_count("threads", threads)
    try:
        with open_source(folder, variant) as source:
            return Model(source, variant, threads)
    except (OrtError, DeployError, OSError) as error:
        raise LoadError(one_line(str(error))) from error


class Model:
    """A tuned model with the tools, the developer turn and the verbatim arguments of its training.

    The keys and values of the developer turn are those that the deployed site ships, where it is of this model; else
    they are computed once. Threads may ask at once: they take turns, at each token of a stream.
    """

    def __init__(self, source: Source, variant: str = "q4", threads: int | None = None):
        self.source, self.variant = source, variant
        self.generator = OrtGenerator(
            source.model, variant, threads=threads, drafts=Drafts(), tokenizer_file=source.tokenizer
        )
        self.grammar = Grammar(source.model, source.verbatim, self.generator.tokenizer)
        self.grammar.vocab_size = self.generator.model.vocab
        self._turn = threading.Lock()
        self._prefix_of = ""  # the tools whose keys and values the generator holds

    @property
    def tools(self) -> list[dict]:
        """The tools of the training, `{"name", "description", "parameters"}`."""
        return self.source.tools

    def call(self, query: str, tools: Tools | None = None, max_tokens: int = 256, constrained: bool = True) -> Answer:
        """The answer to a request. `tools` stand in for those of the training; `constrained` holds calls to them."""
        return self.batch([query], tools, max_tokens, constrained)[0]

    def batch(
        self, queries: Sequence[str], tools: Tools | None = None, max_tokens: int = 256, constrained: bool = True
    ) -> list[Answer]:
        """The answers to several requests, decoded together; `seconds` are those of all of them."""
        if isinstance(queries, str) or not isinstance(queries, Iterable):
            raise LoadError(f"queries is a {type(queries).__name__}: give a list of texts, or ask with call")
        return self._ask([[_said_by_user(query)] for query in queries], self._offered(tools), max_tokens, constrained)

    def stream(
        self, query: str, tools: Tools | None = None, max_tokens: int = 256, constrained: bool = True
    ) -> Iterator[str]:
        """The answer in pieces of text as they are made, calls as the model writes them (`parse_calls` reads them).

        The iterator's return value is the Answer: `answer = yield from model.stream(…)`.
        """
        begin = time.perf_counter()
        tokens, ids, told = self._tokens(_said_by_user(query), self._offered(tools), max_tokens, constrained), [], ""
        while True:
            with self._asking():
                try:
                    ids.append(next(tokens))
                except StopIteration as last:
                    ended = last.value
                    break
            text = self.generator.decode(ids)
            if not text.endswith("\ufffd"):  # the bytes of a character may take several tokens
                yield text.removeprefix(told)
                told = text
        if rest := self.generator.decode(ids).removeprefix(told):
            yield rest
        return self._read(ids, ended, max_tokens, time.perf_counter() - begin)

    def run(
        self,
        query: str,
        functions: Mapping[str, Callable] | Iterable[Callable],
        tools: Tools | None = None,
        max_tokens: int = 256,
        constrained: bool = True,
        rounds: int = 4,
    ) -> Answer:
        """Answer a request with functions: run what the model calls, tell it the results, until it answers.

        `functions` are decorated, or a dict of functions by tool. Arguments are checked against the tool's schema
        before. What goes wrong is told to the model as `{"error": …}` and stands in `results`. `calls` and `results`
        are those of all `rounds`, `text` and `ids` the last answer. Raises LoadError for a function of no tool.
        """
        begin, functions, offered = time.perf_counter(), functions_by_name(functions), self._offered(tools)
        _check_count("rounds", rounds)
        named = {tool["name"]: tool for tool in offered}
        for name in functions:
            if name not in named:
                raise LoadError(f"the model has no tool {name!r}.{did_you_mean(name, named)} Or give it as tools=…")
        messages, calls, results = [_said_by_user(query)], [], []
        for _ in range(rounds):
            [answer] = self._ask([messages], offered, max_tokens, constrained)
            if answer.error or not answer.calls:
                break
            done = [run_call(call, functions, named) for call in answer.calls]
            calls, results = calls + list(answer.calls), results + done
            messages += _calls_and_results(answer, done)
        else:
            answer = replace(answer, error=f"still calling after {rounds} rounds")
        return replace(answer, calls=(*calls,), results=(*results,), seconds=time.perf_counter() - begin)

    def _ask(self, dialogues: list[list[dict]], tools: list[dict], max_tokens: int, constrained: bool) -> list[Answer]:
        begin = time.perf_counter()
        with self._asking():
            prompts, constraints = self._prepare(dialogues, tools, max_tokens, constrained)
            answers, ended = self.generator.generate_ids(prompts, constraints), self.generator.finished
        seconds = time.perf_counter() - begin
        return [self._read(*answer, max_tokens, seconds) for answer in zip(answers, ended, strict=True)]

    def _tokens(self, said: dict, tools: list[dict], max_tokens: int, constrained: bool) -> Generator[int, None, bool]:
        """The tokens of an answer, each made within a turn of the caller's; returns whether it is complete."""
        [prompt], constraints = self._prepare([[said]], tools, max_tokens, constrained)
        return (yield from self.generator.stream_ids(prompt, constraints and constraints[0]))

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """A turn at the generator, which one thread may have; what cannot be asked is a LoadError."""
        with self._turn:
            try:
                yield
            except (FormatError, GrammarError, OrtError) as error:
                raise LoadError(one_line(str(error))) from error

    def _prepare(self, dialogues: list[list[dict]], tools: list[dict], max_tokens: int, constrained: bool):
        """The rendered prompts of dialogues, and their constraints or None; the generator holds the prefix of both."""
        _check_count("max_tokens", max_tokens)
        self._hold_prefix(tools)
        self.generator.max_tokens = max_tokens
        turn = self.source.turn.fill(datetime.now().astimezone())
        opening = {"role": "developer", "content": turn}
        prompts = [render([opening, *messages], tools, add_generation_prompt=True) for messages in dialogues]
        return prompts, [self.grammar.constraint(tools, prompt) for prompt in prompts] if constrained else None

    def _hold_prefix(self, tools: list[dict]) -> None:
        """Give the generator the keys and values of what all questions about `tools` begin with."""
        if (key := json.dumps(tools)) == self._prefix_of:
            return
        ids = prefix_ids(self.generator.encode, tools, self.source.turn)
        stored = self._stored_cache() if tools == self.tools else None
        if stored and stored[0] == ids:
            self.generator.use_prompt_cache(*stored)
        else:
            self.generator.run_prompt_cache(ids)
        self._prefix_of = key

    def _stored_cache(self) -> tuple | None:
        """Token ids, keys and values that the site ships, if it ships any of this variant and of these weights."""
        try:
            return stored_prompt_cache(self.source.site, self.variant) if self.source.site else None
        except DeployError:
            return None

    def _offered(self, tools: Tools | None) -> list[dict]:
        """The tools of a question, normalised. Raises LoadError."""
        if tools is None:
            return self.tools
        if isinstance(tools, (str, Mapping)) or not isinstance(tools, Iterable):
            raise LoadError(f"tools is a {type(tools).__name__}: give a list of declarations or decorated functions")
        offered, findings = repair_tools(declarations(tools))
        if errors := [finding for finding in findings if finding.level == "error"]:
            raise LoadError(str(errors[0]))
        return offered

    def _read(self, ids: Sequence[int], ended: bool, max_tokens: int, seconds: float) -> Answer:
        text = self.generator.decode(ids)
        calls, error = (), ""
        if not ended:
            error = f"truncated at max_tokens = {max_tokens}"
            if len(ids) < max_tokens:
                error = f"truncated: the model holds {self.generator.model.positions} tokens (max_positions)"
        else:
            try:
                calls = (*parse_calls(text),)
                text = text.partition(CALL_START)[0].strip()
            except CallSyntaxError as problem:
                error = str(problem)
        return Answer(calls, text, (*ids,), seconds, error)


def _said_by_user(query: str) -> dict:
    if not isinstance(query, str):
        raise LoadError(f"the request is a {type(query).__name__}: give a text")
    if not query.strip():
        raise LoadError("the request is empty: give a text")
    findings = []
    check_text(query, "", reporter(findings, ""))
    if findings:
        raise LoadError(f"the request: {findings[0].message}")
    return {"role": "user", "content": query}


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise LoadError(f"{name} is {value!r}: give a whole number from 1 on")


def _calls_and_results(answer: Answer, results: list[Result]) -> list[dict]:
    """The model's turn and what came of it, as training has them."""
    calls = [{"type": "function", "function": vars(call)} for call in answer.calls]
    told = [{"name": result.call.name, "response": result.response} for result in results]
    return [{"role": "assistant", "content": answer.text, "tool_calls": calls}, {"role": "tool", "content": told}]
