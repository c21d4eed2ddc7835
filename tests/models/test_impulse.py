"""Attention that starts as a convolution's kernels: each head looks at one place around a token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from vit_jax import config, models, trees
from vit_jax.command import UserError
from vit_jax.models.attention_init import POSITIONS, impulse

GRID = (3, 5)
SIZES = {"patch_size": (2,), "width": 32, "depth": 2, "mlp_dim": 5, "num_heads": 2, "num_classes": 3}


def test_each_head_looks_at_one_neighbour():
    """Of a ViT whose tokens are positions alone: a black image, and biases of 0."""
    model = models.create(models.settings("vit", **SIZES))
    images = jnp.zeros((1, 2 * GRID[0], 2 * GRID[1], 3))
    start = quick.jit(lambda: model.init(jax.random.key(0), images, train=False))()["params"]
    params = quick.jit(lambda params: impulse(params, jax.random.key(1), GRID))(start)
    look = quick.jit(lambda params: model.apply({"params": params}, images, train=False, mutable=["intermediates"]))
    _, state = look(params)
    block = state["intermediates"]["Transformer"]["encoderblock_0"]["MultiHeadDotProductAttention_1"]
    attention = np.asarray(block["attention"][0][0, :, 1:, 1:])  # between patches
    shifts = jax.random.randint(jax.random.fold_in(jax.random.key(1), 0), (2, 2), -1, 2)
    for seen, (down, right) in zip(attention, np.asarray(shifts), strict=True):
        for at in range(GRID[0] * GRID[1]):
            y, x = divmod(at, GRID[1])
            looks = np.clip(y + down, 0, GRID[0] - 1) * GRID[1] + np.clip(x + right, 0, GRID[1] - 1)
            assert seen[at].argmax() == looks and seen[at, looks] > 0.9
    old, new = (dict(zip(trees.names(tree), jax.tree.leaves(tree), strict=True)) for tree in (start, params))
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert all(name == POSITIONS or name.endswith(("query/kernel", "key/kernel")) for name in changed)
    assert len(changed) == 5


def test_what_has_no_such_start_is_refused():
    params = {"Transformer": {"encoderblock_0": {"MultiHeadDotProductAttention_1": {"query": {"kernel": jnp.ones(3)}}}}}
    with pytest.raises(UserError, match="no learned positions; set model.pos_embed='learned'"):
        impulse(params, jax.random.key(0), GRID)
    with pytest.raises(UserError, match="init.impulse=True, but the model has no encoder blocks"):
        impulse({"head": {"kernel": jnp.ones((3, 5))}}, jax.random.key(0), GRID)
    with pytest.raises(UserError, match="two starts of the same attention; leave one out"):
        config.from_dict({"init": {"mimetic": True, "impulse": True}})
