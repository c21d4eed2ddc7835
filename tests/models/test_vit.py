"""The Vision Transformer: its block, tokens, pooling and head, what it refuses, and looking inside it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests import quick
from tests.models.random_params import output_and_tokens, parameter_shapes, random_params, silence
from vit_jax import trees
from vit_jax.models import attention, head, layers, vit
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.layers import MlpBlock
from vit_jax.models.pooling import MAPHead
from vit_jax.models.vit import EncoderBlock, ViT

KEY = jax.random.key(0)
SHAPE = (14, 15, 3)  # with 7x5 patches a grid of 2x3
IMAGES = jnp.asarray(np.random.default_rng(5).normal(size=(5, *SHAPE)), jnp.float32)
TINY = {"patch_size": (7, 5), "width": 8, "depth": 1, "mlp_dim": 11, "num_heads": 2}


def tiny(**fields) -> ViT:
    return ViT(**{**TINY, **fields})


def test_block_is_two_pre_norm_residual_branches():
    attention = partial(MultiHeadDotProductAttention, 2, 5, qk_norm=True, norm_epsilon=1e-3, pos_embed="relative")
    layer_norm = partial(nn.LayerNorm, epsilon=1e-3)
    block = EncoderBlock(attention, partial(MlpBlock, 11, "swiglu"), layer_norm, layer_scale=0.5)
    x = jnp.asarray(np.random.default_rng(7).normal(size=(2, 7, 8)), jnp.float32)
    params = jax.tree.map(jnp.asarray, random_params(block, x, KEY, jnp.float32(0), train=False))

    @quick.jit
    def by_hand(p, x):
        norm = layer_norm()
        y = norm.apply({"params": p["LayerNorm_0"]}, x)
        y = attention().apply({"params": p["MultiHeadDotProductAttention_1"]}, y, y, KEY, train=False)
        x = x + y * p["LayerScale_0"]["scale"][None, None]
        y = norm.apply({"params": p["LayerNorm_2"]}, x)
        y = MlpBlock(11, "swiglu").apply({"params": p["MlpBlock_3"]}, y, KEY, train=False)
        return x + y * p["LayerScale_1"]["scale"][None, None]

    output = quick.jit(partial(block.apply, train=False))({"params": params}, x, KEY, jnp.float32(0))
    np.testing.assert_allclose(output, by_hand(params, x), rtol=1e-4, atol=1e-5)


DROPS = {
    "dropout": 0.4,
    "projection_dropout": 0.3,
    "attention_dropout": 0.4,
    "embedding_dropout": 0.3,
    "stochastic_depth": 0.5,
}


@pytest.mark.parametrize(
    ("fields", "read"),
    [
        pytest.param(
            DROPS
            | {"pos_embed": "relative", "registers": 3, "layer_scale": 0.5, "norm_after_pooling": True}
            | {"remat": "full"},
            1,
            marks=pytest.mark.slow,
        ),
        (DROPS | {"pos_embed": "relative_bias", "distillation_token": True}, 2),
    ],
)
def test_the_last_block_computes_only_the_tokens_that_the_head_reads_and_changes_nothing(fields, read):
    model, images = tiny(depth=2, num_classes=3, **fields), IMAGES[:2]
    params = random_params(model, images, train=False)
    seen = []  # tokens that the last block's MLP gave

    def note(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if context.module.name == "MlpBlock_3" and context.module.path[-2] == "encoderblock_1":
            seen.append(y.shape[1])
        return y

    @partial(quick.jit, static_argnums=1)
    def loss(params, mutable):
        def mean(params):
            forward = partial(model.apply, train=True, rngs={"dropout": KEY}, mutable=mutable)
            output, changed = forward({"params": params}, images)
            return (output**2).mean() + sum((x**2).mean() for x in jax.tree.leaves(changed.get("distillation", {})))

        return jax.value_and_grad(mean)(params)

    with nn.intercept_methods(note):
        alone, whole = loss(params, ("distillation",)), loss(params, ("distillation", "intermediates"))
    patches = (IMAGES.shape[1] // 7) * (IMAGES.shape[2] // 5)
    assert set(seen) == {read, read + patches + model.registers}
    for ours, expected in zip(jax.tree.leaves(alone), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def perturbations(model: ViT) -> dict:
    """Those of zero, at which gradients are taken."""
    shapes = jax.eval_shape(partial(model.init, train=False), KEY, IMAGES)["perturbations"]
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)


def test_gradients_of_tokens_are_those_of_all_tokens():
    model = tiny(num_classes=3)
    params = jax.tree.map(jnp.asarray, random_params(model, IMAGES, train=False))

    def total(given):
        return model.apply({"params": params, "perturbations": given}, IMAGES, train=False).sum()

    grads = quick.jit(jax.grad(total))(perturbations(model))["Transformer"]["encoderblock_0"]
    tokens, attention = grads["tokens"], grads["MultiHeadDotProductAttention_1"]["attention"]
    assert tokens.shape == (5, 7, 8) and attention.shape == (5, 2, 7, 7)
    assert jnp.abs(tokens[:, 0]).min() > 0 and not tokens[:, 1:].any()


def test_tokens_are_class_token_registers_patches_and_only_patches_and_class_token_have_positions():
    model = tiny(registers=2, pooling="none")
    params = random_params(model, IMAGES, train=False)
    block = params["Transformer"]["encoderblock_0"]
    silence(block)
    patches = np.asarray(IMAGES).reshape(5, 2, 7, 3, 5, 3).transpose(0, 1, 3, 2, 4, 5).reshape(5, 6, 7 * 5 * 3)
    patches = patches @ params["embedding"]["kernel"].reshape(-1, 8) + params["embedding"]["bias"]
    table = params["Transformer"]["posembed_input"]["pos_embedding"]
    expected = np.concatenate(
        [
            np.repeat(params["cls"] + table[:, :1], 5, 0),
            np.repeat(params["Transformer"]["registers"], 5, 0),
            patches + table[:, 1:],
        ],
        axis=1,
    )
    apply = quick.jit(partial(model.apply, train=False, mutable="intermediates"))
    _, sown = apply({"params": params}, IMAGES)
    tokens = sown["intermediates"]["Transformer"]["encoderblock_0"]["tokens"][0]
    np.testing.assert_allclose(tokens, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["token", "gap", "flatten", "none", "map"])
def test_pooling_reads_its_tokens_only(pooling):
    model = tiny(registers=2, pooling=pooling)
    params = random_params(model, IMAGES, train=False)
    features, tokens = output_and_tokens(model, params, IMAGES)
    patches = tokens[:, 3:]  # after the class token and two registers
    assert tokens.shape == (5, 9, 8)
    expected = {"token": tokens[:, 0], "gap": patches.mean(1), "flatten": patches.reshape(5, 48), "none": patches}
    if pooling == "map":
        params = jax.tree.map(jnp.asarray, params["MAPHead_0"])
        pooled = quick.jit(partial(MAPHead(2, 11).apply, train=False))
        expected["map"] = pooled({"params": params}, patches, KEY)
    np.testing.assert_allclose(features, expected[pooling], rtol=1e-4, atol=1e-5)


def test_head_is_tanh_then_hidden_layers_then_logits():
    model = tiny(pre_logits=5, head_widths=(7, 3), num_classes=13)
    params = random_params(model, IMAGES, train=False)
    logits, tokens = output_and_tokens(model, params, IMAGES)
    x = np.tanh(tokens[:, 0] @ params["pre_logits"]["kernel"] + params["pre_logits"]["bias"])
    for name in ("head_hidden_0", "head_hidden_1"):
        x = x @ params[name]["kernel"] + params[name]["bias"]
        x = np.asarray(nn.gelu(x, approximate=False))
    np.testing.assert_allclose(logits, x @ params["head"]["kernel"] + params["head"]["bias"], rtol=1e-4, atol=1e-5)
    assert x.shape == (5, 3)


def test_a_new_models_parameters():
    model = tiny(num_classes=13, head_bias=-2.5, layer_scale=0.25, registers=2)

    @quick.jit  # of the rest of the initialisation nothing is compiled
    def some(key):
        params = model.init(key, IMAGES, train=False)["params"]
        block, table = params["Transformer"]["encoderblock_0"], params["Transformer"]["posembed_input"]
        xavier = tiny(num_classes=13, zero_head=False).init(key, IMAGES, train=False)["params"]["head"]["kernel"]
        return params["cls"], params["head"], block["LayerScale_1"]["scale"], table["pos_embedding"], xavier

    cls, head, scale, table, xavier = some(KEY)
    np.testing.assert_array_equal(cls, 0)
    np.testing.assert_array_equal(head["kernel"], 0)
    np.testing.assert_array_equal(head["bias"], -2.5)
    np.testing.assert_array_equal(scale, 0.25)
    assert 0.01 < table.std() < 0.03
    limit = np.sqrt(6 / (8 + 13))
    assert 0.9 * limit < np.abs(xavier).max() <= limit


@pytest.mark.parametrize(
    ("pos_embed", "names"),
    [
        ("learned", {"Transformer/posembed_input/pos_embedding": (1, 7, 8)}),
        (
            "learned_2d",
            {"Transformer/posembed_input/x_embedding": (3, 4), "Transformer/posembed_input/y_embedding": (2, 4)},
        ),
        ("sincos2d", {}),
        ("none", {}),
        ("relative", {"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/relative_embedding": (13, 4)}),
        ("relative_bias", {"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/relative_bias": (3, 5, 2)}),
    ],
)
def test_each_kind_of_positions_has_its_tables_and_no_others(pos_embed, names):
    bare = parameter_shapes(tiny(pos_embed="none"), IMAGES)
    assert parameter_shapes(tiny(pos_embed=pos_embed), IMAGES) == bare | names
    assert not bare.keys() & names.keys()


def test_each_rate_reaches_its_place(monkeypatch):
    rates = {"dropout": 0.1, "projection_dropout": 0.2, "attention_dropout": 0.3, "embedding_dropout": 0.4}
    model = tiny(**rates, head_dropout=0.5, head_widths=(7,), num_classes=13, depth=2)
    variables = {"params": random_params(model, IMAGES, train=False)}
    seen = []

    def spy(x, rate, rng, *, train, num_tokens=0):
        assert train
        *n, l, c = x.shape
        seen.append((rate, (*n, num_tokens or l, c)))  # of all, where only the head's are computed
        return x

    for module in (attention, head, layers, vit):
        monkeypatch.setattr(module, "dropout", spy)
    jax.eval_shape(partial(model.apply, train=True, rngs={"dropout": KEY}), variables, IMAGES)
    block = [(0.3, (5, 2, 7, 7)), (0.2, (5, 7, 8)), (0.1, (5, 7, 11)), (0.1, (5, 7, 8))]
    assert seen == [(0.4, (5, 7, 8)), *block, *block, (0.5, (5, 8)), (0.5, (5, 7))]


@pytest.mark.parametrize("schedule", ["linear", "uniform"])
def test_stochastic_depth_drops_images_independently_in_each_layer(schedule):
    n = 997
    fields = {"stochastic_depth": 0.6, "stochastic_depth_schedule": schedule}
    model = ViT(patch_size=(1,), width=2, depth=3, mlp_dim=3, num_heads=1, pooling="gap", **fields)
    images = jnp.asarray(np.random.default_rng(9).normal(size=(n, 1, 1, 1)), jnp.float32)
    params = random_params(model, images, train=False)
    for i in range(3):  # the attention branch adds nothing, so that only the MLP's shows
        out = params["Transformer"][f"encoderblock_{i}"]["MultiHeadDotProductAttention_1"]["out"]
        out.update(jax.tree.map(np.zeros_like, out))

    @partial(quick.jit, static_argnames="train")
    def tokens(params, images, train):
        apply = partial(model.apply, train=train, rngs={"dropout": KEY}, mutable="intermediates")
        sown = apply({"params": params}, images)[1]["intermediates"]["Transformer"]
        return jnp.stack([sown[f"encoderblock_{i}"]["tokens"][0] for i in range(3)])

    evaluated, trained = np.asarray(tokens(params, images, False)), np.asarray(tokens(params, images, True))
    dropped = (trained[1:] == trained[:-1]).all(axis=(2, 3))
    first, second = (0.3, 0.6) if schedule == "linear" else (0.6, 0.6)
    found = [dropped[0].mean(), dropped[1].mean(), (dropped[0] & dropped[1]).mean()]
    for share, rate in zip(found, (first, second, first * second), strict=True):
        assert abs(share - rate) < 5 * (rate * (1 - rate) / n) ** 0.5  # 5 standard deviations
    if schedule == "uniform":
        assert (trained[0] != evaluated[0]).any(axis=(1, 2)).all()  # layer 0 drops, too, and scales what it keeps
        return
    np.testing.assert_array_equal(trained[0], evaluated[0])  # layer 0 never drops
    added, expected = trained[1] - trained[0], (evaluated[1] - evaluated[0]) / 0.7
    np.testing.assert_allclose(added[~dropped[0]], expected[~dropped[0]], rtol=1e-3, atol=1e-5)


def test_check_accepts_what_fits():
    models = tiny(), tiny(num_heads=3, head_dim=5), tiny(class_token=False, pooling="gap", pos_embed="sincos2d")
    assert [model.check(SHAPE) for model in models] == [None] * 3


@pytest.fixture(scope="module")
def looks():
    """The looped and the scanned model's `look`, and its starting point: perturbations of zero."""
    looped = tiny(depth=3, num_classes=13, qk_norm=True, head_dim=5)
    params = jax.tree.map(jnp.asarray, random_params(looped, IMAGES, train=False))
    return [look(looped, params), look(looped.clone(scan=True), trees.stack_layers(params))]


