"""DeiT and DeiT III on ImageNet-1k, by the recipes of the papers.

python -m vit_jax.main --config configs/deit.py:deit3_s16
python -m vit_jax.main --config configs/deit.py:deit3_b16
python -m vit_jax.main --config configs/deit.py:deit3_b16_224
python -m vit_jax.main --config configs/deit.py:deit_s16

DeiT III is as in affjljoo3581/deit3-jax, config/deit3/in1k, whose figures are quoted; none of these was run here.
"""

from ml_collections import ConfigDict

from vit_jax import config, models

DEIT3 = {"layer_scale": 1e-4, "stochastic_depth_schedule": "uniform"}  # of a ViT


def imagenet(name: str, batch_size: int, epochs: float, **fields: object) -> ConfigDict:
    c = config.default()
    c.model = models.settings(name, zero_head=False, **fields)
    c.data.name = "imagenet2012"
    c.data.validation = "none"
    c.data.image_size = (224,)
    c.data.interpolation = "bicubic"
    c.augment.crop_area = (0.08, 1.0)
    c.augment.interpolation = "bicubic"
    c.augment.flip = 0.5
    c.augment.mean = (0.485, 0.456, 0.406)
    c.augment.std = (0.229, 0.224, 0.225)
    c.augment.mixup = 0.8
    c.augment.cutmix = 1.0
    c.optim.warmup_epochs = 5.0
    c.optim.warmup_start_lr = 1e-6
    c.optim.final_lr = 1e-5
    c.train.batch_size = batch_size
    c.train.epochs = epochs
    return c


def deit_s16() -> ConfigDict:
    """DeiT-S, distilled (Touvron et al. 2021, arXiv:2012.12877), as in facebookresearch/deit, main.py; not yet run.

    81.2 % from a RegNetY; the teacher here is ours.
    """
    c = imagenet("deit/S16", 1024, 300.0, stochastic_depth=0.1)
    c.data.crop_fraction = 0.875
    c.data.repeats = 3
    c.augment.policy = "randaugment"
    c.augment.erasing = 0.25
    c.augment.erasing_area = (0.02, 1 / 3)
    c.augment.erasing_fill = "noise"
    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.05
    c.task.label_smoothing = 0.1
    c.distill.teacher = "hf://microsoft/resnet-152"
    return c


def deit3(size: str, lr: float, stochastic_depth: float) -> ConfigDict:
    """DeiT III (Touvron et al. 2022, arXiv:2204.07118), 400 epochs: S/16 80.7 % in JAX (paper: 80.4); not yet run."""
    c = imagenet(f"vit/{size}", 2048, 400.0, stochastic_depth=stochastic_depth, **DEIT3)
    c.data.repeats = 3
    c.augment.three_augment = True
    c.augment.brightness = c.augment.contrast = c.augment.saturation = 0.3
    c.optim.name = "lamb"
    c.optim.lr = lr
    c.optim.weight_decay = 0.02
    c.optim.clip_norm = 1.0
    c.task.loss = "multi_hot"
    return c


def deit3_b16() -> ConfigDict:
    """The first part of B/16, at 192 pixels; its own accuracy is not published, and not yet run here."""
    c = deit3("B16", 3e-3, 0.1)
    c.data.image_size = (192,)
    return c


def deit3_b16_224() -> ConfigDict:
    """The second: from the folder of `deit3_b16`, 20 epochs at 224 pixels. 83.6 % in JAX (paper: 83.5); not yet run."""
    c = imagenet("vit/B16", 512, 20.0, stochastic_depth=0.1, **DEIT3)
    c.init.weights = "runs/deit-deit3_b16"
    c.augment.policy = "randaugment"
    c.optim.lr = 1e-5
    c.optim.weight_decay = 0.1
    c.task.label_smoothing = 0.1
    return c


def get_config(arg: str = "") -> ConfigDict:
    recipes = {
        "deit_s16": deit_s16,
        "deit3_s16": lambda: deit3("S16", 4e-3, 0.0),
        "deit3_b16": deit3_b16,
        "deit3_b16_224": deit3_b16_224,
    }
    return config.choose(arg, recipes)()
