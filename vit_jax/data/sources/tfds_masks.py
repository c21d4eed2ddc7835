"""Prepared TFDS data sets with a mask for each image: `masks/NAME[/CONFIG][:VERSION]`."""

from functools import partial
from pathlib import Path
from typing import Any

from vit_jax.command import UserError
from vit_jax.data.sources.dataset import Dataset, Example
from vit_jax.data.sources.masks import CLASSES_FILE, Classes, read_classes
from vit_jax.data.sources.tfds import Records, image_keys, image_shape, open_builder

_MASK_WORDS = ("mask", "segmentation", "annotation", "label")  # in the names of features


def open_prepared_masks(name: str, data_dir: Path) -> Dataset:
    """The data set with its masks: the feature that TFDS declares as such, else the grey image that is called so.

    The classes are those of the feature, or of a file `classes.json` in the folder of the data set. Raises as
    `tfds.open_prepared`.
    """
    builder = open_builder(name, data_dir)
    features = builder.info.features
    image_key, mask_key = _keys(name, features)
    classes = read_classes(Path(builder.data_path) / CLASSES_FILE)
    if not classes.names:
        known = getattr(features[mask_key], "names", None)
        if not known:
            raise UserError(
                f"{name}: its feature {mask_key!r} does not name its classes; write {CLASSES_FILE} into "
                f'{builder.data_path}: {{"names": ["sky", ...]}}'
            )
        classes = Classes(tuple(known))
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    opener = partial(_MaskRecords, name, builder, image_key, mask_key, classes)
    shape = image_shape(features[image_key])
    return Dataset(f"masks/{name}", classes.names, shape, sizes, opener, fields=("image", "mask"))


def _keys(name: str, features: Any) -> tuple[str, str]:
    """The features that hold the image and its mask."""
    from tensorflow_datasets.core.features import LabeledImage

    images = image_keys(features, features)
    declared = [key for key in features if isinstance(features[key], LabeledImage)]
    called = [key for key in images if features[key].shape[-1] == 1 and any(word in key for word in _MASK_WORDS)]
    masks = declared + called
    images = [key for key in images if key not in masks]
    if not (images and masks):
        raise UserError(
            f"{name} has no {'mask' if images else 'image'} among its features {', '.join(features)}; expected a data "
            "set for segmentation"
        )
    return images[0], masks[0]


class _MaskRecords(Records):
    """Images with masks, as the classes of their pixels."""

    def __init__(self, name: str, builder: Any, image_key: str, mask_key: str, classes: Classes, split: str):
        super().__init__(name, builder, split)
        self._keys, self._classes = (image_key, mask_key), classes

    def read(self, index: int) -> Example:
        image, mask = self.parse(index)
        return {"image": image, "mask": self._classes.decode(mask)}

    def _parsed(self, record: bytes) -> tuple[bytes, bytes]:
        from tensorflow_datasets.proto import tf_example_pb2

        feature = tf_example_pb2.Example.FromString(record).features.feature
        image, mask = (feature[key].bytes_list.value[0] for key in self._keys)
        return image, mask
