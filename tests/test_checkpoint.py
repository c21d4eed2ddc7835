"""Checkpoints: exact whatever the mesh and `scan`, the last and the best kept, no damage unnoticed."""

import errno
import gc
import hashlib
import logging
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import rest_is_slow
from tests.described import described
from vit_jax import checkpoint, checksums, config, models, sharding, step
from vit_jax.checkpoint import Checkpoints, Damaged, canonical, restore_variables
from vit_jax.command import UserError
from vit_jax.train import Experiment

VIT = models.settings("vit", patch_size=(2,), width=4, depth=2, mlp_dim=8, num_heads=2, num_classes=5)
CNN = models.settings("cnn", stages=((3,),), dense_widths=(7,), num_classes=5)
ABOUT = {"book": {"seconds": 1.5, "window": [{"loss": 0.1}]}}


BUILT: dict[str, Experiment] = {}  # tracing a model's state takes longer than writing it


def build(*overrides: str, model=VIT, devices=1) -> Experiment:
    """An experiment whose state has averages; nothing is compiled."""
    key = repr((overrides, model, devices))
    if key not in BUILT:
        BUILT[key] = _build(*overrides, model=model, devices=devices)
    return BUILT[key]


def _build(*overrides: str, model, devices: int) -> Experiment:
    given = config.from_dict(
        {"model": model, "augment": {"mean": (0.5,), "std": (0.5,)}, "optim": {"ema_decay": 0.5, "clip_norm": 1.0}},
        ["train.batch_size=8", "train.steps=3", *overrides],
    )
    return described(given, (4, 4, 1), classes=5, images=8, devices=devices)


