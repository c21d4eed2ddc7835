"""Trains several configurations, one after another, and puts their results into one table.

    python -m vit_jax.compare configs/a.py configs/b.py:arg --seeds 3 --out D
    python -m vit_jax.compare configs/a.py --sweep data.limit=500,5000 --out D
    python -m vit_jax.compare configs/a.py --change optim.name=lion --change "optim.sam_rho=0.1 optim.lr=0.01" --out D
    python -m vit_jax.compare configs/a.py --evaluate corruption.kind=none,blur --evaluate corruption.severity=5 --out D

Every run is checked against its data, weights and teacher before the first one is trained. What is finished is not
trained again: an interrupted comparison goes on where it stopped. Each `--sweep` trains every configuration with each
of the values (several sweeps: with each combination). Each `--change` trains it once more, with these fields changed:
rows of one change each, behind the row without any. Each `--evaluate` evaluates the trained models with each of the
values, and trains nothing, as does `--config.corruption.*`; `corruption.kind=none` has no severity, and comes once.
D holds a folder for each run, and `comparison.md`, `.csv`, `.json`.
"""

import csv
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.text import Text

from vit_jax import augment, checkpoint, command, config, distributed, evaluate, log, models, step
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.config.sweep import combinations, file_name, plain_name, short
from vit_jax.data import Data, Settings, open_data
from vit_jax.metrics import METRICS
from vit_jax.report import page
from vit_jax.train import check_images, check_workdir, open_inputs, set_up, train
from vit_jax.train.devices import prefer_determinism, use_every_core
from vit_jax.train.teacher import open_teacher
from vit_jax.workdir import COMPARISON as NAME
from vit_jax.workdir import Workdir, default_workdir

CLEAN = "corruption.kind=none"
FACTS = {
    "parameters": "parameters",
    "flops_per_image": "FLOPs",
    "training_flops": "training FLOPs",
    "seconds": "time",
    "images_per_second": "images/s",
    "energy_kwh": "energy (kWh)",
}


SPLITS = {"best_val": "val best", "val": "val last", "test": "test"}


def columns() -> list[str]:
    """Every column that a table can have. Of the validation only the metric that ranks checkpoints is shown."""
    return [*FACTS, *(f"{split}/{name}" for split in SPLITS for name in METRICS)]


def shown(result: Mapping[str, Any]) -> list[str]:
    """The columns of a result: the loss is among them only where it ranks checkpoints."""
    monitor = result.get("monitor", "accuracy")
    tested = [name for name in METRICS if name != "loss" or name == monitor]
    keys = {*FACTS, f"best_val/{monitor}", f"val/{monitor}", *(f"test/{name}" for name in tested)}
    return [key for key in columns() if key in keys]


def title(key: str) -> str:
    """What stands above a column."""
    split, _, name = key.rpartition("/")
    return f"{SPLITS[split]} {METRICS[name].short}" if split else FACTS[key]


def important() -> list[str]:
    """Of the titles, those that stay where not all columns fit."""
    return [*(title(f"test/{name}") for name in METRICS if name != "top5"), "parameters", "time", "test top-5"]


@dataclass(frozen=True)
class Variant:
    """One row of the table: a configuration under some overrides, trained with each seed."""

    name: str
    runs: tuple[tuple[Config, Path], ...]  # one for each seed


def plan(
    specs: Sequence[str],
    sweeps: Sequence[str],
    seeds: int,
    overrides: Sequence[str],
    out: Path,
    changes: Sequence[str] = (),
) -> list[Variant]:
    """Every run of the comparison, each configuration validated; `check` looks at what it needs."""
    variants = []
    all_chosen = [[*change.split(), *chosen] for change in ("", *changes) for chosen in combinations(sweeps)]
    rows = [
        (spec, chosen, " ".join([default_workdir(spec).name, *map(short, chosen)]))
        for spec, chosen in itertools.product(specs, all_chosen)
    ]
    alike = Counter(plain_name(name) for *_, name in rows)
    for spec, chosen, name in rows:
        folder = plain_name(name) if alike[plain_name(name)] == 1 else file_name(name)
        try:
            given = config.load(spec, [*overrides, *chosen])
        except UserError as mistake:  # of several configurations one may lack the field
            raise UserError(f"{spec}: {mistake}") from mistake
        runs = [
            (config.load(spec, [*overrides, *chosen, f"seed={seed}"]), out / f"{folder}-seed{seed}")
            for seed in range(given.seed, given.seed + seeds)
        ]
        variants.append(Variant(name, tuple(runs)))
    _check_distinct(variants)
    return variants


