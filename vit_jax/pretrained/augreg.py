"""Which file of Google's buckets a model's name means.

AugReg (Steiner et al. 2022, arXiv:2106.10270) published 759 pre-trained models, each fine-tuned many times, with an
index of all (columns: vision_transformer, vit_jax/checkpoint.py, `get_augreg_df`). The address `augreg://B/16` means
the model of that size with the best final validation accuracy on ImageNet-21k (s. 4.5: the one to transfer),
`augreg://B/16/imagenet2012` the best of those fine-tuned from it, `augreg://B/16/imagenet2012/224` at that resolution.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vit_jax.command import UserError

SCHEME = "augreg://"
BUCKETS = "https://storage.googleapis.com"
AUGREG = f"{BUCKETS}/vit_models/augreg"
INDEX = f"{AUGREG}/index.csv"
COLUMNS = ("name", "ds", "final_val", "filename", "adapt_ds", "adapt_resolution", "adapt_final_val", "adapt_filename")
UPSTREAM = "i21k"  # 300 epochs on ImageNet-21k; also i21k_30 (30 epochs) and i1k

# The row of our table and the weights to start from, pre-trained on ImageNet-21k; AugReg's best where the papers of ViT
# and Mixer have none. The models are those of vision_transformer's vit_jax/configs/models.py and of big_transfer.
PUBLISHED: dict[str, tuple[str, str]] = {
    "vit_ti16": ("vit/Ti16", "augreg://Ti/16"),
    "vit_s32": ("vit/S32", "augreg://S/32"),
    "vit_s16": ("vit/S16", "augreg://S/16"),
    "vit_b32": ("vit/B32", f"{BUCKETS}/vit_models/imagenet21k/ViT-B_32.npz"),
    "vit_b16": ("vit/B16", f"{BUCKETS}/vit_models/imagenet21k/ViT-B_16.npz"),
    "vit_b8": ("vit/B8", f"{BUCKETS}/vit_models/imagenet21k/ViT-B_8.npz"),
    "vit_l32": ("vit/L32", f"{BUCKETS}/vit_models/imagenet21k/ViT-L_32.npz"),
    "vit_l16": ("vit/L16", f"{BUCKETS}/vit_models/imagenet21k/ViT-L_16.npz"),
    "vit_h14": ("vit/H14", f"{BUCKETS}/vit_models/imagenet21k/ViT-H_14.npz"),
    "r_vit_ti16": ("hybrid/R+Ti16", "augreg://R+Ti/16"),
    "r26_vit_s32": ("hybrid/R26+S32", "augreg://R26+S/32"),
    "r50_vit_b16": ("hybrid/R50+B16", f"{BUCKETS}/vit_models/imagenet21k/R50+ViT-B_16.npz"),
    "r50_vit_l32": ("hybrid/R50+L32", f"{BUCKETS}/vit_models/imagenet21k/R50+ViT-L_32.npz"),
    "mixer_b16": ("mixer/B16", f"{BUCKETS}/mixer_models/imagenet21k/Mixer-B_16.npz"),
    "mixer_l16": ("mixer/L16", f"{BUCKETS}/mixer_models/imagenet21k/Mixer-L_16.npz"),
    "bit_m_r50x1": ("bit/50x1", f"{BUCKETS}/bit_models/BiT-M-R50x1.npz"),
    "bit_m_r50x3": ("bit/50x3", f"{BUCKETS}/bit_models/BiT-M-R50x3.npz"),
    "bit_m_r101x1": ("bit/101x1", f"{BUCKETS}/bit_models/BiT-M-R101x1.npz"),
    "bit_m_r101x3": ("bit/101x3", f"{BUCKETS}/bit_models/BiT-M-R101x3.npz"),
    "bit_m_r152x2": ("bit/152x2", f"{BUCKETS}/bit_models/BiT-M-R152x2.npz"),
    "bit_m_r152x4": ("bit/152x4", f"{BUCKETS}/bit_models/BiT-M-R152x4.npz"),
}


@dataclass(frozen=True)
class Finetuned:
    """A row of the index: a pre-trained model, and one of those fine-tuned from it. Accuracies from 0 to 1."""

    name: str  # as in the paper: "B/16", "R26+S/32"
    upstream: str  # "i21k", "i21k_30" or "i1k"
    final_val: float  # of the pre-trained model, at the end of its training
    filename: str  # of the pre-trained model, without .npz
    dataset: str  # that it was fine-tuned to: "imagenet2012"
    resolution: int  # pixels, in fine-tuning
    adapted_final_val: float
    adapted_filename: str


def read_index(text: str) -> list[Finetuned]:
    """The rows of `index.csv`; raises `UserError` if this is not that table."""
    table = csv.DictReader(io.StringIO(text))
    missing = [column for column in COLUMNS if column not in (table.fieldnames or ())]
    if missing:
        raise UserError(f"AugReg's index has no columns {', '.join(missing)}; is it the table at {INDEX}?")
    rows = ([row[column] for column in COLUMNS] for row in table)
    return [
        Finetuned(name, ds, number(val), file, adapt_ds, int(float(side)), number(adapt_val), adapt_file)
        for name, ds, val, file, adapt_ds, side, adapt_val, adapt_file in rows
    ]


def number(text: str) -> float:
    """An accuracy; one that is missing is below all others."""
    return float(text) if text else -math.inf


def best_upstream(index: Iterable[Finetuned], model: str, upstream: str = UPSTREAM) -> str:
    """The file of the best pre-trained model of this name, by final validation accuracy."""
    index = list(index)
    rows = [row for row in index if row.upstream == upstream and key(row.name) == key(model)]
    if not rows:
        known = sorted({row.name for row in index if row.upstream == upstream})
        raise UserError(f"AugReg has no model {model!r} pre-trained on {upstream}; known: {', '.join(known)}")
    return max(rows, key=lambda row: row.final_val).filename


def best_adapted(index: Iterable[Finetuned], model: str, dataset: str, resolution: int = 0) -> str:
    """The file of the best of those fine-tuned from `best_upstream`, by final validation accuracy.

    `resolution`: pixels in fine-tuning; 0: any.
    """
    index = list(index)
    upstream = best_upstream(index, model)
    rows = [row for row in index if row.filename == upstream]
    found = [row for row in rows if row.dataset == dataset and resolution in (0, row.resolution)]
    if not found:
        known = sorted({f"{row.dataset}/{row.resolution}" for row in rows})
        given = f"{dataset}/{resolution}" if resolution else dataset
        raise UserError(f"AugReg has not fine-tuned {model!r} to {given!r}; known: {', '.join(known)}")
    return max(found, key=lambda row: row.adapted_final_val).adapted_filename


def resolve(address: str, read_text: Callable[[str], str]) -> str:
    """The https:// address of what an `augreg://` address means.

    After the scheme: a model's name in any usual form (`B/16`, `B_16`, `ViT-B_16`, `vit/B16`), and, to get a fine-tuned
    one, a data set and a resolution; or a file's full name (`B_16-i21k-300ep-...`), which needs no index. `read_text`
    reads the index from its address.
    """
    given = address.removeprefix(SCHEME).strip("/")
    if re.match(r"[A-Z][A-Za-z0-9_]*_\d+-i(1|21)k", given):
        return f"{AUGREG}/{given.removesuffix('.npz')}.npz"
    index = read_index(read_text(INDEX))
    model, dataset, resolution = split(given, {key(row.name) for row in index})
    file = best_adapted(index, model, dataset, resolution) if dataset else best_upstream(index, model)
    return f"{AUGREG}/{file}.npz"


def split(given: str, known: set[str]) -> tuple[str, str, int]:
    """Model, data set and resolution; the last two may be missing, and the model's name may hold a slash."""
    parts = given.split("/")
    length = next((n for n in (2, 1) if key("/".join(parts[:n])) in known), min(len(parts), 2))
    model, rest = "/".join(parts[:length]), parts[length:]
    if len(rest) > 2 or (len(rest) == 2 and not rest[1].isdecimal()):
        raise UserError(
            f"{SCHEME}{given}: expected {SCHEME}MODEL[/DATASET[/RESOLUTION]], e.g. augreg://B/16/cifar100/224"
        )
    return model, rest[0] if rest else "", int(rest[1]) if len(rest) == 2 else 0


def known(name: str) -> tuple[str, str] | None:
    """The row of our table and the address of its weights, for a name as in `PUBLISHED`; None for others.

    Any usual form will do: `vit_b16`, `ViT-B_16`, `b16`, `vit/B16`, `R50+ViT-B_16`, `r50_b16`.
    """
    return next((entry for ours, entry in PUBLISHED.items() if key(name) in (key(ours), key(entry[0]))), None)


def key(name: str) -> str:
    """What all forms of a model's name have in common: `ViT-B_16`, `vit/B16` and `B/16` give `b16`."""
    return re.sub(r"vit|hybrid|[^a-z0-9]", "", name.lower())
