"""Cutout that begins after a share of the training."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.augment.pictures import keys
from vit_jax import augment, config
from vit_jax.command import UserError

ALWAYS = augment.Settings(mean=(0.5,), std=(0.25,), cutout=4)
LATE = dataclasses.replace(ALWAYS, cutout_from=0.75)
IMAGES = jnp.asarray(np.random.default_rng(2).integers(1, 256, (3, 11, 13, 2), np.uint8))


def test_it_begins_at_its_share_of_the_steps():
    progress = jnp.array([0.74, 0.75, 1.0])
    late = quick.jit(lambda x: augment.train_examples(LATE, {"image": x, "progress": progress}, keys(3))["image"])(
        IMAGES
    )
    always = quick.jit(lambda x: augment.train_view(ALWAYS, x, keys(3)))(IMAGES)
    np.testing.assert_array_equal(late[1:], always[1:])
    np.testing.assert_array_equal(late[0], augment.eval_view(LATE, IMAGES)[0])
    assert (late[0] != always[0]).any()


def test_a_task_that_does_not_tell_its_progress_is_refused():
    with pytest.raises(UserError, match=r"augment.cutout_from=0.75: this task cannot begin late; set it to 0"):
        augment.train_view(LATE, IMAGES, keys(3))


def test_what_is_no_share_is_refused():
    with pytest.raises(UserError, match="augment.cutout_from=1.0: expected a share of the steps from 0 to below 1"):
        config.from_dict({"augment": {"cutout": 4, "cutout_from": 1.0}})
