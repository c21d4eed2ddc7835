"""How long a step takes, modelled: the method is part of the answer.

`compiler`: the TPU compiler estimates the cycles of each operation it schedules; their sum, loops by their turns, over
the clock. Products on v3 come out at 0.97 and copies at 0.98 of the published peaks.
`roofline`: the larger of the products' time at the published peak and the memory traffic's at the published bandwidth;
a lower bound, for chips whose clock is not published.
`kernels`: on GPUs, one after the other: products at the published peak, and what all other kernels read and write at
the published bandwidth; a lower bound (docs/performance.md has it beside an H100).
`measured ceilings`: on this CPU products, at the rate of a large one, and then memory traffic, at the rate of a copy.

To each, the time of collectives that nothing hides is added; one that is started early hides behind the computing.
"""

import math
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.plan import collectives, hlo, kernels
from vit_jax.plan.collectives import Collective
from vit_jax.plan.topology import Machine


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one core does in a step."""

    flops: float  # of products; recomputation counts
    bytes: float  # read and written; on GPUs by kernels that are no products
    cycles: int  # as the compiler estimates; 0: it does not


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step, and where they come from."""

    method: str
    computing: float
    links: float  # all collectives
    exposed: float  # those that nothing hides

    @property
    def seconds(self) -> float:
        return self.computing + self.exposed


def work(module: hlo.Module, flops: float, costs: dict[str, float]) -> Work:
    """`flops`: counted, of one core; `costs`: the compiler's, in which a loop's body counts once.

    Its bytes are scaled by what it misses of the products.
    """
    missed = max(1.0, flops / costs["flops"]) if costs.get("flops", 0) > 0 else 1.0
    cycles = sum((instruction.cycles or 0) * times for instruction, times in module.walk())
    return Work(flops=flops, bytes=missed * costs.get("bytes accessed", 0.0), cycles=cycles)


def work_of_kernels(module: hlo.Module, flops: float) -> Work:
    """Of a GPU's program: `bytes` are those of the kernels that are no products."""
    return Work(flops=flops, bytes=float(kernels.traffic(module)), cycles=0)


def of_tpu(work: Work, exchanged: Sequence[Collective], machine: Machine) -> StepTime:
    """The modelled step of a TPU."""
    chip = machine.chip
    assert chip is not None
    if chip.clock and work.cycles:
        return _with_links("compiler", work.cycles / chip.clock, exchanged, machine)
    computing = max(work.flops / (chip.flops / chip.cores), work.bytes / (chip.hbm_bandwidth / chip.cores))
    return _with_links("roofline", computing, exchanged, machine)


def of_gpu(work: Work, exchanged: Sequence[Collective], machine: Machine, dtype: str) -> StepTime:
    """The modelled step of a GPU; products of float32 numbers run as TF32, at half the speed of bfloat16."""
    assert machine.chip is not None
    computing = work.flops / peak(machine, dtype) + work.bytes / machine.chip.hbm_bandwidth
    return _with_links("kernels", computing, exchanged, machine)


def peak(machine: Machine, dtype: str) -> float:
    """FLOP/s of a chip's products; 0 where nothing is published."""
    halved = machine.has_gpus and dtype == "float32"
    return machine.chip.flops / (2 if halved else 1) if machine.chip else 0.0


def _with_links(method: str, computing: float, exchanged: Sequence[Collective], machine: Machine) -> StepTime:
    chip = machine.chip
    assert chip is not None
    times = [(collectives.seconds(c, chip, len(machine.devices)), c.hidden) for c in exchanged]
    waiting = math.fsum(seconds for seconds, hidden in times if not hidden)
    behind = math.fsum(seconds for seconds, hidden in times if hidden)
    exposed = waiting + max(0.0, behind - computing)
    return StepTime(method=method, computing=computing, links=waiting + behind, exposed=exposed)


@dataclass(frozen=True)
class Ceilings:
    """What this machine's CPU reaches, all of its cores together."""

    flops: float
    bandwidth: float


def of_cpu(work: Work, ceilings: Ceilings, devices: int) -> StepTime:
    """The modelled step of simulated devices, which share this machine."""
    computing = devices * (work.flops / ceilings.flops + work.bytes / ceilings.bandwidth)
    return StepTime(method="measured ceilings", computing=computing, links=0.0, exposed=0.0)


@cache
def measure_ceilings(size: int = 1024) -> Ceilings:
    """The best of several large float32 products and copies; measured once."""
    square = jnp.ones((size, size))
    long = jnp.ones((16 * 2**20,))
    product = jax.jit(lambda x: x @ x)
    copy = jax.jit(lambda x: x + 1)
    flops = 2 * size**3 / best_seconds(lambda: product(square).block_until_ready())
    return Ceilings(flops, bandwidth=2 * long.nbytes / best_seconds(lambda: copy(long).block_until_ready()))


def best_seconds(fn: Callable[[], Any]) -> float:
    """The shortest of several calls, after one that compiles."""
    fn()
    return min(timeit.repeat(fn, number=1, repeat=5))
