"""What JAX says of the device: its memory, and the matrix products that it can do at best."""

import time
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax import sharding

GPU_SIZES = (4096, 8192, 16384)
CPU_SIZES = (1024, 2048)
REPEATS = 5


def is_gpu() -> bool:
    return jax.devices()[0].platform == "gpu"


def peak_bytes() -> int | None:
    """The most memory that the device had in use; None where it does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def compiled_bytes(compiled: Any) -> int | None:
    """What a compiled function needs: its arguments, and its buffers while it runs."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return analysis.argument_size_in_bytes + analysis.temp_size_in_bytes


def matmul_ceiling(dtype: str) -> dict[str, Any]:
    """The best TFLOP/s of a square matrix product of random numbers, for each size, and of all.

    Random, because a GPU computes zeros with less power, and so faster.
    """
    found = {size: _matmul(size, dtype) for size in (GPU_SIZES if is_gpu() else CPU_SIZES)}
    return {"tflops": max(found.values()), "tflops_by_size": found}


def describe() -> dict[str, Any]:
    """Whether it is a GPU, and its name; touches the device."""
    return {"gpu": is_gpu(), "device": sharding.device_name(sharding.make_mesh(sharding.Settings()))}


def _matmul(size: int, dtype: str) -> float:
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.float32).astype(dtype) for i in range(2))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready([product(a, b) for _ in range(3)])
    best, times = float("inf"), max(1, round((4e13 if is_gpu() else 2e10) / (2 * size**3)))
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _ in range(times):
            c = product(a, b)
        c.block_until_ready()
        best = min(best, (time.perf_counter() - began) / times)
    return 2 * size**3 / best / 1e12
