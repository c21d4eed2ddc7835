"""The views: what a training step and an evaluation make of uint8 images."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key, UInt8

from vit_jax.augment.color import jitter, random_blur, random_grey, three_augment
from vit_jax.augment.erasing import cutout, random_erase
from vit_jax.augment.geometry import flip, pad_and_crop, random_affine, random_resized_crop, warp
from vit_jax.augment.policies import apply_policy
from vit_jax.augment.settings import Settings, check_channels

# What an operation folds into the example's key. Append only: a new operation then leaves the others' draws alone.
CROP, FLIP, WARP, ERASE, RESIZED_CROP, POLICY, THREE_AUGMENT, JITTER, GREY, BLUR, CUTOUT = range(11)


def train_view(settings: Settings, images: UInt8[Array, "n h w c"], keys: Key[Array, " n"]) -> Float[Array, "n H W c"]:
    """The images as a training step sees them; one typed key (`jax.random.key`) per image.

    The order: scale to 0..1, resize (or crop at random and resize), pad-and-crop, flip, one affine warp (shear,
    rotation, zoom and translation in one sampling), policy, colours, clip to 0..1, normalise, erase, cut out.
    Policy and colours work on uint8, as Pillow does. Needs `mean` and `std` filled in, else `UserError`.
    """
    check_channels(settings, images.shape[-1])
    return jax.vmap(partial(_train_image, settings))(images, keys)


def eval_view(settings: Settings, images: UInt8[Array, "n h w c"]) -> Float[Array, "n H W c"]:
    """The images as evaluation sees them: scaled, resized and normalised. Needs `mean` and `std`, as `train_view`."""
    check_channels(settings, images.shape[-1])
    return jax.vmap(lambda image: normalize(settings, load(settings, image)))(images)


def _train_image(settings: Settings, image: UInt8[Array, "h w c"], key: Key[Array, ""]) -> Float[Array, "H W c"]:
    if settings.crop_area:
        x = random_resized_crop(jax.random.fold_in(key, RESIZED_CROP), _scaled(image), settings)
    else:
        x = load(settings, image)
    if settings.crop_padding:
        x = pad_and_crop(jax.random.fold_in(key, CROP), x, settings.crop_padding, settings.fill)
    # Before the warp: XLA's CPU code for a warp and then a flip is 8 times as slow, and the distribution is the same.
    if settings.flip:
        x = flip(jax.random.fold_in(key, FLIP), x, settings.flip)
    if settings.rotation or settings.shear or any(settings.zoom) or any(settings.translation):
        matrix = random_affine(jax.random.fold_in(key, WARP), settings, *x.shape[:2])
        x = warp(x, matrix, settings.fill)
    x = _with_colors(settings, x, key)
    x = normalize(settings, x)
    if settings.erasing:
        x = random_erase(jax.random.fold_in(key, ERASE), x, settings)
    if settings.cutout:
        x = cutout(jax.random.fold_in(key, CUTOUT), x, settings.cutout)
    return x


def _with_colors(settings: Settings, x: Float[Array, "h w c"], key: Key[Array, ""]) -> Float[Array, "h w c"]:
    """The image in 0..1 after policy and colours, of 256 levels if any of them is on."""
    policy = settings.policy != "none"
    if settings.policy.startswith("randaugment") and not settings.rand_probability:
        policy = False
    jittered = settings.brightness or settings.contrast or settings.saturation or settings.hue
    if not (policy or settings.three_augment or jittered or settings.grey or settings.blur):
        return x
    image = _levels(x)
    if policy:
        mean = jnp.broadcast_to(_levels(jnp.array(settings.mean)), image.shape[2:])
        image = apply_policy(settings, jax.random.fold_in(key, POLICY), image, mean)
    if settings.three_augment:
        image = three_augment(settings, jax.random.fold_in(key, THREE_AUGMENT), image)
    if jittered:
        image = jitter(settings, jax.random.fold_in(key, JITTER), image)
    if settings.grey:
        image = random_grey(jax.random.fold_in(key, GREY), image, settings.grey)
    if settings.blur:
        happens_key, blur_key = jax.random.split(jax.random.fold_in(key, BLUR))
        blurred = random_blur(settings, blur_key, image)
        image = jnp.where(jax.random.bernoulli(happens_key, settings.blur), blurred, image)
    return _scaled(image)


def _levels(x: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """0..1 as 0..255, rounded."""
    return jnp.round(jnp.clip(x, 0, 1) * 255).astype(jnp.uint8)


def _scaled(image: UInt8[Array, "h w c"]) -> Float[Array, "h w c"]:
    return image.astype(jnp.float32) / 255


def load(settings: Settings, image: UInt8[Array, "h w c"]) -> Float[Array, "H W c"]:
    """The image in 0..1 at the model's size; bicubic overshoots a little."""
    x = _scaled(image)
    height, width = (settings.resize * 2)[:2] or x.shape[:2]
    if (height, width) == x.shape[:2]:
        return x
    method = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}[settings.interpolation]
    return jax.image.resize(x, (height, width, x.shape[2]), method, antialias=True)


def normalize(settings: Settings, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """(image - mean) / std per channel, the image first clipped to 0..1."""
    mean, std = (jnp.asarray(values, jnp.float32)[None, None] for values in (settings.mean, settings.std))
    return (jnp.clip(image, 0, 1) - mean) / std
