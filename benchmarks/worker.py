"""One contender in a process of its own, so that thread pools and allocators do not meet.

python -m benchmarks.worker JOB: prepares, compiles and warms up the contender that the JSON object JOB describes, and
prints a line of facts. Then each line N on stdin makes it do N steps, and print the seconds that they took: by the
clock, and of all cores together. Answers begin with `@`; other lines are the libraries' own.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.workloads import Case
from vit_jax import command, memory


def create(name: str) -> Any:
    """The class of a contender: parameters, compile_seconds, run(steps), peak_bytes(); its libraries come only here."""
    if name == "ours":
        from benchmarks.step import Step

        return Step
    if name == "flax":
        from benchmarks.textbook import Flax

        return Flax
    from benchmarks.torch_peer import Compiled, Torch

    return Compiled if name == "torch.compile" else Torch


def timed(contender: Any, steps: int) -> dict[str, float]:
    """Seconds by the clock, of work of all cores for this process, and those that our host spent on batches."""
    began, cpu, fed = time.perf_counter(), time.process_time(), getattr(contender, "input_seconds", None)
    contender.run(steps)
    found = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    return found if fed is None else {**found, "input_seconds": getattr(contender, "input_seconds", 0.0) - fed}


def answer(content: Any) -> None:
    print(f"@{json.dumps(content)}", flush=True)


def main(argv: Sequence[str]) -> int:
    job = json.loads(argv[0])
    if job["contender"] in ("device", "ceiling"):
        from benchmarks import machine

        answer(machine.device() if job["contender"] == "device" else machine.matmul_ceiling(job["dtype"]))
        return command.DONE
    if job["keep_freed"]:
        memory.keep_freed()
    kind = create(job["contender"])
    ready = kind(Case(**job["case"]), job["overrides"])
    ready.run(1)
    ready.run(1)
    known = ("parameters", "compile_seconds", "flops_per_image", "attention", "attention_seconds")
    facts = {name: value for name in known if (value := getattr(ready, name, None))}
    facts |= {"peak_bytes": ready.peak_bytes(), "step_seconds": timed(ready, 1)["seconds"]}
    answer(facts)
    for line in sys.stdin:
        answer(timed(ready, int(line)))
    return command.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
