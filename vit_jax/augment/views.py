"""Examples as a training step and an evaluation see them, made of uint8 images and their masks."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key, Num, UInt8

from vit_jax.augment import registry
from vit_jax.augment.color import jitter, random_blur, random_grey, solarized, three_augment
from vit_jax.augment.erasing import cutout, random_erase
from vit_jax.augment.geometry import VOID, flip, pad_and_crop, random_affine, random_resized_crop, resize, warp
from vit_jax.augment.policies import apply_policy, apply_policy_to_mask
from vit_jax.augment.settings import Interpolation, Settings, check_channels
from vit_jax.command import UserError

# Each operation folds its number into the example's key. Append only: a new operation then leaves the others' draws.
CROP, FLIP, WARP, ERASE, RESIZED_CROP, POLICY, THREE_AUGMENT, JITTER, GREY, BLUR, CUTOUT = range(11)
JITTER_AT_ALL, SOLARIZE = 11, 12


def train_examples(settings: Settings, arrays: Mapping[str, Array], keys: Key[Array, " n"]) -> dict[str, Array]:
    """The examples as a training step sees them; one typed key (`jax.random.key`) per example.

    "image" uint8 [n h w c] becomes float32 [n H W c], normalised. "mask" [n h w], where it is there, moves with it, and
    is `VOID` where the image shows nothing; erased parts keep their labels. Those that are "mirrored" [n], where it is
    there, are so. "progress" [n], the share of training that is over, decides what begins late. All other fields stay.
    Needs `mean` and `std` filled in and `extra` registered, else `UserError`.
    """
    check_channels(settings, arrays["image"].shape[-1])
    registry.check_extra(settings)
    if settings.cutout_from and "progress" not in arrays:
        raise UserError(f"augment.cutout_from={settings.cutout_from}: this task cannot begin late; set it to 0")
    seen = {name: arrays[name] for name in ("image", "mask", "mirrored", "progress") if name in arrays}
    return {**arrays, **jax.vmap(partial(_train_example, settings))(seen, keys)}


def train_view(settings: Settings, images: UInt8[Array, "n h w c"], keys: Key[Array, " n"]) -> Float[Array, "n H W c"]:
    """The images of `train_examples`."""
    return train_examples(settings, {"image": images}, keys)["image"]


def eval_examples(settings: Settings, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The examples as evaluation sees them: scaled, resized and normalised. Fields as in `train_examples`."""
    check_channels(settings, arrays["image"].shape[-1])
    seen = {"image": jax.vmap(lambda image: normalize(settings, load(settings, image)))(arrays["image"])}
    if "mask" in arrays:
        mask = arrays["mask"]
        resized = jax.vmap(lambda mask: resize(_as_map(mask), settings.resize, "nearest"))(mask)
        seen["mask"] = _as_mask(resized, mask)
    return {**arrays, **seen}


def eval_view(settings: Settings, images: UInt8[Array, "n h w c"]) -> Float[Array, "n H W c"]:
    """The images of `eval_examples`."""
    return eval_examples(settings, {"image": images})["image"]


def _train_example(settings: Settings, arrays: dict[str, Array], key: Key[Array, ""]) -> dict[str, Array]:
    arrays = dict(arrays)
    progress = arrays.pop("progress", None)
    if (mirrored := arrays.pop("mirrored", None)) is not None:
        arrays = {name: jnp.where(mirrored, x[:, ::-1], x) for name, x in arrays.items()}
    moved = geometry(settings, key, arrays)
    if "mask" in moved and _has_policy(settings):  # its warps alternate with its colours: `photometry` has both
        moved["mask"] = apply_policy_to_mask(settings, jax.random.fold_in(key, POLICY), moved["mask"])
    moved["image"] = photometry(settings, key, moved["image"], progress)
    return moved


