"""Small pictures inside a page: images of a run's data set as data URIs, each decoded once."""

import base64
import dataclasses
import io
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vit_jax import config
from vit_jax.data import Data, open_data
from vit_jax.report.runs import Run

SIDE = 96  # pixels of the longer side
LOSSLESS = 40  # pixels: smaller images are kept as they are
AT_ONCE = 16  # images between two looks at the clock


class Album:
    """The images of a page, by keys that stand for one image of one split; a page that is written again keeps it.

    seconds: how long it may read images; those that come too late are left out.
    """

    def __init__(self, seconds: int | float = float("inf"), opened: dict[Path, Data] | None = None) -> None:
        self.uris: dict[str, str] = {}
        self.rows: dict[Path, dict[str, np.ndarray]] = {}  # augmented images of a run, by its folder; by their captions
        self.faults: dict[str, str] = {}  # why a run's images are missing
        self._ends = time.monotonic() + seconds
        self._opened = opened or {}  # as training left it, by the folder of the run
        self._data: dict[str, Data | str] = {}
        self._sources: dict[Path, str] = {}  # `_source` of a run, by its folder: each image asks for it
        self._changed: dict[Path, str] = {}  # how the images of a run have changed since, by its folder

    @property
    def has_deadline(self) -> bool:
        return self._ends != float("inf")

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() >= self._ends

    def data(self, run: Run) -> Data | str:
        """The data set of a run as the run prepared it; or why it cannot be opened, or is no longer the same."""
        opened = self._open(run)
        if isinstance(opened, str) or run.workdir.path in self._opened:
            return opened
        if run.workdir.path not in self._changed:
            try:
                own = dataclasses.replace(opened, settings=run.config.data)  # runs of several limits share one
                self._changed[run.workdir.path] = run.workdir.changed_images(own)
            except Exception as fault:
                return said(fault)
        changed = self._changed[run.workdir.path]
        return f"the data set is not the one that the run began with: {changed}" if changed else opened

    def _open(self, run: Run) -> Data | str:
        key = self._source(run)
        if key not in self._data:
            try:
                view, _ = run.workdir.preprocessing(run.config.augment)
                known = self._opened.get(run.workdir.path)
                opened = known or open_data(run.config.data, view.size)
                self._data[key] = dataclasses.replace(opened, preprocessing=view)
            except Exception as fault:  # a page without images is better than none
                self._data[key] = said(fault)
        return self._data[key]

    def add(self, run: Run, places: Iterable[int], split: str = "test") -> None:
        """Reads the images at these places of a split, as far as they are not there yet."""
        data = self.data(run)
        if isinstance(data, str):
            self.faults[run.name] = data
            return
        missing = [place for place in dict.fromkeys(places) if self.key(run, place, split) not in self.uris]
        try:
            self._read(run, data, missing, split)
        except Exception as fault:  # a broken image, a file that is gone: the page shows the others
            self.faults[run.name] = said(fault)

    def _read(self, run: Run, data: Data, missing: list[int], split: str) -> None:
        source = data.split(split)
        for begin in range(0, len(missing), AT_ONCE):
            if self.out_of_time:
                self.faults[run.name] = "there was no time for more; `python -m vit_jax.report` takes it"
                return
            part = np.asarray(missing[begin : begin + AT_ONCE])
            if part.max() >= len(source):
                self.faults[run.name] = "the data set has fewer images than the run tested"
                return
            arrays, good = source.read_marked(part, ("image",))
            for place, image, whole in zip(part.tolist(), arrays["image"], good, strict=True):
                if whole:
                    self.uris[self.key(run, place, split)] = thumbnail(image)

    def key(self, run: Run, place: int, split: str = "test") -> str:
        return f"{list(self._data).index(self._source(run))}-{split}-{place}"

    def _source(self, run: Run) -> str:
        """What decides which images a split has, and how they are cut."""
        if run.workdir.path in self._sources:
            return self._sources[run.workdir.path]
        settings: dict[str, Any] = config.to_dict(run.config)["data"]
        used = {name: value for name, value in settings.items() if name not in ("limit", "choice", "threads", "cache")}
        size = (
            run.workdir.preprocessing_file.read_text(encoding="utf-8")
            if run.workdir.preprocessing_file.is_file()
            else ""
        )
        return self._sources.setdefault(run.workdir.path, json.dumps([used, size], sort_keys=True, default=str))


def said(fault: Exception) -> str:
    """What the exception says, on one line."""
    return " ".join(str(fault).split()) or type(fault).__name__


def thumbnail(image: UInt8[np.ndarray, "h w c"]) -> str:
    """A data URI of the image, not larger than `SIDE`."""
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if max(picture.size) <= LOSSLESS:
        return data_uri(picture, "PNG")
    picture.thumbnail((SIDE, SIDE))
    return data_uri(picture, "JPEG")


def data_uri(picture: Image.Image, kind: str = "JPEG") -> str:
    """The picture inside a page."""
    file = io.BytesIO()
    picture.save(file, kind, **({"quality": 82} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def of_file(path: Path, widest: int = 1600) -> str:
    """A data URI of a picture file, made smaller where it is large."""
    with Image.open(path) as file:
        picture: Image.Image = file.convert("RGB")
        if picture.width > widest:
            picture = picture.resize((widest, round(picture.height * widest / picture.width)), Image.Resampling.LANCZOS)
        return data_uri(picture, "JPEG")
