"""Compact Transformers for small images (Hassani et al. 2021, arXiv:2104.05704): 3.7 million parameters, from scratch.

python -m vit_jax.main --config configs/compact.py:cct_cifar10
python -m vit_jax.main --config configs/compact.py:vit_lite_cifar100
"""

from functools import partial

from ml_collections import ConfigDict

from vit_jax import config, models

# The peak of CCT's learning rate, and where its warm-up begins; Fashion-MNIST's are ours.
RATES = {"cifar10": (5.5e-4, 1e-5), "cifar100": (6e-4, 1e-6), "fashion_mnist": (6e-4, 1e-6)}


def small_images(name: str, dataset: str, epochs: float) -> ConfigDict:
    c = config.default()
    c.model = models.settings(name)
    c.data.name = dataset
    c.data.train, c.data.validation = "train[:98%]", "train[98%:]"  # published: all of train
    c.augment.flip = 0.5
    c.task.label_smoothing = 0.1
    c.train.batch_size = 128
    c.train.epochs = epochs
    return c


def cct(dataset: str) -> ConfigDict:
    """CCT-7/3x1: published 96.5 % on CIFAR-10, 80.9 % on CIFAR-100 after 300 epochs; not yet run on a GPU here.

    By SHI-Labs/Compact-Transformers, configs/datasets/*.yml (its newest configs/pretrained/*.yml do not erase). There
    crops are bilinear or bicubic by chance, CIFAR-10 is mixed for 175 epochs only, and 10 at the final rate follow.
    In 50 minutes of half a CPU core, half an epoch, 29.01 % on CIFAR-10.
    """
    c = small_images("compact/CCT-7/3x1", dataset, 300.0)
    c.augment.crop_area = (0.8, 1.0)
    c.augment.policy = "randaugment"
    c.augment.erasing = 0.25
    c.augment.erasing_area = (0.02, 1 / 3)
    c.augment.erasing_fill = "noise"
    c.augment.mixup = 0.8
    c.augment.cutmix = 1.0
    c.optim.lr, c.optim.warmup_start_lr = RATES[dataset]
    c.optim.weight_decay = 0.06
    c.optim.warmup_epochs = 10.0
    c.optim.final_lr = 1e-5
    return c


def without_convolutions(name: str, dataset: str) -> ConfigDict:
    """ViT-Lite-7/4: published 91.4 and 69.8 %, CVT-7/4: 92.4 and 73.0 %, after 200 epochs; not yet run on a GPU here.

    In an hour of half a CPU core, three epochs, ViT-Lite-7/4 reaches 50.28 % on CIFAR-10.

    By the defaults of its main.py when these were published, which trains on CIFAR-10; its warm-up is not linear.
    """
    c = small_images(name, dataset, 200.0)
    c.augment.policy = "autoaugment_cifar10"
    c.optim.lr = 5e-4
    c.optim.weight_decay = 0.03
    c.optim.decay = ".*"
    c.optim.warmup_epochs = 5.0
    return c


def get_config(arg: str = "") -> ConfigDict:
    choices = {f"cct_{dataset}": partial(cct, dataset) for dataset in RATES}
    for key, name in {"vit_lite": "compact/ViT-Lite-7/4", "cvt": "compact/CVT-7/4"}.items():
        choices |= {f"{key}_{dataset}": partial(without_convolutions, name, dataset) for dataset in RATES}
    return config.choose(arg, choices)()
