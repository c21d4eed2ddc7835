"""A field of the configuration says beside its default when it is read, by which commands, and what it may be."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

Value = TypeVar("Value")


def setting(
    default: Value,
    *,
    active_if: str | Callable[[], str] = "",
    read_by: str = "",
    choices: Callable[[], Iterable[str]] | None = None,
) -> Value:
    """A dataclass field with this default, and what `config` checks of a flag that sets it.

    active_if: what must hold for it to be read, e.g. "optim.momentum and optim.name=sgd or optim.name=rmsprop", where
    `or` binds closer than `and`. A field alone must be on: not 0, empty or False; `!=` asks for another value. A
    function gives the same where that depends on a registry.
    read_by: the commands beside training that read it, each a key of `config.effect.READERS`, or "train_split": what
    evaluates a run reads it where it evaluates the training images.
    choices: gives the names that a `str` may have, e.g. the keys of a registry.
    """
    metadata = {"active_if": active_if, "read_by": read_by, "choices": choices}
    return cast(Value, dataclasses.field(default=default, metadata=metadata))


def active_if(field: "dataclasses.Field[Any]") -> str:
    """What must hold for the field to be read; "" where it always is."""
    condition = field.metadata.get("active_if", "")
    return condition() if callable(condition) else condition
