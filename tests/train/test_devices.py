"""One device of a CPU, or one of each core: what is faster is timed once for a model and a machine."""

import io
import json

import pytest
from rich.console import Console

from vit_jax import config, platforms, sharding
from vit_jax.train import devices
from vit_jax.train.timing import time_devices
from vit_jax.workdir import Workdir

LONG = ["train.epochs=0", "train.flops=2e14"]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Of four cores, on which one device is faster; what is timed, and what the CPU is divided into."""
    told = {"timed": [], "divided": [], "seconds": {1: 0.1, 4: 0.2}}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(platforms, "divisible", lambda multiples: 4)
    monkeypatch.setattr(platforms, "divide", told["divided"].append)
    monkeypatch.setattr(
        devices, "time_devices", lambda given, numbers: told["timed"].append(numbers) or dict(told["seconds"])
    )
    return told


def chosen(tmp_path, *overrides: str) -> str:
    """What is said of the choice."""
    said = io.StringIO()
    given = config.load("configs/digits.py", list(overrides))
    devices.use_fastest(given, Workdir(tmp_path / "run"), Console(file=said, width=200))
    return said.getvalue()


def test_steps_are_timed_once(machine, tmp_path):
    said = chosen(tmp_path, *LONG)
    assert "A step takes 100 ms on 1 and 200 ms on 4 devices of this CPU: 1 is taken" in said
    again = chosen(tmp_path, *LONG, "optim.lr=0.01")  # of the same model, batch and machine
    assert again and again in said
    assert machine["timed"] == [(1, 4)] and machine["divided"] == []
    machine["seconds"] = {1: 0.3, 4: 0.2}
    chosen(tmp_path, *LONG, "train.batch_size=16")
    assert machine["timed"] == [(1, 4)] * 2 and machine["divided"] == [4]


@pytest.mark.parametrize(
    "overrides",
    [[], [*LONG, "train.deterministic=true"], [*LONG, "data.name=nowhere"], ["model.patch_size=5"]],
)
def test_without_a_look_at_the_clock_each_core_is_a_device(machine, tmp_path, overrides):
    """A short training, one that no clock may change, and one whose start will say what is wrong."""
    assert chosen(tmp_path, *overrides) == ""
    assert machine["timed"] == [] and machine["divided"] == [4]


@pytest.mark.parametrize("long", [["train.epochs=200000"], ["train.epochs=0", "train.seconds=1000"], LONG])
def test_what_a_long_training_is(machine, tmp_path, long):
    assert chosen(tmp_path, *long) and machine["timed"] == [(1, 4)]


def test_where_steps_cannot_be_timed(machine, tmp_path):
    machine["seconds"] = {}
    assert "cannot be timed here: 4 devices are taken" in chosen(tmp_path, *LONG)
    assert machine["divided"] == [4] and not list((tmp_path / "cache").rglob("*.json"))


def test_a_damaged_note_is_one_that_is_missing(machine, tmp_path):
    chosen(tmp_path, *LONG)
    next((tmp_path / "cache").rglob("*.json")).write_text("[1")
    chosen(tmp_path, *LONG)
    assert machine["timed"] == [(1, 4)] * 2


@pytest.mark.parametrize(("number", "divided"), [(1, []), (4, [4]), (3, [4])])
def test_a_run_keeps_what_it_had(machine, tmp_path, monkeypatch, number, divided):
    monkeypatch.setattr(Workdir, "has_begun", lambda self: True)
    starts = tmp_path / "run" / "starts.json"
    starts.parent.mkdir()
    starts.write_text(json.dumps([{"device": f"{number} x {sharding.processor_name()}"}]))
    assert chosen(tmp_path, "train.epochs=1") == ""
    assert machine["timed"] == [] and machine["divided"] == divided


@pytest.mark.slow
def test_the_clock(monkeypatch):
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    seconds = time_devices(config.load("configs/digits.py", ["train.batch_size=32"]), (1, 2))
    assert set(seconds) == {1, 2} and all(0 < time < 60 for time in seconds.values())
    assert time_devices(config.load("configs/digits.py", ["model.patch_size=5"]), (1, 2)) == {}
