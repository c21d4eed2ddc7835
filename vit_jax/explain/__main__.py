"""The command `python -m vit_jax.explain`."""

from vit_jax import command
from vit_jax.explain import main

if __name__ == "__main__":
    command.run(main)
