"""Residual networks on ImageNet-1k, from scratch at 224 pixels: what Vision Transformers are compared with.

python -m vit_jax.main --config configs/imagenet_cnn.py:resnet50
python -m vit_jax.main --config configs/imagenet_cnn.py:bit50
"""

from ml_collections import ConfigDict

from vit_jax import config, models

# Model, batch size, learning rate, warm-up in steps, whether momentum is Nesterov's. ResNet: Goyal et al. 2017,
# arXiv:1706.02677, s. 5.1, which warms up for larger batches only; BiT: Kolesnikov et al. 2020, arXiv:1912.11370,
# s. 3.3, 0.03 for each 256 images.
RECIPES = {
    "resnet50": ("resnet/50", 256, 0.1, 0, True),
    "resnet18": ("resnet/18", 256, 0.1, 0, True),
    "resnet152": ("resnet/152", 256, 0.1, 0, True),
    "bit50": ("bit/50x1", 4096, 0.48, 5000, False),
    "bit101": ("bit/101x1", 4096, 0.48, 5000, False),
}


def get_config(arg: str = "") -> ConfigDict:
    """90 epochs of SGD, the learning rate divided by 10 after 30, 60 and 80; not yet run here.

    Published: ResNet-50 76.4 % (Goyal et al., table 1), BiT's ResNet-50x1 76.0 % (Kolesnikov et al., table 4).
    """
    name, batch_size, lr, warmup_steps, nesterov = config.choose(arg, RECIPES)
    c = config.default()
    c.model = models.settings(name)
    c.data.name = "imagenet2012"
    c.data.train, c.data.validation = "train[:99%]", "train[99%:]"
    c.data.image_size = (224,)
    c.data.crop_fraction = 0.875
    c.augment.crop_area = (0.08, 1.0)
    c.augment.flip = 0.5
    c.optim.name = "sgd"
    c.optim.nesterov = nesterov
    c.optim.lr = lr
    c.optim.schedule = "step"
    c.optim.step_epochs = (30.0, 60.0, 80.0)
    c.optim.warmup_steps = warmup_steps
    c.optim.weight_decay = 1e-4
    c.train.batch_size = batch_size
    c.train.epochs = 90.0
    return c
