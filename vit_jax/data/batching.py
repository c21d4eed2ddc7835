"""Which images make which batch: a pure function of (seed, step), the same for any number of processes.

Nothing else decides the order, so resuming a run at a step needs no saved state.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from vit_jax.command import UserError

Order = Callable[[int, int, int], Int[np.ndarray, " size"]]  # (seed, epoch, size) -> the images of an epoch


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, size: int) -> Int[np.ndarray, " size"]:
    """The order of the images in one epoch: a permutation of 0 .. size - 1."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size)


def steps_per_epoch(batch_size: int, size: int) -> int:
    """Full batches in an epoch; the remainder is dropped, another one in each epoch."""
    if batch_size > size:
        raise UserError(
            f"train.batch_size={batch_size} is larger than the training split of {size} images; "
            f"choose at most {size}, or more data"
        )
    return size // batch_size


def train_indices(
    seed: int, step: int, batch_size: int, size: int, repeats: int = 1, order: Order = epoch_order
) -> Int[np.ndarray, " {batch_size}"]:
    """The images of a training step, counted from 0.

    With `repeats` r each image comes r times in a row, each time under other draws of the augmentation; an epoch keeps
    its length and shows the first 1/r of its order (Hoffer et al. 2019, arXiv:1901.09335; Berman et al. 2019,
    arXiv:1902.05509; in this order DeiT, r = 3).
    """
    epoch, position = divmod(step, steps_per_epoch(batch_size, size))
    places = np.arange(position * batch_size, (position + 1) * batch_size)
    return order(seed, epoch, size)[places // repeats]


@lru_cache(maxsize=2)
def _first_mirrored(seed: int, size: int) -> Bool[np.ndarray, " size"]:
    return np.random.Generator(np.random.Philox(key=[seed, 2**63])).integers(0, 2, size, bool)


def mirrored(
    seed: int, step: int, batch_size: int, size: int, indices: Int[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Which images of a training step are mirrored if flips alternate (Jordan 2024, arXiv:2404.00498, s. 3.6).

    A random half is in even epochs, the other half in odd ones: two epochs show each image both ways.
    """
    odd = step // steps_per_epoch(batch_size, size) % 2 == 1
    return _first_mirrored(seed, size)[indices] ^ odd


def evaluation_batch(
    number: int, batch_size: int, size: int
) -> tuple[Int[np.ndarray, " {batch_size}"], Float[np.ndarray, " {batch_size}"]]:
    """Indices and weights of an evaluation batch: all images once, in order; the last is filled with image 0 at 0."""
    indices = np.arange(number * batch_size, (number + 1) * batch_size)
    return np.where(indices < size, indices, 0), (indices < size).astype(np.float32)
