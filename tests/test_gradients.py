"""What a step makes of its gradients: sharpness-aware ones, their noise, and averages that begin fast."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import quick
from vit_jax import augment, losses, optim, step, tasks
from vit_jax.models.cnn import CNN
from vit_jax.optim.averages import exponential
from vit_jax.step import TrainState

N, SHAPE, K, LR = 12, (6, 4, 3), 7, 0.01
VIEW = augment.Settings(mean=(0.5,), std=(0.25,))
MODEL = CNN(stages=((5,),), dense_widths=(), num_classes=K, norm="none")
SGD = optim.create(optim.Settings(name="sgd", momentum=0.0))
RNG = np.random.default_rng(0)
BATCH = {
    "image": jnp.asarray(RNG.integers(0, 256, (N, *SHAPE), np.uint8)),
    "label": jnp.asarray(RNG.integers(0, K, N, np.int32)),
}


def rate(done, total_steps):
    return LR * (1 - done / total_steps)


PARTS = tasks.Parts(MODEL, SHAPE, tuple("abcdefg"), augment=VIEW, train_augment=VIEW)
TASK = tasks.create(tasks.settings("classification", label_smoothing=0.1), PARTS)


def compiled(total_steps: int = 10**9, **options):
    return quick.jit(step.make_train_step(TASK, SGD, rate, seed=0, total_steps=total_steps, **options))


@pytest.fixture(scope="module")
def state() -> TrainState:
    return quick.jit(lambda: step.init_state(TASK, SGD, 0, ema=True))()


@pytest.fixture(scope="module")
def gradient():
    """Of the mean loss over some rows of the batch."""

    def loss(params, images, labels):
        logits = MODEL.apply({"params": params}, augment.eval_view(VIEW, images), train=False)
        return losses.softmax_cross_entropy(logits, TASK.targets_of(labels)).mean()

    of = quick.jit(jax.grad(loss))
    return lambda params, rows=slice(None): of(params, BATCH["image"][rows], BATCH["label"][rows])


def moved(before: TrainState, after: TrainState):
    return jax.tree.map(lambda a, b: (a - b) / LR, before.params, after.params)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_sam_takes_the_gradient_from_up_the_slope(state, gradient, accumulate):
    rho, uphill = 0.5, gradient(state.params)
    scale = rho / optax.tree.norm(uphill)
    expected = gradient(jax.tree.map(lambda p, g: p + scale * g, state.params, uphill))
    after, metrics = compiled(sam_rho=rho, accumulate=accumulate)(state, BATCH, {})
    plain, plain_metrics = compiled()(state, BATCH, {})
    for found, wanted, other in zip(*map(jax.tree.leaves, (moved(state, after), expected, uphill)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-2, atol=2e-4)
        assert np.abs(wanted - other).max() > 1e-3
    np.testing.assert_allclose(metrics["loss"], plain_metrics["loss"], rtol=1e-5)  # of the parameters themselves


def test_sam_draws_twice_the_same_and_keeps_what_the_parameters_themselves_saw(state):
    """With gradients that tell what they were asked for: the parameters, the step and the statistics."""

    def gradients(state, batch, constants):
        asked = state.params["w"] * (1 + state.step)
        return {"w": asked}, tasks.Aux({"seen": state.params["w"]}, {"loss": asked.sum()})

    w, zero = jnp.array([3.0, 4.0]), jnp.int32(0)
    before = TrainState(jnp.int32(1), {"w": w}, {"seen": 0 * w}, (), {}, {"skipped": zero, "in_a_row": zero})
    grads, (batch_stats, metrics, _) = step._sharpness_aware(gradients, 0.5)(before, {}, {})
    np.testing.assert_allclose(grads["w"], 2 * (w + 0.5 * w / 5), rtol=1e-6)  # at the same step, up the slope
    np.testing.assert_array_equal(batch_stats["seen"], w)
    assert metrics["loss"] == 14


def test_the_noise_of_the_gradient_by_hand(state, gradient):
    parts = [gradient(state.params, slice(j, None, 3)) for j in range(3)]
    whole = gradient(state.params)
    small = np.mean([float(optax.tree.norm(part, squared=True)) for part in parts])
    large = float(optax.tree.norm(whole, squared=True))
    _, metrics = compiled(accumulate=3)(state, BATCH, {})
    b, B = N // 3, N  # McCandlish et al. 2018, eq. A.2
    assert metrics["grad_signal"] == pytest.approx((B * large - b * small) / (B - b), rel=1e-4)
    assert metrics["grad_variance"] == pytest.approx((small - large) / (1 / b - 1 / B), rel=1e-4)


def test_averages_begin_fast(state):
    train_step, after, average = compiled(average=exponential(0.5, warmup=True)), state, state.params
    for decay in (1 / 10, 2 / 11, 3 / 12, 4 / 13):
        after, _ = train_step(after, BATCH, {})
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, after.params)
    for found, wanted in zip(jax.tree.leaves(after.ema["params"]), jax.tree.leaves(average), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
    late = state.replace(step=jnp.int32(1000))
    after, _ = train_step(late, BATCH, {})
    kernel = state.params["head"]["kernel"]
    np.testing.assert_allclose(after.ema["params"]["head"]["kernel"], (kernel + after.params["head"]["kernel"]) / 2)


@pytest.mark.parametrize(("warmup", "share"), [(0, 0.9), (3, 0.5)])
def test_schedule_free_training_follows_its_paper(state, gradient, warmup, share):
    """Defazio et al. 2024, eq. 3 to 5 and 23; without a warm-up optax gives the same."""
    settings = optim.Settings(schedule="constant", lr=0.1, warmup_steps=warmup, schedule_free=share, b1=0.0)
    kept, schedule = optim.average(settings, 1), optim.schedule(settings, 1)
    train_step = step.make_train_step(TASK, SGD, schedule, seed=0, total_steps=10**9, average=kept)
    train_step, after = quick.jit(train_step), state
    z, x, squares = state.params, state.params, 0.0
    peer = optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=share)
    y, peer_state = state.params, peer.init(state.params)
    for done in range(6):
        after, _ = train_step(after, BATCH, {})
        rate = float(schedule(done, 10**9))
        slope = gradient(jax.tree.map(lambda z, x: (1 - share) * z + share * x, z, x))
        z, squares = jax.tree.map(lambda p, g, rate=rate: p - rate * g, z, slope), squares + rate**2
        newest = rate**2 / squares if squares else 0.0
        x = jax.tree.map(lambda mean, new, c=newest: (1 - c) * mean + c * new, x, z)
        updates, peer_state = peer.update(gradient(y), peer_state, y)
        y = optax.apply_updates(y, updates)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, (after.params, after.ema["params"]), (z, x))
    if not warmup:
        jax.tree.map(close, after.ema["params"], optax.contrib.schedule_free_eval_params(peer_state, y))


def test_a_schedule_free_mean_has_the_newest_batch_statistics():
    parts = dataclasses.replace(PARTS, model=CNN(stages=((5,),), dense_widths=(), num_classes=K, norm="batch"))
    task = tasks.create(tasks.settings("classification"), parts)
    kept = optim.average(optim.Settings(schedule_free=0.9), 1)
    after = quick.jit(lambda: step.init_state(task, SGD, 0, ema=True))()
    train_step = quick.jit(step.make_train_step(task, SGD, rate, seed=0, total_steps=9, average=kept))
    for _ in range(2):
        after, _ = train_step(after, BATCH, {})
    assert jax.tree.leaves(after.batch_stats)
    jax.tree.map(np.testing.assert_array_equal, after.ema["batch_stats"], after.batch_stats)


def test_a_schedule_free_mean_weighs_by_squares_of_the_rate():
    settings = optim.Settings(schedule="constant", warmup_steps=7, schedule_free=0.9, b1=0.0)
    rate, kept = optim.schedule(settings, 1), optim.average(settings, 1)
    squares = np.cumsum([float(rate(t, 100)) ** 2 for t in range(100)])
    for t in (1, 2, 6, 7, 8, 99):
        assert 1 - kept.decay(t, 100) == pytest.approx(float(rate(t, 100)) ** 2 / squares[t], rel=1e-4)
    timed = optim.average(settings, 1, timed=True)  # a warm-up of a tenth at most
    assert 1 - timed.decay(5, 20) == pytest.approx(1 / (0.25 + 4), rel=1e-4)


def test_the_length_of_a_run_may_be_told_at_each_step(state):
    train_step = compiled(total_steps=0)
    for total in (2, 8):
        _, metrics = train_step(state.replace(step=jnp.int32(1)), BATCH, {"total_steps": np.int32(total)})
        assert metrics["lr"] == pytest.approx(LR * (1 - 1 / total))
