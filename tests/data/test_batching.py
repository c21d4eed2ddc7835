"""The order of images: laws that hold for any seed, size, batch and number of processes."""

import numpy as np
import pytest
from hypothesis import given as given_each
from hypothesis import settings
from hypothesis import strategies as st

from vit_jax.command import UserError
from vit_jax.data import batching


def given(*drawn):
    return lambda law: settings(max_examples=25)(given_each(*drawn)(law))


SEEDS = st.integers(0, 2**32 - 1)
EPOCHS = st.integers(0, 10**6)


def epoch(seed: int, number: int, batch_size: int, size: int) -> np.ndarray:
    """The images of one epoch as they are seen, step after step."""
    steps = batching.steps_per_epoch(batch_size, size)
    first = number * steps
    return np.concatenate([batching.train_indices(seed, first + i, batch_size, size) for i in range(steps)])


@given(SEEDS, EPOCHS, st.integers(1, 101))
def test_an_order_is_a_permutation(seed, number, size):
    assert sorted(batching.epoch_order(seed, number, size)) == list(range(size))


@given(SEEDS, st.integers(0, 10**9), st.integers(1, 29), st.integers(29, 97))
def test_a_batch_is_a_function_of_seed_and_step_alone(seed, step, batch_size, size):
    before = batching.train_indices(seed, step, batch_size, size).copy()
    for other in range(3):  # more than are remembered
        batching.train_indices(other, step + other, batch_size, size)
    np.testing.assert_array_equal(batching.train_indices(seed, step, batch_size, size), before)
    assert len(before) == batch_size


@given(SEEDS, EPOCHS, st.integers(1, 29), st.integers(29, 97))
def test_an_epoch_sees_no_image_twice_and_drops_the_remainder(seed, number, batch_size, size):
    seen = epoch(seed, number, batch_size, size)
    assert len(seen) == size // batch_size * batch_size
    assert len(set(seen)) == len(seen) and set(seen) <= set(range(size))


def test_epochs_and_seeds_differ():
    orders = {(seed, e): tuple(batching.epoch_order(seed, e, 97)) for seed in (0, 1, 2) for e in (0, 1, 2)}
    assert len(set(orders.values())) == 9


def test_each_epoch_drops_others():
    dropped = [set(range(11)) - set(epoch(0, number, 5, 11)) for number in range(40)]
    assert set().union(*dropped) == set(range(11)) and all(len(images) == 1 for images in dropped)


def test_every_place_in_the_order_is_equally_likely():
    counts = np.zeros((5, 5))
    for number in range(5000):
        counts[np.arange(5), batching.epoch_order(3, number, 5)] += 1
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000 * 0.8)  # five standard deviations


@given(st.integers(1, 50), st.integers(1, 101))
def test_evaluation_sees_every_image_once_in_order(batch_size, size):
    batches = [batching.evaluation_batch(i, batch_size, size) for i in range(-(-size // batch_size))]
    assert {len(array) for batch in batches for array in batch} == {batch_size}
    indices, weights = map(np.concatenate, zip(*batches, strict=True))
    assert list(indices[weights == 1]) == list(range(size)) and weights.dtype == np.float32
    assert set(indices[weights != 1]) <= {0} and set(weights) <= {0.0, 1.0} and weights.sum() == size


def test_a_batch_larger_than_the_split():
    assert batching.steps_per_epoch(23, 23) == 1
    with pytest.raises(UserError, match="batch_size=24 is larger than the training split of 23 images; .* at most 23"):
        batching.steps_per_epoch(24, 23)


@given(SEEDS, EPOCHS, st.integers(1, 29), st.integers(29, 97), st.integers(1, 5))
def test_with_repeats_each_image_comes_so_often_in_a_row(seed, number, batch_size, size, repeats):
    steps = batching.steps_per_epoch(batch_size, size)
    batches = [batching.train_indices(seed, number * steps + i, batch_size, size, repeats) for i in range(steps)]
    seen = np.concatenate(batches)
    if repeats == 1:  # changes nothing
        np.testing.assert_array_equal(seen, epoch(seed, number, batch_size, size))
    order = batching.epoch_order(seed, number, size)
    assert len(seen) == steps * batch_size  # an epoch keeps its length
    np.testing.assert_array_equal(seen, [order[q // repeats] for q in range(len(seen))])


def test_repeats_see_other_images_in_other_epochs():
    seen = [set(batching.train_indices(0, e * 8, 12, 97, 3)) for e in range(30)]
    assert {len(images) for images in seen} == {4} and len(set().union(*seen)) > 60
