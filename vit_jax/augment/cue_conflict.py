"""Images with the shape of one and the texture of another, to ask which of the two a model goes by.

Geirhos et al. 2019 (arXiv:1811.12231) and Tuli et al. 2021 (arXiv:2105.07197) make them by neural style transfer. Here
no network is needed: the shape gives the light, the texture the material on which it falls. Light is the luma of the
shape without its own fine texture: smoothed but for its edges (guided filter, He et al. 2013, "Guided image filtering",
guided by itself). The material is woven of small patches of the texture, the busiest ones, each many times at random:
nothing of the texture's image that is larger than a patch is left. What is black in the shape stays black.

Limits: a texture coarser than a patch is lost, a smooth surface gives none, a shape without contrast in its luma
vanishes. A patch of 28 x 28 pixels has 6 x 6, in which little of a class is left: on Fashion-MNIST a ViT and a CNN both
went by the shape (98 %). The numbers are not comparable with those of style transfer; two models measured here are.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key, UInt8

from vit_jax.augment.operations import grey

PATCHES = 5  # per side of an image, before they overlap by half; at least 4 pixels each
BUSIEST = 0.1  # share of the texture's places whose patches are woven
CONTRAST = 0.3  # of the material at most: the deviation of its log luma; more hides the shape
BRIGHTEST = 0.8  # light, so that the material has room above it
SMOOTHING = 0.005  # variance of luma in [0, 1] above which the shape has an edge
DARK = 0.05  # added before ratios are taken: what is black has neither texture nor colour
AT_ONCE = 32  # images, for the memory


def cue_conflict(
    key: Key[Array, ""], shapes: UInt8[Array, "n h w c"], textures: UInt8[Array, "n h w c"]
) -> UInt8[Array, "n h w c"]:
    """Each of `shapes` made of the material of `textures`; 4 x 4 pixels at least. Measure with `metrics.shape_bias`.

    What becomes of a pair depends on it, the key and its place alone.
    """
    keys = jax.random.split(key, len(shapes))
    return jax.lax.map(lambda one: _made_of(*one), (keys, shapes, textures), batch_size=AT_ONCE)


def _made_of(
    key: Key[Array, ""], shape: UInt8[Array, "h w c"], texture: UInt8[Array, "h w c"]
) -> UInt8[Array, "h w c"]:
    light = _light(_luma(shape), max(1, min(shape.shape[:2]) // 40))
    material = _woven(key, texture.astype(jnp.float32) / 255, _luma(texture))
    lit = light[:, :, None] * material
    return jnp.round(255 * lit / jnp.maximum(lit.max(axis=2, keepdims=True), 1)).astype(jnp.uint8)  # hues stay


def _luma(image: UInt8[Array, "h w c"]) -> Float[Array, "h w"]:
    return grey(image)[:, :, 0].astype(jnp.float32) / 255


def _light(luma: Float[Array, "h w"], reach: int) -> Float[Array, "h w"]:
    """The luma without texture finer than `reach` pixels, its largest value `BRIGHTEST`."""

    def mean(x: Float[Array, "h w"]) -> Float[Array, "h w"]:
        return _box(jnp.pad(x, reach, mode="edge"), 2 * reach + 1)

    variance = mean(luma**2) - mean(luma) ** 2
    slope = variance / (variance + SMOOTHING)
    smooth = jnp.maximum(mean(slope) * luma + mean((1 - slope) * mean(luma)), 0)
    return smooth * BRIGHTEST / jnp.maximum(smooth.max(), DARK)


def _box(x: Float[Array, "h w"], size: int) -> Float[Array, "_ _"]:
    """The mean of each window of size x size pixels inside x."""
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (size, size), (1, 1), "valid") / size**2


def _woven(key: Key[Array, ""], texture: Float[Array, "h w c"], luma: Float[Array, "h w"]) -> Float[Array, "h w c"]:
    """Busy patches of the texture over and over, in four layers shifted by half a patch; its log luma is about 0."""
    height, width, channels = texture.shape
    half = max(2, -(-min(height, width) // PATCHES) // 2)
    size, rows, columns = 2 * half, height // (2 * half) + 2, width // (2 * half) + 2
    places = _busiest(luma, half)
    chosen = places[jax.random.randint(key, (4 * rows * columns,), 0, len(places))]
    x = jnp.concatenate([jnp.log(luma + DARK)[..., None], (texture + DARK) / (luma + DARK)[..., None]], axis=2)
    patches = jax.vmap(lambda at: jax.lax.dynamic_slice(x, (at[0], at[1], 0), (size, size, 1 + channels)))(chosen)
    detail = patches[..., :1] - patches[..., :1].mean(axis=(1, 2), keepdims=True)
    ramp = jnp.minimum(jnp.arange(1, size + 1), jnp.arange(size, 0, -1)).astype(jnp.float32)
    window = jnp.outer(ramp, ramp) ** 3  # steep: little of a blend is a texture
    window = jnp.broadcast_to((window / window.max())[None, :, :, None], detail.shape)
    parts = window * jnp.concatenate([detail, patches[..., 1:], jnp.ones_like(window), window], axis=-1)
    layers = parts.reshape(4, rows, columns, size, size, 3 + channels).swapaxes(2, 3)
    layers = layers.reshape(4, rows * size, columns * size, 3 + channels)  # of tiles
    corners = itertools.product((0, half), (0, half))
    total = sum(layers[i, top : top + height, left : left + width] for i, (top, left) in enumerate(corners))
    detail, colour, weight, square = jnp.split(total, (1, 1 + channels, 2 + channels), axis=2)
    detail = detail / jnp.sqrt(square)  # a mean of independent patches would be fainter than they are
    return colour / weight * jnp.exp(detail * jnp.minimum(1, CONTRAST / jnp.maximum(detail.std(), 1e-6)))


def _busiest(luma: Float[Array, "h w"], half: int) -> Int[Array, "m 2"]:
    """Top left corners of the patches whose calmest quarter varies most: an outline is calm on either side."""
    variance = _box(luma**2, half) - _box(luma, half) ** 2
    quarters = (variance[:-half, :-half], variance[half:, :-half], variance[:-half, half:], variance[half:, half:])
    calmest = jnp.stack(quarters).min(axis=0)
    _, best = jax.lax.top_k(calmest.ravel(), math.ceil(BUSIEST * calmest.size))
    return jnp.stack(jnp.unravel_index(best, calmest.shape), axis=1)
