"""Optimizers by name. A new one is a function and its `@register("name")`.

Each gives its transformations in order, weight decay included: what a step subtracts, but for clipping and the learning
rate. Checkpoints know their states by their places in the list.
"""

import math
import operator
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax import trees
from vit_jax.optim.settings import Settings
from vit_jax.optim.settings import register as _register
from vit_jax.trees import PyTree

Optimizer = Callable[[Settings], list[optax.GradientTransformation]]
OPTIMIZERS: dict[str, Optimizer] = {}
# Muon's five iterations; a row for each makes a loop of them, which compiles faster and takes less memory.
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5
ADAMS_RMS = 0.2  # of an update of Adam, about: muon's are scaled to it
register = partial(_register, "optimizer", "name", OPTIMIZERS)


def weight_decay(settings: Settings) -> optax.GradientTransformation:
    """Adds `weight_decay` times the parameters that decay; on the way to `final_weight_decay`, where it is given.

    Then `update` must be told the share of the run that is over, `progress` (Caron et al. 2021, arXiv:2104.14294,
    s. 3.2).
    """
    mask = partial(trees.mask, pattern=settings.decay)
    first, final = settings.weight_decay, settings.final_weight_decay
    if not final:
        return optax.add_decayed_weights(first, mask=mask)

    def update(updates: PyTree, state: PyTree, params: PyTree, *, progress: Any, **_: Any) -> tuple[PyTree, PyTree]:
        decay = final + (first - final) * (1 + jnp.cos(math.pi * progress)) / 2
        return jax.tree.map(lambda u, p: u + decay.astype(u.dtype) * p, updates, params), state

    return optax.masked(optax.GradientTransformationExtraArgs(optax.init_empty_state, update), mask)


@register("adamw", reads=("b1", "b2", "epsilon", "cautious"))
def adamw(settings: Settings) -> list[optax.GradientTransformation]:
    """Decay is decoupled (Loshchilov & Hutter 2019, arXiv:1711.05101); so it is for muon, lion and adafactor."""
    adam = optax.scale_by_adam(settings.b1, settings.b2, settings.epsilon)
    return [cautious(adam) if settings.cautious else adam, weight_decay(settings)]


