"""What a run asks of its devices before JAX touches them."""

import os
from collections.abc import Sequence

from vit_jax import distributed, platforms, sharding
from vit_jax.config import Config


def prefer_determinism(config: Config) -> None:
    """Asks XLA for bit-reproducible GPU kernels, if the configuration does; call it before a device is touched."""
    flag = "--xla_gpu_deterministic_ops=true"
    if config.train.deterministic and flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def use_every_core(runs: Sequence[Config]) -> None:
    """Makes a device of each of a CPU's cores, if the batches of all runs can be divided; call it as the above.

    Not where a configuration says what its mesh is, nor in one of several processes. See `platforms.device_per_core`.
    """
    if distributed.find(os.environ) is None and all(config.mesh == sharding.Settings() for config in runs):
        platforms.device_per_core(config.train.batch_size // config.train.accumulate for config in runs)
