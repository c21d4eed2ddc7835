"""Imagenette at 160 pixels (github.com/fastai/imagenette): ten classes of ImageNet.

python -m vit_jax.main --config configs/imagenette.py:vit_s16
python -m vit_jax.main --config configs/imagenette.py:pretrain
"""

from ml_collections import ConfigDict

from vit_jax import config, models

FOLDER = ("n03028079", "n03394916", "n03425413")  # church, French horn, petrol pump: left for fine-tuning
OTHERS = ("n01440764", "n02102040", "n02979186", "n03000684", "n03417042", "n03445777", "n03888257")


def pretrain() -> ConfigDict:
    """A compact transformer on seven classes, to be fine-tuned on images of others: 78.47 %, 40 minutes on a CPU."""
    c = config.default()
    c.model = models.settings("compact", convolutions=3, channels=32, width=128, depth=6, mlp_dim=256, num_heads=4)
    c.data.classes = OTHERS
    c.data.image_size = (64,)
    c.augment.crop_area = (0.35, 1.0)
    c.augment.flip = 0.5
    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.05
    c.optim.warmup_epochs = 2.0
    c.optim.clip_norm = 1.0
    c.train.batch_size = 64
    c.task.label_smoothing = 0.1
    c.train.epochs = 30.0
    return c


def vit64() -> ConfigDict:
    """A ViT with a class token on 64 pixels, for `vit_jax explain`: 54.14 %, 40 minutes of one busy CPU core."""
    c = pretrain()
    c.model = models.settings("vit", patch_size=(8,), width=128, depth=6, mlp_dim=384, num_heads=4)
    c.data.classes = ()
    c.train.epochs, c.train.seconds = 10.0, 2400.0
    return c


def scratch(name: str) -> ConfigDict:
    """ImageNet's recipes made small: all ten classes, for a GPU."""
    c = config.default()
    c.model = models.settings(name)
    c.data.image_size = (160,)
    c.augment.crop_area = (0.25, 1.0)
    c.augment.flip = 0.5
    c.augment.policy = "randaugment"
    c.augment.erasing = 0.25
    c.augment.mixup = 0.8
    c.augment.cutmix = 1.0
    c.optim.warmup_epochs = 10.0
    c.optim.clip_norm = 1.0
    c.task.label_smoothing = 0.1
    c.train.epochs = 400.0
    return c


def vit_s16() -> ConfigDict:
    """ViT-S/16 without class token, 100 patches: not yet run on a GPU; 21.58 % in an hour of one core."""
    c = scratch("vit/S16")
    c.model.class_token, c.model.pooling, c.model.stochastic_depth = False, "gap", 0.1
    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.05
    return c


def resnet50() -> ConfigDict:
    """ResNet-50 with the same augmentation: not yet run on a GPU; 33.48 % in an hour of one core."""
    c = scratch("resnet/50")
    c.optim.name = "sgd"
    c.optim.nesterov = True
    c.optim.lr = 0.1
    c.optim.weight_decay = 1e-4
    return c


def get_config(arg: str = "") -> ConfigDict:
    c = config.choose(arg, {"vit_s16": vit_s16, "resnet50": resnet50, "pretrain": pretrain, "vit64": vit64})()
    c.data.name = "imagenette/160px-v2"
    return c
