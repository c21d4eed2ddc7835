"""Augmentation on the device, inside the training step: uint8 images in, normalised float32 images out.

Pure and jittable. Every operation takes ONE image, and a random one its key first; the two views vmap the whole chain
once, so that what happens to an example depends on that example and its key alone, not on its place in a batch.
`mix` alone takes a batch. An operation that is off is never traced: with all of them off, `train_view` is `eval_view`
bit for bit.
"""

from vit_jax.augment.cue_conflict import cue_conflict
from vit_jax.augment.erasing import cutout, random_box, random_erase
from vit_jax.augment.geometry import affine_matrix, flip, pad_and_crop, random_affine, warp
from vit_jax.augment.mix import mix
from vit_jax.augment.corruptions import Corruption, check_corrupted, check_corruption, corrupt
from vit_jax.augment.settings import ErasingFill, Fill, Interpolation, Policy, Settings, check, check_channels
from vit_jax.augment.sheet import contact_sheet, displayed
from vit_jax.augment.views import eval_view, load, normalize, train_view

__all__ = [
    "ErasingFill",
    "Fill",
    "Interpolation",
    "Corruption",
    "Policy",
    "Settings",
    "affine_matrix",
    "check",
    "check_channels",
    "check_corruption",
    "check_corrupted",
    "contact_sheet",
    "cue_conflict",
    "cutout",
    "displayed",
    "eval_view",
    "flip",
    "load",
    "mix",
    "normalize",
    "pad_and_crop",
    "corrupt",
    "random_affine",
    "random_box",
    "random_erase",
    "train_view",
    "warp",
]
