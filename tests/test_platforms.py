"""JAX looks for no TPU where there is only its compiler."""

import os
import subprocess
import sys

import pytest

from vit_jax import platforms

PROGRAM = """
import sys
import jax
from vit_jax import platforms
platforms.importlib.util.find_spec = lambda name: name == "libtpu" and sys.argv[1] == "installed" or None
print(platforms.skip_missing_tpu(), jax.config.jax_platforms)
"""


@pytest.fixture
def devices(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(platforms, "DEVICES", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["nvidia0", "accel0", "vfio", "kfd"])
def test_accelerators_are_found(devices, monkeypatch, name):
    assert not platforms.has_accelerator()
    (devices / name).touch()
    assert platforms.has_accelerator()
    assert not platforms.skip_missing_tpu()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not platforms.has_accelerator()


def said(libtpu: str, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    command = [sys.executable, "-c", PROGRAM, libtpu]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(
    sys.platform != "linux" or any((platforms.DEVICES / name).exists() for name in platforms.ACCELERATORS),
    reason="for Linux machines without accelerators",
)
def test_no_tpu_is_looked_for_with_its_compiler_alone():
    assert said("installed") == "True cpu"
    assert said("missing") == "False None"
    assert said("installed", JAX_PLATFORMS="tpu,cpu") == "False tpu,cpu"
