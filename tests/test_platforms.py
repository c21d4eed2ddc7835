"""JAX looks for no TPU or GPU where there is only its compiler, and sees a device in each core where that serves."""

import os
import subprocess
import sys

import pytest

from vit_jax import config, memory, platforms
from vit_jax.data import open_data
from vit_jax.train import experiment
from vit_jax.train.devices import use_every_core

PROGRAM = """
import sys
import jax
from vit_jax import platforms
platforms.importlib.util.find_spec = lambda name: sys.argv[1].startswith(name) or None
print(platforms.skip_missing_accelerator(), jax.config.jax_platforms)
"""


@pytest.fixture
def devices(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(platforms, "DEVICES", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["nvidia0", "nvidia3", "nvhost-gpu", "dxg", "accel0", "vfio", "kfd"])
def test_accelerators_are_found(devices, monkeypatch, name):
    assert not platforms.has_accelerator()
    (devices / "nvidiactl").touch()  # the driver alone
    assert not platforms.has_accelerator()
    (devices / name).touch()
    assert platforms.has_accelerator()
    assert not platforms.skip_missing_accelerator()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not platforms.has_accelerator()


def said(installed: str, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    command = [sys.executable, "-c", PROGRAM, installed]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or any(True for name in platforms.ACCELERATORS for _ in platforms.DEVICES.glob(name)),
    reason="for Linux machines without accelerators",
)
def test_nothing_is_looked_for_with_its_compiler_alone():
    for compiler in ("libtpu", "jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"):
        assert said(compiler) == "True cpu"
    assert said("jax_plugins.others") == "False None"
    assert said("libtpu", JAX_PLATFORMS="tpu,cpu") == "False tpu,cpu"


linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a CPU stays one device")
DEVICES = """
import os, sys
os.sched_getaffinity = lambda process: set(range(int(sys.argv[1])))
import jax
from vit_jax import platforms
if sys.argv[2] == "late":
    jax.devices()
found = platforms.divisible([int(number) for number in sys.argv[3:]])
if found > 1:
    platforms.divide(found)
total = jax.jit(lambda x: x.sum(0), out_shardings=jax.sharding.PartitionSpec())
with jax.set_mesh(jax.make_mesh((found,), ("data",))):
    x = jax.device_put(jax.numpy.arange(24.0), jax.sharding.PartitionSpec("data"))
    print(found, len(jax.devices()), float(total(x)), "eigen=false" in os.environ.get("XLA_FLAGS", ""))
"""


def devices_of(*words: object, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    command = [sys.executable, "-c", DEVICES, *map(str, words)]
    environment = kept | {"JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@linux
def test_a_device_for_each_core():
    assert devices_of(3, "soon", 6, 12) == "3 3 276.0 True"


@linux
@pytest.mark.parametrize(
    ("words", "environment"),
    [
        ((4, "soon", 8, 6), {}),  # one of the batches cannot be divided
        pytest.param((2, "soon", 2), {"JAX_NUM_CPU_DEVICES": "1"}, marks=pytest.mark.slow),
        *(
            pytest.param(words, {}, marks=pytest.mark.slow)
            for words in ((1, "soon", 6), (12, "soon", 12), (2, "late", 2))
        ),
    ],
)
def test_otherwise_one_device(words, environment):
    assert devices_of(*words, **environment) == "1 1 276.0 False"


@linux
def test_flags_that_simulate_devices_stay():
    assert devices_of(2, "soon", 2, XLA_FLAGS="--xla_force_host_platform_device_count=4") == "1 4 276.0 False"


def test_a_core_has_a_part_of_each_batch(monkeypatch):
    asked = []
    monkeypatch.setattr(platforms, "divisible", lambda multiples: asked.append(list(multiples)) or 1)
    digits = config.load("configs/digits.py", ["train.batch_size=64"])
    halves = config.load("configs/digits.py", ["train.batch_size=64", "train.accumulate=4"])
    use_every_core([digits, halves])
    assert asked == [[64, 16]]
    use_every_core([digits, config.load("configs/digits.py", ["mesh.fsdp=2"])])
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    use_every_core([digits])
    assert asked == [[64, 16]]


@pytest.mark.parametrize(
    ("overrides", "cores", "copies", "expected"),
    [
        ((), "4", 15, (1, 4, 1)),  # a state of 1.7 MB, four times, is more than 1/16 of 15 states
        ((), "4", 200, (4, 1, 1)),
        (("mesh.data=4",), "4", 15, (4, 1, 1)),
        ((), "", 15, (4, 1, 1)),  # not devices of one CPU's cores
    ],
)
def test_cores_share_one_state_where_copies_would_fill_the_memory(monkeypatch, overrides, cores, copies, expected):
    given = config.load("configs/digits.py", list(overrides))
    state = 3 * 4 * 145_610  # parameters and two moments
    monkeypatch.setattr(memory, "installed", lambda: copies * state)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    if cores:
        monkeypatch.setenv("JAX_NUM_CPU_DEVICES", cores)
    assert tuple(experiment.make_mesh(given, open_data(given.data)).shape.values()) == expected
