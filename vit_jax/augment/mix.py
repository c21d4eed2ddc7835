"""MixUp (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899) of a whole batch."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from vit_jax.augment.erasing import random_window
from vit_jax.augment.settings import Settings


def mix(
    settings: Settings, rng: Key[Array, ""], images: Float[Array, "n h w c"], targets: Float[Array, "n k"]
) -> tuple[Float[Array, "n h w c"], Float[Array, "n k"]]:
    """Each image mixed with its counterpart in the reversed batch, and the targets in the same proportion.

    One share and one box for the whole batch, as in timm's `batch` mode; the counterpart is image n - 1 - i, so the
    middle one of an odd number stays as it is. Nothing happens to the batch with probability 1 - `mix_probability`.
    The result depends on the order of the batch, and on no sharding of it. A step that takes a batch in parts mixes
    within each part.
    """
    if not (settings.mixup or settings.cutmix) or not settings.mix_probability:
        return images, targets
    own = _own(settings, rng, *images.shape[1:3])
    mixed = own[None, :, :, None] * images + (1 - own)[None, :, :, None] * images[::-1]
    other = (1 - own).mean()  # exactly 0 where nothing is mixed: a class without a share is no target
    return mixed, (1 - other) * targets + other * targets[::-1]


def _own(settings: Settings, rng: Key[Array, ""], height: int, width: int) -> Float[Array, "h w"]:
    """How much of each pixel an image keeps, 0 to 1."""
    happens_rng, switch_rng, mixup_rng, cutmix_rng, box_rng = jax.random.split(rng, 5)
    if settings.mixup:
        own = jnp.full((height, width), jax.random.beta(mixup_rng, settings.mixup, settings.mixup))
    if settings.cutmix:
        share = jax.random.beta(cutmix_rng, settings.cutmix, settings.cutmix)
        cut = cutmix_mask(box_rng, share, height, width)
        is_cutmix = jax.random.bernoulli(switch_rng, settings.mix_switch) if settings.mixup else True
        own = jnp.where(is_cutmix, cut, own) if settings.mixup else cut
    return jnp.where(jax.random.bernoulli(happens_rng, settings.mix_probability), own, 1.0)


def cutmix_mask(
    key: Key[Array, ""], share: Float[Array, ""], height: int, width: int
) -> Float[Array, "{height} {width}"]:
    """0 inside a random box of about 1 - share of the area, 1 outside.

    The box has the image's aspect, its centre is uniform, and what lies outside the image is cut off: the true share
    is the mask's mean, at least `share`. Sides are whole, even numbers of pixels, rounded down, as in timm.
    """
    half = jnp.floor(jnp.array([height, width]) * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
    return 1.0 - random_window(key, (height, width), half)
