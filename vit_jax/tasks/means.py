"""The evaluator of a task whose metrics are means over the examples."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax import metrics
from vit_jax.command import UserError


class Means:
    """The mean of each of a task's `outputs`, float [n], under its name."""

    def __init__(self) -> None:
        self._parts: list[Mapping[str, np.ndarray]] = []

    @property
    def size(self) -> int:
        return sum(len(rows["index"]) for rows in self._parts)

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        self._parts.append(rows)

    def scalars(self) -> dict[str, float]:
        """Exact sums: they depend on no batch size and no order. Targets have no mean."""
        if not self._parts:
            raise UserError(metrics.NO_EXAMPLES)
        names = [name for name, values in self._parts[0].items() if np.issubdtype(values.dtype, np.floating)]
        return {name: math.fsum(x for part in self._parts for x in part[name].tolist()) / self.size for name in names}

    def details(self) -> dict[str, Any]:
        return {}

    def warnings(self) -> list[str]:
        return []

    def save(self, folder: Path) -> None:
        """There is nothing beside the scalars."""
