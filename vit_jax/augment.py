"""Augmentation on the device, inside the training step: uint8 images in, normalised float32 images out.

Pure and jittable. Every operation takes ONE image, and a random one its key first; the two views vmap the whole chain
once, so that what happens to an example depends on that example and its key alone, not on its place in a batch.
An operation that is off is never traced: with all of them off, `train_view` is `eval_view` bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key, UInt8

from vit_jax.command import UserError

Fill = Literal["constant", "nearest", "reflect"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]
ErasingFill = Literal["zero", "noise"]

# What an operation folds into the example's key. Append only: a new operation then leaves the others' draws alone.
CROP, FLIP, WARP, ERASE = range(4)
ERASING_ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The config group `augment`; the defaults change nothing. The operations run in the order of the fields."""

    # Height and width of the model's input in pixels, (size,) for a square; () = as the data.
    resize: tuple[int, ...] = ()
    # Of `resize` only; bilinear and bicubic (a = -0.5) smooth before they shrink, like Pillow.
    interpolation: Interpolation = "bilinear"
    # Pixels added on each side before a random crop of the old size (He et al. 2015, arXiv:1512.03385, s. 4.2).
    crop_padding: int = 0
    # Probability of a horizontal flip, 0 to 1.
    flip: float = 0.0
    # Largest rotation, in degrees, 0 to 180; uniform in both directions.
    rotation: float = 0.0
    # Visible height and width as a factor, uniform in 1 +- zoom (below 1 magnifies), each 0 to below 1. One number: one
    # draw for both, which keeps the aspect; two, for height and width: independent draws, as in Keras; () = off.
    zoom: tuple[float, ...] = ()
    # Largest shift, as a fraction of height and width, 0 to 1; drawn apart; one number serves both; () = off.
    translation: tuple[float, ...] = ()
    # Largest horizontal shear, in degrees, 0 to below 90; uniform in both directions.
    shear: float = 0.0
    # What crop and warp find beyond the edge: black, the edge pixel, or the mirrored image (c b a | a b c | c b a).
    fill: Fill = "constant"
    # Mean and standard deviation per channel on the 0..1 scale, one number for all channels;
    # () = the training set's statistics, which the caller computes once and fills in.
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    # Probability of erasing a random rectangle, 0 to 1 (Zhong et al. 2017, arXiv:1708.04896).
    erasing: float = 0.0
    # Smallest and largest erased fraction of the image's area, above 0 to 1; uniform.
    erasing_area: tuple[float, float] = (0.02, 0.4)
    # Smallest and largest ratio of height to width, above 0; uniform in its logarithm (the paper: in the ratio).
    erasing_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    # What the rectangle holds after normalisation: the mean colour, or standard normal noise per pixel.
    erasing_fill: ErasingFill = "zero"


def check(settings: Settings) -> None:
    """Raises `UserError`, naming the field, if a value is out of its range."""
    for name in ("flip", "erasing"):
        _require(0 <= getattr(settings, name) <= 1, settings, name, "a probability from 0 to 1")
    for name, kind in (("interpolation", Interpolation), ("fill", Fill), ("erasing_fill", ErasingFill)):
        _require(getattr(settings, name) in get_args(kind), settings, name, f"one of {', '.join(get_args(kind))}")
    _check_geometry(settings)
    _check_normalisation(settings)
    low, high = _pair(settings, "erasing_area")
    _require(0 < low <= high <= 1, settings, "erasing_area", "(low, high) with 0 < low <= high <= 1")
    low, high = _pair(settings, "erasing_aspect")
    _require(0 < low <= high < float("inf"), settings, "erasing_aspect", "(low, high) with 0 < low <= high")


def _check_geometry(settings: Settings) -> None:
    _require(
        _sized(settings.resize, 1.0, float("inf")), settings, "resize", "(), (size,) or (height, width) from 1 pixel"
    )
    _require(settings.crop_padding >= 0, settings, "crop_padding", "0 (off) or a number of pixels")
    _require(0 <= settings.rotation <= 180, settings, "rotation", "degrees from 0 to 180")
    _require(0 <= settings.shear < 90, settings, "shear", "degrees from 0 to below 90")
    below_one = _sized(settings.zoom, 0.0, 1.0) and 1 not in settings.zoom
    _require(below_one, settings, "zoom", "(), one number or two (height, width), from 0 to below 1")
    within = _sized(settings.translation, 0.0, 1.0)
    _require(within, settings, "translation", "(), one fraction or two (height, width), from 0 to 1")


def _check_normalisation(settings: Settings) -> None:
    mean, std = settings.mean, settings.std
    _require(bool(mean) == bool(std), settings, "mean", f"given together with augment.std, which is {std}; set both")
    lengths_agree = len(mean) == len(std) or 1 in (len(mean), len(std))
    _require(lengths_agree, settings, "mean", f"as long as augment.std={std}, one number per channel")
    _require(all(0 <= m <= 1 for m in mean), settings, "mean", "from 0 to 1; divide numbers of the 0..255 scale by 255")
    _require(all(0 < s <= 1 for s in std), settings, "std", "above 0, to 1; divide numbers of the 0..255 scale by 255")


