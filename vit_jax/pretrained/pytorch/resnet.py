"""ResNets with batch norm, and BiT, in PyTorch's layouts, which differ in the names of arrays.

Shapes: `c` channels.
"""

from dataclasses import dataclass
from typing import Any

from vit_jax.command import UserError
from vit_jax.pretrained.pytorch.table import Table, count, settings

COUNTERS = r".*\.num_batches_tracked"  # of batches that batch norm saw


@dataclass(frozen=True)
class Names:
    """How a layout names its arrays; stages, and layers in a block, count from `first`, blocks from 0."""

    stem: tuple[str, str]  # convolution and norm
    block: str
    layer: tuple[str, str]
    shortcut: tuple[str, str]
    first: int


def read(table: Table, names: Names) -> tuple[dict[str, Any], int]:
    """Adds the entries of a ResNet but its head; its `models.settings` and the channels of its last map."""
    width, channels, *size = table.shape(f"{names.stem[0]}.weight", "d c p q")
    if size != [7, 7]:
        raise UserError(f"{table.layout}: the first convolution is {size[0]}x{size[1]}, not 7x7: no model here has it")
    stages = _stage_sizes(table, names)
    bottleneck = _block(table, names, 0, 0).has(f"{names.layer[0].format(names.first + 2)}.weight")
    table.convolution("params/conv_root", names.stem[0], (7, 7), channels, width)
    table.batch_norm("norm_root", names.stem[1], width)
    inputs = width
    for i, blocks in enumerate(stages):
        c = width * 2**i
        for j in range(blocks):
            inputs = _add_block(
                _block(table, names, i, j),
                names,
                f"stage{i + 1}_block{j + 1}",
                inputs,
                c,
                bottleneck,
                bool(i) and not j,
            )
    return settings("resnet", {"stage_sizes": stages, "bottleneck": bottleneck, "width": width}), inputs


def _block(table: Table, names: Names, stage: int, block: int) -> Table:
    return table.inside(names.block.format(stage=stage + names.first, block=block))


def _stage_sizes(table: Table, names: Names) -> tuple[int, ...]:
    convolution = f"{names.layer[0].format(names.first)}.weight"

    def blocks(stage: int) -> int:
        return count(lambda block: _block(table, names, stage, block).has(convolution))

    return tuple(blocks(stage) for stage in range(count(lambda stage: blocks(stage) > 0)))


def _add_block(table: Table, names: Names, ours: str, inputs: int, c: int, bottleneck: bool, strides: bool) -> int:
    """Adds one block; the channels that it returns."""
    layers = [(1, c), (3, c), (1, 4 * c)] if bottleneck else [(3, c), (3, c)]
    before = inputs
    for n, (size, outputs) in enumerate(layers):
        convolution, norm = (name.format(names.first + n) for name in names.layer)
        table.convolution(f"params/{ours}/conv{n + 1}", convolution, (size, size), before, outputs)
        table.batch_norm(f"{ours}/norm{n + 1}", norm, outputs)
        before = outputs
    if strides or before != inputs:
        table.convolution(f"params/{ours}/conv_proj", names.shortcut[0], (1, 1), inputs, before)
        table.batch_norm(f"{ours}/norm_proj", names.shortcut[1], before)
    return before


def read_bit(table: Table, stem: str, block: str) -> tuple[dict[str, Any], int]:
    """Adds the entries of a BiT network but its head; its `models.settings` and the channels of its last map."""
    width, channels, _, _ = table.shape(f"{stem}.weight", "d c p q")
    table.convolution("params/root_block/conv_root", stem, (7, 7), channels, width)

    def unit(stage: int, number: int) -> Table:
        return table.inside(block.format(stage=stage, block=number))

    def units(stage: int) -> int:
        return count(lambda number: unit(stage, number).has("conv1.weight"))

    stages = tuple(units(stage) for stage in range(count(lambda stage: units(stage) > 0)))
    inputs = width
    for i, j in ((i, j) for i, size in enumerate(stages) for j in range(size)):
        c = width * 2**i
        _add_unit(unit(i, j), f"params/block{i + 1}/unit{j + 1:02}", inputs, c, projected=j == 0)
        inputs = 4 * c
    table.norm("params/norm-pre-head", "norm", inputs)
    return settings("bit", {"stage_sizes": stages, "width": width}), inputs


def _add_unit(table: Table, ours: str, inputs: int, c: int, *, projected: bool) -> None:
    for n, (size, before, outputs) in enumerate([(1, inputs, c), (3, c, c), (1, c, 4 * c)], 1):
        table.norm(f"{ours}/gn{n}", f"norm{n}", before)
        table.convolution(f"{ours}/conv{n}", f"conv{n}", (size, size), before, outputs)
    if projected:
        table.convolution(f"{ours}/conv_proj", "downsample.conv", (1, 1), inputs, 4 * c)
