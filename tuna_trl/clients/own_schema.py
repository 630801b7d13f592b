"""The JSON schema of a user's own verdict: the words of JSON Schema that a verdict needs, and a value checked by them.

A small subset, so that the package needs no validator: a word that is not known here is an error when the protocol is
made, never a rule that is passed over. Pure functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import InputError, did_you_mean
from .verdicts import Malformed, check_fields, check_text, shown


_MAX_NUMBER = 2**53  # above, not every whole number is a float
REMARKS = ("title", "description", "$schema", "$id", "$comment", "examples", "default")
RULES = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "minItems", "maxItems"),
    "string": ("enum", "const", "minLength", "maxLength"),
    "integer": ("enum", "const", "minimum", "maximum"),
    "number": ("enum", "const", "minimum", "maximum"),
    "boolean": ("enum", "const"),
}


def check_schema(schema: Any, where: str = "schema") -> None:
    """Raise an [`InputError`] where a schema is not one that can be asked for and checked.

    Every node has one `type` (object, array, string, integer, number, boolean) and rules of that type only. An object
    requires all its properties and allows no others: structured output wants it so, and a field that may be missing
    has no score.
    """
    if not isinstance(schema, Mapping):
        raise InputError(f"{where} is {shown(schema)}, expected a JSON schema (an object).")
    kind = schema.get("type")
    if not isinstance(kind, str) or kind not in RULES:
        raise InputError(f"{where}.type is {shown(kind)}, expected one of {', '.join(RULES)}.")
    for word in schema:
        if word not in ("type", *RULES[kind], *REMARKS):
            raise InputError(
                f"{where} has the word {word!r}, which a verdict of type {kind} is not checked by. Known: "
                f"{', '.join(RULES[kind])}.{did_you_mean(str(word), RULES[kind])}"
            )
    for word in ("enum",) if "enum" in schema else ():
        if not isinstance(schema[word], Sequence) or isinstance(schema[word], str) or not schema[word]:
            raise InputError(f"{where}.{word} is {shown(schema[word])}, expected a list of values.")
    for word in ("minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength"):
        if word in schema and (isinstance(schema[word], bool) or not isinstance(schema[word], (int, float))):
            raise InputError(f"{where}.{word} is {shown(schema[word])}, expected a number.")
    if kind == "array":
        check_schema(schema.get("items"), f"{where}.items")
    if kind == "object":
        _check_object(schema, where)


def _check_object(schema: Mapping[str, Any], where: str) -> None:
    fields = schema.get("properties")
    if not isinstance(fields, Mapping) or not fields or not all(isinstance(name, str) for name in fields):
        raise InputError(f"{where}.properties is {shown(fields)}, expected an object of fields.")
    if dotted := [name for name in fields if "." in name]:
        raise InputError(
            f"{where}.properties has the field {dotted[0]!r}: a dot leads into an object, name it without."
        )
    required = schema.get("required")
    if not isinstance(required, Sequence) or sorted(map(str, required)) != sorted(fields):
        raise InputError(
            f"{where}.required is {shown(required)}, expected every field, which structured output wants: "
            f"{shown(list(fields))}."
        )
    if schema.get("additionalProperties") is not False:
        raise InputError(f"{where}.additionalProperties must be false, which structured output wants.")
    for name, field in fields.items():
        check_schema(field, f"{where}.properties.{name}")


def numbers(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The paths of a schema (`detail.depth`) that lead to a number."""
    if schema["type"] in ("integer", "number"):
        yield path
    elif schema["type"] == "object":
        for name, field in schema["properties"].items():
            yield from numbers(field, f"{path}.{name}" if path else name)


def check_value(value: Any, schema: Mapping[str, Any], what: str) -> None:
    """Raise [`Malformed`] unless `value`, decoded from JSON, is what `schema` says; no type stands for another."""
    kind = schema["type"]
    if kind == "object":
        check_fields(value, schema["properties"], what)
        for name, field in schema["properties"].items():
            check_value(value[name], field, f"{what}.{name}")
    elif kind == "array":
        if not isinstance(value, list):
            raise Malformed(f"{what} is {shown(value)}, expected a list")
        _check_range(len(value), schema, ("minItems", "maxItems"), f"the length of {what}")
        for i, item in enumerate(value):
            check_value(item, schema["items"], f"{what}[{i}]")
    else:
        _check_scalar(value, kind, schema, what)


def _check_scalar(value: Any, kind: str, schema: Mapping[str, Any], what: str) -> None:
    if kind == "string":
        _check_range(len(check_text(value, what)), schema, ("minLength", "maxLength"), f"the length of {what}")
    elif type(value) not in {"integer": (int,), "number": (int, float), "boolean": (bool,)}[kind]:
        raise Malformed(f"{what} is {shown(value)}, expected type {kind}")
    if kind in ("integer", "number"):
        if not abs(value) <= _MAX_NUMBER:  # 1e999 and whole numbers of any length are JSON
            raise Malformed(f"{what} is {shown(value)}, expected a number up to {_MAX_NUMBER:g}")
        _check_range(value, schema, ("minimum", "maximum"), what)
    allowed = [schema["const"]] if "const" in schema else schema.get("enum")
    if allowed is not None and not any(
        value == one and (kind == "boolean") == isinstance(one, bool) for one in allowed
    ):
        raise Malformed(f"{what} is {shown(value)}, expected one of {shown(list(allowed))}")


def _check_range(value: float, schema: Mapping[str, Any], words: tuple[str, str], what: str) -> None:
    low, high = (schema.get(word) for word in words)
    if (low is not None and value < low) or (high is not None and value > high):
        raise Malformed(f"{what} is {shown(value)}, expected {words[0]} {low} and {words[1]} {high}")
