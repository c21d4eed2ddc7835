"""What all tests share: four simulated CPU devices, strict JAX, and a compilation cache between tests and workers."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Four devices; and where XLA still has them the older emitters of fused loops, which compile small programs faster.
FLAGS = "--xla_force_host_platform_device_count=4"
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"  # two workers, and whoever else computes here: threads that wait would spin
CACHE = Path(tempfile.gettempdir()) / f"vit_jax-test-cache-{os.getuid()}"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)  # of commands that tests start, too

import hypothesis  # noqa: E402
import jax  # noqa: E402 - after the flags that it reads
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Machines that are busy with other work are slow, not wrong.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

REPOSITORY = Path(__file__).parents[1]
REAL_DATA = REPOSITORY.parent / "shared" / "tfds"  # prepared TFDS data sets of real images, where a machine has them


def rest_is_slow(values: Iterable[Any], fast: int = 1) -> list[Any]:
    """The values of a parametrised test, of which only the first few are run by `make test`."""
    return [v if i < fast else pytest.param(v, marks=pytest.mark.slow) for i, v in enumerate(values)]


# Rooms of tests whose functions take arrays: there shapes and types are checked at each call, which takes a third of
# the time of tracing. Files that train whole runs call the same functions again.
CHECKED = {"augment", "data", "explain", "inference", "metrics", "models", "ops", "report", "serve", "step", "tasks"}


@pytest.fixture(autouse=True, scope="module")
def annotations_are_checked(request: pytest.FixtureRequest) -> None:
    """In the rooms that are named above; see `--jaxtyping-packages` in pyproject.toml."""
    jaxtyping.config.update("jaxtyping_disable", request.path.parent.name not in CHECKED)


@pytest.fixture(autouse=True, scope="session")
def the_same_cpu_everywhere() -> Iterator[None]:
    """Products of bfloat16 numbers are computed in another way on CPUs that have units for them."""
    from vit_jax import platforms  # not before jaxtyping watches imports

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platforms, "cpu_units", lambda: frozenset({"avx2"}))
        yield


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests compile more than they compute: XLA optimises little, here and in the commands that they start.

    A file that looks at the compiled program itself says `QUICK_TO_COMPILE = False`.
    """
    if not getattr(request.module, "QUICK_TO_COMPILE", True):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)
