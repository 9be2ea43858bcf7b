"""transformers.js under Node: the runtime that browsers use, asked from Python over JSON lines."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import ToolMissing
from ..core.project import project_root
from ..export.layout import VARIANTS, loading, model_file
from ..format.messages import normalize_messages
from ..format.tools import normalize_tools
from .constrained import Constraint

NODE_MAJOR = 20


class NodeError(RuntimeError):
    """Node answered with an error, or stopped."""


def find_node() -> str:
    """Path of a Node of at least version 20 (FGTUNE_NODE, then PATH); raises ToolMissing."""
    how = "conda install -c conda-forge nodejs, or nodejs.org (or set FGTUNE_NODE)"
    program = os.environ.get("FGTUNE_NODE") or shutil.which("node")
    if not program:
        raise ToolMissing(f"Node.js {NODE_MAJOR} or later is needed: {how}")
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolMissing(f"{program} does not run ({type(error).__name__}): {how}") from None
    found = re.match(r"v(\d+)\.", answer)
    if not found or int(found[1]) < NODE_MAJOR:
        raise ToolMissing(f"{program} is {answer or 'no Node.js'}, version {NODE_MAJOR} or later is needed: {how}")
    return program


def find_package(name: str) -> Path:
    """Folder of an installed npm package; raises ToolMissing."""
    folder = project_root() / "node_modules" / name
    if not (folder / "package.json").exists():
        raise ToolMissing(f"the npm package {name} is not installed: run 'npm ci' in the project's root")
    return folder


class NodeProcess:
    """A script under Node that answers JSON lines: `ask(request)` yields the answers up to the last one."""

    def __init__(self, script: Path):
        self.process = None
        command = [find_node(), str(script)]
        self._errors: deque[str] = deque(maxlen=40)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
        )
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    def _read_errors(self) -> None:
        for line in self.process.stderr:
            self._errors.append(line.rstrip())

    def ask(self, request: dict, last=lambda answer: True):
        """Send `request`, yield each answer until `last(answer)`; raises NodeError with Node's own words."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError, OSError):
            raise NodeError(self._obituary()) from None
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise NodeError(self._obituary())
            answer = json.loads(line)
            if "failure" in answer:
                raise NodeError(f"Node: {answer['failure']}")
            yield answer
            if last(answer):
                return

    def _obituary(self) -> str:
        code = self.process.wait(timeout=60)
        self._reader.join(timeout=5)
        words = next((line for line in reversed(self._errors) if line.strip()), "no message")
        return f"Node stopped with status {code}: {words[:300]}"

    def close(self) -> None:
        """Let the process end; kill it when it does not."""
        if self.process is None or self.process.poll() is not None:
            return
        try:
            self.process.stdin.close()
            self.process.wait(timeout=20)
        except (subprocess.TimeoutExpired, OSError):
            self.process.kill()
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        try:
            self.close()
        except Exception:
            pass  # the interpreter is going down


class NodeGenerator(NodeProcess):
    """Greedy answers of one ONNX variant by transformers.js under Node.

    `model_dir` is a folder in the transformers.js layout (`onnx/model_<variant>.onnx`), `max_tokens` the longest
    answer. The tokens that all prompts of a call begin with are run once and their keys and values shared.
    """

    def __init__(self, model_dir, variant: str, max_tokens: int = 256, threads: int = 0):
        folder = Path(model_dir).resolve()
        if not (folder / "config.json").exists():
            raise NodeError(f"{folder} holds no config.json: a folder in the transformers.js layout is expected")
        if variant not in VARIANTS:
            raise NodeError(f"unknown variant {variant!r}: one of {', '.join(VARIANTS)}")
        if not (folder / "onnx" / model_file(variant)).exists():
            raise NodeError(f"{folder} holds no onnx/{model_file(variant)}: export or quantise that variant first")
        find_package("@huggingface/transformers")
        self.max_tokens = max_tokens
        self.stats: list[dict] = []
        self.finished: list[bool] = []  # of the last call: did each answer come to a stop token
        super().__init__(project_root() / "web" / "node" / "generate.mjs")
        request = {"op": "load", "folder": str(folder), "load": loading(variant), "threads": threads}
        try:
            self.info = next(self.ask(request))
        except NodeError:
            self.close()
            raise

    def _answers(self, prompts: list[str], constraints: Sequence[Constraint] | None, share: bool) -> list[dict]:
        if isinstance(prompts, str):
            raise TypeError("prompts is a list of strings, not one string")
        grammars = [{"tools": each.tools, "verbatim": each.verbatim, **each.options} for each in constraints or ()]
        request = {"op": "generate", "prompts": list(prompts), "maxTokens": self.max_tokens, "share": share}
        request["grammars"] = grammars or None
        answers = list(self.ask(request, last=lambda answer: "done" in answer))[:-1]
        self.stats = [answer["stats"] for answer in answers]
        self.finished = [answer["finished"] for answer in answers]
        return answers

    def generate(
        self, prompts: list[str], constraints: Sequence[Constraint] | None = None, share: bool = True
    ) -> list[str]:
        """Answer texts, control tokens included, without the stop token; figures of each are left in `stats`.

        `constraints` are applied by the grammar in JavaScript. With `share`, the prefix of all prompts is run once.
        """
        return [answer["text"] for answer in self._answers(prompts, constraints, share)]

    def generate_ids(
        self, prompts: list[str], constraints: Sequence[Constraint] | None = None, share: bool = True
    ) -> list[list[int]]:
        """Answer token ids without the stop id."""
        return [answer["ids"] for answer in self._answers(prompts, constraints, share)]

    def chat(self, messages: list[dict], tools: list[dict] | None = None) -> dict:
        """Render with `tokenizer.apply_chat_template` of transformers.js and answer: `{prompt, text, ids}`."""
        prompt = self.render(messages, tools, add_generation_prompt=True)
        answer = self._answers([prompt], None, share=False)[0]
        return {"prompt": prompt, "text": answer["text"], "ids": answer["ids"]}

    def render(self, messages: list[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False) -> str:
        """The prompt as transformers.js renders it from the template that travels with the model."""
        request = {"op": "render", "messages": messages, "tools": tools, "addGenerationPrompt": add_generation_prompt}
        return next(self.ask(request))["text"]

    def render_chat(self, messages: list[dict], tools: list[dict]) -> str:
        """The prompt of chat rows, normalised as `format.render` does; the answer is to follow. Raises FormatError."""
        return self.render(normalize_messages(messages), normalize_tools(tools), add_generation_prompt=True)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids by the JavaScript tokenizer, nothing added."""
        return next(self.ask({"op": "encode", "texts": list(texts)}))["ids"]

    def use_prefix(self, file) -> int:
        """Continue after the keys and values of a deployed prefix file; returns its length in tokens."""
        return next(self.ask({"op": "prefix", "file": str(Path(file).resolve())}))["prefixTokens"]
