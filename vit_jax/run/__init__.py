"""From a configuration to everything that computes, and from a finished run to a model ready to use.

`prepare` fills in what the data decides, `build` makes model, state and steps for a mesh, `open` gives a trained model
with labels and preprocessing to every later command.
"""

from vit_jax.run.attention import fastest_attention, kernel_choice
from vit_jax.run.build import (
    Run,
    build,
    check_batch,
    check_data,
    compile_eval_step,
    device_view,
    flops_per_image,
    host_crop,
    input_shape,
    make_mesh,
    num_steps,
    prefer_determinism,
    prepare,
    use_every_core,
)
from vit_jax.run.folder import (
    CHECKPOINTS,
    CONFIG,
    LABELS,
    PREPROCESSING,
    changed_images,
    default_workdir,
    has_begun,
    is_run,
    read_config,
    read_preprocessing,
    save_description,
    with_kernel,
)
from vit_jax.run.remat import device_memory, fitting
from vit_jax.run.teacher import open_teacher
from vit_jax.run.trained import Predictions, Trained, open
from vit_jax.run.weights import Arrays, default_size, find_weights, fit_weights, follow, start_from

__all__ = [
    "Arrays",
    "CHECKPOINTS",
    "CONFIG",
    "LABELS",
    "PREPROCESSING",
    "Predictions",
    "Run",
    "Trained",
    "build",
    "changed_images",
    "check_batch",
    "check_data",
    "compile_eval_step",
    "default_size",
    "default_workdir",
    "device_memory",
    "device_view",
    "fastest_attention",
    "find_weights",
    "fit_weights",
    "fitting",
    "flops_per_image",
    "follow",
    "has_begun",
    "host_crop",
    "input_shape",
    "is_run",
    "kernel_choice",
    "make_mesh",
    "num_steps",
    "open",
    "open_teacher",
    "prefer_determinism",
    "prepare",
    "read_config",
    "read_preprocessing",
    "save_description",
    "start_from",
    "use_every_core",
    "with_kernel",
]
