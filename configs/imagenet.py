"""ImageNet-1k from scratch at 224 pixels, by the recipes of the papers.

python -m vit_jax.main --config configs/imagenet.py:vit_s16
"""

from ml_collections import ConfigDict

from vit_jax import config, models


def imagenet(name: str, batch_size: int, epochs: float, **fields: object) -> ConfigDict:
    c = config.default()
    c.model = models.settings(name, **fields)
    c.data.name = "imagenet2012"
    c.data.image_size = (224,)
    c.data.crop_fraction = 0.875
    c.augment.crop_area = (0.08, 1.0)
    c.augment.flip = 0.5
    c.train.batch_size = batch_size
    c.train.epochs = epochs
    return c


def vit_s16(epochs: float = 90.0) -> ConfigDict:
    """Plain ViT (Beyer et al. 2022, arXiv:2205.01580): 76.5 % after 90 epochs, 80 % after 300."""
    c = imagenet("vit/S16", 1024, epochs, class_token=False, pooling="gap", positions="sincos2d")
    c.augment.crop_area = (0.05, 1.0)
    c.augment.policy = "randaugment"
    c.augment.rand_magnitude = 10.0
    c.augment.rand_magnitude_std = 0.0
    c.augment.rand_probability = 1.0
    c.augment.mixup = 0.2
    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.1
    c.optim.warmup_steps = 10_000
    c.optim.clip_norm = 1.0
    return c


def augreg(size: str) -> ConfigDict:
    """AugReg (Steiner et al. 2022, arXiv:2106.10270, "medium2"), as in big_vision's vit_i1k.py.

    RandAugment's strength, 15 there, ends at 10 here.
    """
    c = imagenet(f"vit/{size}", 4096, 300.0, dtype="bfloat16")
    c.model.pre_logits = c.model.width
    c.augment.crop_area = (0.05, 1.0)
    c.augment.policy = "randaugment"
    c.augment.rand_magnitude = 10.0
    c.augment.rand_magnitude_std = 0.0
    c.augment.rand_probability = 1.0
    c.augment.mixup = 0.5
    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.1
    c.optim.warmup_steps = 10_000
    c.optim.clip_norm = 1.0
    return c


def mixer_b16() -> ConfigDict:
    """MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601): 76.44 % after 300 epochs."""
    c = imagenet("mixer/B16", 4096, 300.0, stochastic_depth=0.1)
    c.augment.policy = "randaugment"
    c.augment.mixup = 0.5
    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.1
    c.optim.warmup_steps = 10_000
    c.optim.schedule = "linear"
    c.optim.clip_norm = 1.0
    return c


def get_config(arg: str = "") -> ConfigDict:
    recipes = {
        "vit_s16": vit_s16,
        "vit_s16_300": lambda: vit_s16(300.0),
        "vit_b16": lambda: augreg("B16"),
        "vit_l16": lambda: augreg("L16"),
        "mixer_b16": mixer_b16,
        "r26_s32": lambda: imagenet("hybrid/R26+S32", 1024, 300.0),
    }
    return config.choose(arg, recipes)()
