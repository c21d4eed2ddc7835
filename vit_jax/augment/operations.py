"""Pillow's operations on one uint8 image, chosen at run time.

Under `vmap` a `switch` would compute every operation for every image. So they are of three kinds, and any one of them
is: an affine warp, then a table of 256 values per channel, then a blend with another image, two of them without effect.
At 224 pixels this takes a third of the switch's FLOPs, and on a CPU 0.3 of its time.
The results are Pillow's (ImageOps, ImageEnhance, Image.transform): those of tables exactly but for autocontrast, which
Pillow computes in floating point, all others within 1 of 255. Rotations on TPUs are a little smoother: see `shears`.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Num, UInt8

from vit_jax.augment.geometry import VOID, source_of, warp
from vit_jax.augment.shears import warp_square

# The argument of each, where it has one: posterize keeps so many bits; solarize inverts from a threshold; solarize_add
# adds a number to what is below 128; factors of the four enhancements, 1 = unchanged; slopes; pixels to the left, and
# up; degrees counter-clockwise. As in timm the shears leave the upper left corner where it is.
TABLES = ("autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add")
BLENDS = ("color", "contrast", "brightness", "sharpness")
WARPS = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
OPERATIONS = ("identity", *TABLES, *BLENDS, *WARPS)

_LUMA = (19595, 38470, 7471)  # ITU-R 601 in 1/65536, as in Pillow's convert("L")


def operate(
    image: UInt8[Array, "h w c"], operation: Int[Array, ""], argument: Float[Array, ""], color: UInt8[Array, " c"]
) -> UInt8[Array, "h w c"]:
    """The image after one of `OPERATIONS`, by its index; `color` is what a warp finds outside the image.

    Whatever looks at more than one pixel looks at `image`, not at what the kind before left of it, which is the same
    where it matters: the rest is one pass over the pixels.
    """
    placed = place(image, matrix_of(operation, argument, *image.shape[:2]), color)
    looked_up = look_up(placed, _table(image, operation, argument))
    return blend(looked_up, degenerate(image, operation, BLENDS, otherwise=looked_up), argument)


def index_of(name: str) -> int:
    """The index of an operation."""
    return OPERATIONS.index(name)


def place(
    image: UInt8[Array, "h w c"], matrix: Float[Array, "2 3"], color: UInt8[Array, " c"]
) -> UInt8[Array, "h w c"]:
    """The image resampled bilinearly at the places that `matrix` names (see `affine_matrix`), rounded down.

    Like Pillow: a place outside the image has `color`; within half a pixel of the edge it has the edge's pixel.
    """
    inside = _inside(matrix, *image.shape[:2])
    moved = _resample(image, matrix)
    # Interpolating between equal values may fall a rounding error short of them.
    moved = jnp.floor(moved + 1 / 512).astype(jnp.uint8)
    return jnp.where(inside, moved, color[None, None])


def place_mask(mask: Num[Array, "h w"], matrix: Float[Array, "2 3"]) -> Num[Array, "h w"]:
    """The labels of a mask where `place` puts its image; outside it is `VOID`."""
    moved = warp(mask[:, :, None], matrix, "nearest", "nearest")
    return jnp.where(_inside(matrix, *mask.shape), moved, VOID)[:, :, 0]


def _inside(matrix: Float[Array, "2 3"], height: int, width: int) -> Bool[Array, "{height} {width} 1"]:
    """Whether each output pixel comes from a place in the image."""
    y, x = source_of(matrix, height, width)
    return ((y >= -0.5) & (y < height - 0.5) & (x >= -0.5) & (x < width - 0.5))[:, :, None]


def _resample(image: UInt8[Array, "h w c"], matrix: Float[Array, "2 3"]) -> Float[Array, "h w c"]:
    """Bilinear, edges extended; TPUs get along without gathers, which take them many times as long."""
    if image.shape[0] != image.shape[1]:
        return warp(image, matrix, "nearest")
    return jax.lax.platform_dependent(
        image, matrix, tpu=warp_square, default=lambda image, matrix: warp(image, matrix, "nearest")
    )


def matrix_of(operation: Int[Array, ""], argument: Float[Array, ""], height: int, width: int) -> Float[Array, "2 3"]:
    """The matrix of one of the `WARPS`, by its index in `OPERATIONS`; of any other operation the identity."""
    a, angle = argument, jnp.radians(argument)
    zero, one, cos, sin = jnp.zeros(()), jnp.ones(()), jnp.cos(angle), jnp.sin(angle)
    matrices = {
        "shear_x": [one, zero, zero, a, one, a * height / 2],
        "shear_y": [one, a, a * width / 2, zero, one, zero],
        "translate_x": [one, zero, zero, zero, one, a],
        "translate_y": [one, zero, a, zero, one, zero],
        "rotate": [cos, sin, zero, -sin, cos, zero],
    }
    identity = jnp.stack([one, zero, zero, zero, one, zero])
    return _choose(operation, {name: jnp.stack(matrices[name]) for name in WARPS}, identity).reshape(2, 3)


def look_up(image: UInt8[Array, "h w c"], table: UInt8[Array, "256 c"]) -> UInt8[Array, "h w c"]:
    """table[value, channel] for each value; on TPUs as products of one-hot vectors, which are exact up to 256."""
    return jax.lax.platform_dependent(image, table, tpu=_product_of, default=_gathered)


def _gathered(image: UInt8[Array, "h w c"], table: UInt8[Array, "256 c"]) -> UInt8[Array, "h w c"]:
    channels = jnp.arange(image.shape[2])[None, None]
    return table.at[image.astype(jnp.int32), channels].get(mode="promise_in_bounds")


def _product_of(image: UInt8[Array, "h w c"], table: UInt8[Array, "256 c"]) -> UInt8[Array, "h w c"]:
    upper, lower = (jax.nn.one_hot(half, 16, dtype=jnp.bfloat16) for half in (image // 16, image % 16))
    halves = table.reshape(16, 16, -1).astype(jnp.bfloat16)
    rows = jnp.einsum("hwcu,uvc->hwcv", upper, halves)
    return (rows * lower).sum(axis=-1, dtype=jnp.float32).astype(jnp.uint8)


def _table(
    image: UInt8[Array, "h w c"], operation: Int[Array, ""], argument: Float[Array, ""]
) -> UInt8[Array, "256 c"]:
    values = jnp.broadcast_to(jnp.arange(256)[:, None], (256, image.shape[2]))
    counts = histogram(image)
    unit = 1 << jnp.clip(8 - argument.astype(jnp.int32), 0, 8)
    tables = {
        "autocontrast": _stretched(counts),
        "equalize": _equalized(counts),
        "invert": 255 - values,
        "posterize": values // unit * unit,
        "solarize": jnp.where(values < argument, values, 255 - values),
        "solarize_add": jnp.where(values < 128, jnp.minimum(values + argument.astype(jnp.int32), 255), values),
    }
    # A product, which is exact for numbers up to 255: a `where` XLA would fuse with the pixels' look-ups on CPUs, and
    # compute a table anew for each.
    is_chosen = jnp.array([index_of(name) for name in TABLES]) == operation
    share = jnp.concatenate([is_chosen, ~is_chosen.any(keepdims=True)]).astype(jnp.float32)
    stacked = jnp.stack([*(tables[name] for name in TABLES), values]).astype(jnp.float32)
    return jnp.einsum("t,tvc->vc", share, stacked).astype(jnp.uint8)


def histogram(image: UInt8[Array, "h w c"]) -> Int[Array, "256 c"]:
    """How often each value occurs in each channel.

    CPUs count; accelerators multiply one-hot vectors of the values' two halves, since to count there is to wait for one
    memory cell. Both are exact.
    """
    return jax.lax.platform_dependent(image, cpu=_counted, default=_multiplied)


def _counted(image: UInt8[Array, "h w c"]) -> Int[Array, "256 c"]:
    channels = image.shape[2]
    return jnp.zeros((256, channels), jnp.int32).at[image.astype(jnp.int32), jnp.arange(channels)[None, None]].add(1)


def _multiplied(image: UInt8[Array, "h w c"]) -> Int[Array, "256 c"]:
    values = image.reshape(-1, image.shape[2])
    upper, lower = (jax.nn.one_hot(half, 16, dtype=jnp.bfloat16) for half in (values // 16, values % 16))
    counts = jnp.einsum("pcu,pcv->uvc", upper, lower, preferred_element_type=jnp.float32)
    return counts.reshape(256, -1).astype(jnp.int32)


def _stretched(counts: Int[Array, "256 c"]) -> Int[Array, "256 c"]:
    """Each channel's values stretched linearly to 0..255; one of a single value stays as it is."""
    values = jnp.arange(256)[:, None]
    present = counts > 0
    low, high = jnp.argmax(present, axis=0)[None], 255 - jnp.argmax(present[::-1], axis=0)[None]
    stretched = jnp.clip((values - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, stretched, values)


def _equalized(counts: Int[Array, "256 c"]) -> Int[Array, "256 c"]:
    """Each channel's values spread so that about equally many pixels have each; one of few values stays as it is."""
    values = jnp.arange(256)[:, None]
    last = 255 - jnp.argmax(counts[::-1] > 0, axis=0)[None]
    step = (counts.sum(axis=0, keepdims=True) - jnp.take_along_axis(counts, last, axis=0)) // 255
    before = jnp.cumsum(counts, axis=0) - counts
    equalized = jnp.minimum((before + step // 2) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, equalized, values)


def enhance(
    image: UInt8[Array, "h w c"], operation: Int[Array, ""], factor: Float[Array, ""], among: tuple[str, ...]
) -> UInt8[Array, "h w c"]:
    """The image after one of the `BLENDS`, which must be `among` those given; after any other operation as it is."""
    return blend(image, degenerate(image, operation, among, otherwise=image), factor)


def degenerate(
    image: UInt8[Array, "h w c"],
    operation: Int[Array, ""],
    among: tuple[str, ...],
    otherwise: UInt8[Array, "h w c"],
) -> UInt8[Array, "h w c"]:
    """What the operation, `among` these `BLENDS`, has at factor 0: grey, the mean grey, black, or smooth."""
    results = {
        "color": lambda: grey(image),
        "contrast": lambda: jnp.floor(grey(image).astype(jnp.float32).mean(keepdims=True) + 0.5),
        "brightness": lambda: jnp.zeros((1, 1, 1)),
        "sharpness": lambda: smooth(image),
    }
    return _choose(operation, {name: results[name]().astype(jnp.uint8) for name in among}, otherwise)


def blend(
    image: UInt8[Array, "h w c"], other: UInt8[Array, "h w c"], factor: Float[Array, ""]
) -> UInt8[Array, "h w c"]:
    """other + factor * (image - other), cut off at 0 and 255 and rounded down."""
    x, y = image.astype(jnp.float32), other.astype(jnp.float32)
    return jnp.clip(jnp.floor(y + factor * (x - y)), 0, 255).astype(jnp.uint8)


def grey(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w 1"]:
    """The luma of an RGB image (ITU-R 601), rounded; of any other number of channels their rounded mean.

    In integers, as Pillow computes it: dm-pix and others weight in floating point, which rounds differently.
    """
    channels = image.shape[2]
    weights = jnp.array(_LUMA if channels == 3 else (65536 // channels,) * channels)
    return ((image * weights[None, None]).sum(axis=2, keepdims=True) + 32768 >> 16).astype(jnp.uint8)


def smooth(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """Pillow's SMOOTH filter: the mean of 3 x 3 pixels, the middle one of weight 5; the outermost pixels stay."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    x = image.astype(jnp.int32)
    rows = x[:-2] + x[1:-1] + x[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * x[1:-1, 1:-1]
    return image.at[1:-1, 1:-1].set(((2 * total + 13) // 26).astype(jnp.uint8))


def _choose(operation: Int[Array, ""], results: dict[str, Array], otherwise: Array) -> Array:
    """The result that has the operation's name."""
    for name, result in results.items():
        otherwise = jnp.where(operation == index_of(name), result, otherwise)
    return otherwise
