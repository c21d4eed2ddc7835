"""Random changes of colour and sharpness of one uint8 image: jitter, 3-Augment, grey, blur."""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key, UInt8

from vit_jax.augment.operations import enhance, grey, index_of
from vit_jax.augment.settings import Settings

SOLARIZE_FROM = 128
BLUR_REACH = 4  # standard deviations, as in scipy.ndimage.gaussian_filter
_FACTORS = {"brightness": "brightness", "contrast": "contrast", "saturation": "color"}  # setting: operation


def three_augment(settings: Settings, key: Key[Array, ""], image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """The image grey, solarised (values from 128 inverted) or blurred, a third each (arXiv:2204.07118, s. 4)."""
    choice_key, blur_key = jax.random.split(key)
    choice = jax.random.randint(choice_key, (), 0, 3)
    blurred = random_blur(settings, blur_key, image)
    return jnp.where(
        choice == 0, jnp.broadcast_to(grey(image), image.shape), jnp.where(choice == 1, solarized(image), blurred)
    )


def solarized(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """The image with bright values inverted."""
    return jnp.where(image < SOLARIZE_FROM, image, 255 - image)


def jitter(settings: Settings, key: Key[Array, ""], image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """Brightness, contrast, saturation and hue, those that are on, in random order (as torchvision's ColorJitter)."""
    order_key, hue_key, *keys = jax.random.split(key, 2 + len(_FACTORS))
    names = [name for name in _FACTORS if getattr(settings, name)]
    factors = [_factor(k, getattr(settings, name)) for k, name in zip(keys, _FACTORS, strict=True) if name in names]
    among = tuple(_FACTORS[name] for name in names)
    shift = settings.hue * jax.random.uniform(hue_key, minval=-1, maxval=1)
    # The hue stands last in the list, where it is on, under an index that is none of the operations'.
    operations = jnp.array([index_of(name) for name in among] + [-1] * (settings.hue > 0))
    arguments = jnp.stack(factors + [shift] * (settings.hue > 0))

    def body(image: Array, i: Array) -> tuple[Array, None]:
        changed = enhance(image, operations[i], arguments[i], among)
        return jnp.where(operations[i] == -1, shift_hue(image, shift), changed) if settings.hue else changed, None

    return jax.lax.scan(body, image, jax.random.permutation(order_key, len(operations)))[0]


def _factor(key: Key[Array, ""], spread: float) -> Float[Array, ""]:
    return jax.random.uniform(key, minval=max(0.0, 1 - spread), maxval=1 + spread)


def shift_hue(image: UInt8[Array, "h w c"], shift: Float[Array, ""]) -> UInt8[Array, "h w c"]:
    """The image with its hue turned by `shift` of the colour circle; saturation and value in HSV stay. Grey stays."""
    if image.shape[2] != 3:
        return image
    x = image.astype(jnp.float32)
    red, green, blue = jnp.moveaxis(x, 2, 0)
    value, spread = x.max(axis=2), x.max(axis=2) - x.min(axis=2)
    safe = jnp.maximum(spread, 1)
    sixth = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    # Each channel is a trapezoid over the circle, a third of it apart (Smith 1978, the hexcone model).
    sectors = jnp.array([5.0, 3.0, 1.0])[None, None] + (sixth + 6 * shift)[:, :, None]
    sectors = sectors - 6 * jnp.floor(sectors / 6)
    below = jnp.clip(jnp.minimum(sectors, 4 - sectors), 0, 1)
    return jnp.round(value[:, :, None] - spread[:, :, None] * below).astype(jnp.uint8)


def random_grey(key: Key[Array, ""], image: UInt8[Array, "h w c"], probability: float) -> UInt8[Array, "h w c"]:
    """The image, without colours with the given probability."""
    return jnp.where(jax.random.bernoulli(key, probability), grey(image), image)


def random_blur(settings: Settings, key: Key[Array, ""], image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """The image blurred by a Gaussian of random width, within `blur_sigma`."""
    low, high = settings.blur_sigma
    return blur(image, jax.random.uniform(key, minval=low, maxval=high), high)


def blur(image: UInt8[Array, "h w c"], sigma: Float[Array, ""], largest: float) -> UInt8[Array, "h w c"]:
    """The image under a Gaussian of standard deviation `sigma` <= `largest` pixels; the edge goes on beyond itself."""
    reach = math.ceil(BLUR_REACH * largest)
    rows, columns = (_gaussian_weights(side, sigma, reach) for side in image.shape[:2])
    x = jnp.einsum("Hh,hwc,Ww->HWc", rows, image.astype(jnp.float32), columns, precision="highest")
    return jnp.round(x).astype(jnp.uint8)


def _gaussian_weights(size: int, sigma: Float[Array, ""], reach: int) -> Float[Array, "{size} {size}"]:
    """The share of each pixel of a line in each blurred one."""
    offset = jnp.arange(-reach, reach + 1)
    weights = jnp.exp(-0.5 * (offset / sigma) ** 2)
    source = jnp.clip(jnp.arange(size)[:, None] + offset[None], 0, size - 1)
    hits = source[:, None] == jnp.arange(size)[None, :, None]
    return (hits * (weights / weights.sum())[None, None]).sum(axis=2)
