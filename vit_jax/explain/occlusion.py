"""Which places a class needs: what happens when they are covered."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vit_jax.command import UserError
from vit_jax.explain.network import Network, grid, picked

CELLS = 7  # a window is a cell of the model's own grid, if that has so many at least


def occlusion(
    network: Network, x: Float[Array, "n H W c"], targets: Int[Array, " n"], *, window: int = 0, stride: int = 0
) -> Float[Array, "n H W"]:
    """The class's loss of probability under a square of the mean colour (Zeiler & Fergus 2014, arXiv:1311.2901).

    A pixel has the mean over the squares that cover it. `window`: the square's side in pixels; 0: a cell of the model's
    grid, or an eighth of the image where that is smaller. `stride`: from one square to the next; 0: the side.

    Raises:
        UserError: a stride larger than the side, which would leave pixels out.
    """
    n, height, width, _ = x.shape
    h, w = grid(network, x)
    side = window or max(1, min(height // h if h >= CELLS else height // 8, width // w if w >= CELLS else width // 8))
    if stride > side:
        raise UserError(
            f"stride={stride} leaves pixels between squares of {side} pixels uncovered; give at most {side}"
        )
    corners = np.array([(i, j) for i in _starts(height, side, stride) for j in _starts(width, side, stride)])
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    whole = picked(network.probabilities(x), targets)

    def covered(corner: Int[Array, "2"]) -> tuple[Array, Array]:
        top, left = corner
        mask = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
        found = picked(network.probabilities(jnp.where(mask[None, :, :, None], 0.0, x)), targets)
        return mask.astype(jnp.float32), whole - found

    def add(sums: tuple[Array, Array], corner: Int[Array, "2"]) -> tuple[tuple[Array, Array], None]:
        mask, loss = covered(corner)
        return (sums[0] + loss[:, None, None] * mask[None], sums[1] + mask), None

    zeros = jnp.zeros((n, height, width)), jnp.zeros((height, width))
    (losses, times), _ = jax.lax.scan(add, zeros, jnp.asarray(corners))
    return losses / times[None]


def _starts(length: int, side: int, stride: int) -> list[int]:
    """Where squares begin, so that they cover all of a length."""
    last = max(length - side, 0)
    return sorted({*range(0, last + 1, stride or side), last})
