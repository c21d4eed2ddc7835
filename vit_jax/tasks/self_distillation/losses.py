"""The losses of self-distillation, over crops, over hidden patches, and over the features themselves."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vit_jax.models.projection import of_length_1


def distillation(
    teacher: Float[Array, "n t k"],
    student: Float[Array, "n v k"],
    teacher_temperature: Float[Array, ""] | float,
    student_temperature: float,
) -> Float[Array, ""]:
    """The mean cross-entropy over pairs of a teacher's crop and another of the student's (eq. 3).

    The teacher's outputs are centred; its crops are the first of the student's.
    """
    taught = jax.nn.softmax(teacher / teacher_temperature)
    seen = jax.nn.log_softmax(student / student_temperature)
    crossed = -jnp.einsum("ntk,nvk->ntv", taught, seen, precision="highest")
    t, v = crossed.shape[1:]
    other = jnp.arange(t)[:, None] != jnp.arange(v)[None]
    return jnp.where(other[None], crossed, 0.0).sum() / (len(crossed) * (t * v - t))


def patch_distillation(
    teacher: Float[Array, "n v l k"],
    student: Float[Array, "n v l k"],
    hidden: Bool[Array, "n v l"],
    teacher_temperature: Float[Array, ""] | float,
    student_temperature: float,
) -> Float[Array, ""]:
    """The cross-entropy of each hidden patch: the mean over a crop's, 0 where there are none, then over all crops.

    The teacher's outputs are centred (iBOT, eq. 2, and its authors' code).
    """
    taught = jax.nn.softmax(teacher / teacher_temperature)
    seen = jax.nn.log_softmax(student / student_temperature)
    of_patch = -jnp.einsum("nvlk,nvlk->nvl", taught, seen, precision="highest")
    return (jnp.where(hidden, of_patch, 0.0).sum(axis=2) / jnp.maximum(hidden.sum(axis=2), 1)).mean()


def koleo(features: Float[Array, "n d"]) -> Float[Array, ""]:
    """Minus the mean logarithm of the distance to the nearest other direction (Sablayrolles et al. 2019,
    arXiv:1806.03198, eq. 2)."""
    x = of_length_1(features, axis=-1)
    similar = jnp.einsum("nd,md->nm", x, x, precision="highest")
    nearest = jnp.argmax(similar - 2 * jnp.eye(len(x)), axis=1)
    apart = jnp.square(x - x[nearest]).sum(axis=-1)
    return -0.5 * jnp.log(apart + 1e-8).mean()


def spread_of(features: Float[Array, "n d"]) -> Float[Array, ""]:
    """As `metrics.probes.spread`, of a part of a batch."""
    x = of_length_1(features, axis=-1)
    return x.std(axis=0).mean() * math.sqrt(x.shape[1])
