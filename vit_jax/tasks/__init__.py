"""The tasks by name: `settings("classification")` gives a config's `task` group."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vit_jax.command import UserError
from vit_jax.setting import setting


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The fields of the task `classification`: an image has one class."""

    loss: Literal["softmax", "sigmoid", "multi_hot"] = setting("softmax", read_by="predict")  # DeiT III's: multi_hot
    label_smoothing: float = 0.0


TASKS: dict[str, type] = {"classification": Classification}


def names(pattern: str = "*") -> list[str]:
    """The known names that match a shell pattern."""
    return fnmatch.filter(TASKS, pattern)


def fields(name: str) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a task."""
    if name not in TASKS:
        raise UserError(f"task {name!r} is unknown; choose from {', '.join(TASKS)}")
    return {f.name: f for f in dataclasses.fields(TASKS[name])}


def settings(name: str, **overrides: Any) -> dict[str, Any]:
    """The `task` group: the name, and every field with the given or the default value."""
    known = fields(name)
    for field in overrides:
        if field not in known:
            close = difflib.get_close_matches(field, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise UserError(f"task {name!r} has no field {field!r}; {hint}")
    return {"name": name} | {field: overrides.get(field, f.default) for field, f in known.items()}


def check(task: Mapping[str, Any]) -> None:
    """Raises `UserError` for values out of range."""
    smoothing = task["label_smoothing"]
    if not 0 <= smoothing < 1:
        raise UserError(f"task.label_smoothing={smoothing} is not in [0, 1)")
    if task["loss"] == "multi_hot" and smoothing:
        raise UserError(
            f"task.label_smoothing={smoothing} would make every class a target of task.loss='multi_hot'; set it to 0"
        )
