"""Fills the tables of docs/ with what results/*.json and published.csv say: `python -m benchmarks.tables`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. Of two results of the same measurement on the same
machine and release of JAX the newer one is shown.
"""

import json
import re
import statistics
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import accuracy
from benchmarks.machine import RESULTS, in_table
from benchmarks.workloads import REPOSITORY, no_overrides
from vit_jax import command, log
from vit_jax.command import UserError

PAGES = (REPOSITORY / "docs" / "performance.md", REPOSITORY / "docs" / "results.md")
VOID_BELOW = 650.0  # TFLOP/s of an H200 in bfloat16: something else used a slower one, and its MFU is void
CASE = ("model", "mode", "dtype", "batch_size", "image_size", "overrides", "data")
KEY = (*CASE, "device", "cpu_units", "cores_used", "jax", "xla_flags", "contender", "threads", "workers", "cache")
ORDER = ("device", "model", "mode", "dtype", "batch_size", "contender", "cache", "jax", "date")
UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 bfloat16", "avx512f": "AVX-512", "avx2": "AVX2"}
FORMS = {
    "bytes": log.human_bytes,
    "time": log.human_seconds,
    "ms": lambda seconds: f"{1000 * seconds:,.0f} ms",
    "exact ms": lambda seconds: f"{1000 * seconds:.2f} ms",
    "s": lambda seconds: f"{seconds:.1f} s",
    "shares": lambda shares: ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005),
}
Row = Mapping[str, Any]


class Cells(string.Formatter):
    """Fills in a row's cells; a field that is missing stays empty."""

    def get_field(self, name: str, args: Any, row: Any) -> Any:
        try:
            return super().get_field(name, args, row)
        except (KeyError, TypeError):
            return None, name

    def format_field(self, value: Any, form: str) -> str:
        return "" if value is None else FORMS[form](value) if form in FORMS else format(value, form)


COMMAND = "command: `python -m vit_jax.main --config ...`"
STEP = "device={device} | model={model} | mode={mode} | dtype={dtype} | batch={batch_size}"
# The columns: a header, `=` or, for numbers, `>`, and the cell: `{field:form}`, in Python's form or ours.
TABLES = {
    "throughput": f"{STEP} | attention={{attention}} | images/s>{{failed}}{{images_per_second:,.1f}} | "
    "TFLOP/s>{tflops:.3g} | MFU>{mfu:.1%} | waits for input, at most>{waits:.1%} | memory>{peak_bytes:bytes} | "
    "compile>{compile_seconds:s} | JAX>{jax} | date>{date}",
    "peers": f"{STEP} | peer={{peer}} | peer, images/s>{{images_per_second:,.1f}} | "
    "ours, images/s>{ours[images_per_second]:,.1f} | ours / peer>{ratio:.2f} | range>{range} | "
    "by CPU time>{cpu_ratio:.2f} | JAX>{jax} | date>{date}",
    "input": "device={device} | data={data} | pixels={image_size} | threads={threads} | workers={workers} | "
    "way={contender} | images/s>{images_per_second:,.0f} | streamed / this>{ratio:.2f} | date>{date}",
    "startup": "device={device} | model={model} | dtype={dtype} | compilation cache={cache} | "
    "imports>{import_seconds:s} | build and compile>{build_seconds:s} | first step>{step_seconds:s} | "
    "all>{seconds:s} | date>{date}",
    "trace": f"{STEP} | a step={{seconds_per_step:exact ms}} | kernels={{kernels_per_step:.0f}} | "
    "by kind={kinds:shares} | by part={parts:shares} | idle={idle:.0%} | date={date}",
    "plans": "machine={topology} | configuration={configuration} | cores>{devices} | "
    "images a core>{images_per_core:g} | memory of a core>{memory[total]:bytes}{too_much} | "
    "of it state>{memory[state]:bytes} | step>{step_seconds:ms} | images/s>{images_per_second:,.0f} | "
    "MFU>{mfu:.1%} | date>{date}",
    "checks": "machine={topology} | configuration={configuration} | batch={batch_size} | data set={data_set} | "
    "step, predicted>{step_seconds:ms} | measured>{measured[step_seconds]:ms} | memory, predicted>{all_memory:bytes} | "
    "measured>{measured[peak_bytes]:bytes} | date>{date}",
    "textbook": "machine={topology} | images a core>{images_per_core} | "
    "textbook's step>{textbook[step_seconds]:exact ms} | "
    "ours>{ours[step_seconds]:exact ms} | ours / textbook>{step_seconds_ratio:.3f} | "
    "textbook's memory>{textbook[memory]:bytes} | ours>{ours[memory]:bytes} | date>{date}",
    "runs": "model={model} | published={published} | here=**{percent:.2f}** | training={training} | "
    f"FLOPs>{{flops:.1e}} | device={{device}} | time={{seconds:time}} | {COMMAND}=`{{command}}`",
    "waiting": f"data={{section}} | model={{model}} | published={{published}} | waits for={{waits_for}} | "
    f"{COMMAND}=`{{config}}`",
}