def _require(holds: bool, settings: Settings, name: str, expected: str) -> None:
    if not holds:
        raise UserError(f"augment.{name}={getattr(settings, name)!r}: expected {expected}")


def _pair(settings: Settings, name: str) -> tuple[float, float]:
    values = getattr(settings, name)
    _require(len(values) == 2, settings, name, "two numbers, (low, high)")
    return values


def _sized(values: Sequence[int] | Sequence[float], low: float, high: float) -> bool:
    """Whether there are at most two values, all in range."""
    return len(values) <= 2 and all(low <= value <= high for value in values)


def train_view(settings: Settings, images: UInt8[Array, "n h w c"], keys: Key[Array, " n"]) -> Float[Array, "n H W c"]:
    """The images as a training step sees them; one typed key (`jax.random.key`) per image.

    The order: scale to 0..1, resize, pad-and-crop, flip, one affine warp (shear, rotation, zoom and translation in one
    sampling), clip to 0..1, normalise, erase. Needs `mean` and `std` filled in, else `UserError`.
    """
    check_channels(settings, images.shape[-1])
    return jax.vmap(partial(_train_image, settings))(images, keys)


def eval_view(settings: Settings, images: UInt8[Array, "n h w c"]) -> Float[Array, "n H W c"]:
    """The images as evaluation sees them: scaled, resized and normalised. Needs `mean` and `std`, as `train_view`."""
    check_channels(settings, images.shape[-1])
    return jax.vmap(lambda image: normalize(settings, load(settings, image)))(images)


def check_channels(settings: Settings, channels: int) -> None:
    """Raises `UserError` unless `mean` and `std` hold one number, or one per channel of the images."""
    for name in ("mean", "std"):
        values = getattr(settings, name)
        fits = len(values) in (1, channels)
        _require(fits, settings, name, f"one number or {channels}, for images of {channels} channels; fill it in")


def _train_image(settings: Settings, image: UInt8[Array, "h w c"], key: Key[Array, ""]) -> Float[Array, "H W c"]:
    x = load(settings, image)
    if settings.crop_padding:
        x = pad_and_crop(jax.random.fold_in(key, CROP), x, settings.crop_padding, settings.fill)
    # Before the warp: XLA's CPU code for a warp and then a flip is 8 times as slow, and the distribution is the same.
    if settings.flip:
        x = flip(jax.random.fold_in(key, FLIP), x, settings.flip)
    if settings.rotation or settings.shear or any(settings.zoom) or any(settings.translation):
        matrix = random_affine(jax.random.fold_in(key, WARP), settings, *x.shape[:2])
        x = warp(x, matrix, settings.fill)
    x = normalize(settings, x)
    if settings.erasing:
        x = random_erase(jax.random.fold_in(key, ERASE), x, settings)
    return x


def load(settings: Settings, image: UInt8[Array, "h w c"]) -> Float[Array, "H W c"]:
    """The image in 0..1 at the model's size; bicubic overshoots a little."""
    x = image.astype(jnp.float32) / 255
    height, width = (settings.resize * 2)[:2] or x.shape[:2]
    if (height, width) == x.shape[:2]:
        return x
    method = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}[settings.interpolation]
    return jax.image.resize(x, (height, width, x.shape[2]), method, antialias=True)


def normalize(settings: Settings, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """(image - mean) / std per channel, the image first clipped to 0..1."""
    mean, std = (jnp.asarray(values, jnp.float32)[None, None] for values in (settings.mean, settings.std))
    return (jnp.clip(image, 0, 1) - mean) / std


def flip(key: Key[Array, ""], image: Float[Array, "h w c"], probability: float) -> Float[Array, "h w c"]:
    """The image, mirrored left to right with the given probability."""
    return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)


def pad_and_crop(key: Key[Array, ""], image: Float[Array, "h w c"], padding: int, fill: Fill) -> Float[Array, "h w c"]:
    """A crop of the image's own size from the image padded on all sides, each position equally likely."""
    mode = {"constant": "constant", "nearest": "edge", "reflect": "symmetric"}[fill]
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode)
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def random_affine(key: Key[Array, ""], settings: Settings, height: int, width: int) -> Float[Array, "2 3"]:
    """A matrix for `warp`, drawn within the settings' ranges for images of height x width pixels."""
    rotation_key, shear_key, zoom_key, translation_key = jax.random.split(key, 4)
    zoom = jnp.array(settings.zoom or (0.0,))
    translation = jnp.array((settings.translation or (0.0,)) * 2)[:2]
    return affine_matrix(
        rotation=settings.rotation * _symmetric(rotation_key),
        shear=settings.shear * _symmetric(shear_key),
        zoom=jnp.broadcast_to(1 + zoom * _symmetric(zoom_key, zoom.shape), (2,)),
        translation=translation * jnp.array([height, width]) * _symmetric(translation_key, (2,)),
    )


