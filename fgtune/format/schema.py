"""One tool's parameters as the declaration can carry them: references and unions resolved, the rest refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from .references import References
from .type_names import TYPES, read_type
from .unions import ANNOTATIONS, constants_of, intersect, is_null, type_of_values, unite
from .values import MAX_DEPTH, RESERVED, carry_value, check_keys, check_text

if TYPE_CHECKING:
    import jsonschema

MAX_REFERENCES = 1000  # replaced in one tool: definitions that use each other twice grow without a circle, too
# Keywords that a declaration has no place for, and the sentences that tell them in the description.
_UNDECLARED = {
    "default": "Default {}.", "minimum": "Minimum {}.", "maximum": "Maximum {}.", "multipleOf": "A multiple of {}.",
    "exclusiveMinimum": "More than {}.", "exclusiveMaximum": "Less than {}.", "pattern": "Pattern {}.",
    "format": "Format {}.", "minLength": "At least {} characters.", "maxLength": "At most {} characters.",
    "minItems": "At least {} entries.", "maxItems": "At most {} entries.", "uniqueItems": "No entry twice.",
}  # fmt: skip
_UNSUPPORTED = ("oneOf", "allOf", "anyOf", "not", "if", "then", "else", "prefixItems", "patternProperties",
                "dependentSchemas", "dependentRequired", "contains", "propertyNames")  # fmt: skip


def normalized_description(schema: dict, where: str, report: Callable) -> str:
    description = schema.get("description", "")
    if not isinstance(description, str):
        report("error", "schema-invalid", where, "The description must be a text.")
        return ""
    return check_text(description, where, report)


class SchemaNormalizer:
    """Normalises the parameters of one tool, a JSON Schema, into what a declaration can carry.

    `root` holds the definitions that local references point to. With `describe`, keywords that a declaration has no
    place for are told in the description. What is changed or refused goes to `report(level, code, where, message)`.
    """

    def __init__(self, root: dict, report: Callable, describe: bool):
        self.report, self.describe = report, describe
        self.references, self.replaced, self.endless = References(root), 0, set()

    def normalize(self, schema, where: str, in_items: bool = False, depth: int = 0) -> tuple[dict, bool]:
        """The normalised schema at `where`, and whether null was allowed (so that the parameter is optional).

        `in_items`: the schema is that of a list's entries, which a declaration shows with all its keywords.
        """
        if not isinstance(schema, dict):
            self.report("error", "schema-invalid", where, 'A schema is an object such as {"type": "string"}.')
            return {"type": "string"}, False
        if depth > MAX_DEPTH:
            self.report("error", "too-deep", where, f"The schema nests deeper than {MAX_DEPTH} levels. Flatten it.")
            return {"type": "string"}, False
        schema, optional = self._resolve(schema, where, depth)
        if isinstance(schema.get("required"), bool):
            self.report("repair", "required-place", where, '"required" has no meaning here: it is taken out.')
            del schema["required"]
        kind, may_be_none = self._infer_type(schema, where)
        self._describe(schema, where, in_items)
        null_listed = self._normalize_enum(schema, kind, where, in_items)
        if kind == "object":
            self._normalize_properties(schema, where, depth)
            self._normalize_open_keys(schema, where, depth)
        elif kind == "array":
            self._normalize_items(schema, where, depth)
        if in_items:
            shown = ("properties", "items", "description", "enum")
            rest = {key: value for key, value in schema.items() if key not in shown}
            schema.update(carry_value(rest, where, self.report))
        elif where:
            self._fold_keywords(schema, kind, where)
        return schema, optional or may_be_none or null_listed

    def _resolve(self, schema: dict, where: str, depth: int) -> tuple[dict, bool]:
        """A copy with one plain type in place of references and unions, and whether null was allowed."""
        schema = {key: value for key, value in schema.items() if value is not None}
        optional = bool(schema.pop("nullable", False))
        for _ in range(MAX_DEPTH):
            if "$ref" in schema:
                schema = self._resolve_reference(schema, where)
                continue
            optional = self._single_type(schema, where) or optional
            union = next((key for key in ("anyOf", "oneOf", "allOf") if isinstance(schema.get(key), list)), None)
            merged = self._merge_union(schema, union, where, depth) if union else None
            if merged is None:
                break
            schema, may_be_null = merged
            optional = optional or may_be_null
        self._refuse_unsupported(schema, where)
        return schema, optional

    def _resolve_reference(self, schema: dict, where: str) -> dict:
        """The schema with what its `$ref` points to in place; its own keywords win."""
        target = str(schema.pop("$ref"))
        found, cycle = self.references.find(target), self.references.cycle(target)
        if found is None:
            self.report("error", "reference", where,
                        f"The reference {target} leads nowhere. Write the schema in place.")  # fmt: skip
            return {"type": "string", **schema}
        if cycle or self.replaced >= MAX_REFERENCES:
            if cycle and target not in self.endless:
                self.report("error", "reference", where, f"The $ref {target} leads back to itself, and a declaration "
                            "would have no end. Write out as many levels as you need.")  # fmt: skip
            elif not cycle and not self.endless:
                self.report("error", "reference", where, f"More than {MAX_REFERENCES} places hold a $ref ({target} "
                            "here). Make the tool smaller.")  # fmt: skip
            self.endless |= cycle or {target}
            return {"type": "object", "properties": {}, **schema}
        self.replaced += 1
        self.report("repair", "reference", where, f"The reference {target} is replaced by what it points to.")
        return {**copy.deepcopy({key: value for key, value in found.items() if value is not None}), **schema}

    def _merge_union(self, schema: dict, union: str, where: str, depth: int) -> tuple[dict, bool] | None:
        """The schema with its anyOf, oneOf or allOf merged into it, and whether null was in it; None if none can be."""
        outer = {key: value for key, value in schema.items() if key != union}
        parts, optional = [], False
        for part in schema[union]:
            if union != "allOf" and is_null(part):
                optional = True
            elif not isinstance(part, dict) or depth > MAX_DEPTH:
                return None
            else:
                part, may_be_null = self._resolve(part, where, depth + 1)
                parts.append(part)
                optional = optional or (may_be_null and union != "allOf")
        if union == "allOf":
            merged, how = (intersect([outer, *parts]) if parts else None), "one type" if len(parts) == 1 else "parts"
        else:
            united, how = unite(parts) or (None, "")
            if how == "constants" and outer.get("description") and united.get("description"):
                outer["description"] = f"{outer['description']} {united['description']}"
            merged = None if united is None else intersect([outer, united])
        if merged is None:
            return None
        becomes = {"one type": "that type", "equal types": "one of them", "constants": "one list of allowed values",
                   "integer and number": "number", "parts": "one schema that holds them all"}[how]  # fmt: skip
        self.report("repair", "any-of", where, f"{union} with {how} is replaced by {becomes}.")
        return merged, optional

    def _refuse_unsupported(self, schema: dict, where: str) -> None:
        for key in _UNSUPPORTED:
            if key in schema:
                self.report("error", "any-of" if key.endswith("Of") else "keyword", where,
                            f'"{key}" cannot be declared. Give the parameter one plain type, or split it.')  # fmt: skip
                del schema[key]
                schema.setdefault("type", "string")  # one cause, one error

    def _single_type(self, schema: dict, where: str) -> bool:
        """Replaces a list of types by the one that is not null; whether null was in it."""
        if not isinstance(schema.get("type"), list):
            return False
        listed, shown = schema["type"], json.dumps(schema["type"])
        real = list({str(kind).lower(): kind for kind in listed if kind != "null"}.values())
        if {str(kind).lower() for kind in real} == {"integer", "number"}:
            real = ["number"]
        if len(real) != 1:
            self.report("error", "type-union", where,
                        f"A parameter has one type, not {shown}. Choose one, or split it.")  # fmt: skip
            schema["type"] = "string"
            return False
        self.report("repair", "nullable" if "null" in listed or len(listed) == 1 else "type-union", where,
                    f'The type {shown} becomes "{real[0]}".')  # fmt: skip
        schema["type"] = real[0]
        return "null" in listed

    def _infer_type(self, schema: dict, where: str) -> tuple[str, bool]:
        """Gives the schema a type that the format knows; the type in lower case, and whether its name allows none."""
        kind, optional = schema.get("type"), False
        if kind is None:
            values = [value for value in constants_of(schema) or [] if value is not None]
            kind = "object" if "properties" in schema else "array" if "items" in schema else type_of_values(values)
            if kind:
                self.report("repair", "type-missing", where, f'No type is given: "{kind}" follows from the rest.')
            else:
                self.report("error", "type-missing", where, f"No type is given. Add one of {', '.join(TYPES)}.")
                schema.pop("enum", None), schema.pop("const", None)  # one cause, one error
        elif str(kind).lower() not in TYPES:
            known, optional = (isinstance(kind, str) and read_type(kind)) or (None, False)
            if known:
                known.setdefault("type", type_of_values([one for one in known.get("enum", []) if one is not None]))
                self.report("repair", "type-name", where, f'The type "{kind}" is written "{known["type"]}".')
                schema.update({key: value for key, value in known.items() if key not in schema or key == "type"})
            else:
                self.report("error", "type-unknown", where, f'"{kind}" is no type. Use one of {", ".join(TYPES)}.')
            kind = known and known["type"]
        schema["type"] = kind or "string"
        return str(schema["type"]).lower(), optional

    def _describe(self, schema: dict, where: str, in_items: bool) -> None:
        if "description" in schema:
            schema["description"] = normalized_description(schema, where, self.report)
        elif where and not in_items:
            self.report("info", "no-description", where,
                        "The parameter has no description; the model gets an empty one.")  # fmt: skip

    def _normalize_enum(self, schema: dict, kind: str, where: str, in_items: bool) -> bool:
        """A constant becomes the only allowed value; null is none. Whether null was among the values."""
        if "const" in schema and "enum" not in schema:
            schema["enum"] = [schema["const"]]
        values = schema.get("enum")
        if values is None:
            return False
        if not isinstance(values, list):
            self.report("error", "schema-invalid", where, '"enum" must be a list.')
            del schema["enum"]
            return False
        null_listed = None in values
        if null_listed:
            self.report(
                "repair", "enum-null", where, "null is taken out of the allowed values; leave the argument out."
            )
            values = schema["enum"] = [value for value in values if value is not None]
        if not values:
            self.report("error", "enum-empty", where, "No value is allowed. Fill the enum or remove it.")
        elif kind == "string" and not all(isinstance(value, str) for value in values):
            self.report("error", "enum-mixed", where, "The type is string, but not all allowed values are. Quote them.")
        elif kind == "string" or in_items:
            schema["enum"] = carry_value(values, where, self.report)
        return null_listed

    def _normalize_items(self, schema: dict, where: str, depth: int) -> None:
        """What a list holds; a list of anything has no "items"."""
        items = schema.get("items")
        if isinstance(items, dict) and set(items) - set(ANNOTATIONS):
            schema["items"], _ = self.normalize(items, f"{where}[]", True, depth + 1)
        else:
            self.report("warning", "items", where, 'The list does not say what it holds. Add "items" with a type.')
            schema.pop("items", None)

    def _normalize_properties(self, schema: dict, where: str, depth: int) -> None:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        names = required if isinstance(required, list) else [None]
        if not isinstance(properties, dict) or not all(isinstance(name, str) for name in names):
            self.report("error", "schema-invalid", where,
                        '"properties" must be an object and "required" a list of names.')  # fmt: skip
            return
        properties, stated = self._given_properties(properties, where)
        required = required + [name for name in stated if name not in required]
        check_keys(list(properties), where, self.report)
        normalized, optional = {}, []
        for name, part in properties.items():
            place = f"{where}.{name}" if where else name
            if name in RESERVED:
                self.report("error", "reserved-name", place,
                            f'A parameter named "{name}" vanishes from the declaration. Rename it, for example to '
                            f'"{where.rpartition(".")[2] or "item"}_{name}".')  # fmt: skip
            normalized[name], may_be_null = self.normalize(part, place, False, depth + 1)
            if may_be_null and name in required:
                optional.append(name)
                self.report("repair", "nullable", place, "The parameter may be null: it is no longer required.")
        for name in required:
            if name not in properties:
                self.report("error", "required-undeclared", f"{where}.{name}" if where else name, f'"{name}" is '
                            'required but not declared. Declare it or take it out of "required".')  # fmt: skip
        if "properties" in schema:
            schema["properties"] = normalized
        if optional or stated:
            schema["required"] = [name for name in required if name not in optional]

    def _given_properties(self, properties: dict, where: str) -> tuple[dict, list[str]]:
        """The properties without those that are null, and the names of those that hold "required": true themselves."""
        given, stated = {}, []
        for name, part in properties.items():
            place = f"{where}.{name}" if where else name
            if part is None:
                self.report("repair", "null-property", place, "The parameter is null: it is taken out.")
                continue
            if isinstance(part, dict) and isinstance(part.get("required"), bool):
                stated += [name] if part["required"] else []
                self.report("repair", "required-place", place, f'"required": {json.dumps(part["required"])} is taken '
                            "over into the list of required parameters.")  # fmt: skip
                part = {key: value for key, value in part.items() if key != "required"}
            given[name] = part
        return given, stated

    def _normalize_open_keys(self, schema: dict, where: str, depth: int) -> None:
        """An object whose keys are free: it is allowed, and the declaration cannot tell what it holds."""
        values = schema.get("additionalProperties")
        if isinstance(values, dict) or (values is True and schema.get("properties")):
            self.report(
                "warning", "open-object", where, "Free keys cannot be declared. Name them, or describe them in words."
            )
            if isinstance(values, dict):
                schema["additionalProperties"] = self._normalize_free_values(values, where, depth) if values else {}
        elif where and values is not False and "properties" not in schema:
            self.report("info", "open-object", where, "The object names no keys: the model may write any, and learns "
                        'them from your examples. Declare them under "properties" if they are known.')  # fmt: skip

    def _normalize_free_values(self, values: dict, where: str, depth: int) -> dict | bool:
        """What free keys hold, for the check of arguments; what cannot be normalised lets any value through."""
        report, describe, notes = self.report, self.describe, []
        self.report, self.describe = lambda *note: notes.append(note), False
        try:
            values, _ = self.normalize(values, f"{where}.*", True, depth + 1)
        finally:
            self.report, self.describe = report, describe
        errors = [note for note in notes if note[0] == "error"]
        for note in errors:
            if note[1] == "reference":
                report(*note)
        return True if errors else values

    def _fold_keywords(self, schema: dict, kind: str, where: str) -> None:
        """Tells what the declaration has no place for in the description, unless it says so already."""
        description, sentences = schema.get("description", ""), []

        def add(keyword, sentence, values):
            shown = [
                value if value and isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values
            ]
            text = sentence.format(", ".join(shown))
            named = keyword == "enum" or keyword.lower() in description.lower()
            if text in description or (named and all(value in description for value in shown)):
                return
            sentences.append(text)
            code = "enum-not-string" if keyword == "enum" else "not-declared"
            self.report("repair", code, where,
                        f'"{keyword}" would be lost: repair_tools adds "{text}" to the description.')  # fmt: skip

        if kind != "string" and schema.get("enum") and not (kind == "boolean" and len(schema["enum"]) == 2):
            add("enum", "One of {}.", schema["enum"])
        for keyword, sentence in _UNDECLARED.items():
            if keyword in schema and not (keyword == "uniqueItems" and not schema[keyword]):
                add(keyword, sentence, [schema[keyword]])
        if sentences and self.describe:
            schema["description"] = " ".join(filter(None, [description.rstrip(), *sentences]))
            check_text(schema["description"], where, self.report)


def key_schema(schema: dict, name: str) -> dict:
    """The schema of an object's key: its own, else that of `additionalProperties`; empty where neither says more."""
    own = (schema.get("properties") or {}).get(name)
    found = schema.get("additionalProperties") if own is None else own
    return found if isinstance(found, dict) else {}


