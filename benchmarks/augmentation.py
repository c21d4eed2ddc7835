"""What augmentation costs: the train step with each way of looking at images, beside the step without any.

python -m benchmarks.augmentation --model vit/S16

Operations and bytes are the compiler's. Seconds are of rounds in which the steps take turns, and a share of them is the
median of what a round found; where rounds do not agree on its sign, noise hid it.
"""

import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import device, machine, tables
from benchmarks.ours import Ours
from benchmarks.worker import timed
from benchmarks.workloads import Case, add_case, training_case
from vit_jax import command, memory
from vit_jax.command import UserError

CROP = ("augment.crop_area=(0.05,1.0)", "augment.flip=0.5")
VIEWS = {
    "none": (),
    "crop and flip": CROP,
    "... and RandAugment(2, 9)": (*CROP, "augment.policy=randaugment"),
    "... and AutoAugment": (*CROP, "augment.policy=autoaugment_imagenet"),
    "... and TrivialAugment": (*CROP, "augment.policy=trivialaugment"),
    "... and 3-Augment, colour jitter": (*CROP, "augment.three_augment=true", "augment.brightness=0.3"),
    "... and erasing, MixUp or CutMix": (*CROP, "augment.erasing=0.25", "augment.mixup=0.8", "augment.cutmix=1"),
}
LOOPED = {"randaugment": 2, "autoaugment_imagenet": 2}  # operations in a loop, whose body the compiler counts once
COSTS = {"flops": "flops", "bytes": "bytes accessed"}


def prepared(case: Case, overrides: Sequence[str]) -> dict[str, Ours]:
    """The step of each view, compiled, with the attention kernel that the first one took."""
    plain, *others = VIEWS
    steps = {plain: Ours(case, [*overrides, *VIEWS[plain]])}
    same = [f"model.attention={steps[plain].attention}"] if steps[plain].attention_seconds else []
    with ThreadPoolExecutor(machine.cores()) as pool:
        built = pool.map(lambda name: Ours(case, [*overrides, *same, *VIEWS[name]]), others)
        steps |= dict(zip(others, built, strict=True))
    for step in steps.values():
        step.run(1)
    return steps


def costs(steps: dict[str, Ours]) -> dict[str, dict[str, float]]:
    """Operations and bytes of each step, a policy's loop counted as often as it turns."""
    counted = {name: step.step.cost_analysis() for name, step in steps.items()}
    found = {name: {key: cost.get(theirs, 0.0) for key, theirs in COSTS.items()} for name, cost in counted.items()}
    plain = dict(found["crop and flip"])
    for name, cost in found.items():
        policy = next((text.partition("=")[2] for text in VIEWS[name] if text.startswith("augment.policy=")), "")
        for key in COSTS:
            cost[key] += (LOOPED.get(policy, 1) - 1) * (cost[key] - plain[key])
    return found


def in_turns(steps: dict[str, Ours], rounds: int, number: int) -> dict[str, list[float]]:
    """Seconds of a step of each, round by round; every other round backwards, so that no step is always the later."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number_of_round in range(rounds):
        order = list(steps.items())
        for name, step in order[::-1] if number_of_round % 2 else order:
            times[name].append(timed(step, number)["seconds"] / number)
    return times


def rows(steps: dict[str, Ours], times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """One for each view: what its step takes, and which share of that the augmentation is."""
    counted = costs(steps)
    found = []
    for name in steps:
        shares = {key: 1 - counted["none"][key] / counted[name][key] for key in COSTS}
        shares["seconds"] = statistics.median(tables.shares(times["none"], times[name]))
        seconds = {"seconds_per_step": times[name], "seconds": statistics.median(times[name])}
        found.append({"view": name, "overrides": list(VIEWS[name]), **counted[name], **seconds, "shares": shares})
    return found


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m benchmarks.augmentation", description="What augmentation costs a step.")
    add_case(parser, "vit/S16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=0, help="in a turn (default: 10 on GPUs, else 1)")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder of the JSON file")
    flags, overrides = parser.parse(argv)
    if flags.rounds < 1 or flags.steps < 0:
        raise UserError(
            f"--rounds {flags.rounds}, --steps {flags.steps}: expected positive numbers (0 steps are the default)"
        )
    training_case(flags, gpu=False)  # a mistake is told before a device is touched
    memory.keep_freed()
    about, console = device.describe(), Console(highlight=False)
    gpu = about["gpu"]
    case = training_case(flags, gpu)
    results = machine.Results("augmentation", flags.out, **about)
    steps = prepared(case, overrides)
    times = in_turns(steps, flags.rounds, flags.steps or (10 if gpu else 1))
    for row in rows(steps, times):
        results.add({**vars(case), **row, "overrides": [*overrides, *row["overrides"]]})
        share = row["shares"]
        console.print(
            f"{row['view']}: {share['flops']:.1%} of the operations, {share['bytes']:.1%} of the bytes, "
            f"of the time {tables.share_text(tables.shares(times['none'], times[row['view']]))}",
            soft_wrap=True,
        )
    console.print(f"wrote {results.path.name}")
    return command.DONE


if __name__ == "__main__":
    command.run(main)
