"""The plan against reality, on this machine's CPU: a few real steps, their time and the memory that they take."""

import ctypes
import gc
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import sharding
from vit_jax.command import UserError
from vit_jax.plan.subject import Subject
from vit_jax.train import Experiment

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def run_steps(subject: Subject, compiled: Any, steps: int) -> dict[str, float]:
    """Median seconds of the compiled step on random images, and the bytes by which the process grew at most.

    All simulated devices together; the first run warms up and does not count. A small step may take no more than the
    process gave back meanwhile: then it grew by 0.
    """
    if sys.platform != "linux":
        raise UserError("--measure reads the process's memory from /proc: it needs Linux")
    init = subject.experiment.init_state.lower().compile()  # type: ignore[attr-defined]
    before = _trimmed()
    state = init()
    batch, constants = _random(subject.experiment)
    _trimmed()
    CLEAR.write_text("5")  # the peak starts anew
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        state, metrics = compiled(state, batch, constants)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    return {"step_seconds": statistics.median(seconds[1:]), "peak_bytes": max(0, _status("VmHWM") - before)}


def _random(experiment: Experiment) -> tuple[Any, Any]:
    """Images, labels and indices as the step takes them, on the devices."""
    rng = np.random.default_rng(0)
    _, batch, constants = experiment.arguments
    images = jax.tree.leaves(constants.get("examples", [jnp.zeros(1)]))[0].shape[0]
    highest = {
        "image": 256,
        "mirrored": 2,
        "label": len(experiment.data.class_names),
        "mask": len(experiment.data.class_names),
        "index": images,
        "total_steps": 1000,
    }

    def drawn(path: tuple[Any, ...], x: Any) -> np.ndarray:
        return np.asarray(rng.integers(0, highest[path[-1].key], x.shape, x.dtype))

    places = sharding.batch_sharding(experiment.mesh), sharding.replicated(experiment.mesh)
    trees = jax.tree_util.tree_map_with_path(drawn, (batch, constants))
    return tuple(jax.device_put(*pair) for pair in zip(trees, places, strict=True))


def _trimmed() -> int:
    """The resident bytes, after what is free went back to the system."""
    gc.collect()
    jnp.zeros(()).block_until_ready()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)
    return _status("VmRSS")


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.M)
    assert found is not None
    return 1024 * int(found[1])
