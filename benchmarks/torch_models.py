"""The same architectures in PyTorch, written for speed: fused q, k, v and `scaled_dot_product_attention`.

Images come as float [n c H W]. Sizes are those of a `model` group.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vit_jax.command import UserError


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, mlp_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)

    def dropout(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.rate, self.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, l, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, l, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, l, d)
        x = x + self.dropout(self.out(y))
        y = self.dropout(F.gelu(self.up(self.norm2(x))))
        return x + self.dropout(self.down(y))


class ViT(nn.Module):
    """The Vision Transformer with a class token and learned positions."""

    def __init__(self, sizes: Mapping[str, Any], image_size: int) -> None:
        super().__init__()
        width, patch = sizes["width"], sizes["patch_size"]
        self.rate = sizes["dropout"]
        self.embedding = nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image_size // patch) ** 2 + 1, width))
        args = (width, sizes["mlp_width"], sizes["heads"], sizes["dropout"])
        self.blocks = nn.Sequential(*(Block(*args) for _ in range(sizes["depth"])))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, sizes["num_classes"])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embedding(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.positions
        x = self.blocks(F.dropout(x, self.rate, self.training))
        return self.head(self.norm(x)[:, 0])


def cnn(model: Mapping[str, Any], image_size: int, num_classes: int) -> nn.Module:
    """`vit_jax.models.cnn.CNN` with batch norms."""
    layers: list[nn.Module] = []
    channels, size = 3, image_size
    for stage in model["stages"]:
        for wider in stage:
            layers += [nn.Conv2d(channels, wider, 3, padding=1), nn.ReLU()]
            channels = wider
        layers += [nn.MaxPool2d(2), nn.BatchNorm2d(channels)]
        size //= 2
    layers.append(nn.Flatten())
    width = channels * size * size
    for wider in model["dense_widths"]:
        layers += [nn.Linear(width, wider), nn.ReLU()]
        width = wider
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which strides), and 1x1 to four times the channels."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        c = outer // 4
        self.body = nn.Sequential(
            *(nn.Conv2d(inner, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU(inplace=True)),
            *(nn.Conv2d(c, c, 3, stride, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU(inplace=True)),
            *(nn.Conv2d(c, outer, 1, bias=False), nn.BatchNorm2d(outer)),
        )
        project = inner != outer or stride > 1
        convolution = nn.Conv2d(inner, outer, 1, stride, bias=False)
        self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outer)) if project else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnet(model: Mapping[str, Any], num_classes: int) -> nn.Module:
    """ResNet v1.5 of bottlenecks with the stem for large images."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    layers: list[nn.Module] = []
    channels = 64
    for i, blocks in enumerate(model["stage_sizes"]):
        for j in range(blocks):
            outer = 256 * 2**i
            layers.append(Bottleneck(channels, outer, 2 if i and not j else 1))
            channels = outer
    return nn.Sequential(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def create(model: Mapping[str, Any], image_size: int, num_classes: int) -> nn.Module:
    """The twin of a `model` group; `UserError` where there is none."""
    family = model["name"].partition("/")[0]
    if family == "vit":
        from benchmarks import textbook

        return ViT(textbook.fields(model, num_classes), image_size)
    if family == "cnn" and model["norm"] == "batch" and model["pool_last"] and not model["dropout"]:
        return cnn(model, image_size, num_classes)
    if family == "resnet" and model["bottleneck"] and model["stem"] == "imagenet":
        return resnet(model, num_classes)
    raise UserError(f"model {model['name']!r} has no twin in PyTorch here; leave out --peer torch")
