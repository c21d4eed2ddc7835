"""Fashion-MNIST: a report's Vision Transformers and CNN, our own recipes, and a ViT small enough for two CPU cores.

python -m vit_jax.main --config configs/fashion_mnist.py:tiny
"""

from ml_collections import ConfigDict

from vit_jax import config, models


def vit(patch: int) -> ConfigDict:
    """The report prints no sizes (28 divides by neither patch): width 64, 8 blocks and 72 pixels are ours.

    Patch 6 has 93.00 % there, and 81.67 % here in an hour of one CPU core; patch 8 91.86 %, and 90.64 % on an H100.
    """
    c = config.default()
    c.model = models.settings(
        "vit",
        patch_size=(patch,),
        width=64,
        depth=8,
        mlp_dim=128,
        num_heads=4,
        head_dim=64,
        class_token=False,
        pooling="flatten",
        mlp_output_activation=True,
        dropout=0.1,
        attention_dropout=0.1,
        head_widths=(2048, 1024),
        head_dropout=0.5,
        zero_head=False,
    )
    c.augment.resize = (72,)
    c.augment.flip = 0.5
    c.augment.rotation = 7.2  # 0.02 of a turn
    c.augment.zoom = (0.2, 0.2)
    c.augment.fill = "reflect"
    c.optim.weight_decay = 1e-4
    return c


def cnn() -> ConfigDict:
    """Without any regularisation, as the report has it: 91.55 % (there 90.32 %), in 14 minutes of one CPU core."""
    c = config.default()
    c.model = models.settings("cnn/conv3")
    return c


def tiny() -> ConfigDict:
    """Test accuracy 89.47 %, in 15 minutes of one CPU core; 89.64 % in 14 on 2 cores of an older AMD EPYC."""
    c = config.default()
    c.model = models.settings(
        "vit",
        patch_size=(4,),
        width=64,
        depth=6,
        mlp_dim=128,
        num_heads=2,
        class_token=False,
        pos_embed="sincos2d",
        pooling="gap",
    )
    c.augment.flip = 0.5
    c.optim.lr = 2e-3
    c.optim.weight_decay = 0.05
    c.optim.warmup_epochs = 1.0
    c.optim.clip_norm = 1.0
    c.task.label_smoothing = 0.1
    c.train.epochs = 20.0
    return c


def tiny_strong() -> ConfigDict:
    """The same for an hour (train.seconds=3600), on cropped and erased images: 93.01 %; on whole ones 89.93."""
    c = tiny()
    c.augment.crop_padding = 2
    c.augment.erasing = 0.25
    return c


def small() -> ConfigDict:
    """A compact transformer of 156 thousand parameters: 92.07 % in an hour of one CPU core (train.seconds=3600)."""
    c = tiny_strong()
    c.model = models.settings("compact", convolutions=2, channels=32, width=64, depth=4, mlp_dim=128, num_heads=2)
    return c


def get_config(arg: str = "") -> ConfigDict:
    reports = {"vit6": lambda: vit(6), "vit8": lambda: vit(8), "cnn": cnn}
    c = config.choose(arg, {**reports, "tiny": tiny, "tiny_strong": tiny_strong, "small": small})()
    c.data.name = "fashion_mnist"
    if not arg or arg in reports:
        c.optim.lr = 1e-3
        c.optim.schedule = "constant"
        c.train.epochs = 30.0
        c.evaluate.use = "best"
    return c
