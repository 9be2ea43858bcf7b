"""A typed function with a docstring as a tool: types, descriptions, errors, and the command."""

import datetime
import functools
import json
import textwrap
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal, Optional

import jsonschema
import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from fgtune import ToolError, tool
from fgtune.core.errors import FgtuneError
from fgtune.format.schema import checkable_schema, is_plain
from fgtune.format.tools import lint_tools, normalize_tools
from fgtune.inference.decorator import declarations
from fgtune.inference.docstrings import parse_docstring
from fgtune.inference.modules import module_tools
from fgtune_helpers.__main__ import main


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(Enum):
    SMALL = 1
    LARGE = 2


@dataclass
class Point:
    lat: float
    lon: float = 0.0


class Person(BaseModel):
    name: str = Field(description="The name.")
    title: str | None = None


class Options(TypedDict, total=False):
    fast: bool


TEXT = {"type": "string"}
POINT = {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}}, "required": ["lat"]}
KINDS = [  # the annotation, its schema without descriptions and defaults, a value in a call, what the function gets
    (str, TEXT, "a", "a"),
    (int, {"type": "integer"}, 3, 3),
    (float, {"type": "number"}, 3, 3.0),
    (bool, {"type": "boolean"}, True, True),
    (Literal["a", "b"], {**TEXT, "enum": ["a", "b"]}, "b", "b"),
    (Colour, {**TEXT, "enum": ["red", "blue"]}, "red", Colour.RED),
    (Size, {"type": "integer", "enum": [1, 2]}, 2, Size.LARGE),
    (list[str], {"type": "array", "items": TEXT}, ["a"], ["a"]),
    (list[Colour], {"type": "array", "items": {**TEXT, "enum": ["red", "blue"]}}, ["blue"], [Colour.BLUE]),
    (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}, {"a": 1}, {"a": 1}),
    (Optional[int], {"type": "integer"}, 4, 4),  # noqa: UP045
    (str | None, TEXT, "x", "x"),
    (Annotated[int, Field(ge=1, le=5)], {"type": "integer", "minimum": 1, "maximum": 5}, 5, 5),
    (datetime.date, {**TEXT, "format": "date"}, "2026-11-28", datetime.date(2026, 11, 28)),
    (Point, POINT, {"lat": 1.5}, Point(1.5)),
    (list[Point], {"type": "array", "items": POINT}, [{"lat": 1, "lon": 2}], [Point(1.0, 2.0)]),
    (Person, {"type": "object", "properties": {"name": TEXT, "title": TEXT}, "required": ["name"]},
     {"name": "Ann"}, Person(name="Ann")),
    (Options, {"type": "object", "properties": {"fast": {"type": "boolean"}}}, {"fast": True}, {"fast": True}),
]  # fmt: skip


def bare(schema):
    """A schema without what is said in words."""
    if not isinstance(schema, dict):
        return [bare(part) for part in schema] if isinstance(schema, list) else schema
    return {
        key: {name: bare(part) for name, part in value.items()} if key == "properties" else bare(value)
        for key, value in schema.items()
        if key not in ("description", "default")
    }


def with_annotation(annotation, default=...):
    def f(value=None):
        """Do it."""
        return value

    f.__annotations__ = {"value": annotation}
    f.__defaults__ = () if default is ... else (default,)
    return tool(f)


@pytest.mark.parametrize("annotation, schema, given, got", KINDS, ids=[str(kind[0]) for kind in KINDS])
def test_every_kind_of_type(annotation, schema, given, got):
    made = with_annotation(annotation).__fgtune_tool__
    assert bare(made.declaration["parameters"]["properties"]["value"]) == schema
    assert made.declaration["name"] == "f" and made.declaration["description"] == "Do it."
    assert made.arguments({"value": given}) == {"value": got}
    optional = type(None) in getattr(annotation, "__args__", ())
    assert made.declaration["parameters"].get("required", []) == ([] if optional else ["value"])
    assert made.arguments({}) == {"value": None} if optional else True
    normalize_tools([made.declaration])  # nothing is refused
    assert not [finding for finding in lint_tools([made.declaration]) if finding.level in ("error", "repair")]


def test_defaults_are_told_and_not_required():
    made = with_annotation(int, 3).__fgtune_tool__
    parameters = made.declaration["parameters"]
    assert not parameters.get("required") and parameters["properties"]["value"]["default"] == 3
    assert "Default 3." in parameters["properties"]["value"]["description"] and made.arguments({}) == {}


