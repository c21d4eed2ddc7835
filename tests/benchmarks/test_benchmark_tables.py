"""The tables are what the results say, and README.md is what the generator makes of the committed ones."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, machine, tables
from vit_jax.command import UserError

GPU, CPU = "1 x NVIDIA H200", "1 x CPU (Fast Thing, 2 cores)"


def row(contender: str, model: str = "vit/B16", seconds: tuple[float, ...] = (2.0, 4.0, 4.0), **others: Any) -> dict:
    found = {"model": model, "mode": "train", "dtype": "bfloat16", "batch_size": 8, "image_size": 224, "memory": "own"}
    found |= {"overrides": [], "contender": contender, "seconds_per_step": seconds, "cpu_seconds_per_step": seconds}
    found |= {"images_per_second": 8 / 4, "tflops": 0.5, "mfu": 0.5, "peak_bytes": 3 * 2**30, "compile_seconds": 1.0}
    return found | others


def write(folder: Path, name: str, rows: list[dict], device: str, day: int = 1, ceiling: float = 700.0) -> None:
    kind = name.partition("-")[0]
    content = {"kind": kind, "device": device, "gpu": device == GPU, "ceilings": {"bfloat16": {"tflops": ceiling}}}
    content |= {"machine": {"date": f"2026-01-0{day}T00:00:00+00:00", "cores_used": 1}, "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(content))


def line(text: str, *words: str) -> list[str]:
    """The cells of the one line that has all of these."""
    (found,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_readme_is_in_sync() -> None:
    text = tables.README.read_text()
    assert tables.fill(text, tables.read(machine.RESULTS)) == text, "run `python -m benchmarks.tables`"


def test_nothing_of_a_gpu_is_claimed_before_it_was_measured() -> None:
    text = tables.targets_table([])
    assert text.count(tables.NOT_YET) == 9
    assert line(text, "vit/L16")[1:] == [">= 60%", "not yet run on a GPU"]
    assert line(text, "DataLoader", "the same on the host")[-1] == "not yet run"


def test_peers_are_compared_round_by_round(tmp_path: Path) -> None:
    peer = row("torch.compile", seconds=(3.0, 4.0, 10.0))
    write(tmp_path, "throughput-1", [row("ours"), peer, row("torch", failed="out of memory")], GPU)
    rows = tables.read(tmp_path)
    cells = line(tables.peers_table(rows), "torch.compile")
    assert cells[7:] == ["2.0", "2.0", "1.50", "1.00 to 2.50", ""]  # the median of 1.5, 1.0, 2.5
    assert line(tables.targets_table(rows), "vit/B16", "compile")[-1] == "1.50x (batch 8)"
    assert line(tables.targets_table(rows), "vit/B16", "MFU")[-1] == "50.0%"


def test_the_newer_result_counts_and_a_ratio_stays_within_its_run(tmp_path: Path) -> None:
    peer = row("torch", model="cifar10:vit", dtype="float32", seconds=(4.0, 4.0, 8.0))
    old = row("ours", model="cifar10:vit", dtype="float32", images_per_second=111.0)
    new = row("ours", model="cifar10:vit", dtype="float32", seconds=(9.0, 9.0), images_per_second=222.0)
    write(tmp_path, "throughput-1", [old, peer], CPU, day=1)
    write(tmp_path, "throughput-2", [new], CPU, day=2)
    rows = tables.read(tmp_path)
    cells = line(tables.throughput_table(rows), "cifar10:vit")
    assert cells[0] == "CPU (Fast Thing, 2 cores), 1 used" and cells[5:7] == ["", "222.0"] and cells[-1] == "2026-01-02"
    assert line(tables.peers_table(rows), "torch")[9] == "2.00"


def test_the_wait_is_a_share_of_the_step(tmp_path: Path) -> None:
    found = row("ours", model="cifar10:vit", seconds=(2.0, 2.0), input_seconds_per_step=(0.05, 0.01))
    less = row("ours", model="cifar10:vit", seconds=(2.0, 2.0), input_seconds_per_step=(0.01, 0.01), batch_size=7)
    write(tmp_path, "throughput-1", [found, less], GPU)
    assert line(tables.targets_table(tables.read(tmp_path)), "waiting")[-1] == "1.5%"


def test_what_a_gpu_has_not_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = ("throughput", "--models", "vit/B16,vit/S16", "--peer", "torch", *gpu.QUICK)
    plain = ("throughput", "--models", "vit/B16", "--config.model.attention=plain", *gpu.QUICK)
    monkeypatch.setattr(gpu, "STEPS", ((peers, 1.0), (plain, 1.0), (("trace", "--model", "vit/B16"), 1.0)))
    monkeypatch.setattr(gpu, "default_batch", lambda model, on_gpu: 8)
    measured = [row("ours"), row("torch"), row("ours", model="vit/S16")]
    write(tmp_path, "throughput-1", measured, GPU)
    write(tmp_path, "throughput-2", [row("torch", model="vit/S16")], CPU)
    commands = ["throughput --models vit/B16,vit/S16 --peer torch"]
    commands += ["throughput --models vit/B16 --config.model.attention=plain", "trace --model vit/B16"]
    assert gpu.not_run(tables.read(tmp_path)) == [f"python -m benchmarks.{command}" for command in commands]
    write(
        tmp_path, "throughput-3", [row("torch", model="vit/S16"), row("ours", overrides=["model.attention=plain"])], GPU
    )
    assert gpu.not_run(tables.read(tmp_path)) == ["python -m benchmarks.trace --model vit/B16"]
    sizes = ("throughput", "--models", "vit/B16", "--batch-sizes", "8,16", *gpu.QUICK)
    monkeypatch.setattr(gpu, "STEPS", ((sizes, 1.0),))
    assert len(gpu.not_run(tables.read(tmp_path))) == 1
    write(tmp_path, "throughput-4", [row("ours", batch_size=16)], GPU)
    assert gpu.not_run(tables.read(tmp_path)) == []


def test_a_gpu_that_others_used_proves_nothing(tmp_path: Path) -> None:
    write(tmp_path, "throughput-1", [row("ours")], GPU, ceiling=649.0)
    assert line(tables.targets_table(tables.read(tmp_path)), "vit/B16", "MFU")[-1] == tables.NOT_YET


def test_input_and_start(tmp_path: Path) -> None:
    about = {"data": "photos", "image_size": 160, "batch_size": 8, "threads": 4, "workers": 2, "images": 9}
    ours = {**about, "contender": "feed, streamed", "images_per_second": 1500.0, "rounds": [1500.0, 1600.0, 1000.0]}
    peer = {**about, "contender": "torch, crop", "images_per_second": 1000.0, "rounds": [1000.0, 1000.0, 1000.0]}
    write(tmp_path, "input-1", [ours, peer], CPU)
    stages = {"import_seconds": 1.0, "build_seconds": 2.0, "step_seconds": 3.0, "seconds": 6.0}
    write(tmp_path, "startup-1", [{"model": "vit/B16", "dtype": "float32", "cache": "cold", **stages}], CPU)
    rows = tables.read(tmp_path)
    assert line(tables.targets_table(rows), "DataLoader", "the same on the host")[-1] == "1.50x"
    assert line(tables.input_table(rows), "feed, streamed")[1:7] == [
        "photos",
        "160",
        "4",
        "",
        "feed, streamed",
        "1,500",
    ]
    assert line(tables.startup_table(rows), "vit/B16")[3:8] == ["empty", "1.0 s", "2.0 s", "3.0 s", "6.0 s"]


def test_the_dearest_augmentation_is_held_against_the_target(tmp_path: Path) -> None:
    times = {"none": (2.0, 3.5, 2.0), "flip": (2.0, 3.4, 2.5), "policy": (2.5, 4.0, 2.2)}
    shares = {"none": 0.0, "flip": 0.0, "policy": 0.125}
    rows = [
        row("ours", "vit/S16", times[view], view=view, shares={"flops": 0.0, "bytes": 0.02, "seconds": share})
        for view, share in shares.items()
    ]
    write(tmp_path, "augmentation-1", rows, GPU)
    rows = tables.read(tmp_path)
    assert line(tables.targets_table(rows), "augmentation's share")[1:] == ["< 15%", "12.5%"]
    cells = line(tables.augmentation_table(rows), "policy")
    assert cells[:7] == ["NVIDIA H200", "vit/S16", "bfloat16", "8", "policy", "0.0 %", "2.0 %"]
    assert cells[7:] == ["12.5 % (9.1 to 20.0)", "2026-01-01"]
    assert line(tables.augmentation_table(rows), "flip")[7] == "not measurable (-2.9 to 20.0 %)"
    assert "none" not in tables.augmentation_table(rows)


def test_growth_is_held_against_one_of_the_same_run(tmp_path: Path) -> None:
    about = {"config": "configs/digits.py", "overrides": ["seed=1"], "batch_size": 64}
    one = {"what": "devices", "number": 1, "images_per_second": 200.0, "rounds": [100.0, 200.0, 300.0]}
    two = {"what": "devices", "number": 2, "images_per_second": 240.0, "rounds": [150.0, 240.0, 390.0]}
    alone = {"what": "processes", "number": 2, "images_per_second": 50.0, "rounds": [50.0]}
    layers = [
        {"what": "layers", "number": number, "model": "vit/Ti16", "compile_seconds": seconds, "rounds": [seconds]}
        for number, seconds in {12: 4.0, 48: 5.0}.items()
    ]
    rows = [about | one, about | two | {"all_reduced_bytes": 1234}, about | alone, *layers]
    write(tmp_path, "growth-1", rows, CPU)
    rows = tables.read(tmp_path)
    cells = line(tables.growth_table(rows), "2 simulated devices")
    assert cells[1:] == [
        "digits.py `seed=1`",
        "64",
        "2 simulated devices",
        "240",
        "1.30 (1.20 to 1.50)",
        "120",
        "1,234 bytes",
        "2026-01-01",
    ]
    assert line(tables.growth_table(rows), "1 simulated device")[4:8] == ["200", "1.00", "200", ""]
    assert line(tables.growth_table(rows), "2 real processes")[4:7] == ["50", "", "25"]
    assert [line(tables.layers_table(rows), f"| {n} |")[3:5] for n in (12, 48)] == [
        ["4.0 s", "1.00"],
        ["5.0 s", "1.25"],
    ]


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_without_results_no_table_is_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setattr(tables, "README", tmp_path / "README.md")
    with pytest.raises(UserError, match="is no folder with results"):
        tables.main(["--results", str(tmp_path / folder)])
    assert not list(tmp_path.iterdir())


def test_every_table_has_its_place() -> None:
    text = "".join(f"<!-- table: {name} -->\nstale\n<!-- end -->\nsame\n" for name in tables.TABLES)
    filled = tables.fill(text, [])
    assert "stale" not in filled and filled.count("\nsame\n") == len(tables.TABLES)
    assert tables.fill(filled, []) == filled
    with pytest.raises(UserError, match="0 places for the table 'targets'"):
        tables.fill("", [])


def test_committed_results_name_no_place() -> None:
    for path in machine.RESULTS.glob("*.json"):
        assert not re.search(r'"/(?:home|work|root|tmp|usr)', path.read_text()), path.name
