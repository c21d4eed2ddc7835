"""Attention by kernels that never store the probabilities is the plain one, and says what it cannot do."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pallas_tpu

from tests import quick
from tests.conftest import rest_is_slow
from tests.models.random_params import random_params
from vit_jax import sharding
from vit_jax.command import UserError
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.ops import fused_attention

N, D = 2, 7
SEQUENCE = np.random.default_rng(1).normal(size=(N, 7, D)).astype(np.float32)
KEY = jax.random.key(0)


def attend(kernel: str, tokens, **options):
    """Output and gradient of a module of heads with 8 channels, in float16; its parameters are always the same."""
    module = MultiHeadDotProductAttention(2, 8, kernel=kernel, dtype="float16", **options)
    params = jax.tree.map(jnp.asarray, random_params(module, tokens, tokens, KEY, train=False))

    def total_and_output(params):
        output = module.apply({"params": params}, tokens, tokens, KEY, train=True)
        return output.sum(), output

    both = jax.grad(total_and_output, has_aux=True)
    both = both if kernel == "cudnn" else quick.jit(both)  # whose products of float16 no program of a CPU has
    gradient, output = both(params)
    return np.asarray(output), gradient


@pytest.fixture
def fused_calls(monkeypatch):
    """cuDNN's arguments, recorded; XLA computes what it is asked for."""
    calls, attention = [], jax.nn.dot_product_attention

    def recorded(q, k, v, *, implementation, **lengths):
        calls.append((implementation, q.shape[1], k.shape[1]))
        return attention(q, k, v, implementation="xla", **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    return calls


@pytest.mark.parametrize("length", rest_is_slow([7, 6]), ids=["odd", "even"])
def test_fused_attention_is_the_plain_one(fused_calls, length):
    tokens = jnp.asarray(SEQUENCE[:, :length])
    (found, gradient), (expected, plain_gradient) = (attend(kernel, tokens) for kernel in ("cudnn", "plain"))
    assert set(fused_calls) == {("cudnn", length + length % 2, length + length % 2)}
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-2)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain_gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("length", [196, 197], ids=["even", "odd"])
def test_cudnn_s_kernels_are_what_a_gpu_is_asked_for(monkeypatch, length):
    """Lowered for one that is not there: JAX checks types, layouts and lengths as if it were, a Hopper with cuDNN 9."""
    checks = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(checks, "check_cudnn_version", lambda: 91300)
    monkeypatch.setattr(checks, "check_compute_capability", lambda capability: True)
    module = MultiHeadDotProductAttention(12, 64, kernel="cudnn", dtype="bfloat16")
    tokens = jax.ShapeDtypeStruct((N, length, 16), "bfloat16")
    params = jax.eval_shape(lambda x: module.init(KEY, x, x, KEY, train=False)["params"], tokens)

    def loss(params, x):
        return module.apply({"params": params}, x, x, KEY, train=True).sum()

    text = jax.jit(jax.grad(loss)).trace(params, tokens).lower(lowering_platforms=("cuda",)).as_text()
    even = length + length % 2
    assert f"{N}x{even}x12x64xbf16" in text
    assert [text.count(f"@__cudnn$fmhaSoftmax{which}(") for which in ("", "Backward")] == [1, 1]
    assert ("PADDING" in text) == (length % 2 == 1)


def test_fused_attention_steps_back_where_its_probabilities_are_wanted(fused_calls):
    tokens = jnp.asarray(SEQUENCE)
    module = MultiHeadDotProductAttention(2, 8, kernel="cudnn", dtype="float16")
    params = jax.tree.map(jnp.asarray, random_params(module, tokens, tokens, KEY, train=False))
    fused_calls.clear()
    _, seen = module.apply({"params": params}, tokens, tokens, KEY, train=False, mutable="intermediates")
    assert seen["intermediates"]["attention"][0].shape == (N, 2, 7, 7) and not fused_calls


@pytest.mark.parametrize(
    ("options", "named"),
    [({"dropout": 0.1}, r"attention_dropout=0\.1"), ({"pos_embed": "relative"}, r"pos_embed='relative'")],
)
def test_fused_attention_says_what_it_cannot_do(fused_calls, options, named):
    with pytest.raises(UserError, match=rf"^model\.attention='cudnn' cannot do {named}; it needs an NVIDIA GPU"):
        attend("cudnn", jnp.asarray(SEQUENCE), **options)
    assert not fused_calls


def test_auto_is_plain_where_nobody_timed_it(fused_calls):
    attend("auto", jnp.asarray(SEQUENCE))
    assert not fused_calls


def test_fused_attention_needs_a_gpu():
    with pytest.raises(UserError, match=r"'cudnn' cannot do this machine \(.*\); it needs an NVIDIA GPU"):
        attend("cudnn", jnp.asarray(SEQUENCE))
    with pytest.raises(UserError, match=r"'cudnn' cannot do the device 'cpu'; it needs an NVIDIA GPU"):
        fused_attention.check_device("cudnn", "cpu", "cpu")
    fused_attention.check_device("cudnn", "gpu", "NVIDIA H200")
    fused_attention.check_device("auto", "cpu", "cpu")


def test_the_tpus_kernel_is_the_plain_one():
    """Interpreted on the CPU, as a TPU would run it; 7 tokens are padded to 128."""
    tokens = jnp.asarray(SEQUENCE)
    expected, plain_gradient = attend("plain", tokens)
    with pallas_tpu.force_tpu_interpret_mode():
        found, gradient = attend("pallas", tokens)
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-2)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain_gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=5e-2, atol=5e-2)


def test_the_tpus_kernel_wants_a_newer_one():
    with pytest.raises(UserError, match="'pallas' cannot do the device 'TPU v3'; it needs a TPU v4 or newer"):
        fused_attention.check_device("pallas", "tpu", "TPU v3")
    fused_attention.check_device("pallas", "tpu", "TPU v5 lite")


def test_the_tpus_kernel_wants_heads_that_fill_its_lanes():
    check = partial(fused_attention.check, "pallas", dtype="float32", pos_embed="none", dropout=0.0)
    for head_dim in (7, 128, 256):
        check(head_dim=head_dim)
    with pytest.raises(UserError, match="'pallas' cannot do heads of 160 channels; .* up to 128 or a multiple"):
        check(head_dim=160)


def test_a_kernel_that_xla_cannot_divide_runs_on_each_device():
    """Its images, and its heads: on a mesh of data 2 and tensor 2 each device sees half of either."""
    mesh = sharding.make_mesh(sharding.Settings(tensor=2), jax.devices()[:4])
    seen = []

    def kernel(q, k, v):
        seen.append(q.shape)
        return q + 2 * k + v

    q, k, v = (jax.random.normal(key, (6, 3, 4, 5)) for key in jax.random.split(KEY, 3))
    found = jax.jit(sharding.on_mesh(lambda *x: sharding.on_each_device(kernel)(*x), mesh))(q, k, v)
    np.testing.assert_allclose(found, q + 2 * k + v, rtol=1e-6)
    assert set(seen) == {(3, 3, 2, 5)}
    seen.clear()
    odd = [x[:, :, :3] for x in (q, k, v)]  # three heads, which two devices cannot share
    jax.jit(sharding.on_mesh(lambda *x: sharding.on_each_device(kernel)(*x), mesh))(*odd)
    assert set(seen) == {(3, 3, 3, 5)}
    np.testing.assert_array_equal(sharding.on_each_device(kernel)(q, k, v), q + 2 * k + v)
