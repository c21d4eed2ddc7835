"""Attention against ten lines of NumPy in float64, and dropout's laws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pallas_tpu
from jax.test_util import check_grads

from tests import quick
from tests.models.random_params import random_params
from vit_jax import models, sharding, step
from vit_jax.command import UserError
from vit_jax.models import attention, fused
from vit_jax.models.attention import HeadProjection, MultiHeadDotProductAttention, dropout

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
        {"positions": "relative"},
        {"positions": "relative_bias", "grid": GRID},
        {"qk_norm": True, "qkv_bias": False, "positions": "relative"},
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
    module = MultiHeadDotProductAttention(A, E, qk_norm=True, positions="relative", dtype="bfloat16")
    x = jnp.asarray(SEQUENCE, jnp.bfloat16)
    variables = jax.eval_shape(partial(module.init, train=False), KEY, x, x, KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
    apply = partial(module.apply, train=False, mutable="intermediates")
    output, sown = jax.eval_shape(apply, variables, x, x, KEY)
    assert output.dtype == jnp.bfloat16
    assert sown["intermediates"]["attention"][0].dtype == jnp.float32


def test_the_values_means_and_their_derivatives():
    logits, values = (jax.random.normal(k, s) for k, s in ((KEY, (N, A, 4, M)), (jax.random.key(1), (N, A, M, E))))

    def plain(logits, values):
        return jax.nn.softmax(logits) @ values

    def loss(fn, logits, values):
        return jnp.sin(fn(logits, values)).sum()

    gradients = [jax.value_and_grad(partial(loss, fn), (0, 1))(logits, values) for fn in (attention.attend, plain)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *gradients)
    small = logits[:1, :1, :2, :3], values[:1, :1, :3, :2]
    check_grads(lambda *given: attention.attend(*map(jnp.asarray, given)), small, order=2, rtol=1e-2, atol=1e-2)


def test_attention_dropout_acts_on_probabilities():
    module = MultiHeadDotProductAttention(A, E, dropout=0.5)
    params = random_params(module, SEQUENCE, OTHERS, KEY, train=False)
    kept = dropped(jnp.asarray(reference(params, SEQUENCE, OTHERS)[1], jnp.float32), 0.5, KEY)
    v = np.einsum("nld,dae->nlae", OTHERS, params["value"]["kernel"]) + params["value"]["bias"]
    expected = np.einsum("nalm,nmae,aed->nld", kept, v, params["out"]["kernel"]) + params["out"]["bias"]
    output = quick.jit(partial(module.apply, train=True))({"params": params}, SEQUENCE, OTHERS, KEY)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_projections_start_as_xavier_of_the_whole_matrix():
    d, a, e = 64, 4, 32
    kernel, bias = quick.jit(lambda key: HeadProjection(a, e).init_with_output(key, d)[0])(KEY)
    limit = np.sqrt(6 / (d + a * e))
    assert kernel.shape == (d, a, e) and bias.shape == (a, e)
    assert 0.99 * limit < np.abs(kernel).max() <= limit
    np.testing.assert_array_equal(bias, 0)


def test_dropout_zeroes_at_its_rate_and_keeps_the_mean():
    x = jnp.full((101, 103), 3.0)
    y = np.asarray(dropped(x, 0.2, KEY))
    assert abs(np.mean(y == 0) - 0.2) < 0.02  # 5 standard deviations
    np.testing.assert_allclose(y[y != 0], 3.0 / 0.8, rtol=1e-6)


def test_dropout_is_the_identity_at_rate_0_and_outside_training():
    x = jnp.arange(7.0)
    assert dropout(x, 0.0, KEY, train=True) is x
    assert dropout(x, 0.9, KEY, train=False) is x


def attend(kernel: str, tokens, **options):
    """Output and gradient of a module of heads with 8 channels, in float16; its parameters are always the same."""
    module = MultiHeadDotProductAttention(2, 8, kernel=kernel, dtype="float16", **options)
    params = jax.tree.map(jnp.asarray, random_params(module, tokens, tokens, KEY, train=False))
    apply = partial(module.apply, {"params": params}, tokens, tokens, KEY, train=True)
    gradient = jax.grad(lambda p: module.apply({"params": p}, tokens, tokens, KEY, train=True).sum())(params)
    return np.asarray(apply()), gradient


@pytest.fixture
def fused_calls(monkeypatch):
    """A machine that looks like one with a GPU: cuDNN's arguments are recorded, and computed by XLA."""
    calls, attention = [], jax.nn.dot_product_attention

    def recorded(q, k, v, *, implementation, **lengths):
        calls.append((implementation, q.shape[1], k.shape[1]))
        return attention(q, k, v, implementation="xla", **lengths)

    monkeypatch.setattr(sharding, "devices_of_activations", lambda: ("gpu", "NVIDIA H200"))
    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    return calls


@pytest.mark.parametrize("length", [6, 7], ids=["even", "odd"])
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
    monkeypatch.setattr(sharding, "devices_of_activations", lambda: ("gpu", "NVIDIA H200"))
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


