"""SSAT (Das et al. 2024, arXiv:2310.20704): a classifier whose encoder also paints hidden patches, from the first step.

python -m vit_jax.main --config configs/ssat.py:cifar10

To compare it at equal FLOPs with training from scratch: --config.train.flops=4e14 for both.
"""

from ml_collections import ConfigDict

from vit_jax import config, models, tasks


def paper(size: str) -> ConfigDict:
    """The authors' code (dominickrei/Limited-data-vits, main_two_branch.py) for ImageNet-1k on 8 GPUs; not yet run.

    Its RandAugment is of the increasing kind. Other data sets are brought to 224 pixels, too.
    """
    c = config.default()
    c.model = models.settings(f"vit/{size}", pos_embed="sincos2d", dtype="bfloat16", scan=True, remat="auto")
    c.task = tasks.settings("auxiliary_autoencoder")
    c.data.name = "imagenet2012"
    c.data.image_size = (224,)
    c.data.crop_fraction = 0.875
    c.data.interpolation = c.augment.interpolation = "bicubic"
    c.augment.crop_area = (0.08, 1.0)
    c.augment.flip = 0.5
    c.augment.policy = "randaugment"
    c.augment.erasing = 0.25
    c.augment.erasing_fill = "noise"
    c.augment.mean = (0.485, 0.456, 0.406)
    c.augment.std = (0.229, 0.224, 0.225)
    c.optim.lr = 1e-3 * 512 / 256
    c.optim.final_lr = 1e-6
    c.optim.weight_decay = 0.05
    c.optim.warmup_epochs = 5.0
    c.train.batch_size = 512
    c.train.epochs = 100.0
    return c


def small() -> ConfigDict:
    """The ViT of cifar10.py:tiny and a small decoder; not yet run. Normalised patches, as in mae.py:cifar10."""
    c = config.default()
    c.model = models.settings("vit", patch_size=(4,), width=96, depth=6, mlp_dim=192, num_heads=3)
    c.model.update(class_token=False, pos_embed="sincos2d", pooling="gap")
    c.task = tasks.settings("auxiliary_autoencoder", decoder_width=48, decoder_depth=2, decoder_heads=3)
    c.task.update(weight=0.5, normalize_patches=True)
    c.data.name = "cifar10"
    c.augment.crop_padding = 4
    c.augment.flip = 0.5
    c.optim.lr = 2e-3
    c.optim.weight_decay = 0.05
    c.optim.warmup_epochs = 1.0
    c.optim.clip_norm = 1.0
    c.train.epochs = 12.0
    return c


def get_config(arg: str = "") -> ConfigDict:
    """`cifar10`; `vit_ti16` and `vit_s16` on ImageNet-1k as in the paper."""
    return config.choose(arg, {"cifar10": small, "vit_ti16": lambda: paper("Ti16"), "vit_s16": lambda: paper("S16")})()
