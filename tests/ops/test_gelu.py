"""GELU is Flax's, and keeps its slope where that is faster."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.test_util import check_grads

from tests.ops.lowered import lowered
from vit_jax.ops.gelu import gelu


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 8e-3)])
def test_gelu_is_flaxs(dtype, tolerance):
    x = jnp.linspace(-8, 8, 1001).astype(dtype)
    exact = nn.gelu(x.astype(jnp.float32), approximate=False)
    found = gelu(x)
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=tolerance, atol=1e-6)
    flaxs = partial(nn.gelu, approximate=False)
    slopes = [jax.vmap(jax.grad(f))(x.astype(jnp.float32)) for f in (gelu, flaxs)]
    np.testing.assert_allclose(*slopes, atol=2e-6)
    slope = jax.vmap(jax.grad(gelu))(x)
    assert slope.dtype == x.dtype
    np.testing.assert_allclose(slope.astype(jnp.float32), slopes[1], rtol=tolerance, atol=2e-6)


def test_gpus_compute_the_slope_of_gelu_anew():
    """Elsewhere a barrier makes compilers keep it."""
    barriers = {p: lowered(jax.grad(gelu), 1.5, platform=p).count("optimization_barrier") for p in PLATFORMS}
    assert barriers == {"cpu": 1, "tpu": 1, "cuda": 0}


PLATFORMS = ("cpu", "tpu", "cuda")


def test_gelus_derivatives():
    check_grads(lambda x: gelu(jnp.asarray(x)), (jnp.linspace(-3, 3, 7),), order=2)
