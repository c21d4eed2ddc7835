"""Experiments that are only described: nothing is read, and nothing is compiled before a test does it."""

import dataclasses

import jax

from vit_jax.config import Config
from vit_jax.data import Settings
from vit_jax.train import Experiment, set_up


def described(given: Config, shape: tuple[int, int, int], *, classes: int, images: int, devices: int = 1) -> Experiment:
    """The experiment of a configuration on images of this shape, so many to train with, on the first devices."""
    size = "x".join(map(str, shape))
    data = Settings(name=f"synthetic/{size}/{classes}/{images}", validation="none", repeats=given.data.repeats)
    streamed = dataclasses.replace(data, cache="none")
    return set_up(dataclasses.replace(given, data=streamed), devices=jax.devices()[:devices], described=True)
