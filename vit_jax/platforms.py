"""Which devices a machine has, as far as can be told before JAX looks for them."""

import importlib.util
import os
import sys
from pathlib import Path

ACCELERATORS = ("nvidia0", "accel0", "accel", "vfio", "kfd")  # in /dev: NVIDIA, TPU, TPU, TPU, AMD
DEVICES = Path("/dev")


def has_accelerator() -> bool:
    """Whether JAX may find something other than the CPU, on Linux."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    return any((DEVICES / name).exists() for name in ACCELERATORS)


def skip_missing_tpu() -> bool:
    """Keeps JAX from looking for a TPU on a machine that has only its compiler (`vit_jax[tpu]`); whether it did.

    Else each start waits for libtpu's search, and shows its complaints. JAX_PLATFORMS, where it is set, decides.
    """
    if sys.platform != "linux" or "JAX_PLATFORMS" in os.environ or has_accelerator():
        return False
    if importlib.util.find_spec("libtpu") is None:
        return False
    os.environ["JAX_PLATFORMS"] = "cpu"  # which JAX reads when it is imported
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    return True
