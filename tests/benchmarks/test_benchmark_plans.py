"""The tables of plans."""

import json

from benchmarks import plans

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
        "topology": "cpu:1",
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
    assert cells[:4] == ["cpu:1", changed, "512", "at hand"]
    assert cells[4:] == ["250 ms", "500 ms", "3.00 GiB", "1.00 GiB", "2026-01-02"]
    header, [cells] = plans.textbook(rows)
    assert cells[2:5] == ["200.0 ms", "180.0 ms", "0.900"]


def test_what_auto_chose_is_told(tmp_path):
    auto = PLAN | {"overrides": ["model.remat=auto"], "sweep": [], "remat": "dots"}
    (tmp_path / "plan-a.json").write_text(json.dumps([auto]))
    header, [cells] = plans.plans(plans.read(tmp_path))
    assert cells[header.index("configuration")] == "a.py:b `model.remat=auto` (dots)"
