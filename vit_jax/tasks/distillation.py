"""Distillation: classification that learns from a teacher's logits as well as from labels (Touvron et al. 2021)."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float

from vit_jax import losses
from vit_jax.command import UserError
from vit_jax.tasks.base import Distill, Parts
from vit_jax.tasks.classification import Classification
from vit_jax.trees import PyTree


class Distillation(Classification):
    """Classification with `distill.teacher`: a share `distill.weight` of the loss is the teacher's.

    A model with a distillation token learns from the teacher by that token's head, others by their own
    (arXiv:2012.12877, s. 3).
    """

    def __init__(self, settings: Classification.Settings, parts: Parts) -> None:
        super().__init__(settings, parts)
        assert parts.teacher is not None
        self.constants = {"teacher": parts.teacher.variables}
        self.teacher = parts.teacher.forward

    @classmethod
    def check(cls, settings: Classification.Settings, model: Mapping[str, Any], distill: Distill) -> None:
        """As classification; both heads of a model that has two must learn."""
        super().check(settings, model, distill)
        if model.get("distillation_token") and not 0 < distill.weight < 1:
            raise UserError(
                f"distill.weight={distill.weight:g} would leave one of the two heads of model "
                f"{model['name']!r} untrained, and evaluation averages both; choose a weight between 0 and 1"
            )

    def per_example(
        self,
        logits: Float[Array, "n k"],
        targets: Float[Array, "n k"],
        images: Float[Array, "n h w c"],
        sown: Mapping[str, PyTree],
        constants: Mapping[str, PyTree],
    ) -> Float[Array, " n"]:
        distill = self.parts.distill
        student = sown["distillation"]["logits"][0] if "distillation" in sown else logits
        teachers = self.teacher(constants["teacher"], images)
        of_teacher = (
            losses.soft_distillation(student, teachers, distill.temperature)
            if distill.kind == "soft"
            else losses.hard_distillation(student, teachers)
        )
        of_labels = super().per_example(logits, targets, images, sown, constants)
        return (1 - distill.weight) * of_labels + distill.weight * of_teacher
