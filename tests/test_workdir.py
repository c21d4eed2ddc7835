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
from vit_jax import augment, config, evaluate, inference, models
from vit_jax.command import UserError
from vit_jax.data import Preprocessing, open_data
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
    named = {path.name for path in vars(workdir).values() if path.parent == workdir.path}
    there = {path.name for path in finished.iterdir()}
    assert named - there == {"attention.json", "tensorboard", "report.html"}  # of a ViT; switched off; by `main`
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
    assert len(paths) == 3 and all(json.loads(path.read_text()) == {"x": 1} for path in paths)


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
def test_a_damaged_file_is_one_line_that_says_what_to_do(copied, name):
    use, remedy = DAMAGED[name]
    for content in (b"", b'{"a": ', b"3", b"\xff\xfe"):
        (copied.path / name).write_bytes(content)
        with pytest.raises(UserError) as mistake:
            use(copied)
        assert f"{copied}/{name} cannot be read (" in str(mistake.value) and remedy in str(mistake.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("preprocessing.json", {"resize": "crop"}, "it lacks 'size'"),
        ("preprocessing.json", {"size": [3, 4], "resize": "crop", "channels": 3, "new": 1}, "argument 'new'"),
        ("images.json", {"train": 5}, "it lacks 'validation'"),
        ("attention.json", {"device": "cpu"}, "it lacks 'kernel'"),
    ],
)
def test_a_file_with_other_keys_is_damaged_too(copied, name, content, expected):
    (copied.path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"{name} cannot be read \(.*{expected}"):
        DAMAGED[name][0](copied)


def test_a_missing_file_is_told(copied, tmp_path):
    copied.labels_file.unlink()
    with pytest.raises(UserError, match=r"labels.json is missing; put a copy back, or write the names of the classes"):
        inference.load(copied)
    with pytest.raises(UserError, match="holds no run: it has no config.json; give the --workdir of a run"):
        Workdir(tmp_path).config()
    with pytest.raises(UserError, match="holds no finished run: it has no result.json; train it to its end"):
        Workdir(tmp_path).result()


def test_a_run_whose_result_is_lost_only_evaluates_again(copied):
    before = copied.result()
    copied.result_file.unlink()
    assert tiny.start(copied.path, "cnn")[0] == 0
    found = copied.result()
    assert found["test/loss"] == before["test/loss"] and found["steps"] == before["steps"]


def test_runs_of_earlier_versions_are_read(copied):
    """They noted neither how many images they had nor how images are cropped and reduced."""
    copied.images_file.unlink()
    stored = json.loads(copied.preprocessing_file.read_text())
    for key in ("crop_fraction", "interpolation", "draft"):
        del stored[key]
    copied.preprocessing_file.write_text(json.dumps(stored))
    tree = json.loads(copied.config_file.read_text())
    del tree["corruption"], tree["data"]["draft"], tree["optim"]["rms_decay"]
    copied.config_file.write_text(json.dumps(tree))
    given = config.load(tiny.spec("cnn"))
    assert copied.config() == given and copied.images() == {} and copied.changed_images(open_data(given.data)) == ""
    view, _ = copied.preprocessing(augment.Settings())
    assert view == Preprocessing((5, 7), "crop", 3)
    found = evaluate.evaluate_run(copied.path)
    assert found["test/loss"] == pytest.approx(copied.result()["test/loss"], rel=1e-6)


READ = """
import sys
from vit_jax.workdir import Workdir
print(ascii(Workdir(sys.argv[1]).class_names()))
"""


def test_names_are_utf8_in_any_locale(copied):
    copied.labels_file.write_text(json.dumps(CLASSES, ensure_ascii=False), encoding="utf-8")
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    words = [sys.executable, "-X", "warn_default_encoding", "-W", "error::EncodingWarning:vit_jax", "-c", READ, copied]
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
    assert workdir.result() == {"step": 1} and list(tmp_path.iterdir()) == [workdir.result_file]
