"""The tables of plans."""

import json

import jax

from benchmarks import gpu_plan, plans
from vit_jax import log
from vit_jax.plan import topology
from vit_jax.plan.chips import GPUS
from vit_jax.plan.topology import Machine

PLAN = {
    "topology": "v3:2x2",
    "config": "configs/a.py:b",
    "overrides": ["data.data_dir=/x", "model.scan=true"],
    "sweep": ["mesh.fsdp=8"],
    "devices": 8,
    "batch_size": 512,
    "assumed": [],
    "images_per_core": 64.0,
    "memory": {"total": 3 * 2**30, "state": 2**20, "fits": False},
    "step_seconds": 0.25,
    "images_per_second": 2048.0,
    "mfu": 0.5,
    "measured": {},
}
TEXTBOOK = {
    "topology": "v3:2x2",
    "images_per_core": 64,
    "textbook": {"step_seconds": 0.2, "memory": 2**30},
    "ours": {"step_seconds": 0.18, "memory": 2**30},
    "step_seconds_ratio": 0.9,
}


def test_each_kind_of_row_has_its_table(tmp_path):
    measured = PLAN | {
        "topology": "cpu:8",
        "date": "2026-01-02T03:04:05+00:00",
        "measured": {"step_seconds": 0.5, "peak_bytes": 2**30},
    }
    (tmp_path / "plan-a.json").write_text(json.dumps([PLAN, measured]))
    (tmp_path / "plan-textbook.json").write_text(json.dumps(TEXTBOOK))
    rows = plans.read(tmp_path)
    header, [cells] = plans.plans(rows)
    found = dict(zip(header, cells, strict=True))
    assert found["configuration"] == "a.py:b `model.scan=true` `mesh.fsdp=8`"
    assert found["memory of a core"] == "3.00 GiB: too much" and found["MFU"] == "50.0 %"
    assert found["step"] == "250 ms" and found["images/s"] == "2,048" and found["date"] == ""
    header, [cells] = plans.checks(rows)
    changed = "a.py:b `model.scan=true` `mesh.fsdp=8`"
    assert cells[:4] == ["cpu:8", changed, "512", "at hand"]
    assert cells[4:] == ["250 ms", "500 ms", "24.00 GiB", "1.00 GiB", "2026-01-02"]  # of all devices
    header, [cells] = plans.textbook(rows)
    assert cells[2:5] == ["200.0 ms", "180.0 ms", "0.900"]


def test_what_auto_chose_is_told(tmp_path):
    auto = PLAN | {"overrides": ["model.remat=auto"], "sweep": [], "remat": "dots"}
    (tmp_path / "plan-a.json").write_text(json.dumps([auto]))
    header, [cells] = plans.plans(plans.read(tmp_path))
    assert cells[header.index("configuration")] == "a.py:b `model.remat=auto` (dots)"


def test_a_gpu_s_plan_stands_beside_what_it_measured(tmp_path, monkeypatch):
    """The step that was timed is compiled once more, with the kernel that it took; here by the CPU's compiler."""
    row = {"model": "vit/mu16", "mode": "train", "dtype": "bfloat16", "batch_size": 4, "image_size": 32}
    row |= {"contender": "ours", "memory": "own", "overrides": ["model.depth=1"], "attention": "plain"}
    row |= {"seconds_per_step": [0.5, 0.25, 0.75], "peak_bytes": 2**30, "flops_per_image": 5}
    peer = row | {"contender": "torch"}
    content = {"kind": "throughput", "device": "1 x NVIDIA H100 80GB HBM3", "gpu": True, "rows": [row, peer]}
    content["machine"] = {"date": "2026-01-02T03:04:05+00:00", "cores_used": 16, "load_average": 1.0}
    (tmp_path / "throughput-1.json").write_text(json.dumps(content))
    elsewhere = content | {"device": "1 x NVIDIA T4"}
    (tmp_path / "throughput-2.json").write_text(json.dumps(elsewhere))
    monkeypatch.setattr(topology, "describe", lambda name: Machine(name, tuple(jax.devices()[:1]), GPUS["h100"].chip))
    out = tmp_path / "plan-gpu.json"
    assert gpu_plan.main(["--results", str(tmp_path), "--out", str(out)]) == 0
    (found,) = json.loads(out.read_text())
    assert found["topology"] == "h100:1" and found["method"] == "kernels" and found["step_seconds"] > 0
    assert found["measured"] == {"step_seconds": 0.5, "peak_bytes": 2**30}
    _, [cells] = plans.checks(plans.read(tmp_path))
    changed = "`model.dtype=bfloat16` `model.depth=1` `model.attention=plain`"
    assert cells[:3] == ["h100:1", f"benchmarks/workloads.py:vit/mu16 {changed}", "4"] and cells[5] == "500 ms"
    newer = tmp_path / "plan-gpu-newer.json"
    assert gpu_plan.main(["--results", str(tmp_path), "--newer", "--out", str(newer)]) == 0
    (again,) = json.loads(newer.read_text())
    assert again["measured"] == {} and again["kernels"] == found["kernels"] and found["kernels"]["number"] > 0
    _, [cells] = plans.kernels(plans.read(tmp_path))
    assert cells[3:5] == [log.human_bytes(found["kernels"]["bytes"])] * 2
    assert cells[5:7] == [str(found["kernels"]["number"])] * 2
