"""Makes tests/data/format-cases.json: varied dialogues with their text, from a fixed seed. Run by hand, kept in git.

The strategies serve the property tests too.
"""

import json
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fgtune.format.messages import normalize_messages
from fgtune.format.template import TRIGGER, render
from fgtune.format.tokens import CONTROL_TOKEN
from fgtune.format.tools import for_template, normalize_tools
from fgtune.format.values import KEY, METASPACE, RESERVED

CASES_FILE = Path(__file__).parent / "data" / "format-cases.json"
COUNT = 360

PIECES = [
    "Paris", "12 Main St., Apt #4", 'she said "hi"', "it's", "{x}, y: [1]", "a\nb", "\ttab\r\n", " ", "", "true",
    "null", "3.0", "naïve café", "東京の天気", "مرحبا", "Привет", "🌍👩‍👩‍👧", "𝒳", "\\n \\u0041", "<b>bold</b>",
    "<escape", "escape>", "end_of_turn>", "<start_function_call", "call:f{a:1}", "{{ x }}", "{% if %}", "{# c #}",
    "`code`", "$5", "a/b?c=d&e", "\u2028",
]  # fmt: skip
WORDS = ["city", "Unit", "unit", "days", "user.name", "x-y", "a b", "é", "ß", "Ω", "_", "0", "10", "2", "__proto__",
         "constructor", "toString", "items", "keys", "get", "length", "dictsort", "value", "name", "<",
         "k\n"]  # fmt: skip
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=METASPACE), max_size=12)
texts = (
    st.lists(st.sampled_from(PIECES) | plain, max_size=3)
    .map("".join)
    .filter(lambda text: not CONTROL_TOKEN.search(text))
)
keys = st.sampled_from(WORDS) | st.text(
    st.characters(max_codepoint=0xD7FF, exclude_characters=METASPACE), min_size=1, max_size=6
).filter(lambda key: KEY.fullmatch(key) and not CONTROL_TOKEN.search(key))
names = st.sampled_from(
    ["get_weather", "set-timer", "user.find", "a", "F", "mail/send", "ns:tool", "Größe", "Market Trends API"]
)
numbers = (
    st.integers(-(2**53 - 1), 2**53 - 1)
    | st.integers(-20, 20)
    | st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9)
    | st.sampled_from([0.5, 2.0, -0.0, 1e-4, 1e-5, 1.5e-6, 1e-7, 5e-324, 0.1 + 0.2, 1234567.125, 1e15 + 0.5])
)
values = st.recursive(
    texts | st.booleans() | numbers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(keys, values, max_size=4)


def _with_case(kind):
    return st.sampled_from([kind, kind, kind.upper()])


def _schema(kind, **parts):
    return st.fixed_dictionaries({"type": _with_case(kind)}, optional={"description": texts, **parts})


def _object(inner):
    properties = st.dictionaries(keys.filter(lambda key: key not in RESERVED), inner, max_size=3)

    def close(schema):
        required = (
            st.lists(st.sampled_from(sorted(schema["properties"])), unique=True) if schema["properties"] else None
        )
        return st.just(schema) if required is None else required.map(lambda found: {**schema, "required": found})

    return _schema("object", title=texts).flatmap(
        lambda schema: properties.flatmap(lambda found: close({**schema, "properties": found}))
    )


choices = st.lists(texts, min_size=1, max_size=3, unique=True)
leaves = (
    st.tuples(_schema("string"), choices).map(lambda pair: {**pair[0], "enum": pair[1]})
    | _schema("string", default=st.none(), minLength=st.just(1))
    | _schema("integer", minimum=st.integers(0, 9))
    | _schema("number", maximum=st.floats(1, 9))
    | _schema("boolean", default=st.booleans())
)
lists = st.fixed_dictionaries({"type": _with_case("array"), "items": _object(leaves) | leaves})
schemas = st.recursive(
    leaves | lists,
    lambda inner: (
        _object(inner)
        | _schema("array", items=inner)
        | st.fixed_dictionaries({"type": st.just("array"), "items": inner})
    ),
    max_leaves=5,
)
parameters = _object(schemas).map(lambda schema: {**schema, "type": "object"})
functions = st.fixed_dictionaries({"name": names, "description": texts}, optional={"parameters": parameters})
tool_lists = st.lists(functions, min_size=0, max_size=3, unique_by=lambda tool: tool["name"]).flatmap(
    lambda found: st.sampled_from([found, [{"type": "function", "function": tool} for tool in found]])
)


@st.composite
def dialogues(draw):
    """Messages and whether a prompt follows: turns of text, parallel calls, their results, several rounds."""
    messages = []
    if draw(st.booleans()):
        role = draw(st.sampled_from(["developer", "system"]))
        messages.append({"role": role, "content": draw(st.just(TRIGGER) | texts)})
    for _ in range(draw(st.integers(1, 3))):
        messages.append(
            {"role": "user", "content": draw(texts | texts.map(lambda text: [{"type": "text", "text": text}]))}
        )
        for _ in range(draw(st.integers(0, 2))):
            made = draw(st.lists(st.tuples(names, arguments), min_size=1, max_size=3))
            content = draw(st.none() | texts)
            calls = [{"type": "function", "function": {"name": name, "arguments": found}} for name, found in made]
            messages.append({"role": "assistant", "content": content, "tool_calls": calls})
            if draw(st.booleans()):
                content = [{"name": name, "response": draw(arguments | texts)} for name, _ in made]
                messages.append({"role": "tool", "content": content})
            else:
                for name, _ in made:
                    messages.append({"role": "tool", "name": name, "content": draw(arguments | texts)})
        messages.append({"role": "assistant", "content": draw(texts)})
    ending = draw(st.sampled_from(["whole", "prompt", "call", "result"]))
    if ending == "whole":
        return messages, False
    wanted = {"prompt": "user", "call": "assistant", "result": "tool"}[ending]
    while len(messages) > 1 and (
        messages[-1]["role"] != wanted or (ending == "call" and "tool_calls" not in messages[-1])
    ):
        messages.pop()
    return messages, messages[-1]["role"] in ("user", "tool")


def make() -> list[dict]:
    """COUNT different cases, always the same with one version of hypothesis."""
    cases, seen = [], set()

    @seed(20)
    @settings(
        max_examples=5 * COUNT,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(dialogues(), tool_lists)
    def collect(dialogue, tools):
        messages, prompt = dialogue
        messages, tools = normalize_messages(messages), for_template(normalize_tools(tools))
        text = render(messages, tools, prompt)
        if 80 < len(text) < 1800 and text not in seen and len(cases) < COUNT:
            seen.add(text)
            cases.append({"messages": messages, "tools": tools, "add_generation_prompt": prompt, "text": text})

    collect()
    return cases


if __name__ == "__main__":
    made = make()
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in made)
    CASES_FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(made)} cases, {CASES_FILE.stat().st_size} bytes")
