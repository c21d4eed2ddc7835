"""MixUp and CutMix: what is mixed, in what proportion, and on any number of devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests import quick
from tests.augment.pictures import keys
from vit_jax.augment import Settings, mix
from vit_jax.augment.mix import cutmix_mask

N, H, W, K = 4, 13, 17, 5
IMAGES = jnp.asarray(np.random.default_rng(2).normal(size=(N, H, W, 3)), jnp.float32)
TARGETS = jnp.asarray(np.random.default_rng(3).dirichlet(np.ones(K), N), jnp.float32)
MIXUP = quick.jit(partial(mix, Settings(mixup=0.8)))
CUTMIX = quick.jit(partial(mix, Settings(cutmix=1.0)))


def share_of(targets: jax.Array) -> float:
    """The weight of the own target, if each is mixed with its counterpart of the reversed batch."""
    own, other = np.asarray(TARGETS, np.float64), np.asarray(TARGETS, np.float64)[::-1]
    share = ((np.asarray(targets) - other) * (own - other)).sum() / ((own - other) ** 2).sum()
    np.testing.assert_allclose(targets, share * own + (1 - share) * other, atol=1e-6)
    return float(share)


def test_mixup_blends_images_and_targets_alike():
    images, targets = MIXUP(jax.random.key(1), IMAGES, TARGETS)
    share = share_of(targets)
    assert 0.02 < share < 0.98
    np.testing.assert_allclose(images, share * IMAGES + (1 - share) * IMAGES[::-1], atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_pastes_a_box_and_counts_its_pixels(seed):
    images, targets = CUTMIX(jax.random.key(seed), IMAGES, TARGETS)
    pasted = np.asarray(images != IMAGES).any(axis=(0, 3))
    np.testing.assert_array_equal(images, np.where(pasted[:, :, None], IMAGES[::-1], IMAGES))
    assert share_of(targets) == pytest.approx(1 - pasted.mean(), abs=1e-6)
    rows, columns = pasted.any(axis=1), pasted.any(axis=0)
    assert pasted.sum() == rows.sum() * columns.sum()  # a rectangle


def test_the_middle_of_an_odd_batch_stays():
    images, targets = quick.jit(partial(mix, Settings(cutmix=1.0)))(jax.random.key(0), IMAGES[:3], TARGETS[:3])
    np.testing.assert_array_equal(images[1], IMAGES[1])
    np.testing.assert_allclose(targets[1], TARGETS[1], atol=1e-7)


def test_off_is_not_traced_and_probability_0_is_off():
    for settings in (Settings(), Settings(mixup=0.8, cutmix=1.0, mix_probability=0.0)):
        jaxpr = jax.make_jaxpr(partial(mix, settings))(jax.random.key(0), IMAGES, TARGETS)
        assert not jaxpr.eqns


def test_where_nothing_is_mixed_the_other_class_has_no_share():
    settings, labels = Settings(mixup=0.8, cutmix=1.0, mix_probability=1e-9), jnp.eye(K)[:N]
    batches = [jnp.zeros((N, side, side, 1)) for side in (13, 224)]
    mixed = quick.jit(lambda rng: [mix(settings, rng, images, labels)[1] for images in batches])
    for targets in mixed(jax.random.key(0)):
        np.testing.assert_array_equal(targets, labels)  # "nearly 0" would be a whole target of `multi_hot`


def test_a_batch_is_mixed_with_its_probability_and_switched():
    settings = Settings(mixup=0.8, cutmix=1.0, mix_probability=0.6, mix_switch=0.25)
    mixed = quick.jit(jax.vmap(partial(mix, settings), (0, None, None)))
    images, targets = mixed(keys(600), IMAGES, TARGETS)
    same = (np.asarray(images) == np.asarray(IMAGES)).all(axis=(1, 2, 3, 4))
    np.testing.assert_array_equal(np.asarray(targets)[same], np.broadcast_to(TARGETS, (same.sum(), N, K)))
    either = (np.asarray(images) == np.asarray(IMAGES)) | (np.asarray(images) == np.asarray(IMAGES[::-1]))
    cut = either.all(axis=(1, 2, 3, 4)) & ~same
    assert abs(same.mean() - 0.4) < 0.09  # four standard deviations; a box of no pixels counts too
    assert abs(cut.sum() / (~same).sum() - 0.25) < 0.1


def test_the_share_follows_its_beta_distribution():
    images = jnp.stack([jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1))])
    draw = quick.jit(jax.vmap(partial(mix, Settings(mixup=0.3)), (0, None, None)))
    share = np.asarray(draw(keys(2000), images, TARGETS[:2])[0])[:, 1, 0, 0, 0]
    assert abs(share.mean() - 0.5) < 0.04
    assert share.var() == pytest.approx(1 / (4 * (2 * 0.3 + 1)), rel=0.1)


def test_the_box_has_the_images_aspect_and_is_cut_off_at_the_edges():
    masks = np.asarray(quick.jit(jax.vmap(lambda k: cutmix_mask(k, jnp.float32(0.75), 40, 60)))(keys(1000)))
    rows, columns = (1 - masks.min(axis=2)).sum(axis=1), (1 - masks.min(axis=1)).sum(axis=1)
    assert rows.max() == 20 and columns.max() == 30 and rows.min() == 10 and columns.min() == 15
    assert (masks.mean(axis=(1, 2)) >= 0.75).all()
    assert abs(masks.mean(axis=0)[20, 30] - 0.75) < 0.06  # the middle is inside for centres of a quarter of the area


def test_four_devices_mix_as_one():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put((IMAGES, TARGETS), NamedSharding(mesh, PartitionSpec("data")))
    for step in (MIXUP, CUTMIX):
        images, targets = step(jax.random.key(4), *spread)
        expected = step(jax.random.key(4), IMAGES, TARGETS)
        np.testing.assert_allclose(images, expected[0], atol=1e-6)
        np.testing.assert_allclose(targets, expected[1], atol=1e-6)
