"""A warp without gathers, for devices on which a gather waits for each number in turn, as TPUs do.

A matrix of determinant 1 is three shears: rows slide, columns slide, rows slide again (Paeth 1986, "A fast algorithm
for general raster rotation"). A slide is a choice among a few slices for each digit of its length.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Num

RADIX = 4  # slices that a slide chooses among at once
STEEPEST = 0.21  # of a rotation's first and last shear, by half the height: tan(22.5 degrees) / 2


def warp_square(image: Num[Array, "h h c"], matrix: Float[Array, "2 3"]) -> Float[Array, "h h c"]:
    """The image resampled at the places that `matrix` names (see `geometry.affine_matrix`), its edges extended.

    `matrix`: shears along one axis, translations, or a rotation. The first two are bilinear, as `geometry.warp`'s; a
    rotation is linear three times over, and blurs a little more.
    """
    size = image.shape[0]
    image, matrix = _turned(image, matrix)
    (a, b, down), (c, d, right) = matrix
    # (x, y) -> (x + last * y, y) -> (x, y + columns * x + down) -> (x + first * y + start, y)
    safe = jnp.where(b == 0, 1, b)
    columns, first, last = b, jnp.where(b == 0, c, (d - 1) / safe), jnp.where(b == 0, 0, (a - 1) / safe)
    start = right - first * down
    margin = 1 + round(STEEPEST * size)
    y, x = (jnp.arange(-pad, size + pad) - (size - 1) / 2 for pad in (0, margin))
    rows = slide(image, first * y + start, -margin, size + 2 * margin, reach=size)
    rows = slide(rows.swapaxes(0, 1), columns * x + down, 0, size, reach=size).swapaxes(0, 1)
    return slide(rows, last * y, margin, size, reach=margin)


def slide(x: Num[Array, "l w c"], shift: Float[Array, " l"], first: int, width: int, reach: int) -> Array:
    """Each of `l` lines from its place `first` + shift on, [l width c]: linear between two places, edges extended.

    Shifts beyond +-`reach` count as that much.
    """
    whole = jnp.floor(shift)
    digits = (jnp.clip(whole, -reach, reach) + reach).astype(jnp.int32)  # of a start in 0 ... 2 reach
    steps = [1]
    while steps[-1] * RADIX <= 2 * reach:
        steps.append(steps[-1] * RADIX)
    most = {step: min(RADIX - 1, 2 * reach // step) for step in steps}
    length = width + 1 + sum(step * times for step, times in most.items())
    x = x[:, max(0, first - reach) :]  # begins at the first place that is needed
    before = max(0, reach - first)
    x = jnp.pad(x, ((0, 0), (before, max(0, length - before - x.shape[1])), (0, 0)), "edge")[:, :length]
    for step in reversed(steps):
        length -= step * most[step]
        digit = (digits // step % RADIX)[:, None, None]
        choices = [x[:, step * times : step * times + length] for times in range(most[step] + 1)]
        x = choices[0]
        for times, choice in enumerate(choices[1:], 1):
            x = jnp.where(digit == times, choice, x)
    fraction = (shift - whole)[:, None, None]
    return (1 - fraction) * x[:, :-1] + fraction * x[:, 1:]


def _turned(image: Num[Array, "h h c"], matrix: Float[Array, "2 3"]) -> tuple[Num[Array, "h h c"], Float[Array, "2 3"]]:
    """The image after the quarter turns of a rotation, and what is left of it: at most 45 degrees."""
    turns = jnp.round(jnp.arctan2(matrix[0, 1], matrix[0, 0]) / (jnp.pi / 2)).astype(jnp.int32) % 4
    turned = image
    for number in (1, 2, 3):
        turned = jnp.where(turns == number, jnp.rot90(image, number), turned)
    cos, sin = jnp.array([1.0, 0.0, -1.0, 0.0])[turns], jnp.array([0.0, 1.0, 0.0, -1.0])[turns]
    return turned, jnp.stack([cos * matrix[0] - sin * matrix[1], sin * matrix[0] + cos * matrix[1]])
