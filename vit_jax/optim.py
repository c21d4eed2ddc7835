"""Learning-rate schedules, optimizers, and what trains when: settings in, an optax transformation out."""

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax import trees
from vit_jax.command import UserError
from vit_jax.setting import setting
from vit_jax.trees import PyTree

Optimizer = Literal["adamw", "sgd", "rmsprop", "lion", "lamb", "adafactor"]
Schedule = Literal["cosine", "linear", "rsqrt", "step", "exponential", "constant"]
Rate = Callable[[jax.Array | int, jax.Array | int], jax.Array]  # (step, steps of the whole run) -> learning rate
HEAD = r"^(head|head_dist|head_hidden_\d+|pre_logits)/"  # the parameters that new classes begin without
TIMED_WARMUP = 0.1  # of a run that the clock ends: the most that its warm-up takes


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The config group `optim`."""

    name: Optimizer = "adamw"
    lr: float = 1e-3  # peak learning rate
    schedule: Schedule = "cosine"  # of the learning rate, after the warm-up
    warmup_steps: int = 0  # with train.seconds a tenth of the run at most
    warmup_epochs: float = 0.0  # instead of warmup_steps
    warmup_start_lr: float = setting(0.0, active_if="optim.warmup_steps or optim.warmup_epochs")  # its first rate
    final_lr: float = setting(0.0, active_if="optim.schedule=cosine or optim.schedule=linear")  # where these end
    # The learning rate is multiplied by `factor` at each of these.
    step_epochs: tuple[float, ...] = setting((), active_if="optim.schedule=step")
    # step: at each boundary; exponential: per epoch.
    factor: float = setting(0.1, active_if="optim.schedule=step or optim.schedule=exponential")
    # lr falls as sqrt(timescale / (timescale + step))
    timescale_steps: int = setting(10_000, active_if="optim.schedule=rsqrt")
    weight_decay: float = 0.0  # 0: off
    # Regular expression of the parameters that decay, and that lamb's trust ratio scales; ".*": all, "(?!)": none.
    decay: str = setting(r"kernel$", active_if="optim.weight_decay or optim.name=lamb")
    b1: float = setting(0.9, active_if="optim.name=adamw or optim.name=lion or optim.name=lamb")
    b2: float = setting(0.999, active_if="optim.name=adamw or optim.name=lion or optim.name=lamb")  # lion wants 0.99
    epsilon: float = setting(1e-8, active_if="optim.name=adamw or optim.name=lamb or optim.name=rmsprop")
    momentum: float = setting(0.9, active_if="optim.name=sgd or optim.name=rmsprop")
    nesterov: bool = setting(False, active_if="optim.name=sgd and optim.momentum")
    rms_decay: float = setting(0.9, active_if="optim.name=rmsprop")
    clip_norm: float = 0.0  # global gradient norm; 0: off
    freeze: str = ""  # regular expression of the parameters that do not train; r"^(?!head/)": all but the last layer
    layer_decay: float = 1.0  # learning rate of each layer over that of the next: 0.65 to 0.9 for fine-tuning; 1: off
    head_warmup_steps: int = 0  # in which the head trains alone; train.seconds does not shorten them
    sam_rho: float = 0.0  # gradients from so far up the slope (SAM, Foret et al. 2021, arXiv:2010.01412); 0: off
    # Exponential moving average of the parameters, which evaluation then uses; 0: off.
    ema_decay: float = setting(0.0, read_by="evaluate texture predict")
    ema_warmup: bool = False  # the decay begins low: (1 + t) / (10 + t) after t updates, until it is ema_decay


def check(settings: Settings) -> None:
    """Raises `UserError` for values outside their range."""
    for field in ("lr", "factor", "epsilon", "timescale_steps"):
        if getattr(settings, field) <= 0:
            raise UserError(f"optim.{field}={getattr(settings, field)} is not positive")
    for field in (
        "weight_decay",
        "clip_norm",
        "warmup_steps",
        "warmup_epochs",
        "warmup_start_lr",
        "final_lr",
        "head_warmup_steps",
        "sam_rho",
    ):
        if getattr(settings, field) < 0:
            raise UserError(f"optim.{field}={getattr(settings, field)} is negative; 0 means off")
    for field in ("b1", "b2", "momentum", "rms_decay", "ema_decay"):
        if not 0 <= getattr(settings, field) < 1:
            raise UserError(f"optim.{field}={getattr(settings, field)} is not in [0, 1)")
    if not 0 < settings.layer_decay <= 1:
        raise UserError(f"optim.layer_decay={settings.layer_decay} is not in (0, 1]; 1 means off")
    if settings.ema_warmup and not settings.ema_decay:
        raise UserError("optim.ema_warmup=True, but no average is kept; set optim.ema_decay, e.g. 0.9999")
    if settings.warmup_steps and settings.warmup_epochs:
        raise UserError("optim.warmup_steps and optim.warmup_epochs are both given; set one of them to 0")
    if settings.schedule == "step" and not settings.step_epochs:
        raise UserError("optim.schedule='step' needs optim.step_epochs, e.g. (30, 60, 80)")
    for field in ("decay", "freeze"):
        try:
            re.compile(getattr(settings, field))
        except re.error as error:
            given = f"optim.{field}={getattr(settings, field)!r}"
            raise UserError(f"{given} is not a regular expression: {error}") from error


def check_params(settings: Settings, params: PyTree) -> None:
    """Raises `UserError` where the settings do not fit a model's parameters, arrays or shapes; touches no device."""
    paths = trees.names(jax.eval_shape(trees.unstack_layers, params))
    modules = list(dict.fromkeys(path.split("/")[0] for path in paths))
    shown = ", ".join(modules[:8]) + (", ..." if len(modules) > 8 else "") + f"; a whole one is {paths[0]}"
    for field in _patterns(settings):
        shares, given = _shares(getattr(settings, field), params), f"optim.{field}={getattr(settings, field)!r}"
        if not any(shares) and (field == "freeze" or settings.weight_decay):
            raise UserError(f"{given} is found in no parameter's path; these begin with {shown}")
        if any(0 < share < 1 for share in shares):
            raise UserError(
                f"{given} tells the encoder's layers apart, which a scanned model cannot; set model.scan=False"
            )
    frozen, given = _shares(settings.freeze or "(?!)", params), f"optim.freeze={settings.freeze!r}"
    if all(frozen):
        raise UserError(f"{given} leaves no parameter to train; their paths begin with {shown}")
    if settings.layer_decay < 1 and not any(np.max(layer) for layer in jax.tree.leaves(trees.layers(params))):
        raise UserError(f"optim.layer_decay={settings.layer_decay}: the model has no layers to tell apart; set it to 1")
    head = jax.tree.leaves(trees.mask(params, HEAD))
    if settings.head_warmup_steps and all(share for share, part in zip(frozen, head, strict=True) if part):
        raise UserError(
            f"optim.head_warmup_steps={settings.head_warmup_steps}, but there is no head to train alone: with {given} "
            f"none of the parameters {HEAD!r} trains; set it to 0"
        )


