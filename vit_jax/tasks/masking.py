"""Which patches of an image are hidden: at random places, or in blocks. A function of the image's key alone."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

ASPECT = 0.3  # a block's height over its width is between this and its inverse
DRAWS = 40  # of blocks, at most
MASK_TOKEN = 0.02  # standard deviation of a new token that stands for a hidden patch


def noise(keys: Key[Array, " n"], grid: tuple[int, int]) -> Float[Array, "n l"]:
    """A number for each patch of each image: those with the least are seen."""
    return jax.vmap(lambda key: jax.random.uniform(key, (grid[0] * grid[1],)))(keys)


def blocks(
    keys: Key[Array, " n"], grid: tuple[int, int], probability: float, share: tuple[float, float]
) -> Bool[Array, "n l"]:
    """The patches that blocks hide: with this probability, a share of them drawn from the range; else none.

    Block-wise masking (Bao et al. 2022, arXiv:2106.08254, alg. 1), by a ratio that is drawn for each image (iBOT,
    Zhou et al. 2022, arXiv:2111.07832, s. 4.1). The share is never exceeded; where blocks do not fit, less is hidden.
    """
    return jax.vmap(partial(_of_image, grid=grid, probability=probability, share=share))(keys)


def _of_image(
    key: Key[Array, ""], *, grid: tuple[int, int], probability: float, share: tuple[float, float]
) -> Bool[Array, " l"]:
    h, w = grid
    chosen, ratio, drawn = jax.random.split(key, 3)
    wanted = h * w * jax.random.uniform(ratio, minval=share[0], maxval=share[1])
    wanted = jnp.where(jax.random.bernoulli(chosen, probability), jnp.floor(wanted), 0)
    smallest = max(1, (min(h, w) // 3) ** 2)  # patches of a block, as in the authors' code
    rows, columns = jnp.arange(h)[:, None], jnp.arange(w)[None]

    def add(mask: Bool[Array, "h w"], numbers: Float[Array, "4"]) -> tuple[Bool[Array, "h w"], None]:
        left = wanted - mask.sum()
        area = jnp.minimum(smallest, left) + numbers[0] * jnp.maximum(left - smallest, 0)
        aspect = jnp.exp(math.log(ASPECT) * (1 - 2 * numbers[1]))
        height, width = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
        top, first = (
            jnp.floor(u * (side - size + 1)) for u, side, size in zip(numbers[2:], (h, w), (height, width), strict=True)
        )
        inside = (rows >= top) & (rows < top + height) & (columns >= first) & (columns < first + width)
        fits = (height <= h) & (width <= w) & ((inside & ~mask).sum() <= left)
        return jnp.where(fits, mask | inside, mask), None

    mask, _ = jax.lax.scan(add, jnp.zeros(grid, bool), jax.random.uniform(drawn, (DRAWS, 4)))
    return mask.reshape(-1)
