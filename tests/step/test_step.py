"""What the training step computes: its draws, losses, averages and metrics; a bad update is skipped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import quick
from tests.step.small import (
    ADAMW,
    CALM,
    IMAGES,
    INDICES,
    LABELS,
    NOISY,
    SEED,
    SGD,
    SHAPE,
    VIEW,
    K,
    N,
    assert_close,
    assert_same_bits,
    augmented,
    batch,
    compiled,
    create,
    start,
    task_of,
    train,
)
from vit_jax import step, trees
from vit_jax.step import Purpose, TrainState


def test_keys_differ_by_purpose_step_and_seed():
    keys = [step.rng_for(seed, purpose, at) for seed in (0, 1) for purpose in Purpose for at in (0, 1, 2)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 2 * len(Purpose) * 3
    at = quick.jit(lambda at: step.rng_for(1, Purpose.AUGMENT, at))(jnp.int32(2))
    np.testing.assert_array_equal(jax.random.key_data(at), jax.random.key_data(step.rng_for(1, Purpose.AUGMENT, 2)))


def test_purposes_are_numbered_for_good():
    assert [(purpose.name, purpose.value) for purpose in Purpose][:3] == [("PARAMS", 0), ("AUGMENT", 1), ("DROPOUT", 2)]


def test_the_same_step_repeats_to_the_bit(state, noisy_step):
    assert_same_bits(noisy_step(state, batch(0), {}), noisy_step(state, batch(0), {}))


def test_another_step_draws_another_augmentation(calm_state, calm_step):
    _, now = calm_step(calm_state, batch(0), {})
    _, then = calm_step(calm_state.replace(step=jnp.int32(1)), batch(0), {})
    assert abs(now["loss"] - then["loss"]) > 1e-4


def test_another_step_draws_another_dropout(state, noisy_step, calm_state, calm_step):
    black = batch(0) | {"image": jnp.zeros((N, *SHAPE), jnp.uint8)}  # which no crop or flip changes

    def loss(train_step, state: TrainState, at: int) -> float:
        return float(train_step(state.replace(step=jnp.int32(at)), black, {})[1]["loss"])

    assert loss(calm_step, calm_state, 0) == loss(calm_step, calm_state, 1)
    assert abs(loss(noisy_step, state, 0) - loss(noisy_step, state, 1)) > 1e-3


def test_a_scanned_model_starts_as_its_looped_twin(state):
    model = create(NOISY | {"scan": True})
    scanned = jax.eval_shape(lambda: step.init_variables(model, SEED, SHAPE))
    own = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), train=False)["params"])
    assert trees.names(scanned["params"]) == trees.names(own)
    assert jax.tree.leaves(scanned["params"]) == jax.tree.leaves(own)
    assert trees.names(jax.eval_shape(trees.unstack_layers, scanned)["params"]) == trees.names(state.params)


def test_the_first_state_counts_from_0_and_averages_from_the_parameters(state):
    assert (state.step, state.guard["skipped"], state.guard["in_a_row"]) == (0, 0, 0)
    assert_same_bits(state.ema, {"params": state.params, "batch_stats": {}})
    without = jax.eval_shape(lambda: step.init_state(task_of(create(NOISY)), ADAMW, SEED, ema=False))
    assert without.ema == {}
    assert step.evaluation_variables(without) == {"params": without.params, "batch_stats": {}}
    assert step.evaluation_variables(state) is state.ema


def test_averages_follow_the_parameters(state, noisy_step):
    expected = state.params
    for number in range(2):
        state, _ = noisy_step(state, batch(number), {})
        expected = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, expected, state.params)
    assert_close(state.ema["params"], expected)
    assert state.step == 2


def cross_entropy(logits, labels, smoothing: float) -> float:
    logits = np.asarray(logits, np.float64)
    targets = np.full((N, K), smoothing / K)
    targets[np.arange(N), labels] += 1 - smoothing
    return -(targets * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1).mean()


def test_the_loss_is_the_smoothed_cross_entropy_of_the_augmented_images(calm_state, calm_step):
    model, given = create(CALM), batch(1)
    forward = quick.jit(lambda x: model.apply({"params": calm_state.params}, x, train=False))
    logits = forward(augmented(IMAGES[INDICES[1]], 4))
    _, metrics = calm_step(calm_state.replace(step=jnp.int32(4)), given, {})
    np.testing.assert_allclose(metrics["loss"], cross_entropy(logits, given["label"], 0.1), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(logits.argmax(1) == given["label"]), rtol=1e-6)


def test_metrics_say_what_the_update_was(calm_state, calm_step):
    after, metrics = calm_step(calm_state, batch(0), {})
    np.testing.assert_allclose(metrics["lr"], 0.01)
    np.testing.assert_allclose(metrics["param_norm"], optax.tree.norm(after.params), rtol=1e-6)
    gradient = jax.tree.map(lambda before, after: (before - after) / 0.01, calm_state.params, after.params)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-4)
    assert (metrics["skipped_updates"], metrics["skipped_in_a_row"]) == (0, 0)


def test_evaluation_normalises_and_passes_labels_and_weights_on(state, eval_step):
    weight = np.ones(N, np.float32)
    weight[-2:] = 0  # padding
    given = batch(0) | {"weight": jnp.asarray(weight)}
    variables = step.evaluation_variables(state)
    output = eval_step(variables, given, {})
    np.testing.assert_array_equal(output["label"], LABELS[INDICES[0]])
    np.testing.assert_array_equal(output["weight"], weight)
    normal = (IMAGES[INDICES[0]] / 255 - VIEW.mean) / VIEW.std
    forward = quick.jit(lambda x: create(CALM).apply(variables, x, train=False))
    np.testing.assert_allclose(output["logits"], forward(jnp.asarray(normal, jnp.float32)), rtol=1e-4, atol=1e-5)
    # What stands in the padding does not reach the other rows.
    other = given | {"image": given["image"].at[-2:].set(0)}
    np.testing.assert_array_equal(eval_step(variables, other, {})["logits"][:-2], output["logits"][:-2])


@pytest.mark.parametrize("what", ["nothing", "mixup", "dropout"])
def test_each_part_of_a_batch_draws_for_itself(state, what):
    """Of two parts of the same images: their gradients differ by what each draws, else not at all."""
    view = dataclasses.replace(VIEW, crop_padding=0, flip=0.0, mixup=0.8 if what == "mixup" else 0.0)
    model = create(NOISY if what == "dropout" else CALM)
    twice = {k: jnp.repeat(x[: N // 2], 2, axis=0) for k, x in batch(0).items()}  # part j: rows j, j + 2, ...
    _, metrics = compiled(model, SGD, view=view, accumulate=2)(start(state.params, SGD), twice, {})
    noise = float(metrics["grad_variance"]) / float(metrics["grad_signal"])
    assert abs(noise) < 1e-4 if what == "nothing" else noise > 0.1
    if what == "nothing":
        repeated = compiled(model, SGD, view=view, accumulate=2, independent=False)
        assert "grad_signal" not in jax.eval_shape(repeated, start(state.params, SGD), twice, {})[1]


def assert_skipped(after: TrainState, before: TrainState, metrics: dict) -> None:
    assert_same_bits(after.replace(step=before.step, guard=before.guard), before)
    assert after.step == before.step + 1
    assert after.guard["skipped"] == before.guard["skipped"] + 1 == metrics["skipped_updates"]
    assert after.guard["in_a_row"] == before.guard["in_a_row"] + 1 == metrics["skipped_in_a_row"]


def test_a_gradient_that_is_not_finite_is_skipped_and_counted_until_it_recovers(state, noisy_step):
    good, _ = train(noisy_step, state, 1)
    broken = good.replace(params=good.params | {"head": jax.tree.map(lambda x: x * jnp.nan, good.params["head"])})
    once, metrics = noisy_step(broken, batch(1), {})
    assert_skipped(once, broken, metrics)
    assert np.isnan(metrics["loss"])
    twice, metrics = noisy_step(once, batch(2), {})
    assert_skipped(twice, once, metrics)
    recovered, metrics = noisy_step(twice.replace(params=good.params), batch(3), {})
    assert (recovered.guard["skipped"], recovered.guard["in_a_row"]) == (2, 0)
    assert (metrics["skipped_updates"], metrics["skipped_in_a_row"]) == (2, 0)
    assert optax.tree.norm(jax.tree.map(jnp.subtract, recovered.params, good.params)) > 1e-3


def test_parameters_that_would_not_be_finite_are_skipped(state, noisy_step):
    before, _ = train(noisy_step, state, 3)
    after, metrics = noisy_step(before, batch(3), {})  # where the learning rate is infinite
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
    assert_skipped(after, before, metrics)


def test_a_frozen_parameter_has_no_gradient_and_the_others_the_same(state, calm_step):
    frozen = compiled(create(CALM), SGD, trainable=lambda params: trees.mask(params, "^head"))
    params = jax.tree.map(jnp.copy, state.params)
    after, [metrics] = train(frozen, start(params, SGD), 1)
    plain, _ = train(calm_step, start(params, SGD), 1)
    assert_close(after.params["head"], plain.params["head"])
    rest = [{k: v for k, v in tree.items() if k != "head"} for tree in (after.params, params)]
    assert_same_bits(*rest)
    change = jax.tree.map(jnp.subtract, params["head"], after.params["head"])
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(change)) / 0.01, rel=1e-4)
