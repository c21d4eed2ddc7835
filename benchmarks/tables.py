"""Writes the tables of README.md from the results: `python -m benchmarks.tables`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; what is between is replaced. Of two results of
the same measurement on the same device the newer one counts.
"""

import json
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import gpu, machine, plans
from vit_jax import command, log
from vit_jax.command import UserError

README = Path(__file__).parent / "README.md"
KINDS = ("throughput", "input", "startup", "augmentation", "growth", "trace", "flags")
NOT_YET = "not yet run on a GPU"
VOID_BELOW = 650.0  # TFLOP/s of an H200 in bfloat16: below that something else used it, and the measurement is void
CASE = ("device", "model", "mode", "dtype", "batch_size", "image_size", "memory", "overrides")
MEASURED = ("kind", "cores_used", "contender", "data", "threads", "workers", "cache", "view", "flags", "config", "what")
MEASURED += ("number",)
Row = dict[str, Any]


def read(folder: Path) -> list[Row]:
    """The rows of all results in a folder, each with its kind, device, date and run; `newest`: not measured again."""
    paths = [path for kind in KINDS for path in folder.glob(f"{kind}-*.json")]
    files = [(path.name, json.loads(path.read_text())) for path in paths]
    rows, newest = [], {}
    for name, content in sorted(files, key=lambda file: (file[1]["machine"]["date"], file[0])):
        about = {key: content.get(key) for key in ("kind", "device", "gpu", "ceilings")}
        about |= {key: content["machine"].get(key) for key in ("cores_used", "load_average")}
        about |= {"date": content["machine"]["date"][:10], "run": name}
        for row in content["rows"]:
            found = about | row
            rows.append(found)
            fields = (*CASE, *MEASURED)
            newest[json.dumps([found.get(field) for field in fields])] = found
    measured = [row | {"newest": any(row is last for last in newest.values())} for row in rows]
    return measured + plans.read(folder)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """How many times as fast ours was, round by round."""
    return [peer / own for own, peer in zip(ours, theirs, strict=True)]


def with_range(found: Sequence[float]) -> str:
    """The median, with the least and the greatest where they differ."""
    median = f"{statistics.median(found):.2f}"
    return median if min(found) == max(found) else f"{median} ({min(found):.2f} to {max(found):.2f})"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int) -> str:
    """A table whose columns are aligned to the right from a certain one on."""
    rule = ["---:" if i >= numbers_from else "---" for i in range(len(header))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *rows))


def device(row: Row) -> str:
    """Its name; of CPUs the cores used where they are not all, and the load where others used them too."""
    used = row["cores_used"]
    every = re.search(r", (\d+) cores\)", row["device"])
    part = "" if row["gpu"] or not every or int(every[1]) == used else f", {used} used"
    busy = "" if row["gpu"] or (row["load_average"] or 0) < used + 1 else f", load {row['load_average']:.0f}"
    return machine.in_table(row["device"]) + part + busy


def what(row: Row) -> list[str]:
    """The cells that say what was measured."""
    model = " ".join([row["model"], *(f"`{text}`" for text in row["overrides"])])
    return [device(row), model, row["mode"], row["dtype"], str(row["batch_size"])]


def throughput_table(rows: Sequence[Row]) -> str:
    header = ["device", "model", "mode", "dtype", "batch", "attention", "images/s", "TFLOP/s", "MFU", "memory"]
    header += ["compile", "date"]
    cells = []
    for row in _of(rows, "throughput", contender="ours", memory="own"):
        if "failed" in row:
            cells.append([*what(row), "", f"failed: {row['failed']}", "", "", "", "", row["date"]])
            continue
        memory = log.human_bytes(row["peak_bytes"]) if row["peak_bytes"] else ""
        share = f"{100 * row['mfu']:.1f} %" if row["gpu"] else ""  # on CPUs others' work disturbs it too much
        speed = [f"{row['images_per_second']:,.1f}", f"{row['tflops']:.3g}", share]
        kernel = {"auto": "plain", None: ""}.get(row.get("attention"), row.get("attention"))  # nothing to choose from
        cells.append([*what(row), kernel, *speed, memory, f"{row['compile_seconds']:.1f} s", row["date"]])
    return markdown(header, cells, 6)


