"""The sequence of tokens that an encoder reads: class tokens, registers, patches.

Shapes: `n` images, `l` tokens, `p` tokens before the patches, `r` registers, `d` width.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def prepend(tokens: Sequence[Float[Array, "1 p d"]], x: Float[Array, "n l d"]) -> Float[Array, "n m d"]:
    """The tokens, the same for all images, and then x."""
    return jnp.concatenate([*(_for_each(token, x) for token in tokens), x], axis=1)


def select_patches(
    x: Float[Array, "n l d"],
    num_patches: int,
    keep: Int[Array, "n k"] | None,
    registers: Float[Array, "1 r d"] | None,
) -> Float[Array, "n m d"]:
    """Class tokens, registers, and of the patches those that `keep` names: where x is class tokens and all patches."""
    if keep is None and registers is None:
        return x
    p = x.shape[1] - num_patches
    first, patches = x[:, :p], x[:, p:]
    if keep is not None:
        patches = jnp.take_along_axis(patches, keep[..., None], axis=1)
    between = [] if registers is None else [_for_each(registers, x)]
    return jnp.concatenate([first, *between, patches], axis=1)


def random_patches(rng: Key[Array, ""], n: int, num_patches: int, left_out: float) -> Int[Array, "n k"]:
    """Patches to keep, drawn for each of n images, so that the share `left_out` goes; at least one stays."""
    kept = max(1, round(num_patches * (1 - left_out)))
    return jnp.argsort(jax.random.uniform(rng, (n, num_patches)), axis=1)[:, :kept]


def _for_each(token: Float[Array, "1 p d"], x: Float[Array, "n l d"]) -> Float[Array, "n p d"]:
    return jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], *token.shape[1:]))
