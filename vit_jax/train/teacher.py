"""The teacher of a distilled run: any finished run or published weights, looking at the student's images."""

import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vit_jax.augment import input_shape
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.inference import Predictor, load
from vit_jax.tasks import Teacher
from vit_jax.trees import PyTree


def open_teacher(address: str, student: Config, class_names: tuple[str, ...]) -> Teacher:
    """The teacher at an address; raises `UserError` unless it knows the student's classes, in the same order.

    Where it names them otherwise (ImageNet's classes have numbers in TFDS, words on the hub), their order is trusted.
    """
    trained = load(address)
    theirs = trained.class_names
    if len(theirs) != len(class_names) or (theirs != class_names and set(theirs) & set(class_names)):
        raise UserError(
            f"distill.teacher={address!r} knows the classes {', '.join(theirs[:3])} ... ({len(theirs)}), the data set "
            f"has {', '.join(class_names[:3])} ... ({len(class_names)}); "
            "choose a teacher trained on the same classes, in the same order"
        )
    if theirs != class_names:
        logging.getLogger(__name__).warning(
            "the teacher calls the classes %s, %s ..., the data set %s, %s ...: taken to be the same, in this order",
            *theirs[:2],
            *class_names[:2],
        )
    return Teacher(trained.variables, _forward(trained, student))


def _forward(trained: Predictor, student: Config) -> Callable[[PyTree, Array], Array]:
    """`(variables, images as the student gets them, augmented and normalised) -> logits`.

    The images are normalised as the teacher learned them, and brought to its size.
    """
    ours, theirs = student.augment, trained.config.augment
    height, width, channels = input_shape(theirs, trained.preprocessing.shape)

    def forward(variables: PyTree, images: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        images = images * _channels(ours.std) + _channels(ours.mean)
        if images.shape[-1] != channels:
            images = jnp.repeat(images.mean(axis=-1, keepdims=True), channels, axis=-1)
        images = (images - _channels(theirs.mean)) / _channels(theirs.std)
        images = jax.image.resize(images, (len(images), height, width, channels), "bilinear")
        logits = trained.model.apply(variables, images, train=False)
        assert isinstance(logits, Array)
        return jax.lax.stop_gradient(logits)

    return forward


def _channels(values: tuple[float, ...]) -> Float[Array, "1 1 1 c"]:
    return jnp.asarray(values, jnp.float32)[None, None, None]
