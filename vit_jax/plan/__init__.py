"""Plans a run without the machine: compiles its real train step for a described one, and reads the answer off.

    python -m vit_jax.plan --config configs/imagenet.py:vit_b16 --topology v3:16x16,v5e:16x16 --price 1.2
    python -m vit_jax.plan --config configs/scaling.py:vit_g14 --topology v5p:8x8x4 --sweep mesh.fsdp=8,64
    python -m vit_jax.plan --config configs/imagenet.py:vit_b16 --topology h100:8 --config.model.attention=cudnn
    python -m vit_jax.plan --config configs/digits.py --topology cpu:1 --measure

TPUs and GPUs need only their compiler (`pip install "vit_jax[tpu]"`, `"vit_jax[cuda]"`), and `cpu:8` simulates eight
devices. `topology` describes the machine, of `chips`, `subject` the step on it, `hlo`, `kernels` and `collectives` read
the compiled program, `memory` and `timing` say what it takes, `measure` holds that against a real CPU.
"""

import contextlib
import datetime
import importlib.metadata
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from vit_jax import command, compilation, config, flops, sharding, trees
from vit_jax.command import UserError
from vit_jax.config.sweep import combinations
from vit_jax.plan import collectives, hlo, kernels, measure, memory, subject, table, timing, topology
from vit_jax.plan.memory import Memory
from vit_jax.plan.subject import Planned, Subject
from vit_jax.plan.timing import StepTime
from vit_jax.plan.topology import Machine

__all__ = ["main", "plan"]


def plan(planned: Planned, machine: Machine, *, price: float = 0.0, measured_steps: int = 0) -> dict[str, Any]:
    """What the configuration's train step takes on the machine; `price` in dollars per chip and hour.

    `measured_steps`: so many steps are really run (only on `cpu:N`). Memory is that of one core.
    """
    built = subject.build(planned, machine)
    start = time.perf_counter()
    compiled, needed = compile_step(built)
    seconds = time.perf_counter() - start
    found = describe(built) | {"assumed": [*planned.assumed, *subject.untimed(built)], "compile_seconds": seconds}
    found["memory"] = asdict(needed) | {"total": needed.total, "fits": needed.fits}
    state, mesh = built.experiment.abstract_state, built.experiment.mesh
    found["advice"] = memory.advice(planned.inputs.config, needed, state, mesh)
    found |= modelled(built, compiled, price)
    found["measured"] = measure.run_steps(built, compiled, measured_steps) if measured_steps else {}
    return found


