"""The contenders `torch` and `torch.compile`: the same work in PyTorch.

The models are written for speed: fused q, k, v, `scaled_dot_product_attention`, fused AdamW, bfloat16 by autocast.
Their sizes are those of a `model` group; images come as float [n c H W].
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import machine, textbook
from benchmarks.step import images
from benchmarks.workloads import Case
from vit_jax.command import UserError


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, mlp_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, nn.Dropout(dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, mlp_dim), nn.Linear(mlp_dim, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, l, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, l, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
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
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, (image_size // patch) ** 2 + 1, width))
        args = (width, sizes["mlp_dim"], sizes["num_heads"], self.rate)
        self.blocks = nn.Sequential(*(Block(*args) for _ in range(sizes["depth"])))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, sizes["num_classes"])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embedding(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
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


def convolved(inner: int, outer: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution and its batch norm."""
    return nn.Sequential(nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outer))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which strides), and 1x1 to four times the channels."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        c, relu = outer // 4, nn.ReLU(inplace=True)
        layers = (convolved(inner, c, 1), relu, convolved(c, c, 3, stride), relu, convolved(c, outer, 1))
        self.body, project = nn.Sequential(*layers), inner != outer or stride > 1
        self.shortcut = convolved(inner, outer, 1, stride) if project else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnet(model: Mapping[str, Any], num_classes: int) -> nn.Module:
    """ResNet v1.5 of bottlenecks with the stem for large images."""
    layers: list[nn.Module] = [convolved(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for i, blocks in enumerate(model["stage_sizes"]):
        for j in range(blocks):
            layers.append(Bottleneck(channels, 256 * 2**i, 2 if i and not j else 1))
            channels = 256 * 2**i
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def create(model: Mapping[str, Any], image_size: int, num_classes: int) -> nn.Module:
    """The twin of a `model` group; `UserError` where there is none."""
    family = model["name"].partition("/")[0]
    if family == "vit":
        return ViT(textbook.fields(model, num_classes), image_size)
    if family == "cnn" and model["norm"] == "batch" and model["pool_last"] and not model["dropout"]:
        return cnn(model, image_size, num_classes)
    if family == "resnet" and model["bottleneck"] and model["stem"] == "imagenet":
        return resnet(model, num_classes)
    raise UserError(f"model {model['name']!r} has no twin in PyTorch here; leave out --peer torch")


class Torch:
    """Model, fused AdamW and images on the device; bfloat16 by autocast. `overrides` change how ours computes."""

    compiled = False

    def __init__(self, case: Case, overrides: Sequence[str] = ()) -> None:
        torch.set_num_threads(machine.cores())
        torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as XLA does
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        given, (batch, labels, classes) = case.config(), images(case)
        self.train = case.mode == "train"
        torch.manual_seed(0)
        model: Any = create(given.model, batch.shape[1], classes).to(self.device)
        if given.model["name"].partition("/")[0] != "vit":
            model = model.to(memory_format=torch.channels_last)
        self.parameters = sum(p.numel() for p in model.parameters())
        decay = given.optim.weight_decay
        self.optimizer = torch.optim.AdamW(model.parameters(), given.optim.lr, weight_decay=decay, fused=True)
        self.images = torch.from_numpy(batch).to(self.device)
        self.labels = torch.from_numpy(labels).to(self.device).long()
        self.dtype = getattr(torch, case.dtype)
        model.train(self.train)
        self.model: Any = torch.compile(model) if self.compiled else model
        began = time.perf_counter()
        self.run(1)
        self.compile_seconds = time.perf_counter() - began  # of the first step: PyTorch compiles when first called

    def _forward(self) -> torch.Tensor:
        images = ((self.images.float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device, self.dtype) if mixed else contextlib.nullcontext():
            return self.model(images)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            if self.train:
                loss = F.cross_entropy(self._forward().float(), self.labels)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
            else:
                with torch.inference_mode():
                    self._forward()
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None


class Compiled(Torch):
    """The same through `torch.compile`."""

    compiled = True
