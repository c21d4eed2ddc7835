"""A teacher's share of the loss, by hand and of a whole model."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.conftest import rest_is_slow
from tests.step.small import CALM, LABELS, RNG, SEED, SHAPE, K, N, batch, create, task_of
from vit_jax import losses, step, tasks


def distilled(forward, weight: float, **fields) -> dict:
    """The parts of a task with this teacher."""
    distill = tasks.Distill(teacher="x", weight=weight, **fields)
    scores = jnp.asarray(RNG.normal(size=(K,)), jnp.float32)
    return {"distill": distill, "teacher": tasks.Teacher({"scores": scores}, forward)}


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_loss_takes_its_temperature_and_weight_by_hand(kind):
    logits, taught, teachers = jnp.asarray(np.random.default_rng(1).normal(size=(3, N, K)), jnp.float32)
    targets = losses.one_hot(jnp.asarray(LABELS[:N]), K)
    parts = distilled(lambda variables, images: teachers, 0.3, kind=kind, temperature=3.0)
    task = task_of(create(CALM), tasks.settings("classification"), **parts)
    hot = losses.soft_distillation(taught, teachers, 3.0)
    of_teacher = hot if kind == "soft" else losses.hard_distillation(taught, teachers)
    expected = 0.7 * losses.softmax_cross_entropy(logits, targets) + 0.3 * of_teacher
    images, sown = jnp.zeros((N, *SHAPE)), {"distillation": {"logits": (taught,)}}
    found = task.per_example(logits, targets, images, sown, task.constants)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.fixture(scope="module")
def params():
    return quick.jit(lambda: step.init_variables(create(CALM), SEED, SHAPE)["params"])()


@pytest.mark.parametrize("kind", rest_is_slow(["soft", "hard"]))
def test_a_teacher_s_share_of_the_loss(params, kind):
    """The teacher looks at the student's augmented images; its variables are an argument."""

    def teacher(variables, images):
        assert images.shape == (N, *SHAPE)
        return variables["scores"][None] + 0 * images.mean(axis=(1, 2, 3))[:, None]

    def loss(weight, variables):
        parts = distilled(teacher, weight, kind=kind, temperature=2.0) | {"teacher": of_one}
        rngs = step.rngs_for(SEED, 0, jnp.arange(N))
        task = task_of(create(CALM), **parts)
        return task.loss(params, {}, {}, batch(0), rngs, {"teacher": variables})[0]

    of_one = distilled(teacher, 0.0)["teacher"]
    found = quick.jit(lambda variables: [loss(weight, variables) for weight in (0.0, 1.0, 0.25)])(of_one.variables)
    labels_only, teacher_only, both = map(float, found)
    assert both == pytest.approx(0.75 * labels_only + 0.25 * teacher_only, rel=1e-5)
    assert abs(labels_only - teacher_only) > 0.01
