"""Writing a file whole or not at all."""

import os

import pytest

from vit_jax.files import write_atomically


def test_text_is_utf_8_bytes_are_themselves_and_the_last_write_stays(tmp_path):
    path = tmp_path / "result.json"
    write_atomically(path, "a longer text\n")
    write_atomically(path, "Füße\n")
    assert path.read_bytes() == "Füße\n".encode()
    write_atomically(path, b"\0\xff")
    assert path.read_bytes() == b"\0\xff" and os.listdir(tmp_path) == ["result.json"]


def test_others_may_read_it_as_any_file(tmp_path):
    write_atomically(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "kept"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\udc80")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["kept"]
    (tmp_path / "folder" / "file").mkdir(parents=True)
    with pytest.raises(OSError):
        write_atomically(tmp_path / "folder", "new")
    assert sorted(os.listdir(tmp_path)) == ["folder", "kept"]
