"""Flax's linear layers, with products and biases from `ops`: the same parameters, and the same numbers in float32."""

from typing import Any

from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from vit_jax.ops.convolution import conv_general_dilated
from vit_jax.ops.dense import add_bias, dot_general


class Dense(nn.DenseGeneral):
    """`nn.Dense` and `nn.DenseGeneral`; `bias` is what they call `use_bias`."""

    use_bias: bool = False
    bias: bool = True
    dot_general: Any = dot_general
    promote_dtype: Any = promote_dtype  # of a type that tests could not check

    @nn.compact
    def __call__(self, inputs: Float[Array, "..."]) -> Float[Array, "..."]:
        y = super().__call__(inputs)
        features = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        return add_bias(y, self.param("bias", self.bias_init, features)) if self.bias else y


class Conv(nn.Conv):
    """`nn.Conv`; `bias` is what it calls `use_bias`."""

    use_bias: bool = False
    bias: bool = True
    conv_general_dilated: Any = conv_general_dilated
    promote_dtype: Any = promote_dtype

    @nn.compact
    def __call__(self, inputs: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        y = super().__call__(inputs)
        return add_bias(y, self.param("bias", self.bias_init, (self.features,))) if self.bias else y
