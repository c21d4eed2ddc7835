"""Writes a Vision Transformer as a folder that Hugging Face's `transformers` loads."""

import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from vit_jax import models, trees
from vit_jax.command import UserError
from vit_jax.data.resizing import covering
from vit_jax.models.layers import square
from vit_jax.models.positions import sincos2d
from vit_jax.pretrained.huggingface import processor as processors
from vit_jax.pretrained.huggingface.config import MULTI_LABEL, NAME
from vit_jax.pretrained.huggingface.transformer import HEAD, VIT
from vit_jax.pretrained.layout import Preprocessing, per_channel
from vit_jax.pretrained.pytorch.table import Table, to_pytorch

WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
POSITIONS = "Transformer/posembed_input/pos_embedding"
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
# The values without which `transformers`' ViT is another model. Other fields of a model it has, or they only matter
# in training.
EXPRESSIBLE: dict[str, tuple[Any, ...]] = {
    "class_token": (True,),
    "distillation_token": (False,),
    "registers": (0,),
    "pos_embed": ("learned", "sincos2d"),  # what is fixed is written as a table
    "pooling": ("token",),
    "norm_after_pooling": (False,),
    "activation": tuple(ACTIVATIONS),
    "mlp_output_activation": (False,),
    "qk_norm": (False,),
    "layer_scale": (0.0,),
    "pre_logits": (0,),
    "head_widths": ((),),
}


def save_huggingface(
    folder: Path,
    model: Mapping[str, Any],
    variables: Mapping[str, Any],
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    image_size: tuple[int, int],
    *,
    independent: bool = False,
) -> None:
    """Writes config.json, model.safetensors and preprocessor_config.json, as `ViTForImageClassification` has them.

    A model without a head, e.g. the encoder of a masked autoencoder, has no classifier there either. Each file appears
    whole, the weights last. Existing ones are replaced.

    Args:
        folder: created where it is missing.
        model: `models.settings` with num_classes filled in.
        variables: {"params": ...} in the canonical, unstacked tree.
        class_names: by label; (): unknown.
        preprocessing: of the images that the model expects.
        image_size: pixels (height, width) that the positions are for.
        independent: whether each class has a probability of its own, by sigmoid; `transformers` then calls the problem
            multi-label.

    Raises:
        UserError: `transformers`' ViT has no such model or preprocessing; names the field.
    """
    check(model, class_names)
    channels = variables["params"]["embedding"]["kernel"].shape[2]
    table = Table(NAME, {}, VIT.modules(model["depth"], "vit.") | HEAD)
    names, leaves = trees.names(variables["params"]), jax.tree.leaves(variables["params"])
    arrays = dict(zip(names, map(np.asarray, leaves), strict=True))
    if model["pos_embed"] == "sincos2d":
        arrays[POSITIONS] = _fixed_positions(model, image_size)
    tensors = {
        table.key(name): np.ascontiguousarray(to_pytorch(name, array), np.float32) for name, array in arrays.items()
    }
    about = {
        CONFIG: config(model, class_names, channels, image_size)
        | ({"problem_type": MULTI_LABEL} if independent else {}),
        PROCESSOR: processor(preprocessing, channels),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as unfinished:
        for name, content in about.items():
            (Path(unfinished) / name).write_text(json.dumps(content, indent=2) + "\n")
        save_file(tensors, Path(unfinished) / WEIGHTS, metadata={"format": "pt"})
        for name in (*about, WEIGHTS):
            os.replace(Path(unfinished) / name, folder / name)


def _fixed_positions(model: Mapping[str, Any], image_size: tuple[int, int]) -> np.ndarray:
    """The table [1 l d] of a model with `sincos2d`: zeros for the class token, then the patches'."""
    p, q = square(tuple(model["patch_size"]))
    table = np.asarray(sincos2d((image_size[0] // p, image_size[1] // q), model["width"]))
    return np.pad(table.reshape(-1, model["width"]), ((1, 0), (0, 0)))[None]


def check(model: Mapping[str, Any], class_names: Sequence[str] = ()) -> None:
    """Raises `UserError` if `transformers`' ViT has no such model, or the names are not those of its classes."""
    if models.FAMILIES[model["name"].partition("/")[0]][0] is not models.ViT:
        raise UserError(f"{NAME}: only a 'vit' can be written, not {model['name']!r}; export in another format")
    for field, values in EXPRESSIBLE.items():
        given = tuple(model[field]) if isinstance(model[field], list) else model[field]
        if given not in values:
            expected = " or ".join(map(repr, values))
            raise UserError(
                f"{NAME}: its ViT has no model.{field}={given!r}, only {expected}; export in another format"
            )
    if model["head_dim"] and model["head_dim"] * model["num_heads"] != model["width"]:
        raise UserError(
            f"{NAME}: its ViT has no model.head_dim={model['head_dim']}, only width / num_heads = "
            f"{model['width'] / model['num_heads']:g}; export in another format"
        )
    if class_names and len(class_names) != model["num_classes"]:
        raise UserError(f"{len(class_names)} class names for a model of {model['num_classes']} classes")


def config(
    model: Mapping[str, Any], class_names: Sequence[str], channels: int, image_size: tuple[int, int]
) -> dict[str, Any]:
    """The content of config.json: the fields of `ViTConfig`."""
    names = list(class_names) or [f"LABEL_{label}" for label in range(model["num_classes"])]
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": model["width"],
        "num_hidden_layers": model["depth"],
        "num_attention_heads": model["num_heads"],
        "intermediate_size": model["mlp_dim"],
        "hidden_act": ACTIVATIONS[model["activation"]],
        "hidden_dropout_prob": model["dropout"],
        "attention_probs_dropout_prob": model["attention_dropout"],
        "layer_norm_eps": model["norm_epsilon"],
        "qkv_bias": model["qkv_bias"],
        "image_size": _number_or_pair(image_size),
        "patch_size": _number_or_pair(square(tuple(model["patch_size"]))),
        "num_channels": channels,
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
        "torch_dtype": "float32",
    }


def _number_or_pair(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def processor(given: Preprocessing, channels: int) -> dict[str, Any]:
    """The content of preprocessor_config.json: of ViT's processor, or of those that crop."""
    (h, w), fraction = given.size, given.crop_fraction
    if (given.resize, fraction, given.interpolation) == ("crop", 1.0, "bilinear"):
        logging.getLogger(__name__).warning(
            "%s: photos that are not square differ by a fraction of a pixel from those that this model was evaluated "
            "on; evaluated with data.crop_fraction=%.6f it sees the very pixels that transformers gives it",
            NAME,
            processors.AS_A_WHOLE,
        )
    if given.resize == "crop" and h != w:
        raise UserError(f"{NAME}: its processors crop squares only, not {h}x{w}; evaluate with data.resize=stretch")
    content: dict[str, Any] = {
        "do_resize": True,
        "resample": {"bilinear": 2, "bicubic": 3}[given.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(per_channel(given.mean, channels)),
        "image_std": list(per_channel(given.std, channels)),
    }
    crop = {"do_center_crop": True, "crop_size": {"height": h, "width": w}}
    height, width = covering(given.size, fraction)
    if given.resize == "crop":
        kind, size = "Bit", {"shortest_edge": height}
    elif fraction < 1:
        kind, size = "DeiT", {"height": height, "width": width}
    else:
        kind, size, crop = "ViT", {"height": h, "width": w}, {}
    return {"image_processor_type": f"{kind}ImageProcessor", "size": size, **crop, **content}
