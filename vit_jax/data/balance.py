"""The order of an epoch in which rare classes come more often than they are."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True, eq=False)
class BalancedOrder:
    """`(seed, epoch, size) -> the images of an epoch`, of which a class has the share (its share) ** (1 - power).

    Class-balanced sampling (Kang et al. 2020, arXiv:1910.09217, s. 3.2; q there is 1 - power): 0 leaves the classes as
    they are, 1 makes all alike. An epoch keeps its length: of a common class it shows a random part, an image of a rare
    one several times, as often as the others of its class, or once more.
    """

    labels: Int[np.ndarray, " size"]  # a negative one is a class, too
    power: float

    def __call__(self, seed: int, epoch: int, size: int) -> Int[np.ndarray, " size"]:
        return _order(self, seed, epoch)

    def counts(self) -> Int[np.ndarray, " k"]:
        """How many images of each class that there is an epoch shows."""
        _, there = np.unique(self.labels, return_counts=True)
        wanted = there.astype(np.float64) ** (1 - self.power)
        wanted *= len(self.labels) / wanted.sum()
        counts = np.floor(wanted).astype(np.int64)
        counts[np.argsort(counts - wanted, kind="stable")[: len(self.labels) - counts.sum()]] += 1  # the largest rests
        return counts


@lru_cache(maxsize=2)
def _order(order: BalancedOrder, seed: int, epoch: int) -> Int[np.ndarray, " size"]:
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    by_class = np.argsort(order.labels, kind="stable")
    ends = np.cumsum(np.unique(order.labels, return_counts=True)[1])[:-1]
    chosen = []
    for of_class, count in zip(np.split(by_class, ends), order.counts(), strict=True):
        rounds = [rng.permutation(of_class) for _ in range(-(-count // len(of_class)))]
        chosen.append(np.concatenate([*rounds, of_class[:0]])[:count])
    return rng.permutation(np.concatenate(chosen))
