"""Means weighted by a softmax, their derivatives, and the softmax whose parts have names."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from tests import quick
from tests.ops.lowered import lowered
from vit_jax import platforms
from vit_jax.ops.attend import attend, attention_logits, softmax
from vit_jax.ops.remat import kept

N, A, M, E = 2, 3, 11, 5
KEY = jax.random.key(0)


def test_the_values_means_and_their_derivatives():
    logits, values = (jax.random.normal(k, s) for k, s in ((KEY, (N, A, 4, M)), (jax.random.key(1), (N, A, M, E))))

    def plain(logits, values):
        return jax.nn.softmax(logits) @ values

    def loss(fn, logits, values):
        return jnp.sin(fn(logits, values)).sum()

    gradients = [quick.jit(jax.value_and_grad(partial(loss, fn), (0, 1)))(logits, values) for fn in (attend, plain)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *gradients)
    small = logits[:1, :1, :2, :3], values[:1, :1, :3, :2]
    check_grads(jax.jit(attend), small, order=2, rtol=1e-2, atol=1e-2)


def test_the_softmax_with_named_parts_is_softmax_to_the_bit():
    logits = 10 * jax.random.normal(KEY, (2, 3, 5, 7))
    assert (softmax(logits) == jax.nn.softmax(logits)).all()


def attention(q, k, v):
    """Heads from tokens [n m a e], as the model has them."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return attend(attention_logits(q, k), v).astype(jnp.float32)


def squares(q, k, v):
    return (attention(q, k, v) ** 2).sum()


def test_bfloat16_units_get_factors_in_order(monkeypatch):
    """A CPU with such units copies heads first, and turns the smaller factor; other programs are as before."""
    tokens = jnp.ones((N, M, A, E), jnp.bfloat16)
    plain = lowered(jax.grad(squares, (0, 1, 2)), tokens, tokens, tokens, platform="tpu")
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
    monkeypatch.setattr(platforms, "cpu_units", lambda: {"avx512_bf16"})
    for platform, copies in (("cpu", 10), ("tpu", 0), ("cuda", 0)):
        text = lowered(jax.grad(squares, (0, 1, 2)), tokens, tokens, tokens, platform=platform)
        assert text.count("dot_general") == plain.count("dot_general") == 6
        assert text.count("optimization_barrier") == copies


def test_attention_in_bfloat16_under_transformations(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
    monkeypatch.setattr(platforms, "cpu_units", lambda: {"avx512_bf16"})
    tokens = [jax.random.normal(jax.random.key(i), (2, N, M, A, E), jnp.bfloat16) for i in range(3)]
    of_one = jax.grad(squares, (0, 1, 2))

    def curved(*tokens):
        return jax.grad(lambda *given: sum((g.astype(jnp.float32) ** 2).sum() for g in of_one(*given)))(*tokens)

    for fn in (of_one, curved):
        expected = quick.jit(lambda *tokens, fn=fn: [fn(*(x[i] for x in tokens)) for i in range(2)])(
            *(x.astype(jnp.float32) for x in tokens)
        )
        remat = jax.grad(jax.checkpoint(squares, policy=kept("dots")), (0, 1, 2)) if fn is of_one else fn
        for found in (
            quick.jit(jax.vmap(remat))(*tokens),
            quick.jit(lambda *tokens, fn=remat: jax.lax.map(lambda args: fn(*args), tokens))(*tokens),
        ):
            for i, one in enumerate(expected):
                for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(one), strict=True):
                    np.testing.assert_allclose(a[i], b, rtol=0.05, atol=0.05 * float(jnp.abs(b).max()))


def test_logits_in_bfloat16_are_not_rounded(monkeypatch):
    """Softmax magnifies what is lost: of logits of 15, rounding would lose 4 % of the gradient."""
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
    monkeypatch.setattr(platforms, "cpu_units", lambda: {"avx512_bf16"})
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 50, 3, 16), jnp.bfloat16) for i in range(3))
    q *= 15 / 16**0.5
    found = quick.jit(jax.grad(jax.checkpoint(squares, policy=kept("dots")), (0, 1, 2)))(q, k, v)
    expected = quick.jit(jax.grad(squares, (0, 1, 2)))(*(x.astype(jnp.float32) for x in (q, k, v)))
    for a, b in zip(found, expected, strict=True):
        assert jnp.linalg.norm((a - b).ravel()) < 0.015 * jnp.linalg.norm(b.ravel())
