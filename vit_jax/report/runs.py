"""What a report reads of a run's folder, finished or not, of this version or an older one."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vit_jax import config
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.metrics import METRICS
from vit_jax.tasks import chosen
from vit_jax.workdir import COMPARISON, Workdir

COLORS = 10  # of the page's palette


@dataclass(frozen=True)
class Run:
    """One run, as its files tell it. What they do not tell is None."""

    workdir: Workdir
    name: str
    config: Config
    lines: list[dict[str, int | float]]
    result: dict[str, Any]  # {} of a run that is not finished
    starts: list[dict[str, Any]]
    progress: dict[str, Any]
    training: bool = False  # whether somebody watches it train
    group: int = 0  # runs that differ in their seed alone have one number, and one colour

    @cached_property
    def monitor(self) -> str:
        """The metric that ranks its checkpoints."""
        wanted = self.config.evaluate.metric
        task = chosen(self.config.task, self.config.distill)
        return str(self.result.get("monitor") or (task.monitor if wanted == "auto" else wanted))

    @property
    def finished(self) -> bool:
        return bool(self.result)

    @property
    def step(self) -> int:
        """The last one that is known."""
        logged = max((int(line["step"]) for line in self.lines), default=0)
        return int(self.result.get("steps") or max(logged, self.progress.get("step", 0)))

    @cached_property
    def images(self) -> dict[str, int]:
        return self.workdir.images()

    @property
    def steps_per_epoch(self) -> int | None:
        return max(1, self.images["train"] // self.config.train.batch_size) if self.images else None

    @property
    def total_steps(self) -> int | None:
        """How many steps it has at its end; None where the clock decides, or nothing says it."""
        train = self.config.train
        if self.finished or train.steps:
            return self.step if self.finished else train.steps
        if train.flops and self.flops_per_step:
            return max(1, round(train.flops / self.flops_per_step))
        if train.seconds or train.flops or self.steps_per_epoch is None:
            return None
        return max(1, round(train.epochs * self.steps_per_epoch))

    @property
    def status(self) -> str:
        if self.finished:
            return "finished"
        of = f" of {self.total_steps:,}" if self.total_steps else ""
        return f"{'training' if self.training else 'not finished'}: step {self.step:,}{of}"

    def fact(self, key: str) -> Any:
        """A fact of the result, or what is known of it before."""
        for source in (self.result, self.progress, self.starts[-1] if self.starts else {}):
            if source.get(key) is not None:
                return source[key]
        return self._images_per_second if key == "images_per_second" else None

    @property
    def _images_per_second(self) -> int | float | None:
        seconds = self.progress.get("training_seconds")
        return self.progress["step"] * self.config.train.batch_size / seconds if seconds else None

    @property
    def flops_per_step(self) -> int | float | None:
        """Of training; where an earlier version did not note it: three forward passes for each image, six with SAM."""
        if (noted := self.fact("flops_per_step")) is not None:
            return noted
        forward = self.fact("flops_per_image")
        passes = 6 if self.config.optim.sam_rho else 3
        return passes * forward * self.config.train.batch_size if forward else None

    @property
    def trains_whole_model_alone(self) -> bool:
        """Whether each step goes back through all parameters, and no teacher sees the images."""
        chosen = self.config.optim
        return not (chosen.freeze or chosen.head_warmup_steps or self.config.distill.teacher)

    def scalar(self, split: str, name: str) -> float | None:
        """A metric of `test`, `val`, `best_val` or `before`; a run that is not finished has validated only."""
        known = self.result or self._validated
        return known.get(f"{split}/{name}")

    @property
    def _validated(self) -> dict[str, float]:
        best = {f"best_{key}": value for key, value in self.progress.get("best", {}).items()}
        return {**self.progress.get("validation", {}), **best}

    @cached_property
    def best(self) -> tuple[int, float] | None:
        """The step whose validation was best, and its value, a finite one; of equals the last."""
        key = f"val/{self.monitor}"
        rows = [(int(line["step"]), float(line[key])) for line in self.lines if key in line]
        found = [row for row in rows if math.isfinite(row[1])]
        sign = 1 if self.monitor not in METRICS or METRICS[self.monitor].higher_is_better else -1
        return max(found, key=lambda pair: (sign * pair[1], pair[0]), default=None)


def read_run(workdir: Workdir, name: str = "", *, watched: bool = False) -> Run:
    """The run in a folder; raises `UserError` where it holds none, or a damaged one."""
    lines = workdir.metrics() if workdir.metrics_file.is_file() else []
    result = workdir.result() if workdir.is_finished() else {}
    return Run(
        workdir,
        name or workdir.path.resolve().name,
        workdir.config(),
        lines,
        result,
        workdir.starts(),
        workdir.progress(),
        training=watched,
    )


def find(addresses: Sequence[str | Path]) -> tuple[list[Workdir], list[Path]]:
    """The folders of runs, and the folders of comparisons among the addresses; these stand for the runs in them."""
    runs: list[Workdir] = []
    compared: list[Path] = []
    for address in map(Path, addresses):
        if Workdir(address).is_run():
            runs.append(Workdir(address))
            continue
        inner = [Workdir(path) for path in sorted(address.glob("*/"), key=_natural) if Workdir(path).is_run()]
        if not inner:
            raise UserError(f"{address} holds neither a run nor folders of runs; give the folder of a run")
        runs += inner
        compared += [address] if (address / f"{COMPARISON}.json").is_file() else []
    places = [run.path.resolve() for run in runs]
    if len(set(places)) < len(places):
        raise UserError("a run is given twice; give each once")
    return runs, compared


def read_runs(folders: Sequence[Workdir], *, watched: bool = False) -> list[Run]:
    """The runs under names that differ, those that differ in their seed alone in one group."""
    names = _names([folder.path.resolve() for folder in folders])
    runs = [read_run(folder, name, watched=watched) for folder, name in zip(folders, names, strict=True)]
    keys = [json.dumps({**config.to_dict(run.config), "seed": 0}, sort_keys=True, default=str) for run in runs]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return [dataclasses.replace(run, group=numbers[key]) for run, key in zip(runs, keys, strict=True)]


def groups(runs: Sequence[Run]) -> dict[int, list[Run]]:
    """The runs by their group."""
    return {number: [run for run in runs if run.group == number] for number in dict.fromkeys(r.group for r in runs)}


def flops_label(runs: Sequence[Run]) -> str:
    """What `flops_per_step` counts: where it is not all that the runs computed, the label says how it is counted."""
    if all(run.trains_whole_model_alone for run in runs):
        return "FLOPs"
    return f"model FLOPs, 3 × forward{', SAM 6 ×' if any(run.config.optim.sam_rho for run in runs) else ''}"


def group_name(runs: Sequence[Run]) -> str:
    """What runs that differ in their seed alone are called together."""
    if len(runs) == 1:
        return runs[0].name
    return re.sub(r"[-_ ]?(seed)?\d*$", "", os.path.commonprefix([run.name for run in runs])) or runs[0].name


def _natural(path: Path) -> list[str | int]:
    """By which names are sorted so that 300 comes before 1400."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that all differ."""
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names
