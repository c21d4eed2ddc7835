"""The memory of a core: what the compiler plans to use of it, whether that fits, and what to change if not."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax import models, sharding
from vit_jax.config import Config
from vit_jax.trees import PyTree

UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one core while a step runs."""

    state: int  # parameters, optimizer, averages: part of the arguments
    arguments: int
    outputs: int  # those that do not reuse an argument's memory
    temporaries: int
    program: int
    capacity: int  # what a program may take; 0: not limited

    @property
    def total(self) -> int:
        return self.arguments + self.outputs + self.temporaries + self.program

    @property
    def fits(self) -> bool:
        return not self.capacity or self.total <= self.capacity


def of_program(stats: Any, state: int, capacity: int) -> Memory:
    """As the compiler counted: `compiled.memory_analysis()`."""
    return Memory(
        state=state,
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        program=stats.generated_code_size_in_bytes,
        capacity=capacity,
    )


def of_refusal(message: str, state: int, arguments: int, capacity: int) -> Memory | None:
    """From the compiler's words when a program does not fit; None if they say something else.

    "HLO temporaries (108.42G) exceeds available HBM (95.74G)", and in other versions "Used 27.93G of 15.48G hbm":
    either figure is all that the program needs, arguments and outputs included.
    """
    found = re.search(r"HLO temporaries \(([\d.]+)([KMGT]?)\)|Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message)
    if found is None:
        return None
    number, unit = (part for part in found.groups() if part is not None)
    return Memory(
        state=state,
        arguments=arguments,
        outputs=0,
        temporaries=max(0, int(float(number) * UNITS[unit]) - arguments),
        program=0,
        capacity=capacity,
    )


def per_core(tree: PyTree, shardings: PyTree) -> int:
    """The bytes of one core's part of a tree of shapes."""
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return sum(int(np.prod(place.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf, place in leaves)


def of_arguments(arguments: tuple[Any, Any, Any], mesh: Mesh, rules: Sequence[sharding.Rule]) -> tuple[int, int]:
    """The bytes of one core's part of the state, and of all arguments (state, batch, frozen)."""
    state, batch, frozen = arguments
    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    own = per_core(state, sharding.tree_shardings(state, mesh, rules))
    rest = [(batch, split), (frozen, whole)]
    return own, own + sum(per_core(tree, jax.tree.map(lambda _, p=place: p, tree)) for tree, place in rest)


def advice(given: Config, memory: Memory, state: PyTree, mesh: Mesh) -> list[str]:
    """Flags of which each makes it fit, by estimate: a part's temporaries shrink with its images.

    `accumulate` and `fsdp` together where neither is enough; what recomputing saves is not known before it is compiled.
    """
    if memory.fits:
        return []
    remat = ["--config.model.remat=full"] if given.model.get("remat", "full") != "full" else []
    rules = models.naming_of(models.module_class(given.model["name"])).rules
    images = given.train.batch_size // sharding.batch_shards(mesh) // given.train.accumulate
    wider = [k for k in divisors(mesh.devices.size // given.mesh.tensor) if k > given.mesh.fsdp]
    changes = [*((m, 0) for m in divisors(images)[1:]), *((1, k) for k in wider)]
    both = [(m, k) for k in wider for m in divisors(images)[1:]]
    fitting = [change for change in changes if _fits(memory, state, mesh, rules, *change)]
    alone = [c for c in fitting if c[0] > 1][:1] + [c for c in fitting if c[1]][:1]
    found = alone or [c for c in both if _fits(memory, state, mesh, rules, *c)][:1]
    flags = []
    for m, k in found:
        chosen = {"train.accumulate": m * given.train.accumulate if m > 1 else 0, "mesh.fsdp": k}
        flags.append(" ".join(f"--config.{field}={value}" for field, value in chosen.items() if value))
    return flags + remat or ["more devices, or a smaller model: one image at a time is too much for a core"]


def _fits(memory: Memory, state: PyTree, mesh: Mesh, rules: Sequence[sharding.Rule], parts: int, fsdp: int) -> bool:
    """Whether it would fit with the batch in so many more parts, and `fsdp` as given (0: as it is).

    Accumulation adds the sum of the gradients: at most a third of a state that has two moments.
    """
    kept = memory.state
    if fsdp:
        settings = sharding.Settings(fsdp=fsdp, tensor=mesh.shape["tensor"])
        other = sharding.make_mesh(settings, list(mesh.devices.flat))
        kept = per_core(state, sharding.tree_shardings(state, other, rules))
    gradients = kept // 3 if parts > 1 else 0
    total = memory.total - memory.temporaries - memory.state + kept + gradients + memory.temporaries / parts
    return total <= memory.capacity


def divisors(n: int) -> list[int]:
    return [m for m in range(1, n + 1) if n % m == 0]
