"""From settings to an optax transformation: the optimizer, for what trains at the time, and its layers' rates."""

import operator
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax import trees
from vit_jax.command import UserError
from vit_jax.optim.optimizers import OPTIMIZERS
from vit_jax.optim.settings import Settings
from vit_jax.trees import PyTree

HEAD = "^head/"  # the head of a model that does not say what its own is called


def create(settings: Settings, *, layers: Sequence[str] = (), head: str = HEAD) -> optax.GradientTransformation:
    """Clipping, the optimizer's direction, weight decay: what a step subtracts, but for the learning rate.

    `layers` is the model's order of layers (see `trees.layers`), `head` the expression of its head's parameters: a
    `Naming`'s `layers` and `whole_head`.

    Frozen parameters have no optimizer state, no decay, and no part in the gradient's norm. In the first
    `head_warmup_steps` (after Kumar et al. 2022, arXiv:2202.10054) all but the head stands still, too: its moments stay
    new, and their bias correction begins when the warm-up ends. `layer_decay` scales what is subtracted, decay
    included.
    """
    if settings.layer_decay < 1 and not layers:
        raise UserError(f"optim.layer_decay={settings.layer_decay}: the model has no layers to tell apart; set it to 1")
    parts = _trained_alone(settings, OPTIMIZERS[settings.name](settings), head)
    if settings.lr_factors:
        parts.append(optax.stateless(partial(_scale_found, settings.lr_factors)))
    if settings.layer_decay < 1:
        parts.append(optax.stateless(partial(_scale_layers, settings.layer_decay, layers)))
    return optax.chain(*parts)


def _trained_alone(settings: Settings, direction: list[optax.GradientTransformation], head: str) -> list[Any]:
    """Clipping and the direction, for what trains at the time; the updates of all else are 0."""
    clip = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    if not (settings.freeze or settings.head_warmup_steps):
        return [*clip, *direction]
    train = partial(trainable, settings)
    stop = optax.masked(optax.set_to_zero(), lambda tree: jax.tree.map(operator.not_, train(tree)))
    if not settings.head_warmup_steps:
        return [stop, *clip, optax.masked(optax.chain(*direction), train)]

    def of_body(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda trains, in_head: trains and not in_head, train(tree), trees.mask(tree, head))

    def of_head(tree: PyTree) -> PyTree:
        return jax.tree.map(operator.and_, train(tree), trees.mask(tree, head))

    late = partial(_delayed, steps=settings.head_warmup_steps)
    return [
        stop,
        optax.masked(late(optax.identity()), of_body),
        *clip,
        optax.masked(optax.chain(*direction), of_head),
        optax.masked(late(optax.chain(*direction)), of_body),
    ]


class Delayed(NamedTuple):
    """The state of a transformation that begins later."""

    step: jax.Array  # stops at the delay
    inner: PyTree


def _delayed(transformation: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
    """`transformation` from the update `steps` on (from 0); before, the updates are 0 and its state stays new."""

    def init(params: PyTree) -> Delayed:
        return Delayed(jnp.zeros([], jnp.int32), transformation.init(params))

    whole = optax.with_extra_args_support(transformation)

    def update(updates: PyTree, state: Delayed, params: PyTree, **extra: Any) -> tuple[PyTree, Delayed]:
        begun = state.step >= steps
        new_updates, inner = whole.update(updates, state.inner, params, **extra)
        new_updates = jax.tree.map(lambda u: jnp.where(begun, u, jnp.zeros_like(u)), new_updates)
        inner = jax.tree.map(lambda new, old: jnp.where(begun, new, old), inner, state.inner)
        return new_updates, Delayed(jnp.minimum(state.step + 1, steps), inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _scale_layers(decay: float, order: Sequence[str], updates: PyTree, params: PyTree) -> PyTree:
    """Each layer's update times `decay` to the power of the layers behind it (Clark et al. 2020, arXiv:2003.10555)."""
    layers = trees.layers(updates, order)
    last = max(np.max(layer) for layer in jax.tree.leaves(layers))

    def scale(update: jax.Array, layer: Any) -> jax.Array:
        factor = np.float32(decay) ** (last - layer).astype(np.float32)
        return update * factor.reshape(factor.shape + (1,) * (update.ndim - factor.ndim)).astype(update.dtype)

    return jax.tree.map(scale, updates, layers)


def _scale_found(factors: Sequence[str], updates: PyTree, params: PyTree) -> PyTree:
    """Each update times the factor of the first expression that is found in its path, that of a layer of its own."""
    parsed = [(re.compile(pattern), float(factor)) for pattern, _, factor in (f.rpartition("=") for f in factors)]

    def scale(name: str, update: jax.Array) -> jax.Array:
        found = [
            next((factor for regex, factor in parsed if regex.search(own)), 1.0)
            for own in trees.canonical_names(name, update)
        ]
        if len(set(found)) == 1:
            return update * found[0]
        return update * jnp.asarray(found, update.dtype).reshape(-1, *(1,) * (update.ndim - 1))

    return trees.map_with_name(scale, updates)


def trainable(settings: Settings, params: PyTree) -> PyTree:
    """A tree of booleans: which parameters `freeze` leaves to train."""
    return jax.tree.map(operator.not_, trees.mask(params, settings.freeze or "(?!)"))