def peers_table(rows: Sequence[Row]) -> str:
    header = ["device", "model", "mode", "dtype", "batch", "memory kept", "peer", "peer, images/s", "ours, images/s"]
    header += ["ours / peer", "range", "by CPU time"]
    cells = []
    for peer in _of(rows, "throughput"):
        ours = _same(rows, peer)
        if peer["contender"] == "ours" or ours is None or "failed" in peer:
            continue
        found = ratios(ours["seconds_per_step"], peer["seconds_per_step"])
        cpu = ratios(ours["cpu_seconds_per_step"], peer["cpu_seconds_per_step"])
        by = {"own": "ours", "kept": "both", "freed": "neither"}[peer["memory"]]
        cells.append(
            [
                *what(peer),
                "" if peer["gpu"] else by,
                peer["contender"],
                *(f"{row['images_per_second']:,.1f}" for row in (peer, ours)),
                f"{statistics.median(found):.2f}",
                f"{min(found):.2f} to {max(found):.2f}",
                "" if peer["gpu"] else f"{statistics.median(cpu):.2f}",
            ]
        )
    return markdown(header, cells, 7)


def input_table(rows: Sequence[Row]) -> str:
    header = ("device", "data", "pixels", "threads", "workers", "way", "images/s", "date")
    cells = [
        [
            device(row),
            row["data"],
            str(row["image_size"]),
            *((str(row["threads"]), "") if row["contender"].startswith("feed") else ("", str(row["workers"]))),
            row["contender"],
            f"{row['images_per_second']:,.0f}",
            row["date"],
        ]
        for row in _of(rows, "input")
    ]
    return markdown(header, cells, 6)


def startup_table(rows: Sequence[Row]) -> str:
    header = (
        "device",
        "model",
        "dtype",
        "compilation cache",
        "imports",
        "build and compile",
        "first step",
        "all",
        "date",
    )
    stages = ("import_seconds", "build_seconds", "step_seconds", "seconds")
    cells = [
        [device(row), row["model"], row["dtype"], {"cold": "empty", "warm": "filled"}[row["cache"]]]
        + [f"{row[stage]:.1f} s" for stage in stages]
        + [row["date"]]
        for row in _of(rows, "startup")
    ]
    return markdown(header, cells, 4)


def augmentation_table(rows: Sequence[Row]) -> str:
    header = ("device", "model", "dtype", "batch", "augmentation", "operations", "bytes", "time", "date")
    plain = {row["run"]: row["seconds_per_step"] for row in rows if row.get("view") == "none"}
    cells = [
        [*(cell for i, cell in enumerate(what(row | {"overrides": []})) if i != 2), row["view"]]
        + [f"{100 * row['shares'][key]:.1f} %" for key in ("flops", "bytes")]
        + [share_text(shares(plain[row["run"]], row["seconds_per_step"])), row["date"]]
        for row in _of(rows, "augmentation")
        if row["view"] != "none"
    ]
    return markdown(header, cells, 5)


def trace_table(rows: Sequence[Row]) -> str:
    """Where a step's time goes; kinds and parts are two ways to divide it."""
    header = ("device", "model", "mode", "dtype", "batch", "a step", "kernels", "by kind", "by part", "idle", "date")

    def listed(shares: dict[str, float]) -> str:
        return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items() if share >= 0.005)

    cells = [
        [*what(row), f"{1000 * row['seconds_per_step']:.2f} ms", f"{row['kernels_per_step']:.0f}"]
        + [listed(row["kinds"]), listed(row["parts"]), f"{100 * row['idle']:.0f} %", row["date"]]
        for row in _of(rows, "trace")
    ]
    return markdown(header, cells, 11)


def flags_table(rows: Sequence[Row]) -> str:
    header = ("device", "model", "mode", "dtype", "batch", "flags", "a step", "speed", "date")
    cells = []
    for row in _of(rows, "flags"):
        if "failed" in row:
            cells.append([*what(row), f"`{row['flags']}`", "failed", "", row["date"]])
            continue
        name = row["flags"] if " " in row["flags"] else f"`{row['flags']}`"
        took = f"{1000 * statistics.median(row['seconds_per_step']):.2f} ms"
        cells.append([*what(row), name, took, f"{row['speed']:.3f}", row["date"]])
    return markdown(header, cells or [[NOT_YET, *[""] * (len(header) - 1)]], 6)


