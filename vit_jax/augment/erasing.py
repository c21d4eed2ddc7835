"""Random erasing (Zhong et al. 2017, arXiv:1708.04896) of one normalised image."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Key

from vit_jax.augment.geometry import random_size
from vit_jax.augment.settings import Settings


def random_erase(key: Key[Array, ""], image: Float[Array, "h w c"], settings: Settings) -> Float[Array, "h w c"]:
    """The normalised image with one rectangle overwritten, with probability `settings.erasing`."""
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
