"""AugReg's pre-training on ImageNet-21k (Steiner et al. 2022, arXiv:2106.10270); `finetune.py` transfers the result.

python -m vit_jax.main --config configs/imagenet21k.py:b16

TFDS has no builder of ImageNet-21k: name your folder of images, one sub-folder per class (--config.data.name=FOLDER),
or prepare a builder of your own, called imagenet21k, as ArrayRecord in $TFDS_DATA_DIR.

Not yet run here. Published, from these weights at 384 pixels: B/16 85.5 % on ImageNet-1k, L/16 87.1 % (table 3).
"""

from ml_collections import ConfigDict

from vit_jax import config, models

# Alpha of MixUp, strength of two operations of RandAugment (section 3.2; 0 is not nothing: factors are 0.1 there).
AUGMENTATION = {
    "none": (0.0, 0.0),
    "light1": (0.0, 0.0),
    "light2": (0.2, 10.0),
    "medium2": (0.5, 15.0),
}
# What big_vision's vit_i21k.py chooses for each size, from figure 4 of the paper.
SIZES = {
    "b16": ("vit/B16", "light2"),
    "b32": ("vit/B32", "light2"),
    "ti16": ("vit/Ti16", "none"),
    "s32": ("vit/S32", "none"),
    "s16": ("vit/S16", "light1"),
    "l16": ("vit/L16", "medium2"),
}


def get_config(arg: str = "") -> ConfigDict:
    name, level = config.choose(arg, SIZES)
    mixup, magnitude = AUGMENTATION[level]
    c = config.default()
    c.model = models.settings(name, class_token=False, pooling="gap", head_bias=-10.0, dtype="bfloat16")
    c.model.attention = "auto"
    c.data.name = "imagenet21k"
    c.data.image_size = (224,)
    c.data.crop_fraction = 0.875
    c.augment.crop_area = (0.05, 1.0)
    c.augment.flip = 0.5
    if level != "none":
        c.augment.policy = "randaugment_tf"
        c.augment.rand_magnitude = magnitude
        c.augment.rand_magnitude_std = 0.0
        c.augment.rand_probability = 1.0
    c.augment.mean = c.augment.std = (0.5,)
    c.augment.mixup = mixup
    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.1
    c.optim.warmup_steps = 10_000
    c.optim.clip_norm = 1.0
    c.task.loss = "sigmoid"
    c.train.batch_size = 4096
    c.train.epochs = 300.0
    return c