GOOGLE = """Find a flight
    to a city.

    A longer text: it is not the summary.

    Args:
        city (str, optional): where to,
            as said
        days (list[int]): which: all
        title: nothing else

    Returns:
        str: the flight
    """
NUMPY = """
    Find a flight
    to a city.

    Parameters
    ----------
    city : str
        where to,
        as said
    days : list of int, optional
        which: all
    title
        nothing else

    Returns
    -------
    text : str
        the flight
    """
REST = """Find a flight
    to a city.

    :param city: where to,
        as said
    :param list[int] days: which: all
    :param title: nothing else
    :type title: str
    :returns: the flight
    """


@pytest.mark.parametrize("text", [GOOGLE, NUMPY, REST], ids=["google", "numpy", "rest"])
def test_docstrings_of_three_styles(text):
    described = {"city": "where to, as said", "days": "which: all", "title": "nothing else"}
    assert parse_docstring(text) == ("Find a flight to a city.", described)

    def find(city: str, title: str, days: list[int] = ()) -> str:
        pass

    find.__doc__ = text
    declared = tool(find).__fgtune_tool__.declaration
    found = declared["parameters"]["properties"]
    assert declared["description"] == "Find a flight to a city." and list(found) == ["city", "title", "days"]
    assert {name: part["description"].removesuffix(" Default [].") for name, part in found.items()} == described


def test_docstrings_without_arguments():
    assert parse_docstring(None) == ("", {}) and parse_docstring("One.\n\nNote: two.") == ("One.", {})
    assert parse_docstring("Say it.\nArgs:\n  x: a\n\n  y: b\nRaises:\n  z: no") == ("Say it.", {"x": "a", "y": "b"})


def test_the_function_stays_callable_and_can_have_another_name():
    @tool(name="egg-timer.start", description="Start it.")
    def start(minutes: Annotated[int, Field(description="How long.")]) -> int:
        return minutes * 2

    assert start(3) == 6 and start.__fgtune_tool__.declaration == {
        "name": "egg-timer.start", "description": "Start it.",
        "parameters": {"type": "object", "properties": {"minutes": {"description": "How long.", "type": "integer"}},
                       "required": ["minutes"], "additionalProperties": False},
    }  # fmt: skip


def refused_functions():
    def untyped(a: int, b):
        "Do."

    def spread(*values: int):
        "Do."

    def positional(a: int, /):
        "Do."

    def union(value: int | str):
        "Do."

    def odd(value: memoryview):
        "Do."

    def reserved(type: str):
        "Do."

    def unknown(a: int):
        """Do.

        Args:
            b: no argument
        """

    def anything(value: object):
        "Do."

    async def later(a: int):
        "Do."

    def endless(a: float = float("inf")):
        "Do."

    def ahead(a: Annotated[str, Field(pattern="^a(?=b)")]):
        "Do."

    def aliased(a: Annotated[str, Field(alias="from")]):
        "Do."

    def several(a: int):
        "Do."
        yield a

    def method(self, a: int):
        "Do."

    def missing(a: "Nowhere"):  # noqa: F821
        "Do."

    return [(untyped, "'b' has no type"), (spread, r"\*values"), (positional, "a: int"), (union, "value"),
            (odd, "'value' has a type without a schema"), (reserved, "type"), (unknown, "describes 'b'"),
            (anything, "value"), (later, "async"), (missing, "Nowhere"),
            (endless, "Not JSON"), (ahead, "look-ahead"), (aliased, "'a' has an alias"), (several, "generator"),
            (method, "tool\\(object.method\\)")]  # fmt: skip


@pytest.mark.parametrize("function, message", refused_functions(), ids=lambda item: getattr(item, "__name__", ""))
def test_refusals_name_the_function_and_the_argument(function, message):
    with pytest.raises(ToolError, match=rf"^{function.__name__}: .*{message}") as error:
        tool(function)
    assert "\n" not in str(error.value) and isinstance(error.value, FgtuneError)


@pytest.mark.parametrize("thing", [len, int, 3, "f", functools.partial(max, 1), functools.cache(with_annotation),
                                   staticmethod(with_annotation), classmethod(with_annotation)])  # fmt: skip
def test_what_is_no_plain_function_is_refused(thing):
    with pytest.raises(ToolError, match="is no plain function") as error:
        tool(thing)
    assert "\n" not in str(error.value)


