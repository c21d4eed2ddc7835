"""Fields under the names that they once had: saved runs, flags and config files of before are read as those of today.

Who renames a field or a group adds a line to `RENAMED`.
"""

import functools
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vit_jax import models

# The old path of a field, or of a group, to the path of today. In `model` it is tried where the model lacks the old.
RENAMED = {
    "train.loss": "task.loss",
    "train.label_smoothing": "task.label_smoothing",
    "perturb": "corruption",
    **{f"model.{old}": f"model.{new}" for old, new in models.RENAMED.items()},
}
# The default of a field before configurations had the group `task`, and what means the same since.
VALUES = {"evaluate.metric": ("accuracy", "auto")}


def upgrade(fields: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The fields of a configuration, by path, under the names and with the values of today."""
    old = not any(key.split(".")[0] == "task" for key in fields)
    return {rename(key, known): new_value(key, value) if old else value for key, value in fields.items()}


def new_value(key: str, value: Any) -> Any:
    old, new = VALUES.get(key, (value, value))
    return new if value == old else value


def rename_flags(overrides: Sequence[str], known: Collection[str] = ()) -> list[str]:
    """The `field=value` overrides with the names of today; logs those that have others.

    Without the `known` fields, a field of the group `model` keeps its name: another model may have it.
    """
    pairs = [override.partition("=") for override in overrides]
    return [
        (key if key.startswith("model.") and not known else rename(key, known, tell=True)) + equals + value
        for key, equals, value in pairs
    ]


def rename(key: str, known: Collection[str], *, tell: bool = False) -> str:
    """The name that the field or group has today; the same where it is `known`, or where no field has the new name."""
    for old, new in RENAMED.items() if key not in known else ():
        if key == old or key.startswith(f"{old}."):
            name = new + key.removeprefix(old)
            if not known or any(field == name or field.startswith(f"{name}.") for field in known):
                if tell:
                    _tell(key, name)
                return name
    return key


@functools.cache  # once
def _tell(old: str, new: str) -> None:
    logging.warning("%s is called %s now; the old name still works", old, new)
