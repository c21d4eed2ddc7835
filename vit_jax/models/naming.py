"""How a model's parameters are called, declared beside its class: for sharding, optimizers and published weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flax import linen as nn

from vit_jax.sharding import RULES, Rule

NONE = "(?!)"  # matches nothing


@dataclass(frozen=True, kw_only=True)
class Naming:
    """The class attribute `NAMING` of a model; one without it has these defaults.

    Paths are those of parameters of a model that is not scanned: `Transformer/encoderblock_0/LayerNorm_0/scale`.
    """

    # Layers in the order of the forward pass, by how their paths begin: see `trees.layers`. For `optim.layer_decay`;
    # without any the model has no layers to tell apart.
    layers: tuple[str, ...] = ()
    sharding: tuple[Rule, ...] = ()  # asked before `sharding.RULES`
    head: str = "head"  # modules with one output for each class: expression of their whole path
    head_hidden: str = NONE  # layers of the head before these, drawn anew for other classes
    head_input: str = NONE  # layers that train with the head, but are kept for other classes
    # Parts that weights may have and the model not, or the other way round -> the field that says so, or "field=value".
    # Tokens stand before the patches, in this order; the others are modules.
    tokens: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    tied: str = NONE  # parameters that fit one image size only: expression to be found in their path

    @property
    def whole_head(self) -> str:
        """The expression that finds all parameters of the head in a tree of parameters."""
        parts = (self.head, self.head_hidden, self.head_input)
        return f"^({'|'.join(part for part in parts if part != NONE)})/"

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules by which a state of the model lies on a mesh."""
        return self.sharding + RULES

    def leading_tokens(self, settings: Mapping[str, Any]) -> list[str]:
        """The tokens before the patches of the model with these fields."""
        return [token for token, condition in self.tokens.items() if _holds(settings, condition)]

    def optional_part(self, path: str) -> str | None:
        """The condition under which a model has this parameter; None: always."""
        conditions = {**self.tokens, **self.modules}
        return next((conditions[part] for part in conditions if re.match(rf"{part}(/|$)", path)), None)


def _holds(settings: Mapping[str, Any], condition: str) -> bool:
    name, _, value = condition.partition("=")
    return settings.get(name) == value if value else bool(settings.get(name))


def has_part(settings: Mapping[str, Any], condition: str | None) -> bool:
    return condition is None or _holds(settings, condition)


def naming_of(module: nn.Module | type[nn.Module]) -> Naming:
    """How the parameters of a model, or of all models of a class, are called."""
    return getattr(module, "NAMING", Naming())
