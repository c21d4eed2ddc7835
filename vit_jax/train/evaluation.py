"""One pass of an evaluation step over a split: each example counts once, whatever batches and devices are.

Batches are padded, the padding is dropped, and the metrics are computed once from all examples.
"""

import itertools
from collections import deque
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax import sharding
from vit_jax.config import Config
from vit_jax.data import Loader
from vit_jax.step import EvalStep
from vit_jax.tasks import Evaluator, Task
from vit_jax.trees import PyTree

# Batches that are computed ahead. XLA's CPU client starts 32 on each device, and holds a thread for the next: with two
# devices and two threads, one device then waited for the other for ever.
IN_FLIGHT = 4


def evaluate_split(eval_step: EvalStep, variables: PyTree, loader: Loader, batch_size: int, task: Task) -> Evaluator:
    """What the task's evaluator makes of every example of the loader's split, in its order."""
    evaluator = task.evaluator(len(loader.split))
    waiting: deque[dict[str, jax.Array]] = deque()
    begins = itertools.count(0, batch_size)

    def fetch() -> None:
        """Moves the oldest batch to the host: on a device its outputs would fill the memory."""
        unneeded = {name for name, first in task.shown.items() if evaluator.size >= first}
        rows: dict[str, Any] = jax.device_get({k: v for k, v in waiting[0].items() if k not in unneeded})
        waiting.popleft()
        begin, real = next(begins), np.flatnonzero(rows.pop("weight") > 0)
        if len(real):
            evaluator.add({"index": begin + real} | {name: np.asarray(values)[real] for name, values in rows.items()})

    for batch in loader.evaluation(batch_size):
        waiting.append(eval_step(variables, batch, loader.constants))
        if len(waiting) > IN_FLIGHT:
            fetch()
    while waiting:
        fetch()
    return evaluator


def evaluation_batch_size(config: Config, mesh: Mesh) -> int:
    """Examples of an evaluation batch: as configured, and as many more as let the devices divide it."""
    shards = sharding.batch_shards(mesh)
    return -(-(config.evaluate.batch_size or config.train.batch_size) // shards) * shards
