"""Holds plans against GPUs: what `vit_jax.plan` predicts of each training step that a GPU was measured with.

    python -m benchmarks.gpu_plan
    python -m benchmarks.gpu_plan --newer   # the code has changed since

It reads the results of `benchmarks.throughput`, and compiles the same steps for the same GPU, which need not be there:
`pip install "vit_jax[cuda]"` brings the compiler. A measurement counts only beside a plan of the same code; `--newer`
leaves it out, and the tables then hold the two codes' kernels beside each other.
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


def predicted(row: tables.Row, *, newer: bool = False) -> dict[str, Any]:
    """The plan of the step that a row measured, and what it measured, unless the code is newer."""
    (kind,) = [kind for kind, gpu in GPUS.items() if gpu.name == machine.in_table(row["device"])]
    kernel = [f"model.attention={row['attention']}"] if row.get("attention") else []
    case = Case(*(row[field] for field in Case.__dataclass_fields__))
    changed = [f"model.dtype={row['dtype']}", *row["overrides"], *kernel]
    found = plan(subject.prepare(case.config([*row["overrides"], *kernel])), topology.describe(f"{kind}:1"))
    took = {"step_seconds": statistics.median(row["seconds_per_step"]), "peak_bytes": row["peak_bytes"]}
    about = {"config": f"benchmarks/workloads.py:{row['model']}", "overrides": changed, "sweep": [], "assumed": []}
    return origin() | found | about | {"measured": {} if newer else took}


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m benchmarks.gpu_plan", description="Plans beside what GPUs measured.")
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="folder of the JSON files")
    parser.add_argument("--out", type=Path, help="the JSON file (default: plan-gpu.json or plan-gpu-newer.json there)")
    parser.add_argument("--newer", action="store_true", help="the code is not that which was measured")
    flags, overrides = parser.parse(argv)
    if overrides:
        raise UserError(f"--config.{overrides[0]}: this command takes no overrides; leave it out")
    out = flags.out or flags.results / ("plan-gpu-newer.json" if flags.newer else "plan-gpu.json")
    check_out(out)
    rows = measured(tables.read(flags.results))
    if not rows:
        raise UserError(f"--results {flags.results}: nothing there was measured on {', '.join(GPUS)}")
    topology.prepare(["h100:1"])
    found, console = [], Console(highlight=False)
    for row in rows:
        found.append(predicted(row, newer=flags.newer))
        write(out, found)
        console.print(f"{row['model']}, batch {row['batch_size']}: {_told(found[-1])}", soft_wrap=True)
    return command.DONE


def _told(found: dict[str, Any]) -> str:
    took = found["measured"]
    said = [f"{_amount(found['step_seconds'], found['memory']['total'])} predicted"]
    said += [f"{_amount(took['step_seconds'], took['peak_bytes'])} measured"] if took else []
    return ", ".join(said)


def _amount(seconds: float, size: int) -> str:
    return f"{1000 * seconds:.1f} ms and {log.human_bytes(size)}"


if __name__ == "__main__":
    command.run(main)
