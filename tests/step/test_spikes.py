"""The spike guard: a loss or a gradient norm far above those of the steps before is skipped, a new level is learned."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import step


def run(values: np.ndarray, sigmas: float) -> list[bool]:
    guard, calm, calmly = step._no_spikes(), [], jax.jit(step._calm, static_argnums=2)
    for pair in values.astype(np.float32):
        each, guard = calmly(guard, jnp.asarray(pair), sigmas)
        calm.append(bool(each))
    return calm


def test_only_what_is_far_above_the_last_128_steps_is_a_spike():
    rng = np.random.default_rng(0)
    values = rng.normal(2.0, 0.1, (150, 2))
    assert all(run(values, 6.0)), "noise is none, nor is anything in the first steps"
    values[140, 1], values[145, 0], values[147] = 2.9, 2.9, 0.0
    assert [i for i, calm in enumerate(run(values, 6.0)) if not calm] == [140, 145]


def test_a_new_level_is_taken_for_normal_after_a_few_steps_and_nan_is_left_out():
    values = np.random.default_rng(1).normal(2.0, 0.1, (200, 2))
    values[150:] += 3.0
    bad = [i for i, calm in enumerate(run(values, 6.0)) if not calm]
    assert bad and bad[0] == 150 and bad[-1] < 170
    values[150:] -= 3.0
    values[150] = np.nan
    assert [i for i, calm in enumerate(run(values, 6.0)) if not calm] == [150]
