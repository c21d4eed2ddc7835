"""Parameters that the training images decide before the first step."""

import jax.numpy as jnp
import numpy as np

from vit_jax import augment, trees
from vit_jax.command import UserError
from vit_jax.models.whitened import whiten
from vit_jax.train.experiment import Experiment
from vit_jax.train.start import Arrays

KERNEL = "whitening/conv/kernel"
IMAGES, PIXELS = 2000, 2**23  # that the axes are computed from at most; the images are evenly spaced


def arrays_of_images(experiment: Experiment) -> Arrays:
    """The whitening layer's kernel, if `init.whitening` asks for it.

    Raises `UserError` for a model without such a layer.
    """
    if not experiment.config.init.whitening:
        return {}
    params = dict(trees.named(experiment.abstract_state.params))
    if KERNEL not in params:
        raise UserError(
            f"init.whitening=True, but model {experiment.config.model['name']!r} has no whitening layer; choose "
            "model 'conv_stem' or 'whitened_cnn' with model.whitening=2, or set init.whitening to False"
        )
    split = experiment.loader.split
    height, width, _ = experiment.task.parts.image_shape
    count = min(IMAGES, max(1, PIXELS // (height * width)))
    spaced = np.unique(np.linspace(0, len(split) - 1, count).astype(int))
    images = augment.eval_view(
        experiment.task.parts.augment, jnp.asarray(split.read(spaced, fields=["image"])["image"])
    )
    return {f"params/{KERNEL}": whiten(np.asarray(images), params[KERNEL].shape[0])}
