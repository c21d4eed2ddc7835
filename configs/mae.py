"""Masked autoencoders (He et al. 2022, arXiv:2111.06377, table 8): pre-training without labels.

python -m vit_jax.main --config configs/mae.py:cifar10

A fine-tuning run starts from the encoder: --config configs/finetune.py:runs/mae-cifar10,cifar10
"""

from ml_collections import ConfigDict

from vit_jax import config, models, tasks


def imagenet(size: str) -> ConfigDict:
    """Table 8: 800 epochs in batches of 4,096; learning rate 1.5e-4 for each 256 images. Not yet run."""
    c = config.default()
    c.model = models.settings(f"vit/{size}", pos_embed="sincos2d", dtype="bfloat16", scan=True, remat="auto")
    c.task = tasks.settings("masked_autoencoder")
    c.data.name = "imagenet2012"
    c.data.image_size = (224,)
    c.augment.crop_area = (0.2, 1.0)
    c.augment.interpolation = "bicubic"
    c.augment.flip = 0.5
    c.augment.mean = (0.485, 0.456, 0.406)
    c.augment.std = (0.229, 0.224, 0.225)
    c.optim.lr = 1.5e-4 * 4096 / 256
    c.optim.b2 = 0.95
    c.optim.weight_decay = 0.05
    c.optim.warmup_epochs = 40.0
    c.train.batch_size = 4096
    c.train.epochs = 800.0
    return c


def small() -> ConfigDict:
    """A ViT of 0.45 million parameters and a small decoder, for 32-pixel images; its 20 epochs are not yet run.

    60 steps on 4,000 images bring the test loss to 0.83, in two minutes of two CPU cores; guessing gives 0.98.
    """
    c = config.default()
    c.model = models.settings("vit", patch_size=(4,), width=96, depth=6, mlp_dim=192, num_heads=3)
    c.model.update(class_token=False, pos_embed="sincos2d", pooling="gap")
    c.task = tasks.settings("masked_autoencoder", decoder_width=48, decoder_depth=2, decoder_heads=3)
    c.data.name = "cifar10"
    c.augment.flip = 0.5
    c.augment.crop_area = (0.5, 1.0)
    c.optim.lr = 2e-3
    c.optim.b2 = 0.95
    c.optim.weight_decay = 0.05
    c.optim.warmup_epochs = 1.0
    c.optim.clip_norm = 1.0
    c.train.batch_size = 256
    c.train.epochs = 20.0
    return c


def small_patches() -> ConfigDict:
    """A ViT-Ti (5.3 million parameters) on patches of 2 pixels, 256 of them, for a GPU; not yet run.

    The encoder sees 64 patches. The rate is that of table 8, for each 256 images; more epochs are worth their time.
    """
    c = small()
    c.model = models.settings("vit/Ti16", patch_size=(2,), pos_embed="sincos2d", dtype="bfloat16", scan=True)
    c.task = tasks.settings("masked_autoencoder", decoder_width=192, decoder_depth=4, decoder_heads=3)
    c.augment.crop_area = (0.2, 1.0)
    c.optim.lr = 1.5e-4 * 1024 / 256
    c.optim.warmup_epochs = 40.0
    c.train.batch_size = 1024
    c.train.epochs = 400.0
    return c


def get_config(arg: str = "") -> ConfigDict:
    """`cifar10`, `cifar10_patch2`; `vit_b16`, `vit_l16`, `vit_h14` on ImageNet-1k as in the paper."""
    return config.choose(
        arg,
        {
            "cifar10": small,
            "cifar10_patch2": small_patches,
            "vit_b16": lambda: imagenet("B16"),
            "vit_l16": lambda: imagenet("L16"),
            "vit_h14": lambda: imagenet("H14"),
        },
    )()
