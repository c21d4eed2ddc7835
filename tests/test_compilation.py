"""Compiled programs are kept in the user's cache, or where JAX is told to; under `scan` they do not grow with depth."""

import os
import subprocess
import sys

import pytest

from tests.described import described
from vit_jax import config, models

PROGRAM = """
import jax
from vit_jax import compilation
print(compilation.keep_compiled())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
def first(x): return x @ x
def second(x): return x @ x + 1
def third(x): return x @ x + 2
ones = jax.numpy.ones((3, 3))
jax.jit(first)(ones)
with compilation.keeping(False): jax.jit(second)(ones)
with compilation.keeping(True): jax.jit(third)(ones)
"""


def folder(**environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XDG_"))}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**kept, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Error reading" not in found.stderr
    return found.stdout.strip()


def test_programs_are_kept_in_the_users_cache(tmp_path):
    found = folder(XDG_CACHE_HOME=str(tmp_path))
    assert found.startswith(str(tmp_path / "vit_jax" / "compiled"))
    names = " ".join(os.listdir(found))  # within `keeping(False)` nothing is kept that no process can read again
    assert "jit_first" in names and "jit_third" in names and "jit_second" not in names
    [first] = [name for name in os.listdir(found) if "jit_first" in name and name.endswith("-cache")]
    os.truncate(os.path.join(found, first), 20)  # by a process that was killed while it wrote
    assert folder(XDG_CACHE_HOME=str(tmp_path)) == found


@pytest.mark.slow
def test_jaxs_own_variable_decides(tmp_path):
    assert folder(JAX_COMPILATION_CACHE_DIR=str(tmp_path), XDG_CACHE_HOME="/nowhere") == str(tmp_path)
    assert os.listdir(tmp_path)


def instructions(depth: int, scan: bool) -> int:
    """Of a training step, before the compiler sees it."""
    sizes = {"patch_size": (2,), "width": 6, "mlp_dim": 10, "num_heads": 2, "num_classes": 7, "dropout": 0.1}
    model = models.settings("vit", depth=depth, scan=scan, **sizes)
    view = {"mean": (0.5,), "std": (0.5,)}
    given = config.from_dict({"model": model, "augment": view, "train": {"batch_size": 5, "steps": 3}})
    built = described(given, (6, 4, 3), classes=7, images=29)
    return built.train_step.lower(*built.arguments).as_text().count(" = ")


@pytest.mark.slow
def test_a_scanned_step_does_not_grow_with_depth():
    shallow = instructions(3, scan=True)
    assert instructions(12, scan=True) == pytest.approx(shallow, rel=0.05)
    assert instructions(3, scan=False) > 1.5 * shallow, "layers are counted"
