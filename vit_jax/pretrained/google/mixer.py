"""MLP-Mixers, as vision_transformer (vit_jax/models_mixer.py) and big_vision (models/mlp_mixer.py) write them."""

from collections.abc import Mapping

from vit_jax.command import UserError
from vit_jax.pretrained.google.arrays import NAME, Described, Stored, classes, side, sizes, usual
from vit_jax.pretrained.layout import count, patch_field, settings


def describe(arrays: Mapping[str, Stored]) -> Described:
    """A Mixer whose arrays have these names.

    The published ones were evaluated on the middle 224 of 256 pixels (big_vision, configs/load_and_eval.py).
    """
    p, q, channels, d = sizes(arrays, "stem/kernel", "p q c d")
    tokens, token_width = sizes(arrays, "MixerBlock_0/token_mixing/Dense_0/kernel", "l f")
    _, channel_width = sizes(arrays, "MixerBlock_0/channel_mixing/Dense_0/kernel", "d f")
    if not (rows := side(tokens)):
        raise UserError(f"{NAME}: token_mixing is for {tokens} patches, which are no square grid; only those are read")
    fields = {
        "patch_size": patch_field(p, q),
        "width": d,
        "depth": count(NAME, arrays, "MixerBlock_", 0, "MixerBlock_"),
        "token_mlp_dim": token_width,
        "channel_mlp_dim": channel_width,
    }
    model = settings("mixer", fields, num_classes=classes(arrays), activation="gelu_tanh")
    return Described(arrays, model, (0, 0), usual((rows * p, rows * q), channels, "crop", 0.875))
