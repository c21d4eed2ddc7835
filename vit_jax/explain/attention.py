"""Where attention goes: by layer and head, rolled out over the layers, weighted by a class's gradients, how far.

Shapes: `n` images, `b` blocks, `a` heads, `l` tokens, of which the last h * w are patches.
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vit_jax.explain.network import (
    Network,
    attentions,
    attentions_and_gradients,
    grid,
    layer_output,
    prefix_tokens,
)

Attentions: TypeAlias = Sequence[Float[Array | np.ndarray, "n a l l"]]


def roll_out(layers: Attentions) -> Float[Array, "n l l"]:
    """How much of each token, in columns, the last layer's tokens hold (Abnar & Zuidema 2020, arXiv:2005.00928, s. 3).

    The product over the layers of (A + I) / 2, where A is the mean over the heads and I the residual connection.
    """
    identity = jnp.eye(layers[0].shape[-1])[None]
    result = identity
    for layer in layers:
        result = (layer.mean(axis=1) + identity) / 2 @ result
    return result


def roll_out_gradients(layers: Attentions, gradients: Attentions) -> Float[Array, "n l l"]:
    """Relevance R of each token, in columns, to the last layer's (Chefer et al. 2021, arXiv:2103.15679, eq. 5 and 6).

    R starts as the identity, and each layer adds mean_heads((gradient * A)+) R.
    """
    result = jnp.broadcast_to(jnp.eye(layers[0].shape[-1])[None], (len(layers[0]), *layers[0].shape[2:]))
    for layer, gradient in zip(layers, gradients, strict=True):
        result = result + jax.nn.relu(layer * gradient).mean(axis=1) @ result
    return result


def mean_distances(layers: Attentions, grid: tuple[int, int], patch: tuple[float, float]) -> Float[Array, "n b a"]:
    """Pixels from a patch to the patches that it attends to, weighted by attention; the mean over all patches.

    As Dosovitskiy et al. 2021, arXiv:2010.11929, figure 7. `patch`: its height and width in pixels. Attention to other
    tokens does not count: that to the patches is divided by its sum.
    """
    h, w = grid
    y, x = jnp.divmod(jnp.arange(h * w), w)
    apart = jnp.hypot((y[:, None] - y[None, :]) * patch[0], (x[:, None] - x[None, :]) * patch[1])
    found = []
    for layer in layers:
        between = layer[..., -h * w :, -h * w :]
        between = between / between.sum(axis=-1, keepdims=True)
        found.append((between * apart[None, None]).sum(axis=-1).mean(axis=-1))
    return jnp.stack(found, axis=1)


def tokens_pooled(network: Network, x: Float[Array, "n H W c"], tokens: int) -> Float[Array, "n l"]:
    """The share of each of the last layer's tokens in what the head reads, for any class."""
    model, p = network.model, prefix_tokens(network, x)
    first, patches = jnp.zeros((len(x), tokens)), jnp.zeros((len(x), tokens))
    heads = 2 if getattr(model, "distillation_token", False) else 1
    first = first.at[:, :heads].set(1 / heads)
    patches = patches.at[:, p:].set(1 / (tokens - p))
    match getattr(model, "pooling", "gap"):
        case "token":
            return first
        case "token_gap":
            return (first + patches) / 2
        case "map":
            (weights,) = (a for path, a in network.sown(x, "attention").items() if "MAPHead" in path)
            return patches.at[:, p:].set(weights[:, :, 0].mean(axis=1))
        case "sequence":
            return nn.softmax(layer_output(network, x, "pool/score")[..., 0])
    return patches


def attention(
    network: Network, x: Float[Array, "n H W c"], targets: Int[Array, " n"], *, query: tuple[int, ...] = ()
) -> Float[Array, "n b a h w"]:
    """What each head of each block attends to.

    `query`: of the patch in this row and column; (): of the tokens that the head reads, the class token or the mean.
    """
    h, w = grid(network, x)
    layers = attentions(network, x)
    rows = tokens_pooled(network, x, layers[0].shape[-1])
    if query:
        rows = jnp.zeros_like(rows).at[:, query[0] * w + query[1] - h * w].set(1.0)
    maps = jnp.stack([jnp.einsum("nl,nalm->nam", rows, layer) for layer in layers], axis=1)
    return maps[..., -h * w :].reshape(*maps.shape[:3], h, w)


def rollout(network: Network, x: Float[Array, "n H W c"], targets: Int[Array, " n"]) -> Float[Array, "n h w"]:
    """The patches' shares in what the head reads, after `roll_out`."""
    layers = attentions(network, x)
    return _patches(network, x, tokens_pooled(network, x, layers[0].shape[-1]), roll_out(layers))


def gradient_rollout(network: Network, x: Float[Array, "n H W c"], targets: Int[Array, " n"]) -> Float[Array, "n h w"]:
    """The patches' relevance to a class: what `roll_out_gradients` adds to the tokens that the head reads.

    Chefer et al. read the class token's row. Without one all patches' rows are added, for the gradients weigh them
    already; the identity is taken away: it is the patches' relevance to themselves.
    """
    layers, gradients = attentions_and_gradients(network, x, targets)
    l = layers[0].shape[-1]
    read = (tokens_pooled(network, x, l) > 0).astype(jnp.float32)
    return _patches(network, x, read, roll_out_gradients(layers, gradients) - jnp.eye(l)[None])


def _patches(
    network: Network, x: Float[Array, "n H W c"], rows: Float[Array, "n l"], rolled: Float[Array, "n l l"]
) -> Float[Array, "n h w"]:
    h, w = grid(network, x)
    return jnp.einsum("nl,nlm->nm", rows, rolled)[:, -h * w :].reshape(len(x), h, w)


def distance(network: Network, x: Float[Array, "n H W c"], targets: Int[Array, " n"]) -> Float[Array, "n b a"]:
    """`mean_distances` of the encoder's blocks, in pixels of the image that the model sees."""
    h, w = grid(network, x)
    return mean_distances(attentions(network, x), (h, w), (x.shape[1] / h, x.shape[2] / w))
