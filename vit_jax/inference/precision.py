"""The number format of a model's products, where `model.dtype` leaves it to the machine."""

import jax
from rich.console import Console

from vit_jax import platforms
from vit_jax.config import Config
from vit_jax.workdir import Workdir


def choose_dtype(given: Config, workdir: Workdir, console: Console) -> Config:
    """The configuration with bfloat16 or float32 for `model.dtype` auto, told: what the run in `workdir` has, if any.

    Results depend on it. So a run keeps it, wherever it is resumed: it stands in its `config.json`.
    """
    if not is_open(given):
        return given
    began = workdir.config().model if workdir.has_begun() else {}
    chosen = given.with_model(dtype=began["dtype"]) if began else with_dtype(given, jax.devices()[0])
    reason = "as the run began" if began else "the faster ones on this device"
    console.print(f"model.dtype=auto: products in {chosen.model['dtype']}, {reason}", soft_wrap=True)
    return chosen


def is_open(given: Config) -> bool:
    """Whether the configuration leaves the number format to the machine."""
    return given.model.get("dtype") == "auto"


def with_dtype(given: Config, device: jax.Device) -> Config:
    """The same for a run that begins, or a model that is opened, on such a device."""
    return given.with_model(dtype=fast_dtype(device.platform)) if is_open(given) else given


def fast_dtype(platform: str) -> str:
    """The number format in which devices of this platform train fastest; of a CPU, this machine's.

    Against float32 under JAX 0.12: on an Intel CPU with AMX ViT-Ti/16 trains 1.5 times as fast; on a core of an AMD
    EPYC with AVX-512's units 1.4 times, `cifar10:vit` and `cifar10:cnn` 1.5 times. JAX 0.10 computes most products of
    bfloat16 numbers in float32, and CPUs without such units do anyway.
    """
    if platform == "cpu" and not platforms.multiplies_bfloat16():
        return "float32"
    return "bfloat16"