def test_gpus_project_with_one_product(monkeypatch):
    """One for queries, keys and values, where they are of the same tokens, and the same numbers."""
    tokens, others = jnp.asarray(SEQUENCE), jnp.asarray(OTHERS)
    module = MultiHeadDotProductAttention(A, E)
    params = jax.tree.map(jnp.asarray, random_params(module, tokens, tokens, KEY, train=False))

    def loss(params, queries, tokens):
        return module.apply({"params": params}, queries, tokens, KEY, train=True).sum()

    def of_self(params, x):
        return loss(params, x, x)

    def products(fn, *args):
        anew = jax.make_jaxpr(lambda *given: fn(*given))(params, *args)  # not what was traced for another device
        return sum(e.primitive is jax.lax.dot_general_p for e in anew.eqns)

    expected = jax.value_and_grad(of_self, (0, 1))(params, tokens)
    three = products(of_self, tokens), products(loss, tokens, others)
    monkeypatch.setattr(sharding, "devices_of_activations", lambda: ("gpu", "NVIDIA H100"))
    assert [products(of_self, tokens), products(loss, tokens, others)] == [three[0] - 2, three[1]]
    found = jax.value_and_grad(of_self, (0, 1))(params, tokens)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_vits_blocks_project_so(monkeypatch):
    """All but the last, whose queries are the class token's alone."""
    model = models.create(
        models.settings("vit", patch_size=(4,), width=8, depth=3, mlp_width=8, heads=2, num_classes=3)
    )
    params = step.init_variables(model, 0, (8, 8, 3))["params"]

    def products():
        def apply(images):
            return model.apply({"params": params}, images, train=False)

        return sum(e.primitive is jax.lax.dot_general_p for e in jax.make_jaxpr(apply)(jnp.ones((2, 8, 8, 3))).eqns)

    before = products()
    monkeypatch.setattr(sharding, "devices_of_activations", lambda: ("gpu", "NVIDIA H100"))
    assert products() == before - 2 * 2


def test_fused_attention_steps_back_where_its_probabilities_are_wanted(fused_calls):
    tokens = jnp.asarray(SEQUENCE)
    module = MultiHeadDotProductAttention(2, 8, kernel="cudnn", dtype="float16")
    params = jax.tree.map(jnp.asarray, random_params(module, tokens, tokens, KEY, train=False))
    fused_calls.clear()
    _, seen = module.apply({"params": params}, tokens, tokens, KEY, train=False, mutable="intermediates")
    assert seen["intermediates"]["attention"][0].shape == (N, 2, 7, 7) and not fused_calls


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dropout": 0.1}, r"attention_dropout=0\.1"),
        ({"positions": "relative"}, r"positions='relative'"),
    ],
)
def test_fused_attention_says_what_it_cannot_do(fused_calls, options, named):
    with pytest.raises(UserError, match=rf"^model\.attention='cudnn' cannot do {named}; it needs an NVIDIA GPU"):
        attend("cudnn", jnp.asarray(SEQUENCE), **options)
    assert not fused_calls


def test_auto_is_plain_where_nobody_timed_it(fused_calls):
    attend("auto", jnp.asarray(SEQUENCE))
    assert not fused_calls


def test_fused_attention_needs_a_gpu():
    with pytest.raises(UserError, match=r"cannot do the device 'cpu'"):
        attend("cudnn", jnp.asarray(SEQUENCE))


def on_tpu(monkeypatch, kind="TPU v5 lite"):
    monkeypatch.setattr(sharding, "devices_of_activations", lambda: ("tpu", kind))


def test_the_tpus_kernel_is_the_plain_one(monkeypatch):
    """Interpreted on the CPU, as a TPU would run it; 7 tokens are padded to 128."""
    tokens = jnp.asarray(SEQUENCE)
    expected, plain_gradient = attend("plain", tokens)
    on_tpu(monkeypatch)
    with pallas_tpu.force_tpu_interpret_mode():
        found, gradient = attend("pallas", tokens)
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-2)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain_gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=5e-2, atol=5e-2)


def test_the_tpus_kernel_wants_a_newer_one(monkeypatch):
    on_tpu(monkeypatch, "TPU v3")
    with pytest.raises(UserError, match="'pallas' cannot do the device 'TPU v3'; it needs a TPU v4 or newer"):
        attend("pallas", jnp.asarray(SEQUENCE))


def test_the_tpus_kernel_wants_heads_that_fill_its_lanes(monkeypatch):
    on_tpu(monkeypatch)
    for head_width in (7, 128, 256):
        fused.check("pallas", dtype="float32", positions="none", dropout=0.0, head_width=head_width)
    with pytest.raises(UserError, match="'pallas' cannot do heads of 160 channels; .* up to 128 or a multiple"):
        fused.check("pallas", dtype="float32", positions="none", dropout=0.0, head_width=160)


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


def test_the_softmax_with_named_parts_is_softmax_to_the_bit():
    logits = 10 * jax.random.normal(jax.random.key(0), (2, 3, 5, 7))
    assert (attention.softmax(logits) == jax.nn.softmax(logits)).all()
