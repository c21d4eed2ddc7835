"""Self-distillation: the task, its module, its losses, and what an evaluation keeps."""

from vit_jax.tasks.self_distillation.losses import distillation, koleo, patch_distillation
from vit_jax.tasks.self_distillation.task import SelfDistillation

__all__ = ["SelfDistillation", "distillation", "koleo", "patch_distillation"]
