"""Flags, turns and figures of the benchmark commands; nothing is computed by a model."""

import sys
from pathlib import Path

import pytest

from benchmarks import augmentation, flags, gpu, gpu_plan, growth, input, machine, startup, throughput, tpu_plan, trace
from benchmarks.throughput import Failed, Worker, add_efficiency, contenders, in_turns, list_of
from benchmarks.workloads import Case
from vit_jax import command
from vit_jax.command import UserError


@pytest.mark.parametrize(
    ("module", "argv", "message"),
    [
        (throughput, "--models vit/B17", "'vit/B17' is unknown"),
        (throughput, "--modes training", "--modes: 'training' is unknown; choose from train, inference"),
        (throughput, "--dtypes fp16", "choose from float32, bfloat16, float16"),
        (throughput, "--batch-sizes 8,8", "expected different values"),
        (throughput, "--batch-sizes 8,x", "expected numbers of images"),
        (throughput, "--peer keras", "choose from torch, flax"),
        (throughput, "--memory none", "choose from own, kept, freed"),
        (throughput, "--rounds 0", "--rounds 0 is not positive"),
        (throughput, "--round-s 2", "unrecognized arguments"),
        (input, "--batch-size 0", "--batch-size 0 is not positive"),
        (input, "--workers -1", "--workers -1 is negative"),
        (input, "--peer tf", "choose from torch"),
        (input, "--config.seed=1", "reads no configuration"),
        (throughput, "--peer torch --config.model.depth=6", "model.depth would change ours alone, not what it is held"),
        (throughput, "--config.train.batch_size=6", "--batch-sizes, --dtypes and --image-size are for all"),
        (startup, "--models nothing", "'nothing' is unknown"),
        (startup, "--rounds 0", "--rounds 0"),
        (augmentation, "--rounds 0", "--rounds 0"),
        (growth, "--steps 0", "--steps 0, --rounds 3: expected positive numbers"),
        (growth, "--layers 12,x", "--layers '12,x': expected positive numbers, comma-separated"),
        (growth, "--processes 0", "--processes '0': expected positive numbers"),
        (growth, "--devices 2,3", "train.batch_size=128 cannot be divided by 3"),
        (growth, "--config configs/nothing.py", "configs/nothing.py"),
        (trace, "--steps 0", "--steps 0 is not positive"),
        (trace, "--batch-size -1", "--batch-size -1, --image-size 224: expected positive numbers"),
        (flags, "--flags xla_a=2 --image-size 0", "--image-size 0"),
        (trace, "--model vit/B17", "'vit/B17' is unknown"),
        (flags, "--flags autotune=2", "expected XLA's names with values"),
        (flags, "--flags xla_a=2 --rounds 0", "--rounds 0"),
        (gpu_plan, "--out plan.json --results nowhere", "nothing there was measured on a100, h100, h200"),
        (gpu_plan, "--out nowhere/plan.json", "cannot write --out nowhere/plan.json"),
        (gpu, "--minutes 0", "--minutes 0.0 is not positive"),
        (tpu_plan, "--topology cpu:1 --out plan.json", "compiles for one TPU; give e.g. v3:2x2"),
        (tpu_plan, "--topology v3:2x2,v5e:2x2 --out plan.json", "compiles for one TPU"),
        (tpu_plan, "--topology v9:2x2 --out plan.json", "'v9' is unknown"),
        (tpu_plan, "--out nowhere/plan.json", "cannot write --out nowhere/plan.json: there is no folder nowhere"),
    ],
)
def test_a_mistake_is_one_line(module, argv: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as mistake:
        module.main(argv.split())
    assert "\n" not in str(mistake.value)


def test_a_misspelt_flag_exits_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["throughput", "--modles", "vit/B16"])
    with pytest.raises(SystemExit) as end:
        command.run(throughput.main)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_turns_change_and_times_are_per_step() -> None:
    order = []

    def timer(name: str, seconds: float):
        def run(steps: int) -> dict[str, float]:
            order.append(name)
            return {"seconds": steps * seconds, "cpu_seconds": 2 * steps * seconds}

        return run

    times, failed = in_turns({"a": timer("a", 0.5), "b": timer("b", 3.0)}, {"a": 7, "b": 2}, rounds=3)
    assert not failed and "".join(order) == "abbaab"
    assert times["a"] == [{"seconds": 0.5, "cpu_seconds": 1.0}] * 3
    assert [found["seconds"] for found in times["b"]] == [3.0] * 3


