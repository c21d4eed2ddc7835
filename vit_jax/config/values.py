"""Values of config fields: from the text of an override, and checked against the field's annotation.

The annotations that a field may have: bool, int, float, str, Literal of strings, and tuples of these.
"""

import ast
import dataclasses
import sys
import warnings
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from vit_jax.command import UserError

MOST_SHOWN = 300  # letters of a value in a message


def from_text(text: str, annotation: Any, key: str) -> Any:
    """The value that `--config.<key>=<text>` gives a field of this type; still to be checked by `convert`."""
    if annotation is str or get_origin(annotation) is Literal:
        return text
    if annotation is bool:
        values = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in values:
            raise UserError(f"{key}={text!r} is not a bool; write true or false")
        return values[text.lower()]
    value = _literal(text)
    if get_origin(annotation) is not tuple:
        return value
    if get_args(annotation)[0] is str:  # `a,b`, or where a string holds a comma `('a, b', 'c')`
        if isinstance(value, tuple | list) and all(isinstance(part, str) for part in value):
            return tuple(value)
        return tuple(part.strip(" '\"") for part in text.strip("()").split(",") if part.strip())
    if not text.strip("() "):
        return ()
    return value if isinstance(value, tuple | list) else (value,)


def _literal(text: str) -> Any:
    """The value of a Python literal; of anything else the text itself, of which `convert` says what was expected."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # backslashes
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def check(value: Any, field: dataclasses.Field[Any], key: str) -> Any:
    """`convert` for a field, which may declare choices."""
    value, choices = convert(value, field.type, key), field.metadata.get("choices")
    return _one_of(choices(), value, key) if choices else value


def convert(value: Any, annotation: Any, key: str) -> Any:
    """The value, as the annotation has it (lists become tuples, ints floats); raises `UserError` if it does not fit."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _one_of(args, value, key)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            shown = _shown(value)
            raise UserError(f"{key}={shown} is not a tuple; write {key.rsplit('.', 1)[-1]}=({shown},)")
        if args[-1] is not Ellipsis and len(args) != len(value):
            raise UserError(f"{key}={_shown(value)} has {len(value)} elements, expected {len(args)}")
        return tuple(convert(element, args[0], key) for element in value)
    if annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:  # a NaN passes any check of its range
            raise UserError(f"{key}={value!r} is not a finite number")
        return float(value)
    if isinstance(value, annotation) and not (annotation is int and isinstance(value, bool)):
        return value
    raise UserError(f"{key}={_shown(value)} is {_a(type(value).__name__)}, expected {_a(annotation.__name__)}")


def _one_of(choices: Iterable[str], value: Any, key: str) -> Any:
    if value not in (known := tuple(choices)):
        raise UserError(f"{key}={_shown(value)} is unknown; choose from {', '.join(known)}")
    return value


def _shown(value: Any) -> str:
    """The value as Python writes it; a very long one cut."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
