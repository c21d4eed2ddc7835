"""An augmentation: each image keeps the highest 2 to 8 bits of its colours, drawn anew for each image and step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, UInt8

from vit_jax import augment


def fewer_bits(key: Key[Array, ""], image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    dropped = jax.random.randint(key, (), 0, 7).astype(jnp.uint8)
    return (image >> dropped) << dropped


augment.register("fewer_bits", fewer_bits, stage="colour")