def _check_distinct(variants: Sequence[Variant]) -> None:
    """Raises `UserError` for two rows of one name, or that train the same under two."""
    seen: dict[str, str] = {}
    for variant in variants:
        given, _ = variant.runs[0]
        for key in (variant.name, config.to_json(given)):
            if key in seen:
                other = "" if seen[key] == variant.name else f" under the name {seen[key]}"
                raise UserError(
                    f"{variant.name} is compared with itself{other}; give each configuration once, and each value; of "
                    "two files of one name, rename one"
                )
            seen[key] = variant.name


def _check_once(assignments: Sequence[str]) -> None:
    """Raises `UserError` for a field that is given values twice: one of them would not count."""
    fields = [text.partition("=")[0] for text in assignments]
    if twice := sorted({field for field in fields if fields.count(field) > 1}):
        raise UserError(f"{twice[0]} is given twice; give all of its values in one place")


def evaluations(sweeps: Sequence[str]) -> dict[str, list[str]]:
    """The overrides of each evaluation by its name; without sweeps one, of no name, without any.

    Images that are not perturbed have no severity: they stand alone, and once.
    """
    found = {}
    for chosen in combinations(sweeps):
        clean = CLEAN in chosen
        named = [text for text in chosen if text == CLEAN or not (clean and text.startswith("corruption."))]
        found[" ".join(map(short, named))] = [*named, "corruption.severity=0"] if clean else named
    return found


def check(variants: Sequence[Variant], console: Console, sweeps: Sequence[str] = ()) -> None:
    """Raises `UserError` for what a run would be refused for at its turn: its folder, data, model, weights, teacher.

    `sweeps`: what to evaluate with, which must fit the trained models. A run that needs an earlier one's result is
    checked without it where that is not yet there.
    """
    planned: set[Path] = set()
    opened: list[Data] = []
    for variant in variants:
        todo = [(given, workdir) for given, workdir in variant.runs if not is_finished(given, workdir)]
        try:
            for given, workdir in todo:
                check_workdir(given, Workdir(workdir))
            data = _check_run(*todo[0], planned, console, sweeps) if todo else None  # the others differ in the seed
            opened += [data] if data is not None else []
        except UserError as mistake:
            raise _of(variant, mistake) from mistake
        planned |= {workdir.resolve() for _, workdir in todo}
    for variant, data in itertools.product(variants, opened):
        for given, workdir in variant.runs:
            try:
                if given.data == data.settings:  # what is finished, too, had these images
                    check_images(Workdir(workdir), data)
            except UserError as mistake:
                raise _of(variant, mistake) from mistake


def _of(variant: Variant, mistake: UserError) -> UserError:
    return UserError(f"{variant.name}: {str(mistake).replace('--workdir', '--out')}")


def _check_run(
    given: Config, workdir: Path, planned: set[Path], console: Console, sweeps: Sequence[str]
) -> Data | None:
    """What training does before its first step, but for the images' statistics; `planned` runs have no result yet."""
    if Path(given.init.weights).resolve() in planned:
        return None  # they may decide the size of the images
    inputs = open_inputs(given, Workdir(workdir), console)
    data, prepared = inputs.data, set_up(inputs, described=True).config
    teacher = given.distill.teacher
    if teacher and Path(teacher).resolve() not in planned:
        open_teacher(teacher, prepared, data.class_names)
    for name, chosen in evaluations(sweeps).items():
        changed = config.from_dict(config.to_dict(given), chosen)
        augment.check_corrupted(changed.corruption, data.preprocessing.channels)
        if (changed.data, changed.evaluate.split) != (given.data, given.evaluate.split):
            _check_split(name, changed.data, changed.evaluate.split, data)
        if changed.model != given.model:
            _check_parameters(name, changed.model, prepared, data)
    return data


