"""Machines that are not there: TPU slices as their compiler describes them, and simulated CPU devices.

A device is a core: half a chip on v2 and v3, a chip from v4 on.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from vit_jax.command import UserError

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """Figures of a chip: FLOP/s of bfloat16 products, bytes/s."""

    cores: int
    flops: float
    core_memory: float  # GiB of a core's HBM that a program may take
    hbm_bandwidth: float
    links: int  # to neighbours in the torus: two along each of its sides
    link_bandwidth: float  # of one link, in one direction
    clock: float  # Hz; 0: not published


# v2, v3: Jouppi et al. 2020, A Domain-Specific Supercomputer for Training Deep Neural Networks, CACM 63(7), table 3:
# clocks, links of 496 and 656 Gbit/s in each direction. v5e, v5p, v6e: Google's pages of each TPU version
# (cloud.google.com/tpu/docs/v5e ...), which give the links of a chip together: 1,600, 4,800 and 3,200 Gbit/s; clocks of
# v5e and v5p: Austin et al. 2025, How to Scale Your Model, ch. 2 (four and eight arrays of 128 x 128 give the same).
# `core_memory`: what the compiler of libtpu 0.0.42.1 says it has of the 8, 16, 16, 95 and 32 GiB ("available HBM").
CHIPS = {
    "v2": Chip(
        cores=2,
        flops=46e12,
        core_memory=7.48,
        hbm_bandwidth=700e9,
        links=4,
        link_bandwidth=62e9,
        clock=700e6,
    ),
    "v3": Chip(
        cores=2,
        flops=123e12,
        core_memory=15.48,
        hbm_bandwidth=900e9,
        links=4,
        link_bandwidth=82e9,
        clock=940e6,
    ),
    "v5e": Chip(
        cores=1,
        flops=197e12,
        core_memory=15.75,
        hbm_bandwidth=819e9,
        links=4,
        link_bandwidth=50e9,
        clock=1.5e9,
    ),
    "v5p": Chip(
        cores=1,
        flops=459e12,
        core_memory=95.74,
        hbm_bandwidth=2765e9,
        links=6,
        link_bandwidth=100e9,
        clock=1.75e9,
    ),
    "v6e": Chip(
        cores=1,
        flops=918e12,
        core_memory=31.25,
        hbm_bandwidth=1600e9,
        links=4,
        link_bandwidth=100e9,
        clock=0.0,
    ),
}
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
    def memory(self) -> int:
        """Bytes of a core that a program may take; 0: not limited."""
        return int(self.chip.core_memory * GIB) if self.chip else 0


def split_topologies(text: str) -> list[str]:
    """The names of `v3:4x4,cpu:8`; raises `UserError` for one that cannot be."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        kind, _, size = name.partition(":")
        if kind not in ("cpu", *CHIPS):
            raise UserError(f"topology {name!r}: {kind!r} is unknown; choose from cpu, {', '.join(CHIPS)}")
        sides = size.split("x") if kind != "cpu" else [size]
        example = "cpu:8" if kind == "cpu" else f"{kind}:{'x'.join('4' * (CHIPS[kind].links // 2))}"
        if not all(side.isdigit() and int(side) for side in sides):
            raise UserError(f"topology {name!r} has no size; write e.g. {example}")
        if kind != "cpu" and len(sides) != (expected := CHIPS[kind].links // 2):
            raise UserError(f"topology {name!r} has {len(sides)} sides; those of {kind} have {expected}: {example}")
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
    """The devices of a topology: `v3:4x4` (chips along each side of the torus), or `cpu:8`."""
    kind, _, size = name.partition(":")
    if kind == "cpu":
        return Machine(name, tuple(jax.devices("cpu")[: int(size)]), None)
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
