"""Every model's forward pass is exported on this machine for all platforms, for any number of images."""

from functools import partial

import jax
import numpy as np
import pytest

from tests import quick
from tests.conftest import rest_is_slow
from tests.models.small import SMALL, small


@pytest.mark.parametrize("family", rest_is_slow(SMALL))
def test_a_forward_pass_is_exported_for_each_platform(family):
    model = small(family)
    images = jax.random.normal(jax.random.key(1), (3, 32, 48, 3))
    variables = quick.jit(partial(model.init, train=False))(jax.random.key(0), images)
    variables = {k: v for k, v in variables.items() if k in ("params", "batch_stats")}
    forward = partial(model.apply, variables, train=False)
    given = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("n"), *images.shape[1:]), "float32")
    exported = jax.export.export(jax.jit(forward), platforms=("cpu", "cuda", "tpu"))(given)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    restored = jax.export.deserialize(exported.serialize())
    expected = quick.jit(forward)(images)
    np.testing.assert_allclose(quick.jit(restored.call)(images), expected, rtol=1e-4, atol=1e-5)
