"""The command `python -m vit_jax.export`."""

from vit_jax import command
from vit_jax.export import main

if __name__ == "__main__":
    command.run(main)