def fill(built: Experiment, seed: int = 0) -> step.TrainState:
    """A state of random numbers, placed as the mesh wants it."""
    rng = np.random.default_rng(seed)
    places = sharding.tree_shardings(built.abstract_state, built.mesh, built.rules)
    return jax.tree.map(
        lambda leaf, place: (
            jax.device_put(rng.integers(0, 2**20, leaf.shape).astype(leaf.dtype) / 7 // 1e-3, place)
            if leaf.dtype == jnp.float32
            else jax.device_put(rng.integers(0, 2**20, leaf.shape).astype(leaf.dtype), place)
        ),
        built.abstract_state,
        places,
    )


def assert_equal(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def save(directory: Path, *states, scores=(), **options) -> None:
    """Saves the states at the steps 1, 2, ..."""
    checkpoints = Checkpoints(directory, **options)
    for at, state in enumerate(states, 1):
        checkpoints.save(state, at, ABOUT, scores[at - 1] if scores else None)
    checkpoints.close()


def restore(directory: Path, built: Experiment):
    checkpoints = Checkpoints(directory)
    restored = checkpoints.restore_newest(built.abstract_state, built.mesh, built.rules)
    checkpoints.close()
    return restored


@pytest.fixture(scope="module")
def cnn() -> Experiment:
    return build("optim.name=sgd", "optim.ema_decay=0", model=CNN)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, cnn) -> Path:
    """Two checkpoints of `cnn`, filled with the seeds 1 and 2."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(directory, fill(cnn, 1), fill(cnn, 2), scores=(0.1, 0.2), keep_last=2)
    return directory


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "checkpoints")


@pytest.fixture(scope="module")
def saved_vit(tmp_path_factory) -> Path:
    """A checkpoint of a ViT with averages."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(directory, fill(build()))
    return directory


@pytest.fixture
def collected():
    """Ends here what Orbax leaves behind where reading fails: coroutines whose end is an error that nobody awaits."""
    yield
    gc.collect()


leaves_coroutines = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize(("model", "optimizer"), [(VIT, "adamw"), (CNN, "adafactor")], ids=["vit", "cnn"])
def test_everything_comes_back_to_the_last_bit(tmp_path, model, optimizer):
    built = build(f"optim.name={optimizer}", model=model)
    state = fill(built)
    save(tmp_path / "c", state)
    found, about = restore(tmp_path / "c", built)
    assert_equal(found, state)
    assert about["book"] == ABOUT["book"]
    assert bool(jax.tree.leaves(found.batch_stats)) == (model is CNN)
    assert int(found.guard["skipped"]) > 0 and jax.tree.leaves(found.ema) and int(found.step) == int(state.step)


@pytest.mark.parametrize("optimizer", rest_is_slow(["adafactor", "adamw"]))
@pytest.mark.parametrize("scanned", [True, False])
def test_a_scanned_model_resumes_a_looped_one_and_the_other_way_round(tmp_path, optimizer, scanned):
    before, after = (build(f"optim.name={optimizer}", f"model.scan={scan}") for scan in (scanned, not scanned))
    state = fill(before)
    save(tmp_path / "c", state)
    found, _ = restore(tmp_path / "c", after)
    assert jax.tree.structure(found) == jax.tree.structure(after.abstract_state)
    assert [leaf.shape for leaf in jax.tree.leaves(found)] == [
        leaf.shape for leaf in jax.tree.leaves(after.abstract_state)
    ]
    assert_equal(canonical(found), canonical(state))


MESHES = {
    "one": ((), 1),
    "data": ((), 4),
    "fsdp": (("mesh.fsdp=4",), 4),
    "tensor": (("mesh.fsdp=2", "mesh.tensor=2"), 4),
}


@pytest.mark.parametrize(
    ("before", "after", "scan"),
    [("one", "data", False), ("data", "one", False), ("one", "fsdp", True), ("fsdp", "tensor", False)],
)
def test_another_mesh_resumes_exactly(tmp_path, before, after, scan):
    old, new = (build(*MESHES[name][0], f"model.scan={scan}", devices=MESHES[name][1]) for name in (before, after))
    state = fill(old)
    save(tmp_path / "c", state)
    found, _ = restore(tmp_path / "c", new)
    assert_equal(found, state)
    places = sharding.tree_shardings(new.abstract_state, new.mesh, new.rules)
    assert all(
        leaf.sharding.is_equivalent_to(place, leaf.ndim)
        for leaf, place in zip(jax.tree.leaves(found), jax.tree.leaves(places), strict=True)
    )


def test_with_wait_a_checkpoint_is_whole_when_save_returns(tmp_path, cnn):
    checkpoints = Checkpoints(tmp_path / "c", wait=True)
    checkpoints.save(fill(cnn), 1, ABOUT)
    checksums.verify(tmp_path / "c" / "1")
    assert (tmp_path / "c" / "1" / checksums.CHECKSUMS).exists()
    checkpoints.close()


def test_the_last_and_the_best_stay(tmp_path, cnn):
    state = fill(cnn)
    scores = (0.1, 0.9, 0.3, 0.8, 0.2, None)
    save(tmp_path / "both", *[state] * 6, scores=scores, keep_last=2, keep_best=2)
    both = tmp_path / "both"
    assert checkpoint.saved_steps(both) == [2, 4, 5, 6] and checkpoint.best_step(both) == 2
    save(tmp_path / "last", *[state] * 4, scores=scores[:4], keep_last=1, keep_best=0)
    assert checkpoint.saved_steps(tmp_path / "last") == [4]


def test_of_equal_scores_the_later_is_best_and_without_scores_none(tmp_path, cnn):
    state = fill(cnn)
    save(tmp_path / "equal", *[state] * 3, scores=(0.5, 0.5, 0.1), keep_last=3)
    assert checkpoint.best_step(tmp_path / "equal") == 2
    save(tmp_path / "none", state)
    assert checkpoint.best_step(tmp_path / "none") is None


def test_a_step_that_is_there_is_left_alone(copied, cnn):
    checkpoints = Checkpoints(copied, keep_last=2)
    checkpoints.save(fill(cnn, 3), 2, {})
    checkpoints.close()
    assert_equal(restore(copied, cnn)[0], fill(cnn, 2))


def test_no_checkpoint(tmp_path, cnn):
    assert restore(tmp_path / "new", cnn) is None
    assert Checkpoints(tmp_path / "new").best_step() is None


def test_what_a_killed_process_leaves_behind_does_no_harm(copied, cnn):
    unfinished = copied / "3.orbax-checkpoint-tmp-7"
    shutil.copytree(copied / "2", unfinished)
    (copied / "4.orbax-checkpoint-tmp-11").mkdir()
    (copied / "2" / "checksums.tmp").write_text("{")
    assert_equal(restore(copied, cnn)[0], fill(cnn, 2))
    assert not unfinished.exists()


def test_without_checksums_a_checkpoint_is_used(copied, cnn):
    (copied / "2" / "checksums.json").unlink()
    assert_equal(restore(copied, cnn)[0], fill(cnn, 2))
    assert (copied / "2" / "checksums.json").exists()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def largest(directory: Path) -> Path:
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_a_flipped_byte_in_any_file_is_detected(copied, cnn):
    files = [path for path in (copied / "2").rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 10
    checkpoints = Checkpoints(copied)
    for path in files:
        whole = path.read_bytes()
        flip(path)
        with pytest.raises(Damaged, match="is|has" if path.name == "checksums.json" else re.escape(path.name)):
            checkpoints.restore(2, cnn.abstract_state, cnn.mesh, cnn.rules)
        path.write_bytes(whole)
    assert_equal(checkpoints.restore(2, cnn.abstract_state, cnn.mesh, cnn.rules)[0], fill(cnn, 2))


DAMAGES = {
    "flipped": lambda folder: flip(largest(folder / "state")),
    "truncated": lambda folder: truncate(largest(folder / "state")),
    "deleted": lambda folder: largest(folder / "state").unlink(),
    "metadata of the arrays": lambda folder: flip(folder / "state" / "_METADATA"),
    "metadata of the checkpoint": lambda folder: (folder / "_CHECKPOINT_METADATA").write_text("{"),
    "metrics": lambda folder: (folder / "metrics" / "metrics").write_text("{"),
    "about": lambda folder: (folder / "about" / "metadata").unlink(),
    "checksums": lambda folder: (folder / "checksums.json").write_text("{"),
    "arrays": lambda folder: shutil.rmtree(folder / "state"),
}
UNCHECKED = {
    "truncated": lambda folder: truncate(largest(folder / "state" / "d")),
    "deleted": lambda folder: largest(folder / "state" / "d").unlink(),
    "metadata of the arrays": lambda folder: (folder / "state" / "_METADATA").write_text("{"),
    "about": lambda folder: (folder / "about" / "metadata").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(copied, cnn, damage, caplog):
    damage(copied / "2")
    with caplog.at_level(logging.WARNING):
        found, _ = restore(copied, cnn)
    assert_equal(found, fill(cnn, 1))
    assert re.search(r"checkpoint 2 is damaged \(.+\): going back to an older one", caplog.text)
    assert not (copied / "2").exists() and (copied.parent / "checkpoints-damaged" / "2").exists()


@leaves_coroutines
@pytest.mark.parametrize("damage", rest_is_slow(UNCHECKED.values()), ids=UNCHECKED)
def test_damage_that_orbax_sees_is_found_without_checksums(copied, cnn, damage, caplog, collected):
    damage(copied / "2")
    (copied / "2" / "checksums.json").unlink()
    found, _ = restore(copied, cnn)
    assert_equal(found, fill(cnn, 1))
    assert "checkpoint 2 is damaged" in caplog.text


def test_training_goes_on_after_a_damaged_checkpoint(copied, cnn):
    flip(largest(copied / "2" / "state"))
    checkpoints = Checkpoints(copied, keep_last=2)
    checkpoints.restore_newest(cnn.abstract_state, cnn.mesh, cnn.rules)
    checkpoints.save(fill(cnn, 5), 2, {}, 0.3)
    checkpoints.close()
    assert_equal(restore(copied, cnn)[0], fill(cnn, 5))


def test_all_checkpoints_damaged(copied, cnn, caplog):
    for at in "12":
        flip(largest(copied / at / "state"))
    assert restore(copied, cnn) is None
    assert "checkpoint 1 is damaged" in caplog.text and "checkpoint 2 is damaged" in caplog.text


WRONG = {
    "width": ({"width": 6}, r"has .*\[.*\], expected float32\[.*\]"),
    "depth": ({"depth": 1}, "encoderblock_1"),
    "class token": ({"class_token": False, "pooling": "gap"}, "cls"),
}


@pytest.mark.parametrize(("fields", "expected"), WRONG.values(), ids=WRONG)
def test_another_model_is_the_users_mistake(saved_vit, fields, expected):
    built = build(model={**VIT, **fields})
    with pytest.raises(UserError, match=rf"the checkpoint in .*{expected}.*; it belongs to another configuration"):
        restore(saved_vit, built)
    abstract = jax.eval_shape(step.evaluation_variables, built.abstract_state)
    for part in ("", "ema"):
        with pytest.raises(UserError, match=rf"{expected}.*; it belongs to another configuration"):
            restore_variables(saved_vit, 1, abstract, part)


def test_another_optimizer_or_dtype_is_the_users_mistake(saved_vit):
    with pytest.raises(UserError, match=r"opt_state/.*; it belongs to another configuration"):
        restore(saved_vit, build("optim.name=sgd"))
    with pytest.raises(UserError, match=r"has, but the model does not, ema/"):
        restore(saved_vit, build("optim.ema_decay=0"))
    built = build()
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), built.abstract_state)
    with pytest.raises(UserError, match=r"has .* float32\[.*\], expected bfloat16"):
        Checkpoints(saved_vit).restore_newest(half, built.mesh, built.rules)


def test_a_newer_format_is_refused(tmp_path, cnn, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    save(tmp_path / "c", fill(cnn))
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"has format 2, this version reads up to 1; install a newer"):
        restore(tmp_path / "c", cnn)


@pytest.mark.parametrize("scan", [False, True])
def test_variables_alone(saved_vit, scan):
    built = build(f"model.scan={scan}")
    state = restore(saved_vit, built)[0]
    for part, expected in (("", {"params": state.params, "batch_stats": {}}), ("ema", state.ema)):
        found = restore_variables(saved_vit, 1, jax.eval_shape(lambda e=expected: e), part)
        assert_equal(found, expected)
        assert all(leaf.devices() == {jax.local_devices()[0]} for leaf in jax.tree.leaves(found))


def test_batch_statistics_are_variables(copied, cnn):
    abstract = jax.eval_shape(step.evaluation_variables, cnn.abstract_state)
    assert_equal(restore_variables(copied, 2, abstract, ""), step.evaluation_variables(fill(cnn, 2)))


def test_scores_that_cannot_be_read_are_not_the_best(copied):
    (copied / "2" / "metrics" / "metrics").write_text("{")
    assert checkpoint.best_step(copied) == 1


@leaves_coroutines
def test_variables_of_a_damaged_checkpoint(copied, cnn, collected):
    abstract = jax.eval_shape(step.evaluation_variables, cnn.abstract_state)
    flip(largest(copied / "2" / "state"))
    with pytest.raises(Damaged, match="has changed since it was written"):
        restore_variables(copied, 2, abstract, "")
    (copied / "2" / "checksums.json").unlink()
    truncate(largest(copied / "2" / "state" / "d"))
    with pytest.raises(Damaged):
        restore_variables(copied, 2, abstract, "")


def test_what_fails_beside_a_whole_checkpoint_is_told_and_takes_nothing_away(copied, cnn, monkeypatch):
    """As memory that another process still holds: the checkpoint is what was written."""

    def fail(*_, **__):
        raise MemoryError("out of memory")

    checkpoints = Checkpoints(copied)
    monkeypatch.setattr(checkpoints._manager, "restore", fail)
    with pytest.raises(MemoryError):
        checkpoints.restore_newest(cnn.abstract_state, cnn.mesh, cnn.rules)
    assert checkpoint.saved_steps(copied) == [1, 2]


def test_a_file_that_cannot_be_read_is_damage(copied, cnn, monkeypatch, caplog):
    unreadable, digest = largest(copied / "2" / "state"), hashlib.file_digest

    def read(file, kind):
        if file.name == str(unreadable):
            raise OSError(errno.EIO, "Input/output error", file.name)
        return digest(file, kind)

    monkeypatch.setattr(checksums.hashlib, "file_digest", read)
    state, _ = Checkpoints(copied).restore_newest(cnn.abstract_state, cnn.mesh, cnn.rules)
    assert_equal(state, fill(cnn, 1))
    assert "cannot be read: Input/output error" in caplog.text
