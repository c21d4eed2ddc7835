"""Plans: the sizes of what is planned, memory and advice, the modelled time, the command."""

import contextlib
import dataclasses
import datetime
import importlib.util
import io
import json
import re

import jax
import pytest
from rich.console import Console

from tests import tiny
from tests.conftest import rest_is_slow
from vit_jax import config, models, plan, platforms, sharding
from vit_jax.command import UserError
from vit_jax.ops import fused_attention
from vit_jax.plan import hlo, memory, subject, table, timing, topology
from vit_jax.plan.chips import CHIPS, GIB, GPUS
from vit_jax.plan.collectives import Collective
from vit_jax.plan.memory import Memory
from vit_jax.plan.topology import Machine

QUICK_TO_COMPILE = False  # the compiler says how much memory a step takes

IMAGENET = "configs/imagenet.py:vit_b16"
SMALL = ("model.depth=1", "model.width=16", "model.mlp_dim=32", "model.num_heads=2", "augment.policy=none")


def flags(*words):
    shape = "--config.data.name=synthetic/4x6x3/3/200"
    return ["--config", tiny.spec("cnn"), shape, "--topology", "cpu:2", *words]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two meshes on two simulated devices; one step is really taken. The plans, and what was printed."""
    out = tmp_path_factory.mktemp("plan") / "plan.json"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert plan.main(flags("--sweep", "mesh.fsdp=1,2", "--price", "3.5", "--measure", "--out", str(out))) == 0
    return json.loads(out.read_text()), printed.getvalue()


@pytest.fixture(scope="module")
def planned(made):
    return made[0]


def test_a_plan_says_what_the_step_takes(planned):
    row = planned[0]
    assert (row["topology"], row["devices"], row["batch_size"], row["images_per_core"]) == ("cpu:2", 2, 40, 20)
    assert row["mesh"] == {"data": 2, "fsdp": 1, "tensor": 1} and row["steps"] == 23
    gradients = row["collectives"]["all-reduce"]["bytes"]
    assert 4 * row["parameters"] <= gradients < 4 * row["parameters"] + 100  # and the metrics
    assert row["memory"]["fits"] and row["advice"] == [] and row["assumed"] == []
    assert row["hours"] == pytest.approx(23 * row["step_seconds"] / 3600)
    assert row["images_per_second"] == pytest.approx(40 / row["step_seconds"])
    assert row["cost"] == pytest.approx(3.5 * 2 * row["hours"])


def test_a_plan_says_when_and_where_it_was_made(planned):
    assert [row["machine"] for row in planned] == [sharding.processor_name()] * 2
    assert all(datetime.datetime.fromisoformat(row["date"]).tzinfo for row in planned)
    assert planned[0]["versions"]["jax"] == jax.__version__


def test_fsdp_shards_the_state(planned):
    assert [row["sweep"] for row in planned] == [["mesh.fsdp=1"], ["mesh.fsdp=2"]]
    whole, sharded = (row["memory"]["state"] for row in planned)
    assert sharded < 0.75 * whole  # the largest matrix, and its two moments


def test_what_is_planned_is_what_is_measured(planned):
    """The compiler's count of arguments is ours, and a step really runs in the memory of its order."""
    for row in planned:
        assert row["measured"]["step_seconds"] > 0 and row["measured"]["peak_bytes"] >= 0
        # The training split, images and labels, lies on each device; a batch holds indices.
        assert row["memory"]["arguments"] - row["memory"]["state"] == 180 * (4 * 6 * 3 + 4) + 20 * 4


def test_the_table_shows_what_differs(made):
    printed = made[1]
    assert "cpu:2 fsdp=1" in printed and "cpu:2 fsdp=2" in printed and "state" in printed and "cores" not in printed


