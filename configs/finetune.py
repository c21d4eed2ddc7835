"""Fine-tuning published weights, or those of a run, on any data set: the argument is WEIGHTS,DATASET.

python -m vit_jax.main --config configs/finetune.py:vit_b16,cifar10
python -m vit_jax.main --config configs/finetune.py:runs/imagenette-pretrain,./photos --config.optim.lr=1e-3
python -m vit_jax.main --config configs/finetune.py:hf://google/vit-base-patch16-224,./photos
"""

from pathlib import Path

from ml_collections import ConfigDict

from vit_jax import config, inference, models, pretrained
from vit_jax.command import UserError

# Optimizer steps, those of the warm-up, and the part of the training split that is trained on (0: the default).
RECIPES = {
    "cifar10": (10_000, 500, 98),
    "cifar100": (10_000, 500, 98),
    "imagenet2012": (20_000, 500, 99),
    "oxford_iiit_pet": (500, 100, 0),
    "oxford_flowers102": (500, 100, 0),
}


def get_config(arg: str = "") -> ConfigDict:
    name, _, dataset = (arg or "vit_b16,cifar10").partition(",")
    if not (name and dataset):
        raise UserError(f"config argument {arg!r}: expected WEIGHTS,DATASET, e.g. vit_b16,cifar10 or runs/x,./photos")
    c = config.default()
    c.data.name = dataset
    if name in pretrained.PUBLISHED:
        row, c.init.weights = pretrained.PUBLISHED[name]
        tanh = {"activation": "gelu_tanh"} if "activation" in models.fields(row) else {}
        c.model = models.settings(row, **tanh)
        c.augment.resize = (224,) if row.startswith("mixer/") else (384,)  # a Mixer is tied to its image size
    elif not (Path(name).exists() or "/" in name):
        raise UserError(f"weights {name!r} are neither here nor one of {', '.join(pretrained.PUBLISHED)}")
    else:  # the weights tell their model and image size
        c.init.weights = name
        c.model = {**inference.find_weights(name).model, "num_classes": 0}
    c.augment.flip = 0.5
    c.evaluate.before = True
    return published(c, *RECIPES[dataset]) if dataset in RECIPES else own_images(c)


def published(c: ConfigDict, steps: int, warmup: int, percent: int) -> ConfigDict:
    """google-research/vision_transformer's recipe (Dosovitskiy et al. 2021, arXiv:2010.11929, appendix B.1.1).

    Its B/16 from ImageNet-21k reaches 99.02 % on CIFAR-10 and 92.06 % on CIFAR-100 at 384 pixels. Of 500 steps a fifth
    warm up, as in its AugReg runs (configs/augreg.py there).
    """
    if percent:
        c.data.train, c.data.validation = f"train[:{percent}%]", f"train[{percent}%:]"
    c.augment.crop_area = (0.05, 1.0)
    c.optim.name = "sgd"
    c.optim.lr = 0.03
    c.optim.warmup_steps = warmup
    c.optim.clip_norm = 1.0
    c.train.batch_size = 512
    c.train.accumulate = 8
    c.train.steps = steps
    return c


def own_images(c: ConfigDict) -> ConfigDict:
    """For a folder of hundreds or thousands of images. Small models, and few steps, want a higher learning rate.

    82.16 % with lr=1e-3 on three classes of Imagenette, from `imagenette.py:pretrain` (79.79 % from random parameters).
    """
    c.augment.crop_padding = 8
    c.optim.lr = 1e-4
    c.optim.weight_decay = 0.05
    c.optim.warmup_steps = 5
    c.optim.clip_norm = 1.0
    c.train.batch_size = 32
    c.train.epochs = 10.0
    return c
