"""CIFAR-10: a report's Vision Transformer and CNN, as it trained them and better, and two for CPUs.

python -m vit_jax.main --config configs/cifar10.py:tiny
"""

from ml_collections import ConfigDict

from vit_jax import config, models


def vit() -> ConfigDict:
    """The report's, 3,195,146 parameters: 77 % there; 53.08 % in an hour of one CPU core (train.seconds=3600)."""
    c = config.default()
    c.model = models.settings("vit", patch_size=(4,), width=256, depth=6, mlp_dim=512, num_heads=8, zero_head=False)
    c.model.dropout = c.model.projection_dropout = c.model.embedding_dropout = 0.2
    return c


def cnn() -> ConfigDict:
    """The report's, 5,852,234 parameters: 89 % there; 75.99 % in an hour of one CPU core (train.seconds=3600)."""
    c = config.default()
    c.model = models.settings("cnn/conv6")
    return c


def strong(c: ConfigDict) -> ConfigDict:
    """The same model with the augmentation and the schedule that small data needs (after arXiv:2104.05704, appendix).

    The CNN: not yet run on a GPU; 73.46 % in an hour of one CPU core (7 epochs), too few for it.
    """
    c.augment.crop_padding = 4
    c.augment.flip = 0.5
    c.augment.policy = "randaugment"
    c.augment.erasing = 0.25
    c.augment.mixup = 0.8
    c.augment.cutmix = 1.0
    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.06
    c.optim.warmup_epochs = 10.0
    c.optim.final_lr = 1e-5
    c.optim.clip_norm = 1.0
    c.task.label_smoothing = 0.1
    c.train.epochs = 300.0
    return c


def vit_strong() -> ConfigDict:
    """The report's ViT, without its dropout: not yet run on a GPU; 44.48 % in an hour of one CPU core."""
    c = strong(vit())
    c.model.dropout = c.model.projection_dropout = c.model.embedding_dropout = 0.0
    c.model.stochastic_depth = 0.1
    return c


def tiny() -> ConfigDict:
    """69.80 % (images re-encoded as JPEG, quality 75), in 35 minutes of one busy CPU core; 70.05 on two, in 19."""
    c = config.default()
    c.model = models.settings("vit", patch_size=(4,), width=96, depth=6, mlp_dim=192, num_heads=3)
    c.model.update(class_token=False, pos_embed="sincos2d", pooling="gap")
    c.augment.flip = 0.5
    c.optim.lr = 2e-3
    c.optim.weight_decay = 0.05
    c.optim.warmup_epochs = 1.0
    c.optim.clip_norm = 1.0
    c.task.label_smoothing = 0.1
    c.train.epochs = 12.0
    return c


def small() -> ConfigDict:
    """A compact transformer of 157 thousand parameters: 74.71 % (images as above), in 22 minutes of one CPU core.

    In an hour (train.seconds=3600; 35 epochs) 79.74 %.
    """
    c = tiny()
    c.model = models.settings("compact", convolutions=2, channels=32, width=64, depth=4, mlp_dim=128, num_heads=2)
    c.augment.crop_padding = 4
    c.train.epochs = 15.0
    return c


def get_config(arg: str = "") -> ConfigDict:
    ours = {"vit_strong": vit_strong, "cnn_strong": lambda: strong(cnn()), "tiny": tiny, "small": small}
    c = config.choose(arg, {"vit": vit, "cnn": cnn, **ours})()
    c.data.name = "cifar10"
    if arg not in ours:  # the report: 180 epochs, batch 128, 45k / 5k / 10k
        c.optim.name = "adamw"
        c.optim.lr = 3e-4
        c.optim.schedule = "constant"
        c.train.epochs = 180.0
    return c
