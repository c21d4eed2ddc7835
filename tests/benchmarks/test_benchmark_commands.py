"""Flags, turns and figures of the benchmark commands; nothing is computed by a model."""

import sys
from pathlib import Path

import pytest

from benchmarks import gpu, input, machine, throughput, tpu_plan, trace
from benchmarks.throughput import Failed, Worker, add_efficiency, in_turns
from benchmarks.workloads import Case, list_of
from vit_jax import command
from vit_jax.command import UserError


@pytest.mark.parametrize(
    ("module", "argv", "message"),
    [
        (throughput, "--models vit/B17", "'vit/B17' is unknown; choose from cifar10:vit, cifar10:cnn, vit/"),
        (throughput, "--modes training", "--modes: 'training' is unknown; choose from train, inference"),
        (throughput, "--dtypes fp16", "choose from float32, bfloat16, float16"),
        (throughput, "--batch-sizes 8,8", "expected different values"),
        (throughput, "--batch-sizes 8,x", "expected numbers of images"),
        (throughput, "--batch-sizes 0", "expected numbers of images"),
        (throughput, "--image-size 0", "--image-size 0 is not positive"),
        (throughput, "--peer keras", "choose from torch, torch.compile, flax, or give a checkout"),
        (throughput, "--peer ../nowhere", "'../nowhere' is unknown"),
        (throughput, "--rounds 0", "--rounds 0 is not positive"),
        (throughput, "--turn 0", "--turn 0.0 is not positive"),
        (throughput, "--round-s 2", "unrecognized arguments"),
        (throughput, "--peer torch --config.model.depth=6", "model.depth would change ours alone"),
        (throughput, "--config.train.batch_size=6", "--models, --dtypes, --batch-sizes are for all"),
        (input, "--batch-size 0", "--batch-size 0 is not positive"),
        (input, "--workers -1", "--workers -1 is negative"),
        (input, "--peer tf", "choose from 'torch'"),
        (input, "--config.seed=1", "takes no overrides"),
        (trace, "--steps 0", "--steps 0 is not positive"),
        (trace, "--models vit/B17", "'vit/B17' is unknown"),
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
    ours = {"mode": "train", "images_per_second": 10.0, "flops_per_image": 2 * 10**10}
    rows = [ours, {"mode": "train", "images_per_second": 5.0}, {"mode": "train", "failed": "out of memory"}]
    add_efficiency(rows, 1.2)
    assert [row.get("tflops") for row in rows] == pytest.approx([0.6, 0.3, None])
    assert [row.get("mfu") for row in rows] == pytest.approx([0.5, 0.25, None])
    inference = [ours | {"mode": "inference"}]
    add_efficiency(inference, 1.2)
    assert inference[0]["tflops"] == pytest.approx(0.2)


def test_values_of_a_flag() -> None:
    assert list_of("a, b", "--x") == ["a", "b"]


def checkout(folder: Path, program: str) -> str:
    """A folder like another checkout of this repository, whose worker is this program."""
    (folder / "benchmarks").mkdir(parents=True)
    (folder / "benchmarks" / "__init__.py").touch()
    (folder / "benchmarks" / "worker.py").write_text(program)
    return str(folder)


def test_a_worker_that_dies_says_why(tmp_path: Path) -> None:
    program = "import sys; print('noise'); print('@{}', flush=True); sys.exit('ValueError: out of memory')"
    with Worker({"contender": checkout(tmp_path / "other", program)}) as dies:
        assert dies.answer() == {}
        with pytest.raises(Failed, match="^ValueError: out of memory$"):
            dies.time(1)


def test_another_checkout_does_its_own_work(tmp_path: Path) -> None:
    """As `ours` of that folder, by the name of the folder; results name no place."""
    program = """import json, sys
assert json.loads(sys.argv[1])["contender"] == "ours"
print('@{"step_seconds": 1}', flush=True)
for line in sys.stdin:
    print('@' + json.dumps({"seconds": 2.0 * int(line)}), flush=True)
"""
    case = Case("vit/B16", "train", "float32", 8)
    (row,) = throughput.measure(case, [checkout(tmp_path / "before", program)], [], rounds=2, turn=3.0)
    assert row["contender"] == "checkout before" and row["steps"] == 3
    assert row["seconds_per_step"] == [2.0, 2.0] and row["images_per_second"] == 4


@pytest.mark.parametrize("together", [False, True])
def test_contenders_compile_one_by_one_or_together(together: bool) -> None:
    """Never is one timed before all are ready."""
    order = []

    class Fake:
        def __init__(self, job: dict, env: dict) -> None:
            self.name = job["contender"]
            assert job["keep_freed"] == (self.name == "ours") and env["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
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

    case = Case("vit/B16", "train", "float32", 8)
    rows = throughput.measure(case, ["ours", "flax"], [], rounds=1, turn=2.0, together=together, start=Fake)
    begun = ["start ours", "start flax", "ready ours"] if together else ["start ours", "ready ours", "start flax"]
    assert order == [*begun, "ready flax", "time ours", "end flax", "end ours"]
    assert rows[0]["images_per_second"] == 4 and rows[0]["steps"] == 4
    assert rows[1]["failed"] == "out of memory"


def test_a_step_of_the_list_ends_with_its_time(tmp_path: Path) -> None:
    """137: killed, with all that it started; else the command's own exit code, with its variables."""
    assert gpu.timed("throughput --models vit/B16", 0.1, tmp_path) == 137
    assert gpu.timed("BENCHMARK=1 nowhere", 500, tmp_path) == 1


@pytest.mark.parametrize("step", gpu.STEPS)
def test_a_step_of_the_list_is_one_that_its_command_takes(step: str) -> None:
    minutes, *words = [word for word in step.split() if not word.startswith("XLA_FLAGS=--")]
    module = {"throughput": throughput, "trace": trace, "input": input}[words[0]]
    assert float(minutes) > 0
    with pytest.raises(UserError, match="unrecognized arguments: --end"):  # all the others were understood
        module.main([*words[1:], "--end"])


def test_results_are_whole_after_each_row(tmp_path: Path) -> None:
    first, second = (machine.Results("input", tmp_path, device="x") for _ in range(2))
    first.add({"images_per_second": 1.0})
    second.add({"images_per_second": 2.0})
    assert '"images_per_second": 1.0' in first.path.read_text() and "2.0" in second.path.read_text()
    assert not list(tmp_path.glob("*.tmp")) and second.path.parent == tmp_path
    assert {"date", "cpu", "cpu_units", "cores_used", "versions"} <= first.content["machine"].keys()
    assert first.content["machine"]["versions"]["jax"]
