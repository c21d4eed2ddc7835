"""From one vector of an image to its logits."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from vit_jax.models.layers import activate
from vit_jax.ops.dropout import dropout


def linear_head(x: Float[Array, "n ..."], num_classes: int, **options: Any) -> Float[Array, "n ..."]:
    """The logits [n k], in float32, by a dense layer with these options; without classes x, the features."""
    return nn.Dense(num_classes, **{"name": "head"} | options)(x).astype(jnp.float32) if num_classes else x


def new_head(*, zero: bool, bias: float) -> dict[str, Any]:
    """How a dense layer starts: its kernel at zero or as Xavier, its bias at this number."""
    kernel_init = nn.initializers.zeros if zero else nn.initializers.xavier_uniform()
    return {"kernel_init": kernel_init, "bias_init": nn.initializers.constant(bias)}


def vit_head(model: Any, x: Float[Array, "n ..."], rng: Key[Array, ""], *, train: bool) -> Float[Array, "n ..."]:
    """The logits, behind the hidden layers that the fields of a ViT ask for."""
    rngs = jax.random.split(rng, len(model.head_widths) + 1)
    if model.pre_logits:
        x = nn.tanh(nn.Dense(model.pre_logits, dtype=model.dtype, name="pre_logits")(x))
    for i, width in enumerate(model.head_widths):
        x = dropout(x, model.head_dropout, rngs[i], train=train)
        x = activate(nn.Dense(width, dtype=model.dtype, name=f"head_hidden_{i}")(x), model.activation)
    return vit_logits(model, x, rngs[-1], train=train, name="head")


def vit_logits(
    model: Any, x: Float[Array, "n ..."], rng: Key[Array, ""], *, train: bool, name: str
) -> Float[Array, "n ..."]:
    """Dropout and one linear layer."""
    x = dropout(x, model.head_dropout, rng, train=train)
    options = new_head(zero=model.zero_head, bias=model.head_bias)
    logits = linear_head(x, model.num_classes, dtype=model.dtype, name=name, **options)
    scale = getattr(model, "logit_scale", 1.0)  # of the families that have one
    return logits * scale if model.num_classes and scale != 1 else logits
