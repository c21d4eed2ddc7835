"""The tasks by name: `settings("classification")` gives a config's `task` group, `create` builds the task."""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.command import UserError
from vit_jax.data import Split
from vit_jax.names import claim
from vit_jax.tasks.auxiliary_autoencoder import AuxiliaryAutoencoder
from vit_jax.tasks.base import (
    Aux,
    Distill,
    Evaluator,
    Examples,
    Parts,
    Rngs,
    Section,
    Task,
    TaskSettings,
    Teacher,
    gathered,
    make_forward,
)
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.distillation import Distillation
from vit_jax.tasks.features import FrozenFeatures, Gathered
from vit_jax.tasks.masked_autoencoder import MaskedAutoencoder
from vit_jax.tasks.means import Means
from vit_jax.tasks.segmentation import Segmentation
from vit_jax.tasks.self_distillation import SelfDistillation
from vit_jax.text import meant

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "masked_autoencoder": MaskedAutoencoder,
    "self_distillation": SelfDistillation,
    "segmentation": Segmentation,
    "auxiliary_autoencoder": AuxiliaryAutoencoder,
}


def register(name: str, task: type[Task]) -> type[Task]:
    """Adds a task, also from outside the package.

    Raises `UserError` for a name that is taken, a task without one of its methods, and a setting without default.
    """
    claim("task", name, task, TASKS.get(name))
    for needed in ("loss", "outputs", "evaluator"):
        if getattr(task, needed) is getattr(Task, needed):
            raise UserError(f"task {name!r}: {task.__name__} has no method {needed}; see vit_jax.tasks.Task")
    for f in dataclasses.fields(task.Settings):
        if f.default is dataclasses.MISSING:
            raise UserError(f"task {name!r}: its setting {f.name!r} has no default value; give it one")
    TASKS[name] = task
    return task


def names(pattern: str = "*") -> list[str]:
    """The known names that match a shell pattern."""
    return fnmatch.filter(TASKS, pattern)


def fields(name: str) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a task."""
    if name not in TASKS:
        raise UserError(f"task {name!r} is unknown; {meant(name, TASKS)}")
    return {f.name: f for f in dataclasses.fields(TASKS[name].Settings)}


def settings(name: str, **overrides: Any) -> dict[str, Any]:
    """The `task` group: the name, and every field with the given or the default value."""
    known = fields(name)
    for given in overrides:
        if given not in known:
            raise UserError(f"task {name!r} has no field {given!r}; {meant(given, known)}")
    return {"name": name} | {key: overrides.get(key, f.default) for key, f in known.items()}


def chosen(task: Mapping[str, Any], distill: Distill) -> type[Task]:
    """The class of a `task` group: a classification with a teacher is a distillation."""
    if not distill.teacher:
        return TASKS[task["name"]]
    if task["name"] != "classification":
        raise UserError(f"distill.teacher teaches classification, not task {task['name']!r}; leave it out")
    return Distillation


def model_fields(
    model: Mapping[str, Any], task: Mapping[str, Any], distill: Distill, class_names: Sequence[str]
) -> dict[str, Any]:
    """The group `model` with an output for each class, where the task uses the model's own head; else without one."""
    return {**model, "num_classes": len(class_names) if chosen(task, distill).needs_head else 0}


def check(task: Mapping[str, Any], model: Mapping[str, Any], distill: Distill) -> None:
    """Raises `UserError` where the groups `task`, `model` and `distill` do not fit each other."""
    kind = chosen(task, distill)
    kind.check(_settings_of(kind, task), model, distill)


def check_settings(task: Mapping[str, Any], distill: Distill) -> None:
    """Raises `UserError` for a value of the groups `task` and `distill` that is out of its range."""
    distill.check()
    _settings_of(chosen(task, distill), task).check()


def with_data(
    task: Mapping[str, Any], distill: Distill, train: Split | None, class_names: Sequence[str]
) -> dict[str, Any]:
    """The group `task` with what the training images decide; `train` is None where they are not read."""
    kind = chosen(task, distill)
    settings = kind.with_data(_settings_of(kind, task), train, len(class_names))
    return {"name": task["name"], **{f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}}


def create(task: Mapping[str, Any], parts: Parts) -> Task:
    """The task that a `task` group describes."""
    kind = chosen(task, parts.distill)
    return kind(_settings_of(kind, task), parts)


def _settings_of(kind: type[Task], task: Mapping[str, Any]) -> Any:
    return kind.Settings(**{key: value for key, value in task.items() if key != "name"})
