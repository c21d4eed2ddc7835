"""Machines that are not there: TPU slices and GPUs as their compilers know them, and simulated CPU devices.

A device is a core: half a chip on v2 and v3, a chip from v4 on; a GPU.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from vit_jax import platforms
from vit_jax.command import UserError
from vit_jax.plan.chips import CHIPS, GIB, GPUS, Chip

CUDA = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
MOST_GPUS = 8  # of one machine
# What the TPU compiler reads; a machine with TPUs has these set, and then they stay.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v3-8",  # of the machine, not of the topology
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans at once: none of them touches a TPU
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Machine:
    """Devices to compile for; `chip` is None for simulated CPU devices."""

    name: str
    devices: tuple[jax.Device, ...]
    chip: Chip | None

    @property
    def chips(self) -> int:
        return len(self.devices) // (self.chip.cores if self.chip else 1)

    @property
    def has_gpus(self) -> bool:
        return self.name.partition(":")[0] in GPUS

    @property
    def memory(self) -> int:
        """Bytes of a core that a program may take; 0: not limited."""
        return int(self.chip.core_memory * GIB) if self.chip else 0


def split_topologies(text: str) -> list[str]:
    """The names of `v3:4x4,cpu:8`; raises `UserError` for one that cannot be."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        kind, _, size = name.partition(":")
        if kind not in ("cpu", *CHIPS, *GPUS):
            raise UserError(f"topology {name!r}: {kind!r} is unknown; choose from cpu, {', '.join([*CHIPS, *GPUS])}")
        torus = kind in CHIPS
        sides = size.split("x") if torus else [size]
        example = f"{kind}:{'x'.join('4' * (CHIPS[kind].links // 2)) if torus else 8}"
        if not all(side.isdigit() and int(side) for side in sides):
            raise UserError(f"topology {name!r} has no size; write e.g. {example}")
        if torus and len(sides) != (expected := CHIPS[kind].links // 2):
            raise UserError(f"topology {name!r} has {len(sides)} sides; those of {kind} have {expected}: {example}")
        if kind in GPUS and int(size) > MOST_GPUS:
            raise UserError(
                f"topology {name!r}: a machine has at most {MOST_GPUS} GPUs; several machines are not modelled"
            )
    return names


def prepare(names: Sequence[str]) -> None:
    """Readies JAX to describe these; call it before a device is touched, which no plan does but a CPU's."""
    simulated = max((int(name.partition(":")[2]) for name in names if name.startswith("cpu:")), default=0)
    if "XLA_FLAGS" not in os.environ or "device_count" not in os.environ["XLA_FLAGS"]:
        jax.config.update("jax_platforms", "cpu")
        if simulated > 1:
            jax.config.update("jax_num_cpu_devices", simulated)
    if found := simulated and len(jax.devices("cpu")) < simulated:
        raise UserError(f"topology cpu:{simulated}: XLA_FLAGS limits this process to fewer devices ({found}); unset it")
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)


def describe(name: str) -> Machine:
    """The devices of a topology: `v3:4x4` (chips along each side of the torus), `h100:8` of one machine, or `cpu:8`."""
    kind, _, size = name.partition(":")
    if kind == "cpu":
        return Machine(name, tuple(jax.devices("cpu")[: int(size)]), None)
    if kind in GPUS:
        return _gpus(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f'topology {name!r} needs the TPU compiler, which is not installed: pip install "vit_jax[tpu]"')
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition(": ")[2].splitlines()[0]
        raise UserError(
            f"topology {name!r}: {reason}; sides are even numbers of chips, three of them for v5p (v5p:4x4x4)"
        ) from error
    return Machine(name, tuple(found.devices), CHIPS[kind])


def _gpus(name: str) -> Machine:
    kind, _, size = name.partition(":")
    if not any(platforms.installed(plugin) for plugin in CUDA):
        raise UserError(
            f'topology {name!r} needs the GPU compiler, which is not installed: pip install "vit_jax[cuda]"'
        )
    from jax.experimental import topologies

    jax.devices("cpu")  # loads the plugins
    shape = f"1x1x{size}"  # of machines' groups, machines, GPUs
    found = topologies.get_topology_desc(platform="cuda", target_config=GPUS[kind].target(), topology=shape)
    return Machine(name, tuple(found.devices), GPUS[kind].chip)
