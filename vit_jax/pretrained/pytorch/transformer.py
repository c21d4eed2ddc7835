"""Vision Transformers in PyTorch's layouts, which differ in the names of arrays, and in which of them are fused.

Shapes: `d` width, `f` MLP width, `a` heads, `e` size per head, `l` tokens, `c` channels.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit_jax.command import UserError
from vit_jax.models.layers import square
from vit_jax.models.sizes import VITS
from vit_jax.pretrained.layout import Convert, identity
from vit_jax.pretrained.pytorch.table import WHOLE, Table

# By width and depth. Most published models have 64 channels a head; these sizes do not.
HEADS = {(width, depth): heads for width, depth, _, heads, _ in VITS.values()}
HEADS[1152, 27] = 16  # SoViT-400m: Alabdulmohsin et al. 2023, arXiv:2305.13035


@dataclass(frozen=True)
class Names:
    """How a layout names its arrays; those of block i begin with `block`, i and a dot."""

    patches: str
    cls: str
    dist: str
    registers: str
    pos_embed: str
    norm: str
    pooled_norm: str  # after pooling, instead
    block: str
    norms: tuple[str, str]  # before attention, before the MLP
    projections: tuple[str, str, str]  # of queries, keys and values; thrice the same name: all in one array
    out: str
    qk_norms: tuple[str, str]
    layers: tuple[str, str]  # of the MLP; a first layer twice as wide as the second's input holds gate and values
    gate: str  # of an MLP whose gate has an array of its own
    scales: tuple[str, str]


def fields(table: Table, names: Names) -> dict[str, Any]:
    """The fields of the model that the arrays decide."""
    d, _, p, q = table.shape(f"{names.patches}.weight", "d c p q")
    block = table.inside(f"{names.block}0.")
    outputs, _ = block.shape(f"{names.layers[0]}.weight", "f d")
    _, f = block.shape(f"{names.layers[1]}.weight", "d f")
    gated = outputs == 2 * f or block.has(f"{names.gate}.weight")
    return {
        "patch_size": (p,) if p == q else (p, q),
        "width": d,
        "depth": _depth(table, names),
        "mlp_dim": f,
        **({"activation": "swiglu"} if gated else {}),
        "class_token": table.has(names.cls),
        "distillation_token": table.has(names.dist),
        "registers": table.shape(names.registers, "1 r d")[1] if table.has(names.registers) else 0,
        "norm_after_pooling": table.has(f"{names.pooled_norm}.weight"),
        "qkv_bias": block.has(f"{names.projections[0]}.bias"),
        "qk_norm": block.has(f"{names.qk_norms[0]}.weight"),
    }


def _depth(table: Table, names: Names) -> int:
    """The number of blocks; raises `UserError` unless they count up from 0."""
    pattern = re.compile(re.escape(table.prefix + names.block) + r"(\d+)\.")
    numbers = {int(match[1]) for key in table.shapes or {} if (match := pattern.match(key))}
    gaps = set(range(len(numbers))) - numbers
    if gaps:
        raise UserError(f"{table.layout}: block {min(gaps)} is missing, but there is block {max(numbers)}")
    return len(numbers)


def num_heads(table: Table, names: Names, given: int | None, where: str) -> dict[str, int]:
    """Heads and head width as fields. `given`: the number of heads, if a side file tells; `where` one would tell it."""
    outputs, d = table.inside(f"{names.block}0.").shape(f"{names.projections[0]}.weight", "o d")
    outputs //= 3 if names.projections[0] == names.projections[1] else 1
    a = given or HEADS.get((d, _depth(table, names))) or (outputs // 64 if outputs % 64 == 0 and outputs > 64 else 0)
    if not a:
        raise UserError(f"{table.layout}: a width of {d} does not tell the number of heads; {where} must give it")
    if outputs % a:
        raise UserError(f"{table.layout}: {a} heads do not divide the queries' {outputs} channels; see {where}")
    return {"num_heads": a, "head_dim": 0 if outputs == d else outputs // a}


def grid(
    table: Table, names: Names, model: Mapping[str, Any], image_size: tuple[int, int] | None
) -> tuple[tuple[int, int], Convert]:
    """The grid that positions were learned for, and how they become ours, which have a row for each leading token.

    PosEmbed of some layouts belong to patches alone; rows of zeros then are the same. `image_size`: (height, width),
    if a side file tells; else the grid is square.
    """
    _, rows, _ = table.shape(names.pos_embed, "1 l d")
    leading = model["class_token"] + model["distillation_token"]
    p, q = square(model["patch_size"])
    for patches, missing in ((rows - leading, 0), (rows, leading)):
        side = round(max(patches, 0) ** 0.5)
        found = (image_size[0] // p, image_size[1] // q) if image_size else (side, side)
        if patches > 0 and found[0] * found[1] == patches:
            return found, _prepend_zeros(missing) if missing else identity
    expected = f"the grid of a {image_size[0]}x{image_size[1]} image" if image_size else "a square grid"
    raise UserError(
        f"{table.layout}: {table.prefix}{names.pos_embed} has {rows} positions, which are not {expected} of {p}x{q} "
        f"patches, with or without {leading} more; config.json must give the image size"
    )


def _prepend_zeros(count: int) -> Convert:
    return lambda positions: np.pad(positions, ((0, 0), (count, 0), (0, 0)))


def add(table: Table, names: Names, model: Mapping[str, Any], channels: int, rows: int, positions: Convert) -> None:
    """The entries of a whole model but its head. `rows`: of the stored positions, which `pos_embed` converts."""
    d = model["width"]
    table.convolution("params/embedding", names.patches, square(model["patch_size"]), channels, d)
    table.add("params/embedding/bias", f"{names.patches}.bias", (d,))
    if model["class_token"]:
        table.add("params/cls", names.cls, (1, 1, d))
    if model["distillation_token"]:
        table.add("params/dist", names.dist, (1, 1, d))
    if model["registers"]:
        table.add("params/Transformer/registers", names.registers, (1, model["registers"], d))
    table.add("params/Transformer/posembed_input/pos_embedding", names.pos_embed, (1, rows, d), positions)
    for i in range(model["depth"]):
        _add_block(table.inside(f"{names.block}{i}."), names, model, f"params/Transformer/encoderblock_{i}")
    if model["norm_after_pooling"]:
        table.norm("params/pooled_norm", names.pooled_norm, d)
    else:
        table.norm("params/Transformer/encoder_norm", names.norm, d)


def _add_block(table: Table, names: Names, model: Mapping[str, Any], ours: str) -> None:
    d = model["width"]
    table.norm(f"{ours}/LayerNorm_0", names.norms[0], d)
    _add_attention(table, names, model, f"{ours}/MultiHeadDotProductAttention_1")
    table.norm(f"{ours}/LayerNorm_2", names.norms[1], d)
    _add_mlp(table, names, model, f"{ours}/MlpBlock_3")
    if model["layer_scale"]:
        for i, key in enumerate(names.scales):
            table.add(f"{ours}/LayerScale_{i}/scale", key, (d,))


def _add_attention(table: Table, names: Names, model: Mapping[str, Any], ours: str) -> None:
    d, a = model["width"], model["num_heads"]
    e = model["head_dim"] or d // a
    fused = len(set(names.projections)) == 1
    for i, part in enumerate(("query", "key", "value")):
        place = (i, 3) if fused else WHOLE
        table.to_heads(f"{ours}/{part}", names.projections[i], d, a, e, bias=model["qkv_bias"], part=place)
    if model["qk_norm"]:
        for part, key in zip(("query_norm", "key_norm"), names.qk_norms, strict=True):
            table.add(f"{ours}/{part}/scale", f"{key}.weight", (e,))
    table.from_heads(f"{ours}/out", names.out, d, a, e)


def _add_mlp(table: Table, names: Names, model: Mapping[str, Any], ours: str) -> None:
    d, f = model["width"], model["mlp_dim"]
    first, second = names.layers
    if model["activation"] != "swiglu":
        table.linear(f"{ours}/Dense_0", first, d, f)
    elif names.gate and table.has(f"{names.gate}.weight"):
        table.linear(f"{ours}/gate", names.gate, d, f)
        table.linear(f"{ours}/Dense_0", first, d, f)
    else:
        table.linear(f"{ours}/gate", first, d, f, part=(0, 2))
        table.linear(f"{ours}/Dense_0", first, d, f, part=(1, 2))
    table.linear(f"{ours}/Dense_1", second, f, d)
