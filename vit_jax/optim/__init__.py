"""Learning-rate schedules, optimizers, and what trains when: settings in, an optax transformation out."""

from vit_jax.optim.averages import Average, average
from vit_jax.optim.checks import check, check_params, check_warmup
from vit_jax.optim.optimizers import OPTIMIZERS, per_layer, register, weight_decay
from vit_jax.optim.schedules import (
    SCHEDULES,
    TIMED_WARMUP,
    Place,
    Rate,
    schedule,
    shortened_warmup,
    warmup_steps,
)
from vit_jax.optim.schedules import register as register_schedule
from vit_jax.optim.settings import Settings
from vit_jax.optim.transformation import create, trainable

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "TIMED_WARMUP",
    "Average",
    "Place",
    "Rate",
    "Settings",
    "average",
    "check",
    "check_params",
    "check_warmup",
    "create",
    "per_layer",
    "register",
    "register_schedule",
    "schedule",
    "shortened_warmup",
    "trainable",
    "warmup_steps",
    "weight_decay",
]
