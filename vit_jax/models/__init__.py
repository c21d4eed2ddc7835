"""The models by name: `settings("vit/S16")` gives a config's `model` group, `create` builds the Linen module."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from vit_jax.command import UserError
from vit_jax.models import bit, cnn, compact, deit, hybrid, mixer, resnet, resnetv2, visual_transformer, vit
from vit_jax.models.bit import BiT
from vit_jax.models.cnn import CNN
from vit_jax.models.compact import Compact
from vit_jax.models.hybrid import Hybrid
from vit_jax.models.mixer import Mixer
from vit_jax.models.resnet import ResNet
from vit_jax.models.resnetv2 import ResNetV2
from vit_jax.models.visual_transformer import VisualTransformer
from vit_jax.models.vit import ViT

FAMILIES: dict[str, tuple[type[nn.Module], dict[str, dict[str, Any]]]] = {
    "vit": (ViT, vit.table()),
    "deit": (ViT, deit.table()),
    "compact": (Compact, compact.table()),
    "mixer": (Mixer, mixer.table()),
    "hybrid": (Hybrid, hybrid.table()),
    "visual_transformer": (VisualTransformer, visual_transformer.table()),
    "resnet": (ResNet, resnet.table()),
    "resnetv2": (ResNetV2, resnetv2.table()),
    "bit": (BiT, bit.table()),
    "cnn": (CNN, cnn.table()),
}


def names(pattern: str = "*") -> list[str]:
    """The known names that match a shell pattern, as `vit/*`."""
    known = [f"{family}/{variant}" for family, (_, table) in FAMILIES.items() for variant in table if variant]
    return fnmatch.filter(known, pattern)


def fields(name: str) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a model, without those that Linen adds to each module."""
    module, _ = _look_up(name)
    return {f.name: f for f in dataclasses.fields(module) if f.name not in ("parent", "name")}


def settings(name: str, **overrides: Any) -> dict[str, Any]:
    """The `model` group: the name, and every field of the module with the table's, the given or the default value.

    `name` is a table's row, such as `vit/S16`, or a family, such as `vit`, whose required fields are then all given;
    a table's row of no name holds what all of the family have.
    """
    _, row = _look_up(name)
    given = {**row, **overrides}
    known = fields(name)
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
    """The Linen module that a `model` group describes."""
    module, _ = _look_up(model["name"])
    return module(**{field: value for field, value in model.items() if field != "name"})


def _look_up(name: str) -> tuple[type[nn.Module], dict[str, Any]]:
    family, _, variant = name.partition("/")
    if family in FAMILIES:
        module, table = FAMILIES[family]
        if not variant or variant in table:
            return module, table.get(variant, {})
    same = [known for known in names() if known.lower() == name.lower()]
    close = same or difflib.get_close_matches(name, names(), 3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names())}"
    raise UserError(f"model {name!r} is unknown; {hint}")