def look(model: ViT, params: dict):
    """`perturbations -> (gradients of the third logits' sum, (logits, what is sown in the encoder))`, compiled."""

    def third_logit(given):
        variables = {"params": params, "perturbations": given}
        logits, sown = model.apply(variables, IMAGES, train=False, mutable="intermediates")
        return logits[:, 2].sum(), (logits, sown["intermediates"]["Transformer"])

    return quick.jit(jax.grad(third_logit, has_aux=True)), perturbations(model)


def test_tokens_and_attention_are_sown_per_layer(looks):
    (looped, zeros), (scanned, stacked_zeros) = looks
    (_, (_, sown)), (_, (_, stacked)) = looped(zeros), scanned(stacked_zeros)
    blocks = [sown[f"encoderblock_{i}"] for i in range(3)]
    tokens = np.stack([block["tokens"][0] for block in blocks])
    attention = np.stack([block["MultiHeadDotProductAttention_1"]["attention"][0] for block in blocks])
    assert tokens.shape == (3, 5, 7, 8) and attention.shape == (3, 5, 2, 7, 7)
    np.testing.assert_allclose(attention.sum(-1), 1, rtol=1e-5)
    assert not np.allclose(attention, 1 / 7, atol=0.05)
    np.testing.assert_allclose(stacked["encoderblock"]["tokens"][0], tokens, rtol=1e-5, atol=1e-5)
    found = stacked["encoderblock"]["MultiHeadDotProductAttention_1"]["attention"][0]
    np.testing.assert_allclose(found, attention, rtol=1e-5, atol=1e-6)


