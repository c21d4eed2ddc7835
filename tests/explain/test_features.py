"""Components, norms, planes, position embeddings and filters against what was put in."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.explain import planted
from vit_jax.explain import features
from vit_jax.explain.methods import network_of
from vit_jax.explain.parameters import first_kernel

RNG = np.random.default_rng(0)


def test_the_main_component_is_the_first_colour():
    direction = RNG.normal(size=11)
    amount = RNG.random((2, 3, 5)) * 100
    found = features.main_colours(amount[..., None] * direction + RNG.normal(size=(2, 3, 5, 11)) * 1e-2)
    assert found.shape == (2, 3, 5, 3) and found.min() == 0 and found.max() == 1
    assert abs(np.corrcoef(found[..., 0].ravel(), amount.ravel())[0, 1]) > 0.99


def test_long_tokens_are_artefacts():
    norms = RNG.uniform(4, 6, (2, 7, 9)).astype(np.float32)
    assert not features.artefacts(norms).any()
    norms[1, 3, 5] = norms[0, 0, 1] = 40
    assert np.argwhere(features.artefacts(norms)).tolist() == [[0, 0, 1], [1, 3, 5]]


def test_similar_images_are_near():
    groups = np.concatenate([RNG.normal(size=(9, 13)), RNG.normal(size=(9, 13)) + 20])
    found = features.neighbours(groups.astype(np.float32))
    apart = np.linalg.norm(found[:, None] - found[None], axis=-1) + np.eye(18) * 1e9
    assert ((apart.argmin(axis=1) < 9) == (np.arange(18) < 9)).all()


def test_norms_are_those_of_the_last_block():
    model, pixels = planted.trained("class_token"), planted.images(3, 3)[0]
    tokens = model.features(pixels, layers=(-1,))[-1][:, 1:]
    expected = np.linalg.norm(tokens, axis=-1).reshape(3, 4, 4)
    np.testing.assert_allclose(model.explain(pixels, "norms"), expected, rtol=1e-4)


def test_positions_are_compared_by_their_cosines():
    model = planted.trained("class_token")
    found = model.explain([], "positions")
    table = np.asarray(model.variables["params"]["Transformer"]["posembed_input"]["pos_embedding"])[0, 1:]
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    np.testing.assert_allclose(found, (unit @ unit.T).reshape(4, 4, 4, 4), atol=1e-5)


@pytest.mark.parametrize("kind, name", [("class_token", "embedding"), ("cnn", "stage0_conv0")])
def test_filters(kind, name):
    model = planted.trained(kind)
    kernel = np.asarray(model.variables["params"][name]["kernel"])
    np.testing.assert_array_equal(first_kernel(network_of(model), jnp.zeros((1, 16, 16, 3))), kernel)
    found = model.explain([], "filters")
    if kind == "cnn":
        np.testing.assert_array_equal(found, np.moveaxis(kernel, -1, 0))
    else:
        flat = found.reshape(len(found), -1)
        np.testing.assert_allclose(flat @ flat.T, np.eye(len(found)), atol=1e-4)  # components are orthogonal
        centred = kernel.reshape(48, -1).T - kernel.reshape(48, -1).T.mean(axis=0)
        assert np.linalg.norm(centred @ flat[0]) == pytest.approx(np.linalg.norm(centred, 2), rel=1e-4)
