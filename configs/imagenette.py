"""Imagenette at 160 pixels (github.com/fastai/imagenette): ten classes of ImageNet.

python -m vit_jax.main --config configs/imagenette.py:pretrain
"""

from ml_collections import ConfigDict

from vit_jax import config, models

FOLDER = ("n03028079", "n03394916", "n03425413")  # church, French horn, petrol pump: left for fine-tuning
OTHERS = ("n01440764", "n02102040", "n02979186", "n03000684", "n03417042", "n03445777", "n03888257")


def pretrain() -> ConfigDict:
    """A small ViT on seven classes, to be fine-tuned on images of others: 66.70 %, 71 minutes on 2 busy CPU cores."""
    c = config.default()
    c.model = models.settings(
        "vit",
        patch_size=(8,),
        width=144,
        depth=6,
        mlp_width=432,
        heads=3,
        class_token=False,
        pooling="gap",
    )
    c.data.classes = OTHERS
    c.data.image_size = (64,)
    c.augment.crop_padding = 8
    c.augment.flip = 0.5
    c.augment.rotation = 10.0
    c.augment.zoom = (0.25,)
    c.augment.erasing = 0.25
    c.optim.lr = 1.5e-3
    c.optim.weight_decay = 0.05
    c.optim.warmup_epochs = 2.0
    c.optim.clip_norm = 1.0
    c.train.batch_size = 64
    c.train.label_smoothing = 0.1
    c.train.epochs = 40.0
    return c


def get_config(arg: str = "") -> ConfigDict:
    c = config.choose(arg, {"pretrain": pretrain})()
    c.data.name = "imagenette/160px-v2"
    return c
