"""From a configuration to everything that computes, and from a finished run to a model ready to use.

`prepare` fills in what the data decides, `build` makes model, state and steps for a mesh, `open` gives a trained model
with labels and preprocessing to every later command.
"""

from vit_jax.run.build import (
    Run,
    build,
    check_data,
    flops_per_image,
    input_shape,
    num_steps,
    prefer_determinism,
    prepare,
)
from vit_jax.run.folder import CHECKPOINTS, CONFIG, LABELS, PREPROCESSING, read_config, save_description
from vit_jax.run.trained import Trained, open

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "LABELS",
    "PREPROCESSING",
    "Run",
    "Trained",
    "build",
    "check_data",
    "flops_per_image",
    "input_shape",
    "num_steps",
    "open",
    "prefer_determinism",
    "prepare",
    "read_config",
    "save_description",
]
