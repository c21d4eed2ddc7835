"""The distilled models of DeiT (Touvron et al. 2021, arXiv:2012.12877): a Vision Transformer with a distillation token.

Without that token DeiT's architecture is the Vision Transformer's: `vit/Ti16`, `vit/S16` and `vit/B16`.
"""

from typing import Any

from vit_jax.models import vit

NAMES = ("Ti16", "S16", "B16")  # table 1; section 3 adds the distillation token


def table() -> dict[str, dict[str, Any]]:
    """The fields of `vit.ViT` for each published size, and those of a model of any size."""
    sizes = vit.table() | {"": {}}
    return {name: {**sizes[name], "distillation_token": True} for name in ("", *NAMES)}
