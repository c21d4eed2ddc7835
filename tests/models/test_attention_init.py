"""Attention that starts as trained attention looks: its products by their definition, and what stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.command import UserError
from vit_jax.models import attention_init
from vit_jax.models.attention_init import mimetic

D, A, E = 31, 3, 7  # 3 heads of 7 are 21 of 31 channels
ATTENTION = "MultiHeadDotProductAttention_1"


def params_of(head_dim: int = E):
    part = {name: {"kernel": jnp.full((D, A, head_dim), 2.0)} for name in ("query", "key", "value")}
    part["out"] = {"kernel": jnp.full((A, head_dim, D), 2.0), "bias": jnp.ones(D)}
    layers = {f"encoderblock_{i}": {ATTENTION: part, "MlpBlock_3": {"kernel": jnp.ones((D, 5))}} for i in range(2)}
    return {"Transformer": layers, "head": {"kernel": jnp.ones((D, 5))}}


def products(params, layer: int):
    kernels = {name: leaf["kernel"] for name, leaf in params["Transformer"][f"encoderblock_{layer}"][ATTENTION].items()}
    heads = [kernels["query"][:, a] @ kernels["key"][:, a].T for a in range(A)]
    return heads, kernels["value"].reshape(D, -1) @ kernels["out"].reshape(-1, D)


def test_only_the_kernels_of_attention_are_new_and_differ_by_layer():
    old, new = params_of(), mimetic(params_of(), jax.random.key(0))
    same = jax.tree.map(lambda a, b: a.shape == b.shape and bool((a == b).all()), old, new)
    changed = {jax.tree_util.keystr(path) for path, stays in jax.tree_util.tree_leaves_with_path(same) if not stays}
    assert len(changed) == 8 and all(ATTENTION in path and "kernel" in path for path in changed)
    (first, *_), _ = products(new, 0)
    (other, *_), _ = products(new, 1)
    assert np.abs(first - other).max() > 0.1


def test_products_are_the_nearest_of_their_rank(monkeypatch):
    """Without noise they are the identity, and its negative, in as many directions as the heads have channels."""
    monkeypatch.setattr(attention_init, "NOISE_QK", 1e-3)
    monkeypatch.setattr(attention_init, "NOISE_VO", 1e-3)
    heads, vo = products(mimetic(params_of(), jax.random.key(1)), 0)
    for product in heads:
        np.testing.assert_allclose(np.linalg.eigvalsh(product + product.T) / 2, [0] * (D - E) + [0.7] * E, atol=5e-3)
    np.testing.assert_allclose(np.linalg.eigvalsh(vo + vo.T) / 2, [-0.4] * A * E + [0] * (D - A * E), atol=5e-3)


def test_models_without_such_attention_are_refused():
    with pytest.raises(UserError, match="no encoder blocks with attention"):
        mimetic({"head": {"kernel": jnp.ones((3, 5))}}, jax.random.key(0))
    with pytest.raises(UserError, match="3 heads of 11 are wider than the 31 channels; set model.head_dim=0"):
        mimetic(params_of(11), jax.random.key(0))


def test_it_finds_the_attention_of_a_vit():
    model = models.create(models.settings("vit/mu16", depth=2, num_classes=7, qk_norm=True))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)["params"])
    found = jax.eval_shape(
        lambda rng: mimetic(jax.tree.map(lambda s: jnp.zeros(s.shape), shapes), rng), jax.random.key(0)
    )
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, shapes)
