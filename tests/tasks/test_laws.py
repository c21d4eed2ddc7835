"""Laws of the tasks that hide patches: one step is the same on four devices, in parts, from a cache, and scanned.

The auxiliary autoencoder has the whole of masked autoencoding in it. Laws of other tasks stand in their own files.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import quick
from tests.tasks import test_auxiliary_autoencoder as both
from tests.tasks.test_self_distillation import stepped
from vit_jax import models, sharding, step, tasks, trees
from vit_jax.optim.averages import exponential


def task_of(**model) -> tasks.Task:
    module = models.create(models.settings("vit", **both.ENCODER | {"depth": 2}, num_classes=3, **model))
    parts = tasks.Parts(module, both.SHAPE, ("a", "b", "c"), augment=both.VIEW, train_augment=both.VIEW)
    return tasks.create(tasks.settings("auxiliary_autoencoder", **both.DECODER), parts)


@pytest.mark.slow
def test_devices_parts_caches_and_scans_give_the_same_step():
    task, batch = task_of(), both.BATCH
    expected, metrics = stepped(task, batch, {})
    assert metrics["loss"] > 0

    def close(found):
        assert trees.names(found) == trees.names(expected)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1, np.abs(b).max()))

    close(stepped(task, batch, {}, sharding.make_mesh(sharding.Settings(), jax.devices()[:4]))[0])
    close(stepped(task, batch, {}, accumulate=2)[0])
    reversed_split = {field: rows[::-1] for field, rows in batch.items()}
    close(stepped(task, {"index": jnp.arange(both.N)[::-1]}, {"examples": reversed_split})[0])
    scanned, _ = stepped(task_of(scan=True), batch, {})
    close(scanned.replace(params=trees.unstack_layers(scanned.params)))


@pytest.mark.slow
def test_an_average_of_the_parameters_changes_nothing_else():
    """Optax's own average of the parameters after each step is the state's."""
    task = task_of()
    tx = optax.sgd(0.1)
    run = step.make_train_step(task, tx, lambda count, steps: 0.1, seed=5, total_steps=9, average=exponential(0.75))
    state = step.init_state(task, tx, 0, ema=True)
    expected = state.params
    jitted = quick.jit(run)
    for _ in range(2):
        state, _ = jitted(state, both.BATCH, {})
        expected = optax.incremental_update(state.params, expected, 0.25)
    plain, _ = stepped(task, both.BATCH, {})
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(state.ema["params"]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