def _symmetric(key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
    return jax.random.uniform(key, shape, minval=-1, maxval=1)


def affine_matrix(
    rotation: Float[Array, ""], shear: Float[Array, ""], zoom: Float[Array, "2"], translation: Float[Array, "2"]
) -> Float[Array, "2 3"]:
    """Where each output pixel comes from: source (y, x) = matrix @ (y, x, 1), in pixels from the image's centre.

    The picture's rows slide against each other by `shear` degrees; it turns counter-clockwise by `rotation` degrees;
    its visible height and width are multiplied by `zoom`; it moves by `translation` pixels (down, right).
    Written out: a float32 matmul rounds to TF32 on GPUs and to bfloat16 on TPUs, which moves pixels.
    """
    cos, sin, tan = jnp.cos(jnp.radians(rotation)), jnp.sin(jnp.radians(rotation)), jnp.tan(jnp.radians(shear))
    linear = jnp.stack([jnp.stack([cos, sin]), jnp.stack([tan * cos - sin, tan * sin + cos])]) * zoom[None]
    offset = -(linear * translation[None]).sum(axis=1, keepdims=True)
    return jnp.concatenate([linear, offset], axis=1)


def warp(image: Float[Array, "h w c"], matrix: Float[Array, "2 3"], fill: Fill) -> Float[Array, "h w c"]:
    """The image resampled bilinearly at the places that `matrix` names (see `affine_matrix`).

    Four gathers: on a CPU 1.5 (32 px) to 3.5 (72 px) times as fast as `jax.scipy.ndimage.map_coordinates`.
    """
    height, width, _ = image.shape
    y, x = jnp.arange(height)[:, None] - (height - 1) / 2, jnp.arange(width)[None] - (width - 1) / 2
    source_y, source_x = (row[0] * y + row[1] * x + row[2] for row in matrix)
    top, down = _taps(source_y + (height - 1) / 2, height, fill)
    left, right = _taps(source_x + (width - 1) / 2, width, fill)
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), "constant" if fill == "constant" else "edge")

    def pixel(dy: int, dx: int) -> Float[Array, "h w c"]:
        return padded.at[top + dy, left + dx].get(mode="promise_in_bounds")

    upper = (1 - right) * pixel(0, 0) + right * pixel(0, 1)
    lower = (1 - right) * pixel(1, 0) + right * pixel(1, 1)
    return (1 - down) * upper + down * lower


def _taps(source: Float[Array, "h w"], size: int, fill: Fill) -> tuple[Int[Array, "h w"], Float[Array, "h w 1"]]:
    """Along one axis of an image padded by one pixel: the first of the two pixels to mix, and the second's weight."""
    match fill:
        case "constant":
            source = jnp.clip(source, -1, size)
        case "nearest":
            source = jnp.clip(source, 0, size - 1)
        case "reflect":  # about the edges, -0.5 and size - 0.5
            period = 2 * size
            source = jnp.abs(source + 0.5 - period * jnp.round((source + 0.5) / period)) - 0.5
    first = jnp.clip(jnp.floor(source), -1, size - 1)
    return first.astype(jnp.int32) + 1, (source - first)[:, :, None]


def random_erase(key: Key[Array, ""], image: Float[Array, "h w c"], settings: Settings) -> Float[Array, "h w c"]:
    """The normalised image with one rectangle overwritten, with probability `settings.erasing`."""
    happens_key, box_key, noise_key = jax.random.split(key, 3)
    box = random_box(box_key, image.shape[:2], settings.erasing_area, settings.erasing_aspect)
    erased = box[:, :, None] & jax.random.bernoulli(happens_key, settings.erasing)
    noisy = settings.erasing_fill == "noise"
    return jnp.where(erased, jax.random.normal(noise_key, image.shape) if noisy else 0.0, image)


def random_box(
    key: Key[Array, ""], shape: tuple[int, ...], area: tuple[float, float], aspect: tuple[float, float]
) -> Bool[Array, "h w"]:
    """True inside a random rectangle: its area a uniform fraction, its height : width uniform in the logarithm.

    Like the paper, draws area and aspect anew until the rectangle fits; after 10 attempts there is none.
    """
    height, width = shape
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    attempts = (ERASING_ATTEMPTS,)
    areas = jax.random.uniform(area_key, attempts, minval=area[0], maxval=area[1]) * height * width
    log_aspect = jnp.log(jnp.array(aspect))
    aspects = jnp.exp(jax.random.uniform(aspect_key, attempts, minval=log_aspect[0], maxval=log_aspect[1]))
    sizes = jnp.round(jnp.stack([jnp.sqrt(areas * aspects), jnp.sqrt(areas / aspects)], axis=1)).astype(jnp.int32)
    fits = (sizes <= jnp.array([[height, width]])).all(axis=1)
    size = sizes[jnp.argmax(fits)] * fits.any()
    start = jax.random.randint(place_key, (2,), 0, jnp.array([height, width]) - size + 1)
    y, x = jnp.arange(height)[:, None] - start[0], jnp.arange(width)[None] - start[1]
    return (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1])
