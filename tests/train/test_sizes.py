"""Training with images of several sizes: which step has which, and operations to the last one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from vit_jax import config
from vit_jax.command import UserError
from vit_jax.models.positions import AddPositions
from vit_jax.train import set_up, sizes

TRAIN = {"epochs": 1.0, "batch_size": 40}
VIT = (
    "train.image_sizes=(4,8)",
    "train.accumulate=1",
    "optim.ema_decay=0",
    "model.pos_embed=learned",
    "model.pooling=gap",
)


def given(order: str, *image_sizes: int) -> config.Config:
    return config.from_dict(
        {"train": {**TRAIN, "image_sizes": image_sizes, "size_order": order}, "data": {"name": "digits"}}
    )


def test_in_turn_each_size_has_an_equal_share_of_the_steps():
    assert [sizes.size_at(given("in_turn", 4, 6, 8), at, 8) for at in range(8)] == [4, 4, 4, 6, 6, 6, 8, 8]
    assert [sizes.size_at(given("in_turn", 8), at, 3) for at in range(3)] == [8, 8, 8]


def test_drawn_each_size_comes_once_in_as_many_steps():
    found = [sizes.size_at(given("drawn", 4, 6, 8), at, 0) for at in range(30)]
    assert all(sorted(found[at : at + 3]) == [4, 6, 8] for at in range(0, 30, 3)) and found[:3] * 10 != found
    other = dataclasses.replace(given("drawn", 4, 6, 8), seed=1)
    assert [sizes.size_at(other, at, 0) for at in range(30)] != found


@pytest.mark.parametrize("order", ["in_turn", "drawn"])
def test_operations_are_counted_to_the_last_step(order):
    asked, per_step = given(order, 4, 6, 8), {4: 5, 6: 7, 8: 11}
    for total in (1, 8, 31):
        spent = np.cumsum([per_step[sizes.size_at(asked, at, total)] for at in range(total)])
        for steps in {1, total // 2, total} - {0}:
            assert sizes.flops_of_steps(asked, steps, total, per_step) == spent[steps - 1]


@pytest.mark.slow
def test_a_budget_pays_for_more_small_images():
    def built(*flags):
        return set_up(
            config.load(tiny.spec("vit"), ["train.steps=0", "train.flops=3e8", *VIT[1:], *flags]), described=True
        )

    whole, small = built(), built(VIT[0])
    assert small.total_steps > 1.2 * whole.total_steps
    for one in (whole, small):
        assert one.training_flops(one.total_steps) == pytest.approx(
            3e8, abs=max(one.flops_by_size.values(), default=2e7)
        )


def test_positions_of_another_grid_are_interpolated_and_of_the_same_untouched():
    x, table = jnp.zeros((1, 1 + 2 * 3, 5)), np.random.default_rng(0).normal(size=(1, 1 + 4 * 6, 5)).astype(np.float32)
    small = AddPositions("learned", (2, 3)).apply({"params": {"pos_embedding": table}}, x)[0]
    np.testing.assert_array_equal(small[0], table[0, 0])
    expected = jax.image.resize(table[0, 1:].reshape(4, 6, 5), (2, 3, 5), "cubic", antialias=False)
    np.testing.assert_allclose(small[1:], expected.reshape(6, 5), rtol=1e-5, atol=1e-6)
    same = AddPositions("learned", (4, 6)).apply({"params": {"pos_embedding": table}}, jnp.zeros((1, 25, 5)))
    np.testing.assert_array_equal(same, table)
    with pytest.raises(UserError, match="24 learned positions are no grid of the aspect 5:1"):
        AddPositions("learned", (5, 1)).apply({"params": {"pos_embedding": table}}, jnp.zeros((1, 6, 5)))


SQUARE = "data.name=synthetic/7x7x3/3/200"


@pytest.mark.parametrize(
    ("arg", "flags", "message"),
    [
        ("cnn", ["train.image_sizes=(5,)"], r"are sides of squares, and data.image_size is \(5, 7\); make it one"),
        ("cnn", [SQUARE, "train.image_sizes=(5,)"], "of the model depends on the size of its images; leave the sizes"),
        ("cnn", ["train.image_sizes=(0,)"], r"train.image_sizes=\(0,\) must be positive"),
        ("cnn", ["train.steps=0", "train.seconds=5", "train.image_sizes=(5,)"], "need a run whose steps are known"),
        ("vit", ["train.image_sizes=(6,)"], "patch_size=4 does not divide the image height 6"),
        ("cnn", ["train.size_order=drawn"], "changes nothing without train.image_sizes"),
    ],
)
def test_what_cannot_be_is_refused(arg, flags, message):
    with pytest.raises(UserError, match=message):
        asked = config.load(tiny.spec(arg), flags)
        config.check_effect([asked], flags)
        set_up(asked, described=True)