def _check_split(name: str, changed: Settings, split: str, data: Data) -> None:
    """Raises `UserError` for a split that is not there, or of other classes than the trained model's."""
    asked = open_data(changed, data.preprocessing.size)
    asked.split(split)
    if asked.class_names != data.class_names:
        raise UserError(f"--evaluate {name}: {changed.name!r} does not have the classes of {data.settings.name!r}")


def _check_parameters(name: str, changed: Mapping[str, Any], prepared: Config, data: Data) -> None:
    """Raises `UserError` for a model that has other parameters than the trained one."""
    shape = augment.input_shape(prepared.augment, data.preprocessing.shape)

    def variables(fields: Mapping[str, Any]) -> Any:
        model = models.create({**fields, "num_classes": prepared.model["num_classes"]})
        model.check(shape)
        return jax.eval_shape(lambda: checkpoint.canonical(step.init_variables(model, 0, shape)))

    if variables(changed) != variables(prepared.model):
        raise UserError(f"--evaluate {name}: the trained model has other parameters; --sweep trains with each value")


def train_all(variants: Sequence[Variant], console: Console) -> tuple[int, dict[Path, str]]:
    """Trains what is not finished; the exit code of an interruption, else 0, and what went wrong in which folder."""
    failed = {}
    todo = [(variant.name, *found) for variant in variants for found in variant.runs]
    for number, (name, given, workdir) in enumerate(todo, 1):
        if is_finished(given, workdir):
            continue
        console.rule(Text(f"{number} of {len(todo)}: {name}, seed {given.seed}"))
        try:
            result = train(given, workdir, console)
        except UserError as mistake:
            console.print(f"error: {mistake}", style="red", soft_wrap=True, markup=False)
            failed[workdir] = str(mistake)
            continue
        if given.log.report:
            page.write_report(workdir, result.data)
        if not result.finished:
            return result.exit_code, failed
    return command.DONE, failed


def is_finished(given: Config, workdir: Path) -> bool:
    """Whether the folder holds the result of this very run; of another one `train` says so."""
    folder = Workdir(workdir)
    return folder.is_finished() and not config.differences(folder.config(), given)


