"""From a configuration to everything that computes.

`prepare` fills in what the data decides, `build` makes model, state and steps for a mesh.
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
from vit_jax.run.remat import device_memory, fitting
from vit_jax.run.teacher import open_teacher

__all__ = [
    "Run",
    "build",
    "check_batch",
    "check_data",
    "compile_eval_step",
    "device_memory",
    "device_view",
    "fastest_attention",
    "fitting",
    "flops_per_image",
    "host_crop",
    "input_shape",
    "kernel_choice",
    "make_mesh",
    "num_steps",
    "open_teacher",
    "prefer_determinism",
    "prepare",
    "use_every_core",
]
