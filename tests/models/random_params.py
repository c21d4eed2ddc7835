"""Random parameters for the modules under test: no zero bias or unit scale hides a term; what tests ask of models."""

from functools import partial

import jax
import numpy as np
from flax import linen as nn

from tests import quick
from vit_jax import trees


def random_params(module: nn.Module, *args, **kwargs) -> dict:
    """Parameters of the shapes that `module.init(key, *args, **kwargs)` gives; nothing is compiled."""
    shapes = jax.eval_shape(partial(module.init, **kwargs), jax.random.key(0), *args)["params"]
    rng = np.random.default_rng(11)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)


def parameter_shapes(model: nn.Module, images) -> dict[str, tuple[int, ...]]:
    """The parameters' shapes by name."""
    params = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)["params"]
    return {name: leaf.shape for name, leaf in zip(trees.names(params), jax.tree.leaves(params), strict=True)}


def silence(block: dict) -> None:
    """Leaves an encoder's block its residual connections alone."""
    for out in (block["MultiHeadDotProductAttention_1"]["out"], block["MlpBlock_3"]["Dense_1"]):
        out.update(jax.tree.map(np.zeros_like, out))


def output_and_tokens(model: nn.Module, params: dict, images) -> tuple[np.ndarray, np.ndarray]:
    """What a transformer gives, and its tokens after the last layer norm."""

    @quick.jit
    def forward(params, images):
        def is_norm(module, _):
            return module.name == "encoder_norm"

        apply = partial(model.apply, train=False, capture_intermediates=is_norm, mutable="intermediates")
        return apply({"params": params}, images)

    output, seen = forward(params, images)
    return np.asarray(output), np.asarray(seen["intermediates"]["Transformer"]["encoder_norm"]["__call__"][0])
