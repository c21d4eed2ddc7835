"""What growth costs on one machine's cores: more processes, more simulated devices, more layers under `model.scan`.

    python -m benchmarks.growth                        # configs/cifar10.py:tiny, and ViT-Ti/16 for the layers
    python -m benchmarks.growth --config configs/digits.py --processes 1,2,4 --devices 1,2 --layers ""

Each speed is that of a training run of its own, `launch/local.sh N` or one process with N simulated devices, as its log
says it. They take turns, and the median over the rounds counts. All share the same cores: the sum over processes or
devices cannot grow, so that what is lost is what growth costs. The bytes that a step adds up over the devices are the
compiler's (`vit_jax.plan`), and the time to compile is that of the train step, without a cache.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine
from benchmarks.throughput import Worker, ceiling, list_of, of_device
from benchmarks.workloads import REPOSITORY, Case
from vit_jax import command, config, log
from vit_jax.command import UserError

LAYERS_OF = Case("vit/Ti16", "train", "float32", 8)
LOG_LINES = 4  # of a run; the first one's speed does not count


def train(words: Sequence[str], steps: int, *, processes: int = 0, devices: int = 0) -> float:
    """Images/s of a run: so many processes, else one with so many simulated devices."""
    env = os.environ | {"PYTHON": sys.executable}  # the launcher's processes run in this one's environment
    if processes:
        env["JAX_NUM_CPU_DEVICES"] = "1"  # of each: one that is alone would make a device of every core
    if devices:
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    start = ["launch/local.sh", str(processes)] if processes else [sys.executable, "-m", "vit_jax.main"]
    every = max(1, steps // LOG_LINES)
    with tempfile.TemporaryDirectory() as folder:
        given = [f"train.steps={steps}", f"log.every_steps={every}", "data.validation=none"]
        given += ["optim.warmup_epochs=0", "optim.warmup_steps=0"]  # longer than so short a run
        command_line = [*start, *words, *(f"--config.{field}" for field in given), "--workdir", folder]
        done = subprocess.run(command_line, cwd=REPOSITORY, env=env, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no message"]
            raise UserError(
                f"{' '.join([*start, *words])} ended with {done.returncode}: {' / '.join(said[-2:])[-500:]}"
            )
        lines = log.read_metrics(Path(folder) / "metrics.jsonl")
    speeds = [line["train/images_per_second"] for line in lines if "train/images_per_second" in line]
    return statistics.median(speeds[1:] or speeds)


def added_up(words: Sequence[str], devices: Sequence[int]) -> dict[int, int]:
    """The bytes that one step sums over so many devices, as the compiler's program has it."""
    topologies = ",".join(f"cpu:{number}" for number in devices)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "plan.json"
        plan = [sys.executable, "-m", "vit_jax.plan", *words, "--topology", topologies, "--out", str(out)]
        done = subprocess.run(plan, cwd=REPOSITORY, capture_output=True, text=True)
        if done.returncode:
            raise UserError((done.stderr.strip().splitlines() or ["the plan ended without a message"])[-1][:300])
        rows = json.loads(out.read_text())
    return {row["devices"]: row["collectives"].get("all-reduce", {}).get("bytes", 0) for row in rows}


def compile_seconds(layers: int) -> float:
    """Of the train step of a model with so many layers, under `model.scan`."""
    overrides = [f"model.depth={layers}", "model.scan=true"]
    job = {"contender": "ours", "case": vars(LAYERS_OF), "keep_freed": True, "overrides": overrides}
    with Worker(job) as worker:
        return worker.answer()["compile_seconds"]


def numbers(text: str, flag: str) -> list[int]:
    """Different positive numbers, comma-separated; none for an empty text."""
    values = list_of(text, flag) if text.strip() else []
    if not all(value.isdigit() and int(value) for value in values):
        raise UserError(f"{flag} {text!r}: expected positive numbers, comma-separated")
    return [int(value) for value in values]


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m benchmarks.growth", description="Measures what growth costs.")
    parser.add_argument("--config", default="configs/cifar10.py:tiny", help="what is trained")
    parser.add_argument("--processes", default="1,2", help='of launch/local.sh ("": none)')
    parser.add_argument("--devices", default="1,2,4,8", help='simulated, in one process ("": none)')
    parser.add_argument("--layers", default="12,48", help='of ViT-Ti/16 under model.scan, compiled ("": none)')
    parser.add_argument("--steps", type=int, default=40, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder of the JSON file")
    flags, overrides = parser.parse(argv)
    processes, devices, layers = (
        numbers(getattr(flags, name), f"--{name}") for name in ("processes", "devices", "layers")
    )
    if flags.steps < 1 or flags.rounds < 1:
        raise UserError(f"--steps {flags.steps}, --rounds {flags.rounds}: expected positive numbers")
    given = config.load(flags.config, overrides)
    for number in (*processes, *devices):
        if given.train.batch_size % number:
            raise UserError(f"train.batch_size={given.train.batch_size} cannot be divided by {number}")
    words = ["--config", flags.config, *(f"--config.{override}" for override in overrides)]
    os.environ["JAX_PLATFORMS"] = "cpu"  # whose devices alone can be simulated
    console = Console(highlight=False)
    results = machine.Results("growth", flags.out, **of_device(ceiling()))

    def add(what: str, number: int, rounds: Sequence[float], field: str, **others: Any) -> None:
        results.add({"what": what, "number": number, field: statistics.median(rounds), "rounds": rounds} | others)

    runs = [("processes", number) for number in processes] + [("devices", number) for number in devices]
    speeds: dict[tuple[str, int], list[float]] = {run: [] for run in runs}
    for _ in range(flags.rounds):
        for what, number in runs:
            speeds[what, number].append(train(words, flags.steps, **{what: number}))
            console.print(f"{number} {what}: {speeds[what, number][-1]:,.0f} images/s", soft_wrap=True)
    trained = {"config": flags.config, "overrides": overrides, "batch_size": given.train.batch_size}
    summed = added_up(words, devices) if devices else {}
    for (what, number), found in speeds.items():
        of_step = {"all_reduced_bytes": summed[number]} if what == "devices" else {}
        add(what, number, found, "images_per_second", **trained, **of_step)
    compiled: dict[int, list[float]] = {number: [] for number in layers}
    for _ in range(flags.rounds):
        for number, found in compiled.items():
            found.append(compile_seconds(number))
            console.print(f"{number} layers: compiled in {found[-1]:.1f} s")
    for number, found in compiled.items():
        add("layers", number, found, "compile_seconds", model=LAYERS_OF.model, batch_size=LAYERS_OF.batch_size)
    console.print(f"wrote {results.path.name}")
    return command.DONE


if __name__ == "__main__":
    command.run(main)
