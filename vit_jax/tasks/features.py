"""What the head of a frozen backbone would read of each image: a task that learns nothing, for probes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vit_jax import metrics
from vit_jax.command import UserError
from vit_jax.tasks.base import Examples, Parts, Task, TaskSettings, make_forward
from vit_jax.trees import PyTree


class FrozenFeatures(Task):
    """The features of images and their labels; variables of any task that trained the backbone will do."""

    targets = ("label",)

    def __init__(self, parts: Parts) -> None:
        super().__init__(TaskSettings(), replace(parts, tta="none"))  # features are those of the image
        self.module = parts.model.clone(num_classes=0)
        self.forward = make_forward(self.module, parts.augment)

    def outputs(self, variables: PyTree, batch: Examples, constants: Mapping[str, PyTree]) -> dict[str, Array]:
        return {"features": self.forward(variables, batch["image"]).astype(jnp.float32)}

    def evaluator(self, size: int) -> "Gathered":
        return Gathered(len(self.parts.class_names))


class Gathered:
    """The features and the labels of every example."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._parts: list[Mapping[str, np.ndarray]] = []

    @property
    def size(self) -> int:
        return sum(len(rows["index"]) for rows in self._parts)

    @property
    def found(self) -> metrics.Labelled:
        if not self._parts:
            raise UserError(metrics.NO_EXAMPLES)
        return metrics.Labelled(
            *(np.concatenate([part[name] for part in self._parts]) for name in ("features", "label"))
        )

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        metrics.check_labels(rows["label"], self.num_classes)
        self._parts.append({**rows, "features": rows["features"].reshape(len(rows["index"]), -1)})

    def scalars(self) -> dict[str, float]:
        return {}

    def details(self) -> dict[str, Any]:
        return {}

    def warnings(self) -> list[str]:
        return []

    def save(self, folder: Path) -> None:
        """There is nothing to keep."""