def geometry(settings: Settings, key: Key[Array, ""], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """One example's "image" uint8 [h w c], as float32 in 0..1, and its "mask" [h w], if any, moved alike.

    The order: resize (or crop at random and resize), pad-and-crop, flip, one affine warp (shear, rotation, zoom and
    translation in one sampling). Of a mask each pixel takes the nearest label.
    """
    moved = {"image": _moved(settings, key, _scaled(arrays["image"]), is_mask=False)}
    if "mask" in arrays:
        mask = arrays["mask"]
        moved["mask"] = _as_mask(_moved(settings, key, _as_map(mask), is_mask=True), mask)
    return registry.run(settings, "geometry", key, moved)


def _moved(settings: Settings, key: Key[Array, ""], x: Float[Array, "h w c"], is_mask: bool) -> Float[Array, "H W c"]:
    """An image or a mask after the geometric operations; the same key draws the same for both."""
    interpolation: Interpolation = "nearest" if is_mask else settings.interpolation
    nothing = VOID if is_mask else 0
    if settings.crop_area:
        x = random_resized_crop(jax.random.fold_in(key, RESIZED_CROP), x, settings, interpolation)
    else:
        x = resize(x, settings.resize, interpolation)
    if settings.crop_padding:
        x = pad_and_crop(jax.random.fold_in(key, CROP), x, settings.crop_padding, settings.fill, nothing)
    # Before the warp: XLA's CPU code for a warp and then a flip is 8 times as slow, and the distribution is the same.
    if settings.flip:
        x = flip(jax.random.fold_in(key, FLIP), x, settings.flip)
    if settings.rotation or settings.shear or any(settings.zoom) or any(settings.translation):
        matrix = random_affine(jax.random.fold_in(key, WARP), settings, *x.shape[:2])
        x = warp(x, matrix, settings.fill, "nearest" if is_mask else "bilinear", nothing)
    return x


def photometry(
    settings: Settings, key: Key[Array, ""], image: Float[Array, "h w c"], progress: Float[Array, ""] | None = None
) -> Float[Array, "h w c"]:
    """One image in 0..1 after policy and colours, clipped, normalised, erased and cut out; `progress` of training."""
    x = normalize(settings, _with_colors(settings, key, image))
    if settings.erasing:
        x = random_erase(jax.random.fold_in(key, ERASE), x, settings)
    if settings.cutout:
        cut = cutout(jax.random.fold_in(key, CUTOUT), x, settings.cutout)
        if progress is not None and settings.cutout_from:
            cut = jnp.where(progress >= settings.cutout_from, cut, x)
        x = cut
    return registry.run(settings, "normalised", key, x)


def _with_colors(settings: Settings, key: Key[Array, ""], x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """The image after policy and colours, which work on 256 levels, as Pillow does; as it is if all of them are off."""
    jittered = settings.brightness or settings.contrast or settings.saturation or settings.hue
    others = (
        settings.three_augment
        or settings.grey
        or settings.blur
        or registry.has(settings, "colour")
        or settings.solarize
    )
    if not (_has_policy(settings) or jittered or others):
        return x
    image = _levels(x)

    def maybe(probability: float, number: int, changed: Array) -> Array:
        if probability == 1:
            return changed
        return jnp.where(jax.random.bernoulli(jax.random.fold_in(key, number), probability), changed, image)

    if _has_policy(settings):
        mean = jnp.broadcast_to(_levels(jnp.array(settings.mean)), image.shape[2:])
        image = apply_policy(settings, jax.random.fold_in(key, POLICY), image, mean)
    if settings.three_augment:
        image = three_augment(settings, jax.random.fold_in(key, THREE_AUGMENT), image)
    if jittered:
        image = maybe(
            settings.jitter_probability, JITTER_AT_ALL, jitter(settings, jax.random.fold_in(key, JITTER), image)
        )
    if settings.grey:
        image = random_grey(jax.random.fold_in(key, GREY), image, settings.grey)
    if settings.blur:
        happens_key, blur_key = jax.random.split(jax.random.fold_in(key, BLUR))
        blurred = random_blur(settings, blur_key, image)
        image = jnp.where(jax.random.bernoulli(happens_key, settings.blur), blurred, image)
    if settings.solarize:
        image = maybe(settings.solarize, SOLARIZE, solarized(image))
    return _scaled(registry.run(settings, "colour", key, image))


def _has_policy(settings: Settings) -> bool:
    never = settings.policy.startswith("randaugment") and not settings.rand_probability
    return settings.policy != "none" and not never


def _levels(x: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """0..1 as 0..255, rounded."""
    return jnp.round(jnp.clip(x, 0, 1) * 255).astype(jnp.uint8)


def _scaled(image: UInt8[Array, "h w c"]) -> Float[Array, "h w c"]:
    return image.astype(jnp.float32) / 255


def _as_map(mask: Num[Array, "h w"]) -> Float[Array, "h w 1"]:
    return mask[:, :, None].astype(jnp.float32)  # exact up to 2**24, and the resizes are products


def _as_mask(x: Float[Array, "*n H W 1"], like: Num[Array, "*n h w"]) -> Num[Array, "*n H W"]:
    return jnp.round(x[..., 0]).astype(like.dtype)


def load(settings: Settings, image: UInt8[Array, "h w c"]) -> Float[Array, "H W c"]:
    """The image in 0..1 at the model's size; bicubic overshoots a little."""
    return resize(_scaled(image), settings.resize, settings.interpolation)


def normalize(settings: Settings, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """(image - mean) / std per channel, the image first clipped to 0..1."""
    mean, std = (jnp.asarray(values, jnp.float32)[None, None] for values in (settings.mean, settings.std))
    return (jnp.clip(image, 0, 1) - mean) / std
