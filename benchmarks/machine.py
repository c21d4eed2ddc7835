"""Facts of a machine and its device: names, features, memory, the best matrix product; and the file of results."""

import datetime
import json
import os
import platform
import re
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax import sharding

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("vit_jax", "jax", "jaxlib", "flax", "optax", "grain", "numpy", "pillow", "simplejpeg", "torch")
CPU_UNITS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # as Linux names them, the fastest first
GPU_SIZES, CPU_SIZES = (4096, 8192, 16384), (1024, 2048)  # of the matrices whose product is timed
REPEATS = 5


def cores() -> int:
    """The cores that this process, and so each of its workers, may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Date, CPU, versions and XLA's flags; touches no device."""
    info = _cpu_info()
    flags, found = info.get("flags", "").split(), {d.name: d.version for d in metadata.distributions()}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cpu_units": [unit for unit in CPU_UNITS if unit in flags],
        "cores_used": cores(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: found[name] for name in PACKAGES if name in found},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _cpu_info() -> dict[str, str]:
    """What Linux says of the first core."""
    info = Path("/proc/cpuinfo")
    first = info.read_text().partition("\n\n")[0] if info.exists() else ""
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def is_gpu() -> bool:
    return jax.devices()[0].platform == "gpu"


def device() -> dict[str, Any]:
    """Whether JAX's device is a GPU, and its name."""
    return {"gpu": is_gpu(), "device": sharding.device_name(sharding.make_mesh(sharding.Settings()))}


def in_table(device: str) -> str:
    """A device's name without its number where that says nothing: one device, or several that a CPU plays."""
    return re.sub(r"^(1|\d+(?= x CPU)) x ", "", device)


def peak_bytes(compiled: Any, devices: int = 1) -> int | None:
    """The most memory that a GPU had in use; for a CPU, which counts none, what the compiled step needs."""
    measured = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if measured or (needed := compiled.memory_analysis()) is None:
        return measured
    return devices * (needed.argument_size_in_bytes + needed.temp_size_in_bytes)


def matmul_ceiling(dtype: str) -> dict[str, Any]:
    """The best TFLOP/s of a square matrix product, for each size, and of all sizes.

    The numbers are random: a GPU multiplies zeros with less power, and so faster.
    """
    found = {size: _matmul(size, dtype) for size in (GPU_SIZES if is_gpu() else CPU_SIZES)}
    return {"tflops": max(found.values()), "tflops_by_size": found}


def _matmul(size: int, dtype: str) -> float:
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.float32).astype(dtype) for i in range(2))
    product, best = jax.jit(jnp.matmul), float("inf")
    times = max(1, round((4e13 if is_gpu() else 2e10) / (2 * size**3)))
    for _ in range(1 + REPEATS):  # the first one compiles
        began = time.perf_counter()
        for _ in range(times):
            c = product(a, b)
        c.block_until_ready()
        best = min(best, (time.perf_counter() - began) / times)
    return 2 * size**3 / best / 1e12


class Results:
    """The results of one command: a JSON file that is whole after each row."""

    def __init__(self, kind: str, out: Path, **about: Any) -> None:
        self.content: dict[str, Any] = {"kind": kind, **about, "machine": describe(), "rows": []}
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / f"{kind}-{datetime.datetime.now(datetime.UTC):%Y%m%d%H%M%S%f}.json"

    def add(self, *rows: Mapping[str, Any]) -> None:
        self.content["rows"] += rows
        self.write()

    def write(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(temporary, self.path)
