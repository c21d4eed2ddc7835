"""Every optimizer against its formula in NumPy; which parameters decay; layers that are stacked."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from tests.optim.formulas import FORMULAS, nesterov
from tests.optim.small import EVERY, FINE_TUNING, MODEL, SETTINGS, named, random_tree, train
from vit_jax import checkpoint, trees
from vit_jax.optim import Settings

SHAPES = {"head": {"kernel": (131, 137), "bias": (5,)}, "stem": {"kernel": (3, 2, 7)}}


@pytest.mark.parametrize("stacked", [False, True], ids=["looped", "scanned"])
def test_exactly_the_kernels_decay(parameters, stacked):
    parameters = jax.eval_shape(trees.stack_layers, parameters) if stacked else parameters
    mask = trees.mask(parameters, Settings().decay)
    decays = dict(zip(trees.names(mask), jax.tree.leaves(mask), strict=True))
    assert {name.rsplit("/", 1)[-1] for name in decays if decays[name]} == {"kernel"}
    rest = {"bias", "scale", "cls", "registers", "pos_embedding", "probe"}
    assert {name.rsplit("/", 1)[-1] for name in decays if not decays[name]} == rest
    assert all(jax.tree.leaves(trees.mask(parameters, ".*")))


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_what_decays_is_found_by_the_path_of_a_looped_model(name):
    settings = dataclasses.replace(SETTINGS, name=name, decay=r"^Transformer/encoderblock_\d+/.*bias$")
    params, gradients = random_tree(MODEL, 0), [random_tree(MODEL, 1)]
    looped, _ = train(settings, params, gradients)
    stacked, _ = train(settings, trees.stack_layers(params), list(map(trees.stack_layers, gradients)))
    plain, _ = train(dataclasses.replace(settings, decay="(?!)"), params, gradients)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), trees.unstack_layers(stacked), looped)
    for path, moved in named(jax.tree.map(lambda a, b: bool((a != b).any()), looped, plain)):
        assert moved == ("encoderblock" in path and path.endswith("bias")), path


def test_there_is_a_formula_for_every_optimizer():
    assert {formula.__name__ for formula in FORMULAS} - {"nesterov"} == set(EVERY)


@pytest.mark.parametrize("formula", FORMULAS)
def test_an_optimizer_follows_its_formula(formula):
    name = "sgd" if formula is nesterov else formula.__name__
    settings = dataclasses.replace(SETTINGS, name=name, nesterov=formula is nesterov)
    params, gradients = random_tree(SHAPES, 0), [random_tree(SHAPES, seed) for seed in (1, 2, 3)]
    found, _ = train(settings, params, gradients)

    def by_hand(name, p, *gradients):
        p, memory, decay = p.astype(np.float64), {}, 0.3 if name.endswith("kernel") else 0
        for t, g in enumerate(gradients, 1):
            lr = 0.1 * (1 - (t - 1) / 7)
            p = p - lr * formula(g.astype(np.float64), p, decay, memory, t)
        return p

    expected = trees.map_with_name(by_hand, params, *gradients)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *((name, {}) for name in EVERY),
        ("adamw", {"cautious": True}),
        *((name, FINE_TUNING) for name in ("adamw", "lamb", "adafactor")),
    ],
)
def test_stacked_layers_get_the_updates_of_separate_ones(name, fields):
    settings = dataclasses.replace(SETTINGS, name=name, clip_norm=1.0, **fields)
    scale = {f"encoderblock_{i}": 10.0**i for i in range(3)}  # a norm over all layers would differ from each layer's

    def scaled(tree):
        return trees.map_with_name(lambda path, x: x * np.float32(scale.get(path.split("/")[1], 1)), tree)

    params, gradients = random_tree(MODEL, 0), [scaled(random_tree(MODEL, seed)) for seed in (1, 2, 3)]
    looped, looped_state = train(settings, scaled(params), gradients)
    stacked, stacked_state = train(
        settings, trees.stack_layers(scaled(params)), list(map(trees.stack_layers, gradients))
    )

    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    assert "encoderblock" in stacked["Transformer"]
    jax.tree.map(close, trees.unstack_layers(stacked), looped)
    expected, found = checkpoint.canonical(looped_state), checkpoint.canonical(stacked_state)
    assert dict(zip(trees.names(found), jax.tree.leaves(found), strict=True)).keys() == set(trees.names(expected))
    jax.tree.map(close, *map(checkpoint._without_empty, (found, expected)))
