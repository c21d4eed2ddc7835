"""What a task refuses: settings out of range, and models that do not fit."""

import pytest

from vit_jax import models, tasks
from vit_jax.command import UserError

SIZES = {  # beside which a setting is wrong
    "masked_autoencoder": {"decoder_width": 12, "decoder_depth": 1, "decoder_heads": 3},
    "self_distillation": {"outputs": 11, "hidden_width": 10, "bottleneck": 6, "local_crops": 3, "local_size": (8, 4)},
}


@pytest.mark.parametrize(
    ("task", "fields", "expected"),
    [
        ("segmentation", {"cross_entropy": 0.0}, "one must be positive"),
        ("segmentation", {"balance": 0.5, "class_weights": (1.0,)}, "are both given"),
        ("segmentation", {"boundary": 0.5}, r"task.boundary=0.5 is not a share"),
        ("segmentation", {"decoder": "fpn", "width": 0}, "expected 2 or more"),
        ("segmentation", {"num_heads": 0}, "task.num_heads=0 is not positive"),
        ("masked_autoencoder", {"mask_ratio": 1.0}, "mask_ratio=1.0 is not between 0 and 1"),
        ("masked_autoencoder", {"decoder_depth": 0}, "must be positive"),
        ("masked_autoencoder", {"decoder_width": 10}, "must be a multiple of 4 and of task.decoder_heads=3"),
        ("auxiliary_autoencoder", {"weight": 1.0}, "task.weight=1.0 is not between 0 and 1"),
        ("auxiliary_autoencoder", {"mask_ratio": 0.0}, "mask_ratio=0.0 is not between 0 and 1"),
        ("auxiliary_autoencoder", {"label_smoothing": 1.0}, r"label_smoothing=1.0 is not in \[0, 1\)"),
        ("self_distillation", {"outputs": 0}, "task.outputs=0 is not positive"),
        ("self_distillation", {"momentum": 1.5}, r"task.momentum=1.5 is not in \[0, 1\]"),
        ("self_distillation", {"local_crops": -1}, "task.local_crops=-1 is negative"),
        ("self_distillation", {"global_area": (0.5, 0.4)}, "low <= high <= 1"),
        ("self_distillation", {"blur": (0.1, 2.0, 0.1)}, "are no probabilities"),
        ("self_distillation", {"local_size": ()}, "is no size"),
        ("self_distillation", {"patch_loss": -1.0}, "task.patch_loss=-1.0 is negative"),
        ("self_distillation", {"mask_probability": 1.5}, r"task.mask_probability=1.5 is not in \[0, 1\]"),
        ("self_distillation", {"mask_share": (0.5, 0.1)}, "low <= high <= 1"),
        ("classification", {"balance": -1.0}, "must not be negative"),
        ("classification", {"balance": 1.0, "class_weights": (1.0, 2.0)}, "are both given; leave one of them out"),
        ("classification", {"class_weights": (1.0, float("nan"))}, "must not be negative"),
    ],
)
def test_values_out_of_range(task, fields, expected):
    with pytest.raises(UserError, match=expected):
        tasks.check_settings(tasks.settings(task, **SIZES.get(task, {}) | fields), tasks.Distill())


MASKED = {"decoder": "mask_transformer", "num_heads": 3, "width": 0}
PATCHES, HEAD = {"patch_loss": 1.0}, "leave model.norm_after_pooling at its default"


@pytest.mark.parametrize(
    ("task", "settings", "model", "fields", "expected"),
    [
        ("segmentation", {"decoder": "vt_fpn"}, "vit/mu16", {}, "reads the maps of a CNN's stages, which model 'vit/"),
        ("segmentation", MASKED, "vit/mu16", {}, "does not divide .* width 32"),
        ("masked_autoencoder", {}, "vit/mu16", {"pos_embed": "relative"}, "pos_embed='relative'"),
        ("masked_autoencoder", {}, "vit/mu16", {"patch_dropout": 0.25}, "leave model.patch_dropout at 0"),
        ("masked_autoencoder", {}, "cnn/conv3", {}, "not of model 'cnn/conv3'"),
        ("masked_autoencoder", {}, "vit/mu16", {"pooling": "map"}, "leave model.pooling at its default"),
        ("masked_autoencoder", {}, "vit/mu16", {"pre_logits": 7}, "leave model.pre_logits at its default"),
        ("auxiliary_autoencoder", {}, "cnn/conv3", {}, "'auxiliary_autoencoder' hides patches of a plain ViT"),
        ("auxiliary_autoencoder", {}, "vit/mu16", {"pooling": "none"}, "gives logits for each patch"),
        ("self_distillation", {}, "vit/mu16", {"pos_embed": "relative"}, "pos_embed='relative'"),
        ("self_distillation", {}, "cnn/conv3", {}, "not to model 'cnn/conv3'"),
        ("self_distillation", {}, "vit/mu16", {"pooling": "none"}, "choose pooling token, gap or map"),
        ("self_distillation", PATCHES, "vit/mu16", {"pooling": "map"}, HEAD),
        ("self_distillation", PATCHES, "vit/mu16", {"pooling": "gap", "norm_after_pooling": True}, HEAD),
    ],
)
def test_models_that_do_not_fit(task, settings, model, fields, expected):
    with pytest.raises(UserError, match=expected):
        tasks.check(tasks.settings(task, **settings), models.settings(model, **fields), tasks.Distill())
