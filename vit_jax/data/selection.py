"""Part of a data set: some of its classes, or some of its training images."""

import unicodedata
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vit_jax.command import UserError
from vit_jax.data.sources import Dataset, Rows, Source, read_labels

_SHOWN = 20  # class names in a message


def choose_classes(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """The data set with these classes alone, labelled 0, 1, ... in the order given; images keep their order.

    Reads every label (`read_labels`). Splits without labels are left out. Raises `UserError` for names that the data
    set does not have, or has given twice, and for a split without an image of these classes.
    """
    known = dataset.class_names
    classes = [unicodedata.normalize("NFC", name) for name in classes]  # as folders' names are
    listed = _listed(known)
    if unknown := [name for name in classes if name not in known]:
        raise UserError(
            f"data.classes={tuple(classes)}: {unknown[0]!r} is not a class of {dataset.name!r}; its classes: {listed}"
        )
    if len(set(classes)) < max(2, len(classes)):
        raise UserError(f"data.classes={tuple(classes)}: give two or more, each once, of {listed}")
    new_label = np.full(len(known), -1)
    new_label[[known.index(name) for name in classes]] = np.arange(len(classes))
    sources = {}
    for split in dataset.splits:
        whole = dataset.open_split(split)
        labels = read_labels(whole)
        labelled = (labels >= 0) & (labels < len(known))
        if not labelled.any():
            continue
        labels = np.where(labelled, new_label[np.where(labelled, labels, 0)], -1)
        rows = np.flatnonzero(labels >= 0)
        if not len(rows):
            raise UserError(f"data.classes={tuple(classes)}: split {split!r} of {dataset.name!r} has no image of these")
        sources[split] = Rows((whole, rows), labels=labels[rows])
    sizes = {split: len(source) for split, source in sources.items()}
    return replace(dataset, class_names=tuple(classes), splits=sizes, open_split=sources.__getitem__)


def choose_images(source: Source, class_names: Sequence[str], *, limit: int, per_class: int, seed: int) -> Source:
    """`limit` images of the source at random, or `per_class` of each class; 0: all. They keep their order.

    A smaller choice is contained in a larger one of the same seed. `limit` may exceed what there is; raises `UserError`
    where a class has fewer than `per_class`.
    """
    if not limit and not per_class:
        return source
    order = np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(len(source))
    if limit:
        return Rows((source, np.sort(order[:limit])))
    labels = read_labels(source)[order]
    by_label = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_label], np.arange(len(class_names) + 1))
    counts = np.diff(starts)
    if few := [f"{name} ({count})" for name, count in zip(class_names, counts, strict=True) if count < per_class]:
        advice = f"choose at most {counts.min()}" if counts.min() else "choose a data.train with images of every class"
        raise UserError(
            f"data.images_per_class={per_class}, but these classes have fewer training images: {_listed(few)}; {advice}"
        )
    chosen = order[by_label[starts[:-1, None] + np.arange(per_class)]]
    return Rows((source, np.sort(chosen.reshape(-1))))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
