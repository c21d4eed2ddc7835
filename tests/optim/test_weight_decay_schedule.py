"""Weight decay that changes in the run: half a cosine by hand, for what decays alone, in optimizers that add it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.conftest import rest_is_slow
from vit_jax import optim
from vit_jax.command import UserError
from vit_jax.optim import Settings

PARAMS = {"a": {"kernel": jnp.array([2.0, -1.0]), "bias": jnp.array([3.0])}}
NO_GRADIENT = jax.tree.map(jnp.zeros_like, PARAMS)


def directions(progress: float, **fields) -> dict:
    """What a step subtracts without any gradient: the decay alone."""
    tx = optax.with_extra_args_support(optim.create(Settings(**fields), head="^head/"))
    return tx.update(NO_GRADIENT, tx.init(PARAMS), PARAMS, progress=jnp.float32(progress))[0]


@pytest.mark.parametrize("name", rest_is_slow(["adamw", "lion", "adafactor"]))
def test_it_goes_from_the_first_to_the_last_as_half_a_cosine(name):
    for progress in (0.0, 0.25, 0.5, 1.0):
        found = directions(progress, name=name, weight_decay=0.04, final_weight_decay=0.4)
        decay = 0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * progress)) / 2
        np.testing.assert_allclose(found["a"]["kernel"], decay * np.array([2.0, -1.0]), rtol=1e-5)
        assert found["a"]["bias"] == 0


def test_frozen_and_delayed_parameters_do_not_decay():
    fields = {"weight_decay": 0.04, "final_weight_decay": 0.4}
    assert not directions(0.5, **fields, freeze="^a/")["a"]["kernel"].any()
    assert not directions(0.5, **fields, head_warmup_steps=2)["a"]["kernel"].any()


def test_the_state_is_that_of_a_decay_that_stays():
    """So that a run can be resumed with the other."""
    states = [optim.create(Settings(weight_decay=0.1, final_weight_decay=x)).init(PARAMS) for x in (0.0, 0.3)]
    assert len({str(jax.tree.structure(state)) for state in states}) == 1


def test_a_negative_one_is_refused():
    with pytest.raises(UserError, match="optim.final_weight_decay=-1"):
        optim.check(Settings(final_weight_decay=-1.0))
