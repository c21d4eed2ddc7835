"""Small models, random weights made for them, and their fit to another model or image."""

import numpy as np

from vit_jax import models
from vit_jax.pretrained import parameter_shapes
from vit_jax.pretrained.fit import fit, patch_grid

POSITIONS = "params/Transformer/posembed_input/pos_embedding"
KERNEL, BIAS = "params/head/kernel", "params/head/bias"
NAMES = ("ant", "Bee", "cat")


def vit(**fields):
    """A small ViT, all sizes distinct."""
    sizes = {"patch_size": (2,), "width": 6, "depth": 1, "mlp_dim": 11, "num_heads": 3, "num_classes": 3}
    return models.settings("vit", **{**sizes, **fields})


def weights(model, image_shape):
    """Random arrays in place of a model's parameters."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in parameter_shapes(model, image_shape).items()
    }


def run(source, model, *, made_for=(8, 8, 3), image_shape=None, grid=None, without=(), extra=(), zero=(), **options):
    """The weights of `source`, made for one image shape, and their fit to `model` at another."""
    image_shape = image_shape or made_for
    found = {name: array for name, array in weights(source, made_for).items() if name not in without}
    found |= {name: np.zeros((2,), np.float32) for name in extra}
    found |= {name: np.zeros_like(found[name]) for name in zero}
    pos_embed = [name for name in found if name.endswith("pos_embedding")]
    arrays, report = fit(
        found,
        source=source,
        grid=grid or (patch_grid(source, made_for, 0) if pos_embed else (0, 0)),
        model=model,
        image_shape=image_shape,
        shapes=parameter_shapes(model, image_shape),
        **options,
    )
    return found, arrays, report


def actions(report, *but):
    """What became of the arrays that were not simply loaded."""
    return {row.name: row.action for row in report.rows if row.action not in ("loaded", *but)}
