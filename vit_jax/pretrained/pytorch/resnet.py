"""ResNets with batch norm, and BiT, in PyTorch's layouts, which differ in the names of arrays."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vit_jax.command import UserError
from vit_jax.pretrained.layout import Shape, settings
from vit_jax.pretrained.pytorch.table import Table

COUNTERS = (r".*\.num_batches_tracked",)  # of batches that batch norm saw


@dataclass(frozen=True)
class Names:
    """How a layout names its arrays; blocks count from 0."""

    stem: tuple[str, ...]  # convolution, and norm where it has one
    block: str
    first: tuple[int, int]  # numbers of a stage, and of a layer in a block
    layer: tuple[str, str]  # convolution and norm
    shortcut: tuple[str, ...]  # convolution, and norm where it has one

    def convolution(self, prefix: str, stage: int, block: int, layer: int) -> str:
        """The key of a kernel; all numbers from 0."""
        inside = prefix + self.block.format(stage=stage + self.first[0], block=block)
        return f"{inside}{self.layer[0].format(layer + self.first[1])}.weight"


BIT_UNIT = ((0, 1), ("conv{}", "norm{}"), ("downsample.conv",))  # the last three: every layout has these


def read(
    layout: str, shapes: Mapping[str, Shape], names: Names, prefix: str, head: str
) -> tuple[Table, dict[str, Any], int]:
    """A ResNet's arrays by our names, its `models.settings` and the channels of its images."""
    stages = _stage_sizes(shapes, names, prefix)
    bottleneck = names.convolution(prefix, 0, 0, 2) in shapes
    modules = {f"{part}_root": prefix + theirs for part, theirs in zip(("conv", "norm"), names.stem, strict=True)}
    modules |= _blocks("stage{}_block{}", "norm", stages, 3 if bottleneck else 2, names, prefix)
    table = Table(layout, shapes, modules | {"head": head})
    width, channels, *size = table.shape("conv_root/kernel", "d c p q")
    if size != [7, 7]:
        raise UserError(f"{layout}: the first convolution is {size[0]}x{size[1]}, not 7x7: no model here has it")
    fields = {"stage_sizes": stages, "bottleneck": bottleneck, "width": width}
    return table, settings("resnet", fields, num_classes=table.outputs("head")), channels


def read_bit(
    layout: str, shapes: Mapping[str, Shape], names: Names, prefix: str, head: str
) -> tuple[Table, dict[str, Any], int]:
    """As `read`, of a BiT network."""
    stages = _stage_sizes(shapes, names, prefix)
    modules = {"root_block/conv_root": prefix + names.stem[0], "norm-pre-head": f"{prefix}norm", "head": head}
    modules |= _blocks("block{}/unit{:02}", "gn", stages, 3, names, prefix)
    table = Table(layout, shapes, modules)
    width, channels, _, _ = table.shape("root_block/conv_root/kernel", "d c p q")
    fields = {"stage_sizes": stages, "width": width}
    return table, settings("bit", fields, num_classes=table.outputs("head")), channels


def _blocks(ours: str, norm: str, stages: tuple[int, ...], layers: int, names: Names, prefix: str) -> dict[str, str]:
    """Their names of the modules in all blocks."""
    modules: dict[str, str] = {}
    for i, j in ((i, j) for i, size in enumerate(stages) for j in range(size)):
        block, inside = ours.format(i + 1, j + 1), prefix + names.block.format(stage=i + names.first[0], block=j)
        for part, layer in zip(("conv", norm), names.layer, strict=True):
            modules |= {f"{block}/{part}{n + 1}": inside + layer.format(n + names.first[1]) for n in range(layers)}
        modules |= {
            f"{block}/{part}_proj": inside + theirs
            for part, theirs in zip(("conv", norm), names.shortcut, strict=False)
        }
    return modules


def _stage_sizes(shapes: Mapping[str, Shape], names: Names, prefix: str) -> tuple[int, ...]:
    def blocks(stage: int) -> int:
        return _count(lambda block: names.convolution(prefix, stage, block, 0) in shapes)

    return tuple(blocks(stage) for stage in range(_count(lambda stage: blocks(stage) > 0)))


def _count(exists: Callable[[int], bool]) -> int:
    """How many numbers from 0 on `exists`."""
    return next(number for number in itertools.count() if not exists(number))
