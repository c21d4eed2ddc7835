"""The Vision Transformer's parts against Linen's own layers and a few lines of NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import erf

from tests import quick
from tests.models.random_params import random_params
from vit_jax.command import UserError
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.layers import LayerScale, MlpBlock, PatchEmbedding, activate, square
from vit_jax.models.pooling import MAPHead
from vit_jax.models.positions import AddPositions, sincos2d
from vit_jax.ops.dropout import drop_path, dropout

KEY = jax.random.key(0)
sincos = quick.jit(sincos2d, static_argnums=(0, 1))
dropped = quick.jit(partial(dropout, train=True), static_argnums=1)
RNG = np.random.default_rng(2)
X = RNG.normal(size=(2, 7, 5)).astype(np.float32)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def swish(x):
    return x / (1 + np.exp(-x))


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def apply(module: nn.Module, params: dict, x, train: bool = False) -> jax.Array:
    return quick.jit(partial(module.apply, train=train))({"params": params}, x, KEY)


def test_square():
    assert square((3,)) == (3, 3)
    assert square((3, 5)) == (3, 5)


def test_activations():
    x = jnp.asarray(X)
    np.testing.assert_allclose(activate(x, "gelu"), gelu(X), atol=1e-6)
    tanh = X * (1 + np.tanh(np.sqrt(2 / np.pi) * (X + 0.044715 * X**3))) / 2
    np.testing.assert_allclose(activate(x, "gelu_tanh"), tanh, atol=1e-6)
    np.testing.assert_allclose(activate(x, "swiglu"), swish(X), atol=1e-6)
    with pytest.raises(UserError, match="'relu' is unknown; choose from gelu, gelu_tanh, swiglu"):
        activate(x, "relu")


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    n = 1009
    y = np.asarray(quick.jit(drop_path)(jnp.ones((n, 3, 2)), jnp.float32(0.3), KEY)).reshape(n, 6)
    gone = y[:, 0] == 0
    assert abs(gone.mean() - 0.3) < 0.07  # 5 standard deviations
    np.testing.assert_array_equal(y[gone], 0)
    np.testing.assert_allclose(y[~gone], 1 / 0.7, rtol=1e-6)


def test_drop_path_at_rate_0_is_the_identity():
    np.testing.assert_array_equal(quick.jit(drop_path)(jnp.asarray(X), jnp.float32(0), KEY), X)


@pytest.mark.parametrize(("patch", "image"), [((3, 3), (6, 15)), ((2, 5), (14, 15))], ids=["square", "oblong"])
def test_patch_embedding_is_a_convolution(patch, image):
    images = normal(2, *image, 3)
    module = PatchEmbedding(patch, 7)
    params = random_params(module, images)
    conv = nn.Conv(7, patch, strides=patch, padding="VALID")
    expected = conv.apply({"params": params}, images)
    assert expected.shape == (2, image[0] // patch[0], image[1] // patch[1], 7)
    np.testing.assert_allclose(quick.jit(module.apply)({"params": params}, images), expected, rtol=1e-4, atol=1e-5)


def test_sincos2d_by_hand():
    table = np.asarray(sincos((3, 5), 8))
    np.testing.assert_allclose(table[0, 0], [0, 0, 1, 1, 0, 0, 1, 1])
    fast, slow = 2.0, 2.0 / 10_000  # two frequencies: 1 and 1 / temperature
    x_part = [np.sin(4.0), np.sin(4.0 / 10_000), np.cos(4.0), np.cos(4.0 / 10_000)]
    y_part = [np.sin(fast), np.sin(slow), np.cos(fast), np.cos(slow)]
    np.testing.assert_allclose(table[2, 4], x_part + y_part, rtol=1e-5)


def test_sincos2d_treats_x_and_y_alike():
    table, transposed = np.asarray(sincos((3, 5), 12)), np.asarray(sincos((5, 3), 12))
    assert table.shape == (3, 5, 12)
    np.testing.assert_array_equal(table[..., :6], transposed[..., 6:].swapaxes(0, 1))
    np.testing.assert_array_equal(table[:, :, :6], np.broadcast_to(table[:1, :, :6], (3, 5, 6)))


def positions(kind: str, sequence: jax.Array) -> tuple[np.ndarray, dict]:
    module = AddPositions(kind, (2, 3))
    params = random_params(module, sequence) if kind != "sincos2d" else {}
    return np.asarray(module.apply({"params": params}, sequence)) - sequence, params


@pytest.mark.parametrize("class_tokens", [0, 1])
def test_absolute_positions_by_hand(class_tokens):
    sequence = normal(2, class_tokens + 6, 8)

    added, params = positions("learned", sequence)
    assert params["pos_embedding"].shape == (1, class_tokens + 6, 8)
    np.testing.assert_allclose(added, np.repeat(params["pos_embedding"], 2, 0), atol=1e-5)

    added, params = positions("learned_2d", sequence)
    assert params["x_embedding"].shape == (3, 4) and params["y_embedding"].shape == (2, 4)
    for y, x in np.ndindex(2, 3):
        expected = np.concatenate([params["x_embedding"][x], params["y_embedding"][y]])
        np.testing.assert_allclose(added[1, class_tokens + 3 * y + x], expected, atol=1e-5)
    np.testing.assert_array_equal(added[:, :class_tokens], 0)

    added, _ = positions("sincos2d", sequence)
    np.testing.assert_allclose(added[1, class_tokens:], sincos((2, 3), 8).reshape(6, 8), atol=1e-5)
    np.testing.assert_array_equal(added[:, :class_tokens], 0)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("output_activation", [False, True])
def test_mlp_block_is_the_references(activation, output_activation):
    module = MlpBlock(11, activation, output_activation)
    params = random_params(module, jnp.asarray(X), KEY, train=False)
    hidden = dense(X, params["Dense_0"])
    hidden = hidden * swish(dense(X, params["gate"])) if activation == "swiglu" else gelu(hidden)
    expected = dense(hidden, params["Dense_1"])
    if output_activation:
        expected = swish(expected) if activation == "swiglu" else gelu(expected)
    output = apply(module, params, X)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    assert ("gate" in params) == (activation == "swiglu")


def test_mlp_block_drops_after_both_layers_with_different_draws():
    module = MlpBlock(11, dropout=0.5)
    params = random_params(module, jnp.asarray(X), KEY, train=False)
    inner, outer = jax.random.split(KEY)
    hidden = dropped(jnp.asarray(gelu(dense(X, params["Dense_0"])), jnp.float32), 0.5, inner)
    expected = dropped(jnp.asarray(dense(np.asarray(hidden), params["Dense_1"])), 0.5, outer)
    output = apply(module, params, X, train=True)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_layer_scale_starts_at_its_value_and_scales_channels():
    output, variables = LayerScale(0.25).init_with_output(KEY, jnp.asarray(X))
    np.testing.assert_array_equal(variables["params"]["scale"], np.full(5, 0.25, np.float32))
    np.testing.assert_allclose(output, X * 0.25)
    scale = np.arange(5, dtype=np.float32)
    np.testing.assert_allclose(LayerScale(0.25).apply({"params": {"scale": scale}}, jnp.asarray(X)), X * scale)


def test_map_head_is_attention_by_a_probe_and_an_mlp():
    x = normal(2, 7, 6)
    module = MAPHead(num_heads=3, mlp_dim=11)
    params = random_params(module, x, KEY, train=False)
    probe = jnp.broadcast_to(params["probe"], (2, 1, 6))
    attention = quick.jit(partial(MultiHeadDotProductAttention(3, 2).apply, train=False))
    attended = attention({"params": params["MultiHeadDotProductAttention_0"]}, probe, x, KEY)
    normed = quick.jit(nn.LayerNorm(epsilon=1e-6).apply)({"params": params["LayerNorm_0"]}, attended)
    expected = attended + apply(MlpBlock(11), params["MlpBlock_0"], normed)
    output = apply(module, params, x)
    assert output.shape == (2, 6)
    np.testing.assert_allclose(output, expected[:, 0], rtol=1e-4, atol=1e-5)
