"""Compact Transformers: tokens, positions, the block, sequence pooling, published sizes; scan equals loop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests import quick
from tests.models.golden import count
from tests.models.random_params import output_and_tokens, parameter_shapes, random_params, silence
from vit_jax import trees
from vit_jax.models import attention, layers, vit
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.compact import Compact, ConvTokenizer
from vit_jax.models.layers import MlpBlock
from vit_jax.models.pooling import SequencePooling
from vit_jax.models.positions import sincos1d
from vit_jax.models.vit import EncoderBlock

KEY = jax.random.key(0)
RNG = np.random.default_rng(5)
SHAPE = (7, 11, 3)  # pooled to 4x6 tokens
IMAGES = jnp.asarray(RNG.normal(size=(5, *SHAPE)), jnp.float32)
TINY = {"width": 8, "depth": 2, "mlp_dim": 13, "num_heads": 2, "convolutions": 1}


def tiny(**fields) -> Compact:
    return Compact(**{**TINY, **fields})


def test_the_imagenet_models_count():
    fields = {"num_classes": 1000, "scan": True}
    assert count("compact/CCT-14/7x2", 224, **fields) == 22_292_009 + 14 * 14 * 384
    assert count("compact/CCT-14/7x2", 224, pos_embed="none", **fields) == 22_292_009  # printed: 22.29 M


def test_a_convolutional_models_parameters():
    found = parameter_shapes(tiny(depth=1, convolutions=2, channels=5, num_classes=13), IMAGES)
    assert not {"cls", "embedding/kernel"} & found.keys()
    assert {name: shape for name, shape in found.items() if "encoderblock" not in name} == {
        "Transformer/encoder_norm/bias": (8,),
        "Transformer/encoder_norm/scale": (8,),
        "Transformer/posembed_input/pos_embedding": (1, 2 * 3, 8),
        "tokenizer/conv_0/kernel": (3, 3, 3, 5),
        "tokenizer/conv_1/kernel": (3, 3, 5, 8),
        "pool/score/kernel": (8, 1),
        "pool/score/bias": (1,),
        "head/kernel": (8, 13),
        "head/bias": (13,),
    }
    assert not any(name.endswith(("query/bias", "key/bias", "value/bias")) for name in found)


def test_patches_and_a_class_token_replace_convolutions_and_pooling():
    found = parameter_shapes(tiny(depth=1, convolutions=0, patch_size=(7, 11), pooling="token"), IMAGES)
    rest = {name: shape for name, shape in found.items() if not name.startswith("Transformer/encoder")}
    assert rest == {
        "Transformer/posembed_input/pos_embedding": (1, 2, 8),
        "cls": (1, 1, 8),
        "embedding/kernel": (7, 11, 3, 8),
        "embedding/bias": (8,),
    }


@pytest.mark.parametrize(("kernel", "stride", "grid"), [(3, 1, (4, 6)), (7, 2, (2, 3))])
def test_tokenizer_is_convolution_relu_max_pool(kernel, stride, grid):
    module = ConvTokenizer(8, 1, kernel, stride, 64, "float32")
    params = random_params(module, IMAGES)
    weights, pad = params["conv_0"]["kernel"], kernel // 2
    padded = np.pad(IMAGES, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = (range(0, size, stride) for size in SHAPE[:2])
    taps = [
        [np.einsum("nhwc,hwcd->nd", padded[:, i : i + kernel, j : j + kernel], weights) for j in columns] for i in rows
    ]
    x = np.maximum(np.stack([np.stack(row, 1) for row in taps], 1), 0)
    windows = [
        [x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].max((1, 2)) for j in range(0, x.shape[2], 2)]
        for i in range(0, x.shape[1], 2)
    ]
    expected = np.stack([np.stack(row, 1) for row in windows], 1)
    output = quick.jit(module.apply)({"params": params}, IMAGES)
    assert output.shape == (5, *grid, 8)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


def test_sequence_pooling_is_a_weighted_mean():
    x = jnp.asarray(RNG.normal(size=(2, 7, 5)), jnp.float32)
    params = random_params(SequencePooling("float32"), x)
    score = np.exp(np.asarray(x) @ params["score"]["kernel"][:, 0] + params["score"]["bias"])
    expected = [sum(w * token for w, token in zip(score[i], x[i], strict=True)) / score[i].sum() for i in range(2)]
    np.testing.assert_allclose(SequencePooling("float32").apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [6, 5])
def test_sincos1d_by_hand(width):
    table = np.asarray(sincos1d(4, width))
    assert table.shape == (4, width)
    np.testing.assert_allclose(table[0], [0, 1, 0, 1, 0, 1][:width], atol=1e-7)
    slow = 3 / 10_000 ** (2 / width)
    np.testing.assert_allclose(table[3, :4], [np.sin(3), np.cos(3), np.sin(slow), np.cos(slow)], rtol=1e-5)


@pytest.mark.parametrize("pooling", ["sequence", "token"])
def test_fixed_positions_are_added_to_all_tokens_and_a_block_that_adds_nothing_normalises(pooling):
    model = tiny(depth=1, pos_embed="sincos1d", pooling=pooling)
    params = random_params(model, IMAGES, train=False)
    assert "posembed_input" not in params["Transformer"]
    block = params["Transformer"]["encoderblock_0"]
    silence(block)
    _, sown = quick.jit(partial(model.apply, train=False, mutable="intermediates"))({"params": params}, IMAGES)

    tokens = ConvTokenizer(8, 1, 3, 1, 64, "float32").apply({"params": params["tokenizer"]}, IMAGES).reshape(5, 24, 8)
    if pooling == "token":
        tokens = jnp.concatenate([jnp.broadcast_to(params["cls"], (5, 1, 8)), tokens], axis=1)
    tokens = tokens + sincos1d(tokens.shape[1], 8)[None]
    expected = nn.LayerNorm(epsilon=1e-5).apply({"params": block["LayerNorm_2"]}, tokens)
    found = sown["intermediates"]["Transformer"]["encoderblock_0"]["tokens"][0]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_mlps_residual_connection_carries_the_normalised_tokens():
    attention = partial(MultiHeadDotProductAttention, 2, 4, qkv_bias=False)
    layer_norm = partial(nn.LayerNorm, epsilon=1e-3)
    block = EncoderBlock(attention, partial(MlpBlock, 11), layer_norm, residual_norm=True)
    x = jnp.asarray(RNG.normal(size=(2, 6, 8)), jnp.float32)
    params = jax.tree.map(jnp.asarray, random_params(block, x, KEY, jnp.float32(0), train=False))

    @quick.jit
    def by_hand(p, x):
        norm = layer_norm()
        y = norm.apply({"params": p["LayerNorm_0"]}, x)
        x = x + attention().apply({"params": p["MultiHeadDotProductAttention_1"]}, y, y, KEY, train=False)
        x = norm.apply({"params": p["LayerNorm_2"]}, x)
        return x + MlpBlock(11).apply({"params": p["MlpBlock_3"]}, x, KEY, train=False)

    output = quick.jit(partial(block.apply, train=False))({"params": params}, x, KEY, jnp.float32(0))
    np.testing.assert_allclose(output, by_hand(params, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["sequence", "token"])
def test_logits_are_a_linear_layer_of_the_pooled_tokens(pooling):
    model = tiny(pooling=pooling, num_classes=13)
    params = random_params(model, IMAGES, train=False)
    logits, tokens = output_and_tokens(model, params, IMAGES)
    pooled = tokens[:, 0]
    if pooling == "sequence":
        pooled = SequencePooling("float32").apply({"params": params["pool"]}, jnp.asarray(tokens))
    expected = np.asarray(pooled) @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_scan_equals_loop_in_training():
    looped = tiny(num_classes=13, dropout=0.3, stochastic_depth=0.5)
    params = jax.tree.map(jnp.asarray, random_params(looped, IMAGES, train=False))

    def train(model, params):
        return model.apply({"params": params}, IMAGES, train=True, rngs={"dropout": KEY})

    expected = quick.jit(partial(train, looped))(params)
    found = quick.jit(partial(train, looped.clone(scan=True)))(trees.stack_layers(params))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    evaluated = quick.jit(partial(looped.apply, train=False))({"params": params}, IMAGES)
    assert np.abs(evaluated - expected).max() > 0.1


def test_each_rate_reaches_its_place(monkeypatch):
    rates = {"dropout": 0.1, "projection_dropout": 0.2, "attention_dropout": 0.3, "embedding_dropout": 0.4}
    model, seen = tiny(depth=1, num_classes=13, **rates), []
    variables = {"params": random_params(model, IMAGES, train=False)}

    def spy(x, rate, rng, *, train, num_tokens=0):
        seen.append((rate, x.shape))
        return x

    for module in (attention, layers, vit):
        monkeypatch.setattr(module, "dropout", spy)
    jax.eval_shape(partial(model.apply, train=True, rngs={"dropout": KEY}), variables, IMAGES)
    block = [(0.3, (5, 2, 24, 24)), (0.2, (5, 24, 8)), (0.1, (5, 24, 13)), (0.1, (5, 24, 8))]
    assert seen == [(0.4, (5, 24, 8)), *block]
