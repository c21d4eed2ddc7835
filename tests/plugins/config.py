"""A recipe that uses all of them."""

from pathlib import Path

from ml_collections import ConfigDict

from vit_jax import config, models, tasks

PLUGINS = ("convmixer", "npz", "fewer_bits", "adopt", "focal", "kappa", "rotation")


def get_config(arg: str = "") -> ConfigDict:
    c = config.default()
    c.plugins = tuple(str(Path(__file__).with_name(f"{name}.py")) for name in PLUGINS)
    c.model = models.settings("convmixer", width=6, depth=1, kernel_size=3, patch_size=2)
    c.data.name = "npz/shapes"
    c.augment.extra = ("fewer_bits",)
    c.optim.name = "adopt"
    if config.choose(arg, {"labels": True, "rotation": False}):
        c.task = tasks.settings("classification", loss="focal")
        c.evaluate.metric = "kappa"
    else:
        c.task = tasks.settings("rotation")
    return c
