"""Compact Transformers for small images (Hassani et al. 2021, arXiv:2104.05704): 3.7 million parameters, from scratch.

python -m vit_jax.main --config configs/compact.py:cct_cifar10
python -m vit_jax.main --config configs/compact.py:vit_lite_cifar100
"""

from ml_collections import ConfigDict

from vit_jax import config, models

DATA_SETS = ("cifar10", "cifar100", "fashion_mnist")


def recipe(name: str, dataset: str) -> ConfigDict:
    """Published for 300 epochs on CIFAR-10 / 100: CCT-7/3x1 96.5 / 80.9 %, ViT-Lite-7/4 91.4 / 69.8 % (200 epochs)."""
    c = config.default()
    c.model = models.settings(name)
    c.data.name = dataset
    c.augment.crop_padding = 4
    c.augment.flip = 0.5
    c.augment.policy = "randaugment"
    c.augment.erasing = 0.25
    c.augment.mixup = 0.8
    c.augment.cutmix = 1.0
    c.optim.lr = 6e-4
    c.optim.weight_decay = 0.06
    c.optim.warmup_epochs = 10.0
    c.optim.final_lr = 1e-5
    c.train.label_smoothing = 0.1
    c.train.batch_size = 128
    c.train.epochs = 300.0
    return c


def get_config(arg: str = "") -> ConfigDict:
    sizes = {"cct": "compact/CCT-7/3x1", "vit_lite": "compact/ViT-Lite-7/4", "cvt": "compact/CVT-7/4"}
    choices = {f"{key}_{dataset}": (name, dataset) for key, name in sizes.items() for dataset in DATA_SETS}
    return recipe(*config.choose(arg, choices))
