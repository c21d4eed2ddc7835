"""A training for `benchmarks.chaos`: slow enough to be hit anywhere, and with a gradient that is not a number.

Environment: CHAOS_SECONDS that each step takes longer; CHAOS_NAN, the step whose gradient is no number.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax import command, log, main, step


def slow_down(seconds: float) -> None:
    """Makes each step take so much longer."""
    advance = log.Progress.advance

    def late(self: log.Progress, at: int) -> None:
        time.sleep(seconds)
        advance(self, at)

    log.Progress.advance = late  # type: ignore[method-assign]


def poison(bad: int) -> None:
    """Makes the gradient of this step not a number."""
    plain = step._make_gradients

    def poisoned(*args: Any) -> step.Gradients:
        gradients = plain(*args)

        def with_nan(state: step.TrainState, *rest: Any) -> Any:
            found, aux = gradients(state, *rest)
            return jax.tree.map(lambda g: jnp.where(state.step == bad - 1, jnp.nan, g), found), aux

        return with_nan

    step._make_gradients = poisoned


def run(argv: Sequence[str], said: Path, environment: Mapping[str, str]) -> None:
    """Trains, in a process that has just been forked: what it says goes into a file."""
    os.environ.update(environment)
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["chaos", *argv]
    train()


def train() -> None:
    slow_down(float(os.environ.get("CHAOS_SECONDS", "0")))
    if "CHAOS_NAN" in os.environ:
        poison(int(os.environ["CHAOS_NAN"]))
    command.run(main.main)


if __name__ == "__main__":
    train()