def rows(variants: Sequence[Variant], sweeps: Sequence[str], overrides: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each variant that has a result, and for each combination of the values in `sweeps` to evaluate with.

    Each column holds the values of all seeds that are finished, in a list.
    """
    table = []
    for variant in variants:
        finished = [workdir for given, workdir in variant.runs if is_finished(given, workdir)]
        results = [Workdir(workdir).result() for workdir in finished]
        for name, chosen in evaluations(sweeps).items() if finished else ():
            found = results
            if chosen:
                reports = [evaluate.evaluate_run(workdir, [*overrides, *chosen]) for workdir in finished]
                found = [_replace_metrics(*pair) for pair in zip(results, reports, strict=True)]
            values = {key: [r[key] for r in found if r.get(key) is not None] for key in shown(found[0])}
            table.append(
                {
                    "run": f"{variant.name} {name}".rstrip(),
                    "variant": variant.name,
                    "with": chosen,
                    "monitor": results[0].get("monitor", "accuracy"),
                    "seeds": [r["config"]["seed"] for r in found],
                    **values,
                }
            )
    return table


def _replace_metrics(result: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """The result with the metrics of another evaluation, of whichever split, as those of its test."""
    kept = {key: value for key, value in result.items() if not key.startswith("test/")}
    return kept | {f"test/{key.rpartition('/')[2]}": value for key, value in report.items() if "/" in key}


def cell(key: str, values: Sequence[int | float]) -> str:
    """The mean, and the standard deviation over the seeds where there are several."""
    if not values:
        return ""
    mean = float(np.mean(values))
    if "/" in key and not METRICS[key.rpartition("/")[2]].percent:
        spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
        return f"{mean:.4f}{spread}"
    if "/" in key:
        spread = f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        return f"{100 * mean:.2f}{spread} %"
    if key == "seconds":
        return log.human_seconds(mean)
    if key == "energy_kwh":
        return f"{mean:.3g}"
    return f"{mean:,.0f}" if key == "images_per_second" else log.human_count(mean)


def write(table: Sequence[dict[str, Any]], out: Path, console: Console) -> None:
    """Prints the table, and writes it as Markdown, CSV (means and deviations apart) and JSON (every seed's value)."""
    used = [key for key in columns() if any(row.get(key) for row in table)]
    header = ["run", *map(title, used)]
    texts = [[row["run"], *(cell(key, row.get(key, [])) for key in used)] for row in table]
    _print(header, texts, console)
    lines = [header, ["---", *["---:"] * len(used)], *texts]
    (out / f"{NAME}.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")
    (out / f"{NAME}.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    with (out / f"{NAME}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "seeds", *(f"{key}{end}" for key in used for end in ("", " std"))])
        for row in table:
            numbers = [number for key in used for number in _mean_and_std(row.get(key, []))]
            writer.writerow([row["run"], len(row["seeds"]), *numbers])


def _print(header: Sequence[str], texts: Sequence[Sequence[str]], console: Console) -> None:
    """The table without the columns in which all rows agree: a terminal is narrow."""
    columns = list(zip(*texts, strict=True))
    differ = [i for i, column in enumerate(columns) if i == 0 or len(set(column)) > 1 or len(texts) == 1]
    names, *cells = [[text[i] for i in differ] for text in (header, *texts)]
    log.fitted_table(console, names, cells, important())


def _mean_and_std(values: Sequence[int | float]) -> tuple[Any, Any]:
    return (np.mean(values) if values else "", np.std(values, ddof=1) if len(values) > 1 else "")


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(
        prog="python -m vit_jax.compare",
        description="Trains several configurations, one after another, and puts their results into one table.",
        epilog="Any field, for all of them: --config.<group>.<field>=<value>, e.g. --config.train.epochs=3",
    )
    parser.add_argument("specs", nargs="+", metavar="CONFIG[:ARG]", help="files of configs/")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each, with successive seeds (default: 1)")
    parser.add_argument("--sweep", action="append", default=[], metavar="FIELD=V,V", help="train with each value")
    parser.add_argument("--change", action="append", default=[], metavar="'F=V F=V'", help="train with these, too")
    parser.add_argument("--evaluate", action="append", default=[], metavar="FIELD=V,V", help="evaluate with each value")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of the table")
    parser.add_data_dir()
    flags, overrides = parser.parse(argv)
    if flags.seeds < 1:
        raise UserError(f"--seeds {flags.seeds} is not positive")
    if flags.data_dir:
        overrides.append(f"data.data_dir={flags.data_dir}")
    overrides, flags.sweep, flags.evaluate = map(config.rename_flags, (overrides, flags.sweep, flags.evaluate))
    flags.change = [" ".join(config.rename_flags(change.split())) for change in flags.change]
    flags.evaluate += [word for word in overrides if word.startswith("corruption.")]  # training does not read them
    overrides = [word for word in overrides if not word.startswith("corruption.")]
    if flags.out.exists() and not flags.out.is_dir():
        raise UserError(f"--out {flags.out} is a file; give a folder")
    _check_once([*flags.sweep, *overrides])
    _check_once(flags.evaluate)
    variants = plan(flags.specs, flags.sweep, flags.seeds, overrides, flags.out, flags.change)
    for spec, chosen in itertools.product(flags.specs, evaluations(flags.evaluate).values()):
        config.check_read(chosen, "evaluate", config.load(spec, [*overrides, *chosen]))
    runs = [given for variant in variants for given, _ in variant.runs]
    changed = [text for change in flags.change for text in change.split()]
    config.check_effect(runs, [*overrides, *flags.sweep, *changed])
    for given in runs:
        prefer_determinism(given)
    use_every_core(runs)
    with distributed.joined():
        if jax.process_count() > 1:
            raise UserError(
                f"this is one of {jax.process_count()} processes, which would all train the same; start it once, "
                "or each run with `python -m vit_jax.main`"
            )
    console = Console(highlight=False)
    check(variants, console, flags.evaluate)
    code, failed = train_all(variants, console)
    if code != command.DONE:
        return code
    table = rows(variants, flags.evaluate, overrides)
    if table:
        write(table, flags.out, console)
        console.print(f"also in {flags.out / NAME}.md, .csv and .json", soft_wrap=True, markup=False)
        if all(given.log.report for given in runs):
            page.write_comparison_report(flags.out)
    for workdir, mistake in failed.items():
        console.print(f"failed: {workdir}: {mistake}", style="red", soft_wrap=True, markup=False)
    return command.FAULT if failed else command.DONE


if __name__ == "__main__":
    command.run(main)