def test_a_bound_method_is_a_tool():
    class Counter:
        count = 3

        def more(self, by: int) -> int:
            """Count on."""
            return self.count + by

    made = tool(Counter().more)
    [declared] = declarations([made])
    assert declared["name"] == "more" and list(declared["parameters"]["properties"]) == ["by"] and made(by=2) == 5


@dataclass
class Picky:
    side: int

    def __post_init__(self):
        raise LookupError(f"no side {self.side}\nnone")


def test_a_value_that_does_not_fit_names_its_place():
    with pytest.raises(ToolError, match="f: value: LookupError: no side 3") as error:
        with_annotation(Picky).__fgtune_tool__.arguments({"value": {"side": 3}})
    assert "\n" not in str(error.value)
    with pytest.raises(ToolError, match=r"f: value\.lat: "):
        with_annotation(Point).__fgtune_tool__.arguments({"value": {"lat": "north"}})
    with pytest.raises(ToolError, match="f: value: "):
        with_annotation(Colour).__fgtune_tool__.arguments({})


# ---------------------------------------------------------------- the command


def module(tmp_path, text):
    (tmp_path / "mine.py").write_text(textwrap.dedent(text))
    return str(tmp_path / "mine.py")


DECORATED = '''
    from __future__ import annotations
    from dataclasses import dataclass
    from fgtune import tool
    from beside import unit

    @dataclass
    class Place:
        city: str

    @tool
    def weather(place: Place) -> str:
        """Weather of a place."""

    def plain(a: int):
        """Not a tool."""
'''


def test_the_declarations_of_a_module(tmp_path, capsys):
    (tmp_path / "beside.py").write_text("unit = 'km'")
    path, out = module(tmp_path, DECORATED), tmp_path / "tools.json"
    assert main(["tools", path, "--out", str(out)]) == 0
    [declared] = json.loads(out.read_text())
    assert declared["name"] == "weather" and "1 tools in" in capsys.readouterr().out
    assert main(["check", "--tools", str(out)]) == 0
    capsys.readouterr()
    assert main(["tools", path]) == 0 and json.loads(capsys.readouterr().out) == [declared]
    loud = module(tmp_path, 'print("hello")\ndef f(a: int):\n "Yes."')
    assert main(["tools", loud]) == 0 and json.loads(capsys.readouterr().out)[0]["name"] == "f", "it prints"
    path = module(
        tmp_path, 'def _own(a: int):\n "No."\ndef f(a: int):\n "Yes."\ndef g(a):\n "No."\ndef h(a: int): pass'
    )
    assert [made["name"] for made in module_tools(path)[0]] == ["f"]


@pytest.mark.parametrize("text, message", [
    ("x = 1", "no decorated function"), ("1 / 0", "ZeroDivisionError"), ("import nowhere_at_all", "nowhere_at_all"),
    ("def f(type: str):\n  'Do.'", "f: .*type"), ("raise SystemExit(3)", "SystemExit"),
    ("from fgtune import tool\n@tool(name='a')\ndef f(): 'Do.'\n@tool(name='a')\ndef g(): 'Do.'", "two tools 'a'"),
])  # fmt: skip
def test_a_module_that_gives_no_tools_exits_2_with_one_line(tmp_path, capsys, text, message):
    assert main(["tools", module(tmp_path, text)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("fgtune: ")
    with pytest.raises(ToolError, match=message):
        module_tools(tmp_path / "mine.py")
    assert main(["tools", str(tmp_path / "nowhere.py")]) == 2


@pytest.mark.parametrize("schema, plain", [
    ({"type": "STRING", "enum": ["a"]}, True), ({"type": "array", "items": {"type": "integer"}}, True),
    ({"type": "object", "properties": {"type": {"type": "string"}}, "required": ["type"]}, True),
    ({"additionalProperties": False, "default": [None]}, True),
    ({"type": "objekt"}, False), ({"type": "string", "pattern": "("}, False), ({"required": ["a", "a"]}, False),
    ({"properties": {"a": 3}}, False), ({"items": [{"type": "string"}]}, False), ({"type": 3}, False),
    ({"type": "integer", "minimum": "1"}, False), ({"description": 3}, False), ({"enum": "a"}, False),
])  # fmt: skip
def test_what_is_plain_at_a_glance_is_valid(schema, plain):
    assert is_plain(schema) is plain
    if plain:
        jsonschema.Draft202012Validator.check_schema(checkable_schema(schema))
