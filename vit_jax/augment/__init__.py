"""Augmentation on the device, inside the training step: uint8 images in, normalised float32 images out.

Pure and jittable. Every operation takes ONE image, and a random one its key first; the views vmap the whole chain
once, so that the result for an example depends on that example and its key alone, not on its place in a batch.
`mix` alone takes a batch. An operation that is off is never traced: with all of them off, `train_view` is `eval_view`
bit for bit. `views.geometry` moves an image and its mask alike, `views.photometry` changes the image alone.
"""

from vit_jax.augment.corruptions import Corruption, check_corrupted, check_corruption, corrupt
from vit_jax.augment.cue_conflict import cue_conflict
from vit_jax.augment.geometry import VOID
from vit_jax.augment.mix import mix
from vit_jax.augment.registry import check_extra, register
from vit_jax.augment.settings import Settings, check, check_channels, check_masks, input_shape
from vit_jax.augment.sheet import contact_sheet, displayed, in_colour
from vit_jax.augment.test_time import TestTime, other_views
from vit_jax.augment.views import eval_examples, eval_view, load, train_examples, train_view

__all__ = [
    "VOID",
    "Corruption",
    "Settings",
    "TestTime",
    "check",
    "check_channels",
    "check_corrupted",
    "check_corruption",
    "check_extra",
    "check_masks",
    "contact_sheet",
    "corrupt",
    "cue_conflict",
    "displayed",
    "eval_examples",
    "eval_view",
    "in_colour",
    "input_shape",
    "load",
    "mix",
    "other_views",
    "register",
    "train_examples",
    "train_view",
]
