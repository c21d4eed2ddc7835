"""One contender in a process of its own, so that thread pools and allocators do not meet.

python -m benchmarks.worker JOB: prepares, compiles and warms up what the JSON object JOB describes, prints a line of
facts, then waits: for each line N on stdin it does N steps and prints the seconds that they took, by the clock and of
all cores together. Other output of the libraries does not matter: the answers begin with `@`.
"""

import json
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

from benchmarks.workloads import Case
from vit_jax import command, memory

WARM_UP_STEPS = 2


class Contender(Protocol):
    parameters: int
    compile_seconds: float

    def run(self, steps: int) -> None: ...

    def peak_bytes(self) -> int | None: ...


def create(name: str, case: Case, overrides: list[str]) -> Contender:
    """The contender of that name, compiled; its libraries are imported only here."""
    if name == "ours":
        from benchmarks.ours import Ours

        return Ours(case, overrides)
    if name == "flax":
        from benchmarks.flax_peer import Flax

        return Flax(case)
    from benchmarks.torch_peer import Torch

    return Torch(case, compiled=name == "torch.compile")


def facts(contender: Contender) -> dict[str, Any]:
    """What is known of a contender that has warmed up."""
    found = {
        "parameters": contender.parameters,
        "compile_seconds": contender.compile_seconds,
        "peak_bytes": contender.peak_bytes(),
        "resident_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    of_ours = ("flops_per_image", "attention", "attention_seconds")
    return found | {name: value for name in of_ours if (value := getattr(contender, name, None))}


def timed(contender: Contender, steps: int) -> dict[str, float]:
    """Seconds by the clock, those that the cores worked for this process, and those that the host spent on batches."""
    began, cpu, fed = time.perf_counter(), time.process_time(), getattr(contender, "input_seconds", None)
    contender.run(steps)
    found = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    return found if fed is None else {**found, "input_seconds": getattr(contender, "input_seconds", 0.0) - fed}


def answer(content: Any) -> None:
    print(f"@{json.dumps(content)}", flush=True)


def main(argv: Sequence[str]) -> int:
    job = json.loads(argv[0])
    if job["contender"] == "ceiling":
        from benchmarks import device

        about = device.describe()
        dtype = job["dtype"] or ("bfloat16" if about["gpu"] else "float32")
        answer({**about, "dtype": dtype, **device.matmul_ceiling(dtype)})
        return command.DONE
    if job["keep_freed"]:
        memory.keep_freed()
    contender = create(job["contender"], Case(**job["case"]), job["overrides"])
    contender.run(WARM_UP_STEPS)
    answer({**facts(contender), "step_seconds": timed(contender, 1)["seconds"]})
    for line in sys.stdin:
        answer(timed(contender, int(line)))
    return command.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
