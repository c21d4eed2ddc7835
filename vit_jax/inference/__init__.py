"""Trained models, ready to use: `load` the folder of a run or published weights, then `predict` or get `features`.

`predictor` has the model, `masks` that of a segmentation, `images` brings images of any form to its size, `opening`
finds what lies at an address.
"""

from vit_jax.inference.masks import MaskPredictor, load_masks, predicts_masks
from vit_jax.inference.opening import canonical_arrays, find_weights, load
from vit_jax.inference.predictor import Predictions, Predictor
