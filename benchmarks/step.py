"""Our training step for a workload. All that benchmarks need from inside the library is imported here."""

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.machine import peak_bytes
from benchmarks.workloads import Case
from vit_jax import config, sharding, trees
from vit_jax.config import Config
from vit_jax.data import Loader, Settings, Split, open_data
from vit_jax.plan import subject
from vit_jax.plan.subject import Subject
from vit_jax.plan.topology import Machine
from vit_jax.step import evaluation_variables
from vit_jax.train import set_up
from vit_jax.train.devices import use_every_core
from vit_jax.train.loop import STEPS_IN_FLIGHT
from vit_jax.workdir import Workdir

SEED, MANY_STEPS = 0, 10**9


class Step:
    """The contender `ours`: state, compiled step and batches of a run, built as training builds them."""

    def __init__(self, case: Case, overrides: Sequence[str] = ()) -> None:
        given = case.config(overrides)
        use_every_core([given])
        built = set_up(given)
        self.loader, mesh = built.loader, built.mesh
        self.attention_seconds = built.attention_seconds  # of each kernel that was tried
        self.attention = built.config.model.get("attention")
        self.batch_size, self.flops_per_image = case.batch_size, built.flops_per_image
        self.state: Any = built.init_state()
        self.input_seconds = 0.0  # that the host spent on batches: the device waits for them at most so long
        self.parameters = trees.count(built.abstract_state.params)
        self.train, self.devices = case.mode == "train", mesh.size
        self.batches = self.loader.train(SEED, self.batch_size, 0, MANY_STEPS)  # new indices into images on the device
        if not (self.train and self.loader.on_device):  # always the same images, on the device
            self.batches = itertools.repeat(next(self.batches) if self.train else self._images(mesh))
        began = time.perf_counter()
        step = built.train_step if self.train else built.eval_step
        self.lowered = step.lower(*self._arguments(next(self.batches)))
        self.step = self.lowered.compile()
        self.compile_seconds = time.perf_counter() - began

    def _images(self, mesh: Any) -> dict[str, jax.Array]:
        examples = self.loader.split.read(np.arange(self.batch_size))
        rest = {"number": examples["label"], "weight": np.ones(self.batch_size, np.float32)}
        batch = {**examples, **rest}
        return {k: jax.device_put(v, sharding.batch_sharding(mesh)) for k, v in batch.items()}

    def _arguments(self, batch: Any) -> tuple[Any, Any, Any]:
        return (
            (self.state, batch, self.loader.constants) if self.train else (evaluation_variables(self.state), batch, {})
        )

    def run(self, steps: int) -> None:
        """Does so many steps, as many at once in flight as in training; returns when the last one is finished."""
        flying: list[Any] = []
        for _ in range(steps):
            began = time.perf_counter()
            batch = next(self.batches)
            self.input_seconds += time.perf_counter() - began
            out = self.step(*self._arguments(batch))
            if self.train:
                self.state, out = out
            flying.append(out)
            if len(flying) > STEPS_IN_FLIGHT:
                jax.block_until_ready(flying.pop(0))
        jax.block_until_ready((self.state, flying))

    def peak_bytes(self) -> int | None:
        return peak_bytes(self.step, self.devices)


def images(case: Case) -> tuple[np.ndarray, np.ndarray, int]:
    """What a peer trains on: the first batch of our images, uint8 [n h w c], labels, and the number of classes."""
    data = open_data(case.config().data)
    batch = data.split("train").read(np.arange(case.batch_size))
    return batch["image"], batch["label"], len(data.class_names)


def training_split(settings: dict[str, Any]) -> Split:
    """The training images of a data set, as `data.*` describes it."""
    return open_data(Settings(validation="none", channels=3, **settings)).split("train")


def load(split: Split, batch_size: int, threads: int) -> dict[str, Iterator[Any]]:
    """Endless batches: streamed from disk, from the host's memory, and as indices into the device's."""
    mesh = sharding.make_mesh(sharding.Settings())
    loaders = {
        "feed, streamed": Loader(split, mesh, threads=threads),
        "feed, in host memory": Loader(split, mesh, in_memory=True, threads=threads),
        "feed, on the device": Loader(split, mesh, on_device=True, threads=threads),
    }
    return {name: loader.train(SEED, batch_size, 0, MANY_STEPS) for name, loader in loaders.items()}


def planned(spec: str, overrides: Sequence[str], machine: Machine) -> Subject:
    """The jitted train step of a configuration on a described machine, with the shapes of its arguments."""
    return subject.build(subject.prepare(config.load(spec, overrides)), machine)


def finished_run(workdir: Path) -> tuple[Config, Path]:
    """The configuration of a finished run, and the file of its result."""
    folder = Workdir(workdir)
    folder.result()  # raises where there is none
    return folder.config(), folder.result_file
