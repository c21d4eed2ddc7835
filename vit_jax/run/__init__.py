"""From a configuration to everything that computes, and from a finished run to a model ready to use.

`prepare` fills in what the data decides, `build` makes model, state and steps for a mesh, `open` gives a trained model
with labels and preprocessing to every later command.
"""

from vit_jax.run.folder import (
    CHECKPOINTS,
    CONFIG,
    LABELS,
    PREPROCESSING,
    changed_images,
    default_workdir,
    has_begun,
    is_run,
    known_kernel,
    read_config,
    read_preprocessing,
    save_description,
    with_kernel,
)
from vit_jax.run.trained import Predictions, Trained, open
from vit_jax.run.weights import Arrays, default_size, find_weights, fit_weights, follow, start_from

__all__ = [
    "Arrays",
    "CHECKPOINTS",
    "CONFIG",
    "LABELS",
    "PREPROCESSING",
    "Predictions",
    "Trained",
    "changed_images",
    "default_size",
    "default_workdir",
    "find_weights",
    "fit_weights",
    "follow",
    "has_begun",
    "is_run",
    "open",
    "read_config",
    "read_preprocessing",
    "save_description",
    "start_from",
    "known_kernel",
    "with_kernel",
]
