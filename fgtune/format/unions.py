"""Several schemas as one: what each of them allows (anyOf, oneOf), or what all of them demand (allOf)."""

from __future__ import annotations

import json

from .references import DEFINITIONS

#: Keywords that say something about a schema and demand nothing of a value.
ANNOTATIONS = ("title", "description", "default", "example", "examples", "deprecated", "$comment", "$schema", "$id")


def is_null(schema) -> bool:
    """Whether a schema allows null and nothing else."""
    if not isinstance(schema, dict):
        return False
    return (
        schema.get("type") == "null" or schema.get("enum") == [None] or ("const" in schema and schema["const"] is None)
    )


def constants_of(schema: dict) -> list | None:
    """The values of a schema that lists them (`const` or `enum`)."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return values if isinstance(values, list) else None


def type_of_values(values: list) -> str | None:
    """The one plain type of all values; a text among other values counts as string; None when there is none."""
    if values and all(isinstance(value, bool) for value in values):
        return "boolean"
    if any(isinstance(value, str) for value in values):
        return "string"
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if not values or len(numbers) < len(values):
        return None
    return "integer" if all(isinstance(value, int) for value in values) else "number"


def unite(variants: list[dict]) -> tuple[dict, str] | None:
    """One plain schema that allows what the variants allow between them, and how it came about; None if none does."""
    if len(variants) == 1:
        return variants[0], "one type"
    if not variants:
        return None
    if all(_demands(variant) == _demands(variants[0]) for variant in variants):
        return _with_descriptions(variants[0], [variant.get("description") for variant in variants]), "equal types"
    if all(constants_of(variant) for variant in variants):
        return _unite_constants(variants)
    kinds = {str(variant.get("type")).lower() for variant in variants}
    others = [{key: value for key, value in _demands(variant).items() if key != "type"} for variant in variants]
    if kinds == {"integer", "number"} and all(other == others[0] for other in others):
        new = {**variants[0], "type": "number"}
        return _with_descriptions(new, [variant.get("description") for variant in variants]), "integer and number"
    return None


def _demands(schema: dict) -> dict:
    return {key: value for key, value in schema.items() if key not in ANNOTATIONS}


def _with_descriptions(schema: dict, texts: list) -> dict:
    """The schema, described by all the different texts."""
    texts = list(dict.fromkeys(text for text in texts if isinstance(text, str) and text))
    return {**schema, "description": " ".join(texts)} if texts else schema


def _unite_constants(variants: list[dict]) -> tuple[dict, str] | None:
    """One list of allowed values; what is said about a value goes into the description."""
    if any(set(_demands(variant)) - {"type", "const", "enum"} for variant in variants):
        return None
    values, texts = {}, []
    for variant in variants:
        listed = constants_of(variant)
        values |= {json.dumps(value): value for value in listed}
        meaning = variant.get("description") or variant.get("title")
        if isinstance(meaning, str) and meaning:
            texts.append(f"{', '.join(map(str, listed))}: {meaning}")
    real = [value for value in values.values() if value is not None]
    kind = type_of_values(real)
    if kind is None or (kind == "string" and not all(isinstance(value, str) for value in real)):
        return None
    return _with_descriptions({"type": kind, "enum": list(values.values())}, texts), "constants"


def intersect(parts: list[dict]) -> dict | None:
    """One schema that demands what all parts demand; None where two of them contradict. The first annotation stays."""
    merged: dict = {}
    for part in parts:
        for key, value in part.items():
            if key not in merged:
                merged[key] = value
            elif key not in ANNOTATIONS and not _same(merged[key], value):
                both = _intersect_keyword(key, merged[key], value)
                if both is None:
                    return None
                merged[key] = both
    return merged


def _same(a, b) -> bool:
    return a == b or (isinstance(a, str) and isinstance(b, str) and a.lower() == b.lower())


def _intersect_keyword(key: str, a, b):
    """Both values of a keyword as one, or None."""
    if key == "required" and isinstance(a, list) and isinstance(b, list):
        return a + [name for name in b if name not in a]
    if key == "enum" and isinstance(a, list) and isinstance(b, list):
        return [value for value in a if value in b] or None
    if key in ("properties", *DEFINITIONS) and isinstance(a, dict) and isinstance(b, dict):
        found = dict(a)
        for name, part in b.items():
            if name in found and found[name] != part:
                both = [found[name], part]
                part = intersect(both) if all(isinstance(one, dict) for one in both) else None
                if part is None:
                    return None
            found[name] = part
        return found
    return None
