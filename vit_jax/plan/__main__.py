"""The command `python -m vit_jax.plan`."""

from vit_jax import command
from vit_jax.plan import main

if __name__ == "__main__":
    command.run(main)
