"""What a platform's compiler is given, of platforms that are not here, too."""

from collections.abc import Callable
from typing import Any

import jax


def lowered(fn: Callable[..., Any], *args: Any, platform: str) -> str:
    """The program of `fn(*args)`, lowered for cpu, cuda or tpu."""
    return jax.jit(lambda *given: fn(*given)).trace(*args).lower(lowering_platforms=(platform,)).as_text()
