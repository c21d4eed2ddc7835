"""Trained models, ready to use: `load` the folder of a run or published weights, then `predict` or get `features`.

`predictor` has the model, `masks` that of a segmentation, `images` brings images of any form to its size, `weights`
tells what lies at an address before a model is made of it.
"""

from vit_jax.inference.masks import MaskPredictor, load_masks, predicts_masks
from vit_jax.inference.predictor import Predictions, Predictor, load
from vit_jax.inference.weights import canonical_arrays, find_weights

__all__ = [
    "MaskPredictor",
    "Predictions",
    "Predictor",
    "canonical_arrays",
    "find_weights",
    "load",
    "load_masks",
    "predicts_masks",
]
