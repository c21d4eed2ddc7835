"""Residual networks on ImageNet-1k, from scratch at 224 pixels: what Vision Transformers are compared with.

python -m vit_jax.main --config configs/imagenet_cnn.py:resnet50
python -m vit_jax.main --config configs/imagenet_cnn.py:bit50
"""

from ml_collections import ConfigDict

from vit_jax import config, models

# Model, batch size, learning rate. ResNet: Goyal et al. 2017, arXiv:1706.02677; BiT: Kolesnikov et al. 2020,
# arXiv:1912.11370, 0.03 for each 256 images.
RECIPES = {
    "resnet50": ("resnet/50", 256, 0.1),
    "resnet18": ("resnet/18", 256, 0.1),
    "resnet152": ("resnet/152", 256, 0.1),
    "bit50": ("bit/50x1", 4096, 0.48),
    "bit101": ("bit/101x1", 4096, 0.48),
}


def get_config(arg: str = "") -> ConfigDict:
    """90 epochs of SGD, the learning rate divided by 10 after 30, 60 and 80; not yet run here.

    Goyal et al. report 76.4 % for ResNet-50 (table 1).
    """
    name, batch_size, lr = config.choose(arg, RECIPES)
    c = config.default()
    c.model = models.settings(name)
    c.data.name = "imagenet2012"
    c.data.train, c.data.validation = "train[:99%]", "train[99%:]"
    c.data.image_size = (224,)
    c.data.crop_fraction = 0.875
    c.augment.crop_area = (0.08, 1.0)
    c.augment.flip = 0.5
    c.optim.name = "sgd"
    c.optim.lr = lr
    c.optim.schedule = "step"
    c.optim.step_epochs = (30.0, 60.0, 80.0)
    c.optim.warmup_epochs = 5.0
    c.optim.weight_decay = 1e-4
    c.train.batch_size = batch_size
    c.train.epochs = 90.0
    return c
