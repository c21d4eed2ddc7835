"""`jax.jit` for tests that compile more than they compute."""

from functools import partial

import jax

OPTIONS = {"xla_backend_optimization_level": 0}  # compiles models 3, and random numbers 18 times as fast
jit = partial(jax.jit, compiler_options=OPTIONS)
