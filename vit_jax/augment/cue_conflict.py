"""Images with the shape of one and the texture of another, to ask which of the two a model goes by.

Geirhos et al. 2019 (arXiv:1811.12231) and Tuli et al. 2021 (arXiv:2105.07197) make them by neural style transfer. Here
they are made classically, without a network: the phases of an image's Fourier transform hold where its edges are, the
amplitudes how strong each spatial frequency is (Oppenheim & Lim 1981, "The importance of phase in signals"). So the
numbers are not comparable with theirs; two models measured here are.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import UInt8

from vit_jax.augment.operations import grey


def cue_conflict(shapes: UInt8[Array, "n h w c"], textures: UInt8[Array, "n h w c"]) -> UInt8[Array, "n h w c"]:
    """Each image with the phases of the luma of `shapes`, and the amplitudes of each channel of `textures`.

    Mean colour and contrast are thus the texture's. Measure with `metrics.shape_bias`.
    """
    luma = jax.vmap(grey)(shapes)  # phases of each channel would scatter the colours
    of_shape, of_texture = (jnp.fft.fft2(x.astype(jnp.float32), axes=(1, 2)) for x in (luma, textures))
    mixed = jnp.fft.ifft2(jnp.abs(of_texture) * jnp.exp(1j * jnp.angle(of_shape)), axes=(1, 2)).real
    return jnp.round(jnp.clip(mixed, 0, 255)).astype(jnp.uint8)
