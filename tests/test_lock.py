"""The lock of a run's folder: one process trains there, and one that is gone is in nobody's way."""

import json
import os
import subprocess
import sys
import time

import pytest

from vit_jax import lock
from vit_jax.command import UserError

ENDED = subprocess.Popen([sys.executable, "-c", ""])
ENDED.wait()


def write(folder, **holder):
    """A lock of a process like this one, but for these facts."""
    (folder / lock.FILE).write_text(json.dumps({**lock._this_process(), "token": "theirs", **holder}))


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(lock, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.02)


def test_a_second_start_is_refused_and_names_the_first(tmp_path):
    with lock.held(tmp_path / "run") as first:
        refused = pytest.raises(UserError, match=rf"run is in use: process {os.getpid()} on \S+ trains there since 20")
        with refused, lock.held(tmp_path / "run"):
            pass
        assert first.is_held()
    assert not (tmp_path / "run").exists(), "it was made for the lock"
    with lock.held(tmp_path):
        (tmp_path / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "holder",
    [
        {"pid": ENDED.pid},
        {"started": "7"},  # the process id is another process's by now
    ],
)
def test_what_a_dead_process_left_is_taken(tmp_path, holder):
    write(tmp_path, **holder)
    with lock.held(tmp_path) as mine:
        assert mine.is_held()
    assert not list(tmp_path.iterdir())


def test_a_job_that_slurm_put_into_the_queue_again_takes_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    write(tmp_path, host="another", restarts=0)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with lock.held(tmp_path):
        pass
    write(tmp_path)
    with pytest.raises(UserError, match="is in use"), lock.held(tmp_path):
        pass


@pytest.mark.parametrize(
    "content",
    [{"host": "another"}, {"processes": "of another container"}, {"boot": "of a machine of the same name"}, None],
)
def test_a_holder_on_another_machine_lives_while_its_stamp_changes(tmp_path, soon, content):
    path = tmp_path / lock.FILE
    path.write_text("") if content is None else write(tmp_path, **content)
    beats = "import os, sys, time\nfor _ in range(1000): os.utime(sys.argv[1]); time.sleep(0.01)"
    beating = subprocess.Popen([sys.executable, "-c", beats, path])
    stamp = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == stamp:
        time.sleep(0.01)
    with pytest.raises(UserError, match="is in use"), lock.held(tmp_path):
        pass
    beating.kill()
    beating.wait()
    with lock.held(tmp_path):
        pass


def test_a_holder_that_was_taken_for_dead_learns_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    with lock.held(tmp_path) as first:
        stamp = (tmp_path / lock.FILE).stat().st_mtime_ns
        while (tmp_path / lock.FILE).stat().st_mtime_ns == stamp:
            time.sleep(0.01)
        write(tmp_path)
        assert not first.is_held()
    assert (tmp_path / lock.FILE).exists(), "it is another process's"


@pytest.mark.parametrize("released", [False, True], ids=["dead", "released"])
def test_a_lock_that_changed_in_the_meantime_stays(tmp_path, monkeypatch, released):
    """Of two starts that find the same dead holder, or the same end of one, the second finds the lock of the first."""
    write(tmp_path, pid=ENDED.pid, token="of the dead")
    real, read = lock._await_end, []

    def another_is_faster(path):
        if not read and released:
            path.unlink()
        gone = real(path)
        if not read:
            read.append(gone)
            write(tmp_path)
        return gone

    monkeypatch.setattr(lock, "_await_end", another_is_faster)
    with pytest.raises(UserError, match="is in use"), lock.held(tmp_path):
        pass
    assert json.loads((tmp_path / lock.FILE).read_text())["token"] == "theirs"


def test_a_lock_that_cannot_be_read_for_a_moment_is_not_lost(tmp_path):
    with lock.held(tmp_path) as mine:
        content = mine.path.read_text()
        mine.path.write_text("")
        assert mine.is_held()
        mine.path.write_text(content)


def test_a_folder_that_cannot_hold_it_is_told(tmp_path):
    (tmp_path / "file").touch()
    refused = pytest.raises(UserError, match="cannot write to --workdir .*file/run: Not a directory; give another one")
    with refused, lock.held(tmp_path / "file" / "run"):
        pass
