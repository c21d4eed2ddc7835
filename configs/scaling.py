"""Scaling Vision Transformers (Zhai et al. 2022, arXiv:2106.04560): 1.0, 1.8 and 3.9 billion parameters.

python -m vit_jax.main --config configs/scaling.py:vit_g14 --config.mesh.fsdp=8
python -m vit_jax.plan --config configs/scaling.py:vit_e14 --topology v5p:8x8x4 --config.mesh.fsdp=64

The paper trains on JFT-3B, which is not public: here ImageNet-21k stands in, a data set that you bring yourself as
imagenet21k.py says. Adafactor is without momentum, the head decays as everything else, and the learning rate is not
cooled down at the end.
"""

from ml_collections import ConfigDict

from vit_jax import config, models


def pretraining(size: str) -> ConfigDict:
    """Section 3 and big_vision's train_vit_g.py; e: PaLI (Chen et al. 2023, arXiv:2209.06794) repeats it.

    Not yet run. After JFT-3B, and fine-tuned, G/14 reaches 90.45 % on ImageNet-1k.
    """
    c = config.default()
    c.model = models.settings(f"vit/{size}", class_token=False, pooling="map", head_bias=-10.0, dtype="bfloat16")
    c.model.attention = "auto"
    c.model.scan = True
    c.model.remat = "auto"
    c.data.name = "imagenet21k"
    c.data.image_size = (224,)
    c.data.crop_fraction = 0.875
    c.augment.crop_area = (0.05, 1.0)
    c.augment.flip = 0.5
    c.augment.mean = (0.5,)
    c.augment.std = (0.5,)
    c.optim.name = "adafactor"
    c.optim.lr = 8e-4
    c.optim.schedule = "rsqrt"
    c.optim.warmup_steps = 10_000
    c.optim.weight_decay = 0.03
    c.optim.clip_norm = 1.0
    c.task.loss = "sigmoid"
    c.train.batch_size = 16_384
    c.train.steps = 1_000_000
    return c


def get_config(arg: str = "") -> ConfigDict:
    return pretraining(config.choose(arg, {"vit_g14": "g14", "vit_G14": "G14", "vit_e14": "e14"}))
