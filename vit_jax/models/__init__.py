"""The models by name (`registry`), how their parameters are called (`naming`), and a file for each family."""

from vit_jax.models.attention_init import new_attention
from vit_jax.models.bit import BiT
from vit_jax.models.cnn import CNN
from vit_jax.models.compact import Compact
from vit_jax.models.hybrid import Hybrid
from vit_jax.models.mixer import Mixer
from vit_jax.models.naming import Naming, naming_of
from vit_jax.models.registry import FAMILIES, RENAMED, create, fields, module_class, names, register, settings
from vit_jax.models.resnet import ResNet
from vit_jax.models.resnetv2 import ResNetV2
from vit_jax.models.visual_transformer import VisualTransformer
from vit_jax.models.vit import ViT

__all__ = [
    "FAMILIES",
    "RENAMED",
    "BiT",
    "CNN",
    "Compact",
    "Hybrid",
    "Mixer",
    "Naming",
    "ResNet",
    "ResNetV2",
    "ViT",
    "VisualTransformer",
    "create",
    "fields",
    "module_class",
    "names",
    "naming_of",
    "new_attention",
    "register",
    "settings",
]
