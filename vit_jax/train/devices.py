"""What a run asks of its devices before JAX touches them: kernels that repeat their bits, and how many a CPU is."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from vit_jax import compilation, distributed, platforms, sharding
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Data, open_data
from vit_jax.data.batching import steps_per_epoch
from vit_jax.files import write_atomically
from vit_jax.train.experiment import make_task, with_data
from vit_jax.train.flops import flops_per_step
from vit_jax.train.inputs import check_data, num_steps
from vit_jax.train.start import default_size
from vit_jax.train.timing import time_devices
from vit_jax.workdir import Workdir

LONG_FLOPS, LONG_SECONDS = 1e14, 900  # of a training: about 15 minutes on two cores


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
    """Makes one device of a CPU, or one of each core, whichever trains faster, and tells; call it as the above.

    A run that began keeps what it has. For a new one the steps of both are timed, once for a model, a batch and a
    machine: see `time_devices`. Only for a training of more than `LONG_FLOPS` or `LONG_SECONDS`, which can win back
    the 20 seconds that it takes, and not with `train.deterministic`, which a clock is not: else each core is a device.
    """
    if (cores := _cores([given])) == 1:
        return
    began = [n for n in (1, cores) if workdir.device() == f"{n} x {sharding.processor_name()}"]
    fastest = began[0] if began else cores if given.train.deterministic else _fastest(given, cores, console)
    if fastest == cores:
        platforms.divide(cores)


def _cores(runs: Sequence[Config]) -> int:
    if distributed.find(os.environ) is not None or any(config.mesh != sharding.Settings() for config in runs):
        return 1
    return platforms.divisible(config.train.batch_size // config.train.accumulate for config in runs)


def _fastest(given: Config, cores: int, console: Console) -> int:
    """1 or `cores`; `cores` where it does not pay to find out."""
    try:
        data = open_data(given.data, default_size(given, None))
        check_data(given, data)
        seconds = _read(file := _remembered(given, data, cores))
        if not (seconds or _is_long(given, data)):
            return cores
    except UserError:  # which the start will say
        return cores
    if not seconds:
        console.print(f"Timing steps on 1 device and on {cores}, once for such a model and batch ...", soft_wrap=True)
        seconds = time_devices(given, (1, cores))
    if set(seconds) != {1, cores}:
        console.print(f"They cannot be timed here: {cores} devices are taken", soft_wrap=True)
        return cores
    _write(file, seconds)
    fastest = min(seconds, key=lambda devices: seconds[devices])
    times = " and ".join(f"{1000 * time:.3g} ms on {devices}" for devices, time in seconds.items())
    taken = "1 is taken" if fastest == 1 else f"{cores} are taken, one a core"
    console.print(f"A step takes {times} devices of this CPU: {taken}", soft_wrap=True)
    return fastest


def _is_long(given: Config, data: Data) -> bool:
    """Whether the training is worth a look at the clock before."""
    train = given.train
    if train.seconds or train.flops:
        return train.seconds > LONG_SECONDS or train.flops > LONG_FLOPS
    prepared = with_data(given, data, None)
    prepared = prepared.with_model(dtype="float32")  # which changes no number of operations
    task = make_task(prepared, data.class_names, data.preprocessing.shape)
    steps = num_steps(given, steps_per_epoch(train.batch_size, data.size("train")))
    return steps * flops_per_step(prepared, task) > LONG_FLOPS


def _remembered(given: Config, data: Data, cores: int) -> Path:
    """The file of this machine, and of all that the time of a step depends on most."""
    train, sizes = given.train, [data.preprocessing.shape, given.augment.resize, len(data.class_names)]
    kind = [given.model, given.task, train.batch_size, train.accumulate, sizes, given.optim.name]
    text = json.dumps([kind, cores, version("jaxlib")], sort_keys=True, default=str)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    return compilation.user_cache() / "devices" / compilation.processor() / f"{name}.json"


def _read(file: Path) -> dict[int, float]:
    """Seconds by numbers of devices; {} of a file that is missing or damaged: then they are timed anew."""
    try:
        return {int(devices): float(seconds) for devices, seconds in json.loads(file.read_bytes()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write(file: Path, seconds: dict[int, float]) -> None:
    with contextlib.suppress(OSError):  # the next start measures again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(seconds) + "\n")