def growth_table(rows: Sequence[Row]) -> str:
    """Speeds beside those of one process or device."""
    header = ("device", "configuration", "batch", "on", "images/s", "beside one", "of each", "added up a step", "date")
    named = {"processes": ("real process", "real processes"), "devices": ("simulated device", "simulated devices")}
    cells = []
    for row in [row for row in _of(rows, "growth") if row["what"] in named]:
        number, speed = row["number"], row["images_per_second"]
        alone = [each for each in rows if each["kind"] == "growth" and each["what"] == row["what"]]
        alone = [each for each in alone if each["run"] == row["run"] and each["number"] == 1]
        beside = with_range(ratios(alone[0]["rounds"], row["rounds"])) if alone else ""
        changes = [f"`{text}`" for text in row["overrides"]]
        cells.append(
            [
                device(row),
                " ".join([row["config"].removeprefix("configs/"), *changes]),
                str(row["batch_size"]),
                f"{number} {named[row['what']][number > 1]}",
                f"{speed:,.0f}",
                beside,
                f"{speed / number:,.0f}",
                f"{row['all_reduced_bytes']:,} bytes" if row.get("all_reduced_bytes") else "",
                row["date"],
            ]
        )
    return markdown(header, cells, 4)


def layers_table(rows: Sequence[Row]) -> str:
    """Time to compile beside that of the fewest layers."""
    header = ("device", "model", "layers", "compile", "beside the fewest", "date")
    found = [row for row in _of(rows, "growth") if row["what"] == "layers"]
    fewest = {row["run"]: row for row in sorted(found, key=lambda row: -row["number"])}
    cells = [
        [device(row), f"{row['model']} `model.scan=true`", str(row["number"]), f"{row['compile_seconds']:.1f} s"]
        + [with_range(ratios(fewest[row["run"]]["rounds"], row["rounds"])), row["date"]]
        for row in found
    ]
    return markdown(header, cells, 2)


def shares(plain: Sequence[float], whole: Sequence[float]) -> list[float]:
    """Which share of the whole the plain one does not take, round by round."""
    return [1 - without / seconds for without, seconds in zip(plain, whole, strict=True)]


def share_text(found: Sequence[float]) -> str:
    """The median of the rounds' shares and their range; no number where some rounds found more than 0, others less."""
    low, high = (f"{100 * share:.1f}" for share in (min(found), max(found)))
    if min(found) <= 0 <= max(found):
        return f"not measurable ({low} to {high} %)"
    return f"{100 * statistics.median(found):.1f} % ({low} to {high})"


def targets_table(rows: Sequence[Row]) -> str:
    """What this library wants to reach, and whether it does."""
    cells = []
    for model, share in {"vit/B16": 0.55, "vit/L16": 0.60, "vit/S16": 0.45}.items():
        found = [row for row in _of(rows, "throughput", gpu=True, model=model, mode="train", contender="ours")]
        found = [row for row in found if row["dtype"] == "bfloat16" and "mfu" in row and not void(row)]
        cells.append([f"{model} training in bfloat16 on a GPU, MFU", f">= {share:.0%}", _best(found, "mfu", "{:.1%}")])
    found = [row for row in _of(rows, "throughput", gpu=True, model="cifar10:vit", mode="train", contender="ours")]
    cells.append(["cifar10:vit training on a GPU, images/s", ">= 60,000", _best(found, "images_per_second", "{:,.0f}")])
    waits = [row | {"wait": waiting(row)} for row in found if row.get("input_seconds_per_step")]
    most = f"{max(row['wait'] for row in waits):.1%}" if waits else NOT_YET  # with each batch size it is to be less
    cells.append(["cifar10:vit training on a GPU, waiting for input at most", "< 2%", most])
    for model in ("vit/B16", "vit/S16", "cifar10:vit"):
        text = _ratio(rows, gpu=True, model=model, contender="torch.compile")
        cells.append([f"{model} training on a GPU against torch.compile", ">= 1.15x", text])
    found = [row | {"share": row["shares"]["seconds"]} for row in _of(rows, "augmentation", gpu=True, model="vit/S16")]
    cells.append(["any augmentation's share of vit/S16's step on a GPU", "< 15%", _best(found, "share", "{:.1%}")])
    for model in ("cifar10:vit", "vit/Ti16"):
        for contender, least in {"torch": "1.00", "flax": "1.25"}.items():
            text = _ratio(rows, gpu=False, model=model, contender=contender)
            peer = {"torch": "PyTorch eager", "flax": "a textbook Linen ViT"}[contender]
            cells.append([f"{model} training on a CPU against {peer}", f">= {least}x", text])
    inputs = {
        "crop": "the same on the host",
        "crop, our decoder": "the same by our decoder",
        "train": "random crop and flip on the host too",
    }
    for peer, how in inputs.items():
        text = _input_ratio(rows, f"torch, {peer}")
        least = "none" if "our" in peer else ">= 1.50x"
        cells.append([f"streamed input against a PyTorch DataLoader, {how}", least, text])
    return markdown(("what", "target", "measured"), cells, 1)