def _patterns(settings: Settings) -> list[str]:
    """The fields that choose parameters by their paths, where they are read."""
    decays = settings.weight_decay > 0 or settings.name == "lamb"
    return [field for field, is_read in (("freeze", settings.freeze), ("decay", decays)) if is_read]


def _shares(pattern: str, params: PyTree) -> list[float]:
    """Of each leaf, the share of its layers whose paths hold the pattern: 0 or 1, or between them for a stacked one."""
    return [
        float(np.mean([re.search(pattern, own) is not None for own in trees.canonical_names(name, leaf)]))
        for name, leaf in zip(trees.names(params), jax.tree.leaves(params), strict=True)
    ]


def trained(settings: Settings, params: PyTree) -> PyTree:
    """A tree of booleans: which parameters `freeze` leaves to train."""
    return jax.tree.map(operator.not_, trees.mask(params, settings.freeze or "(?!)"))


def warmup_steps(settings: Settings, steps_per_epoch: int) -> int:
    """The steps before the learning rate reaches its peak."""
    return settings.warmup_steps or round(settings.warmup_epochs * steps_per_epoch)


def shortened_warmup(warmup: int, total_steps: jax.Array | int) -> jax.Array:
    """The warm-up, float32, of a run that the clock ends: at most `TIMED_WARMUP` of its steps.

    What is right for the published number of epochs may be more than a short time allows.
    """
    return jnp.minimum(jnp.float32(warmup), TIMED_WARMUP * jnp.asarray(total_steps, jnp.float32))


def check_warmup(settings: Settings, total_steps: int, steps_per_epoch: int) -> None:
    """Raises `UserError` if a warm-up, that of the rate or that of the head, takes all of the run's steps."""
    warmup = warmup_steps(settings, steps_per_epoch)
    if settings.head_warmup_steps >= total_steps:
        raise UserError(
            f"optim.head_warmup_steps={settings.head_warmup_steps} leaves nothing of the run's {total_steps} steps, in "
            "which only the head would train; shorten it, or ask for that by optim.freeze='^(?!head/)'"
        )
    if warmup >= total_steps and warmup > 0:
        raise UserError(
            f"the warm-up of {warmup} steps leaves nothing of the run's {total_steps}; "
            "shorten optim.warmup_steps or optim.warmup_epochs, or train longer (train.epochs, train.steps)"
        )


