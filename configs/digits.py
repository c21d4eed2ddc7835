"""A small ViT on scikit-learn's 8x8 digits: the first run on a new machine, about a minute on two CPU cores.

python -m vit_jax.main --config configs/digits.py

Test accuracy 98.89 %, mean of seeds 0 to 4 (98.61 to 99.17), in 46 s on 2 cores of an AMD EPYC.
"""

from ml_collections import ConfigDict

from vit_jax import config, models


def get_config(arg: str = "") -> ConfigDict:
    config.choose(arg, {"": None})
    c = config.default()
    c.model = models.settings(
        "vit",
        patch_size=(2,),
        width=64,
        depth=4,
        mlp_dim=128,
        num_heads=4,
        class_token=False,
        pooling="flatten",
        dropout=0.1,
        head_dropout=0.2,
    )
    c.data.name = "digits"
    c.data.validation = "none"
    c.augment.translation = (0.1,)
    c.augment.rotation = 10.0
    c.augment.zoom = (0.1,)
    c.optim.lr = 2e-3
    c.optim.weight_decay = 0.05
    c.optim.warmup_epochs = 5.0
    c.optim.clip_norm = 1.0
    c.train.batch_size = 64
    c.train.epochs = 60.0
    c.task.label_smoothing = 0.1
    return c