def waiting(row: Row) -> float:
    """The share of the time that the host spent on batches; the device waits for part of that, or none."""
    return sum(row["input_seconds_per_step"]) / sum(row["seconds_per_step"])


def void(row: Row) -> bool:
    """Whether a GPU was not free: its own matrix products were too slow."""
    best = (row["ceilings"] or {}).get("bfloat16", {}).get("tflops", 0.0)
    return "H200" in row["device"] and best < VOID_BELOW


def _best(rows: Sequence[Row], field: str, form: str) -> str:
    found = [row[field] for row in rows if field in row]
    return form.format(max(found)) if found else NOT_YET


def _ratio(rows: Sequence[Row], *, gpu: bool, model: str, contender: str) -> str:
    found = []
    for peer in _of(rows, "throughput", gpu=gpu, model=model, mode="train", contender=contender, memory="own"):
        ours = _same(rows, peer)
        if ours and "failed" not in peer and peer["dtype"] == ("bfloat16" if gpu else "float32"):
            median = statistics.median(ratios(ours["seconds_per_step"], peer["seconds_per_step"]))
            found.append((peer["batch_size"], median))
    if not found:
        return NOT_YET if gpu else "not yet run"
    return ", ".join(f"{median:.2f}x (batch {size})" for size, median in sorted(found))


def _input_ratio(rows: Sequence[Row], peer: str) -> str:
    found = {row["contender"]: row for row in _of(rows, "input")}
    if not {"feed, streamed", peer} <= found.keys():
        return "not yet run"
    pair = [found[name]["rounds"] for name in (peer, "feed, streamed")]
    return f"{statistics.median(ratios(*pair)):.2f}x"


def _of(rows: Sequence[Row], kind: str, **values: Any) -> list[Row]:
    """The newest rows of a kind with these values, in a fixed order."""
    found = [row for row in rows if row["kind"] == kind and row["newest"]]
    found = [row for row in found if all(row[key] == value for key, value in values.items())]
    first = ("device", "model", "mode", "dtype", "batch_size", "memory", "contender", "cache", "what", "number")
    first += ("flags", "date")
    return sorted(found, key=lambda row: [(not row["gpu"], *(str(row.get(key, "")).zfill(9) for key in first))])


def _same(rows: Sequence[Row], peer: Row) -> Row | None:
    """Ours, measured in the same rounds as the peer."""
    for row in rows:
        same = row["run"] == peer["run"] and row["contender"] == "ours"
        if same and "failed" not in row and all(row[field] == peer[field] for field in CASE):
            return row
    return None


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "targets": targets_table,
    "throughput": throughput_table,
    "peers": peers_table,
    "gpu": lambda rows: markdown([NOT_YET], [[f"`{command}`"] for command in gpu.not_run(rows)], 1),
    "input": input_table,
    "startup": startup_table,
    "augmentation": augmentation_table,
    "trace": trace_table,
    "flags": flags_table,
    "growth": growth_table,
    "layers": layers_table,
    "kernels": lambda rows: markdown(*plans.kernels(rows), 3),
    "plans": lambda rows: markdown(*plans.plans(rows), 2),
    "textbook": lambda rows: markdown(*plans.textbook(rows), 1),
    "checks": lambda rows: markdown(*plans.checks(rows), 4),
}


def fill(text: str, rows: Sequence[Row]) -> str:
    """The text with every table made anew."""
    for name, table in TABLES.items():
        start, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        if text.count(start) != 1 or end not in text.partition(start)[2]:
            raise UserError(
                f"README.md has {text.count(start)} places for the table {name!r}; expected one: "
                f"<!-- table: {name} --> ... {end}"
            )
        before, _, rest = text.partition(start)
        text = f"{before}{start}\n{table(rows)}\n{end}{rest.partition(end)[2]}"
    return text


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m benchmarks.tables", description="Rewrites the tables of README.md.")
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="folder of the JSON files")
    flags, overrides = parser.parse(argv)
    if overrides:
        raise UserError(f"--config.{overrides[0]}: this command takes no overrides; leave it out")
    rows = read(flags.results)
    if not rows:
        raise UserError(f"--results {flags.results} is no folder with results; give one, or leave it out")
    README.write_text(fill(README.read_text(), rows))
    return command.DONE


if __name__ == "__main__":
    command.run(main)
