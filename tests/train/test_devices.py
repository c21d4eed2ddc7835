"""One device of a CPU, or one of each core: what is faster is timed once for a model and a machine."""

import io
import json
import os
import subprocess
import sys

import pytest
from rich.console import Console

from tests.conftest import REPOSITORY
from tests.test_extend import no_leak  # noqa: F401 - a fixture
from vit_jax import config, platforms, sharding
from vit_jax.train import devices, timing
from vit_jax.train.timing import NotTimed, time_devices
from vit_jax.workdir import Workdir

LONG = ["train.epochs=0", "train.flops=2e14"]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Of four cores, on which one device is faster; what is timed, and what the CPU is divided into."""
    told = {"timed": [], "divided": [], "seconds": {1: 0.1, 4: 0.2}}

    def timed(given, numbers):
        told["timed"].append(numbers)
        if isinstance(told["seconds"], Exception):
            raise told["seconds"]
        return told["seconds"]

    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(platforms, "divisible", lambda multiples: 4)
    monkeypatch.setattr(platforms, "divide", told["divided"].append)
    monkeypatch.setattr(devices, "time_devices", timed)
    return told


def chosen(tmp_path, *overrides: str, file: str = "configs/digits.py") -> str:
    """What is said of the choice."""
    said = io.StringIO()
    given = config.load(str(REPOSITORY / file), list(overrides))
    devices.use_fastest(given, Workdir(tmp_path / "run"), Console(file=said, width=200))
    return said.getvalue()


def test_steps_are_timed_once(machine, tmp_path):
    said = chosen(tmp_path, *LONG)
    assert "A step takes 100 ms on 1 and 200 ms on 4 devices of this CPU: training uses 1 device" in said
    again = chosen(tmp_path, *LONG, "optim.lr=0.01")  # of the same model, batch and machine
    assert again and again in said
    assert machine["timed"] == [(1, 4)] and machine["divided"] == []
    machine["seconds"] = {1: 0.3, 4: 0.2}
    chosen(tmp_path, *LONG, "train.batch_size=16")
    assert machine["timed"] == [(1, 4)] * 2 and machine["divided"] == [4]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [*LONG, "train.deterministic=true"],
        [*LONG, "init.weights=somewhere"],
        [*LONG, "data.name=nowhere"],
        ["train.epochs=200000", "model.patch_size=5"],
    ],
)
def test_without_a_look_at_the_clock_each_core_is_a_device(machine, tmp_path, overrides):
    """A short training, one that no clock may change, and those whose start will say what is wrong."""
    assert chosen(tmp_path, *overrides) == ""
    assert machine["timed"] == [] and machine["divided"] == [4]


@pytest.mark.parametrize("long", [["train.epochs=200000"], ["train.epochs=0", "train.seconds=1000"], LONG])
def test_what_a_long_training_is(machine, tmp_path, long):
    assert chosen(tmp_path, *long) and machine["timed"] == [(1, 4)]


def test_a_model_of_ones_own_need_not_have_a_number_format(machine, tmp_path):
    chosen(tmp_path, "data.name=digits", "train.epochs=20000000", file="tests/plugins/config.py:labels")
    assert machine["timed"] == [(1, 4)]


def test_steps_that_cannot_be_timed_are_not_timed_again(machine, tmp_path):
    machine["seconds"] = NotTimed("no memory")
    assert "could not be timed (no memory): training uses 4 devices" in chosen(tmp_path, *LONG)
    assert chosen(tmp_path, *LONG) == ""
    assert machine["timed"] == [(1, 4)] and machine["divided"] == [4, 4]


def test_a_damaged_note_is_one_that_is_missing(machine, tmp_path):
    chosen(tmp_path, *LONG)
    next((tmp_path / "cache").rglob("*.json")).write_text("[1")
    chosen(tmp_path, *LONG)
    assert machine["timed"] == [(1, 4)] * 2


@pytest.mark.parametrize(
    ("before", "divided"),
    [(f"1 x {sharding.processor_name()}", []), ("1 x CPU (another)", []), ("4 x CPU (another)", [4]), ("", [4])],
)
def test_a_run_keeps_what_it_had(machine, tmp_path, monkeypatch, before, divided):
    monkeypatch.setattr(Workdir, "has_begun", lambda self: True)
    starts = tmp_path / "run" / "starts.json"
    starts.parent.mkdir()
    starts.write_text(json.dumps([{"device": before}]) if before else "[")
    unknown = (
        "" if before else "On how many devices this run began is not known: it goes on with 4, one for each core\n"
    )
    assert chosen(tmp_path, *LONG) == unknown
    assert machine["timed"] == [] and machine["divided"] == divided


def test_a_changed_note_is_not_believed(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(Workdir, "has_begun", lambda self: True)
    run = Workdir(tmp_path / "run")
    run.path.mkdir()
    run.write_start({"device": "1 x CPU (a)"})
    assert run.device() == "1 x CPU (a)"
    run.starts_file.write_text(run.starts_file.read_text().replace("1 x CPU", "3 x CPU"))
    assert "is not known" in chosen(tmp_path, *LONG) and machine["divided"] == [4]


UNTOUCHED = """
import jax
from jax._src import xla_bridge
from vit_jax import config
from vit_jax.data import open_data
from vit_jax.train import devices
given = config.load("configs/digits.py", ["model.patch_dropout=0.25", "model.pooling=gap", "train.epochs=200000"])
print(devices._is_long(given, open_data(given.data)), xla_bridge.backends_are_initialized())
"""


@pytest.mark.slow
def test_the_question_whether_a_training_is_long_touches_no_device():
    done = subprocess.run([sys.executable, "-c", UNTOUCHED], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True False\n"), done.stderr


@pytest.fixture
def free(monkeypatch):
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
def test_the_clock(free):
    seconds = time_devices(config.load("configs/digits.py", ["train.batch_size=32"]), (1, 2))
    assert set(seconds) == {1, 2} and all(0 < time < 60 for time in seconds.values())
    with pytest.raises(NotTimed, match="error: .*patch"):
        time_devices(config.load("configs/digits.py", ["model.patch_size=5"]), (1, 2))


def test_processes_that_take_too_long_or_end_are_told(free, monkeypatch):
    given = config.load("configs/digits.py", [])
    monkeypatch.setattr(timing, "PATIENCE", 0.5)
    with pytest.raises(NotTimed, match="not within 0.5 seconds"):
        time_devices(given, (1, 2))
    monkeypatch.setattr(sys, "executable", os.devnull)
    with pytest.raises(NotTimed):
        time_devices(given, (1, 2))
