"""What a run asks of its devices before JAX touches them: kernels that repeat their bits, and how many a CPU is."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from vit_jax import compilation, distributed, download, platforms, sharding
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Data
from vit_jax.data.batching import steps_per_epoch
from vit_jax.files import write_atomically
from vit_jax.train import check_workdir
from vit_jax.train.experiment import make_task, with_data
from vit_jax.train.flops import flops_per_step
from vit_jax.train.inputs import check_data, num_steps, open_or_prepare
from vit_jax.train.start import default_size
from vit_jax.train.timing import NotTimed, time_devices
from vit_jax.workdir import Workdir

LONG_FLOPS, LONG_SECONDS = 1e14, 900  # of a training: 10 to 30 minutes on two cores


def prefer_determinism(config: Config) -> None:
    """Asks XLA for bit-reproducible GPU kernels, if the configuration does; call it before a device is touched."""
    flag = "--xla_gpu_deterministic_ops=true"
    if config.train.deterministic and flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def use_every_core(runs: Sequence[Config]) -> None:
    """Makes a device of each of a CPU's cores, if the batches of all runs can be divided; call it as the above.

    Not where a configuration says what its mesh is, nor in one of several processes. See `platforms.divisible`.
    """
    if (cores := _cores(runs)) > 1:
        platforms.divide(cores)


def use_fastest(given: Config, workdir: Workdir, console: Console) -> None:
    """Makes one device of a CPU, or one of each core, whichever trains faster, and says so; call it as the above.

    A run that began keeps what it has. For a new one the steps of both are timed, once for a model, a batch and a
    machine: see `time_devices`. That takes up to three minutes. So only a training of more than `LONG_FLOPS` or
    `LONG_SECONDS` waits for it; others use each core. So do runs with `train.deterministic`, which no clock may change,
    and those whose images have the size of their weights or several sizes.
    """
    if (cores := _cores([given])) == 1:
        return
    known = given.train.deterministic or given.init.weights or given.train.image_sizes
    if workdir.has_begun():
        if not (before := workdir.device()):
            text = f"On how many devices this run began is not known: it goes on with {cores}, one for each core"
            console.print(text, soft_wrap=True)
        devices = 1 if before.startswith("1 x CPU") else cores
    else:
        devices = cores if known else _fastest(given, workdir, cores, console)
    if devices == cores:
        platforms.divide(cores)


def _cores(runs: Sequence[Config]) -> int:
    if distributed.find(os.environ) is not None or any(config.mesh != sharding.Settings() for config in runs):
        return 1
    return platforms.divisible(config.train.batch_size // config.train.accumulate for config in runs)


def _fastest(given: Config, workdir: Workdir, cores: int, console: Console) -> int:
    """1 or `cores`; `cores` where it does not pay to find out."""
    try:
        check_workdir(given, workdir)
        data = open_or_prepare(given, console, default_size(given, None))
        check_data(given, data)
        seconds = _read(file := _remembered(given, data, cores))
        if seconds is None and not _is_long(given, data):
            return cores
    except UserError:  # which the start will say
        return cores
    if seconds is None:
        console.print(f"Timing steps on 1 device and on {cores}, once for such a model and batch ...", soft_wrap=True)
        try:
            seconds = time_devices(given, (1, cores))
        except NotTimed as reason:
            text = f"The steps could not be timed ({reason}): training uses {cores} devices, one for each core"
            console.print(text, soft_wrap=True, markup=False)
            seconds = {}
        _write(file, seconds)
    if not seconds:
        return cores
    fastest = min(seconds, key=lambda devices: seconds[devices])
    times = " and ".join(f"{1000 * time:,.0f} ms on {devices}" for devices, time in seconds.items())
    used = "1 device" if fastest == 1 else f"{cores} devices, one for each core"
    console.print(f"A step takes {times} devices of this CPU: training uses {used}", soft_wrap=True)
    return fastest


def _is_long(given: Config, data: Data) -> bool:
    """Whether the training is worth a look at the clock before. Touches no device."""
    train = given.train
    if train.seconds or train.flops:
        return train.seconds > LONG_SECONDS or train.flops > LONG_FLOPS
    task = make_task(with_data(given, data, None), data.class_names, data.preprocessing.shape)
    steps = num_steps(given, steps_per_epoch(train.batch_size, data.size("train")))
    return steps * flops_per_step(given, task) > LONG_FLOPS


def _remembered(given: Config, data: Data, cores: int) -> Path:
    """The file of this machine, and of all that the time of a step depends on most."""
    train, optim, sizes = given.train, given.optim, [data.preprocessing.shape, given.augment.resize]
    kind = [given.model, given.task, given.distill, len(data.class_names), sizes]
    step = [train.batch_size, train.accumulate, optim.name, optim.sam_rho, cores, version("jaxlib")]
    name = hashlib.sha256(json.dumps([kind, step], sort_keys=True, default=str).encode()).hexdigest()[:16]
    return download.cache_dir() / "devices" / compilation.processor() / f"{name}.json"


def _read(file: Path) -> dict[int, float] | None:
    """Seconds by numbers of devices; {} where they cannot be timed, None of a file that is missing or damaged."""
    try:
        return {int(devices): float(seconds) for devices, seconds in json.loads(file.read_bytes()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _write(file: Path, seconds: dict[int, float]) -> None:
    with contextlib.suppress(OSError):  # the next start measures again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(seconds) + "\n")
