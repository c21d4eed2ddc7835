"""Clipping, and which parameters train when and how fast."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import quick
from tests.optim.formulas import adamw
from tests.optim.small import GRADIENTS, NAMES, SETTINGS, SMALL, named, random_tree, same, train
from vit_jax import checkpoint, optim, trees
from vit_jax.optim import Settings


def test_gradients_are_clipped_by_their_global_norm():
    settings = Settings(name="sgd", momentum=0.0, lr=1.0, schedule="constant", clip_norm=2.5)
    zeros = {"a": np.zeros(2, np.float32), "b": np.zeros((1, 1), np.float32)}
    large = {"a": np.float32([3, 0]), "b": np.float32([[4]])}  # norm 5: halved
    small = {"a": np.float32([1.5, 0]), "b": np.float32([[2]])}  # norm 2.5: as it is
    for gradient in (large, small):
        params, _ = train(settings, zeros, [gradient])
        np.testing.assert_allclose(params["a"], [-1.5, 0], rtol=1e-6)
        np.testing.assert_allclose(params["b"], [[-2]], rtol=1e-6)
    params, _ = train(dataclasses.replace(settings, clip_norm=0.0), zeros, [large])
    np.testing.assert_allclose(params["b"], [[-4]])


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
def test_what_is_not_frozen_trains_as_if_it_were_alone(name):
    settings = dataclasses.replace(SETTINGS, name=name, clip_norm=1.0, freeze="^(Transformer|embedding)/")
    params = random_tree(SMALL, 0)
    found, state = train(settings, params, GRADIENTS)
    alone = [{"head": gradient["head"]} for gradient in GRADIENTS]  # clipped by its own norm
    expected, _ = train(dataclasses.replace(settings, freeze=""), {"head": params["head"]}, alone)
    same(found["head"], expected["head"])
    same({**found, "head": 0}, {**params, "head": 0})
    assert not [path for path in trees.names(state) if "Transformer" in path or "embedding" in path]


def test_a_linear_probe_is_a_run_with_all_but_the_last_layer_frozen():
    params = random_tree({**SMALL, "head_hidden_0": {"kernel": (7, 7)}}, 0)
    gradients = [{**gradient, "head_hidden_0": params["head_hidden_0"]} for gradient in GRADIENTS]
    settings = dataclasses.replace(SETTINGS, weight_decay=0.3, decay=".*", freeze=r"^(?!head/)")
    found, _ = train(settings, params, gradients)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), found, params)
    assert {name.split("/")[0] for name, moved in named(changed) if moved} == {"head"}
    assert all(moved for name, moved in named(changed) if name.startswith("head/"))


def test_the_head_trains_alone_first_and_the_rest_begins_anew_behind_it():
    settings = dataclasses.replace(SETTINGS, name="adamw", head_warmup_steps=2, clip_norm=0.7)
    params = random_tree(SMALL, 0)
    warm, state = train(settings, params, GRADIENTS[:2])
    alone = [{"head": gradient["head"]} for gradient in GRADIENTS[:2]]  # clipped by its own norm
    expected, _ = train(dataclasses.replace(settings, head_warmup_steps=0), {"head": params["head"]}, alone)
    same(warm["head"], expected["head"])
    same({**warm, "head": 0}, {**params, "head": 0})
    assert not any(np.any(leaf) for path, leaf in named(state) if "Transformer" in path)

    norms = [np.sqrt(sum(float(np.sum(np.square(x))) for x in jax.tree.leaves(g))) for g in GRADIENTS[2:]]
    p, memory = params["embedding"]["kernel"].astype(np.float64), {}
    for t, (gradient, norm) in enumerate(zip(GRADIENTS[2:], norms, strict=True), 1):
        lr = 0.1 * (1 - (t + 1) / 7)  # of the run's step; Adam counts from 1 again
        p = p - lr * adamw(gradient["embedding"]["kernel"] * 0.7 / norm, p, 0.3, memory, t)
    found, _ = train(settings, params, GRADIENTS)
    np.testing.assert_allclose(found["embedding"]["kernel"], p, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stacked", [False, True], ids=["looped", "scanned"])
def test_a_masked_state_comes_back_from_a_checkpoints_tree_and_goes_on(stacked):
    settings = dataclasses.replace(SETTINGS, freeze=r"^embedding/|Dense_0/bias", head_warmup_steps=1, clip_norm=1.0)
    arrange = trees.stack_layers if stacked else lambda tree: jax.tree.map(jnp.asarray, tree)
    tx = optim.create(settings, **NAMES)
    params = arrange(random_tree(SMALL, 0))
    state = tx.init(params)
    update = quick.jit(tx.update)
    for gradient in GRADIENTS[:2]:
        _, state = update(arrange(gradient), state, params)
    stored = checkpoint._without_empty(checkpoint.canonical({"opt": state}))
    assert not [name for name in trees.names(stored) if "bias" in name.split("Dense_0/")[-1:] or "embedding" in name]
    back = checkpoint.from_canonical(stored, {"opt": jax.eval_shape(tx.init, params)}, None)["opt"]
    assert jax.tree.structure(back) == jax.tree.structure(state)
    same(back, state)
    same(update(arrange(GRADIENTS[2]), back, params), update(arrange(GRADIENTS[2]), state, params))


@pytest.mark.parametrize("stacked", [False, True], ids=["looped", "scanned"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_layer_decay_scales_the_last_update_decay_included(name, stacked):
    arrange = trees.stack_layers if stacked else lambda tree: tree
    params, gradient = arrange(random_tree(SMALL, 0)), arrange(GRADIENTS[0])
    moves = []
    for decay in (0.5, 1.0):
        settings = dataclasses.replace(SETTINGS, name=name, layer_decay=decay)
        tx = optim.create(settings, **NAMES)
        moves.append(trees.unstack_layers(tx.update(gradient, tx.init(params), params)[0]))  # not jitted: no fused sums
    by_hand = {"embedding": 0.125, "encoderblock_0": 0.25, "encoderblock_1": 0.5, "head": 1.0}
    for (path, scaled), whole in zip(named(moves[0]), jax.tree.leaves(moves[1]), strict=True):
        factor = by_hand[path.removeprefix("Transformer/").split("/")[0]]
        np.testing.assert_array_equal(scaled, factor * whole, err_msg=path)  # powers of 2: exact


def test_fine_tunings_defaults_leave_the_state_as_it_was():
    params = random_tree(SMALL, 0)
    found = optim.create(Settings(clip_norm=1.0)).init(params)
    expected = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(0.0, mask=lambda tree: trees.mask(tree, "kernel$")),
    ).init(params)
    assert trees.names(found) == trees.names(expected)
