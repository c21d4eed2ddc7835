"""What the kernels of a GPU's program read and write: each instruction of a compiled module is one."""

import re
from collections.abc import Iterable

from vit_jax.plan import hlo
from vit_jax.plan.collectives import KINDS
from vit_jax.plan.hlo import Instruction, Module

# No kernels, or those whose parts are instructions of their own.
NONE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
NONE |= {"while", "call", "conditional"}
PRODUCTS = {"dot", "convolution", "custom-call"}  # cuBLAS and cuDNN are called
PARTS = {"slice", "dynamic-slice", "gather"}  # read of an operand only what they return


def traffic(module: Module) -> int:
    """Bytes that all kernels read and write in one run, but those of products, attention, and of exchanges."""
    shapes = {i.name: i.shape for body in module.computations.values() for i in body}
    return sum(_bytes(i, module, shapes) * times for i, times in module.walk() if _counts(i, module))


def _counts(instruction: Instruction, module: Module) -> bool:
    opcode = re.sub(r"-(start|done|update)$", "", instruction.opcode)
    if opcode in NONE | PRODUCTS or opcode in KINDS or opcode in ("async", "copy") and opcode != instruction.opcode:
        return False
    return opcode != "fusion" or not any(i.opcode in PRODUCTS for i in _body(instruction, module))


def _body(fusion: Instruction, module: Module) -> list[Instruction]:
    return module.computations[fusion.called("calls")]


def _bytes(instruction: Instruction, module: Module, shapes: dict[str, str]) -> int:
    """Its result and its operands; of one that a fusion only takes a part of, that part."""
    operands = instruction.operands()
    read = [hlo.num_bytes(shapes.get(name, "")) for name in operands]
    if instruction.opcode == "fusion":
        body = _body(instruction, module)
        read = [min(whole, _part(number, body, whole)) for number, whole in enumerate(read)]
    elif instruction.opcode in PARTS:
        read = [min(whole, hlo.num_bytes(instruction.shape)) for whole in read]
    return hlo.num_bytes(instruction.shape) + sum(read)


def _part(number: int, body: list[Instruction], whole: int) -> int:
    """Bytes that a fusion's body takes of its operand of this number."""
    names = {i.name for i in body if i.opcode == "parameter" and i.rest.startswith(f"{number})")}
    taken = []
    for instruction in body:
        if names.isdisjoint(instruction.operands()):
            continue
        if instruction.opcode == "bitcast":
            names.add(instruction.name)
        else:
            taken.append(instruction)
    return _sizes(taken) if taken and all(i.opcode in PARTS for i in taken) else whole


def _sizes(instructions: Iterable[Instruction]) -> int:
    return sum(hlo.num_bytes(i.shape) for i in instructions)
