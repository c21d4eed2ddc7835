"""The folder of a run: its files by name, written whole, read with one clear line about each that is damaged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.conftest import REPOSITORY
from vit_jax import augment, config, evaluate, inference, manifest, models, train
from vit_jax import workdir as workdir_module
from vit_jax.command import UserError
from vit_jax.data import Preprocessing, open_data
from vit_jax.files import write_atomically
from vit_jax.log import read_metrics
from vit_jax.workdir import Workdir, default_workdir

CLASSES = ["Kätzchen", "犬", "bird"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return tiny.finished(tmp_path_factory, "cnn")


@pytest.fixture
def copied(finished, tmp_path) -> Workdir:
    """One that a test may change."""
    shutil.copytree(finished, tmp_path / "run")
    return Workdir(tmp_path / "run")


@pytest.fixture
def older(copied) -> Workdir:
    """As a version left it that kept neither checksums of these files nor copies of them."""
    copied.manifest_file.unlink()
    for step in copied.saved_steps():
        folder = copied.checkpoints / str(step)
        about = json.loads((folder / "about" / "metadata").read_text())
        del about["description"]
        (folder / "about" / "metadata").write_text(json.dumps(about))
        (folder / "checksums.json").unlink()
    return copied


@pytest.mark.parametrize(
    ("spec", "workdir"),
    [
        ("configs/digits.py", "runs/digits"),
        ("configs/cifar100.py:vit", "runs/cifar100-vit"),
        ("/somewhere/else/x.py:a=1,b", "runs/x-a_1_b"),
        ("runs/x/config.json", "runs/x"),
    ],
)
def test_default_workdir(spec, workdir):
    assert default_workdir(spec) == Path(workdir)


def test_a_finished_run_has_the_files_that_are_named_here_and_no_others(finished):
    workdir = Workdir(finished)
    named = {path.name for path in vars(workdir).values() if getattr(path, "parent", None) == finished}
    there = {path.name for path in finished.iterdir()}
    later = {"bad_batches.txt", "lock.json"}  # of one that diverged; that trains
    assert (
        named - there == {"attention.json", "tensorboard", "report.html"} | later
    )  # of a ViT; switched off; by `main`
    assert {name for name in there - named if not name.startswith("evaluation-")} == set()


def test_a_run_is_read_as_it_was_written(finished):
    workdir = Workdir(finished)
    given = config.load(tiny.spec("cnn"))
    assert workdir.is_run() and workdir.has_begun() and workdir.is_finished()
    assert workdir.config() == given and workdir.config(["seed=5"]).seed == 5
    assert workdir.class_names() == ("class 0", "class 1", "class 2")
    assert workdir.saved_steps()[-1] == 23 == workdir.result()["steps"]
    assert workdir.images() == {"train": 180, "validation": 20, "test": 40}
    assert [line["step"] for line in workdir.metrics() if "train/loss" in line] == [7, 14, 21, 23]
    [start] = workdir.starts()
    assert start["parameters"] == workdir.result()["parameters"] and start["versions"]["numpy"] == np.__version__
    progress = workdir.progress()
    assert progress["step"] == 23 and progress["best"] and progress["training_seconds"] > 0
    view, used = workdir.preprocessing(given.augment)
    assert view == open_data(given.data).preprocessing and len(used.mean) == 3
    assert str(workdir) == os.fspath(workdir) == str(finished) and Workdir(workdir).path == finished


def test_an_evaluation_has_a_file_for_each_way_to_evaluate(tmp_path):
    workdir = Workdir(tmp_path)
    assert workdir.evaluation_file("train[:90%]") == tmp_path / "evaluation-train__90__.json"
    paths = {workdir.write_evaluation({"x": 1}, "test", changes) for changes in ([], ["seed=1"], ["seed=1", "a.b=2"])}
    assert len(paths) == 3 and all(json.loads(path.read_text()).items() >= {"x": 1}.items() for path in paths)


def test_what_probes_found_proves_itself(tmp_path):
    workdir = Workdir(tmp_path)
    found = {"step": 3, "with": ["seed=1"], "test/knn_accuracy": 0.625, "nothing": float("inf")}
    path = workdir.write_evaluation(found, "test", kind="probes")
    assert workdir.probes() == [found]
    path.write_text(path.read_text().replace("0.625", "0.725"))
    with pytest.raises(UserError, match="probes-test.json cannot be read .its checksum differs.; delete it"):
        workdir.probes()
    path.write_text(json.dumps(found))  # as earlier versions did
    assert workdir.probes() == [found]


AUTO = config.from_dict({"model": models.settings("vit/mu16", attention="auto")})
DAMAGED = {
    "config.json": (lambda w: inference.load(w), "put a copy back, or train anew"),
    "labels.json": (lambda w: inference.load(w), "a JSON list in the order of the labels"),
    "preprocessing.json": (lambda w: inference.find_weights(w.path), "put a copy back"),
    "images.json": (lambda w: w.images(), "delete it to go on with the images"),
    "attention.json": (lambda w: w.with_kernel(AUTO), "delete it: the kernels are then timed anew"),
    "result.json": (lambda w: tiny.start(w.path, "cnn"), "delete it and start the run again"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_line_that_says_what_to_do(older, name):
    use, remedy = DAMAGED[name]
    for content in (b"", b'{"a": ', b"3", b"\xff\xfe"):
        (older.path / name).write_bytes(content)
        with pytest.raises(UserError) as mistake:
            use(older)
        assert f"{older}/{name} cannot be read (" in str(mistake.value) and remedy in str(mistake.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("preprocessing.json", {"resize": "crop"}, "it lacks 'size'"),
        ("preprocessing.json", {"size": [3, 4], "resize": "crop", "channels": 3, "new": 1}, "argument 'new'"),
        ("images.json", {"train": 5}, "it lacks 'validation'"),
        ("attention.json", {"device": "cpu"}, "it lacks 'kernel'"),
    ],
)
def test_a_file_with_other_keys_is_damaged_too(older, name, content, expected):
    (older.path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"{name} cannot be read \(.*{expected}"):
        DAMAGED[name][0](older)


def test_a_missing_file_is_told(older, tmp_path):
    older.labels_file.unlink()
    with pytest.raises(UserError, match=r"labels.json is missing; put a copy back, or write the names of the classes"):
        inference.load(older)
    with pytest.raises(UserError, match="holds no run: it has no config.json; give the --workdir of a run"):
        Workdir(tmp_path).config()
    with pytest.raises(UserError, match="holds no finished run: it has no result.json; train it to its end"):
        Workdir(tmp_path).result()


DESCRIBES = ["config.json", "labels.json", "preprocessing.json", "images.json"]


def flip(path: Path) -> None:
    """Changes the last digit: the file stays whole JSON, and says something else."""
    content = bytearray(path.read_bytes())
    at = next(i for i in reversed(range(len(content))) if chr(content[i]).isdigit())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", DESCRIBES)
def test_what_describes_a_run_is_read_from_a_checkpoint_where_it_is_damaged(copied, finished, name, caplog):
    damage = (flip, lambda path: path.write_bytes(b"\xff\xfe"), Path.unlink)
    for change in damage:
        shutil.copy(finished / name, copied.path / name)
        change(copied.path / name)
        caplog.clear()
        workdir, expected = Workdir(copied.path), Workdir(finished)
        workdir_module._told.clear()
        assert workdir.is_run() and workdir.config() == expected.config()
        assert (workdir.class_names(), workdir.images()) == (expected.class_names(), expected.images())
        assert workdir.preprocessing(augment.Settings()) == expected.preprocessing(augment.Settings())
        [told] = caplog.messages
        assert name in told and told.endswith("it is read from the copy in a checkpoint")


def test_a_start_puts_the_copy_in_the_place_of_what_is_damaged(copied, finished):
    flip(copied.labels_file)
    damaged, before = copied.labels_file.read_bytes(), copied.result()
    copied.result_file.unlink()
    assert tiny.start(copied.path, "cnn")[0] == 0  # evaluates again
    assert copied.result()["test/loss"] == before["test/loss"] and copied.result()["steps"] == before["steps"]
    assert copied.labels_file.read_bytes() == (finished / "labels.json").read_bytes()
    assert (copied.path / "labels.json.damaged").read_bytes() == damaged


def test_a_run_that_lost_its_configuration_is_not_taken_for_one_of_another(copied):
    copied.config_file.unlink()
    with pytest.raises(UserError, match=r"holds a run of another configuration: optim.lr \(0.03 there, 0.5 now\)"):
        train.check_workdir(config.load(tiny.spec("cnn"), ["optim.lr=0.5"]), copied)


def test_a_digit_that_changed_is_told_wherever_it_is(copied):
    reads = {"result.json": copied.result, "progress.json": copied.progress, "starts.json": copied.starts}
    for name, read in reads.items():
        flip(copied.path / name)
        with pytest.raises(UserError, match=rf"{name} cannot be read \(it is not what was written"):
            read()
    with pytest.raises(UserError, match="predictions.npz cannot be read"):
        flip(copied.predictions_file)
        copied.check(copied.predictions_file)


def test_a_damaged_or_missing_log_is_that_of_the_newest_checkpoint(copied, caplog):
    lines = copied.metrics()
    for damage in (flip, Path.unlink):
        caplog.clear()
        damage(copied.metrics_file)
        assert copied.metrics() == lines
        assert "metrics.jsonl cannot be read" in caplog.text and "copy in a checkpoint" in caplog.text
    copied.cut_metrics()
    assert "its lines are now those of a checkpoint" in caplog.text and read_metrics(copied.metrics_file) == lines


def test_a_log_that_is_too_large_is_not_copied(copied, monkeypatch):
    assert "metrics.jsonl" in copied.copies()
    monkeypatch.setattr(workdir_module, "COPIED_LOG_BYTES", 10)
    assert "metrics.jsonl" not in copied.copies()


def test_the_next_start_says_that_the_notes_of_the_former_ones_are_damaged(copied, caplog):
    flip(copied.starts_file)
    damaged = copied.starts_file.read_bytes()
    copied.write_start({})
    assert "starts.json cannot be read" in caplog.text and "it is now starts.json.damaged" in caplog.text
    assert len(copied.starts()) == 1 and (copied.path / "starts.json.damaged").read_bytes() == damaged


def test_a_manifest_that_is_damaged_is_told_and_a_newer_one_refused(copied, caplog):
    flip(copied.manifest_file)
    assert copied.result()["steps"] == 23 and "checksums.json is damaged" in caplog.text
    copied.manifest_file.write_text('{"format": 2, "files": {}}')
    with pytest.raises(UserError, match="has format 2, this version reads up to 1; install a newer vit_jax"):
        copied.result()


def test_a_crash_between_a_proof_and_its_file_leaves_the_former_file_proven(tmp_path, monkeypatch):
    workdir = Workdir(tmp_path)
    workdir.write_progress(1, {})

    def write_unless(path, text):
        if path.name == "progress.json":
            raise OSError("killed")
        write_atomically(path, text)

    monkeypatch.setattr(manifest, "write_atomically", write_unless)
    with pytest.raises(OSError, match="killed"):
        workdir.write_progress(2, {})
    assert workdir.progress() == {"step": 1}


def test_lines_that_follow_what_is_proven_are_read_and_changed_ones_are_told(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.metrics_file.write_text('{"step": 1, "x": 2}\n')
    workdir.write_progress(1, {})
    with workdir.metrics_file.open("a") as file:
        file.write('{"step": 2, "x": 3}\n')
    assert len(workdir.metrics()) == 2
    workdir.write_progress(2, {})
    workdir.metrics_file.write_text('{"step": 1, "x": 2}\n{"step": 2, "x": 4}\n')
    with pytest.raises(UserError, match="metrics.jsonl cannot be read"):
        workdir.metrics()
    workdir.cut_metrics()
    assert len(workdir.metrics()) == 2


def test_a_log_that_was_removed_and_has_grown_longer_is_proven_as_it_is(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.metrics_file.write_text('{"step": 1, "x": 2}\n')
    workdir.write_progress(1, {})
    workdir.metrics_file.rename(tmp_path / "before")
    workdir.metrics_file.write_text('{"step": 2, "x": 3}\n{"step": 3, "x": 4}\n')
    workdir.write_progress(3, {})
    assert [line["step"] for line in workdir.metrics()] == [2, 3]


def test_runs_of_earlier_versions_are_read(older):
    """They noted neither how many images they had nor how images are cropped and reduced."""
    older.images_file.unlink()
    stored = json.loads(older.preprocessing_file.read_text())
    for key in ("crop_fraction", "interpolation", "draft"):
        del stored[key]
    older.preprocessing_file.write_text(json.dumps(stored))
    tree = json.loads(older.config_file.read_text())
    del tree["corruption"], tree["data"]["draft"], tree["optim"]["rms_decay"]
    older.config_file.write_text(json.dumps(tree))
    given = config.load(tiny.spec("cnn"))
    assert older.config() == given and older.images() == {} and older.changed_images(open_data(given.data)) == ""
    view, _ = older.preprocessing(augment.Settings())
    assert view == Preprocessing((5, 7), "crop", 3)
    found = evaluate.evaluate_run(older.path)
    assert found["test/loss"] == pytest.approx(older.result()["test/loss"], rel=1e-6)


READ = """
import sys
from vit_jax.workdir import Workdir
print(ascii(Workdir(sys.argv[1]).class_names()))
"""


def test_names_are_utf8_in_any_locale(older):
    older.labels_file.write_text(json.dumps(CLASSES, ensure_ascii=False), encoding="utf-8")
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    words = [sys.executable, "-X", "warn_default_encoding", "-W", "error::EncodingWarning:vit_jax", "-c", READ, older]
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == ascii(tuple(CLASSES)), done.stderr


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    given = config.load(tiny.spec("cnn"))
    with pytest.raises(UserError, match=r"cannot write to --workdir .*file/run: .*; give another one"):
        Workdir(tmp_path / "file" / "run").write_description(given, given, open_data(given.data))


def test_a_crash_while_a_file_is_written_leaves_the_former_one(tmp_path, monkeypatch):
    workdir = Workdir(tmp_path)
    workdir.write_result({"step": 1})
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        workdir.write_result({"step": 2})
    assert workdir.result() == {"step": 1} and {*tmp_path.iterdir()} == {workdir.result_file, workdir.manifest_file}
