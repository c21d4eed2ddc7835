"""What the settings may be: by themselves, for a model's parameters, and for a length of the run."""

import re
from collections.abc import Sequence

import jax
import numpy as np

from vit_jax import trees
from vit_jax.command import UserError
from vit_jax.optim.optimizers import OPTIMIZERS
from vit_jax.optim.schedules import SCHEDULES
from vit_jax.optim.settings import Settings, reads
from vit_jax.optim.transformation import HEAD
from vit_jax.trees import PyTree


def check(settings: Settings) -> None:
    """Raises `UserError` for unknown names, and for values outside their range."""
    for field, known in (("name", OPTIMIZERS), ("schedule", SCHEDULES)):
        if getattr(settings, field) not in known:
            raise UserError(f"optim.{field}={getattr(settings, field)!r} is unknown; choose from {', '.join(known)}")
    for field in ("lr", "factor", "epsilon", "timescale_steps"):
        if getattr(settings, field) <= 0:
            raise UserError(f"optim.{field}={getattr(settings, field)} is not positive")
    warmups = ("warmup_steps", "warmup_epochs", "warmup_start_lr", "head_warmup_steps")
    for field in ("weight_decay", "final_weight_decay", "clip_norm", *warmups, "final_lr", "sam_rho"):
        if getattr(settings, field) < 0:
            raise UserError(f"optim.{field}={getattr(settings, field)} is negative; 0 means off")
    for field in ("b1", "b2", "momentum", "rms_decay", "ema_decay", "schedule_free"):
        if not 0 <= getattr(settings, field) < 1:
            raise UserError(f"optim.{field}={getattr(settings, field)} is not in [0, 1)")
    if not 0 < settings.layer_decay <= 1:
        raise UserError(f"optim.layer_decay={settings.layer_decay} is not in (0, 1]; 1 means off")
    if settings.ema_warmup and not settings.ema_decay:
        raise UserError("optim.ema_warmup=True, but no average is kept; set optim.ema_decay, e.g. 0.9999")
    if settings.schedule_free:
        _check_schedule_free(settings)
    if settings.warmup_steps and settings.warmup_epochs:
        raise UserError("optim.warmup_steps and optim.warmup_epochs are both given; set one of them to 0")
    if settings.schedule == "step" and not settings.step_epochs:
        raise UserError("optim.schedule='step' needs optim.step_epochs, e.g. (30, 60, 80)")
    if not 0 < settings.cooldown <= 1:
        raise UserError(
            f"optim.cooldown={settings.cooldown} is not in (0, 1]; 1: the rate falls from the first step on"
        )
    for field in ("decay", "freeze", "muon"):
        _check_expression(field, getattr(settings, field))
    for given in settings.lr_factors:
        pattern, _, factor = given.rpartition("=")
        _check_expression("lr_factors", pattern)
        if not pattern or not re.fullmatch(r"\d+(\.\d*)?([eE]-?\d+)?", factor):
            raise UserError(f"optim.lr_factors={given!r}: expected EXPRESSION=FACTOR, e.g. '^head/=0.5'")


def _check_schedule_free(settings: Settings) -> None:
    """Raises `UserError` for settings whose place the mean of the parameters takes, or that its weights do not know."""
    wanted = {"schedule": "constant", "ema_decay": 0.0, "warmup_start_lr": 0.0, "head_warmup_steps": 0}
    # Muon without momentum would be another method.
    momenta = ("b1",) if settings.name == "muon" else ("b1", "momentum")
    wanted |= {field: 0.0 for field in momenta if reads("name", settings.name, field)}
    for field, value in wanted.items():
        if (given := getattr(settings, field)) != value:
            raise UserError(
                f"optim.schedule_free={settings.schedule_free} with optim.{field}={given}: its mean of the parameters "
                f"takes the place of momentum, of a falling rate and of other averages; set optim.{field}={value}"
            )


def _check_expression(field: str, pattern: str) -> None:
    """Raises `UserError` if the pattern is not a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"optim.{field}={pattern!r} is not a regular expression: {error}") from error


def check_params(settings: Settings, params: PyTree, *, layers: Sequence[str] = (), head: str = HEAD) -> None:
    """Raises `UserError` where the settings do not fit a model's parameters, arrays or shapes; touches no device.

    `layers` and `head` are those of `create`.
    """
    paths = trees.names(jax.eval_shape(trees.unstack_layers, params))
    modules = list(dict.fromkeys(path.split("/")[0] for path in paths))
    shown = ", ".join(modules[:8]) + (", ..." if len(modules) > 8 else "") + f"; a whole one is {paths[0]}"
    decays = settings.weight_decay > 0 or reads("name", settings.name, "decay")
    for field in [field for field, is_read in (("freeze", settings.freeze), ("decay", decays)) if is_read]:
        shares, given = _shares(getattr(settings, field), params), f"optim.{field}={getattr(settings, field)!r}"
        if not any(shares) and (field == "freeze" or settings.weight_decay):
            raise UserError(f"{given} is found in no parameter's path; these begin with {shown}")
        if any(0 < share < 1 for share in shares):
            raise UserError(
                f"{given} tells the encoder's layers apart, which a scanned model cannot; set model.scan=False"
            )
    for factor in settings.lr_factors:
        if not any(_shares(factor.rpartition("=")[0], params)):
            raise UserError(f"optim.lr_factors={factor!r} is found in no parameter's path; these begin with {shown}")
    if reads("name", settings.name, "muon") and not any(_shares(settings.muon, params)):
        raise UserError(f"optim.muon={settings.muon!r} is found in no parameter's path; these begin with {shown}")
    frozen, given = _shares(settings.freeze or "(?!)", params), f"optim.freeze={settings.freeze!r}"
    if all(frozen):
        raise UserError(f"{given} leaves no parameter to train; their paths begin with {shown}")
    if settings.layer_decay < 1 and not any(np.max(layer) for layer in jax.tree.leaves(trees.layers(params, layers))):
        raise UserError(f"optim.layer_decay={settings.layer_decay}: the model has no layers to tell apart; set it to 1")
    in_head = jax.tree.leaves(trees.mask(params, head))
    if settings.head_warmup_steps and all(share for share, part in zip(frozen, in_head, strict=True) if part):
        raise UserError(
            f"optim.head_warmup_steps={settings.head_warmup_steps}, but there is no head to train alone: with {given} "
            f"none of the parameters {head!r} trains; set it to 0"
        )


def check_warmup(settings: Settings, total_steps: int) -> None:
    """Raises `UserError` if the warm-up of the head takes all of the run's steps."""
    if settings.head_warmup_steps >= total_steps:
        raise UserError(
            f"optim.head_warmup_steps={settings.head_warmup_steps} leaves nothing of the run's {total_steps} steps, in "
            "which only the head would train; shorten it, or ask for that by optim.freeze='^(?!head/)'"
        )


def _shares(pattern: str, params: PyTree) -> list[float]:
    """Of each leaf, the share of its layers whose paths hold the pattern: 0 or 1, or between them for a stacked one."""
    return [
        float(np.mean([re.search(pattern, own) is not None for own in trees.canonical_names(name, leaf)]))
        for name, leaf in zip(trees.names(params), jax.tree.leaves(params), strict=True)
    ]
