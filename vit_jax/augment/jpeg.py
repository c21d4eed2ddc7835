"""What JPEG compression does to an image, computed on the device without the file.

The baseline process of ITU-T T.81 with its example tables (annex K), scaled by a quality from 1 to 100 as libjpeg
does, and colours at half the resolution (4:2:0). Nearly what Pillow's `save(..., quality=...)` gives; libjpeg computes
in integers, so that some coefficients halfway between two steps fall on the other one.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, UInt8

LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99),
    *(47, 66, 99, 99, 99, 99, 99, 99, *(99,) * 32),
)
# Rows: Y, Cb, Cr of R, G, B (JFIF 1.02).
TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def compress(image: UInt8[Array, "h w c"], quality: int) -> UInt8[Array, "h w c"]:
    """The image as it is after saving at that quality; one of another number of channels than 3 has no colours."""
    height, width, channels = image.shape
    below, right = -height % 16, -width % 16
    x = jnp.pad(image, ((0, below), (0, right), (0, 0)), "edge").astype(jnp.float32)
    if channels == 3:
        x = jnp.round(_ycc(x, TO_YCC))
        luma = quantized(x[:, :, :1] - 128, LUMA, quality) + 128
        halves = x[:, :, 1:].reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, 2).mean(axis=(1, 3))
        # Like libjpeg's "fancy" upsampling, which sees nothing of the padding.
        small = quantized(halves, CHROMA, quality)[: (height + 1) // 2, : (width + 1) // 2]
        chroma = jax.image.resize(small, (2 * small.shape[0], 2 * small.shape[1], 2), "linear")
        luma = luma[: chroma.shape[0], : chroma.shape[1]]
        x = _ycc(jnp.concatenate([luma, chroma], axis=2), np.linalg.inv(TO_YCC))
    else:
        x = quantized(x - 128, LUMA, quality) + 128
    return jnp.round(jnp.clip(x, 0, 255)).astype(jnp.uint8)[:height, :width]


def _ycc(x: Float[Array, "h w 3"], matrix: np.ndarray) -> Float[Array, "h w 3"]:
    return jnp.einsum("hwc,dc->hwd", x, jnp.asarray(matrix, jnp.float32), precision="highest")


def quantized(x: Float[Array, "h w c"], table: tuple[int, ...], quality: int) -> Float[Array, "h w c"]:
    """The cosine coefficients of each 8 x 8 pixels rounded to multiples of the table's, and back."""
    height, width, channels = x.shape
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = np.clip((np.array(table).reshape(8, 8) * scale + 50) // 100, 1, 255)
    units = jnp.asarray(steps, jnp.float32)[None, :, None, :, None]
    cosines = jnp.asarray(_cosines(), jnp.float32)
    blocks = jnp.round(x).reshape(height // 8, 8, width // 8, 8, channels)
    coefficients = jnp.einsum("uy,ayblc,vl->aubvc", cosines, blocks, cosines, precision="highest")
    kept = jnp.round(coefficients / units) * units
    return jnp.einsum("uy,aubvc,vl->ayblc", cosines, kept, cosines, precision="highest").reshape(x.shape)


def _cosines() -> np.ndarray:
    """The orthonormal discrete cosine transform of 8 values: rows are frequencies."""
    frequency, place = np.arange(8)[:, None], np.arange(8)[None] + 0.5
    return np.cos(np.pi / 8 * frequency * place) * np.where(frequency == 0, np.sqrt(1 / 8), 0.5)
