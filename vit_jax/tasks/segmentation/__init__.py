"""Semantic segmentation: a class for each pixel."""

from vit_jax.tasks.segmentation.evaluation import MaskEvaluator
from vit_jax.tasks.segmentation.task import Segmentation

__all__ = ["MaskEvaluator", "Segmentation"]
