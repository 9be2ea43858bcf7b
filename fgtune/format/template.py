"""Dialogues and tools as the text that FunctionGemma reads."""

import json
from functools import lru_cache
from pathlib import Path

import jinja2
import jinja2.ext

from .findings import FormatError
from .messages import normalize_messages
from .tools import normalize_tools

TRIGGER = "You are a model that can do function calling with the following functions"
TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")


def render(messages: list[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False) -> str:
    """The text the model reads, from `<bos>` on. Raises SchemaError (tools) or FormatError (messages)."""
    return "".join(render_parts(messages, tools, add_generation_prompt))


def render_parts(
    messages: list[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False
) -> tuple[str, str]:
    """The text in two parts: the first turn with the tools' declarations, and what follows it. Raises as `render`.

    The first part, from `<bos>` on, is kept from one text to the next. The second begins with a control token, or is
    empty.
    """
    messages = normalize_messages(messages)
    text = _render(messages, None, add_generation_prompt)
    opening = messages[0]["content"] if messages[0]["role"] in ("developer", "system") else None
    plain = _developer_turn(opening, "[]")
    try:
        declared = _developer_turn(opening, json.dumps(tools)) if tools else plain
    except (TypeError, ValueError):  # not JSON: the error names what is wrong
        return _render(messages, normalize_tools(tools), add_generation_prompt), ""
    return declared, text[len(plain) :]


def _render(messages: list[dict], tools: list[dict] | None, add_generation_prompt: bool = False) -> str:
    return _template().render(
        messages=messages, tools=tools, add_generation_prompt=add_generation_prompt, bos_token="<bos>"
    )


@lru_cache(maxsize=256)
def _developer_turn(content: str | None, tools: str) -> str:
    """The beginning of a text up to its second turn; `tools` is JSON, and no `content` no developer message."""
    if content is None:  # the template needs a message: an empty user turn, which is cut off again
        empty = "<start_of_turn>user\n<end_of_turn>\n"
        return _render([{"role": "user", "content": ""}], normalize_tools(json.loads(tools))).removesuffix(empty)
    return _render([{"role": "developer", "content": content}], normalize_tools(json.loads(tools)))


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    """The chat template, in an environment set up like the one of transformers' `apply_chat_template`.

    Without its sandbox, which looks into every name on every row: the template is our own.
    """

    def raise_exception(message):
        raise FormatError(message)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(TEMPLATE_FILE.read_text(encoding="utf-8"))