def render(columns: str, rows: Iterable[Row]) -> str:
    """The table as Markdown; a line that says so where it has no rows."""
    parts = [re.findall("^([^=>]+)([=>])(.*)$", column)[0] for column in columns.split(" | ")]
    cells = Cells()
    lines = [[cells.vformat(cell, (), row) for _, _, cell in parts] for row in rows]
    head = [[name for name, _, _ in parts], ["---:" if align == ">" else "---" for _, align, _ in parts]]
    return "".join(f"| {' | '.join(line)} |\n" for line in [*head, *lines]) if lines else "None yet.\n"


def read(kind: str, folder: Path = RESULTS) -> list[Row]:
    """The newest rows of a kind with all that their tables show; `ours`: our row of the same case and rounds."""
    newest: dict[str, Row] = {}
    contents = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{kind}-*.json"))]
    for content in sorted(contents, key=lambda content: content["machine"]["date"]):
        machine, versions = content["machine"], content["machine"].get("versions", {})
        about = {"xla_flags": "", **machine, "date": machine["date"][:10], "jax": versions.get("jax")}
        about |= {"gpu": content["gpu"], "device": content["device"], "shown": device(content, machine)}
        rows = [about | row for row in content["rows"]]
        ours = [row for row in rows if row.get("contender") in ("ours", "feed, streamed") and "failed" not in row]
        for row in rows:
            same = [own for own in ours if all(own.get(field) == row.get(field) for field in CASE)]
            shown = derived(row, same[0] if same else None, content.get("ceilings"), versions.get("torch", ""))
            newest[json.dumps([row.get(field) for field in KEY])] = shown
    return sorted(newest.values(), key=lambda r: [(not r["gpu"], *(str(r.get(key, "")).zfill(9) for key in ORDER))])


def device(content: Row, machine: Row) -> str:
    """Its name; of a CPU its units, the cores used where they are not all, and the load where others used them too."""
    name, used, parts = in_table(content["device"]), machine["cores_used"], []
    if not content["gpu"]:
        parts += [UNITS[unit] for unit in machine.get("cpu_units", ())][:1]
        parts += [f"{used} used"] if f", {used} cores" not in name and " of " not in name else []
        parts += [f"load {machine['load_average']:.0f}"] if machine.get("load_average", 0) >= used + 1 else []
    return ", ".join([name, *parts])


