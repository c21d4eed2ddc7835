"""MLP-Mixer against a few lines of NumPy, its published sizes, stochastic depth and rematerialisation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from tests import quick
from tests.models.random_params import random_params
from vit_jax.models import layers
from vit_jax.models.mixer import Mixer

KEY = jax.random.key(0)
SHAPE = (14, 15, 3)  # with 7x5 patches 6 tokens
IMAGES = jnp.asarray(np.random.default_rng(5).normal(size=(5, *SHAPE)), jnp.float32)
TINY = {"patch_size": (7, 5), "width": 8, "depth": 2, "token_mlp_dim": 11, "channel_mlp_dim": 17}


def tiny(**fields) -> Mixer:
    return Mixer(**{**TINY, **fields})


def test_kernels_and_biases_start_as_the_authors():
    """lecun-normal, of zero biases; a ViT's MLPs start otherwise."""
    model = tiny(token_mlp_dim=97, channel_mlp_dim=101, depth=1)
    params = quick.jit(partial(model.init, train=False))(KEY, IMAGES[:1])["params"]["MixerBlock_0"]
    for mlp in (params["token_mixing"], params["channel_mixing"]):
        for dense in (mlp["Dense_0"], mlp["Dense_1"]):
            kernel = np.asarray(dense["kernel"])
            assert abs(kernel.std() * len(kernel) ** 0.5 - 1) < 5 / (2 * kernel.size) ** 0.5
            assert not dense["bias"].any()


def norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def mlp(x, p):
    y = x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    y = y * (1 + erf(y / np.sqrt(2))) / 2
    return y @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def reference(p: dict, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and the tokens after the last block."""
    x = images.reshape(5, 2, 7, 3, 5, 3).transpose(0, 1, 3, 2, 4, 5).reshape(5, 6, 7 * 5 * 3)
    x = x @ p["stem"]["kernel"].reshape(-1, 8) + p["stem"]["bias"]
    for i in range(2):
        block = p[f"MixerBlock_{i}"]
        mixed = [mlp(norm(x, block["LayerNorm_0"])[:, :, c], block["token_mixing"]) for c in range(8)]
        x = x + np.stack(mixed, axis=-1)
        x = x + mlp(norm(x, block["LayerNorm_1"]), block["channel_mixing"])
    return norm(x, p["pre_head_layer_norm"]).mean(1) @ p["head"]["kernel"] + p["head"]["bias"], x


def test_it_is_the_reference():
    model = tiny(num_classes=13)
    params = random_params(model, IMAGES, train=False)
    apply = quick.jit(partial(model.apply, train=False, mutable="intermediates"))
    logits, sown = apply({"params": params}, IMAGES)
    expected, tokens = reference(params, np.asarray(IMAGES, np.float64))
    np.testing.assert_allclose(sown["intermediates"]["MixerBlock_1"]["tokens"][0], tokens, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_without_classes_it_returns_features_and_a_new_head_is_silent_but_for_its_bias():
    features, _ = jax.eval_shape(partial(tiny().init_with_output, train=False), KEY, IMAGES)
    assert features.shape == (5, 8)

    @quick.jit  # of the rest of the initialisation nothing is compiled
    def heads(key):
        models = (tiny(num_classes=13, head_bias=-2.5), tiny(num_classes=13, zero_head=False))
        return [model.init(key, IMAGES, train=False)["params"]["head"] for model in models]

    zero, xavier = heads(KEY)
    np.testing.assert_array_equal(zero["kernel"], 0)
    np.testing.assert_array_equal(zero["bias"], -2.5)
    assert np.abs(xavier["kernel"]).max() > 0.3


def test_dropout_follows_both_layers_of_both_mlps(monkeypatch):
    model, seen = tiny(dropout=0.1, depth=1), []
    variables = {"params": random_params(model, IMAGES, train=False)}

    def spy(x, rate, rng, *, train, num_tokens):
        assert not num_tokens
        seen.append((rate, x.shape, train))
        return x

    monkeypatch.setattr(layers, "dropout", spy)
    jax.eval_shape(partial(model.apply, train=True, rngs={"dropout": KEY}), variables, IMAGES)
    assert seen == [(0.1, shape, True) for shape in ((5, 8, 11), (5, 8, 6), (5, 6, 17), (5, 6, 8))]


def test_stochastic_depth_grows_from_0_and_drops_whole_images():
    n = 997
    model = tiny(patch_size=(1,), width=2, depth=3, stochastic_depth=0.6)
    images = jnp.asarray(np.random.default_rng(9).normal(size=(n, 1, 2, 1)), jnp.float32)
    params = random_params(model, images, train=False)
    for i in range(3):  # the tokens' branch adds nothing, so that only the channels' shows
        out = params[f"MixerBlock_{i}"]["token_mixing"]["Dense_1"]
        out.update(jax.tree.map(np.zeros_like, out))

    @partial(quick.jit, static_argnames="train")
    def tokens(params, train):
        apply = partial(model.apply, train=train, rngs={"dropout": KEY}, mutable="intermediates")
        sown = apply({"params": params}, images)[1]["intermediates"]
        return jnp.stack([sown[f"MixerBlock_{i}"]["tokens"][0] for i in range(3)])

    evaluated, trained = np.asarray(tokens(params, False)), np.asarray(tokens(params, True))
    np.testing.assert_array_equal(trained[0], evaluated[0])  # block 0 never drops
    dropped = (trained[1:] == trained[:-1]).all(axis=(2, 3))
    assert abs(dropped[0].mean() - 0.3) < 0.07 and abs(dropped[1].mean() - 0.6) < 0.08  # 5 standard deviations
    assert abs((dropped[0] & dropped[1]).mean() - 0.18) < 0.06  # independently
    added, expected = trained[1] - trained[0], (evaluated[1] - evaluated[0]) / 0.7
    np.testing.assert_allclose(added[~dropped[0]], expected[~dropped[0]], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_recomputing_changes_no_gradient():
    params = random_params(tiny(depth=1), IMAGES, train=False)

    def traced(remat):
        def loss(params):
            model = tiny(depth=1, dropout=0.3, remat=remat)
            return (model.apply({"params": params}, IMAGES, train=True, rngs={"dropout": KEY}) ** 2).sum()

        return quick.jit(jax.grad(loss)).trace(params)

    plain, dots, full = map(traced, ("none", "dots", "full"))
    assert ["remat" in str(each.jaxpr) for each in (plain, dots, full)] == [False, True, True]
    expected = plain.lower().compile()(params)
    for each in (dots, full):
        found = each.lower().compile()(params)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)
