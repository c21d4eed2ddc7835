"""Random parameters for the modules under test: no zero bias or unit scale hides a term."""

from functools import partial

import jax
import numpy as np
from flax import linen as nn


def random_params(module: nn.Module, *args, **kwargs) -> dict:
    """Parameters of the shapes that `module.init(key, *args, **kwargs)` gives; nothing is compiled."""
    shapes = jax.eval_shape(partial(module.init, **kwargs), jax.random.key(0), *args)["params"]
    rng = np.random.default_rng(11)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
