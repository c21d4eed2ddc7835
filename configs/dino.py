"""DINO (Caron et al. 2021, arXiv:2104.14294): self-distillation without labels, probed by nearest neighbours.

python -m vit_jax.main --config configs/dino.py:cifar10

A fine-tuning run starts from the teacher: --config configs/finetune.py:runs/dino-cifar10,cifar10
"""

from ml_collections import ConfigDict

from vit_jax import config, models, tasks


def common(epochs: float) -> ConfigDict:
    """The colours of BYOL, as in s. 3.2; the task crops, blurs and solarizes. The paper's first epochs, as shares."""
    c = config.default()
    c.augment.flip = 0.5
    c.augment.brightness = 0.4
    c.augment.contrast = 0.4
    c.augment.saturation = 0.2
    c.augment.hue = 0.1
    c.augment.jitter_probability = 0.8
    c.augment.grey = 0.2
    c.optim.warmup_epochs = 10.0
    c.optim.weight_decay = 0.04
    c.optim.final_weight_decay = 0.4
    c.train.epochs = epochs
    c.task = tasks.settings("self_distillation", warmup=30 / epochs, freeze_last=1 / epochs)
    c.evaluate.probe = ("knn",)
    c.evaluate.metric = "knn_accuracy"
    return c


def imagenet(size: str, epochs: float, local_crops: int, final_lr: float) -> ConfigDict:
    """Crops are taken from images of 256 pixels, not from the photos. Not yet run.

    Table 2 of the paper has kNN 74.5 and linear 77.0 % for ViT-S/16, 76.1 and 78.2 % for ViT-B/16 (from memory).
    """
    c = common(epochs)
    c.model = models.settings(f"vit/{size}", stochastic_depth=0.1, dtype="bfloat16", scan=True, remat="auto")
    c.task.update(local_crops=local_crops, global_area=(0.25, 1.0), local_area=(0.05, 0.25))
    c.data.name = "imagenet2012"
    c.data.image_size = (256,)
    c.augment.resize = (224,)
    c.augment.interpolation = "bicubic"
    c.augment.mean = (0.485, 0.456, 0.406)
    c.augment.std = (0.229, 0.224, 0.225)
    c.optim.lr = 5e-4 * 1024 / 256
    c.optim.final_lr = final_lr
    c.train.batch_size = 1024
    return c


def ibot(c: ConfigDict, outputs: int) -> ConfigDict:
    """The same with iBOT's loss over hidden patches (Zhou et al. 2022, arXiv:2111.07832). Not yet run.

    The paper has kNN 75.2 and linear 77.9 % for ViT-S/16 (from memory).
    """
    c.task.update(patch_loss=1.0, outputs=outputs)
    return c


def small() -> ConfigDict:
    """A ViT of 0.45 million parameters for 32-pixel images, with crops of 16 pixels; its 20 epochs are not yet run."""
    c = common(20.0)
    c.model = models.settings("vit", patch_size=(4,), width=96, depth=6, mlp_dim=192, num_heads=3)
    c.task.update(outputs=1024, hidden_width=256, bottleneck=64, local_crops=4, local_size=(16,), blur=(0.0, 0.0, 0.0))
    c.task.update(local_area=(0.1, 0.4), momentum=0.99, warmup=0.3, freeze_last=0.05)
    c.data.name = "cifar10"
    c.optim.lr = 1e-3
    c.optim.warmup_epochs = 2.0
    c.optim.clip_norm = 3.0
    c.train.batch_size = 128
    return c


def get_config(arg: str = "") -> ConfigDict:
    """`cifar10`, `cifar10_ibot`; `vit_s16`, `vit_b16` and `ibot_s16` on ImageNet-1k as in the papers."""
    return config.choose(
        arg,
        {
            "cifar10": small,
            "vit_s16": lambda: imagenet("S16", 800.0, 10, 1e-5),
            "vit_b16": lambda: imagenet("B16", 400.0, 10, 2e-6),
            "cifar10_ibot": lambda: ibot(small(), 1024),
            "ibot_s16": lambda: ibot(imagenet("S16", 800.0, 10, 1e-6), 8192),
        },
    )()
