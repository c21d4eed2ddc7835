"""Which places speak for a class, by the gradients of its `evidence`: Grad-CAM and integrated gradients."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vit_jax.augment.views import normalize
from vit_jax.explain.network import Network, class_score, layer_and_gradient, layers


def grad_cam_layer(network: Network, x: Any) -> str:
    """The path of the module whose output Grad-CAM weights, unless another one is chosen.

    A CNN's last map, and the last tokens of a transformer that pools them: after the last norm, for the gradients of
    what enters a layer norm are orthogonal to it. A class token reads the patches in the last block for the last time:
    behind it their gradients are zero, so the layer is what enters that block's attention.
    """
    model = network.model
    if getattr(model, "pooling", "") == "token":
        return f"Transformer/encoderblock_{model.depth - 1}/LayerNorm_0"
    return [path for path in layers(network, x) if path and "/" not in path][-1]


def grad_cam(
    network: Network, x: Float[Array, "n H W c"], targets: Int[Array, " n"], *, layer: str = ""
) -> Float[Array, "n h w"]:
    """relu(sum_d mean_hw(gradient_d) A_d) of a CNN's layer A (Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2).

    Of tokens each has its own gradient, not the mean one (HiResCAM, Draelos & Carin 2020, arXiv:2011.08891): what
    attention reads in one place says little about another, and the mean points to the background.
    `layer`: the path of a module that returns a map or tokens; "": see `grad_cam_layer`. Of a map the positive part
    counts: all CNNs here put it through a ReLU, unless it has gone through one.
    """
    path = layer or grad_cam_layer(network, x)
    values, gradients = layer_and_gradient(network, x, targets, path)
    if hasattr(network.model, "num_heads"):
        return jax.nn.relu((values * gradients).sum(axis=-1))
    return jax.nn.relu(jnp.einsum("nhwd,nd->nhw", jax.nn.relu(values), gradients.mean(axis=(1, 2))))


def integrated_gradients(
    network: Network,
    x: Float[Array, "n H W c"],
    targets: Int[Array, " n"],
    *,
    steps: int = 32,
    baseline: Literal["mean", "black"] = "mean",
) -> Float[Array, "n H W"]:
    """Each pixel's part of a class's evidence, over a baseline image's (Sundararajan et al. 2017, arXiv:1703.01365).

    (x - baseline) times the integral of the gradients on the way from the baseline to x, by Gauss-Legendre quadrature,
    summed over the channels: the pixels' sum is evidence(x) - evidence(baseline). `baseline`: mean (colour) or black.
    """
    start = jnp.zeros_like(x)
    if baseline == "black":
        start = start + normalize(network.settings, jnp.zeros(x.shape[1:]))[None]
    nodes, weights = np.polynomial.legendre.leggauss(steps)

    def add(total: Array, step: tuple[Array, Array]) -> tuple[Array, None]:
        at, weight = step
        gradient = jax.grad(class_score, argnums=1)(network, start + at * (x - start), targets)
        return total + weight * gradient, None

    path = jnp.float32((nodes + 1) / 2), jnp.float32(weights / 2)
    total, _ = jax.lax.scan(add, jnp.zeros_like(x), path)
    return ((x - start) * total).sum(axis=-1)