def test_who_breaks_down_does_not_stop_the_others() -> None:
    left = iter([1.0])

    def breaks(steps: int) -> dict[str, float]:
        for seconds in left:
            return {"seconds": seconds}
        raise Failed("out of memory")

    times, failed = in_turns({"a": breaks, "b": lambda steps: {"seconds": 2.0}}, {"a": 1, "b": 1}, rounds=3)
    assert failed == {"a": "out of memory"} and times["b"] == [{"seconds": 2.0}] * 3
    assert in_turns({}, {}, rounds=2) == ({}, {})


def test_training_is_three_forward_passes() -> None:
    about = vars(Case("vit/B16", "train", "float32", 8))
    rows = [
        {**about, "contender": "ours", "images_per_second": 10.0, "flops_per_image": 2 * 10**10},
        {**about, "contender": "torch", "images_per_second": 5.0},
        {**about, "mode": "inference", "contender": "ours", "images_per_second": 10.0, "flops_per_image": 2 * 10**10},
        {**about, "contender": "flax", "failed": "out of memory"},
    ]
    add_efficiency(rows, {"float32": 1.2})
    assert [row.get("tflops") for row in rows] == pytest.approx([0.6, 0.3, 0.2, None])
    assert rows[0]["mfu"] == pytest.approx(0.5) and rows[1]["mfu"] == pytest.approx(0.25)


def test_the_textbook_runs_against_vits_only() -> None:
    peers = ["torch", "flax"]
    assert contenders(Case("cifar10:vit", "train", "float32", 8), peers) == ["ours", "torch", "torch.compile", "flax"]
    assert contenders(Case("resnet/50", "train", "float32", 8), peers) == ["ours", "torch", "torch.compile"]
    assert list_of("a, b", "--x") == ["a", "b"]


def test_a_worker_that_dies_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys; print('noise'); print('@{}', flush=True); sys.exit('ValueError: out of memory')"
    real = throughput.subprocess.Popen
    monkeypatch.setattr(
        throughput.subprocess, "Popen", lambda words, **options: real([sys.executable, "-c", program], **options)
    )
    with Worker({}) as dies:
        assert dies.answer() == {}
        with pytest.raises(Failed, match="^ValueError: out of memory$"):
            dies.time(1)


@pytest.mark.parametrize("together", [False, True])
def test_contenders_compile_one_by_one_or_together(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never is one timed before all are ready."""
    order = []

    class Fake:
        def __init__(self, job: dict, shares: bool) -> None:
            self.name, self.ready = job["contender"], False
            order.append(f"start {self.name}")

        def __enter__(self) -> "Fake":
            return self

        def __exit__(self, *error: object) -> None:
            order.append(f"end {self.name}")

        def answer(self) -> dict:
            order.append(f"ready {self.name}")
            if self.name == "flax":
                raise Failed("out of memory")
            return {"step_seconds": 0.5}

        def time(self, steps: int) -> dict[str, float]:
            order.append(f"time {self.name}")
            return {"seconds": 2.0 * steps}

    monkeypatch.setattr(throughput, "Worker", Fake)
    case = Case("vit/B16", "train", "float32", 8)
    how = {"memory": "own", "rounds": 1, "steps": 0, "turn": 2.0}
    rows = throughput.measure(case, ["ours", "flax"], [], **how, together=together)
    begun = ["start ours", "start flax", "ready ours"] if together else ["start ours", "ready ours", "start flax"]
    assert order == [*begun, "ready flax", "time ours", "end flax", "end ours"]
    assert rows[0]["images_per_second"] == 4 and rows[0]["steps"] == 4
    assert rows[1]["failed"] == "out of memory"


def test_a_step_that_hangs_ends_with_its_time() -> None:
    assert gpu.limited(["timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)"], 0.5) is None
    assert gpu.limited(["benchmarks"], 60) == 1


def test_results_are_whole_after_each_row(tmp_path: Path) -> None:
    first, second = (machine.Results("input", tmp_path, device="x") for _ in range(2))
    first.add({"images_per_second": 1.0})
    again = machine.Results("input", tmp_path)
    again.content["machine"]["date"] = first.content["machine"]["date"]
    assert '"images_per_second": 1.0' in first.path.read_text()
    assert not list(tmp_path.glob("*.tmp")) and second.path.parent == tmp_path
    assert {"date", "cpu", "cores_used", "versions", "python"} <= first.content["machine"].keys()