def derived(row: Row, ours: Row | None, ceilings: Any, torch: str) -> Row:
    """The row as its table shows it. Ratios are ours to this one, round by round; their median counts."""
    changes, contender = (*row.get("overrides", ()), *row["xla_flags"].split()), row.get("contender", "")
    found = {**row, "device": row["shown"], "ours": ours}
    found["model"] = " ".join([row.get("model", ""), *(f"`{text}`" for text in changes)])
    found["attention"] = {"auto": "plain"}.get(row.get("attention", ""), row.get("attention"))
    found["cache"] = {"cold": "empty", "warm": "filled"}.get(row.get("cache", ""))
    if "failed" in row:
        return found | {"failed": f"failed: {row['failed']}"}
    if "workers" in row:
        found["workers" if contender.startswith("feed") else "threads"] = None
    found["peer"] = f"{contender} {torch if 'torch' in contender else ''}".strip()
    if ours and contender.startswith("torch, "):  # rates: the greater the faster
        found["ratio"] = statistics.median(own / rate for own, rate in zip(ours["rounds"], row["rounds"], strict=True))
    if ours and "seconds_per_step" in row:
        ratios, of_cpu = (
            [peer / own for own, peer in zip(ours[key], row[key], strict=True)]
            for key in ("seconds_per_step", "cpu_seconds_per_step")
        )
        found |= {"ratio": statistics.median(ratios), "range": f"{min(ratios):.2f} to {max(ratios):.2f}"}
        found["cpu_ratio"] = None if row["gpu"] else statistics.median(of_cpu)
    void = "H200" in row["device"] and (ceilings or {}).get("bfloat16", {}).get("tflops", VOID_BELOW) < VOID_BELOW
    if void or not row["gpu"]:  # on CPUs others' work disturbs it too much
        found["mfu"] = None
    if row["gpu"] and row.get("input_seconds_per_step"):
        found["waits"] = sum(row["input_seconds_per_step"]) / sum(row["seconds_per_step"])
    return found


def read_plans(folder: Path = RESULTS) -> list[Row]:
    """What `vit_jax.plan` and `benchmarks.tpu_plan` wrote, with all that their tables show."""
    contents = [json.loads(path.read_text()) for path in sorted(folder.glob("plan-*.json"))]
    rows = [row for content in contents for row in (content if isinstance(content, list) else [content])]
    for row in rows:
        row["date"] = row.get("date", "")[:10]
        if "textbook" in row:
            continue
        changes = [text for text in (*row["overrides"], *row["sweep"]) if not text.startswith("data.data_dir=")]
        words = [f"`{text}`" + (f" ({row['remat']})" if text == "model.remat=auto" else "") for text in changes]
        row["configuration"] = " ".join([row["config"].removeprefix("configs/"), *words])
        row["all_memory"] = row["memory"]["total"] * row["devices"]
        row["data_set"] = "its published size" if row["assumed"] else "at hand"
        row["too_much"] = "" if row["memory"]["fits"] else ": too much"
    return rows


def tables(folder: Path = RESULTS) -> dict[str, str]:
    """Every table by its name."""
    speed, planned = read("throughput", folder), read_plans(folder)
    rows: dict[str, list[Row]] = {kind: read(kind, folder) for kind in ("input", "startup", "trace")}
    rows["throughput"] = [row for row in speed if row["contender"] == "ours"]
    rows["peers"] = [row for row in speed if row["contender"] != "ours" and "ratio" in row]
    rows["textbook"] = [row for row in planned if "textbook" in row]
    rows["checks"] = [row for row in planned if row.get("measured")]
    # For TPUs: of CPUs, and of GPUs, whose time is a bound, `checks` tells.
    rows["plans"] = [row for row in planned if not (row.get("measured", True) or row.get("kernels"))]
    rows["waiting"] = accuracy.waiting(folder)
    found = {name: render(TABLES[name], these) for name, these in rows.items()}
    found |= {section: render(TABLES["runs"], these) for section, these in accuracy.runs(folder).items()}
    return found | {
        f"comparison/{name}": f"{about}\n\n{render(columns, these)}"
        for name, about, columns, these in accuracy.comparisons(folder)
    }


def fill(text: str, tables: Mapping[str, str]) -> str:
    """The text with the tables that it names made anew."""

    def table(found: re.Match[str]) -> str:
        if found[1] not in tables:
            raise UserError(f"there is no table {found[1]!r}; choose from {', '.join(tables)}")
        return f"<!-- table: {found[1]} -->\n\n{tables[found[1]]}\n<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->.*?<!-- end -->", table, text, flags=re.DOTALL)


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m benchmarks.tables", description="Fills the tables of docs/.")
    no_overrides(parser.parse(argv)[1])
    made = tables()
    for page in PAGES:
        page.write_text(fill(page.read_text(), made))
    return command.DONE


if __name__ == "__main__":
    command.run(main)
