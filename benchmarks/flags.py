"""What XLA's flags gain: one train step, compiled with each, timed in turns.

    python -m benchmarks.flags --model vit/B16 --flags xla_gpu_enable_triton_gemm=false --flags xla_gpu_autotune_level=2

A set of flags is comma-separated, as XLA_FLAGS has them, without the dashes. One that XLA does not know, or cannot
compile with, is told, and the others are measured.
"""

import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import device, machine, tables
from benchmarks.ours import Ours
from benchmarks.throughput import Timer, in_turns
from benchmarks.worker import WARM_UP_STEPS, timed
from benchmarks.workloads import add_case, training_case
from vit_jax import command
from vit_jax.command import UserError

DEFAULT = "as they are"


def read(text: str) -> dict[str, bool | int | str]:
    """A set of flags, its values as JAX's `compiler_options` wants them."""
    pairs = [pair.strip().removeprefix("--").partition("=") for pair in text.split(",")]
    if not all(name.startswith("xla_") and value for name, _, value in pairs):
        raise UserError(f"--flags {text!r}: expected XLA's names with values, e.g. xla_gpu_enable_triton_gemm=false")
    words = {"true": True, "false": False}
    return {name: words.get(value, int(value) if value.isdigit() else value) for name, _, value in pairs}


def compiled(ours: Ours, flags: Mapping[str, bool | int | str]) -> Any:
    """The step with these flags, or why there is none."""
    try:
        return ours.lowered.compile(compiler_options=dict(flags))
    except Exception as error:  # whatever the compiler says; the other flags are measured all the same
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def timer(ours: Ours, step: Any) -> Timer:
    """Times so many runs of one of the compiled steps, on the state that all share."""

    def run(steps: int) -> dict[str, float]:
        ours.step = step
        return timed(ours, steps)

    return run


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m benchmarks.flags", description="What XLA's flags gain.")
    add_case(parser, "vit/B16")
    parser.add_argument("--flags", action="append", required=True, metavar="NAME=VALUE[,...]", help="repeat for more")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="in a turn")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder of the JSON file")
    flags, overrides = parser.parse(argv)
    if min(flags.rounds, flags.steps) < 1:
        raise UserError(f"--rounds {flags.rounds}, --steps {flags.steps}: expected positive numbers")
    training_case(flags, gpu=False)  # a mistake is told before a device is touched
    sets = {text: read(text) for text in flags.flags}
    about, console = device.describe(), Console(highlight=False)
    case = training_case(flags, about["gpu"])
    results = machine.Results("flags", flags.out, **about)
    ours = Ours(case, overrides)
    with ThreadPoolExecutor(machine.cores()) as pool:
        found = dict(zip(sets, pool.map(lambda one: compiled(ours, one), sets.values()), strict=True))
    failed = {name: step for name, step in found.items() if isinstance(step, str)}
    steps = {DEFAULT: ours.step} | {name: step for name, step in found.items() if name not in failed}
    timers = {name: timer(ours, step) for name, step in steps.items()}
    for warm_up in timers.values():
        warm_up(WARM_UP_STEPS)
    found_times, _ = in_turns(timers, dict.fromkeys(timers, flags.steps), flags.rounds)
    times = {name: [turn["seconds"] for turn in turns] for name, turns in found_times.items()}
    for name in (DEFAULT, *sets):
        row: dict[str, Any] = {**vars(case), "overrides": overrides, "flags": name}
        if name in failed:
            results.add(row | {"failed": failed[name]})
            console.print(f"{name}: failed: {failed[name]}", soft_wrap=True)
            continue
        speed = statistics.median(tables.ratios(times[name], times[DEFAULT]))
        results.add(row | {"seconds_per_step": times[name], "speed": speed})
        console.print(f"{name}: {1000 * statistics.median(times[name]):.2f} ms, {speed:.3f} times", soft_wrap=True)
    console.print(f"wrote {results.path.name}")
    return command.DONE


if __name__ == "__main__":
    command.run(main)
