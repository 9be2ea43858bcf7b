"""One tool's parameters as the declaration can carry them: references and unions resolved, the rest refused."""

import copy
import json
from collections.abc import Callable
from functools import lru_cache

import jsonschema

from .values import MAX_DEPTH, RESERVED, carry_value, check_keys, check_text

_TYPES = ("string", "number", "integer", "boolean", "object", "array")
_TYPE_ALIASES = {
    "str": "string", "text": "string", "int": "integer", "long": "integer", "float": "number", "double": "number",
    "bool": "boolean", "dict": "object", "map": "object", "list": "array", "tuple": "array",
}  # fmt: skip
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
        self.root, self.report, self.describe = root, report, describe

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
        schema = {key: value for key, value in schema.items() if value is not None}
        optional = bool(schema.pop("nullable", False))
        schema, may_be_null = self._resolve(schema, where)
        self._refuse_unsupported(schema, where)
        optional = self._single_type(schema, where) or may_be_null or optional
        kind = self._infer_type(schema, where)
        self._describe(schema, where, in_items)
        self._normalize_enum(schema, kind, where, in_items)
        if kind == "object":
            self._normalize_properties(schema, where, depth)
        elif kind == "array":
            self._normalize_items(schema, where, depth)
        if in_items:
            shown = ("properties", "items", "description", "enum")
            rest = {key: value for key, value in schema.items() if key not in shown}
            schema.update(carry_value(rest, where, self.report))
        elif where:
            self._fold_keywords(schema, kind, where)
        return schema, optional

    def _resolve(self, schema: dict, where: str) -> tuple[dict, bool]:
        """The schema with its references and unions replaced, level by level, and whether a union allowed null."""
        optional = False
        for _ in range(MAX_DEPTH):
            if "$ref" in schema:
                schema = self._resolve_reference(schema, where)
                continue
            merged = self._merge_union(schema, where)
            if merged is None:
                break
            schema, may_be_null = merged
            optional = optional or may_be_null
        return schema, optional

    def _resolve_reference(self, schema: dict, where: str) -> dict:
        """The schema with what its `$ref` points to in place; its own keywords win."""
        target, found = str(schema.pop("$ref")), self.root
        for step in target.split("/")[1:]:
            found = found.get(step) if isinstance(found, dict) else None
        if not target.startswith("#/") or not isinstance(found, dict):
            self.report("error", "reference", where,
                        f"The reference {target} leads nowhere. Write the schema in place.")  # fmt: skip
            return schema
        self.report("repair", "reference", where, f"The reference {target} is replaced by what it points to.")
        return {**copy.deepcopy(found), **schema}

    def _merge_union(self, schema: dict, where: str) -> tuple[dict, bool] | None:
        """The schema with a union of one type (and perhaps null) merged into it, and whether null was there."""
        union = next((key for key in ("anyOf", "oneOf", "allOf") if isinstance(schema.get(key), list)), None)
        if not union:
            return None
        variants = [part for part in schema[union] if isinstance(part, dict)]
        real = [part for part in variants if part.get("type") != "null"]
        if len(real) != 1:
            return None
        self.report("repair", "any-of", where, f"{union} with one type is replaced by that type.")
        return {**{key: value for key, value in schema.items() if key != union}, **real[0]}, len(real) < len(variants)

    def _refuse_unsupported(self, schema: dict, where: str) -> None:
        for key in _UNSUPPORTED:
            if key in schema:
                self.report("error", "any-of" if key.endswith("Of") else "keyword", where,
                            f'"{key}" cannot be declared. Give the parameter one plain type, or split it.')  # fmt: skip
                del schema[key]

    def _single_type(self, schema: dict, where: str) -> bool:
        """Replaces a list of types by the one that is not null; whether null was in it."""
        if not isinstance(schema.get("type"), list):
            return False
        listed = schema["type"]
        real = [kind for kind in listed if kind != "null"]
        if len(real) != 1:
            kinds = json.dumps(listed)
            self.report("error", "type-union", where,
                        f"A parameter has one type, not {kinds}. Choose one, or split it.")  # fmt: skip
            schema["type"] = "string"
            return False
        self.report("repair", "nullable", where, f'The type {json.dumps(listed)} becomes "{real[0]}".')
        schema["type"] = real[0]
        return len(listed) > 1

    def _infer_type(self, schema: dict, where: str) -> str:
        """Gives the schema a type that the format knows, in the case it was written in; returns it in lower case."""
        kind = schema.get("type")
        if kind is None:
            values = [schema["const"]] if "const" in schema else schema.get("enum")
            strings = isinstance(values, list) and any(isinstance(value, str) for value in values)
            kind = (
                "object" if "properties" in schema else "array" if "items" in schema else "string" if strings else None
            )
            if kind:
                self.report("repair", "type-missing", where, f'No type is given: "{kind}" follows from the rest.')
            else:
                self.report("error", "type-missing", where, f"No type is given. Add one of {', '.join(_TYPES)}.")
        elif str(kind).lower() not in _TYPES:
            known = _TYPE_ALIASES.get(str(kind).lower())
            if known:
                self.report("repair", "type-name", where, f'The type "{kind}" is written "{known}".')
            else:
                self.report("error", "type-unknown", where, f'"{kind}" is no type. Use one of {", ".join(_TYPES)}.')
            kind = known
        schema["type"] = kind or "string"
        return str(schema["type"]).lower()

    def _describe(self, schema: dict, where: str, in_items: bool) -> None:
        if "description" in schema:
            schema["description"] = normalized_description(schema, where, self.report)
        elif where and not in_items:
            self.report("info", "no-description", where,
                        "The parameter has no description; the model gets an empty one.")  # fmt: skip

    def _normalize_enum(self, schema: dict, kind: str, where: str, in_items: bool) -> None:
        """A constant becomes the only allowed value; null is none."""
        if "const" in schema and "enum" not in schema:
            schema["enum"] = [schema["const"]]
        values = schema.get("enum")
        if values is None:
            return
        if not isinstance(values, list):
            self.report("error", "schema-invalid", where, '"enum" must be a list.')
            del schema["enum"]
            return
        if None in values:
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

    def _normalize_items(self, schema: dict, where: str, depth: int) -> None:
        if isinstance(schema.get("items"), dict):
            schema["items"], _ = self.normalize(schema["items"], f"{where}[]", True, depth + 1)
        else:
            self.report("warning", "items", where, 'The list does not say what it holds. Add "items" with a type.')
            schema.pop("items", None)

    def _normalize_properties(self, schema: dict, where: str, depth: int) -> None:
        report, properties = self.report, schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            report("error", "schema-invalid", where, '"properties" must be an object and "required" a list of names.')
            return
        if isinstance(schema.get("additionalProperties"), dict):
            report(
                "warning", "open-object", where, "Free keys cannot be declared. Name them, or describe them in words."
            )
        check_keys(list(properties), where, report)
        normalized, optional = {}, []
        for name, part in properties.items():
            place = f"{where}.{name}" if where else name
            if name in RESERVED:
                report("error", "reserved-name", place, f'A parameter named "{name}" vanishes from the declaration. '
                       f'Rename it, for example to "{where.rpartition(".")[2] or "item"}_{name}".')  # fmt: skip
            normalized[name], may_be_null = self.normalize(part, place, False, depth + 1)
            if may_be_null and name in required:
                optional.append(name)
                report("repair", "nullable", place, "The parameter may be null: it is no longer required.")
        for name in required:
            if name not in properties:
                report("error", "required-undeclared", f"{where}.{name}" if where else str(name),
                       f'"{name}" is required but not declared. Declare it or take it out of "required".')  # fmt: skip
        if "properties" in schema:
            schema["properties"] = normalized
        if optional:
            schema["required"] = [name for name in required if name not in optional]

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
            new[key] = checkable_schema(value) if key == "items" else value
    if new.get("properties") and "additionalProperties" not in new:
        new["additionalProperties"] = False
    return new


@lru_cache(maxsize=4096)
def arguments_validator(parameters: str) -> jsonschema.Draft202012Validator:
    schema = checkable_schema(json.loads(parameters))
    if not schema.get("properties"):
        schema = {**schema, "additionalProperties": False}
    return jsonschema.Draft202012Validator(schema)
