"""Data sets: opened by name, split, decoded on the host, and batched for the devices.

`open_data(settings)` touches neither a device nor, but for their headers and labels, the images. `register` adds a
kind of data set.
"""

from vit_jax.data.crop import RandomCrop
from vit_jax.data.loader import Loader
from vit_jax.data.opening import Data, open_data
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.settings import Settings, check
from vit_jax.data.sources import Dataset, Example, MissingDataset, Source, register
from vit_jax.data.split import Split

__all__ = [
    "Data",
    "Dataset",
    "Example",
    "Loader",
    "MissingDataset",
    "Preprocessing",
    "RandomCrop",
    "Settings",
    "Source",
    "Split",
    "check",
    "open_data",
    "register",
]
