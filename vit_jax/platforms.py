"""Which devices a machine has, as far as can be told before JAX looks for them, and how its CPU is divided."""

import functools
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path

CORES_AT_MOST = 8  # each core's device has a copy of the state, and updates it
# In /dev: NVIDIA's GPUs (a container's may have any number; Jetson's; those under Windows), TPUs, AMD's GPUs.
ACCELERATORS = ("nvidia[0-9]*", "nvhost-gpu", "dxg", "accel0", "accel", "vfio", "kfd")
COMPILERS = ("libtpu", "jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")  # which JAX takes for devices
DEVICES = Path("/dev")
BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16")  # as Linux calls them
WITH_UNITS = (0, 12)  # the first release of JAX that leaves products to them


def has_accelerator() -> bool:
    """Whether JAX may find something other than the CPU, on Linux."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    return any(True for name in ACCELERATORS for _ in DEVICES.glob(name))


def skip_missing_accelerator() -> bool:
    """Keeps JAX from looking for what has only its compiler here (`vit_jax[tpu]`, `vit_jax[cuda]`); whether it did.

    Else each start waits for the search, and shows its complaints. JAX_PLATFORMS, where it is set, decides.
    """
    if sys.platform != "linux" or "JAX_PLATFORMS" in os.environ or has_accelerator():
        return False
    if not any(installed(package) for package in COMPILERS):
        return False
    os.environ["JAX_PLATFORMS"] = "cpu"  # which JAX reads when it is imported
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    return True


def installed(package: str) -> bool:
    """Whether it could be imported; nothing is."""
    parent = package.rpartition(".")[0]
    return not (parent and importlib.util.find_spec(parent) is None) and importlib.util.find_spec(package) is not None


@functools.cache  # every product of a model asks
def cpu_units() -> frozenset[str]:
    """What this machine's CPU can do, as Linux calls it: avx2, amx_bf16 ...; nothing elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return frozenset(unit for line in lines if line.startswith("flags") for unit in line.partition(":")[2].split())


def multiplies_bfloat16() -> bool:
    """Whether this machine's CPU has units for products of bfloat16 numbers, and this release of JAX uses them."""
    import jax

    return jax.__version_info__ >= WITH_UNITS and not cpu_units().isdisjoint(BFLOAT16_UNITS)


def divisible(multiples: Iterable[int]) -> int:
    """The number of cores of which `divide` can make devices for data-parallel training; 1 where it cannot.

    XLA's threads share the work of a large product, and of little else; side by side, the cores do everything at once
    (0.85 to 1.5 times as fast on two, docs/performance.md). It stays at one device where the number of cores does not
    divide each of `multiples`, above `CORES_AT_MOST`, outside Linux (whose machines have cores of one speed, mostly),
    with an accelerator, where JAX_NUM_CPU_DEVICES or XLA_FLAGS decides, and once devices were touched.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "JAX_NUM_CPU_DEVICES" in os.environ or "device_count" in flags or sys.platform != "linux" or has_accelerator():
        return 1
    cores = len(os.sched_getaffinity(0))
    if not 1 < cores <= CORES_AT_MOST or any(number % cores for number in multiples):
        return 1
    return cores if _jax_listens(cores) else 1


def _jax_listens(cores: int) -> bool:
    """Whether JAX would still make so many devices of the CPU, and nobody else has asked it for a number."""
    if "jax" not in sys.modules:
        return True
    config = sys.modules["jax"].config
    if (unset := config.jax_num_cpu_devices) != -1:
        return False
    try:
        config.update("jax_num_cpu_devices", cores)
    except RuntimeError:  # its devices are known already
        return False
    config.update("jax_num_cpu_devices", unset)
    return True


def divide(cores: int) -> None:
    """Makes JAX see each core as a device, where `divisible` said so; call it before a device is touched."""
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_num_cpu_devices", cores)
    os.environ["JAX_NUM_CPU_DEVICES"] = str(cores)  # which JAX reads when it is imported
    # A core works on its own device's part alone, and waits for the others even if the machine was put to sleep.
    own = "--xla_cpu_multi_thread_eigen=false --xla_cpu_collective_call_terminate_timeout_seconds=1000000"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {own}".strip()
