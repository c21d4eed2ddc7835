"""The sizes that Vision Transformers were published with, and names for sizes with patches."""

from collections.abc import Mapping
from typing import Any

# width, depth, MLP width, heads, the patch sizes it was published with.
VITS: dict[str, tuple[int, int, int, int, tuple[int, ...]]] = {
    "mu": (32, 1, 128, 2, (16, 32)),  # for tests; big_vision, github.com/google-research/big_vision
    "Ti": (192, 12, 768, 3, (16,)),  # Touvron et al. 2021, arXiv:2012.12877, table 1
    "S": (384, 12, 1536, 6, (8, 14, 16, 32)),  # the same; 32: Steiner et al. 2022, arXiv:2106.10270, table 2
    "M": (512, 12, 2048, 8, (16, 32)),  # big_vision
    "B": (768, 12, 3072, 12, (8, 14, 16, 32)),  # Dosovitskiy et al. 2021, table 1
    "L": (1024, 24, 4096, 16, (14, 16, 32)),  # the same
    "H": (1280, 32, 5120, 16, (14, 16)),  # the same
    "g": (1408, 40, 6144, 16, (14, 16)),  # Zhai et al. 2022, arXiv:2106.04560, table 2
    "G": (1664, 48, 8192, 16, (14,)),  # the same
    "e": (1792, 56, 15360, 16, (14,)),  # Chen et al. 2023, arXiv:2209.06794, table 1
}


def with_patches(sizes: Mapping[str, tuple[Any, ...]], *fields: str) -> dict[str, dict[str, Any]]:
    """The fields of each published size: `S16` is size S with 16-pixel patches. A row ends with its patch sizes."""
    return {
        f"{size}{patch}": {"patch_size": (patch,), **dict(zip(fields, row, strict=True))}
        for size, (*row, patches) in sizes.items()
        for patch in patches
    }


def vit_table() -> dict[str, dict[str, Any]]:
    """The fields of each published size: `S16` is size S with 16-pixel patches."""
    return with_patches(VITS, "width", "depth", "mlp_dim", "num_heads")


def deit_table() -> dict[str, dict[str, Any]]:
    """DeiT (Touvron et al. 2021, arXiv:2012.12877): sizes of table 1 with the token of s. 3; "": of any size."""
    sizes = vit_table() | {"": {}}
    return {name: {**sizes[name], "distillation_token": True} for name in ("", "Ti16", "S16", "B16")}
