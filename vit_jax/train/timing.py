"""How long a training step takes on each number of devices that a CPU can be: processes of both take turns."""

import contextlib
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from vit_jax import command, config, memory, platforms, sharding
from vit_jax.command import Failure
from vit_jax.config import Config
from vit_jax.train.experiment import Experiment, set_up

ROUNDS = 3  # the processes take turns of one step; the median counts
PATIENCE = 180  # seconds for everything
SHARE = 1 / 3  # of the machine's memory, for each of the processes
SOME_STEPS = 1000  # of a run whose number of steps a clock decides


class NotTimed(Exception):
    """Says why steps could not be timed."""


def time_devices(given: Config, numbers: Sequence[int]) -> dict[int, float]:
    """Seconds of a training step of this configuration on so many devices of this CPU.

    On images of zeros: the data set is opened, and no image is read. Each number of devices has a process of its own,
    because JAX asks once. Raises `NotTimed` where one of them ends, or all take longer than `PATIENCE`.
    """
    turns: dict[int, list[float]] = {number: [] for number in numbers}
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        try:
            _take_turns(given, turns, errors)
        except (OSError, ValueError):  # one of them ended
            if not all(turns.values()):
                errors.seek(0)
                said = [line.strip() for line in errors if line.strip()]
                raise NotTimed(said[-1][:200] if said else f"not within {PATIENCE} seconds") from None
    return {number: statistics.median(times) for number, times in turns.items()}


def _take_turns(given: Config, turns: dict[int, list[float]], errors: IO[str]) -> None:
    with contextlib.ExitStack() as stack:
        workers = {number: stack.enter_context(_worker(number, errors)) for number in turns}
        watchdog = threading.Timer(PATIENCE, lambda: list(map(subprocess.Popen.kill, workers.values())))
        stack.callback(watchdog.cancel)
        watchdog.start()
        for worker in workers.values():
            _say(worker, json.dumps(config.to_dict(given)))
        for worker in workers.values():  # all compile at once, and do a step
            _hear(worker)
        for _ in range(ROUNDS):
            for number, worker in workers.items():
                _say(worker, "go")
                turns[number].append(_hear(worker))


@contextlib.contextmanager
def _worker(devices: int, errors: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended at the latest with this block."""
    line = [sys.executable, "-m", "vit_jax.train.timing", str(devices)]
    with subprocess.Popen(line, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors) as worker:
        try:
            yield worker
        finally:
            worker.kill()
            with contextlib.suppress(OSError):  # what it did not read
                _pipe(worker.stdin).close()


def _say(worker: subprocess.Popen[str], line: str) -> None:
    print(line, file=_pipe(worker.stdin), flush=True)


def _hear(worker: subprocess.Popen[str]) -> float:
    return float(_pipe(worker.stdout).readline())  # of a process that ended "", which is no number


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def main(argv: Sequence[str]) -> int:
    """A worker: reads a configuration, does a step, and one more for each line; it says how many seconds each took."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print is no answer
    if (devices := int(argv[0])) > 1:
        platforms.divide(devices)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    for seconds in _steps(set_up(config.from_dict(json.loads(lines.get())), described=True)):
        print(seconds, file=answers, flush=True)
        lines.get()
    return command.DONE


def _read(lines: "queue.SimpleQueue[str]") -> None:
    """Passes on what is asked; ends the process with the one that asks, also if that was killed."""
    for line in sys.stdin:
        lines.put(line)
    os._exit(command.DONE)


def _steps(built: Experiment) -> Iterator[float]:
    """Seconds of a step, again and again. Raises `Failure` where it needs more than its share of memory."""
    step = built.train_step.lower(*built.arguments).compile()
    stats = step.memory_analysis()
    needed = built.mesh.size * (stats.argument_size_in_bytes + stats.temp_size_in_bytes)
    if needed > SHARE * memory.installed():
        raise Failure(f"a step needs {needed / 2**30:.1f} GiB, too much to run two at a time")
    everywhere = sharding.replicated(built.mesh)
    places = sharding.batch_sharding(built.mesh), everywhere
    state = built.init_state()
    batch, constants = (_zeros(spec, place) for spec, place in zip(built.arguments[1:], places, strict=True))
    if not built.total_steps:
        constants["total_steps"] = jax.device_put(jnp.int32(SOME_STEPS), everywhere)
    while True:
        began = time.perf_counter()
        state, metrics = step(state, batch, constants)
        jax.block_until_ready((state, metrics))
        yield time.perf_counter() - began


def _zeros(spec: dict[str, jax.ShapeDtypeStruct], place: NamedSharding) -> dict[str, jax.Array]:
    return jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), spec), out_shardings=place)()


if __name__ == "__main__":
    command.run(main)
