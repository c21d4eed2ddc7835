"""Operations from outside the package: their stages, their keys, and no change to anything else."""

import dataclasses
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.augment.pictures import PLAIN, keys, pictures
from vit_jax import augment
from vit_jax.augment import Settings
from vit_jax.command import UserError

IMAGES = pictures()
augment.register("test_turn", lambda key, arrays: {k: x[::-1] for k, x in arrays.items()}, stage="geometry")
augment.register("test_invert", lambda key, image: 255 - image, stage="colour")
augment.register("test_half", lambda key, image: image / 2, stage="normalised")
augment.register("test_noise", lambda key, image: image + jax.random.normal(key, image.shape), stage="normalised")


def viewed(*extra: str, **fields) -> np.ndarray:
    settings = dataclasses.replace(PLAIN, extra=extra, **fields)
    return np.asarray(quick.jit(partial(augment.train_view, settings))(IMAGES, keys(5)))


def test_each_operation_runs_at_its_stage():
    expected = (1 - np.asarray(IMAGES)[:, ::-1] / 255) / 2
    np.testing.assert_allclose(viewed("test_half", "test_invert", "test_turn"), expected, atol=1e-6)


def test_a_geometric_operation_moves_the_mask_too():
    masks = np.asarray(IMAGES)[..., 0]
    train = quick.jit(partial(augment.train_examples, dataclasses.replace(PLAIN, extra=("test_turn",))))
    found = train({"image": IMAGES, "mask": masks}, keys(5))
    np.testing.assert_array_equal(found["mask"], masks[:, ::-1])
    np.testing.assert_allclose(np.asarray(found["image"])[..., 0] * 255, masks[:, ::-1], atol=1e-4)


def test_a_draw_depends_on_the_example_and_the_name_alone():
    noise = viewed("test_noise") - np.asarray(IMAGES) / 255
    assert len(np.unique(noise.reshape(5, -1)[:, 0])) == 5 and abs(noise.std() - 1) < 0.05
    with_others = viewed("test_invert", "test_noise", flip=1.0) - viewed("test_invert", flip=1.0)
    np.testing.assert_allclose(with_others, noise, atol=1e-5)


def test_evaluation_and_an_empty_list_do_without():
    settings = dataclasses.replace(PLAIN, extra=("test_half", "test_unknown"))
    np.testing.assert_array_equal(augment.eval_view(settings, IMAGES), augment.eval_view(PLAIN, IMAGES))
    augment.check(settings)


@pytest.mark.parametrize("look", [augment.check_extra, lambda s: augment.train_view(s, IMAGES, keys(5))])
def test_an_unknown_name_lists_the_known_ones(look):
    settings = dataclasses.replace(PLAIN, extra=("test_half", "test_unknown"))
    with pytest.raises(UserError, match="augment.extra.*'test_unknown' is not registered .*test_half, test_invert"):
        look(settings)


def test_a_name_comes_once_and_a_stage_is_one_of_three():
    with pytest.raises(UserError, match=r"augment\.extra=\('a', 'a'\): expected .*each once"):
        augment.check(Settings(extra=("a", "a")))
    with pytest.raises(ValueError, match="geometry, colour, normalised"):
        inspect.unwrap(augment.register)("test_late", jnp.negative, stage="late")  # past the suite's type checks
