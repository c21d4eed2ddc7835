"""A budget of compute: the best small ViT, and the CNN to compare it with, for 1e14, 4e14 and 1e15 FLOPs of training.

python -m vit_jax.main --config configs/budget.py:cifar10_1e14
"""

from ml_collections import ConfigDict

from vit_jax import config, models


def recipe() -> ConfigDict:
    """What all have: light augmentation, Muon, a rate that falls to 0 in a line. Not yet run to the end."""
    c = config.default()
    c.data.name = "cifar10"
    c.init.whitening = True
    c.augment.alternate_flip = True
    c.augment.crop_padding, c.augment.fill = 2, "reflect"
    c.optim.name, c.optim.momentum, c.optim.nesterov = "muon", 0.95, True
    c.optim.freeze = "^whitening/conv/kernel"
    c.optim.schedule = "linear"
    c.optim.lr = 8e-3
    c.optim.lr_factors = (r"^head/|embedding|bias$|scale$=0.3",)  # of what Adam updates
    c.optim.weight_decay = 0.05
    c.optim.warmup_steps = 50
    c.task.label_smoothing = 0.1
    c.evaluate.tta = "flip"
    c.evaluate.every_steps = 360
    c.train.batch_size = 250
    return c


def vit(flops: float, size: str) -> ConfigDict:
    """A ViT on the map of two pairs of convolutions. Not yet run to the end."""
    c = recipe()
    c.model = models.settings(f"conv_stem/{size}")
    c.train.flops = flops
    return c


def cnn(flops: float) -> ConfigDict:
    """airbench's network. Not yet run to the end."""
    c = recipe()
    c.model = models.settings("whitened_cnn/airbench94")
    c.train.flops = flops
    return c


def get_config(arg: str = "") -> ConfigDict:
    return config.choose(arg, {"cifar10_1e14": lambda: vit(1e14, "4-128"), "cnn_cifar10_4e14": lambda: cnn(4e14)})()
