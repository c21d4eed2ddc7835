"""ADOPT (Taniguchi et al. 2024, arXiv:2411.02853): Adam, but for the order of its two moments."""

import optax

from vit_jax import optim


@optim.register("adopt", reads=("b1", "b2", "epsilon"))
def adopt(settings: optim.Settings) -> list[optax.GradientTransformation]:
    direction = optax.contrib.scale_by_adopt(settings.b1, settings.b2, settings.epsilon)
    return [direction, optim.weight_decay(settings)]
