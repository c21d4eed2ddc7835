"""Parameter counts without computing anything."""

from functools import partial

import jax
import jax.numpy as jnp

from vit_jax import models, trees


def count(name: str, size: int, num_classes: int, **fields) -> int:
    """The parameters of a model for colour images of `size` pixels squared, which its `check` accepts."""
    model = models.create(models.settings(name, num_classes=num_classes, **fields))
    model.check((size, size, 3))
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return trees.count(jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)["params"])
