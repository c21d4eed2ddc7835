"""Random images, keys, and settings that change nothing but the scale."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.augment import Settings

PLAIN = Settings(mean=(0.0,), std=(1.0,))


def pictures(n: int = 5, h: int = 17, w: int = 19, c: int = 3) -> jax.Array:
    return jnp.asarray(np.random.default_rng(7).integers(0, 256, (n, h, w, c), dtype=np.uint8))


def picture(h: int = 7, w: int = 11, c: int = 3) -> jax.Array:
    return pictures(1, h, w, c)[0].astype(jnp.float32) / 255


def keys(n: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)
