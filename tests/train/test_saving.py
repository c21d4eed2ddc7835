"""A disk that is full, or a folder that is gone: training goes on, saves again, and says what is lost."""

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.conftest import REPOSITORY
from vit_jax import log, predict, train
from vit_jax.command import Failure, UserError
from vit_jax.workdir import Workdir


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return tiny.finished(tmp_path_factory, "cnn")


def at_steps(patch: pytest.MonkeyPatch, **do) -> None:
    """Calls `do["step_7"]` while the next runs train step 7."""
    advance = log.Progress.advance

    def advanced(self: log.Progress, at: int) -> None:
        advance(self, at)
        if f"step_{at}" in do:
            do[f"step_{at}"]()

    patch.setattr(log.Progress, "advance", advanced)


def room(allowed: bool) -> None:
    """Without it each write of this process fails, as on a full disk: `File too large`."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if allowed else 0, hard))


def await_checkpoint(workdir: Path, step: int) -> None:
    """Until it is complete, with its checksums."""
    while not (Workdir(workdir).checkpoints / str(step) / "checksums.json").exists():
        time.sleep(0.01)


def no_room(workdir: Path) -> None:
    await_checkpoint(workdir, 9)
    room(False)


@pytest.fixture
def limited():
    yield
    room(True)


def test_a_full_disk_is_waited_for_and_the_run_ends_as_one_that_had_room(tmp_path, finished, limited, caplog):
    with pytest.MonkeyPatch.context() as patch:
        at_steps(patch, step_12=lambda: no_room(tmp_path), step_20=lambda: room(True))
        code, text = tiny.start(tmp_path, "cnn", "log.tensorboard=true")
    assert code == 0
    [warning] = [each for each in tiny.result(tmp_path)["warnings"] if "checkpoint" in each]
    assert warning.startswith("step 16: a checkpoint could not be saved (") or warning.startswith("step 18: ")
    assert "Training goes on, each save tries again; checkpoint 9 is whole" in warning
    assert caplog.text.count("metrics.jsonl cannot be written (File too large)") == 1
    assert tiny.metric_lines(tmp_path) == tiny.metric_lines(finished), "the lines that had to wait, too"
    ours, theirs = tiny.arrays(tmp_path), tiny.arrays(finished)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert not [path for path in tmp_path.rglob("*") if "tmp" in path.name], "debris"


def test_a_run_that_cannot_save_its_end_says_so_and_goes_on_from_what_it_has(tmp_path, finished, limited):
    with pytest.MonkeyPatch.context() as patch:
        at_steps(patch, step_12=lambda: no_room(tmp_path))
        with pytest.raises(Failure, match=r"step 23 could not be saved in .* make room, .*: it goes on from step 9"):
            tiny.start(tmp_path, "cnn")
    room(True)
    assert not Workdir(tmp_path).result_file.exists()
    assert Workdir(tmp_path).saved_steps()[-1] == 9
    assert not list(tmp_path.glob("*tmp*"))
    assert tiny.start(tmp_path, "cnn")[0] == 0  # which removes what threads of Orbax wrote after the failure
    tiny.assert_same_run(tmp_path, finished)
    assert not list(tmp_path.rglob("*orbax-checkpoint-tmp*")), "debris"


def test_a_result_that_cannot_be_written_is_told_and_written_by_the_next_start(
    tmp_path, finished, limited, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "write_result", lambda *_: os.open("", os.O_RDONLY))
        with pytest.raises(Failure, match="the result cannot be written to .*: No such file or directory; make room"):
            tiny.start(tmp_path, "cnn")
    assert not Workdir(tmp_path).predictions_file.exists()
    monkeypatch.setattr(train.Trainer, "compile", None)  # it only evaluates
    assert tiny.start(tmp_path, "cnn")[0] == 0
    tiny.assert_same_run(tmp_path, finished)


def test_a_folder_that_was_removed_comes_back_with_the_next_save(tmp_path, finished):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_steps(patch, step_12=lambda: (await_checkpoint(run, 9), shutil.rmtree(run)))
        assert tiny.start(run, "cnn")[0] == 0
    workdir = Workdir(run)
    assert workdir.saved_steps()[-1] == 23 and workdir.class_names() == Workdir(finished).class_names()
    assert tiny.result(run)["test/loss"] == tiny.result(finished)["test/loss"]
    assert [line["step"] for line in workdir.metrics()] == [14, 18, 21, 23, 23]


def test_a_folder_of_other_files_is_refused_and_keeps_them(tmp_path):
    (tmp_path / "labels.json").write_text("mine")
    (tmp_path / "metrics.jsonl").write_text("mine, too")
    with pytest.raises(
        UserError, match=r"holds no run, but labels.json, metrics.jsonl, which training would write over"
    ):
        tiny.start(tmp_path, "cnn")
    assert (tmp_path / "labels.json").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_a_start_beside_another_one_is_refused(tmp_path):
    second = []

    def start():
        with pytest.raises(UserError, match="is in use: process"):
            tiny.start(tmp_path, "cnn", "train.steps=4")
        second.append(1)

    with pytest.MonkeyPatch.context() as patch:
        at_steps(patch, step_3=start)
        assert tiny.start(tmp_path, "cnn", "train.steps=4")[0] == 0
    assert second and not Workdir(tmp_path).lock_file.exists()


def test_predictions_without_room_leave_nothing(tmp_path):
    out = tmp_path / "out.csv"
    expected = pytest.raises(Failure, match=r"--out .*out.csv cannot be written: No space left on device")
    with expected, predict._opened(out) as file:
        file.write("a")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_on_a_small_file_system_that_fills_up(tmp_path, finished):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root, and a machine that allows it")
    try:
        filler = disk / "filler"

        def fill() -> None:
            descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
            with contextlib.suppress(OSError):
                while True:
                    os.write(descriptor, bytes(4096))
            os.close(descriptor)

        with pytest.MonkeyPatch.context() as patch:
            at_steps(patch, step_12=lambda: (await_checkpoint(disk / "run", 9), fill()), step_20=filler.unlink)
            assert tiny.start(disk / "run", "cnn")[0] == 0
        assert tiny.metric_lines(disk / "run") == tiny.metric_lines(finished)
        ours, theirs = tiny.arrays(disk / "run"), tiny.arrays(finished)
        assert all((ours[name] == theirs[name]).all() for name in theirs)
        fill()
        words = ["--workdir", str(finished), "photos", "--out", str(disk / "out.jsonl")]
        photos = tmp_path / "photos"
        photos.mkdir()
        tiny_photo(photos / "a.png")
        words[2] = str(photos)
        done = subprocess.run(
            [sys.executable, "-m", "vit_jax.predict", *words], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "No space left on device; make room" in done.stderr and not (disk / "out.jsonl.part").exists()
    finally:
        subprocess.run(["umount", disk], check=True)


def tiny_photo(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (9, 9)).save(path)
