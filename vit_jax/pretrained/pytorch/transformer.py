"""Vision Transformers in PyTorch's layouts, which differ in the names of arrays, and in which of them are fused.

Shapes: `d` width, `f` MLP width, `l` tokens, `r` registers, `c` channels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vit_jax.command import UserError
from vit_jax.models.layers import square
from vit_jax.models.sizes import VITS
from vit_jax.pretrained.layout import Entry, Shape, count, patch_field, prepend_zeros, settings
from vit_jax.pretrained.pytorch.table import Table

# By width and depth. Most published models have 64 channels a head; these sizes do not.
HEADS = {(width, depth): heads for width, depth, _, heads, _ in VITS.values()}
HEADS[1152, 27] = 16  # SoViT-400m: Alabdulmohsin et al. 2023, arXiv:2305.13035

BLOCK, ATTENTION, MLP = "Transformer/encoderblock_{}/", "MultiHeadDotProductAttention_1", "MlpBlock_3"
REGISTERS, POSITIONS = "Transformer/registers", "Transformer/posembed_input/pos_embedding"
QUERY, KEY, VALUE = (f"{ATTENTION}/{part}" for part in ("query", "key", "value"))
GATE, FIRST, SECOND = (f"{MLP}/{part}" for part in ("gate", "Dense_0", "Dense_1"))
SCALES = ("LayerScale_0/scale", "LayerScale_1/scale")


@dataclass(frozen=True)
class Names:
    """How a layout names our modules; those of block i begin with `block`, i and a dot."""

    outside: Mapping[str, str]
    block: str
    inside: Mapping[str, str]

    def with_inside(self, changes: Mapping[str, str]) -> "Names":
        """Names of which some in the blocks are others."""
        return replace(self, inside={**changes, **self.inside, **changes})

    def modules(self, depth: int, prefix: str = "") -> dict[str, str]:
        """Theirs by ours, for so many blocks."""
        outside = {ours: prefix + theirs for ours, theirs in self.outside.items()}
        blocks = [(BLOCK.format(i), f"{prefix}{self.block}{i}.") for i in range(depth)]
        return outside | {mine + ours: its + theirs for mine, its in blocks for ours, theirs in self.inside.items()}


def read(
    layout: str, shapes: Mapping[str, Shape], names: Names, prefix: str, heads: dict[str, str]
) -> tuple[Table, dict[str, Any]]:
    """A file's arrays by our names, and what they decide of its model: its fields, `layer_scale` as a boolean.

    heads: names without prefix.
    """
    depth, first = count(layout, shapes, prefix + names.block, 0, "block "), BLOCK.format(0)
    table = Table(layout, shapes, names.modules(depth, prefix) | heads)
    outputs, _ = table.shape(f"{first}{FIRST}/kernel", "f d")
    _, f = table.shape(f"{first}{SECOND}/kernel", "d f")
    if outputs == 2 * f:  # it holds gate and values
        names = names.with_inside({GATE: names.inside[FIRST]})
        table = Table(layout, shapes, names.modules(depth, prefix) | heads)
    d, _, p, q = table.shape("embedding/kernel", "d c p q")
    return table, {
        "patch_size": patch_field(p, q),
        "width": d,
        "depth": depth,
        "mlp_dim": f,
        **({"activation": "swiglu"} if table.has(f"{first}{GATE}/kernel") else {}),
        "class_token": table.has("cls"),
        "distillation_token": table.has("dist"),
        "registers": table.shape(REGISTERS, "1 r d")[1] if table.has(REGISTERS) else 0,
        "norm_after_pooling": table.has("pooled_norm/scale"),
        "qkv_bias": table.has(f"{first}{QUERY}/bias"),
        "qk_norm": table.has(f"{first}{ATTENTION}/query_norm/scale"),
        "layer_scale": table.has(f"{first}{SCALES[0]}"),
        "num_classes": table.outputs("head"),
    }


def model_of(fields: Mapping[str, Any], **variant: Any) -> dict[str, Any]:
    """The `models.settings`; of a field that is both in `variant` and decided by the arrays, these decide."""
    sizes = {field: fields[field] for field in ("patch_size", "width", "depth", "mlp_dim", "num_heads")}
    rest = {field: value for field, value in fields.items() if field not in (*sizes, "layer_scale")}
    return settings("deit" if fields["distillation_token"] else "vit", sizes, **{**variant, **rest})


def num_heads(table: Table, fields: Mapping[str, Any], given: int | None, where: str) -> dict[str, int]:
    """Heads and head width as fields. `given`: the number of heads, if a side file tells; `where` one would tell it."""
    query = BLOCK.format(0) + QUERY
    outputs, d = table.shape(f"{query}/kernel", "o d")
    outputs //= len(table.sharing(query))
    usual = outputs // 64 if outputs % 64 == 0 and outputs > 64 else 0
    a = given or HEADS.get((d, fields["depth"])) or usual
    if not a:
        raise UserError(f"{table.layout}: a width of {d} does not tell the number of heads; {where} must give it")
    if outputs % a:
        raise UserError(f"{table.layout}: {a} heads do not divide the queries' {outputs} channels; see {where}")
    return {"num_heads": a, "head_dim": 0 if outputs == d else outputs // a}


def grid(
    table: Table, model: Mapping[str, Any], image_size: tuple[int, int] | None
) -> tuple[tuple[int, int], Callable[[str, Shape], Entry]]:
    """The grid that positions were learned for, and what makes an entry.

    Our positions have a row for each leading token; those of some layouts belong to patches alone, and rows of zeros
    then are the same. `image_size`: (height, width), if a side file tells; else the grid is square.
    """
    _, rows, _ = table.shape(POSITIONS, "1 l d")
    leading = model["class_token"] + model["distillation_token"]
    p, q = square(model["patch_size"])
    for patches, missing in ((rows - leading, 0), (rows, leading)):
        side = round(max(patches, 0) ** 0.5)
        found = (image_size[0] // p, image_size[1] // q) if image_size else (side, side)
        if patches > 0 and found[0] * found[1] == patches:
            return found, partial(_entry, table, missing)
    expected = f"the grid of a {image_size[0]}x{image_size[1]} image" if image_size else "a square grid"
    raise UserError(
        f"{table.layout}: {table.key(POSITIONS)} has {rows} positions, which are not {expected} of {p}x{q} "
        f"patches, with or without {leading} more; config.json must give the image size"
    )


def _entry(table: Table, missing: int, ours: str, shape: Shape) -> Entry:
    """As `table.entry`; positions for so many leading tokens are missing in theirs."""
    made = table.entry(ours, shape)
    if not missing or not ours.endswith(POSITIONS):
        return made
    return replace(made, shape=(1, shape[1] - missing, shape[2]), convert=prepend_zeros(missing))
