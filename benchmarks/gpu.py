"""The list for a rented GPU machine, unattended, in the order of importance: python -m benchmarks.gpu --minutes 9.

Each step is a command of its own with a time limit, and what it has measured by then is in its file. A step for which
no time is left is not started: `--begin N` goes on at step N another day.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.workloads import REPOSITORY, check_positive, no_overrides
from vit_jax import command

QUICK = "--turn 1 --rounds 5 --together"
BOTH = "--peer torch --peer torch.compile"
RANDAUGMENT = "--config.augment.crop_area=(0.05,1.0) --config.augment.flip=0.5 --config.augment.policy=randaugment"
FLAG = "XLA_FLAGS=--xla_gpu_enable_triton_gemm=false"
STEPS = (  # the most minutes, then variables of the environment, and the words after `python -m benchmarks.`
    f"2.0 throughput --models vit/B16 --batch-sizes 128 {BOTH} --peer flax {QUICK}",
    f"2.5 throughput --models cifar10:vit --batch-sizes 512,2048 {BOTH} --peer flax {QUICK}",
    f"1.5 throughput --models vit/S16 --batch-sizes 256 {BOTH} {QUICK}",
    f"2.0 throughput --models vit/L16 {QUICK}",
    "1.5 trace --models vit/B16",
    f"1.5 throughput --models vit/S16 --batch-sizes 256 {RANDAUGMENT} {QUICK}",
    f"1.5 {FLAG} throughput --models vit/B16 --batch-sizes 128 {QUICK}",
    "1.0 trace --models cifar10:vit",
    f"1.5 throughput --models vit/B16 --batch-sizes 128 --config.model.attention=plain {QUICK}",
    f"2.5 throughput --models vit/B16,vit/L16 --modes inference {QUICK}",
    "1.5 input --data synthetic/160x160x3/10/10000 --peer torch --turn 3 --rounds 3",
    f"5.0 throughput --models resnet/50,cifar10:cnn,vit/Ti16 {BOTH} {QUICK}",
    f"2.5 throughput --models vit/B16 --batch-sizes 256,512 {QUICK}",
    f"2.0 throughput --models vit/L16 --batch-sizes 256 --config.model.remat=dots {QUICK}",
    f"2.5 throughput --models cifar10:vit --dtypes float32 {BOTH} --peer flax {QUICK}",
    f"5.0 throughput --models vit/Ti16,vit/S16,resnet/50 --modes inference {BOTH} {QUICK}",
)


def timed(text: str, seconds: float, out: Path) -> int:
    """The exit code of a step; 137 if it ran out of time: it is then ended with all that it started."""
    words = text.split()
    at = next(i for i, word in enumerate(words) if "=" not in word)
    module = [sys.executable, "-m", f"benchmarks.{words[at]}", *words[at + 1 :], "--out", str(out.resolve())]
    limit = ["timeout", "-s", "KILL", f"{seconds:.1f}", "env"]
    code = subprocess.run([*limit, *words[:at], *module], cwd=REPOSITORY).returncode
    return 128 - code if code < 0 else code  # `timeout` kills itself, too


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m benchmarks.gpu", description="Measures the whole list on a GPU machine.")
    parser.add_argument("--minutes", type=float, default=30.0, help="for all of it (default: 30)")
    parser.add_argument("--begin", type=int, default=1, metavar="N", help="with this step (default: 1)")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder of the JSON files")
    flags, overrides = parser.parse(argv)
    no_overrides(overrides)
    check_positive(flags, "minutes", "begin")
    ends, done = time.monotonic() + 60 * flags.minutes, 0
    for number, step in list(enumerate(STEPS, 1))[flags.begin - 1 :]:
        minutes, text = step.split(" ", 1)
        left = ends - time.monotonic()
        if left < 20:
            print(f"no time left for step {number}: {text}")
            continue
        print(f"{number}: {text}", flush=True)
        if code := timed(text, min(60 * float(minutes), left), flags.out):
            print(f"exit code {code}, out of time if 137", flush=True)
        done += code == 0
    return command.DONE if done else command.FAULT


if __name__ == "__main__":
    command.run(main)
