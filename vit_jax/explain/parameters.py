"""What can be seen without an image: position embeddings and the first layer's filters."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from vit_jax import models, trees
from vit_jax.explain.network import Network, grid
from vit_jax.models.layers import square
from vit_jax.models.positions import sincos1d, sincos2d

COMPONENTS = 28  # as Dosovitskiy et al. 2021, arXiv:2010.11929, figure 7


def position_table(network: Network, x: Any) -> Float[Array, "h w d"]:
    """The embedding of each place of the grid."""
    (h, w), model = grid(network, x), network.model
    kind, width = model.pos_embed, model.width
    if kind == "sincos2d":
        return sincos2d((h, w), width)
    if kind == "sincos1d":
        tokens = h * w + (model.pooling == "token")
        return sincos1d(tokens, width)[-h * w :].reshape(h, w, width)
    stored = network.variables["params"]["Transformer"]["posembed_input"]
    if kind == "learned":
        return stored["pos_embedding"][0, -h * w :].reshape(h, w, width)
    columns = jnp.broadcast_to(stored["x_embedding"][None], (h, w, width // 2))
    rows = jnp.broadcast_to(stored["y_embedding"][:, None], (h, w, width // 2))
    return jnp.concatenate([columns, rows], axis=-1)


def positions(network: Network, x: Any) -> Float[Array, "h w h w"]:
    """The cosine of each place's embedding with every other's (Dosovitskiy et al. 2021, figure 7)."""
    table = position_table(network, x)
    unit = table / jnp.maximum(jnp.linalg.norm(table, axis=-1, keepdims=True), 1e-12)
    return jnp.einsum("hwd,ijd->hwij", unit, unit)


def first_kernel(network: Network, x: Any) -> Float[np.ndarray, "p q c d"]:
    """The kernel that meets the image first, of a convolution or of patches."""
    params = network.variables["params"]
    order = trees.layers(params, models.naming_of(network.model).layers)
    kernels = [
        (number, path, leaf)
        for (path, leaf), number in zip(
            traverse_util.flatten_dict(params, sep="/").items(),
            traverse_util.flatten_dict(order, sep="/").values(),
            strict=True,
        )
        if path.endswith("kernel") and leaf.ndim == 4 and leaf.shape[2] == x.shape[-1]
    ]
    return np.asarray(min(kernels, key=lambda found: found[:2])[2], np.float32)


def filters(network: Network, x: Any) -> Float[np.ndarray, "k p q c"]:
    """The first layer's filters: a patch embedding's principal components, `COMPONENTS` at most; else each of them."""
    kernel = first_kernel(network, x)
    flat = np.moveaxis(kernel, -1, 0).reshape(kernel.shape[-1], -1)
    patch = getattr(network.model, "patch_size", ())
    if patch and kernel.shape[:2] == square(patch):
        _, _, flat = np.linalg.svd(flat - flat.mean(axis=0, keepdims=True), full_matrices=False)
        flat = flat[:COMPONENTS]
    return flat.reshape(-1, *kernel.shape[:3])
