"""What the kernels of a GPU's program read and write: each instruction of a compiled module is one."""

import re

from vit_jax.plan import hlo
from vit_jax.plan.collectives import KINDS
from vit_jax.plan.hlo import Instruction, Module

# No kernels, or those whose parts are instructions of their own.
NONE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
NONE |= {"while", "call", "conditional"}
PRODUCTS = {"dot", "convolution", "custom-call"}  # cuBLAS and cuDNN are called
ENDS = ("-done", "-update", "async-start")  # of what its start, or the instructions that it starts, stand for
PARTS = {"slice", "dynamic-slice", "gather"}  # read of their first operand only what they return
UPDATE = "dynamic-update-slice"  # as loops fill an array: in place


def summary(module: Module) -> dict[str, int]:
    """How many kernels a program runs, and what those read and write that are no products, attention or exchanges."""
    return {"number": number(module), "bytes": traffic(module)}


def traffic(module: Module) -> int:
    """Bytes that all kernels read and write in one run, but those of products, attention, and of exchanges.

    Of a conditional's branches all count, as in `Module.walk`.
    """
    shapes = {i.name: i.shape for body in module.computations.values() for i in body}
    return sum(_bytes(i, module, shapes) * times for i, times in module.walk() if _counts(i, module))


def number(module: Module) -> int:
    """How many kernels run, loops by their turns: products and attention are one each, whatever they call."""
    return sum(times for i, times in module.walk() if i.opcode not in NONE and not i.opcode.endswith(ENDS))


def _counts(instruction: Instruction, module: Module) -> bool:
    opcode = re.sub(r"-(start|done|update)$", "", instruction.opcode)
    if opcode in NONE | PRODUCTS or opcode in KINDS or opcode in ("async", "copy") and opcode != instruction.opcode:
        return False
    return opcode != "fusion" or not any(i.opcode in PRODUCTS for i in _body(instruction, module))


def _body(fusion: Instruction, module: Module) -> list[Instruction]:
    return module.computations[fusion.called("calls")]


def _bytes(instruction: Instruction, module: Module, shapes: dict[str, str]) -> int:
    """Its result and its operands, each once; of what it takes a part of, or changes a part of in place, that part."""
    operands = instruction.operands()
    sizes = {name: hlo.num_bytes(shapes.get(name, "")) for name in operands}
    if instruction.opcode == UPDATE:
        return 2 * sizes[operands[1]]
    written = hlo.num_bytes(instruction.shape)
    if instruction.opcode == "fusion":
        body = _body(instruction, module)
        places = {name: number for number, name in enumerate(operands)}
        sizes = {name: _read(places[name], body, whole) for name, whole in sizes.items()}
        written = _written(body)
    elif instruction.opcode in PARTS:
        sizes = {name: min(whole, written) for name, whole in sizes.items()}
    return written + sum(sizes.values())


def _read(number: int, body: list[Instruction], whole: int) -> int:
    """Bytes that a fusion's body takes of its operand of this number."""
    names = {i.name for i in body if i.opcode == "parameter" and i.rest.startswith(f"{number})")}
    taken = 0
    for instruction in body:
        places = [place for place, name in enumerate(instruction.operands()) if name in names]
        if places and instruction.opcode == "bitcast":
            names.add(instruction.name)
        elif places == [0] and instruction.opcode in PARTS:
            taken += hlo.num_bytes(instruction.shape)
        elif places and not (places == [0] and instruction.opcode == UPDATE):
            return whole
    return min(taken, whole)


def _written(body: list[Instruction]) -> int:
    """Bytes that a fusion writes: its last instruction's, and of an array that it updates in place the new part."""
    by_name = {i.name: i for i in body}
    ends = [by_name[name] for name in body[-1].operands()] if body[-1].opcode == "tuple" else [body[-1]]
    total = 0
    for end in ends:
        while end.opcode == "bitcast" and end.operands()[0] in by_name:
            end = by_name[end.operands()[0]]
        new = by_name.get(end.operands()[1]) if end.opcode == UPDATE else None
        total += hlo.num_bytes((new or end).shape)
    return total