def test_a_sweep_leaves_out_what_cannot_be_and_plans_the_rest(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(plan, "compile_step", lambda planned: (None, needed(arguments=1)))
    out = tmp_path / "plan.json"
    words = ["--topology", "cpu:1,cpu:2", "--sweep", "mesh.fsdp=1,2", "--sweep", "train.batch_size=40,41"]
    assert plan.main(flags(*words, "--out", str(out))) == 0
    lines = capsys.readouterr().out.splitlines()
    made = ["cpu:1 fsdp=1 batch_size=40", "cpu:1 fsdp=1 batch_size=41"]
    made += ["cpu:2 fsdp=1 batch_size=40", "cpu:2 fsdp=2 batch_size=40"]
    assert [line[: len(made[0])] for line in lines[1:5]] == made
    told = [line for line in lines if line.startswith("left out: cpu")]
    assert told[0].startswith("left out: cpu:1 fsdp=2 batch_size=40: mesh data=1 x fsdp=2 x tensor=1 needs 2 devices")
    assert told[2].startswith("left out: cpu:2 fsdp=1 batch_size=41: ") and len(told) == 4
    written = [(row["topology"], row["mesh"]["fsdp"]) for row in json.loads(out.read_text())]
    assert written == [("cpu:1", 1), ("cpu:1", 1), ("cpu:2", 1), ("cpu:2", 2)]


def test_one_plan_that_is_left_of_several_has_its_name(monkeypatch, capsys):
    monkeypatch.setattr(plan, "compile_step", lambda planned: (None, needed(arguments=1)))
    assert plan.main(flags("--sweep", "mesh.fsdp=2,3")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("cpu:2 fsdp=2 ") and lines[2].startswith("left out: cpu:2 fsdp=3: mesh ")


@pytest.mark.parametrize("width", [80, 50])
def test_a_narrow_table_breaks_no_number_and_no_title(planned, width):
    many = {"state": 123 * 2**20, "total": 1013 * 2**20, "fits": False}
    wide = {"topology": "v5e:16x16", "images_per_second": 380904.0, "step_seconds": 12.3456, "cost": 123456.0}
    wide |= {"memory": planned[0]["memory"] | many, "hours": 1234.5, "mfu": 0.123, "devices": 256}
    console = Console(file=io.StringIO(), width=width)
    table.show(console, [planned[0], planned[1] | wide | {"images_per_core": 1024.25}])
    title, *rows = console.file.getvalue().splitlines()[:3]
    assert title.split()[0] == "plan" and rows[1].startswith("v5e:16x16 fsdp=2 ")
    assert {"fits", "step", "images/s"} <= set(title.split()) and {"380,904", "no"} <= set(rows[1].split())
    assert all(len(line) <= width for line in (title, *rows)) and "12345.6 ms" in rows[1]
    assert "left out for lack of width: " in console.file.getvalue()


def test_a_data_set_that_is_not_here_is_planned_by_its_published_size():
    size = ("data.data_dir=/nowhere", "data.image_size=(160,192)", "augment.resize=(32,)")
    given = subject.prepare(config.load(IMAGENET, [*size, *SMALL]))
    assert len(given.inputs.data.class_names) == 1000
    assert given.inputs.data.size("train") == 1_268_355  # without the hundredth that validates
    assert "1,281,167 images of 1,000 classes, 160x192x3" in given.assumed[0]
    other = subject.prepare(
        config.load(IMAGENET, ["data.name=ours", "optim.warmup_steps=0", *SMALL]), images=5000, classes=7
    )
    assert len(other.inputs.data.class_names) == 7 and other.inputs.data.size("train") == 4950
    for sizes, lacking in (({"images": 5000}, "give --classes too"), ({"classes": 7}, "give --images too")):
        with pytest.raises(UserError, match=lacking):
            subject.prepare(config.load(IMAGENET, ["data.name=ours", *SMALL]), **sizes)
    with pytest.raises(UserError, match="--images N --classes K"):
        subject.prepare(config.load(IMAGENET, ["data.name=ours", "data.data_dir=/nowhere", *SMALL]))


def test_a_teacher_is_left_out_and_said_so():
    loaded = config.load(IMAGENET, ["data.data_dir=/nowhere", "distill.teacher=runs/x", *SMALL])
    assert "teacher is left out" in subject.prepare(loaded).assumed[1]


@pytest.mark.parametrize(
    ("kind", "attention", "said"),
    [("TPU v3", "auto", False), ("TPU v5 lite", "auto", True), ("TPU v5 lite", "plain", False)],
)
def test_what_a_run_would_time_is_assumed(monkeypatch, kind, attention, said):
    loaded = config.load(tiny.spec("vit"), [f"model.attention={attention}"])
    planned = subject.build(subject.prepare(loaded), topology.describe("cpu:1"))
    there = fused_attention.runs_on
    monkeypatch.setattr(fused_attention, "runs_on", lambda name, *_: there(name, "tpu", kind))
    assert any("takes pallas" in text for text in subject.untimed(planned)) == said


@pytest.fixture
def mesh():
    return sharding.make_mesh(sharding.Settings(), jax.devices()[:4])


def needed(**parts):
    return Memory(**{"state": 0, "arguments": 0, "outputs": 0, "temporaries": 0, "program": 0, "capacity": 94, **parts})


def test_what_fits(mesh):
    assert needed(temporaries=94).fits and not needed(temporaries=94, program=1).fits
    assert needed(temporaries=10**9, capacity=0).fits


def test_advice(mesh):
    given = config.load(IMAGENET, ["train.batch_size=48"])
    state = {"Dense_0": {"kernel": jax.ShapeDtypeStruct((8, 2), "float32")}}  # 64 bytes, 16 over four devices
    assert memory.advice(given, needed(temporaries=50), state, mesh) == []
    # 12 images a core. Of 94, 200 / 3 fits; 75 of state and a third of it never do, half of 64 and 36 do.
    images = memory.advice(given, needed(temporaries=200), state, mesh)
    assert images == ["--config.train.accumulate=3", "--config.model.remat=full"]
    parameters = memory.advice(given, needed(state=75, arguments=75, temporaries=36), state, mesh)
    assert parameters == ["--config.mesh.fsdp=2", "--config.model.remat=full"]
    both = memory.advice(given, needed(state=75, arguments=75, temporaries=150), state, mesh)
    assert both == ["--config.train.accumulate=3 --config.mesh.fsdp=2", "--config.model.remat=full"]
    one_image = config.load(IMAGENET, ["train.batch_size=4", "model.remat=full"])
    assert "smaller model" in memory.advice(one_image, needed(temporaries=200), state, mesh)[0]


def test_what_the_compiler_says_when_memory_runs_out():
    used = memory.of_refusal("RESOURCE_EXHAUSTED: XLA:TPU ... Used 27.50G of 15.48G hbm. Exceeded", 2, 3, 16 * GIB)
    assert used is not None and not used.fits and used.total == int(27.5 * GIB)
    words = "the total memory required for HLO temporaries (108.42G) exceeds available HBM (95.74G)."
    other = memory.of_refusal(words, 2, 3 * GIB, 95 * GIB)
    assert other is not None and other.temporaries == int(108.42 * GIB) - 3 * GIB and other.arguments == 3 * GIB
    assert memory.of_refusal("INTERNAL: something else", 2, 3, 16) is None


def test_the_compilers_cycles_over_the_clock():
    machine = Machine("v3:2x1", tuple(jax.devices()[:4]), CHIPS["v3"])
    work = timing.Work(flops=1e12, bytes=1e9, cycles=94_000_000)
    exchanged = [
        Collective("all-reduce", 10**9, group=4, times=1, hidden=False),
        Collective("all-gather", 10**9, group=4, times=1, hidden=True),
    ]
    found = timing.of_tpu(work, exchanged, machine)
    assert found.method == "compiler" and found.computing == pytest.approx(0.1)
    assert found.exposed == pytest.approx(1.5 / 164) and found.links == pytest.approx(3 * 0.75 / 164)
    assert found.seconds == pytest.approx(0.1 + 1.5 / 164)


def test_a_gpus_kernels_run_one_after_the_other():
    """989 TFLOP/s of bfloat16, half of that of TF32; 3.35 TB/s; one way of NVLink to the switch is 450 GB/s."""
    machine = Machine("h100:4", tuple(jax.devices()[:4]), GPUS["h100"].chip)
    work = timing.Work(flops=989e9, bytes=3.35e9, cycles=0)
    sums = [Collective("all-reduce", 900 * 10**6, group=4, times=1, hidden=False)]
    found = timing.of_gpu(work, sums, machine, "bfloat16")
    assert found.method == "kernels" and found.computing == pytest.approx(2e-3)
    assert found.exposed == pytest.approx(3e-3)
    assert timing.of_gpu(work, [], machine, "float32").seconds == pytest.approx(3e-3)
    assert machine.has_gpus and machine.chips == 4 and machine.memory == int(0.75 * 79.6 * GIB)


@pytest.mark.parametrize("kind", GPUS)
def test_a_gpu_is_described_to_its_compiler(kind):
    gpu = GPUS[kind]
    fields = dict(re.findall(r"(\w+): (\S+)", gpu.target()))
    assert fields["core_count"] == str(gpu.multiprocessors)
    assert f"cuda_compute_capability {{ major: {8 if kind == 'a100' else 9} " in gpu.target()
    assert int(fields["device_memory_size"]) == pytest.approx(gpu.chip.core_memory * GIB / 0.75, abs=1)
    per_clock = gpu.chip.flops / (gpu.multiprocessors * gpu.clock)  # of a multiprocessor, bfloat16
    assert per_clock == pytest.approx({"a100": 2048, "h100": 4096, "h200": 4096}[kind], rel=0.1)


def test_a_gpu_needs_its_compiler(monkeypatch):
    monkeypatch.setattr(platforms, "installed", lambda package: False)
    with pytest.raises(UserError, match=r"needs the GPU compiler, which is not installed: pip install .vit_jax.cuda"):
        topology.describe("h100:8")


def test_a_time_budget_gives_the_steps(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        plan, "time_of_step", lambda *_: timing.StepTime(method="m", computing=0.5, links=0.0, exposed=0.0)
    )
    out = tmp_path / "plan.json"
    assert plan.main(flags("--config.train.steps=0", "--config.train.seconds=90", "--out", str(out))) == 0
    (row,) = json.loads(out.read_text())
    assert row["steps"] == 180 and row["hours"] == 90 / 3600 and row["images_per_second"] == 80


def test_the_roofline_where_the_clock_is_not_published():
    machine = Machine("v6e:2x2", tuple(jax.devices()[:4]), CHIPS["v6e"])
    by_products = timing.of_tpu(timing.Work(flops=918e9, bytes=1e6, cycles=7), [], machine)
    assert by_products.method == "roofline" and by_products.seconds == pytest.approx(1e-3)
    by_bytes = timing.of_tpu(timing.Work(flops=1e6, bytes=3.2e9, cycles=7), [], machine)
    assert by_bytes.seconds == pytest.approx(2e-3)
    late = [Collective("all-gather", 4 * 10**9, group=4, times=1, hidden=True)]  # 3 GB over 400 GB/s: 7.5 ms
    assert timing.of_tpu(timing.Work(flops=1e6, bytes=3.2e9, cycles=7), late, machine).exposed == pytest.approx(5.5e-3)


def test_bytes_are_scaled_by_the_turns_that_the_compiler_leaves_out():
    module = hlo.parse("ENTRY %main (x: f32[]) -> f32[] {\n  ROOT %x = f32[] parameter(0)\n}\n")
    assert timing.work(module, 600.0, {"flops": 200.0, "bytes accessed": 10.0}).bytes == 30
    assert timing.work(module, 150.0, {"flops": 200.0, "bytes accessed": 10.0}).bytes == 10


def test_simulated_devices_share_the_machine():
    work, ceilings = timing.Work(flops=4e9, bytes=6e9, cycles=0), timing.Ceilings(flops=2e9, bandwidth=3e9)
    assert timing.of_cpu(work, ceilings, 2).seconds == pytest.approx(8)


def test_published_figures_agree_with_each_other():
    for name, chip in CHIPS.items():
        assert chip.flops / chip.hbm_bandwidth > 50, name
    arrays = {"v2": 2, "v3": 4, "v5e": 4, "v5p": 8}  # of 128 x 128 multiply-adds in a chip
    for name, n in arrays.items():
        assert CHIPS[name].flops == pytest.approx(2 * n * 128**2 * CHIPS[name].clock, rel=0.01), name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--topology", "v9:2x2"], "'v9' is unknown; choose from cpu, v2"),
        (["--topology", "v3"], "has no size; write e.g. v3:4x4"),
        (["--topology", "v5p"], "has no size; write e.g. v5p:4x4x4"),
        (["--topology", "v3:2x2x2"], "has 3 sides; those of v3 have 2: v3:4x4"),
        (["--topology", "v5p:4x4"], "has 2 sides; those of v5p have 3: v5p:4x4x4"),
        (["--topology", "cpu:2x2"], "write e.g. cpu:8"),
        (["--topology", "h100"], "has no size; write e.g. h100:8"),
        (["--topology", "h100:2x4"], "has no size; write e.g. h100:8"),
        (["--topology", "h200:16"], "a machine has at most 8 GPUs"),
        (["--topology", "v3:2x2", "--measure"], "give only --topology cpu:N"),
        (["--price", "-1"], "--price -1 is no price; give dollars per chip and hour"),
        (["--price", "nan"], "--price nan is no price"),
        (["--price", "inf"], "--price inf is no price"),
        (["--classes", "-1"], "must not be negative"),
        (["--sweep", "mesh.fsdp"], "expected FIELD=VALUE"),
        (["--sweep", "mesh.fsd=1"], "did you mean"),
        (["--sweep", "mesh.fsdp=3"], "found 2"),
        (["--config.train.batch_size=41"], "use a multiple of 2"),
    ],
)
def test_mistakes(words, expected, monkeypatch):
    monkeypatch.setattr(plan, "compile_step", lambda planned: (None, needed(arguments=1, capacity=0)))
    with pytest.raises(UserError, match=expected):
        plan.main(flags(*words))


