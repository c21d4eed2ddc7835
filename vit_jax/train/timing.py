"""How long a training step takes on each number of devices that a CPU can be: processes of both take turns."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from vit_jax import command, config, platforms, sharding
from vit_jax.config import Config
from vit_jax.train.experiment import Experiment, set_up

ROUNDS = 3  # the processes take turns of one step; the median counts
PATIENCE = 180  # seconds for everything; a machine that is slower trains too long to be kept waiting
SOME_STEPS = 1000  # of a run whose number of steps a clock decides


def time_devices(given: Config, numbers: Sequence[int]) -> dict[int, float]:
    """Seconds of a training step of this configuration on so many devices of this CPU; {} where one does not work.

    On images of zeros: no data set is read. Each number of devices has a process of its own, because JAX asks once.
    """
    with contextlib.ExitStack() as stack:
        workers = {number: stack.enter_context(_worker(number)) for number in numbers}
        watchdog = threading.Timer(PATIENCE, lambda: list(map(subprocess.Popen.kill, workers.values())))
        stack.callback(watchdog.cancel)
        watchdog.start()
        try:
            for worker in workers.values():
                _say(worker, json.dumps(config.to_dict(given)))
            for worker in workers.values():  # all compile at once, and do a step
                _hear(worker)
            turns: dict[int, list[float]] = {number: [] for number in numbers}
            for _ in range(ROUNDS):
                for number, worker in workers.items():
                    _say(worker, "go")
                    turns[number].append(_hear(worker))
        except (OSError, ValueError):  # one of them ended
            return {}
    return {number: statistics.median(times) for number, times in turns.items()}


@contextlib.contextmanager
def _worker(devices: int) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended at the latest with this block."""
    line = [sys.executable, "-m", "vit_jax.train.timing", str(devices)]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(line, text=True, stdin=pipe, stdout=pipe, stderr=nowhere) as worker:
        try:
            yield worker
        finally:
            worker.kill()


def _say(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin is not None
    print(line, file=worker.stdin, flush=True)


def _hear(worker: subprocess.Popen[str]) -> float:
    assert worker.stdout is not None
    return float(worker.stdout.readline())  # of a process that ended "", which is no number


def main(argv: Sequence[str]) -> int:
    """A worker: reads a configuration, does a step, and one more for each line; it says how many seconds each took."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print is no answer
    if (devices := int(argv[0])) > 1:
        platforms.divide(devices)
    run = _steps(set_up(config.from_dict(json.loads(sys.stdin.readline())), described=True))
    _answer(answers, next(run))
    for _ in sys.stdin:
        _answer(answers, next(run))
    return command.DONE


def _answer(answers: TextIO, seconds: float) -> None:
    print(seconds, file=answers, flush=True)


def _steps(built: Experiment) -> Iterator[float]:
    """Seconds of a step, the first one with the compiler's time."""
    everywhere = sharding.replicated(built.mesh)
    places = sharding.batch_sharding(built.mesh), everywhere
    state = built.init_state()
    batch, constants = (_zeros(spec, place) for spec, place in zip(built.arguments[1:], places, strict=True))
    if not built.total_steps:
        constants["total_steps"] = jax.device_put(jnp.int32(SOME_STEPS), everywhere)
    while True:
        began = time.perf_counter()
        state, metrics = built.train_step(state, batch, constants)
        jax.block_until_ready((state, metrics))
        yield time.perf_counter() - began


def _zeros(spec: dict[str, jax.ShapeDtypeStruct], place: NamedSharding) -> dict[str, jax.Array]:
    return jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), spec), out_shardings=place)()


if __name__ == "__main__":
    command.run(main)