def schedule(settings: Settings, steps_per_epoch: int, *, timed: bool = False) -> Rate:
    """The learning rate, float32, of a step (from 0) of a run: linear warm-up, then the decay over what remains.

    Warm-up reaches `lr` at step `warmup_steps`, or earlier with `timed`: see `shortened_warmup`. `rsqrt` is Zhai et al.
    2022 (arXiv:2106.04560, s. 3.5) without cool-down; `exponential` decays once an epoch, as Wu et al. 2020
    (arXiv:2006.03677, s. 4.2).
    """
    asked = warmup_steps(settings, steps_per_epoch)

    def rate(step: jax.Array | int, total_steps: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warmup = shortened_warmup(asked, total_steps) if timed else asked
        rising = settings.warmup_start_lr + (settings.lr - settings.warmup_start_lr) * step / jnp.maximum(warmup, 1)
        return jnp.where(step < warmup, rising, _decayed(settings, step, warmup, total_steps, steps_per_epoch))

    return rate


def _decayed(
    settings: Settings,
    step: jax.Array,
    warmup: jax.Array | int,
    total_steps: jax.Array | int,
    steps_per_epoch: int,
) -> jax.Array:
    lr, final = settings.lr, settings.final_lr
    progress = jnp.clip((step - warmup) / jnp.maximum(total_steps - warmup, 1), 0.0, 1.0)
    epoch = step / steps_per_epoch
    match settings.schedule:
        case "cosine":
            return final + (lr - final) * 0.5 * (1 + jnp.cos(math.pi * progress))
        case "linear":
            return lr + (final - lr) * progress
        case "rsqrt":
            timescale = settings.timescale_steps
            return lr * jnp.sqrt(timescale / (timescale + jnp.maximum(step - warmup, 0)))
        case "step":
            passed = jnp.sum(epoch >= jnp.asarray(settings.step_epochs))
            return lr * settings.factor**passed
        case "exponential":
            return lr * settings.factor ** jnp.floor(jnp.maximum(step - warmup, 0) / steps_per_epoch)
    return jnp.full_like(step, lr)


def create(settings: Settings) -> optax.GradientTransformation:
    """Clipping, the optimizer's direction, weight decay: what a step subtracts, but for the learning rate.

    Decay is decoupled (Loshchilov & Hutter 2019, arXiv:1711.05101) for adamw, lion and adafactor; LAMB's is inside its
    trust ratio (You et al. 2020, arXiv:1904.00962, alg. 2), which scales what decays alone, as in apex and timm: what
    starts near zero, as LayerScale does, could otherwise hardly grow; sgd and rmsprop add it to the gradient as the
    papers that train ResNets with them do (L2 regularisation).

    Frozen parameters have no optimizer state, no decay, and no part in the gradient's norm. In the first
    `head_warmup_steps` (after Kumar et al. 2022, arXiv:2202.10054) all but the head stands still, too: its moments stay
    new, and their bias correction begins when the warm-up ends. `layer_decay` scales what is subtracted, decay
    included.
    """
    parts = _trained_alone(settings, _direction(settings))
    if settings.layer_decay < 1:
        parts.append(optax.stateless(partial(_scale_layers, settings.layer_decay)))
    return optax.chain(*parts)


def _trained_alone(settings: Settings, direction: list[optax.GradientTransformation]) -> list[Any]:
    """Clipping and the direction, for what trains at the time; the updates of all else are 0."""
    clip = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    if not (settings.freeze or settings.head_warmup_steps):
        return [*clip, *direction]
    train = partial(trained, settings)
    stop = optax.masked(optax.set_to_zero(), lambda tree: jax.tree.map(operator.not_, train(tree)))
    if not settings.head_warmup_steps:
        return [stop, *clip, optax.masked(optax.chain(*direction), train)]

    def body(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda part, head: part and not head, train(tree), trees.mask(tree, HEAD))

    def head(tree: PyTree) -> PyTree:
        return jax.tree.map(operator.and_, train(tree), trees.mask(tree, HEAD))

    late = partial(_delayed, steps=settings.head_warmup_steps)
    return [
        stop,
        optax.masked(late(optax.identity()), body),
        *clip,
        optax.masked(optax.chain(*direction), head),
        optax.masked(late(optax.chain(*direction)), body),
    ]


class Delayed(NamedTuple):
    """The state of a transformation that begins later."""

    step: jax.Array  # stops at the delay
    inner: PyTree


def _delayed(transformation: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
    """`transformation` from the update `steps` on (from 0); before, the updates are 0 and its state stays new."""

    def init(params: PyTree) -> Delayed:
        return Delayed(jnp.zeros([], jnp.int32), transformation.init(params))

    def update(updates: PyTree, state: Delayed, params: PyTree) -> tuple[PyTree, Delayed]:
        begun = state.step >= steps
        new_updates, inner = transformation.update(updates, state.inner, params)
        new_updates = jax.tree.map(lambda u: jnp.where(begun, u, jnp.zeros_like(u)), new_updates)
        inner = jax.tree.map(lambda new, old: jnp.where(begun, new, old), inner, state.inner)
        return new_updates, Delayed(jnp.minimum(state.step + 1, steps), inner)

    return optax.GradientTransformation(init, update)


def _scale_layers(decay: float, updates: PyTree, params: PyTree) -> PyTree:
    """Each layer's update times `decay` to the power of the layers behind it (Clark et al. 2020, arXiv:2003.10555)."""
    layers = trees.layers(updates)
    last = max(np.max(layer) for layer in jax.tree.leaves(layers))

    def scale(update: jax.Array, layer: Any) -> jax.Array:
        factor = np.float32(decay) ** (last - layer).astype(np.float32)
        return update * factor.reshape(factor.shape + (1,) * (update.ndim - factor.ndim)).astype(update.dtype)

    return jax.tree.map(scale, updates, layers)


def _direction(settings: Settings) -> list[optax.GradientTransformation]:
    """The optimizer, with its decay, before clipping and the learning rate."""
    decay = optax.add_decayed_weights(settings.weight_decay, mask=lambda params: trees.mask(params, settings.decay))
    b1, b2, eps, momentum = settings.b1, settings.b2, settings.epsilon, settings.momentum
    match settings.name:
        case "adamw":
            return [optax.scale_by_adam(b1, b2, eps), decay]
        case "lion":
            return [optax.scale_by_lion(b1, b2), decay]
        case "lamb":
            trust = optax.masked(optax.scale_by_trust_ratio(), lambda params: trees.mask(params, settings.decay))
            return [optax.scale_by_adam(b1, b2, eps), decay, per_layer(trust)]
        case "adafactor":
            return [per_layer(_adafactor_direction()), decay]
        case "sgd":
            return [decay, optax.trace(momentum, nesterov=settings.nesterov)]
        case "rmsprop":
            return [decay, optax.scale_by_rms(settings.rms_decay, eps), optax.trace(momentum)]


def _adafactor_direction() -> optax.GradientTransformation:
    """Adafactor without momentum (Shazeer & Stern 2018, arXiv:1804.04235, alg. 4), for big_vision's learning rates.

    Update clipping at 1; no scaling by the parameters' norm, so that `lr` means what it means for adamw.
    """
    return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))


