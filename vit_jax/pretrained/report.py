"""What became of each array when weights were fitted to a model."""

import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Action = Literal["loaded", "resized", "adapted", "new", "unused"]


class Row(NamedTuple):
    """What became of one array, or of a group of them."""

    action: Action
    name: str
    detail: str  # "14x14 -> 24x24, bicubic"; of loaded arrays ''
    parameters: int


@dataclass(frozen=True)
class Report:
    """What became of each array: of the model's, in their order, then of the weights' that it has no place for."""

    rows: tuple[Row, ...]

    @property
    def parameters_loaded(self) -> int:
        """How many parameters come from the weights, resized and adapted ones included."""
        return sum(row.parameters for row in self.rows if row.action in ("loaded", "resized", "adapted"))

    def groups(self) -> list[Row]:
        """The rows for display, by action: one for each module, numbered neighbours together (`block_0 .. 11`)."""
        stems: dict[tuple[Action, str, str], dict[int, int]] = {}
        for row in self.rows:
            name = _module(row.name)
            stem = name.rstrip(string.digits)
            number = int(name[len(stem) :] or -1)
            sizes = stems.setdefault((row.action, stem, row.detail), {})
            sizes[number] = sizes.get(number, 0) + row.parameters
        rows = [row for (action, stem, detail), sizes in stems.items() for row in _runs(action, stem, detail, sizes)]
        return sorted(rows, key=lambda row: get_args(Action).index(row.action))


def _module(name: str) -> str:
    """The module that stands for an array: `Transformer/encoderblock_0`, else the outermost."""
    path = name.partition("/")[2].split("/")
    return "/".join(path[: 2 if path[0] == "Transformer" else 1])


def _runs(action: Action, stem: str, detail: str, sizes: dict[int, int]) -> Iterator[Row]:
    numbers = sorted(sizes)
    while numbers:
        length = next((i for i, number in enumerate(numbers) if number != numbers[0] + i), len(numbers))
        run, numbers = numbers[:length], numbers[length:]
        name = stem + ("" if run[0] < 0 else str(run[0])) + (f" .. {run[-1]}" if length > 1 else "")
        yield Row(action, name, detail, sum(sizes[number] for number in run))
