"""What a trained model looks at, and what it learned: images in, arrays and pictures out.

`methods` has them all by name and `explain`, which `Predictor.explain` calls; `network` opens a model; a file for each
kind of method computes with it; `pictures` draws the arrays for the `command`; `faithfulness` measures which heat maps
are right.
"""

from vit_jax.explain.command import main
from vit_jax.explain.methods import METHODS, Method, explain

__all__ = ["METHODS", "Method", "explain", "main"]
