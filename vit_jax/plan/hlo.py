"""Reads a compiled module's text: its instructions, how often each runs, and the bytes of shapes.

Format: the HLO text of XLA (openxla.org/xla/operation_semantics). A computation's body runs as often as the loops
around it turn; what is inside a fusion belongs to the fusion.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

BITS = {"pred": 8, "token": 0, "opaque": 0}  # all others end in their width: bf16, s32, u4, f8e4m3fn
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)")
COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
ARRAY = re.compile(r"\b(pred|token|opaque|(?:bf|[sufc])(\d+)\w*)\[([\d,]*)\]")
CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class Instruction:
    """One line: `%name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    rest: str  # operands and attributes

    @property
    def cycles(self) -> int | None:
        """The compiler's own estimate, where it made one (TPU)."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else None

    def operands(self) -> list[str]:
        """The names of what it is computed from."""
        return re.findall(r"%([\w.\-]+)", self.rest[: _closing(f"({self.rest}") - 2])

    def called(self, attribute: str) -> str:
        """The computation that `body=`, `condition=` or a fusion's `calls=` names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        assert found is not None, self.rest
        return found[1]


@dataclass(frozen=True)
class Module:
    """A compiled program of one device."""

    entry: str
    computations: dict[str, list[Instruction]]

    def walk(self, *, fused: bool = False) -> Iterator[tuple[Instruction, int]]:
        """Each instruction that runs, and how often; `fused`: those inside fusions, too.

        Of a conditional's branches all are walked, so that what depends on one of them is an upper bound.
        """
        yield from self._walk(self.entry, 1, fused)

    def _walk(self, computation: str, times: int, fused: bool) -> Iterator[tuple[Instruction, int]]:
        for instruction in self.computations[computation]:
            yield instruction, times
            if instruction.opcode == "while":
                turns = self.trip_count(instruction) or 1
                yield from self._walk(instruction.called("body"), times * turns, fused)
            elif (
                instruction.opcode in ("call", "conditional", "async-start") or fused and instruction.opcode == "fusion"
            ):
                for name in _called(instruction):
                    yield from self._walk(name, times, fused)

    def trip_count(self, loop: Instruction) -> int | None:
        """How often a `while` turns: as the compiler notes it, or the constant its counter is compared with."""
        if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
            return int(noted[1])
        condition = self.computations[loop.called("condition")]
        limits = [re.match(r"(\d+)\)", i.rest) for i in condition if i.opcode == "constant"]
        compared = [i for i in condition if i.opcode == "compare" and "direction=LT" in i.rest]
        return int(limits[0][1]) if len(compared) == 1 and len(limits) == 1 and limits[0] else None

    def unknown_loops(self) -> int:
        """Loops whose number of turns is not in the text; they count as one turn."""
        loops = (i for body in self.computations.values() for i in body if i.opcode == "while")
        return sum(self.trip_count(loop) is None for loop in loops)


def parse(text: str) -> Module:
    """The module of `compiled.as_text()`."""
    computations: dict[str, list[Instruction]] = {}
    entry, body = "", []
    for line in text.splitlines():
        if line.startswith(" "):
            if found := INSTRUCTION.match(line):
                body.append(_instruction(found["name"], found["rest"]))
        elif found := COMPUTATION.match(line):
            body = computations.setdefault(found["name"], [])
            entry = found["name"] if found["entry"] else entry
    if not entry:
        raise ValueError("the text has no ENTRY computation: it is not a compiled module")
    return Module(entry, computations)


def _instruction(name: str, text: str) -> Instruction:
    """Splits `shape opcode(rest`; a tuple's shape holds brackets and blanks, any other none."""
    end = _closing(text) if text.startswith("(") else text.find(" ")
    opcode, _, rest = text[end:].lstrip().partition("(")
    return Instruction(name, text[:end], opcode, rest)


def _closing(text: str) -> int:
    """The place after the bracket that closes the first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place + 1
    raise ValueError(f"unbalanced brackets in {text[:80]!r}")


def _called(instruction: Instruction) -> list[str]:
    names = CALLED.findall(instruction.rest)
    for group in BRANCHES.findall(instruction.rest):
        names += [name.strip(" %") for name in group.split(",")]
    return names


def num_bytes(shape: str) -> int:
    """The bytes of a shape or a tuple of shapes, without padding: `bf16[64,197,768]{2,1,0:T(8,128)(2,1)}`."""
    total = 0
    for kind, width, sizes in ARRAY.findall(shape):
        total += BITS.get(kind, int(width or 0)) * math.prod(map(int, filter(None, sizes.split(","))))
    return total // 8


def elements(shape: str) -> list[str]:
    """The top-level elements of a tuple's shape; of another shape itself."""
    if not shape.startswith("("):
        return [shape]
    found, depth, start = [], 0, 1
    for place, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or depth == 0:
            found.append(shape[start:place])
            start = place + 1
    return [re.sub(r"^\s*(/\*.*?\*/)?\s*", "", element) for element in found]
