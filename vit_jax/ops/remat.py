"""What a backward pass keeps of the forward pass, and what it computes again."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

KEPT = "attention"  # the name of what a backward pass had better keep: see `attend`


def recompute(layer: Callable[..., Any], remat: str, *, scan: bool = False) -> Callable[..., Any]:
    """`layer`, a function of a module and its arguments, computed again in the backward pass as `remat` says."""
    if remat in ("none", "auto"):  # auto: nobody has chosen, as outside training
        return layer
    return nn.remat(layer, policy=kept(remat), prevent_cse=not scan)


def kept(remat: str) -> Callable[..., bool] | None:
    """What `jax.checkpoint` keeps with `remat` dots or full; None: nothing.

    `dots` keeps the products with kernels, and of attention its result and what softmax was divided by.
    """
    policies = jax.checkpoint_policies
    dots: Callable[..., bool] = policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(KEPT)
    )
    return dots if remat == "dots" else None