def test_gradients_by_attention_and_tokens_are_alike_in_loop_and_scan(looks):
    (looped, zeros), (scanned, stacked_zeros) = looks
    gradients, stacked = looped(zeros)[0], scanned(stacked_zeros)[0]
    expected = trees.stack_layers(jax.tree.map(np.asarray, gradients))
    assert trees.names(expected) == trees.names(stacked)
    for found, wanted in zip(jax.tree.leaves(stacked), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_the_gradient_by_attention_is_the_logits_slope(looks):
    looped, zeros = looks[0]
    place, h = (1, 0, 0, 3), 1e-2  # an image, a head, the class token's attention to a patch

    def perturbed(by: float) -> dict:
        changed = jax.tree.map(np.copy, zeros)
        block = changed["Transformer"]["encoderblock_2"]
        block["MultiHeadDotProductAttention_1"]["attention"][place] = by
        return changed

    gradients, (logits, _) = looped(zeros)
    block = gradients["Transformer"]["encoderblock_2"]
    gradient = block["MultiHeadDotProductAttention_1"]["attention"][place]
    above, below = (looped(perturbed(by))[1][0] for by in (h, -h))
    assert abs(gradient) > 1e-2
    np.testing.assert_allclose((above - below)[1, 2] / (2 * h), gradient, rtol=1e-2)
    np.testing.assert_array_equal(np.delete(above, 1, 0), np.delete(logits, 1, 0))  # the other images