def test_a_file_that_cannot_be_is_found_before_anything_is_compiled(monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "plan", lambda *_, **__: pytest.fail("it compiles"))
    for out, expected in ((tmp_path / "none" / "plan.json", "there is no folder"), (tmp_path, "it is a folder")):
        with pytest.raises(UserError, match=f"cannot write --out {out}: {expected}"):
            plan.main(flags("--out", str(out)))


@pytest.mark.parametrize(("cost", "shown"), [(0.004, "$0.00"), (9.5, "$9.50"), (1234.5, "$1,234")])
def test_a_cost_is_always_shown(planned, capsys, cost, shown):
    table.show(Console(), [row | {"cost": cost} for row in planned])
    assert capsys.readouterr().out.count(shown) == 2


def test_a_step_that_does_not_fit_is_a_row_all_the_same(monkeypatch, capsys):
    monkeypatch.setattr(plan, "compile_step", lambda planned: (None, needed(temporaries=200)))
    assert plan.main(flags()) == 0
    assert "no; try --config.train.accumulate=4" in " ".join(capsys.readouterr().out.split())


def test_without_its_compiler_a_tpu_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "vit_jax\[tpu\]"'):
        topology.describe("v3:2x2")


@pytest.mark.slow
def test_the_tpu_compiler_plans_a_small_configuration(tmp_path):
    pytest.importorskip("libtpu", reason='the TPU compiler is not installed: pip install "vit_jax[tpu]"')
    out = tmp_path / "plan.json"
    words = ["--config", "configs/digits.py", "--topology", "v3:2x2", "--config.train.batch_size=64"]
    assert plan.main([*words, "--config.model.depth=2", "--sweep", "mesh.fsdp=1,8", "--out", str(out)]) == 0
    whole, sharded = json.loads(out.read_text())
    assert whole["devices"] == 8 and whole["chips"] == 4 and whole["device_kind"] == "TPU v3"
    assert whole["method"] == "compiler" and 0 < whole["step_seconds"] < 0.1
    assert whole["memory"]["arguments"] < whole["memory"]["capacity"] == int(15.48 * GIB) and whole["memory"]["fits"]
    assert sharded["memory"]["state"] < whole["memory"]["state"] and "all-gather" in sharded["collectives"]
    with pytest.raises(UserError, match="not divisible"):
        topology.describe("v3:3x5")


def test_every_part_of_the_memory_is_in_the_total():
    parts = {"arguments": 2, "outputs": 3, "temporaries": 5, "program": 7}
    assert needed(**parts).total == sum(parts.values())
    assert {f.name for f in dataclasses.fields(Memory)} == {*parts, "state", "capacity"}


@pytest.mark.parametrize("scan", rest_is_slow([False, True], 0))
def test_fsdp_adds_up_gradients_not_activations(scan):
    """Left alone, XLA computes all images on every device with a part of the width, and adds up activations."""
    model = models.settings(
        "vit", patch_size=(4,), width=16, depth=2, mlp_dim=32, num_heads=2, num_classes=3, scan=scan
    )
    given = config.from_dict(
        {
            "model": model,
            "data": {"name": "synthetic/32x32x3/3/600"},
            "train": {"batch_size": 256, "steps": 5},
            "mesh": {"data": 1, "fsdp": 4},
        }
    )
    found = plan.plan(subject.prepare(given), topology.describe("cpu:4"))
    gradients = 4 * found["parameters"]
    assert 0 < found["collectives"]["all-reduce"]["bytes"] <= 1.1 * gradients
