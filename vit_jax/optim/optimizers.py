"""Optimizers by name. A new one is a function and its `@register("name")`.

Each gives its transformations in order, weight decay included: what a step subtracts, but for clipping and the learning
rate. Checkpoints know their states by their places in the list.
"""

from collections.abc import Callable
from functools import partial

import jax
import optax

from vit_jax import trees
from vit_jax.optim.settings import Settings
from vit_jax.optim.settings import register as _register
from vit_jax.trees import PyTree

Optimizer = Callable[[Settings], list[optax.GradientTransformation]]
OPTIMIZERS: dict[str, Optimizer] = {}
register = partial(_register, "optimizer", "name", OPTIMIZERS)


def weight_decay(settings: Settings) -> optax.GradientTransformation:
    """Adds `weight_decay` times the parameters that decay."""
    return optax.add_decayed_weights(settings.weight_decay, mask=lambda params: trees.mask(params, settings.decay))


@register("adamw", reads=("b1", "b2", "epsilon"))
def adamw(settings: Settings) -> list[optax.GradientTransformation]:
    """Decay is decoupled (Loshchilov & Hutter 2019, arXiv:1711.05101); so it is for lion and adafactor."""
    return [optax.scale_by_adam(settings.b1, settings.b2, settings.epsilon), weight_decay(settings)]


@register("sgd", reads=("momentum", "nesterov"))
def sgd(settings: Settings) -> list[optax.GradientTransformation]:
    """Decay is added to the gradient (L2 regularisation), as in the papers that train ResNets so; rmsprop likewise."""
    return [weight_decay(settings), optax.trace(settings.momentum, nesterov=settings.nesterov)]


@register("rmsprop", reads=("epsilon", "momentum", "rms_decay"))
def rmsprop(settings: Settings) -> list[optax.GradientTransformation]:
    rms = optax.scale_by_rms(settings.rms_decay, settings.epsilon)
    return [weight_decay(settings), rms, optax.trace(settings.momentum)]


@register("lion", reads=("b1", "b2"))
def lion(settings: Settings) -> list[optax.GradientTransformation]:
    return [optax.scale_by_lion(settings.b1, settings.b2), weight_decay(settings)]


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
