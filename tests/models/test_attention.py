"""Attention against ten lines of NumPy in float64, and dropout's laws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.models.random_params import random_params
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.ops.dropout import dropout

N, D, A, E = 2, 7, 3, 5  # A * E is not D
GRID, M = (2, 3), 11
RNG = np.random.default_rng(1)
SEQUENCE = RNG.normal(size=(N, 1 + 2 * 3, D)).astype(np.float32)  # a class token, then the grid
OTHERS = RNG.normal(size=(N, M, D)).astype(np.float32)
KEY = jax.random.key(0)
dropped = quick.jit(partial(dropout, train=True), static_argnums=1)


def normed(x, scale):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale


def reference(p, queries, tokens):
    """Output [n l d] and probabilities [n a l m]; the options are read off the parameters."""
    q, k, v = (
        np.einsum("nld,dae->nlae", x.astype(np.float64), p[name]["kernel"]) + p[name].get("bias", 0)
        for x, name in ((queries, "query"), (tokens, "key"), (tokens, "value"))
    )
    if "query_norm" in p:
        q, k = normed(q, p["query_norm"]["scale"]), normed(k, p["key_norm"]["scale"])
    logits = np.einsum("nlae,nmae->nalm", q, k)
    l, (h, w) = q.shape[1], GRID
    if "relative_embedding" in p:
        for i, j in np.ndindex(l, l):
            logits[:, :, i, j] += q[:, i] @ p["relative_embedding"][i - j + l - 1]
    logits /= np.sqrt(E)
    if "relative_bias" in p:
        for y, x, y2, x2 in np.ndindex(h, w, h, w):
            bias = p["relative_bias"][y - y2 + h - 1, x - x2 + w - 1]
            logits[:, :, 1 + y * w + x, 1 + y2 * w + x2] += bias
    attention = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    out = np.einsum("nalm,nmae,aed->nld", attention, v, p["out"]["kernel"]) + p["out"]["bias"]
    return out, attention


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qkv_bias": False},
        {"qk_norm": True},
        {"pos_embed": "relative"},
        {"pos_embed": "relative_bias", "grid": GRID},
        {"qk_norm": True, "qkv_bias": False, "pos_embed": "relative"},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_self_attention_is_the_references(options):
    module = MultiHeadDotProductAttention(A, E, **options)
    params = random_params(module, SEQUENCE, SEQUENCE, KEY, train=False)

    @quick.jit
    def attend(params, x):
        return module.apply({"params": params}, x, x, KEY, train=False, mutable="intermediates")

    output, sown = attend(params, SEQUENCE)
    expected, attention = reference(params, SEQUENCE, SEQUENCE)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sown["intermediates"]["attention"][0], attention, rtol=1e-4, atol=1e-6)
    assert ("bias" in params["query"]) == options.get("qkv_bias", True)


def test_cross_attention_takes_keys_and_values_from_the_other_tokens():
    module = MultiHeadDotProductAttention(A, E, qk_norm=True)
    params = random_params(module, SEQUENCE, OTHERS, KEY, train=False)
    output = quick.jit(partial(module.apply, train=False))({"params": params}, SEQUENCE, OTHERS, KEY)
    np.testing.assert_allclose(output, reference(params, SEQUENCE, OTHERS)[0], rtol=1e-4, atol=1e-5)


def test_bfloat16_keeps_parameters_and_softmax_in_float32():
    module = MultiHeadDotProductAttention(A, E, qk_norm=True, pos_embed="relative", dtype="bfloat16")
    x = jnp.asarray(SEQUENCE, jnp.bfloat16)
    variables = jax.eval_shape(partial(module.init, train=False), KEY, x, x, KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
    apply = partial(module.apply, train=False, mutable="intermediates")
    output, sown = jax.eval_shape(apply, variables, x, x, KEY)
    assert output.dtype == jnp.bfloat16
    assert sown["intermediates"]["attention"][0].dtype == jnp.float32


def test_attention_dropout_acts_on_probabilities():
    module = MultiHeadDotProductAttention(A, E, dropout=0.5)
    params = random_params(module, OTHERS[:, :7], OTHERS, KEY, train=False)
    kept = dropped(jnp.asarray(reference(params, OTHERS, OTHERS)[1], jnp.float32), 0.5, KEY)[:, :, :7]
    v = np.einsum("nld,dae->nlae", OTHERS, params["value"]["kernel"]) + params["value"]["bias"]
    expected = np.einsum("nalm,nmae,aed->nld", kept, v, params["out"]["kernel"]) + params["out"]["bias"]
    output = quick.jit(partial(module.apply, train=True))({"params": params}, OTHERS[:, :7], OTHERS, KEY)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_projections_start_as_xavier_of_the_whole_matrix():
    d, a, e = 64, 4, 32
    module, x = MultiHeadDotProductAttention(a, e), jnp.zeros((1, 1, d))
    params = quick.jit(partial(module.init, train=False))(KEY, x, x, KEY)["params"]
    limit = np.sqrt(6 / (d + a * e))
    for name in ("query", "key", "value"):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        assert kernel.shape == (d, a, e) and bias.shape == (a, e)
        assert 0.99 * limit < np.abs(kernel).max() <= limit
        np.testing.assert_array_equal(bias, 0)
