"""What self-distillation puts on a backbone (Caron et al. 2021, arXiv:2104.14294, s. 3.1 and appendix C)."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.models.layers import Dtype


class Projection(nn.Module):
    """Two hidden layers, a bottleneck of length 1, and a last layer, `last/kernel`, whose columns have length 1."""

    hidden_width: int
    bottleneck: int
    outputs: int
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.truncated_normal(0.02))
        for i in range(2):
            x = nn.gelu(dense(self.hidden_width, name=f"hidden_{i}")(x), approximate=False)
        x = of_length_1(dense(self.bottleneck, name="bottleneck")(x).astype(jnp.float32), axis=-1)
        return Directions(self.outputs, self.dtype, name="last")(x)


class Directions(nn.Module):
    """The scalar product of each input with `outputs` learned directions: weight normalisation of fixed gain 1."""

    outputs: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
        kernel = self.param("kernel", nn.initializers.truncated_normal(0.02), (x.shape[-1], self.outputs))
        kernel = of_length_1(kernel, axis=0)
        return jnp.einsum("nd,dk->nk", x.astype(self.dtype), kernel.astype(self.dtype)).astype(jnp.float32)


def of_length_1(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """The vectors along an axis, scaled to length 1."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=axis, keepdims=True), 1e-24))
