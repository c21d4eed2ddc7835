"""What a plan prints: one in full, several as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vit_jax.config.sweep import short
from vit_jax.log import fitted_table, human_bytes, human_count, human_percent, human_seconds

Row = Mapping[str, Any]
CENTS_BELOW = 10  # dollars, in a table
ALWAYS = ("plan", "memory", "fits", "step", "images/s")
IMPORTANT = ("fits", "step", "images/s", "memory", "cost", "time")  # first to stay on a narrow terminal


def show(console: Console, rows: Sequence[Row], left_out: Sequence[tuple[str, Exception]] = ()) -> None:
    """Prints the plans: one in full; of several what matters and what differs between them.

    `left_out`: names of plans that cannot be, and why; each gets a line below the table.
    """
    if len(rows) == 1 and not left_out:
        _facts(console, rows[0])
        return
    cells = [_cells(row) for row in rows]
    always = (*ALWAYS, "cost") if any(cell["cost"] for cell in cells) else ALWAYS
    shown = [title for title in cells[0] if title in always or len({cell[title] for cell in cells}) > 1]
    styles = ["" if row["memory"]["fits"] else "red" for row in rows]
    fitted_table(console, shown, [[cell[title] for title in shown] for cell in cells], IMPORTANT, styles)
    for plan, reason in left_out:
        console.print(f"left out: {plan}: {' '.join(str(reason).split())}", soft_wrap=True, markup=False)
    for row in rows:
        if row["advice"]:
            plan = name(row["topology"], row["sweep"])
            console.print(f"{plan} does not fit: try {', or '.join(row['advice'])}", soft_wrap=True)
    methods = [f"{row['topology']}: {row['method']}" for row in rows if row["method"]]
    for note in dict.fromkeys([*(note for row in rows for note in row["assumed"]), *methods]):
        console.print(note, style="dim", soft_wrap=True)


def name(topology: str, sweep: Sequence[str]) -> str:
    """A plan as tables name it: the machine, and what is swept."""
    return " ".join([topology, *map(short, sweep)])


def _cells(row: Row) -> dict[str, str]:
    memory = row["memory"]
    return {
        "plan": name(row["topology"], row["sweep"]),
        "cores": f"{row['devices']}",
        "images/core": f"{row['images_per_core']:g}",
        "state": human_bytes(memory["state"]),
        "memory": human_bytes(memory["total"]),
        "fits": "yes" if memory["fits"] else "no",
        "step": _step(row),
        "images/s": f"{row['images_per_second']:,.0f}" if row["images_per_second"] else "",
        "MFU": human_percent(row["mfu"]) if row["mfu"] else "",
        "time": human_seconds(3600 * row["hours"]) if row["hours"] else "",
        "cost": f"${row['cost']:,.{0 if row['cost'] >= CENTS_BELOW else 2}f}" if row["cost"] else "",
    }


def _step(row: Row) -> str:
    return f"{1000 * row['step_seconds']:.1f} ms" if row["step_seconds"] else ""


def _facts(console: Console, row: Row) -> None:
    memory, limit = row["memory"], row["memory"]["capacity"]
    share = f" of {human_bytes(limit)}" if limit else ""
    parts = ("arguments", "temporaries", "outputs", "program")
    mesh = " x ".join(f"{axis} {size}" for axis, size in row["mesh"].items())
    facts = {
        "configuration": row["config"],
        "devices": f"{row['devices']} x {row['device_kind']} ({row['chips']} chips), mesh {mesh}",
        "model": f"{row['model']}, {row['dtype']}, {human_count(row['parameters'])} parameters"
        + (f", remat {row['remat']}" if row["remat"] else ""),
        "FLOPs per image": f"{human_count(row['flops_per_image'])}; in a training step "
        f"{human_count(row['train_flops_per_image'])}",
        "batch": f"{row['batch_size']:,} images, {row['images_per_core']:g} a core",
        "memory a core": f"{human_bytes(memory['total'])}{share}: "
        + ", ".join(f"{part} {human_bytes(memory[part])}" for part in parts if memory[part]),
        "state a core": human_bytes(memory["state"]),
        "fits": "yes" if memory["fits"] else f"no; try {', or '.join(row['advice'])}",
        **{kind: f"{found['count']} with {human_bytes(found['bytes'])}" for kind, found in row["collectives"].items()},
        "step": f"{_step(row)}: {row['method']}" if row["step_seconds"] else "",
        "of which links": f"{1000 * row['link_seconds']:.1f} ms" if row["link_seconds"] else "",
        "images per second": f"{row['images_per_second']:,.0f}" if row["images_per_second"] else "",
        "model FLOPs used": f"{human_percent(row['mfu'])} of the peak" if row["mfu"] else "",
        "training": f"{row['steps']:,} steps, {human_seconds(3600 * row['hours'])}" if row["hours"] else "",
        "cost": f"${row['cost']:,.2f} for {row['chip_hours']:,.1f} chip-hours" if row["cost"] else "",
        **_measured(row),
        "compiled in": human_seconds(row["compile_seconds"]),
        "assumed": "; ".join(row["assumed"]),
    }
    table = Table.grid(padding=(0, 2))
    for label, value in facts.items():
        if value:
            table.add_row(Text(f"  {label}", style="dim", no_wrap=True), Text(value, overflow="fold"))
    console.print(table)


def _measured(row: Row) -> dict[str, str]:
    """Predicted over measured, where steps were run."""
    if not row["measured"]:
        return {}
    seconds, peak = row["measured"]["step_seconds"], row["measured"]["peak_bytes"]
    predicted = row["memory"]["total"] * row["devices"]
    return {
        "measured step": f"{1000 * seconds:.1f} ms; predicted {row['step_seconds'] / seconds:.2f} of it",
        "measured memory": f"{human_bytes(peak)}; predicted {predicted / peak:.2f} of it",
    }
