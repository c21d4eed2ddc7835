"""The contender `flax`: the textbook ViT in the training step that a tutorial would write around it."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import textbook
from benchmarks.batches import Batches
from benchmarks.device import compiled_bytes, is_gpu, peak_bytes
from benchmarks.workloads import Case
from vit_jax import trees


class Flax:
    """A textbook's parameters, optimizer and jitted step; the images are on the device before it is timed."""

    def __init__(self, case: Case) -> None:
        given = case.config()
        self.train, self.batches = case.mode == "train", Batches(case)
        self.model = textbook.ViT(dtype=jnp.dtype(case.dtype), **textbook.fields(given.model, self.batches.classes))
        self.tx = optax.adamw(given.optim.lr, weight_decay=given.optim.weight_decay)
        self.images, self.labels = jnp.asarray(self.batches.images), jnp.asarray(self.batches.labels)
        images = jnp.zeros((1, *self.images.shape[1:]))
        params = jax.jit(lambda: self.model.init(jax.random.key(0), images, train=False)["params"])()
        self.state: Any = (params, jax.jit(self.tx.init)(params), jnp.zeros((), jnp.int32))
        self.parameters = trees.count(params)
        began = time.perf_counter()
        index = self._index()
        if self.train:
            self.step = jax.jit(self._train_step, donate_argnums=0).lower(self.state, self._data(), index).compile()
        else:
            self.step = jax.jit(self._forward).lower(params, self._data(), index).compile()
        self.compile_seconds = time.perf_counter() - began

    def _data(self) -> tuple[Any, Any]:
        return self.images, self.labels

    def _index(self) -> Any:
        return None if self.batches.whole else jnp.asarray(self.batches.next())

    def _batch(self, data: Any, index: Any) -> tuple[Any, Any]:
        images, labels = data if index is None else (data[0][index], data[1][index])
        return (images.astype(jnp.float32) / 255 - 0.5) / 0.5, labels

    def _train_step(self, state: Any, data: Any, index: Any) -> tuple[Any, Any]:
        params, opt_state, step = state
        images, labels = self._batch(data, index)

        def loss_fn(params: Any) -> Any:
            rngs = {"dropout": jax.random.fold_in(jax.random.key(1), step)}
            logits = self.model.apply({"params": params}, images, train=True, rngs=rngs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = self.tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, step + 1), loss

    def _forward(self, params: Any, data: Any, index: Any) -> Any:
        return self.model.apply({"params": params}, self._batch(data, index)[0], train=False)

    def run(self, steps: int) -> None:
        out = None
        for _ in range(steps):
            if self.train:
                self.state, out = self.step(self.state, self._data(), self._index())
            else:
                out = self.step(self.state[0], self._data(), self._index())
            if not is_gpu():
                jax.block_until_ready(out)
        jax.block_until_ready((self.state, out))

    def peak_bytes(self) -> int | None:
        return peak_bytes() or compiled_bytes(self.step)
