"""Trains, or resumes, the run of a configuration.

python -m vit_jax.main --config configs/cifar100.py[:arg] [--workdir D] [--config.train.epochs=3 ...]
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
from ml_collections import ConfigDict
from rich.console import Console

from vit_jax import command, config, distributed
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.report import page as report
from vit_jax.train import Result, train
from vit_jax.train.devices import prefer_determinism, use_fastest
from vit_jax.workdir import Workdir, default_workdir

# `configs/x.py:arg`, a `config.json`, or what a config file returns.
Given: TypeAlias = str | Path | Config | ConfigDict | Mapping[str, Any]


def start(
    given: Given, workdir: str | Path | None = None, overrides: Sequence[str] = (), console: Console | None = None
) -> Result:
    """Trains, or resumes, the run of a configuration, on all devices that this process can have.

    Args:
        given: a config file or the configuration itself; what a nested dict leaves out is at its default.
        workdir: the folder of the run; None: as the file is called, runs/<file>[-<arg>].
        overrides: changes of the configuration, `field=value`.
        console: where progress is shown; None: on stdout.

    Raises:
        UserError: a mistake in the configuration, or a folder that holds another run.
    """
    if isinstance(given, str | Path):
        settings, workdir = config.load(str(given), overrides), workdir or default_workdir(str(given))
    else:
        tree = config.to_dict(given) if isinstance(given, Config) else given
        settings = config.from_dict(tree, overrides)
    if workdir is None:
        raise UserError("a configuration that is no file does not name its folder; give workdir, e.g. 'runs/first'")
    config.check_effect([settings], overrides)
    prefer_determinism(settings)
    use_fastest(settings, Workdir(Path(workdir)), console or Console(highlight=False))
    with distributed.joined():
        result = train(settings, Path(workdir), console)
        if settings.log.report and result.data is not None and jax.process_index() == 0:
            report.write_report(workdir, result.data)
        return result


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
    return start(flags.config, flags.workdir, overrides).exit_code


if __name__ == "__main__":
    command.run(main)
