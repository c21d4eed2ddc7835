"""iBOT's loss over hidden patches: by an independent reference; blocks; who sees what; and the step it is part of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from tests import quick
from tests.tasks.test_self_distillation import BATCH, CALM, RNG, SHAPE, K, N, task_of
from vit_jax import step, tasks
from vit_jax.tasks import masking, self_distillation

GRID = (3, 4)
TASK = task_of(**CALM, patch_loss=0.5, mask_probability=1.0, mask_share=(0.4, 0.6))
KEYS = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(400))


@pytest.fixture(scope="module")
def variables():
    return quick.jit(lambda: step.init_variables(TASK.module, 0, SHAPE))()


def test_the_loss_is_that_of_an_independent_reference():
    """A loop over crops and their hidden patches, in float64; a crop without any counts as 0."""
    teacher, student = RNG.normal(size=(3, 2, 7, K)), RNG.normal(size=(3, 2, 7, K))
    hidden = RNG.random((3, 2, 7)) < 0.5
    hidden[1, 0] = False
    of_crops = []
    for i in range(3):
        for j in range(2):
            told = [
                -(softmax(teacher[i, j, l] / 0.05) * log_softmax(student[i, j, l] / 0.1)).sum()
                for l in np.flatnonzero(hidden[i, j])
            ]
            of_crops.append(np.mean(told) if told else 0.0)
    as_float = (jnp.asarray(x, jnp.float32) for x in (teacher, student))
    found = self_distillation.patch_distillation(*as_float, jnp.asarray(hidden), 0.05, 0.1)
    assert float(found) == pytest.approx(np.mean(of_crops), rel=1e-5)


def test_each_image_counts_alike_so_that_parts_of_a_batch_give_the_loss_of_the_whole():
    teacher, student = (jnp.asarray(RNG.normal(size=(4, 2, 7, K)), jnp.float32) for _ in range(2))
    hidden = jnp.asarray(RNG.random((4, 2, 7)) < np.array([0.1, 0.9, 0.5, 0.0])[:, None, None])
    whole, *parts = (
        float(self_distillation.patch_distillation(teacher[rows], student[rows], hidden[rows], 0.05, 0.1))
        for rows in (slice(None), slice(0, 2), slice(2, 4))
    )
    assert whole == pytest.approx(np.mean(parts), rel=1e-5)


def test_blocks_hide_a_share_that_is_drawn_for_each_image():
    grid = (14, 14)
    draw = quick.jit(lambda keys: masking.blocks(keys, grid, 0.5, (0.1, 0.5)))
    found = np.asarray(draw(KEYS))
    share = found.mean(axis=1)
    assert share.max() <= 0.5 and 0.4 < (share == 0).mean() < 0.6
    hides = share[share > 0]
    assert hides.min() > 0.06 and 0.26 < hides.mean() < 0.34 and np.std(hides) > 0.09  # uniform from 0.1 to 0.5
    np.testing.assert_array_equal(found[::-1], draw(KEYS[::-1]))
    assert len(np.unique(found, axis=0)) > 190
    assert not np.asarray(masking.blocks(KEYS[:9], grid, 0.0, (0.1, 0.5))).any()


def test_hidden_patches_are_blocks():
    """Most neighbours of a hidden patch are hidden, too: far more than if places were drawn one by one."""
    grid = (14, 14)
    found = np.asarray(quick.jit(lambda keys: masking.blocks(keys, grid, 1.0, (0.3, 0.3)))(KEYS)).reshape(-1, *grid)
    beside = found[:, :, 1:] & found[:, :, :-1]
    assert beside.sum() / found[:, :, 1:].sum() > 0.75 and abs(found.mean() - 0.29) < 0.02


def test_a_hidden_patch_reaches_nothing_and_a_seen_one_does(variables):
    images = jnp.asarray(RNG.normal(size=(2, *SHAPE)), jnp.float32)
    hidden = jnp.zeros((2, 12), bool).at[:, 5].set(True)
    apply = quick.jit(lambda images, hidden: TASK.module.apply(variables, images, hidden, train=False))
    features, told, patches = apply(images, hidden)
    assert patches.shape == (2, 12, K)
    for place, same in ((np.s_[:, 4:8, 2:4], True), (np.s_[:, 0:4, 0:2], False)):  # patches 5 and 0
        other = apply(images.at[place].add(1.0), hidden)
        assert bool(jnp.allclose(other[0], features)) == same and bool(jnp.allclose(other[2], patches)) == same
    plain = quick.jit(lambda images: TASK.module.apply(variables, images, train=False))(images)
    nothing = apply(images, jnp.zeros((2, 12), bool))
    np.testing.assert_allclose(nothing[0], plain[0], atol=1e-5)
    np.testing.assert_allclose(nothing[1], plain[1], atol=1e-5)
    assert plain[2] is None and not np.allclose(nothing[1], told, atol=1e-4)


@pytest.mark.slow
def test_the_whole_loss_is_put_together_from_crops_and_patches(variables):
    """The student's large crops have hidden patches in both parts of the loss; the teacher's have none."""
    task, rngs = (
        task_of(**CALM | {"local_crops": 0}, patch_loss=0.5, mask_probability=1.0),
        step.rngs_for(3, 4, jnp.arange(N)),
    )
    state = task.init_state(jax.tree.map(lambda x: x + 0.1, variables["params"]))
    centers = {name: jnp.asarray(RNG.normal(size=K), jnp.float32) for name in ("center", "patch_center")}
    state["teacher"]["batch_stats"] = centers
    found, aux = quick.jit(lambda: task.loss(variables["params"], variables["batch_stats"], state, BATCH, rngs, {}))()
    large, hidden = quick.jit(lambda: (task.crops(BATCH["image"], rngs.augment)[0], task.hidden(rngs.task)))()
    assert hidden.shape == (N, 2, 12) and 0 < hidden.mean() <= 0.5

    def told(variables, hidden):
        apply = quick.jit(lambda images, hidden: task.module.apply(variables, images, hidden, train=False)[1:])
        both = [apply(large[:, i], hidden[:, i]) for i in range(2)]
        return (np.stack([np.asarray(x[j]) for x in both], axis=1) for j in range(2))

    taught, taught_patches = told(state["teacher"], jnp.zeros_like(hidden))
    seen, seen_patches = told(variables, hidden)
    of_crops = [
        -(
            softmax((taught[:, i] - np.asarray(centers["center"])) / 0.04, axis=1)
            * log_softmax(seen[:, 1 - i] / 0.1, axis=1)
        ).sum(1)
        for i in range(2)
    ]
    centred = (taught_patches - np.asarray(centers["patch_center"])) / 0.04
    of_patch = -(softmax(centred, axis=-1) * log_softmax(seen_patches / 0.1, axis=-1)).sum(axis=-1)
    of_patches = (of_patch * np.asarray(hidden)).sum(axis=2) / np.maximum(hidden.sum(axis=2), 1)
    assert float(aux.metrics["patch_loss"]) == pytest.approx(of_patches.mean(), rel=1e-4)
    assert float(found) == pytest.approx(np.mean(of_crops) + 0.5 * of_patches.mean(), rel=1e-4)
    np.testing.assert_allclose(aux.extra["patch_center"], taught_patches.mean(axis=(0, 1, 2)), atol=1e-5)


def test_both_centres_follow_what_the_teacher_says():
    task = task_of(patch_loss=1.0, center_momentum=0.8)
    state = task.init_state({"w": jnp.ones(2)})
    assert set(state["teacher"]["batch_stats"]) == {"center", "patch_center"}
    aux = tasks.Aux({}, {}, {"center": jnp.full(K, 5.0), "patch_center": jnp.full(K, 10.0)})
    moved = task.update(state, {"w": jnp.zeros(2)}, aux, jnp.float32(0.0))["teacher"]["batch_stats"]
    np.testing.assert_allclose(moved["center"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(moved["patch_center"], 2.0, rtol=1e-6)


def test_an_even_answer_is_said_whatever_the_patches_add():
    even = np.log(K)
    scalars = {"loss": even + 0.5 * 1.7, "patch_loss": 1.7, "feature_spread": 0.5}
    assert "the same even answer" in TASK.warnings(scalars)[0]
    assert TASK.warnings({**scalars, "loss": even / 2 + 0.5 * 1.7}) == []
