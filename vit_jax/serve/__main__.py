"""The command `python -m vit_jax.serve`."""

from vit_jax import command
from vit_jax.serve import main

if __name__ == "__main__":
    command.run(main)
