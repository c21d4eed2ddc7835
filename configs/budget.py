"""A budget of compute: the best small ViT, and the CNN to compare it with, for 1e14, 4e14 and 1e15 FLOPs of training.

python -m vit_jax.main --config configs/budget.py:cifar10_1e14
"""

from ml_collections import ConfigDict

from vit_jax import config, models


def recipe(flops: float) -> ConfigDict:
    """What all have: light augmentation, Muon, a learning rate that falls to 0 in a line. Not yet run to its end."""
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
    c.train.flops = flops
    return c


def vit(flops: float, size: str) -> ConfigDict:
    """A ViT on the map of two pairs of convolutions. Not yet run to its end."""
    c = recipe(flops)
    c.model = models.settings(f"conv_stem/{size}")
    return c


def cnn(flops: float) -> ConfigDict:
    """airbench's network. Not yet run to its end."""
    c = recipe(flops)
    c.model = models.settings("whitened_cnn/airbench94")
    return c


def fashion_mnist(c: ConfigDict) -> ConfigDict:
    """Grey images of 28 pixels. Not yet run to its end."""
    c.data.name = "fashion_mnist"
    return c


def imagenette64(c: ConfigDict) -> ConfigDict:
    """64 pixels: one more pair of convolutions. Random parts of an image. Not yet run to its end."""
    c.data.name, c.data.image_size = "imagenette/160px-v2", (64,)
    c.model.widths = (32, 64, 128)
    c.augment.crop_padding, c.augment.fill = 0, "constant"
    c.augment.crop_area = (0.35, 1.0)
    c.train.batch_size = 125
    return c


def get_config(arg: str = "") -> ConfigDict:
    choices = {
        "cifar10_1e14": lambda: vit(1e14, "4-128"),
        "cifar10_4e14": lambda: vit(4e14, "6-192"),
        "cifar10_1e15": lambda: vit(1e15, "8-256"),
        "fashion_mnist_4e14": lambda: fashion_mnist(vit(4e14, "6-192")),
        "imagenette64_1e15": lambda: imagenette64(vit(1e15, "8-256")),
        "cnn_cifar10_4e14": lambda: cnn(4e14),
    }
    return config.choose(arg, choices)()
