"""MLP-Mixers, as vision_transformer (vit_jax/models_mixer.py) and big_vision (models/mlp_mixer.py) write them."""

from collections.abc import Mapping

from vit_jax.command import UserError
from vit_jax.pretrained.google import arrays as npz
from vit_jax.pretrained.google.arrays import NAME, Stored
from vit_jax.pretrained.layout import Layout


def layout(arrays: Mapping[str, Stored]) -> Layout:
    """The layout of a Mixer whose arrays have these names.

    The published ones were evaluated on the middle 224 of 256 pixels (big_vision, configs/load_and_eval.py).
    """
    p, q, channels, d = npz.sizes(arrays, "stem/kernel", "p q c d")
    tokens, token_width = npz.sizes(arrays, "MixerBlock_0/token_mixing/Dense_0/kernel", "l f")
    _, channel_width = npz.sizes(arrays, "MixerBlock_0/channel_mixing/Dense_0/kernel", "d f")
    side = npz.side(tokens)
    if not side:
        raise UserError(f"{NAME}: token_mixing is for {tokens} patches, which are no square grid; only those are read")
    depth = npz.count(arrays, "MixerBlock_", 0)

    shapes = npz.linear("stem", p, q, channels, d) | npz.norm("pre_head_layer_norm", d)
    for i in range(depth):
        block = f"MixerBlock_{i}"
        shapes |= npz.norm(f"{block}/LayerNorm_0", d) | npz.norm(f"{block}/LayerNorm_1", d)
        shapes |= npz.mlp(f"{block}/token_mixing", tokens, token_width)
        shapes |= npz.mlp(f"{block}/channel_mixing", d, channel_width)
    classes = npz.sizes(arrays, "head/kernel", "d k")[1] if "head/kernel" in arrays else 0
    shapes |= npz.linear("head", d, classes) if classes else {}

    fields = {
        "patch_size": npz.patch_field(p, q),
        "width": d,
        "depth": depth,
        "token_mlp_dim": token_width,
        "channel_mlp_dim": channel_width,
    }
    return Layout(
        NAME,
        npz.settings("mixer", fields, num_classes=classes, activation="gelu_tanh"),
        (0, 0),
        npz.preprocessing((side * p, side * q), channels, "crop", 0.875),
        npz.entries(arrays, shapes),
    )
