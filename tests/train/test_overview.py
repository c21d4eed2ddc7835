"""What a run tells before its first step."""

import pytest

from vit_jax import platforms
from vit_jax.train.overview import precision


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_an_accelerator_that_computes_in_float32_is_told_of_bfloat16(platform):
    assert precision("float32", platform) == "float32; model.dtype=bfloat16 would be faster on this device"
    assert precision("bfloat16", platform) == "bfloat16"


def test_a_cpu_without_units_for_it_is_not(monkeypatch):
    monkeypatch.setattr(platforms, "cpu_units", lambda: {"avx2"})
    assert precision("float32", "cpu") == "float32"
