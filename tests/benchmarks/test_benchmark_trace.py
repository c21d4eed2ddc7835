"""Where a step's time goes, and what flags gain: told from kernels' names, and on a step that really ran."""

import json
from pathlib import Path

import pytest

from benchmarks import flags, trace
from benchmarks.ours import Ours
from benchmarks.trace import Kernel
from benchmarks.workloads import Case
from vit_jax.command import UserError

TINY = ["--model", "vit/mu16", "--image-size", "32", "--batch-size", "4", "--config.model.depth=1"]


@pytest.mark.parametrize(
    ("name", "operation", "path", "kind"),
    [
        ("nvjet_sm90_tst_128x160_64x5_2x1_v_bz_NNT", "command_buffer_1", "", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16", "", "", "attention"),
        ("input_add_transpose_fusion_10", "", "jit(f)/add_any", "copies"),
        ("input_multiply_reduce_fusion_15", "", "jit(f)/mul", "reductions"),
        ("loop_convert_fusion_10", "loop_convert_fusion.10", "jit(f)/convert_element_type", "elementwise"),
        ("fusion_3", "fusion.3", "jit(f)/conv/dot_general", "matrix products"),
        ("sm90_xmma_wgrad_implicit_gemm_indexed", "", "", "convolutions"),
    ],
)
def test_a_kernel_s_kind(name: str, operation: str, path: str, kind: str) -> None:
    assert trace.kind(Kernel(name, operation, 1.0, 1), path) == kind


def test_a_kernel_s_part_is_the_innermost() -> None:
    block = "jit(f)/transpose(jvp(ViT))/Transformer/encoderblock_3"
    assert trace.part(f"{block}/MlpBlock_3/Dense_0/dot_general") == "MLP"
    assert trace.part(f"{block}/MultiHeadDotProductAttention_1/query_norm/mul") == "layer norms"
    assert trace.part(f"{block}/MultiHeadDotProductAttention_1/out/dot_general") == "attention"
    assert trace.part("jit(f)/jit(_where)/select_n") == "rest"
    assert trace.part("") == "not told"


def test_time_is_divided_by_kinds_and_parts() -> None:
    """In a CUDA graph a kernel is known by its own name alone; two steps of 5 s each, 8 s of kernels."""
    text = """
  %loop_add_fusion.2 = f32[3]{0} fusion(%a), kind=kLoop, metadata={op_name="jit(f)/MlpBlock_3/add" stack_frame_id=2}
  ROOT %dot.1 = f32[3]{0} dot(%a, %b), metadata={op_name="jit(f)/head/dot_general"}
"""
    kernels = [Kernel("loop_add_fusion_2", "command_buffer", 6.0, 4), Kernel("nvjet_x", "dot.1", 2.0, 2)]
    found = trace.divided(kernels, trace.paths(text), 5.0, 2)
    assert found["kinds"] == pytest.approx({"elementwise": 0.6, "matrix products": 0.2})
    assert found["parts"] == pytest.approx({"MLP": 0.6, "head": 0.2})
    assert found["idle"] == pytest.approx(0.2) and found["kernels_per_step"] == 3
    assert found["heaviest"][0]["operation"] == "jit(f)/MlpBlock_3/add"


def test_a_step_is_traced(tmp_path: Path) -> None:
    """The library's own step: its parts are found, and their times are no more than the step's."""
    assert trace.main([*TINY, "--steps", "2", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("trace-*.json")
    (row,) = json.loads(path.read_text())["rows"]
    assert {"attention", "MLP", "layer norms"} <= set(row["parts"]) and "matrix products" in row["kinds"]
    for shares in (row["parts"], row["kinds"]):
        assert sum(shares.values()) == pytest.approx(1 - row["idle"]) and min(shares.values()) >= 0
    assert row["kernels_per_step"] > 50 and row["seconds_per_step"] > 0


def test_flags_are_tried_in_turns(tmp_path: Path) -> None:
    tried = ["--flags", "xla_cpu_enable_fast_math=true", "--flags", "xla_no_such_flag=3"]
    assert flags.main([*TINY, *tried, "--rounds", "2", "--steps", "1", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("flags-*.json")
    default, fast, unknown = json.loads(path.read_text())["rows"]
    assert default["speed"] == 1 and len(fast["seconds_per_step"]) == 2 and fast["speed"] > 0
    assert "No such compile option" in unknown["failed"] and "speed" not in unknown


def test_each_set_of_flags_times_its_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, order = Ours.__new__(Ours), []
    monkeypatch.setattr(Ours, "run", lambda self, steps: order.append((self.step, steps)))
    for timer in (flags.timer(ours, "A"), flags.timer(ours, "B")):
        assert timer(7)["seconds"] >= 0
    assert order == [("A", 7), ("B", 7)]


def test_flags_are_read_as_their_types() -> None:
    found = flags.read("xla_gpu_enable_triton_gemm=false, --xla_gpu_autotune_level=2,xla_gpu_cuda_data_dir=/usr")
    expected = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 2, "xla_gpu_cuda_data_dir": "/usr"}
    assert found == expected
    for mistake in ("gpu_autotune_level=2", "xla_gpu_autotune_level", "xla_gpu_autotune_level="):
        with pytest.raises(UserError, match="expected XLA's names with values"):
            flags.read(mistake)


def test_the_case_that_is_traced_is_the_one_that_is_timed() -> None:
    assert Case("vit/B16", "train", "bfloat16", 8).config().model["attention"] == "auto"
    assert "attention" not in Case("resnet/50", "train", "bfloat16", 8).config().model
