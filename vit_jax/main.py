"""Trains, or resumes, the run of a configuration.

python -m vit_jax.main --config configs/cifar100.py[:arg] [--workdir D] [--config.train.epochs=3 ...]
"""

from collections.abc import Sequence
from pathlib import Path

from vit_jax import command, config, distributed
from vit_jax.run import default_workdir
from vit_jax.train import train
from vit_jax.train.experiment import prefer_determinism, use_every_core


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(
        prog="python -m vit_jax.main",
        description="Trains, or resumes, the run of a configuration.",
        epilog="Any field of the configuration: --config.<group>.<field>=<value>, e.g. --config.train.epochs=3",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a file of configs/, or a config.json")
    parser.add_argument("--workdir", type=Path, help="where the run lies (default: runs/<config>[-<arg>])")
    parser.add_data_dir()
    flags, overrides = parser.parse(argv)
    if flags.data_dir:
        overrides.append(f"data.data_dir={flags.data_dir}")
    given = config.load(flags.config, overrides)
    config.check_effect([given], overrides)
    prefer_determinism(given)
    use_every_core([given])
    with distributed.joined():
        return train(given, flags.workdir or default_workdir(flags.config)).exit_code


if __name__ == "__main__":
    command.run(main)
