"""The models by name: `settings("vit/S16")` gives a config's `model` group, `create` builds the Linen module.

A model is one file, and one call of `register`. Its class has plain values for fields, `num_classes` among them, and a
method `check(image_shape)`; how its parameters are called it declares as `NAMING`.
"""

import dataclasses
import difflib
import fnmatch
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from vit_jax.command import UserError
from vit_jax.models import (
    bit,
    cnn,
    compact,
    hybrid,
    mixer,
    resnet,
    resnetv2,
    sizes,
    small_vit,
    visual_transformer,
    vit,
    whitened,
)
from vit_jax.names import claim

Table = Mapping[str, Mapping[str, Any]]  # variant -> fields; the variant "" holds what all of the family have

NEEDED = {
    "num_classes": "a field num_classes: int = 0, the outputs of its head; 0: it returns what a head would read",
    "check": "a method check(image_shape), which raises UserError for (height, width, channels) that it cannot take",
}

# The name of a field before November 2026 -> its name today; the old ones still work.
RENAMED = {
    "heads": "num_heads",
    "head_width": "head_dim",
    "mlp_width": "mlp_dim",
    "token_mlp_width": "token_mlp_dim",
    "channel_mlp_width": "channel_mlp_dim",
    "positions": "pos_embed",
}
FAMILIES: dict[str, tuple[type[nn.Module], Table]] = {}


def register(family: str, module: type[nn.Module], table: Table | None = None) -> None:
    """Adds a model: `family` and each `family/variant` of the table become names of models.

    Raises `UserError` for a name that is taken, and for a class that lacks what every model has.
    """
    if not family or "/" in family:
        raise ValueError(f"family={family!r} must be a name without '/'; variants are the rows of its table")
    claim("model", family, module, FAMILIES.get(family, (None,))[0])
    for needed in ("num_classes", "check"):
        if not hasattr(module, needed):
            raise UserError(f"model {family!r}: {module.__name__} lacks {NEEDED[needed]}")
    FAMILIES[family] = module, table or {}


register("vit", vit.ViT, sizes.vit_table())
register("deit", vit.ViT, sizes.deit_table())
register("small_vit", small_vit.SmallViT, small_vit.table())
register("compact", compact.Compact, compact.table())
register("mixer", mixer.Mixer, mixer.table())
register("hybrid", hybrid.Hybrid, hybrid.table())
register("visual_transformer", visual_transformer.VisualTransformer, visual_transformer.table())
register("resnet", resnet.ResNet, resnet.table())
register("resnetv2", resnetv2.ResNetV2, resnetv2.table())
register("bit", bit.BiT, bit.table())
register("cnn", cnn.CNN, cnn.table())
register("whitened_cnn", whitened.WhitenedCNN, whitened.cnn_table())
register("conv_stem", whitened.ConvStemViT, whitened.vit_table())


def names(pattern: str = "*") -> list[str]:
    """The known names that match a shell pattern, as `vit/*`."""
    known = []
    for family, (_, table) in FAMILIES.items():
        known += [f"{family}/{variant}" for variant in table if variant] or [family]
    return fnmatch.filter(known, pattern)


def module_class(name: str) -> type[nn.Module]:
    """The class of the models of this name."""
    return _look_up(name)[0]


def fields(name: str) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a model, without those that Linen adds to each module."""
    return {f.name: f for f in dataclasses.fields(module_class(name)) if f.name not in ("parent", "name")}


def settings(name: str, **overrides: Any) -> dict[str, Any]:
    """The `model` group: the name, and every field of the module with the table's, the given or the default value.

    `name` is a table's row, such as `vit/S16`, or a family, such as `vit`, whose required fields are then all given;
    a table's row of no name holds what all of the family have.
    """
    _, row = _look_up(name)
    known = fields(name)
    given = {**row, **{field if field in known else RENAMED.get(field, field): v for field, v in overrides.items()}}
    for field in given:
        if field not in known:
            close = difflib.get_close_matches(field, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise UserError(f"model {name!r} has no field {field!r}; {hint}")
    missing = [f.name for f in known.values() if f.default is dataclasses.MISSING and f.name not in given]
    if missing:
        raise UserError(f"model {name!r} needs {', '.join(missing)}; give them, or choose one of {', '.join(names())}")
    return {"name": name} | {field: given.get(field, f.default) for field, f in known.items()}


def create(model: Mapping[str, Any]) -> nn.Module:
    """The Linen module that a `model` group describes; with dtype auto, which only a run decides, in float32."""
    fields = {field: value for field, value in model.items() if field != "name"}
    if fields.get("dtype") == "auto":
        fields["dtype"] = "float32"
    return module_class(model["name"])(**fields)


def _look_up(name: str) -> tuple[type[nn.Module], Mapping[str, Any]]:
    family, _, variant = name.partition("/")
    if family in FAMILIES:
        module, table = FAMILIES[family]
        if not variant or variant in table:
            return module, table.get(variant, {})
    same = [known for known in names() if known.lower() == name.lower()]
    close = same or difflib.get_close_matches(name, names(), 3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names())}"
    raise UserError(f"model {name!r} is unknown; {hint}")
