"""Small trees of parameters, their gradients, and a few updates of them."""

import jax
import numpy as np

from tests import quick
from tests.optim.formulas import B1, B2, EPSILON, MOMENTUM, RMS_DECAY
from vit_jax import models, optim, trees
from vit_jax.optim import Settings

EVERY = tuple(optim.OPTIMIZERS)
NAMES = {"layers": models.ViT.NAMING.layers, "head": models.ViT.NAMING.whole_head}
SETTINGS = Settings(
    b1=B1, b2=B2, epsilon=EPSILON, momentum=MOMENTUM, rms_decay=RMS_DECAY, weight_decay=0.3, lr=0.1, schedule="linear"
)
FINE_TUNING = {"freeze": r"^embedding/|Dense_0/bias", "layer_decay": 0.7, "head_warmup_steps": 1}


def random_tree(shapes: dict, seed: int) -> dict:
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return rng.normal(0.1, 1, shape).astype(np.float32)

    return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


def train(settings: Settings, params: dict, gradients: list[dict]):
    """Parameters and optimizer state after one update per gradient."""
    tx, rate = optim.create(settings, **NAMES), optim.schedule(settings, steps_per_epoch=7)
    state = tx.init(params)

    @quick.jit
    def update(params, state, gradient, done):
        directions, state = tx.update(gradient, state, params)
        return jax.tree.map(lambda p, x: p - rate(done, 7) * x, params, directions), state

    for done, gradient in enumerate(gradients):
        params, state = update(params, state, gradient, done)
    return params, state


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def named(tree):
    return zip(trees.names(tree), jax.tree.leaves(tree), strict=True)


LAYER = {"Dense_0": {"kernel": (131, 137), "bias": (5,)}, "query": {"kernel": (7, 2, 3)}}
MODEL = {
    "embedding": {"kernel": (5, 5, 3, 7)},
    "Transformer": {f"encoderblock_{i}": LAYER for i in range(3)},
    "head": {"kernel": (139, 149)},
}
SMALL = {
    "embedding": {"kernel": (3, 5)},
    "Transformer": {f"encoderblock_{i}": {"Dense_0": {"kernel": (5, 7), "bias": (7,)}} for i in range(2)},
    "head": {"kernel": (7, 11), "bias": (11,)},
}
GRADIENTS = [random_tree(SMALL, seed) for seed in (1, 2, 3, 4)]
