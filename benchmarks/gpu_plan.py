"""Holds plans against GPUs: what `vit_jax.plan` predicts of each training step that a GPU was measured with.

    python -m benchmarks.gpu_plan --out benchmarks/results/plan-gpu.json

It reads the results of `benchmarks.throughput`, and compiles the same steps for the same GPU, which need not be there:
`pip install "vit_jax[cuda]"` brings the compiler. What was measured should come from the same code.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine, tables
from benchmarks.workloads import Case
from vit_jax import command, log
from vit_jax.command import UserError
from vit_jax.plan import check_out, origin, plan, subject, topology, write
from vit_jax.plan.chips import GPUS


def measured(rows: Sequence[tables.Row]) -> list[tables.Row]:
    """Our training steps on GPUs that can be planned for, the newest of each."""
    known = {gpu.name for gpu in GPUS.values()}
    ours = [row for row in rows if row["kind"] == "throughput" and row["newest"] and row["contender"] == "ours"]
    ours = [row for row in ours if row["gpu"] and row["mode"] == "train" and "failed" not in row]
    return [row for row in ours if machine.in_table(row["device"]) in known]


def predicted(row: tables.Row) -> dict[str, Any]:
    """The plan of the step that a row measured, and what it measured."""
    (kind,) = [kind for kind, gpu in GPUS.items() if gpu.name == machine.in_table(row["device"])]
    kernel = [f"model.attention={row['attention']}"] if row.get("attention") else []
    case = Case(*(row[field] for field in Case.__dataclass_fields__))
    changed = [f"model.dtype={row['dtype']}", *row["overrides"], *kernel]
    found = plan(subject.prepare(case.config([*row["overrides"], *kernel])), topology.describe(f"{kind}:1"))
    took = {"step_seconds": statistics.median(row["seconds_per_step"]), "peak_bytes": row["peak_bytes"]}
    about = {"config": f"benchmarks/workloads.py:{row['model']}", "overrides": changed, "sweep": [], "assumed": []}
    return origin() | found | about | {"measured": took}


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m benchmarks.gpu_plan", description="Plans beside what GPUs measured.")
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="folder of the JSON files")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    flags, overrides = parser.parse(argv)
    if overrides:
        raise UserError(f"--config.{overrides[0]}: this command takes no overrides; leave it out")
    check_out(flags.out)
    rows = measured(tables.read(flags.results))
    if not rows:
        raise UserError(f"--results {flags.results}: nothing there was measured on {', '.join(GPUS)}")
    topology.prepare(["h100:1"])
    found, console = [], Console(highlight=False)
    for row in rows:
        found.append(predicted(row))
        write(flags.out, found)
        took = found[-1]["measured"]
        times = [f"{1000 * seconds:.1f} ms" for seconds in (found[-1]["step_seconds"], took["step_seconds"])]
        sizes = [log.human_bytes(size) for size in (found[-1]["memory"]["total"], took["peak_bytes"])]
        console.print(
            f"{row['model']}, batch {row['batch_size']}: {times[0]} and {sizes[0]} predicted, "
            f"{times[1]} and {sizes[1]} measured",
            soft_wrap=True,
        )
    return command.DONE


if __name__ == "__main__":
    command.run(main)