def cautious(direction: optax.GradientTransformation) -> optax.GradientTransformation:
    """The direction without the numbers whose sign is not the gradient's; the others grow by as much as is left out.

    Of stacked layers each by itself.
    """

    def update(gradients: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        directions, state = direction.update(gradients, state, params)

        def agreeing(name: str, u: jax.Array, g: jax.Array) -> jax.Array:
            agrees = (u * g > 0).astype(u.dtype)
            of_layer = tuple(range(int(trees.is_stacked(name)), u.ndim))
            return u * agrees / jnp.maximum(agrees.mean(axis=of_layer, keepdims=True), 1e-3)

        return trees.map_with_name(agreeing, directions, gradients), state

    return optax.GradientTransformation(direction.init, update)


@register("sgd", reads=("momentum", "nesterov"))
def sgd(settings: Settings) -> list[optax.GradientTransformation]:
    """Decay is added to the gradient (L2 regularisation), as in the papers that train ResNets so; rmsprop likewise."""
    return [weight_decay(settings), optax.trace(settings.momentum, nesterov=settings.nesterov)]


@register("rmsprop", reads=("epsilon", "momentum", "rms_decay"))
def rmsprop(settings: Settings) -> list[optax.GradientTransformation]:
    rms = optax.scale_by_rms(settings.rms_decay, settings.epsilon)
    return [weight_decay(settings), rms, optax.trace(settings.momentum)]


@register("lion", reads=("b1", "b2", "cautious"))
def lion(settings: Settings) -> list[optax.GradientTransformation]:
    direction = optax.scale_by_lion(settings.b1, settings.b2)
    return [cautious(direction) if settings.cautious else direction, weight_decay(settings)]


@register("lamb", reads=("b1", "b2", "epsilon", "decay"))
def lamb(settings: Settings) -> list[optax.GradientTransformation]:
    """Decay is inside the trust ratio (You et al. 2020, arXiv:1904.00962, alg. 2).

    The ratio scales what decays alone, as in apex and timm: what starts near zero, as LayerScale does, could otherwise
    hardly grow.
    """
    trust = optax.masked(optax.scale_by_trust_ratio(), lambda params: trees.mask(params, settings.decay))
    return [*adamw(settings), per_layer(trust)]


@register("adafactor", reads=())
def adafactor(settings: Settings) -> list[optax.GradientTransformation]:
    """Adafactor without momentum (Shazeer & Stern 2018, arXiv:1804.04235, alg. 4), for big_vision's learning rates.

    Update clipping at 1; no scaling by the parameters' norm, so that `lr` means what it means for adamw.
    """
    direction = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    return [per_layer(direction), weight_decay(settings)]


MUON_READS = ("muon", "muon_per_head", "momentum", "nesterov", "b1", "b2", "epsilon", "cautious")


@register("muon", reads=MUON_READS)
def muon(settings: Settings) -> list[optax.GradientTransformation]:
    """Muon (Jordan 2024, kellerjordan.github.io/posts/muon), scaled that Adam's `lr` fits (arXiv:2502.16982, s. 2.2).

    It keeps one moment of what `settings.muon` finds, Adam two of the rest. Depthwise kernels are no matrices.
    """
    axes = partial(_matrix_axes, per_head=settings.muon_per_head)
    dimensions = partial(trees.map_with_name, axes)
    direction = optax.contrib.scale_by_muon(
        NEWTON_SCHULZ, beta=settings.momentum, nesterov=settings.nesterov, weight_dimension_numbers=dimensions
    )
    scale = optax.stateless(lambda updates, params: jax.tree.map(_scaled, updates, dimensions(updates)))
    shaped = optax.chain(direction, scale)
    adam = optax.scale_by_adam(settings.b1, settings.b2, settings.epsilon)
    matrices = partial(_matrices, settings.muon)
    both = optax.chain(
        optax.masked(shaped, matrices),
        optax.masked(adam, lambda tree: jax.tree.map(operator.not_, matrices(tree))),
    )
    return [cautious(both) if settings.cautious else both, weight_decay(settings)]


def _matrices(pattern: str, tree: PyTree) -> PyTree:
    """Which leaves are kernels, found by the pattern, of a product or of a convolution that mixes channels."""

    def mixes(name: str, leaf: Any, found: bool) -> bool:
        ndim = leaf.ndim - trees.is_stacked(name)
        return found and ndim >= 2 and not (ndim == 4 and leaf.shape[-2] == 1)

    return trees.map_with_name(mixes, tree, trees.mask(tree, pattern))


def _matrix_axes(name: str, leaf: Any, *, per_head: bool) -> optax.contrib.MuonDimensionNumbers:
    """The axes of a kernel over which a product sums, and those of its result; each layer and head by itself."""
    first, last = int(trees.is_stacked(name)), leaf.ndim - 1
    if re.search(r"(query|key|value)/kernel$", name):  # [d a e]
        return optax.contrib.MuonDimensionNumbers((first,), (last,) if per_head else tuple(range(first + 1, last + 1)))
    return optax.contrib.MuonDimensionNumbers(tuple(range(first, last)), (last,))


def _scaled(update: jax.Array, axes: optax.contrib.MuonDimensionNumbers) -> jax.Array:
    """The orthogonal update, so that the root of its mean square is `ADAMS_RMS` where the matrix has full rank."""
    fan_in, fan_out = (math.prod(update.shape[axis] for axis in part) for part in axes)
    return update * (ADAMS_RMS * math.sqrt(max(fan_in, fan_out)))


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

    def init(params: PyTree) -> PyTree:
        size = layers(params)
        if not size:
            return transformation.init(params)
        state_axes = axes(jax.eval_shape(transformation.init, params))  # by names, which layers do not change
        return jax.vmap(transformation.init, (axes(params),), state_axes, axis_size=size)(params)

    def update(updates: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        size = layers(updates)
        if not size:
            return transformation.update(updates, state, params)
        out_axes = axes(updates), axes(state)
        in_axes = (*out_axes, axes(params))
        return jax.vmap(transformation.update, in_axes, out_axes, axis_size=size)(updates, state, params)

    return optax.GradientTransformation(init, update)
