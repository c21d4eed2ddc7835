"""A field that does not fit the others or the images is refused, with what was given and what to do."""

from typing import Any

import pytest
from flax import linen as nn

from vit_jax.command import UserError
from vit_jax.models import CNN, BiT, Compact, Hybrid, Mixer, ResNet, ResNetV2, VisualTransformer, ViT

# What fits: the class, its fields, the shape of images.
GOOD: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, int, int]]] = {
    "vit": (ViT, {"patch_size": (7, 5), "width": 8, "depth": 1, "mlp_dim": 11, "num_heads": 2}, (14, 15, 3)),
    "deit": (
        ViT,
        {"patch_size": (7, 5), "width": 8, "depth": 2, "mlp_dim": 11, "num_heads": 2, "distillation_token": True},
        (14, 15, 3),
    ),
    "compact": (Compact, {"width": 8, "depth": 2, "mlp_dim": 13, "num_heads": 2, "convolutions": 1}, (7, 11, 3)),
    "mixer": (
        Mixer,
        {"patch_size": (7, 5), "width": 8, "depth": 2, "token_mlp_dim": 11, "channel_mlp_dim": 17},
        (14, 15, 3),
    ),
    "hybrid": (
        Hybrid,
        {
            "patch_size": (1, 3),
            "width": 8,
            "depth": 1,
            "mlp_dim": 11,
            "num_heads": 2,
            "resnet_width": 32,
            "stage_sizes": (1, 2),
        },
        (14, 21, 3),
    ),
    "cnn": (CNN, {"stages": ((3,),), "dense_widths": ()}, (7, 11, 3)),
    "resnet": (ResNet, {"stage_sizes": (1,), "bottleneck": True}, (32, 32, 3)),
    "resnetv2": (ResNetV2, {"stage_sizes": (1,)}, (32, 32, 3)),
    "bit": (BiT, {"stage_sizes": (1,), "width": 64}, (32, 32, 3)),
    "visual_transformer": (
        VisualTransformer,
        {"stage_sizes": (1, 1, 1), "bottleneck": False, "width": 4, "modules": 3},
        (32, 32, 3),
    ),
}
WRONG = {  # other values of the fields, and the message
    "vit": [
        ({"patch_size": (6,)}, r"patch_size=6 does not divide the image height 14; try 2 or 7"),
        ({"patch_size": (7, 4)}, "patch_size=4 does not divide the image width 15; try 3 or 5, or set augment.resize"),
        ({"patch_size": (1, 1, 1)}, "is not one or two positive numbers"),
        ({"patch_size": (0,)}, "is not one or two positive numbers"),
        ({"num_heads": 3}, "num_heads=3 does not divide model.width=8; choose a divisor, or set model.head_dim"),
        ({"num_heads": 3, "head_dim": 5, "pooling": "map"}, "'map' needs num_heads=3 to divide width=8"),
        ({"class_token": False}, "pooling='token' needs model.class_token=True; or choose pooling='gap'"),
        ({"width": 7, "num_heads": 1, "pos_embed": "learned_2d"}, "'learned_2d' needs a width divisible by 2, not 7"),
        ({"width": 6, "pos_embed": "sincos2d"}, "'sincos2d' needs a width divisible by 4, not 6"),
        ({"depth": 0}, "model.depth=0 is not positive"),
        ({"head_widths": (5, 0)}, r"head_widths=\(5, 0\) must be positive widths"),
        ({"head_dim": -4}, "head_dim=-4 is negative; 0 means off"),
        ({"registers": -1}, "registers=-1 is negative"),
        ({"pre_logits": -1}, "pre_logits=-1 is negative"),
        ({"head_dropout": 1.0}, "head_dropout=1.0 is not a probability below 1"),
        ({"attention_dropout": -0.1}, "attention_dropout=-0.1 is not a probability"),
        ({"stochastic_depth": 1.0}, "stochastic_depth=1.0 is not a probability below 1"),
    ],
    "deit": [
        ({"pooling": "gap"}, "distillation_token=True needs pooling='token', .* not 'gap', 0 and"),
        ({"pre_logits": 7}, "each of both tokens has one linear head"),
        ({"head_widths": (7,)}, r"not 'token', 0 and \(7,\)"),
        ({"class_token": False}, "'token' needs model.class_token=True"),
    ],
    "compact": [
        ({"convolutions": 0}, r"patch_size=\(\) and model.convolutions=0 exclude each other; set patch_size=\(4,\)"),
        ({"patch_size": (7,)}, r"patch_size=\(7,\) and model.convolutions=1 exclude each other"),
        ({"convolutions": 0, "patch_size": (4,)}, "patch_size=4 does not divide the image height 7; try 1 or 7"),
        ({"kernel_size": 4}, "kernel_size=4 is not a positive odd number"),
        ({"kernel_size": -1}, "kernel_size=-1 is not a positive odd number"),
        ({"stride": 0}, "model.stride=0 is not positive"),
        ({"num_heads": 3}, "num_heads=3 does not divide model.width=8; choose a divisor"),
        ({"attention_dropout": 1.0}, "attention_dropout=1.0 is not a probability below 1"),
        ({"stochastic_depth": 1.5}, "stochastic_depth=1.5 is not a probability below 1"),
    ],
    "mixer": [
        ({"patch_size": (6,)}, r"patch_size=6 does not divide the image height 14; try 2 or 7"),
        ({"patch_size": ()}, "is not one or two positive numbers"),
        ({"depth": 0}, "model.depth=0 is not positive"),
        ({"token_mlp_dim": -1}, "model.token_mlp_dim=-1 is not positive"),
        ({"dropout": 1.0}, "dropout=1.0 is not a probability below 1"),
        ({"stochastic_depth": -0.1}, "stochastic_depth=-0.1 is not a probability below 1"),
    ],
    "hybrid": [
        ({"resnet_width": 48}, "resnet_width=48 must be divisible by group norm's 32 groups"),
        ({"stage_sizes": (2, 0)}, r"stage_sizes=\(2, 0\) must be positive"),
        ({"patch_size": (2,)}, r"patch_size=\(2,\) does not divide the ResNet's 2x3 map of 14x21 pixels; .* of 16"),
        ({"patch_size": (0,)}, r"patch_size=\(0,\) is not one or two positive numbers"),
        ({"num_heads": 3}, "num_heads=3 does not divide model.width=8"),
    ],
    "cnn": [
        ({"stages": ()}, r"stages=\(\) must be tuples of positive channel counts"),
        ({"stages": ((3,), ())}, "must be tuples of positive"),
        ({"stages": ((3, 0),)}, "must be tuples of positive"),
        ({"stages": ((3,),) * 3}, "halves the image 3 times, too often for 7x11 pixels; drop a stage"),
        ({"dense_widths": (0,)}, r"dense_widths=\(0,\) must be positive widths"),
        ({"dropout": 1.0}, "dropout=1.0 is not a probability below 1"),
    ],
    "resnet": [
        ({"stage_sizes": ()}, r"stage_sizes=\(\) must be positive numbers of blocks"),
        ({"stage_sizes": (2, 0)}, r"stage_sizes=\(2, 0\) must be positive"),
        ({"width": 0}, "width=0 is not positive"),
        ({"norm": "group", "width": 48}, "norm='group' needs a width divisible by its 32 groups, not 48"),
        ({"dropout": 1.0}, "dropout=1.0 is not a probability below 1"),
        ({"stochastic_depth": -0.1}, "stochastic_depth=-0.1 is not a probability"),
    ],
    "resnetv2": [
        ({"stage_sizes": (2, 0)}, r"stage_sizes=\(2, 0\) must be positive"),
        ({"width": 0}, "width=0 is not positive"),
        ({"head_widths": (5, 0)}, r"head_widths=\(5, 0\) must be positive widths"),
        ({"gaussian_dropout": 1.0}, "gaussian_dropout=1.0 is not a probability below 1"),
    ],
    "bit": [
        ({"stage_sizes": (0,)}, r"stage_sizes=\(0,\) must be positive"),
        ({"width": 0}, "width=0 is not positive"),
        ({"width": 48}, "width=48 must be divisible by group norm's 32 groups"),
    ],
    "visual_transformer": [
        ({"modules": 0}, "modules=0 is not positive"),
        ({"tokens": 0}, "tokens=0 is not positive"),
        ({"key_width": 0}, "key_width=0 is not positive"),
        ({"mlp_dim": 0}, "mlp_dim=0 is not positive"),
        ({"stage_sizes": ()}, r"stage_sizes=\(\) must be positive"),
    ],
}


@pytest.mark.parametrize("family", GOOD)
def test_what_fits_is_accepted(family):
    model, fields, shape = GOOD[family]
    assert model(**fields).check(shape) is None


@pytest.mark.parametrize(
    ("family", "fields", "message"), [(family, *row) for family, rows in WRONG.items() for row in rows]
)
def test_a_mistake_is_explained(family, fields, message):
    model, good, shape = GOOD[family]
    with pytest.raises(UserError, match=message):
        model(**good | fields).check(shape)
