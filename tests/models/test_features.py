"""Every model gives one vector for each place of an image; a ViT computes only those that it is asked for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.models.maps import random_variables
from tests.models.random_params import random_params, silence
from tests.models.small import SMALL, small
from vit_jax.command import UserError
from vit_jax.models.features import Features

KEY = jax.random.key(0)
IMAGES = jax.random.normal(jax.random.key(1), (3, 32, 48, 3))
SHAPES = {  # prefix tokens, grid, width
    "vit": (4, (4, 6), 32),
    "deit": (2, (4, 3), 8),
    "compact": (0, (8, 12), 8),
    "vit_lite": (1, (4, 6), 8),
    "mixer": (0, (2, 3), 8),
    "hybrid": (1, (4, 6), 8),
    "cnn": (0, (16, 24), 7),
    "resnet": (0, (4, 6), 64),
    "resnetv2": (0, (4, 6), 64),
    "bit": (0, (4, 6), 256),
    "visual_transformer": (16, (16, 24), 128),
}


def features(model, variables, **options) -> Features:
    """Computed without optimisations."""

    @quick.jit
    def apply(variables):
        return model.apply(variables, IMAGES, **{"train": False, "method": "features"} | options)

    return apply(variables)


def variables_of(model):
    return {"params": jax.tree.map(jnp.asarray, random_params(model, IMAGES, train=False))}


@pytest.mark.parametrize("family", SMALL)
def test_each_family_has_them_and_no_head(family):
    model = small(family)
    p, grid, d = SHAPES[family]
    whole = jax.eval_shape(partial(model.init, train=False), KEY, IMAGES)
    found = jax.eval_shape(partial(model.apply, train=False, method="features"), whole, IMAGES)
    assert (found.prefix.shape, found.patches.shape, found.grid) == ((3, p, d), (3, grid[0] * grid[1], d), grid)
    alone = jax.eval_shape(partial(model.init, train=False, method="features"), KEY, IMAGES)
    assert jax.tree.map(jnp.shape, alone["params"]).items() <= jax.tree.map(jnp.shape, whole["params"]).items()
    assert "head" in whole["params"] and "head" not in alone["params"]


@pytest.mark.parametrize("family", ["vit", "deit", "vit_lite", "compact"])
def test_all_patches_in_another_order_give_the_same_in_that_order(family):
    model = small(family)
    variables = variables_of(model)
    found = features(model, variables)
    l = found.patches.shape[1]
    order = jax.vmap(lambda key: jax.random.permutation(key, l))(jax.random.split(KEY, 3))
    turned = features(model, variables, keep=order)
    assert turned.grid == found.grid
    np.testing.assert_allclose(turned.prefix, found.prefix, rtol=1e-3, atol=1e-4)
    expected = jnp.take_along_axis(found.patches, order[..., None], axis=1)
    np.testing.assert_allclose(turned.patches, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pos_embed", ["learned", "learned_2d", "sincos2d"])
def test_the_patches_kept_are_all_that_is_computed_and_have_their_positions(pos_embed):
    """A block that adds nothing leaves patch plus position; other patches of the image then change nothing."""
    model = small("vit", pos_embed=pos_embed)
    variables, keep = variables_of(model), jnp.asarray([[5, 0], [23, 7], [1, 2]])
    kept = quick.jit(partial(model.apply, train=False, method="features"))
    found = kept(variables, IMAGES, keep=keep)
    assert found.prefix.shape == (3, 4, 32) and found.patches.shape == (3, 2, 32) and found.grid == (4, 6)
    visible = jnp.zeros((3, 24)).at[jnp.arange(3)[:, None], keep].set(1).reshape(3, 4, 1, 6, 1, 1)
    hidden = (IMAGES.reshape(3, 4, 8, 6, 8, 3) * visible).reshape(IMAGES.shape)
    same = kept(variables, hidden, keep=keep)
    np.testing.assert_allclose(same.patches, found.patches, rtol=1e-4, atol=1e-5)

    encoder = variables["params"]["Transformer"]
    for i in range(2):
        silence(encoder[f"encoderblock_{i}"])
    silent = features(model, variables)
    expected = jnp.take_along_axis(silent.patches, keep[..., None], axis=1)
    np.testing.assert_allclose(kept(variables, IMAGES, keep=keep).patches, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pos_embed", ["relative", "relative_bias"])
def test_positions_between_all_patches_need_all(pos_embed):
    model = small("vit", pos_embed=pos_embed)
    with pytest.raises(UserError, match=f"keep= leaves out patches, but model.pos_embed='{pos_embed}' needs all"):
        jax.eval_shape(partial(model.init, train=False, method="features"), KEY, IMAGES, keep=jnp.zeros((3, 1), int))


@pytest.mark.parametrize("family", ["cnn", "resnet", "mixer", "visual_transformer"])
def test_other_models_compute_every_place(family):
    with pytest.raises(UserError, match="computes all places of an image; keep= needs a ViT"):
        small(family).init(KEY, IMAGES, train=False, method="features", keep=jnp.zeros((3, 1), int))


def test_the_head_reads_them():
    for family, pooled in (
        ("vit", lambda f: f.prefix[:, 0]),
        ("cnn", lambda f: f.patches.reshape(3, -1)),
        ("resnet", lambda f: f.patches.mean(1)),
        ("visual_transformer", lambda f: f.prefix.mean(1)),
    ):
        model = small(family, **({"dense_widths": ()} if family == "cnn" else {}))
        variables = jax.tree.map(jnp.asarray, random_variables(model, IMAGES))
        head = variables["params"]["head"]

        def logits_and_features(variables, model=model):
            apply = partial(model.apply, variables, IMAGES, train=False)
            return apply(), apply(method="features")

        logits, found = quick.jit(logits_and_features)(variables)
        expected = pooled(found) @ head["kernel"] + head["bias"][None]
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_training_draws_dropout_and_keeps_statistics():
    model = small("vit", dropout=0.5)
    variables = variables_of(model)
    apply = partial(model.apply, variables, IMAGES, train=True, method="features")
    drawn = quick.jit(lambda key: apply(rngs={"dropout": key}))
    first, second = (drawn(jax.random.key(i)) for i in (0, 1))
    assert np.abs(first.patches - second.patches).max() > 0.01
    model = small("resnet")
    whole = jax.eval_shape(partial(model.init, train=False), KEY, IMAGES)
    rngs = {"dropout": jax.random.key(0)}
    _, changed = jax.eval_shape(
        partial(model.apply, train=True, method="features", mutable="batch_stats", rngs=rngs), whole, IMAGES
    )
    assert changed["batch_stats"]
