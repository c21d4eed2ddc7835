from functools import partial

import jax
import jax.numpy as jnp
import pytest

from vit_jax import models


@pytest.fixture(scope="module")
def parameters():
    """The shapes of a ViT with every kind of parameter."""
    model = models.create(
        models.settings(
            "vit/mu16", depth=2, num_classes=7, registers=2, pooling="map", layer_scale=0.1, qk_norm=True, pre_logits=5
        )
    )
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)["params"]
