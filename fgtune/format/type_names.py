"""Types as programmers write them (`str, optional`, `List[int]`, `float | None`), in JSON Schema's words."""

from __future__ import annotations

import ast

TYPES = ("string", "number", "integer", "boolean", "object", "array")
_ALIASES = {
    "str": "string", "text": "string", "int": "integer", "long": "integer", "float": "number", "double": "number",
    "bool": "boolean", "dict": "object", "map": "object", "mapping": "object", "list": "array", "tuple": "array",
    "set": "array", "sequence": "array", "iterable": "array",
}  # fmt: skip
_ANY = ("any", "object")


def read_type(text: str) -> tuple[dict, bool] | None:
    """The schema that a type's name stands for, and whether it allows none; None when the name is not known."""
    known = _ALIASES.get(text.strip().lower())
    if known:
        return {"type": known}, False
    try:
        return _read(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError, _Unknown):
        return None


class _Unknown(Exception):
    """No type that a declaration can carry."""


def _name(node: ast.expr) -> str:
    """A type's own name, without its module and in lower case."""
    if isinstance(node, ast.Attribute):
        return node.attr.lower()
    if isinstance(node, ast.Name):
        return node.id.lower()
    raise _Unknown


def _read(node: ast.expr) -> tuple[dict, bool]:
    if isinstance(node, ast.Tuple):  # "str, optional"
        *types, last = node.elts
        if len(types) != 1 or _name(last) not in ("optional", "required"):
            raise _Unknown
        schema, optional = _read(types[0])
        return schema, optional or _name(last) == "optional"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):  # "int | None"
        return _read_union([node.left, node.right])
    if not isinstance(node, ast.Subscript):
        kind = _name(node)
        if kind not in TYPES and kind not in _ALIASES:
            raise _Unknown
        return {"type": _ALIASES.get(kind, kind)}, False
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    outer = _name(node.value)
    if outer == "optional":
        return _read_union([*inner, ast.Constant(None)])
    if outer == "union":
        return _read_union(inner)
    if outer == "literal":
        values = [one.value for one in inner if isinstance(one, ast.Constant)]
        if len(values) < len(inner):
            raise _Unknown
        return {"enum": values}, None in values
    kind = _ALIASES.get(outer, outer)
    if kind == "array":
        inner = [one for one in inner if not (isinstance(one, ast.Constant) and one.value is ...)]
        kinds = [_read_inner(one) for one in inner]
        same = kinds[0] if kinds and kinds.count(kinds[0]) == len(kinds) else {}
        return {"type": "array", **({"items": same} if same else {})}, False
    if kind == "object":
        values = _read_inner(inner[-1])
        return {"type": "object", **({"additionalProperties": values} if values else {})}, False
    raise _Unknown


def _read_inner(node: ast.expr) -> dict:
    """What a list or a map holds; nothing for any value."""
    if isinstance(node, (ast.Name, ast.Attribute)) and _name(node) in _ANY:
        return {}
    return _read(node)[0]


def _read_union(nodes: list[ast.expr]) -> tuple[dict, bool]:
    """One type, or integer and number; None among them makes it optional."""
    real = [node for node in nodes if not (isinstance(node, ast.Constant) and node.value is None)]
    found = [_read(node) for node in real]
    schemas = [schema for schema, _ in found]
    optional = len(real) < len(nodes) or any(optional for _, optional in found)
    if {json_type.get("type") for json_type in schemas} == {"integer", "number"}:
        return {"type": "number"}, optional
    if not schemas or any(schema != schemas[0] for schema in schemas):
        raise _Unknown
    return schemas[0], optional
