"""Rectangles of one normalised image overwritten: random erasing and Cutout."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from vit_jax.augment.geometry import random_size
from vit_jax.augment.settings import Settings


def random_erase(key: Key[Array, ""], image: Float[Array, "h w c"], settings: Settings) -> Float[Array, "h w c"]:
    """The normalised image with one rectangle overwritten, with probability `settings.erasing` (arXiv:1708.04896)."""
    happens_key, box_key, noise_key = jax.random.split(key, 3)
    box = random_box(box_key, image.shape[:2], settings.erasing_area, settings.erasing_aspect)
    erased = box[:, :, None] & jax.random.bernoulli(happens_key, settings.erasing)
    noisy = settings.erasing_fill == "noise"
    return jnp.where(erased, jax.random.normal(noise_key, image.shape) if noisy else 0.0, image)


def random_box(
    key: Key[Array, ""], shape: tuple[int, ...], area: tuple[float, float], aspect: tuple[float, float]
) -> Bool[Array, "h w"]:
    """True inside a random rectangle: its area a uniform fraction, its height : width uniform in the logarithm.

    Like the paper, draws area and aspect anew until the rectangle fits; after 10 attempts there is none.
    """
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    size, _ = random_size(area_key, aspect_key, shape, area, aspect)
    height, width = shape
    start = jax.random.randint(place_key, (2,), 0, jnp.array([height, width]) - size + 1)
    y, x = jnp.arange(height)[:, None] - start[0], jnp.arange(width)[None] - start[1]
    return (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1])


def cutout(key: Key[Array, ""], image: Float[Array, "h w c"], side: int) -> Float[Array, "h w c"]:
    """The normalised image with the mean colour in a square (DeVries & Taylor 2017, arXiv:1708.04552)."""
    return jnp.where(random_window(key, image.shape[:2], jnp.array([side, side]) // 2)[:, :, None], 0.0, image)


def random_window(key: Key[Array, ""], shape: tuple[int, ...], half: Int[Array, "2"]) -> Bool[Array, "h w"]:
    """True up to `half` (height, width) from a random pixel, each equally likely; the edges may cut the window."""
    height, width = shape
    centre = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
    y, x = jnp.arange(height)[:, None] - centre[0], jnp.arange(width)[None] - centre[1]
    return (y >= -half[0]) & (y < half[0]) & (x >= -half[1]) & (x < half[1])
