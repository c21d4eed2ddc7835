"""Learning rates by name: linear warm-up, then one of these. A new one is a function and its `@register("name")`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from vit_jax.optim.settings import Settings
from vit_jax.optim.settings import register as _register

Rate = Callable[[jax.Array | int, jax.Array | int], jax.Array]  # (step, steps of the whole run) -> learning rate
TIMED_WARMUP = 0.1  # of a run that the clock ends: the most that its warm-up takes


@dataclass(frozen=True)
class Place:
    """Where a step stands in its run."""

    step: jax.Array  # from 0, float32
    warmup: jax.Array | int  # steps of the warm-up
    total: jax.Array | int  # steps of the run
    per_epoch: int  # steps of an epoch

    @property
    def decaying(self) -> jax.Array:
        """Steps since the warm-up; 0 in it."""
        return jnp.maximum(self.step - self.warmup, 0)

    @property
    def progress(self) -> jax.Array:
        """The share of the run behind the warm-up that is over, 0 to 1."""
        return jnp.clip((self.step - self.warmup) / jnp.maximum(self.total - self.warmup, 1), 0.0, 1.0)


Schedule = Callable[[Settings, Place], jax.Array]  # the learning rate behind the warm-up
SCHEDULES: dict[str, Schedule] = {}
register = partial(_register, "schedule", "schedule", SCHEDULES)


@register("cosine", reads=("final_lr",))
def cosine(settings: Settings, at: Place) -> jax.Array:
    lr, final = settings.lr, settings.final_lr
    return final + (lr - final) * 0.5 * (1 + jnp.cos(math.pi * at.progress))


@register("linear", reads=("final_lr",))
def linear(settings: Settings, at: Place) -> jax.Array:
    return settings.lr + (settings.final_lr - settings.lr) * at.progress


@register("rsqrt", reads=("timescale_steps",))
def rsqrt(settings: Settings, at: Place) -> jax.Array:
    """Zhai et al. 2022 (arXiv:2106.04560, s. 3.5), without cool-down."""
    timescale = settings.timescale_steps
    return settings.lr * jnp.sqrt(timescale / (timescale + at.decaying))


@register("step", reads=("step_epochs", "factor"))
def step(settings: Settings, at: Place) -> jax.Array:
    passed = jnp.sum(at.step / at.per_epoch >= jnp.asarray(settings.step_epochs))
    return settings.lr * settings.factor**passed


@register("exponential", reads=("factor",))
def exponential(settings: Settings, at: Place) -> jax.Array:
    """Decays once an epoch (Wu et al. 2020, arXiv:2006.03677, s. 4.2)."""
    return settings.lr * settings.factor ** jnp.floor(at.decaying / at.per_epoch)


@register("constant", reads=())
def constant(settings: Settings, at: Place) -> jax.Array:
    return jnp.full_like(at.step, settings.lr)


@register("wsd", reads=("final_lr", "cooldown"))
def wsd(settings: Settings, at: Place) -> jax.Array:
    """Warm-up, stable, decay: constant, and at the end linear (Hu et al. 2024, arXiv:2404.06395, s. 4)."""
    falling = jnp.maximum(at.progress - (1 - settings.cooldown), 0) / settings.cooldown
    return settings.lr + (settings.final_lr - settings.lr) * falling


def schedule(settings: Settings, steps_per_epoch: int, *, timed: bool = False) -> Rate:
    """The learning rate, float32, of a step (from 0) of a run: linear warm-up, then the decay over what remains.

    Warm-up reaches `lr` at step `warmup_steps`, or earlier with `timed`: see `shortened_warmup`.
    """
    asked, decayed = warmup_steps(settings, steps_per_epoch), SCHEDULES[settings.schedule]

    def rate(step: jax.Array | int, total_steps: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warmup = shortened_warmup(asked, total_steps) if timed else asked
        rising = settings.warmup_start_lr + (settings.lr - settings.warmup_start_lr) * step / jnp.maximum(warmup, 1)
        at = Place(step, warmup, total_steps, steps_per_epoch)
        return jnp.where(step < warmup, rising, decayed(settings, at))

    return rate


def warmup_steps(settings: Settings, steps_per_epoch: int) -> int:
    """The steps before the learning rate reaches its peak."""
    return settings.warmup_steps or round(settings.warmup_epochs * steps_per_epoch)


def shortened_warmup(warmup: int, total_steps: jax.Array | int) -> jax.Array:
    """The warm-up, float32, of a run that the clock ends: at most `TIMED_WARMUP` of its steps.

    What is right for the published number of epochs may be more than a short time allows.
    """
    return jnp.minimum(jnp.float32(warmup), TIMED_WARMUP * jnp.asarray(total_steps, jnp.float32))
