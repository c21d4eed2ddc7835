"""Sampling by class: counts worked by hand, and what an epoch keeps."""

import numpy as np
import pytest

from tests import tiny
from vit_jax import config
from vit_jax.command import UserError
from vit_jax.data import batching
from vit_jax.data.balance import BalancedOrder

LABELS = np.array([2] * 36 + [0] * 9 + [5] * 4)[np.random.default_rng(0).permutation(49)]


def counts(power: float) -> list[int]:
    """Of the classes 0, 2 and 5 in two epochs of 49 images."""
    order = BalancedOrder(LABELS, power)
    shown = [LABELS[order(3, epoch, 49)] for epoch in range(2)]
    assert all(np.bincount(seen).tolist() == np.bincount(shown[0]).tolist() for seen in shown)
    return np.bincount(shown[0])[[0, 2, 5]].tolist()


def test_classes_come_by_a_power_of_their_share():
    assert counts(0.0) == [9, 36, 4]
    assert counts(0.5) == [13, 27, 9]  # 3 : 6 : 2 of 49, with the largest rests: 13.36, 26.73, 8.91
    assert counts(1.0) == [17, 16, 16]


def test_at_power_0_an_epoch_shows_each_image_once():
    assert sorted(BalancedOrder(LABELS, 0.0)(1, 2, 49)) == list(range(49))


def test_images_of_a_class_come_equally_often_and_others_in_another_epoch():
    order = BalancedOrder(LABELS, 1.0)
    times = np.bincount(order(0, 0, 49), minlength=49)
    assert {int(n) for n in times[LABELS == 5]} == {4} and {int(n) for n in times[LABELS == 0]} == {1, 2}
    assert {int(n) for n in times[LABELS == 2]} == {0, 1}
    assert not np.array_equal(order(0, 0, 49), order(0, 1, 49)) and not np.array_equal(order(0, 0, 49), order(1, 0, 49))
    np.testing.assert_array_equal(order(0, 0, 49), BalancedOrder(LABELS, 1.0)(0, 0, 49))  # resuming draws the same


def test_batches_follow_the_order():
    order = BalancedOrder(LABELS, 0.5)
    found = np.concatenate([batching.train_indices(4, step, 7, 49, order=order) for step in range(7, 14)])
    np.testing.assert_array_equal(found, order(4, 1, 49))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["data.balance=1.5"], r"data.balance=1.5 is not in \[0, 1\]"),
        (["data.balance=1", "task.balance=1"], "count rare classes twice; leave one of them out"),
    ],
)
def test_what_makes_no_sense_is_refused(flags, message, tmp_path):
    with pytest.raises(UserError, match=message):
        tiny.start(tmp_path, "cnn", *flags)


def test_a_loader_balances_only_if_asked():
    from vit_jax.train import set_up

    given = config.load(tiny.spec("cnn"))
    assert set_up(given, described=True).loader.order is batching.epoch_order
    balanced = set_up(config.load(tiny.spec("cnn"), ["data.balance=1"]), described=True).loader.order
    assert isinstance(balanced, BalancedOrder) and len(np.unique(balanced.labels)) == 3
