"""Tiny models trained on images of grey noise, in which the colour of one patch, or its absence, is the class."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests import quick
from vit_jax import config, models, step
from vit_jax.data import Preprocessing
from vit_jax.inference import Predictor

SIDE, PATCH = 16, 4
VIT = {"patch_size": (PATCH,), "width": 24, "depth": 1, "mlp_dim": 24, "num_heads": 2, "zero_head": False}
MODELS: dict[str, dict[str, Any]] = {
    "class_token": {"name": "vit", **VIT},
    "gap": {"name": "vit", **VIT, "class_token": False, "pooling": "gap"},
    "cnn": {"name": "cnn", "stages": ((16,), (16,)), "dense_widths": (16,), "norm": "none", "pool_last": False},
}


def images(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8, their classes, and where the patch lies [n H W]."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(125, 132, (n, SIDE, SIDE, 3)).astype(np.uint8)
    labels = rng.integers(0, 4, n)
    where = np.zeros((n, SIDE, SIDE), bool)
    for i, (row, column) in enumerate(rng.integers(0, SIDE // PATCH, (n, 2)) * PATCH):
        if labels[i] == 3:  # grey: what speaks for a colour must be seen
            continue
        where[i, row : row + PATCH, column : column + PATCH] = True
        pixels[i, where[i]] = np.eye(3)[labels[i]] * 255
    return pixels, labels.astype(np.int32), where


@functools.cache
def trained(kind: str, steps: int = 120) -> Predictor:
    """Knows all images."""
    fields = models.settings(**{**MODELS[kind], "num_classes": 4})
    prepared = config.from_dict({"model": fields, "augment": {"mean": (0.5,) * 3, "std": (0.25,) * 3}})
    model = models.create(fields)
    variables = quick.jit(lambda: step.init_variables(model, 0, (SIDE, SIDE, 3)))()
    if kind != "cnn":  # grey patches are not zero: a layer norm would blow up their noise, or see the class token alone
        rng, params = np.random.default_rng(0), variables["params"]
        params["embedding"]["bias"] = jnp.float32(rng.normal(size=24))
        params |= {"cls": jnp.float32(rng.normal(size=(1, 1, 24)))} if "cls" in params else {}
    tx = optax.adamw(3e-3, weight_decay=0.1)
    pixels, labels, _ = images(512, 0)
    views = jnp.float32((pixels / 255 - 0.5) / 0.25)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = model.apply({**variables, "params": params}, x, train=False)
        return optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(y, 4), 0.1)).mean()

    def update(state: Any, rng: jax.Array) -> tuple[Any, jax.Array]:
        params, opt_state = state
        batch = jax.random.randint(rng, (32,), 0, len(labels))
        value, gradients = jax.value_and_grad(loss)(params, views[batch], jnp.asarray(labels)[batch])
        updates, opt_state = tx.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    start = variables["params"], tx.init(variables["params"])
    (params, _), _ = quick.jit(lambda s: jax.lax.scan(update, s, jax.random.split(jax.random.key(0), steps)))(start)
    return Predictor(
        prepared, model, {**variables, "params": params}, tuple("rgb-"), Preprocessing((SIDE, SIDE), "crop", 3), 0
    )
