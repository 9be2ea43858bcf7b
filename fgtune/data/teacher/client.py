"""A teacher behind any server that speaks OpenAI's chat completions: Ollama, llama.cpp, vLLM, or a hosted one.

The key comes from the environment and is used for nothing but the request: it is taken out of every text that the
server sends back, and an error carries no other error with it, because that one would hold the request.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...core.errors import FgtuneError
from .log import AnswerLog

KEY = "OPENAI_API_KEY"
HIDDEN = f"[{KEY}]"
SHORTEST_SECRET = 8  # characters; a shorter key ("none", "ollama") is no secret, and may be a word of an answer
SECONDS, RETRIES = 300.0, 2
FORMATS = ("json_schema", "json_object", "text")  # a server that refuses one is asked in the next


class TeacherError(FgtuneError, RuntimeError):
    """The teacher cannot be asked; the message is one sentence that says what to do."""


class Teacher:
    """A model on a server. `ask` gives its text; `format` is how the server is told which JSON it must be.

    `url`: the server's address, `model`: its name there ("": the only one that is listed), `answers`: the JSONL file
    that keeps what it said. Raises TeacherError where the server, the model or the key is not there.
    """

    def __init__(self, url: str, model: str, answers: Path, max_tokens: int = 600):
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number, a bracket without its other
            good = False
        if not good:
            raise TeacherError(f"the teacher's address must look like http://127.0.0.1:8080/v1, not {url!r}")
        if parts.username or parts.password or parts.query:
            raise TeacherError(f"the teacher's address holds more than an address: put the key into {KEY}")
        self.url, self.model, self.max_tokens, self.format = url, model, max_tokens, FORMATS[0]
        self._client = _client(url)
        self.model = self._listed_model()
        self.log = AnswerLog(answers)
        self.asked = 0  # answers that came from the server, not from the log

    def __repr__(self) -> str:
        return f"{self.model} at {self.url}"

    def ask(self, messages: list[dict], schema: dict, *, temperature: float, seed: int, about: str) -> str:
        """The text of an answer, which fits `schema` where the server can see to that; from the log where the same was
        asked before. `about` says there what it is. Raises TeacherError."""
        asked = {"messages": messages, "schema": schema, "temperature": temperature, "seed": seed}
        key = AnswerLog.key(model=self.model, **asked)
        if key not in self.log.answers:
            self.log.add(key, about, self._from_server(**asked))
            self.asked += 1
        return self.log.answers[key]

    def _from_server(self, messages: list[dict], schema: dict, temperature: float, seed: int) -> str:
        """What the server answers. Where it refuses to hold answers to a schema, it is told the schema in words."""
        while True:
            request: dict[str, Any] = {"model": self.model, "temperature": temperature, "seed": seed}
            request |= {"messages": messages, "max_tokens": self.max_tokens}
            if self.format == "json_schema":
                named = {"name": "answer", "schema": schema}
                request["response_format"] = {"type": "json_schema", "json_schema": named}
            else:
                told = f"{messages[-1]['content']}\nJSON Schema of the answer: {json.dumps(schema, ensure_ascii=False)}"
                request["messages"] = [*messages[:-1], {**messages[-1], "content": told}]
            if self.format == "json_object":
                request["response_format"] = {"type": "json_object"}
            answer, problem = self._try(lambda request=request: self._client.chat.completions.create(**request))
            if problem is None:
                text = answer.choices[0].message.content or "" if answer.choices else ""
                return _without_key(text, SHORTEST_SECRET)
            following = FORMATS[FORMATS.index(self.format) + 1 :]
            if problem[0] not in (400, 422, 501) or not following:
                raise TeacherError(problem[1])
            self.format = following[0]

    def _listed_model(self) -> str:
        """The model that is asked: the one named, or the only one that the server lists. Raises TeacherError."""
        listed, problem = self._try(lambda: [model.id for model in self._client.models.list()])
        if problem and problem[0] not in (404, 405, 501):  # a server need not list its models
            raise TeacherError(problem[1])
        listed = listed or []
        if self.model and (not listed or self.model in listed):
            return self.model
        shown = ", ".join(map(_without_key, listed[:8])) or "none"
        if self.model:
            near = difflib.get_close_matches(self.model, listed, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TeacherError(f"the server at {self.url} has no model {self.model!r}{hint} (it lists: {shown})")
        if len(listed) != 1:
            raise TeacherError(f"say which model of {self.url} is the teacher (teacher_model); it lists: {shown}")
        return listed[0]

    def _try(self, work: Callable[[], Any]) -> tuple[Any, tuple[int, str] | None]:
        """What `work` returns, or the status (0: no answer) and a sentence. No exception of the client leaves it: it
        holds the request with its headers."""
        import openai

        try:
            return work(), None
        except openai.APITimeoutError:
            return None, (0, f"the server at {self.url} did not answer within {SECONDS:.0f} seconds")
        except openai.APIConnectionError:
            return None, (0, f"no server answers at {self.url}: start it, or correct teacher_url")
        except openai.APIStatusError as error:
            return None, (error.status_code, self._sentence(error.status_code, str(error.message)))
        except (openai.OpenAIError, ValueError, TypeError, AttributeError):
            wrong = "is no answer of an OpenAI-compatible server: correct teacher_url (most end in /v1)"
            return None, (0, f"what {self.url} sends back {wrong}")

    def _sentence(self, status: int, message: str) -> str:
        if status in (401, 403):
            given = "refuses the key in" if os.environ.get(KEY) else "wants a key: put it into"
            return f"the server at {self.url} {given} {KEY} (status {status})"
        if status == 404:
            return f"{self.url} knows no such model or address (status 404): correct teacher_model or teacher_url"
        text = " ".join(_without_key(message).split())[:200]
        return f"the server at {self.url} refuses the request (status {status}): {text}"


def _client(url: str):
    """OpenAI's client for an address, with the key of the environment."""
    try:
        import openai
    except ImportError:
        raise TeacherError("the package openai is not installed: pip install -e '.[generate]'") from None
    key = os.environ.get(KEY, "")
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise TeacherError(f"{KEY} holds characters that no key has: set it again, without quotes and line ends")
    return openai.OpenAI(base_url=url, api_key=key or "none", timeout=SECONDS, max_retries=RETRIES)


def _without_key(text: str, shortest: int = 1) -> str:
    """The text with the key taken out, where the key is at least so long."""
    key = os.environ.get(KEY, "")
    return text.replace(key, HIDDEN) if len(key) >= shortest and key else text
