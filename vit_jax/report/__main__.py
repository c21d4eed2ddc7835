"""The command `python -m vit_jax.report`."""

from vit_jax import command
from vit_jax.report.page import main

if __name__ == "__main__":
    command.run(main)
