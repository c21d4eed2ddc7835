"""The chaos tool: what it does to files, how it judges, and that disturbed trainings end with the same bits."""

import random

import pytest

from benchmarks import chaos
from benchmarks.chaos import FAULTS, Chaos, Outcome, cut, flip


def test_a_flip_changes_one_bit_and_a_cut_shortens(tmp_path):
    path = tmp_path / "x"
    for seed in range(20):
        path.write_bytes(bytes(7))
        flip(path, random.Random(seed))
        assert sum(byte.bit_count() for byte in path.read_bytes()) == 1 and path.stat().st_size == 7
        cut(path, random.Random(seed))
        assert path.stat().st_size < 7


def test_the_newest_line_is_a_whole_one(tmp_path):
    assert chaos.newest_line(tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n{"step": 10}\n{"st')
    assert chaos.newest_line(tmp_path) == 10


def test_the_remedy_of_the_last_error_is_followed(tmp_path):
    path = tmp_path / "images.json"
    path.touch()
    Chaos.follow_remedy(None, [f"error: {path} cannot be read (x); put a copy back"], tmp_path)
    assert path.exists()
    Chaos.follow_remedy(None, [f"error: {path} cannot be read (x); delete it to go on"], tmp_path)
    assert not path.exists()


def test_the_table_adds_up():
    outcomes = [Outcome("kill", True, True, 3, 2.0), Outcome("kill", True, False, 9, 4.0), Outcome("stop", True, True)]
    rows = chaos.table(outcomes).splitlines()[2:]
    assert rows == ["| kill | 2 | 2 | 1 | 9 | 3.0 |", "| stop | 1 | 1 | 1 | 0 | - |", "| all | 3 | 3 | 2 | 9 | 3.0 |"]


@pytest.mark.parametrize(
    ("faults", "wait"),
    [(("kill", "sidefile", "twice"), True), pytest.param(2 * FAULTS, False, marks=pytest.mark.slow)],
)
@pytest.mark.timeout(1800)
def test_disturbed_trainings_end_with_the_same_bits(faults, wait, tmp_path, monkeypatch):
    """And where training waits for its checkpoints, nothing older than the last interval is lost."""
    for name in ("XLA_FLAGS", *chaos.environment(tmp_path)):
        monkeypatch.setenv(name, "")  # what `prepare` sets is undone
    outcomes = chaos.disturb("configs/digits.py", faults, len(faults), 7, tmp_path, wait=wait)
    assert all(each.equal for each in outcomes), chaos.table(outcomes)
    assert not wait or max(each.steps_lost for each in outcomes) <= chaos.SAVED_EVERY
