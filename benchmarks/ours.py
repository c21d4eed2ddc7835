"""The contender `ours`: the library's own steps, reached the way that training reaches them."""

import itertools
import time
from typing import Any

import jax
import numpy as np

from benchmarks.device import compiled_bytes, peak_bytes
from benchmarks.workloads import Case
from vit_jax import run, sharding, trees
from vit_jax.data import open_data
from vit_jax.inference import input_shape
from vit_jax.step import evaluation_variables
from vit_jax.train.loop import STEPS_IN_FLIGHT

MANY_STEPS = 10**9


class Ours:
    """A run of `vit_jax` without its loop: state, compiled step and batches."""

    def __init__(self, case: Case, overrides: list[str]) -> None:
        given = case.config(overrides)
        run.use_every_core([given])
        data = open_data(given.data)
        run.check_data(given, data)
        mesh = run.make_mesh(given, data)
        self.loader = data.loader(data.split("train"), mesh, on_device=True).load()
        prepared = run.prepare(given, data, self.loader.split)
        self.attention_seconds: dict[str, float] = {}  # of each kernel that was tried
        if case.mode == "train":
            shape = run.input_shape(prepared, data.preprocessing.shape)
            prepared, self.attention_seconds = run.fastest_attention(prepared, mesh, shape)
        self.attention = prepared.model.get("attention")
        built = run.build(prepared, mesh, image_shape=data.preprocessing.shape, train_images=len(self.loader.split))
        self.batch_size, self.flops_per_image = case.batch_size, built.flops_per_image
        self.state: Any = built.init_state()
        self.input_seconds = 0.0  # of the host, for batches: at most so long does the device wait for them
        self.parameters = trees.count(built.abstract_state.params)
        self.train, self.devices = case.mode == "train", mesh.size
        self.batches = self._train_batches(given.seed) if self.train else itertools.repeat(self._images(mesh))
        began = time.perf_counter()
        first = next(self.batches)
        if self.train:
            self.lowered = built.train_step.lower(self.state, first, self.loader.constants)
        else:
            self.lowered = built.eval_step.lower(evaluation_variables(self.state), first, {})
        self.step = self.lowered.compile()
        self.compile_seconds = time.perf_counter() - began

    def _train_batches(self, seed: int) -> Any:
        """Indices into the split on the device, new ones each step; images: always the same ones, on the device."""
        batches = self.loader.train(seed, self.batch_size, 0, MANY_STEPS)
        return batches if self.loader.on_device else itertools.repeat(next(batches))

    def _images(self, mesh: Any) -> dict[str, jax.Array]:
        batch = self.loader.split.read(np.arange(self.batch_size))
        batch |= {"number": batch["label"], "weight": np.ones(self.batch_size, np.float32)}
        return {k: jax.device_put(v, sharding.batch_sharding(mesh)) for k, v in batch.items()}

    def run(self, steps: int) -> None:
        """Does so many steps, and returns when the last one is finished; as many in flight as training has."""
        flying: list[Any] = []
        for _ in range(steps):
            began = time.perf_counter()
            batch = next(self.batches)
            self.input_seconds += time.perf_counter() - began
            if self.train:
                self.state, out = self.step(self.state, batch, self.loader.constants)
            else:
                out = self.step(evaluation_variables(self.state), batch, {})
            flying.append(out)
            if len(flying) > STEPS_IN_FLIGHT:
                jax.block_until_ready(flying.pop(0))
        jax.block_until_ready((self.state, flying))

    def peak_bytes(self) -> int | None:
        """Of a GPU; of a CPU, what its devices need together."""
        of_one = compiled_bytes(self.step)
        return peak_bytes() or (of_one * self.devices if of_one else None)
