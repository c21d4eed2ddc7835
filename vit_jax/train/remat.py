"""How much a run computes again in its backward pass: as little as its devices' memory allows."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
from jax.sharding import Mesh

from vit_jax.config import Config
from vit_jax.trees import PyTree


@runtime_checkable
class Program(Protocol):
    """A jitted training step on a mesh, and the shapes of its arguments."""

    @property
    def mesh(self) -> Mesh: ...
    @property
    def train_step(self) -> Any: ...
    @property
    def arguments(self) -> tuple[PyTree, PyTree, PyTree]: ...


Built = TypeVar("Built", bound=Program)
POLICIES = ("none", "dots", "full")  # of `model.remat`, from the fastest to the smallest
SHARE = 0.92  # of the memory: the rest is for the runtime, and for what falls between two arrays


def fitting(prepared: Config, build: Callable[[Config], Built], memory: int) -> Built:
    """`build(prepared)`; where `model.remat` is auto, with the first policy that fits into so many bytes a device.

    The first of all is `least`'s, taken at once where the bytes are not known, 0. The compiler counts, for a batch and
    constants of the experiment's shapes. If no policy fits, it is the last; what to change then is for `vit_jax.plan`
    to say.
    """
    if prepared.model.get("remat") != "auto":
        return build(prepared)
    for policy in POLICIES:
        built = build(prepared.with_model(remat=policy))
        if policy == "none" and least(prepared, built.mesh) != "none":
            continue
        if not memory or policy == POLICIES[-1] or needed(built) <= SHARE * memory:
            break
    return built


def least(prepared: Config, mesh: Mesh) -> str:
    """The policy that a run has if its memory allows: that of `model.remat`; of auto, none.

    Scanned layers on a TPU begin with `dots`: a loop writes all that it keeps to memory, which takes longer than to
    compute it again.
    """
    remat = prepared.model.get("remat", "none")
    scanned_on_tpu = prepared.model.get("scan") and mesh.devices.flat[0].platform == "tpu"
    return remat if remat != "auto" else "dots" if scanned_on_tpu else "none"


def device_memory(mesh: Mesh) -> int:
    """Bytes of a device's memory; 0 where it does not tell, as a CPU."""
    stats: dict[str, Any] = mesh.local_devices[0].memory_stats() or {}
    return int(stats.get("bytes_limit", 0))


def needed(built: Built) -> float:
    """Bytes a device while a step runs; infinite where the compiler refuses the program for want of memory."""
    try:
        stats = built.train_step.lower(*built.arguments).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return float("inf")
        raise
    kept = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return float(kept + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes)
