"""ImageNet-1k from scratch at 224 pixels, by the recipes of the papers; random crops are cut from images of 256.

python -m vit_jax.main --config configs/imagenet.py:vit_s16
"""

from ml_collections import ConfigDict

from vit_jax import config, models


def imagenet(name: str, batch_size: int, epochs: float, **fields: object) -> ConfigDict:
    c = config.default()
    c.model = models.settings(name, **fields)
    c.data.name = "imagenet2012"
    c.data.image_size = (256,)
    c.augment.resize = (224,)
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


def deit_s16() -> ConfigDict:
    """DeiT-S, distilled (Touvron et al. 2021, arXiv:2012.12877): 81.2 % from a RegNetY; the teacher here is ours."""
    c = imagenet("deit/S16", 1024, 300.0, stochastic_depth=0.1)
    c.augment.policy = "randaugment"
    c.augment.erasing = 0.25
    c.augment.mixup = 0.8
    c.augment.cutmix = 1.0
    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.05
    c.optim.warmup_epochs = 5.0
    c.train.label_smoothing = 0.1
    c.distill.teacher = "hf://microsoft/resnet-152"
    return c


def deit3(size: str, stochastic_depth: float) -> ConfigDict:
    """DeiT III (Touvron et al. 2022, arXiv:2204.07118), 400 epochs; in JAX 80.7 % (S) and 83.6 % (B) were reported."""
    c = imagenet(f"vit/{size}", 2048, 400.0, layer_scale=1e-4, stochastic_depth=stochastic_depth, head_bias=-6.9)
    c.augment.three_augment = True
    c.augment.brightness = c.augment.contrast = c.augment.saturation = 0.3
    c.augment.mixup = 0.8
    c.augment.cutmix = 1.0
    c.optim.name = "lamb"
    c.optim.lr = 3e-3
    c.optim.weight_decay = 0.02
    c.optim.warmup_epochs = 5.0
    c.optim.clip_norm = 1.0
    c.train.loss = "sigmoid"
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
        "deit_s16": deit_s16,
        "deit3_s16": lambda: deit3("S16", 0.0),
        "deit3_b16": lambda: deit3("B16", 0.1),
        "mixer_b16": mixer_b16,
        "r26_s32": lambda: imagenet("hybrid/R26+S32", 1024, 300.0),
    }
    return config.choose(arg, recipes)()
