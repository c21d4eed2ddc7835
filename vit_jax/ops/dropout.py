"""Dropout, and random bits that XLA's CPU compiler can fuse with it."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt32

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA  # of the key schedule


def dropout(
    x: Float[Array, "..."], rate: float, rng: Key[Array, ""], *, train: bool, num_tokens: int = 0
) -> Float[Array, "..."]:
    """Zeroes entries with probability `rate` and scales the others by 1 / (1 - rate); the identity outside training.

    The key is an argument, not a Linen RNG, so that a scanned and a looped stack of layers draw the same. If x
    [... l c] holds the first of `num_tokens`, they draw what they would among all.
    """
    if not train or rate == 0.0:
        return x
    *n, l, c = x.shape
    keep = bernoulli(rng, 1.0 - rate, (*n, num_tokens or l, c))[..., :l, :]
    return jnp.where(keep, x / (1.0 - rate), 0)


def drop_path(x: Float[Array, "n l d"], rate: Float[Array, ""], rng: Key[Array, ""]) -> Float[Array, "n l d"]:
    """Drops a residual branch for whole images, and scales the kept ones by 1 / (1 - rate).

    Stochastic depth (Huang et al. 2016, arXiv:1603.09382, s. 3), scaled in training instead of in evaluation.
    """
    keep = jax.random.bernoulli(rng, 1 - rate, (x.shape[0], 1, 1))
    return jnp.where(keep, x / (1 - rate).astype(x.dtype), 0)


def bernoulli(rng: Key[Array, ""], p: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """`jax.random.bernoulli(rng, p, shape)`, to the bit; on CPUs `fusible`, five times as fast.

    JAX's CPU code makes the random bits in a call of their own, which writes them to memory: 42 ms for the dropout of
    [128, 65, 512] on one core. Written as plain arithmetic, each bit is made where it is read: 6 ms.
    """
    partitionable = getattr(jax.config, "jax_threefry_partitionable", True)
    own = jax.random.key_impl(rng) == "threefry2x32" and partitionable
    if not own or _size(shape) >= 2**32:
        return jax.random.bernoulli(rng, p, shape)
    return jax.lax.platform_dependent(
        rng,
        cpu=lambda rng: fusible(jax.random.key_data(rng), p, shape),
        default=lambda rng: jax.random.bernoulli(rng, p, shape),
    )


def _size(shape: tuple[int, ...]) -> int:
    """How many entries; of an axis whose size is only known when an exported program runs, as for one."""
    return math.prod(size for size in shape if isinstance(size, int))


def fusible(key: UInt32[Array, "2"], p: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """`jax.random.bernoulli` in plain arithmetic."""
    high, low = threefry(key, jnp.zeros(shape, jnp.uint32), _positions(shape))
    mantissa = (high ^ low) >> 9 | 0x3F800000  # of a float in [1, 2)
    return jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 1.0 < jnp.float32(p)


def _positions(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """The place of each entry in the flattened array."""
    found, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        found += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    return found


def threefry(
    key: UInt32[Array, "2"], x: UInt32[Array, "*n"], y: UInt32[Array, "*n"]
) -> tuple[UInt32[Array, "*n"], UInt32[Array, "*n"]]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011, doi:10.1145/2063384.2063405) of the counters (x, y)."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    x, y = x + keys[0], y + keys[1]
    for i in range(5):
        for r in ROTATIONS[i % 2]:
            x = x + y
            y = (y << r | y >> (32 - r)) ^ x
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return x, y
