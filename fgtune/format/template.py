"""Dialogues and tools as the text that FunctionGemma reads."""

from functools import lru_cache
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.sandbox

from .findings import FormatError
from .messages import normalize_messages
from .tools import normalize_tools

TRIGGER = "You are a model that can do function calling with the following functions"
TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")


def render(messages: list[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False) -> str:
    """The text the model reads, from `<bos>` on. Raises SchemaError (tools) or FormatError (messages)."""
    return _template().render(
        messages=normalize_messages(messages),
        tools=normalize_tools(tools),
        add_generation_prompt=add_generation_prompt,
        bos_token="<bos>",
    )


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    """The chat template, in an environment set up like the one of transformers' `apply_chat_template`."""

    def raise_exception(message):
        raise FormatError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(TEMPLATE_FILE.read_text(encoding="utf-8"))
