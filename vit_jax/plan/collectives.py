"""Which data the cores exchange in a step, and how long their links need for it at least."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vit_jax.plan import hlo
from vit_jax.plan.chips import Chip

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """One exchange among groups of `group` cores; `payload`: bytes of the whole array, on one core."""

    kind: str
    payload: int
    group: int
    times: int  # in one step
    hidden: bool  # started early, so that computing goes on meanwhile


def find(module: hlo.Module, devices: int) -> list[Collective]:
    """Every collective that the program runs; those inside loops with the number of their turns."""
    # A reduce-scatter of a TPU's compiler: a fusion of an all-reduce and a slice, whose rings pass each part once.
    bodies = [body for name, body in module.computations.items() if name.startswith("all-reduce-scatter")]
    scattered = {instruction.name for body in bodies for instruction in body}
    found = []
    for instruction, times in module.walk(fused=True):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        group = group_size(instruction.rest, devices)
        started = instruction.opcode.endswith("-start")
        payload = _payload(instruction, kind, group)
        kind = "reduce-scatter" if kind == "all-reduce" and instruction.name in scattered else kind
        found.append(Collective(kind, payload, group, times, started))
    return found


def _payload(instruction: hlo.Instruction, kind: str, group: int) -> int:
    """Bytes of the array that is reduced, gathered or scattered, whole."""
    shape = instruction.shape
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        shape = hlo.elements(shape)[1]  # (operands, results, ...)
    return hlo.num_bytes(shape) * (group if kind == "reduce-scatter" else 1)


def group_size(text: str, devices: int) -> int:
    """Cores that take part in one exchange.

    Of `replica_groups={{0,1},{2,3}}`, `[2,4]<=[8]`, and `mesh['data'=4,'fsdp'=2] {'fsdp'}`; {} means all.
    """
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(found[1].split(","))
    return devices


def seconds(collective: Collective, chip: Chip, devices: int) -> float:
    """The least time on rings over all links at once: 2 (n - 1) / n of the array for an all-reduce, half for others.

    Each core has its share of its chip's links. A group of all cores uses every link, a smaller one lies along one
    side of the torus: two links.
    """
    n, turns = collective.group, 2 if collective.kind == "all-reduce" else 1
    share = 1.0 if collective.kind == "collective-permute" else turns * (n - 1) / n
    links = chip.links if n == devices else min(2, chip.links)
    return collective.times * share * collective.payload / (links * chip.link_bandwidth / chip.cores)


def summary(found: Sequence[Collective]) -> dict[str, dict[str, int]]:
    """Number and bytes of each kind in one step."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for collective in found:
        counts[collective.kind] += collective.times
        sizes[collective.kind] += collective.times * collective.payload
    return {kind: {"count": counts[kind], "bytes": sizes[kind]} for kind in KINDS if counts[kind]}
