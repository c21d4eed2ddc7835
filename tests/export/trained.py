"""A model of each family with random arrays, as `inference.load` would give it; nothing is trained."""

import jax
import numpy as np

from tests.models.small import SMALL, VIT
from vit_jax import config, models, step, trees
from vit_jax.augment import input_shape
from vit_jax.data import Preprocessing
from vit_jax.export import find_trained
from vit_jax.export.graph import Trained
from vit_jax.inference import Predictor

SIZE = (32, 48)  # of the images that the models get
FOR_SMALL_DATA = {
    "small_vit": (
        "small_vit",
        {
            **VIT,
            "patch_size": (8,),
            "mlp_dim": 11,
            "shifted_patches": True,
            "learned_temperature": True,
            "mask_self": True,
            "mlp_conv": 3,
        },
    ),
    "conv_stem": ("conv_stem/4-128", {**VIT, "mlp_dim": 11, "widths": (4, 6)}),
    "whitened_cnn": ("whitened_cnn/airbench94", {"widths": (6, 8, 8)}),
}
FAMILIES = SMALL | FOR_SMALL_DATA
NAMES = ("ant", "bée", "cat", "dog", "emu")


def trained(family: str, classes: int = 5, resize: tuple[int, ...] = (), **fields) -> Trained:
    """A model of `FAMILIES`; with `resize` its images are smaller, and resized on the device."""
    name, sizes = FAMILIES[family]
    given = models.settings(name, num_classes=classes, **sizes | fields)
    views = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25), "resize": resize}
    prepared = config.from_dict({"model": given, "augment": views}, [])
    view = Preprocessing((20, 30) if resize else SIZE, "stretch", 3)
    model = models.create(given)
    shapes = jax.eval_shape(lambda: step.init_variables(model, 0, input_shape(prepared.augment, view.shape)))
    rng = np.random.default_rng(7)
    variables = trees.map_with_name(lambda name, leaf: random_leaf(rng, name, leaf.shape), shapes)
    return find_trained(Predictor(prepared, model, variables, NAMES[:classes], view, step=17))


def random_leaf(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Such that signals neither vanish nor grow."""
    kind = name.rpartition("/")[2]
    if kind in ("scale", "var"):
        return rng.uniform(0.7, 1.4, shape).astype(np.float32)
    fan_in = np.prod(shape[:-1]) if kind == "kernel" else 4
    return rng.normal(0, fan_in**-0.5, shape).astype(np.float32)


def images(n: int, view: Preprocessing) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *view.shape), np.uint8)
