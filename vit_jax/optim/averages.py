"""Averages of the parameters, which evaluation reads: exponential, or the mean of schedule-free training."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from vit_jax.optim.schedules import shortened_warmup, warmup_steps
from vit_jax.optim.settings import Settings

Decay = Callable[[jax.Array | int, jax.Array | int], jax.Array | float]  # (update, steps of the run) -> 0 to 1


@dataclass(frozen=True)
class Average:
    """How an average follows the parameters: `decay` is what it keeps of itself in an update, counted from 0.

    Gradients are taken between the parameters and their average; `share` is the average's part of that point.
    """

    decay: Decay
    share: float = 0.0


def exponential(decay: float, *, warmup: bool = False) -> Average:
    """An exponential moving average; with the warm-up, its decay begins low."""

    def at(done: jax.Array | int, steps: jax.Array | int) -> jax.Array | float:
        return jnp.minimum(decay, (1 + done) / (10 + done)) if warmup else decay

    return Average(at)


def schedule_free(share: float, warmup: Callable[[jax.Array | int], jax.Array | int]) -> Average:
    """The mean of all parameters, weighted by the squares of their learning rates (arXiv:2405.15682, eq. 23).

    The rate rises from 0 in a line for `warmup(steps)` steps, and then stays: so sums of its squares need no state.
    They are exact for a warm-up of fixed length, and nearly so where the clock ends the run.
    """

    def at(done: jax.Array | int, steps: jax.Array | int) -> jax.Array:
        t, w = jnp.asarray(done, jnp.float32), jnp.asarray(warmup(steps), jnp.float32)
        divisor = jnp.maximum(w, 1)
        rising = t * (t + 1) * (2 * t + 1) / 6 / divisor**2
        risen = jnp.maximum(w - 1, 0) * (2 * w - 1) / 6 / divisor + t - w + 1
        weight, total = jnp.where(t < w, t / divisor, 1.0) ** 2, jnp.where(t < w, rising, risen)
        return 1 - weight / jnp.maximum(total, 1e-30)

    return Average(at, share)


def average(settings: Settings, steps_per_epoch: int, *, timed: bool = False) -> Average | None:
    """The average that the settings ask for; None: none is kept. `timed` as in `schedule`."""
    if settings.schedule_free:
        asked = warmup_steps(settings, steps_per_epoch)
        return schedule_free(settings.schedule_free, lambda steps: shortened_warmup(asked, steps) if timed else asked)
    return exponential(settings.ema_decay, warmup=settings.ema_warmup) if settings.ema_decay else None