def compile_step(built: Subject) -> tuple[Any, Memory]:
    """The compiled step (None where the compiler refused it, for want of memory), and the memory of a core."""
    experiment, capacity = built.experiment, built.machine.memory
    state, arguments = memory.of_arguments(experiment.arguments, experiment.mesh, experiment.rules)
    try:
        with compilation.keeping(built.machine.chip is None):
            compiled = experiment.train_step.lower(*experiment.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        refused = memory.of_refusal(str(error), state, arguments, capacity)
        if refused is None:
            raise
        return None, refused
    return compiled, memory.of_program(compiled.memory_analysis(), state, capacity)


def describe(built: Subject) -> dict[str, Any]:
    """What is known before anything is compiled."""
    run, machine = built.experiment, built.machine
    batch_size, model = run.config.train.batch_size, run.config.model
    return {
        "topology": machine.name,
        "devices": len(machine.devices),
        "chips": machine.chips,
        "device_kind": machine.devices[0].device_kind,
        "mesh": dict(run.mesh.shape),
        "model": model["name"],
        "dtype": model.get("dtype", "float32"),
        "remat": model.get("remat", ""),
        "parameters": trees.count(run.abstract_state.params),
        "flops_per_image": run.flops_per_image,
        "train_flops_per_image": flops.count(run.train_step, *run.arguments) / batch_size,
        "batch_size": batch_size,
        "images_per_core": batch_size / sharding.batch_shards(run.mesh),
        "steps": run.total_steps,
    }


def modelled(built: Subject, compiled: Any, price: float) -> dict[str, Any]:
    """Collectives, time and cost; empty where there is no program."""
    run, machine = built.experiment, built.machine
    if compiled is None:
        names = ("step_seconds", "link_seconds", "images_per_second", "mfu", "hours", "chip_hours", "cost")
        return {"collectives": {}, "kernels": {}, "method": "", **dict.fromkeys(names)}
    module = hlo.parse(compiled.as_text())
    exchanged = collectives.find(module, len(machine.devices))
    costs = compiled.cost_analysis() or {}  # a GPU's compiler makes none without its GPU
    step = time_of_step(built, module, costs, exchanged)
    budget = run.config.train.seconds
    hours = (budget or run.total_steps * step.seconds) / 3600
    per_second = run.config.train.batch_size / step.seconds
    peak = timing.peak(machine, run.config.model.get("dtype", "float32")) * machine.chips
    return {
        "collectives": collectives.summary(exchanged),
        "kernels": kernels.summary(module) if machine.has_gpus else {},
        "method": step.method,
        "step_seconds": step.seconds,
        "link_seconds": step.links,
        "images_per_second": per_second,
        "mfu": 3 * run.flops_per_image * per_second / peak if peak else None,
        "steps": run.total_steps or int(budget / step.seconds),
        "hours": hours,
        "chip_hours": hours * machine.chips,
        "cost": price * hours * machine.chips if price else None,
        "compiler": {k: costs.get(k) for k in ("flops", "bytes accessed", "optimal_seconds")},
        "loops_counted_once": module.unknown_loops(),
    }


def time_of_step(built: Subject, module: hlo.Module, costs: dict[str, float], exchanged: Sequence[Any]) -> StepTime:
    """The modelled time, by the method that the machine allows."""
    machine, devices = built.machine, len(built.machine.devices)
    products = flops.count(built.experiment.train_step, *built.experiment.arguments) / devices
    if machine.has_gpus:
        dtype = built.experiment.config.model.get("dtype", "float32")
        return timing.of_gpu(timing.work_of_kernels(module, products), exchanged, machine, dtype)
    work = timing.work(module, products, costs)
    if machine.chip:
        return timing.of_tpu(work, exchanged, machine)
    return timing.of_cpu(work, timing.measure_ceilings(), devices)


def main(argv: Sequence[str]) -> int:
    """Plans each combination of the sweeps on each topology.

    Those that cannot be are told below the table, and not written; raises `UserError` if that is all of them.
    """
    flags, overrides = _parser().parse(argv)
    if not 0 <= flags.price < math.inf:
        raise UserError(f"--price {flags.price:g} is no price; give dollars per chip and hour, e.g. 1.2")
    if min(flags.images, flags.classes) < 0:
        raise UserError("--images and --classes must not be negative")
    if flags.out:
        check_out(flags.out)
    names = topology.split_topologies(flags.topology)
    if flags.measure and not all(name.startswith("cpu:") for name in names):
        raise UserError("--measure runs the step on this machine; give only --topology cpu:N")
    if flags.data_dir:
        overrides.append(f"data.data_dir={flags.data_dir}")
    sizes = {"images": flags.images, "classes": flags.classes}
    planned = [
        (chosen, subject.prepare(config.load(flags.config, [*overrides, *chosen]), **sizes))
        for chosen in combinations(flags.sweep)
    ]
    topology.prepare(names)
    console = Console(highlight=False)
    rows: list[dict[str, Any]] = []
    left_out: list[tuple[str, UserError]] = []
    for name in names:
        machine = topology.describe(name)
        for chosen, given in planned:
            about = {"config": flags.config, "overrides": overrides, "sweep": chosen} | origin()
            try:
                with console.status(f"compiling for {' '.join([name, *chosen])}"):
                    rows.append(about | plan(given, machine, price=flags.price, measured_steps=5 * flags.measure))
            except UserError as mistake:  # e.g. more devices in the mesh than this machine has
                left_out.append((table.name(name, chosen), mistake))
                continue
            if flags.out:  # after each: a later one may fail
                write(flags.out, rows)
    if not rows:
        raise left_out[0][1]
    table.show(console, rows, left_out)
    return command.DONE


def _parser() -> command.Parser:
    parser = command.Parser(
        prog="python -m vit_jax.plan",
        description="Compiles a run's train step for a machine that is not there: memory, time and cost.",
        epilog="Any field of the configuration: --config.<group>.<field>=<value>, e.g. --config.mesh.fsdp=8. "
        "Of several plans, those that cannot be (a mesh larger than the machine) are left out, and told; "
        "the exit code is 0 if any was made, else 2.",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a file of configs/, or a config.json")
    parser.add_argument(
        "--topology", required=True, metavar="T,T", help="v3:4x4, v5e:16x16, v5p:8x8x4, h100:8 ...; cpu:8"
    )
    parser.add_argument("--sweep", action="append", default=[], metavar="FIELD=V,V", help="plan with each value")
    parser.add_argument("--price", type=float, default=0.0, help="dollars per chip and hour")
    parser.add_argument("--images", type=int, default=0, help="to train with, where the data set is not at hand")
    parser.add_argument("--classes", type=int, default=0, help="of it, likewise")
    parser.add_argument("--measure", action="store_true", help="cpu: run some steps, and compare")
    parser.add_argument("--out", type=Path, metavar="FILE", help="writes the plans as JSON, without those left out")
    parser.add_data_dir()
    return parser


def origin() -> dict[str, Any]:
    """When and where something was compiled, and the versions of what decides the answer."""
    versions = {}
    for name in ("jax", "libtpu", "jax-cuda12-pjrt", "jax-cuda13-pjrt"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"date": date, "machine": sharding.processor_name(), "versions": versions}


def check_out(path: Path) -> None:
    """Raises `UserError` where no file can be: compiling takes minutes, and comes first."""
    if path.is_dir() or not path.parent.is_dir():
        wrong = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise UserError(f"cannot write --out {path}: {wrong}; give a file in a folder that exists")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    try:
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write --out {path}: {error}; give a file in a folder that exists") from error
