"""Street scenes in 11 classes: CamVid (Brostow et al. 2009) as SegNet divides it, 367 / 101 / 233 images, 480 x 360.

python -m vit_jax.main --config configs/camvid.py:fpn --data_dir FOLDER

FOLDER holds `camvid/{train,val,test}/{images,masks}` and `camvid/classes.json`: see docs/segmentation.md. Small ones
start from random weights, and train on crops of 256 x 192. CNNs are evaluated on whole images, ViTs in windows.
"""

from ml_collections import ConfigDict

from vit_jax import config, models, tasks


def base(steps: int) -> ConfigDict:
    """What all share: scale jitter of 0.7 to 1.4, strong changes of colour, and an average of the weights."""
    c = config.default()
    c.data.name = "camvid"
    c.augment.crop_area = (0.15, 0.6)
    c.augment.crop_aspect = (1.15, 1.55)
    c.augment.resize = (192, 256)
    c.augment.flip = 0.5
    c.augment.brightness = c.augment.contrast = c.augment.saturation = 0.6
    c.augment.hue = 0.1
    c.optim.b2 = 0.99
    c.optim.weight_decay = 0.05
    c.optim.clip_norm = 1.0
    c.optim.ema_decay = 0.998
    c.optim.ema_warmup = True
    c.train.batch_size = 8
    c.train.steps = steps
    c.evaluate.every_steps = 450
    c.checkpoint.every_steps = 150
    return c


def cnn(decoder: str) -> ConfigDict:
    """A ResNet-18 of half the channels, 3.1 M parameters; 88 epochs. FPN: 54.86 % test mIoU; VT-FPN not yet run.

    0.75 G multiply-adds for a crop with FPN, 0.54 G with VT-FPN.
    """
    c = base(4050)
    c.model = models.settings("resnet/18", width=32, stochastic_depth=0.1)
    sizes = {"width": 64, "tokens": 8, "token_width": 128, "key_width": 64} if decoder == "vt_fpn" else {"width": 64}
    c.task = tasks.settings("segmentation", decoder=decoder, evaluation="whole", balance=0.5, dice=0.5, **sizes)
    c.optim.name, c.optim.momentum, c.optim.nesterov = "muon", 0.95, True  # of the decoder's last layer, too
    c.optim.lr = 8e-3
    c.optim.warmup_steps = 150
    return c


def vit(decoder: str) -> ConfigDict:
    """A ViT of 2.9 M parameters with patches of 16 pixels; 240 epochs. Not yet run."""
    c = base(10800)
    c.model = models.settings("vit", patch_size=(16,), width=192, depth=6, mlp_dim=768, num_heads=3)
    c.model.update(class_token=False, pooling="gap", stochastic_depth=0.1)
    sizes = {"mask_transformer": {"width": 192, "num_heads": 3}, "simple_pyramid": {"width": 64}}.get(decoder, {})
    c.task = tasks.settings("segmentation", decoder=decoder, evaluation="windows", balance=0.5, dice=0.5, **sizes)
    c.optim.lr = 1e-3
    c.optim.warmup_steps = 450
    return c


def pretrained(decoder: str) -> ConfigDict:
    """ResNet-50 with the decoder at its paper's width, for a GPU; set init.weights. Not yet run."""
    c = base(5400)
    c.model = models.settings("resnet/50", dtype="bfloat16")
    c.task = tasks.settings("segmentation", decoder=decoder, evaluation="whole", balance=0.5, dice=0.5)
    c.augment.crop_area = (0.25, 1.0)
    c.augment.resize = (360, 480)
    c.optim.lr = 2e-4
    c.optim.warmup_steps = 150
    return c


def get_config(arg: str = "") -> ConfigDict:
    """Small CNNs: `fpn`, `vt_fpn`; small ViTs: `vit_linear`, `vit_mask_transformer` ...; large: `resnet50_fpn` ..."""
    return config.choose(
        arg,
        {
            "fpn": lambda: cnn("fpn"),
            "vt_fpn": lambda: cnn("vt_fpn"),
            "vit_linear": lambda: vit("linear"),
            "vit_mask_transformer": lambda: vit("mask_transformer"),
            "vit_simple_pyramid": lambda: vit("simple_pyramid"),
            "resnet50_fpn": lambda: pretrained("fpn"),
            "resnet50_vt_fpn": lambda: pretrained("vt_fpn"),
        },
    )()