def checkable_schema(schema):
    """A schema that jsonschema checks arguments by: lower-case types, and no keys beyond the declared ones."""
    if isinstance(schema, list):
        return [checkable_schema(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    new = {}
    for key, value in schema.items():
        if key == "properties" and isinstance(value, dict):
            new[key] = {name: checkable_schema(part) for name, part in value.items()}
        elif key == "type" and isinstance(value, str):
            new[key] = value.lower()
        else:
            new[key] = checkable_schema(value) if key in ("items", "additionalProperties") else value
    if new.get("properties") and "additionalProperties" not in new:
        new["additionalProperties"] = False
    return new


def is_plain(schema) -> bool:
    """Whether a schema is valid JSON Schema at a glance: types, descriptions, enums and properties, each of its form.

    False says nothing: the schema may be valid all the same.
    """
    if not isinstance(schema, dict) or not all(check(schema[key]) for key, check in _PLAIN.items() if key in schema):
        return False
    inner = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    return schema.keys() <= {*_PLAIN, "properties", "items"} and all(map(is_plain, inner))


def _are_texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_PLAIN = {
    "type": lambda value: isinstance(value, str) and value.lower() in TYPES,
    "description": lambda value: isinstance(value, str),
    "enum": _are_texts,
    "required": lambda value: _are_texts(value) and len(set(value)) == len(value),
    "properties": lambda value: isinstance(value, dict),
    "additionalProperties": lambda value: isinstance(value, bool),
    "default": lambda value: True,
}


@lru_cache(maxsize=4096)
def arguments_validator(parameters: str) -> jsonschema.Draft202012Validator:
    """What checks arguments against a tool's parameters, given as JSON."""
    import jsonschema  # its import can take a second, and most programs only render

    schema = {"additionalProperties": False, **checkable_schema(json.loads(parameters))}
    return jsonschema.Draft202012Validator(schema)
