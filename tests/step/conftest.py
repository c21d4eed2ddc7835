"""The small step, compiled once for each file."""

import pytest

from tests import quick
from tests.step.small import ADAMW, CALM, NOISY, SEED, SGD, compiled, create, start, task_of
from vit_jax import step
from vit_jax.optim.averages import exponential
from vit_jax.step import TrainState


@pytest.fixture(scope="module")
def state() -> TrainState:
    """Before the first step. Dropout has no parameters: calm and noisy models share it."""
    return quick.jit(lambda: step.init_state(task_of(create(NOISY)), ADAMW, SEED, ema=True))()


@pytest.fixture(scope="module")
def noisy_step():
    return compiled(create(NOISY), average=exponential(0.9))


@pytest.fixture(scope="module")
def calm_step():
    return compiled(create(CALM), SGD)


@pytest.fixture(scope="module")
def calm_state(state) -> TrainState:
    return start(state.params, SGD)


@pytest.fixture(scope="module")
def eval_step():
    return quick.jit(step.make_eval_step(task_of(create(NOISY))))
