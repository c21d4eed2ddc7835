"""Batches on four devices: the same bits from every cache, every image once in evaluation, errors that arrive."""

import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from tests.data.images import SHAPE, Images
from tests.test_distributed import finish, start
from vit_jax import sharding
from vit_jax.command import UserError
from vit_jax.data import Loader, Preprocessing, RandomCrop, Split, batching

CACHES = ("device", "host", "none")
ALL = ("image", "label", "mask")
SIZE = 23
CROP = RandomCrop((3, 2), 3, (0.3, 1.0), (3 / 4, 4 / 3))


def make(cache: str, broken=(), devices=4, repeats=1, crop=None, fields=("image", "label"), **options) -> Loader:
    split = Split("train", Images(SIZE, broken), Preprocessing(SHAPE[:2], "crop", 3), fields=ALL, **options)
    mesh = sharding.make_mesh(sharding.Settings(), jax.devices()[:devices])
    where = {"on_device": cache == "device", "in_memory": cache == "host"}
    return Loader(split, mesh, **where, threads=2, repeats=repeats, crop=crop, fields=fields)


def seen(loader: Loader, batch: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """What a step sees of a batch, wherever its images lie."""
    rest = {k: np.asarray(v) for k, v in batch.items() if k != "index"}
    if "index" in batch:
        rows = np.asarray(batch["index"])
        return {k: np.asarray(v)[rows] for k, v in loader.constants["examples"].items()} | rest
    return rest


def train(cache: str, start=0, stop=7, **options) -> list[dict[str, np.ndarray]]:
    loader = make(cache, **options)
    return [seen(loader, batch) for batch in loader.train(5, 8, start, stop)]


def evaluation(cache: str, batch_size=8, **options) -> dict[str, np.ndarray]:
    loader = make(cache, **options)
    batches = [seen(loader, batch) for batch in loader.evaluation(batch_size)]
    assert all(len(batch["image"]) == batch_size for batch in batches)
    return {k: np.concatenate([batch[k] for batch in batches]) for k in batches[0]}


def assert_same(found: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for k in ours:
            np.testing.assert_array_equal(ours[k], theirs[k])
            assert ours[k].dtype == theirs[k].dtype


EACH_WAY = [*((cache, None) for cache in CACHES), ("none", CROP)]


def stored(row: int, crop: RandomCrop | None) -> np.ndarray:
    pixels = Images(SIZE).pixels[row]
    return crop(pixels) if crop else pixels


@pytest.mark.parametrize("crop", [None, CROP])
def test_a_batch_holds_the_images_of_its_step(crop):
    for step, batch in enumerate(train("none", crop=crop)):
        rows = batching.train_indices(5, step, 8, SIZE)
        expected = [stored(row, crop and crop.at(5, step, i)) for i, row in enumerate(rows)]
        np.testing.assert_array_equal(batch["image"], expected)
        np.testing.assert_array_equal(batch["label"], rows % 11)
        assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32


@pytest.mark.parametrize(("cache", "crop"), EACH_WAY)
def test_every_cache_gives_the_same_bits_from_any_step_on_any_devices(cache, crop):
    expected = train("none", devices=1, crop=crop)
    assert_same(train(cache, crop=crop), expected)
    assert_same(train(cache, start=4, crop=crop), expected[4:])
    assert train(cache, start=7, crop=crop) == []


@pytest.mark.parametrize("fields", [("image",), ("image", "label"), ALL], ids=str)
@pytest.mark.parametrize(("cache", "crop"), EACH_WAY)
def test_spec_describes_a_training_batch_and_the_constants_before_anything_is_decoded(cache, crop, fields):
    loader = make(cache, crop=crop, fields=fields)
    spec, constants = loader.spec(8), loader.constants_spec()
    assert not loader.split.arrays
    assert list(spec) == (["index"] if cache == "device" else list(fields))
    [batch] = loader.train(5, 8, 0, 1)
    for found, described in ((batch, spec), (loader.constants, constants)):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(
            lambda x: (x.shape, x.dtype), described
        )
    assert seen(loader, batch).keys() == set(fields)
    assert next(loader.evaluation(8)).keys() - {"index", "number", "weight"} <= set(fields)


def test_a_field_that_the_examples_lack_is_the_users_error():
    with pytest.raises(UserError, match="the examples of split 'train' have no depth, only image and label and mask"):
        make("none", fields=("image", "depth"))


def test_a_mask_is_cropped_with_its_image():
    for step, batch in enumerate(train("none", stop=2, crop=CROP, fields=("image", "mask"))):
        for i, row in enumerate(batching.train_indices(5, step, 8, SIZE)):
            np.testing.assert_array_equal(
                batch["mask"][i], CROP.at(5, step, i).mask(Images(SIZE).pixels[row, ..., 0] // 16)
            )


@pytest.mark.parametrize("cache", CACHES)
def test_repeats_are_seen_in_training_alone(cache):
    for step, batch in enumerate(train(cache, repeats=3)):
        rows = batching.train_indices(5, step, 8, SIZE, 3)
        np.testing.assert_array_equal(batch["image"], Images(SIZE).pixels[rows])
        assert len(set(rows)) in (3, 4)
    assert list(evaluation(cache, repeats=3)["number"][:SIZE]) == list(range(SIZE))


def test_repeats_of_an_image_are_cropped_apart():
    [batch] = train("none", stop=1, repeats=3, crop=CROP)
    rows = batching.train_indices(5, 0, 8, SIZE, 3)
    assert rows[0] == rows[1] == rows[2] and len(np.unique(batch["image"][:3], axis=0)) == 3


def test_evaluation_is_not_cropped():
    np.testing.assert_array_equal(evaluation("none", crop=CROP)["image"], evaluation("none")["image"])


@pytest.mark.parametrize("cache", CACHES)
def test_evaluation_sees_every_image_once(cache):
    for batch_size in (4, 8, 28):
        found = evaluation(cache, batch_size)
        real = found["weight"] == 1
        np.testing.assert_array_equal(found["image"][real], Images(SIZE).pixels)
        np.testing.assert_array_equal(found["label"][real], np.arange(SIZE) % 11)
        assert found["weight"].dtype == np.float32 and found["weight"].sum() == SIZE


@pytest.mark.parametrize("cache", CACHES)
def test_each_device_holds_its_rows_of_a_batch_and_all_constants(cache):
    loader = make(cache)
    for array in next(iter(loader.train(5, 8, 0, 1))).values():
        assert [shard.data.shape[0] for shard in array.addressable_shards] == [2] * 4
    for array in loader.constants.get("examples", {}).values():
        assert array.is_fully_replicated and len(array) == SIZE
    assert bool(loader.constants) == (cache == "device")


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("use", [train, evaluation])
def test_a_broken_image_arrives_as_the_users_error(cache, use):
    with pytest.raises(UserError, match=r"broken image image 13: no such sector"):
        use(cache, broken=[13])


@pytest.mark.parametrize(("cache", "crop"), EACH_WAY)
def test_a_broken_image_that_is_allowed_is_replaced_in_training_by_the_next_one(cache, crop):
    instead = {13: 15, 14: 15, 22: 0}
    found, clean = train(cache, broken=instead, max_bad_fraction=0.2, crop=crop), train(cache, crop=crop)
    replaced = []
    for step, (ours, theirs) in enumerate(zip(found, clean, strict=True)):
        rows = batching.train_indices(5, step, 8, SIZE)
        hit = np.isin(rows, list(instead))
        np.testing.assert_array_equal(ours["image"][~hit], theirs["image"][~hit])
        for at in map(int, np.flatnonzero(hit)):
            np.testing.assert_array_equal(ours["image"][at], stored(instead[rows[at]], crop and crop.at(5, step, at)))
            assert ours["label"][at] == instead[rows[at]] % 11
        replaced += list(rows[hit])
    assert set(replaced) == set(instead)


@pytest.mark.parametrize("cache", CACHES)
def test_a_broken_image_that_is_allowed_does_not_count_in_evaluation(cache):
    found = evaluation(cache, broken=[0, 13], max_bad_fraction=0.1)
    real = found["weight"] == 1
    np.testing.assert_array_equal(found["image"][real], np.delete(Images(SIZE).pixels, [0, 13], axis=0))
    assert found["weight"].sum() == SIZE - 2


PART = """
import sys
import jax
import numpy as np
from vit_jax import distributed
with distributed.joined():
    jax.devices()  # before the tests ask for four
    from tests.data import test_loader
    np.savez(f"{sys.argv[1]}/{jax.process_index()}", **dict(test_loader.parts()))
"""


def parts() -> Iterator[tuple[str, np.ndarray]]:
    """Each part of each batch that lies on a device of this process, by its first row."""
    for cache, crop in (("device", None), ("host", None), ("none", None), ("none", CROP)):
        loader = make(cache, crop=crop)
        batches = {"train": loader.train(5, 8, 2, 5), "evaluation": loader.evaluation(8)}
        for use, number, batch in [(use, *each) for use, found in batches.items() for each in enumerate(found)]:
            for key, array in batch.items():
                for shard in array.addressable_shards:
                    yield f"{cache} {crop is None} {use} {number} {key} {shard.index[0].start}", np.asarray(shard.data)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_sees_the_same_bits(tmp_path, processes):
    done = finish(start(PART, processes, str(tmp_path), devices=4 // processes))
    assert [process.returncode for process in done] == [0] * processes, done
    found = [dict(np.load(tmp_path / f"{i}.npz")) for i in range(processes)]
    expected = dict(parts())
    assert sum(map(len, found)) == len(expected), "each part is in one process"
    for key, part in (item for own in found for item in own.items()):
        np.testing.assert_array_equal(part, expected[key])
        assert part.dtype == expected[key].dtype


def test_a_loader_that_is_left_early_leaves_no_thread_behind():
    before = threading.active_count()
    batches = make("none").train(5, 8, 0, 10**6)
    next(batches)
    batches.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
