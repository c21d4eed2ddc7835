"""The parts that models share: patch embedding, MLP, layer scale.

Shapes: `n` images, `h w` grid, `c` channels, `l` tokens, `d` width.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from vit_jax.command import UserError
from vit_jax.models.linear import Dense
from vit_jax.ops.dense import add_bias
from vit_jax.ops.dropout import dropout
from vit_jax.ops.gelu import gelu

Activation = Literal["gelu", "gelu_tanh", "swiglu"]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"gelu": gelu, "gelu_tanh": nn.gelu, "swiglu": nn.swish}
Dtype = Literal["float32", "bfloat16", "float16", "auto"]  # auto: see `inference.precision`; of a model alone, float32


def square(size: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) of a size field, in which one number means a square."""
    return (size[0], size[0]) if len(size) == 1 else (size[0], size[1])


def activate(x: Float[Array, "..."], activation: str) -> Float[Array, "..."]:
    """The activation function; outside a gated MLP `swiglu` means its gate's swish."""
    if activation not in ACTIVATIONS:
        raise UserError(f"activation={activation!r} is unknown; choose from {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation](x)


class PatchEmbedding(nn.Module):
    """Linear embedding of patches that do not overlap (Dosovitskiy et al. 2021, arXiv:2010.11929, s. 3.1).

    The kernel has a convolution's shape [height width c d], but patches are cut by a reshape: one matrix product.
    """

    patch_size: tuple[int, int]
    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Float[Array, "n H W c"]) -> Float[Array, "n h w d"]:
        n, height, width, c = images.shape
        p, q = self.patch_size
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=(0, 1, 2)), (p, q, c, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        patches = images.reshape(n, height // p, p, width // q, q, c).astype(self.dtype)
        x = jnp.einsum("nhpwqc,pqcd->nhwd", patches, kernel.astype(self.dtype))
        return add_bias(x, bias)


class MlpBlock(nn.Module):
    """Dense, activation, dropout, dense, dropout; with `swiglu` gated (Shazeer 2020, arXiv:2002.05202)."""

    mlp_dim: int
    activation: str = "gelu"
    output_activation: bool = False
    dropout: float = 0.0
    dtype: str = "float32"
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    bias_init: nn.initializers.Initializer = nn.initializers.normal(stddev=1e-6)

    @nn.compact
    def __call__(
        self, x: Float[Array, "n l d"], rng: Key[Array, ""], *, train: bool, num_tokens: int = 0
    ) -> Float[Array, "n l d"]:
        """x holds the first of so many tokens, among which dropout draws; 0: all."""
        inner_rng, outer_rng = jax.random.split(rng)
        dense = partial(Dense, kernel_init=self.kernel_init, bias_init=self.bias_init, dtype=self.dtype)
        drop = partial(dropout, rate=self.dropout, train=train, num_tokens=num_tokens)
        y = self.mixed(dense(self.mlp_dim, name="Dense_0")(x), num_tokens)
        if self.activation == "swiglu":
            y = y * nn.swish(dense(self.mlp_dim, name="gate")(x))
        else:
            y = activate(y, self.activation)
        y = dense(x.shape[-1], name="Dense_1")(drop(y, rng=inner_rng))
        if self.output_activation:
            y = activate(y, self.activation)
        return drop(y, rng=outer_rng)

    def mixed(self, y: Float[Array, "n l f"], num_tokens: int) -> Float[Array, "n l f"]:
        """The hidden layer before its activation; a subclass may mix tokens here."""
        return y


class LayerScale(nn.Module):
    """Scales each channel by a learned factor (Touvron et al. 2021, arXiv:2103.17239, s. 2)."""

    initial: float

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"]) -> Float[Array, "n l d"]:
        scale = self.param("scale", nn.initializers.constant(self.initial), (x.shape[-1],))
        return x * scale.astype(x.dtype)[None, None]
