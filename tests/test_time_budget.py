"""A run by the clock, `train.seconds`: it ends with its time, and its schedule and warm-up fit into it."""

import signal

import pytest

from tests import tiny
from vit_jax import config
from vit_jax.command import UserError
from vit_jax.distributed import Agreement
from vit_jax.train import loop
from vit_jax.train.length import UNKNOWN, Length


class Clock:
    """A second passes whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


BY_TIME = ("train.steps=0", "train.seconds=60", "evaluate.every_steps=1000", "log.every_steps=4")


def test_a_run_by_time_ends_with_it_and_so_does_its_schedule(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "time", Clock())
    assert tiny.start(tmp_path, "cnn", *BY_TIME)[0] == 0
    found, lines = tiny.result(tmp_path), tiny.metric_lines(tmp_path)
    assert 15 < found["steps"] <= 20  # three looks at the clock for each step, and one for each log line
    rates = [line["train/lr"] for line in lines if "train/lr" in line]
    assert rates[0] > 0.8 * 3e-2 and rates == sorted(rates, reverse=True) and rates[-1] < 0.05 * 3e-2
    code, text = tiny.start(tmp_path, "cnn", *BY_TIME)
    assert code == 0 and "This run is finished." in text


def test_a_time_shorter_than_a_step_is_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "time", Clock())
    assert tiny.start(tmp_path, "cnn", *BY_TIME, "train.seconds=1.5")[0] == 0
    assert 1 <= tiny.result(tmp_path)["steps"] <= 4  # the number is heard when some steps are under way


def test_a_run_by_time_that_is_interrupted_trains_for_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "time", Clock())
    with pytest.MonkeyPatch.context() as patch:
        tiny.interrupt_at(12, signal.SIGTERM, patch)
        code, text = tiny.start(tmp_path, "cnn", *BY_TIME, "optim.warmup_steps=14")
        assert code == 143 and "the warm-up took" not in text
    code, text = tiny.start(tmp_path, "cnn", *BY_TIME, "optim.warmup_steps=14")
    assert code == 0 and "resumed at step 12" in text
    assert 15 < tiny.result(tmp_path)["steps"] <= 20


def test_a_short_time_shortens_the_warm_up_and_says_so(tmp_path, monkeypatch):
    """The learning rate comes to its peak and down again, where all of the time would have been warm-up."""
    monkeypatch.setattr(loop, "time", Clock())
    code, text = tiny.start(tmp_path, "cnn", *BY_TIME, "optim.warmup_steps=500")
    found, lines = tiny.result(tmp_path), tiny.metric_lines(tmp_path)
    [warning] = found["warnings"]
    assert code == 0 and warning in text
    assert f"enough for {found['steps']} steps: the warm-up took 10% of them, instead of 500 steps" in warning
    rates = [line["train/lr"] for line in lines if "train/lr" in line]
    assert max(rates) > 0.8 * 3e-2 and rates[-1] < 0.05 * 3e-2


def test_time_and_steps_exclude_each_other():
    with pytest.raises(UserError, match=r"train\.steps=23 and train\.seconds=5\.0 are both given"):
        config.load(tiny.spec("cnn"), ["train.seconds=5"])
    with pytest.raises(UserError, match=r"train\.seconds=-1\.0: one of them must be positive, and none negative"):
        config.load(tiny.spec("cnn"), ["train.steps=0", "train.seconds=-1"])


class Hearing(Agreement):
    """Of processes that say these numbers."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = iter(numbers)

    def __call__(self, number: int) -> int:
        return next(self._numbers)


def test_a_run_that_goes_on_knows_its_length_before_the_others_are_heard():
    """Two updates pass until several processes have agreed: the schedule must not stand at its beginning meanwhile."""
    length, found = Length(1000, 100.0, Hearing(0, 0, 999, 998)), []
    for at in (901, 902, 903, 904):
        length.update(at, at / 10)
        found.append(length.steps)
    assert found == [1000, 1000, 999, 998]
    fresh = Length(0, 100.0, Hearing(0))
    fresh.update(1, 0.1)
    assert fresh.steps == UNKNOWN
