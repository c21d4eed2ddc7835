"""The plan against reality, on this machine's CPU: a few real steps, their time and the memory that they take."""

import ctypes
import gc
import re
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import sharding
from vit_jax.command import UserError
from vit_jax.plan.subject import Subject

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measured:
    """Median seconds of a step; bytes by which the process grew at most, all simulated devices together."""

    step_seconds: float
    peak_bytes: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def run_steps(subject: Subject, compiled: Any, steps: int) -> Measured:
    """Runs the compiled step on random images; the first run warms up and does not count."""
    if sys.platform != "linux":
        raise UserError("--measure reads the process's memory from /proc: it needs Linux")
    init = subject.run.init_state.lower().compile()  # type: ignore[attr-defined]
    before = _trimmed()
    state = init()
    batch, frozen = _random(subject)
    _trimmed()
    CLEAR.write_text("5")  # the peak starts anew
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        state, metrics = compiled(state, batch, frozen)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    return Measured(statistics.median(seconds[1:]), _status("VmHWM") - before)


def _random(subject: Subject) -> tuple[Any, Any]:
    """Images, labels and indices as the step takes them, on the devices."""
    rng = np.random.default_rng(0)
    _, batch, frozen = subject.arguments
    images = frozen["examples"]["image"].shape[0] if "examples" in frozen else 0
    num_classes = subject.run.config.model["num_classes"]
    highest = {"image": 256, "label": num_classes, "index": images, "total_steps": 1000}
    mesh = subject.run.mesh

    def draw(tree: dict[str, Any], place: jax.sharding.Sharding) -> Any:
        def drawn(path: Any, x: jax.ShapeDtypeStruct) -> jax.Array:
            return jax.device_put(np.asarray(rng.integers(0, highest[path[-1].key], x.shape, x.dtype)), place)

        return jax.tree_util.tree_map_with_path(drawn, tree)

    return draw(batch, sharding.batch_sharding(mesh)), draw(frozen, sharding.replicated(mesh))


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
