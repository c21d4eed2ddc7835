"""What an evaluation keeps of a teacher: its loss, and how far its features lie apart."""

import math
from collections.abc import Mapping

import numpy as np

from vit_jax.metrics import probes
from vit_jax.tasks.means import Means


def alike(spread: float) -> str:
    return (
        f"the features of all images are alike: their spread is {spread:.2g}. Likely: they have collapsed (learning "
        "rate too high, momentum of teacher or centre too low), or it has had too few steps yet."
    )


class DirectionsEvaluator(Means):
    """The mean loss of a split, and how far its images' features lie apart."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: list[np.ndarray] = []  # of the directions and of their squares, [2 d]

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        direction = rows["direction"].astype(np.float64)
        self._sums.append(np.stack([direction.sum(axis=0), np.square(direction).sum(axis=0)]))
        super().add({name: rows[name] for name in ("index", "loss")})

    def scalars(self) -> dict[str, float]:
        found = super().scalars()
        mean, square = np.sum(self._sums, axis=0) / self.size
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        return found | {probes.SPREAD: float(deviation.mean() * math.sqrt(len(mean)))}

    def warnings(self) -> list[str]:
        spread = self.scalars()[probes.SPREAD]
        return [alike(spread)] if spread < probes.COLLAPSED else []
