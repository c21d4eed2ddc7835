"""The tables are what the results say, and docs/ has them as the generator makes them of the committed ones."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, tables
from tests.conftest import REPOSITORY
from vit_jax.command import UserError

GPU, CPU = "1 x NVIDIA H200", "1 x CPU (Fast Thing, 2 cores)"


def row(contender: str, model: str = "vit/B16", seconds: tuple[float, ...] = (2.0, 4.0, 4.0), **others: Any) -> dict:
    found = {"model": model, "mode": "train", "dtype": "bfloat16", "batch_size": 8, "image_size": 224}
    found |= {"overrides": [], "contender": contender, "seconds_per_step": seconds, "cpu_seconds_per_step": seconds}
    found |= {"images_per_second": 8 / 4, "tflops": 0.5, "mfu": 0.5, "peak_bytes": 3 * 2**30, "compile_seconds": 1.0}
    return found | others


def write(folder: Path, name: str, rows: list[dict], device: str, day: int = 1, **others: Any) -> None:
    about = {"date": f"2026-01-0{day}T00:00:00+00:00", "cores_used": 1, "versions": {"jax": "0.1", "torch": "2.3"}}
    content = {"kind": name.partition("-")[0], "device": device, "gpu": device == GPU, "rows": rows}
    content |= {"ceilings": {"bfloat16": {"tflops": others.pop("ceiling", 700.0)}}, "machine": about | others}
    (folder / f"{name}.json").write_text(json.dumps(content))


def line(text: str, *words: str) -> list[str]:
    """The cells of the one line that has all of these."""
    (found,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_pages_have_every_table_once_as_the_results_say() -> None:
    made, text = tables.tables(), "".join(page.read_text() for page in tables.PAGES)
    assert tables.fill(text, made) == text, "run `python -m benchmarks.tables`"
    assert sorted(re.findall(r"<!-- table: (\S+) -->", text)) == sorted(made)
    assert text.count("<!-- table: ") == text.count("<!-- end -->")


def test_peers_are_compared_round_by_round(tmp_path: Path) -> None:
    peer = row("torch.compile", seconds=(3.0, 4.0, 10.0))
    write(tmp_path, "throughput-1", [row("ours"), peer, row("flax", failed="out of memory")], GPU)
    found = tables.tables(tmp_path)
    cells = line(found["peers"], "torch.compile 2.3")
    assert cells[6:] == ["2.0", "2.0", "1.50", "1.00 to 2.50", "", "0.1", "2026-01-01"]  # median of 1.5, 1.0, 2.5
    assert "flax" not in found["peers"]
    assert line(found["throughput"], "vit/B16")[6:9] == ["2.0", "0.5", "50.0%"]


def test_the_newer_result_counts_and_a_ratio_stays_within_its_run(tmp_path: Path) -> None:
    peer = row("torch", dtype="float32", seconds=(4.0, 4.0, 8.0))
    old = row("ours", dtype="float32", images_per_second=111.0)
    new = row("ours", dtype="float32", seconds=(9.0, 9.0), images_per_second=222.0)
    write(tmp_path, "throughput-1", [old, peer], CPU, day=1)
    write(tmp_path, "throughput-2", [new], CPU, day=2)
    found = tables.tables(tmp_path)
    cells = line(found["throughput"], "vit/B16")
    assert cells[0] == "CPU (Fast Thing, 2 cores), 1 used" and cells[5:9] == ["", "222.0", "0.5", ""]
    assert cells[-1] == "2026-01-02" and line(found["peers"], "torch")[8] == "2.00"
    write(tmp_path, "throughput-3", [new], CPU, day=3, versions={"jax": "0.2"})  # another release is no newer result
    write(tmp_path, "throughput-4", [new], CPU, day=3, xla_flags="--xla_a=1", cpu_units=["amx_bf16"], load_average=2.4)
    again = tables.tables(tmp_path)["throughput"].splitlines()[2:]
    assert len(again) == 3 and "Fast Thing, 2 cores), AMX, 1 used, load 2 | vit/B16 `--xla_a=1`" in "".join(again)


def test_a_failure_stands_in_the_place_of_the_speed(tmp_path: Path) -> None:
    failed = {key: row("ours")[key] for key in ("model", "mode", "dtype", "batch_size", "overrides", "contender")}
    write(tmp_path, "throughput-1", [failed | {"failed": "out of memory"}], GPU)
    assert line(tables.tables(tmp_path)["throughput"], "vit/B16")[5:8] == ["", "failed: out of memory", ""]


def test_the_wait_is_a_share_of_the_step_and_a_busy_gpu_proves_nothing(tmp_path: Path) -> None:
    found = row("ours", seconds=(2.0, 2.0), input_seconds_per_step=(0.05, 0.01), attention="auto")
    write(tmp_path, "throughput-1", [found], GPU, ceiling=649.0)
    cells = line(tables.tables(tmp_path)["throughput"], "vit/B16")
    assert cells[5] == "plain" and cells[8:10] == ["", "1.5%"]


def test_input_start_and_trace(tmp_path: Path) -> None:
    about = {"data": "photos", "image_size": 160, "batch_size": 8, "threads": 4, "workers": 2, "images": 9}
    ours = {**about, "contender": "feed, streamed", "images_per_second": 1500.0, "rounds": [1500.0, 1600.0, 1000.0]}
    peer = {**about, "contender": "torch, crop", "images_per_second": 1000.0, "rounds": [1000.0, 1000.0, 1000.0]}
    write(tmp_path, "input-1", [ours, peer], CPU)
    stages = {"import_seconds": 1.0, "build_seconds": 2.0, "step_seconds": 3.0, "seconds": 6.0}
    write(tmp_path, "startup-1", [{"model": "vit/B16", "dtype": "float32", "cache": "cold", **stages}], CPU)
    shares = {"kinds": {"copies": 0.5, "reductions": 0.004}, "parts": {"MLP": 0.25}, "idle": 0.5}
    traced = row("", seconds_per_step=0.1, kernels_per_step=7, **shares)
    write(tmp_path, "trace-1", [{key: traced[key] for key in traced if key != "contender"}], GPU)
    found = tables.tables(tmp_path)
    assert line(found["input"], "feed, streamed")[1:8] == ["photos", "160", "4", "", "feed, streamed", "1,500", ""]
    assert line(found["input"], "torch, crop")[3:8] == ["", "2", "torch, crop", "1,000", "1.50"]
    assert line(found["startup"], "vit/B16")[3:8] == ["empty", "1.0 s", "2.0 s", "3.0 s", "6.0 s"]
    assert line(found["trace"], "vit/B16")[5:10] == ["100.00 ms", "7", "copies 50%", "MLP 25%", "50%"]


def test_each_kind_of_plan_has_its_table(tmp_path: Path) -> None:
    plan = {"topology": "v3:2x2", "config": "configs/a.py:b", "devices": 8, "batch_size": 512, "assumed": []}
    plan |= {"overrides": ["data.data_dir=/x", "model.remat=auto"], "remat": "dots", "sweep": ["mesh.fsdp=8"]}
    plan |= {"images_per_core": 64.0, "memory": {"total": 3 * 2**30, "state": 2**20, "fits": False}, "mfu": 0.5}
    plan |= {"step_seconds": 0.25, "images_per_second": 2048.0, "measured": {}}
    measured = plan | {"topology": "cpu:8", "date": "2026-01-02T03:04:05+00:00"}
    measured["measured"] = {"step_seconds": 0.5, "peak_bytes": 2**30}
    steps = {"textbook": {"step_seconds": 0.2, "memory": 2**30}, "ours": {"step_seconds": 0.18, "memory": 2**30}}
    steps |= {"topology": "v3:2x2", "images_per_core": 64, "step_seconds_ratio": 0.9}
    (tmp_path / "plan-a.json").write_text(json.dumps([plan, measured]))
    (tmp_path / "plan-textbook.json").write_text(json.dumps(steps))
    found, changed = tables.tables(tmp_path), "a.py:b `model.remat=auto` (dots) `mesh.fsdp=8`"
    cells = line(found["plans"], "v3:2x2")
    assert cells[:5] == ["v3:2x2", changed, "8", "64", "3.00 GiB: too much"]
    assert cells[6:] == ["250 ms", "2,048", "50.0%", ""]
    cells = line(found["checks"], "cpu:8")
    assert cells[1:4] == [changed, "512", "at hand"]
    assert cells[4:] == ["250 ms", "500 ms", "24.00 GiB", "1.00 GiB", "2026-01-02"]  # of all devices
    assert line(found["textbook"], "v3:2x2")[2:5] == ["200.00 ms", "180.00 ms", "0.900"]


def test_a_page_that_names_no_table_of_ours_is_refused() -> None:
    text = "a\n<!-- table: x -->\nstale\n<!-- end -->\nb\n"
    filled = tables.fill(text, {"x": "| new |\n"})
    assert filled == "a\n<!-- table: x -->\n\n| new |\n\n<!-- end -->\nb\n" == tables.fill(filled, {"x": "| new |\n"})
    with pytest.raises(UserError, match="there is no table 'x'; choose from y"):
        tables.fill(text, {"y": ""})


RELIABILITY = ("chaos", "disturbed", "flips", "fuzz")


def test_benchmarks_stay_small_and_name_no_place() -> None:
    for path in (*machine.RESULTS.glob("**/*.json"), *tables.PAGES):
        assert not re.search(r'["` ]/(?:home|work|root|tmp|usr|srv)', path.read_text()), path.name
    speed = [path for path in (REPOSITORY / "benchmarks").glob("*.py") if path.stem not in RELIABILITY]
    assert sum(len(path.read_text().splitlines()) for path in speed) < 1800