def per_layer(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """`transformation` applied to each layer of a stacked parameter by itself.

    For transformations that look at a whole leaf (trust ratios, factored moments): a scanned model, whose leaves hold
    all layers, then gets the updates of a looped one.
    """

    def axes(tree: PyTree) -> PyTree:
        return trees.map_with_name(lambda name, _: 0 if trees.is_stacked(name) else None, tree)

    def layers(tree: PyTree) -> int:
        names = zip(trees.names(tree), jax.tree.leaves(tree), strict=True)
        return next((leaf.shape[0] for name, leaf in names if trees.is_stacked(name)), 0)

    def one_layer(tree: PyTree) -> PyTree:
        return trees.map_with_name(
            lambda name, leaf: jax.ShapeDtypeStruct(
                leaf.shape[1:] if trees.is_stacked(name) else leaf.shape, leaf.dtype
            ),
            tree,
        )

    def vmap(fn: Callable[..., Any], in_axes: Any, out_axes: Any, size: int) -> Callable[..., Any]:
        return jax.vmap(fn, in_axes=in_axes, out_axes=out_axes, axis_size=size)

    def init(params: PyTree) -> PyTree:
        size = layers(params)
        if not size:
            return transformation.init(params)
        state_axes = axes(jax.eval_shape(transformation.init, one_layer(params)))
        return vmap(transformation.init, (axes(params),), state_axes, size)(params)

    def update(updates: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        size = layers(updates)
        if not size:
            return transformation.update(updates, state, params)
        in_axes = (axes(updates), axes(state), axes(params))
        return vmap(transformation.update, in_axes, (axes(updates), axes(state)), size)(updates, state, params)

    return optax.GradientTransformation(init, update)
