"""The contenders do the same work, the workers' protocol, and where a step's time goes; all models are tiny."""

import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import step, textbook, trace, worker
from benchmarks.step import Step
from benchmarks.trace import Kernel
from benchmarks.workloads import Case
from vit_jax import flops, models, trees
from vit_jax.command import UserError
from vit_jax.step import init_variables
from vit_jax.train.flops import flops_per_image

TINY = Case("vit/mu16", "train", "float32", batch_size=4, image_size=32)
SMALL = ["model.depth=1", "model.width=16"]


def model_group(name: str) -> dict:
    return {**Case(name, "train", "float32", 8).config().model, "num_classes": 10}


def ours(model: dict, size: int) -> tuple[int, int]:
    """Parameters, and operations of an image's forward pass, of our model."""
    module, shape = models.create(model), (size, size, 3)
    variables = jax.eval_shape(lambda: init_variables(module, 0, shape))
    return trees.count(variables["params"]), flops_per_image(module, shape)


@pytest.mark.parametrize(("name", "size"), [("cifar10:vit", 32), ("vit/mu16", 224)])
def test_the_textbook_has_our_parameters_and_operations(name: str, size: int) -> None:
    model = model_group(name)
    theirs = textbook.ViT(**textbook.fields(model, 10))
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(lambda: theirs.init(jax.random.key(0), jnp.zeros(images.shape), train=False))
    counted = flops.count(lambda v, x: theirs.apply(v, x, train=False), variables, images)
    d, f, l = theirs.width, theirs.mlp_dim, (size // theirs.patch_size) ** 2 + 1
    # Ours leaves out, in the last block, all tokens but the class token: queries, attention, output projection, MLP.
    left_out = (l - 1) * (2 * d * d + 4 * l * d + 2 * d * d + 4 * d * f)
    assert (trees.count(variables["params"]), counted - left_out) == ours(model, size)


def test_the_textbook_refuses_what_it_does_not_write() -> None:
    with pytest.raises(UserError, match="has no twin in the textbook"):
        textbook.fields(models.settings("vit/B16", dropout=0.1), 10)
    with pytest.raises(UserError, match="'mixer/B16' has no twin"):
        textbook.fields(models.settings("mixer/B16"), 10)


@jax.jit
def looks(key: jax.Array) -> list[jax.Array]:
    """The textbook's logits: evaluated, and trained with three keys, of which two are equal."""
    model = textbook.ViT(2, 6, 1, 7, 2, 3, dropout=0.5)
    images = jax.random.normal(key, (5, 4, 4, 3))
    variables = model.init(key, images, train=False)
    rngs = [{"dropout": jax.random.key(i)} for i in (0, 0, 1)]
    trained = [model.apply(variables, images, train=True, rngs=each) for each in rngs]
    return [model.apply(variables, images, train=False), *trained]


@pytest.mark.slow
def test_the_textbook_drops_out_in_training_only() -> None:
    evaluated, first, same, other = map(np.asarray, looks(jax.random.key(1)))
    assert evaluated.shape == (5, 3)
    assert (first == same).all() and not (first == other).any() and not (first == evaluated).any()


@pytest.mark.slow
def test_the_textbook_learns_its_batch() -> None:
    model, tx = textbook.ViT(2, 6, 1, 7, 2, 3), optax.adamw(1e-2)
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    train = jax.jit(lambda state: textbook.train_step(model, tx, state, images, np.array([0, 1, 2, 0, 1])))
    state, first = train(jax.jit(lambda: textbook.init_state(model, tx, (4, 4, 3)))())
    for _ in range(9):
        state, last = train(state)
    assert last < first and int(state[2]) == 10


@pytest.mark.parametrize(("name", "size"), [("cifar10:vit", 32), ("cifar10:cnn", 32), ("resnet/50", 224)])
def test_pytorch_has_our_parameters(name: str, size: int) -> None:
    torch = pytest.importorskip("torch")
    from benchmarks import torch_peer

    model = model_group(name)
    with torch.device("meta"):
        twin = torch_peer.create(model, size, 10)
        assert twin.eval()(torch.zeros(2, 3, size, size)).shape == (2, 10)
    assert sum(p.numel() for p in twin.parameters()) == ours(model, size)[0]


def test_pytorch_trains_on_our_images() -> None:
    pytest.importorskip("torch")
    from benchmarks import torch_peer

    trained = torch_peer.Torch(TINY)
    before = next(trained.model.parameters()).clone()
    trained.run(1)
    assert trained.images.shape == (4, 32, 32, 3) and (next(trained.model.parameters()) != before).any()


def test_peers_train_on_our_images() -> None:
    given, labels, classes = step.images(TINY)
    assert given.dtype == np.uint8 and given.shape == (4, 32, 32, 3) and labels.shape == (4,) and classes == 1000


@pytest.mark.slow
def test_our_steps_train(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker from its job to its answers, with the library's real step."""
    monkeypatch.setattr("sys.stdin", io.StringIO("2\n1\n"))
    job = {"contender": "ours", "case": vars(TINY), "keep_freed": False, "overrides": SMALL}
    assert worker.main([json.dumps(job)]) == 0
    facts, *times = [json.loads(text[1:]) for text in capsys.readouterr().out.splitlines() if text.startswith("@")]
    model = {**TINY.config(SMALL).model, "num_classes": 1000}
    assert (facts["parameters"], facts["flops_per_image"]) == ours(model, 32)
    assert facts["compile_seconds"] > 0 and facts["peak_bytes"] > 4 * facts["parameters"]
    assert len(times) == 2 and all(found["seconds"] > 0 and found["cpu_seconds"] > 0 for found in times)


def test_inference_leaves_the_state_alone() -> None:
    evaluated = Step(Case("vit/mu16", "inference", "float32", 4, 32), SMALL)
    evaluated.run(2)
    assert int(evaluated.state.step) == 0


def test_what_a_device_holds_is_trained_on_by_new_indices() -> None:
    overrides = ["model.stages=((2,),)", "model.dense_widths=(3,)", "data.name=synthetic/8x8x3/2/24"]
    trained = Step(Case("cifar10:cnn", "train", "float32", 4), overrides)
    trained.run(2)
    assert int(trained.state.step) == 2
    first, second = next(trained.batches), next(trained.batches)
    assert set(first) == {"index"} and not set(first["index"].tolist()) & set(second["index"].tolist())


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
    argv = ["--models", "vit/mu16", "--image-size", "32", "--batch-sizes", "4", "--steps", "2"]
    assert trace.main([*argv, *(f"--config.{text}" for text in SMALL), "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("trace-*.json")
    (row,) = json.loads(path.read_text())["rows"]
    assert {"attention", "MLP", "layer norms"} <= set(row["parts"]) and "matrix products" in row["kinds"]
    for shares in (row["parts"], row["kinds"]):
        assert sum(shares.values()) == pytest.approx(1 - row["idle"]) and min(shares.values()) >= 0
    assert row["kernels_per_step"] > 50 and row["seconds_per_step"] > 0


def test_the_case_that_is_traced_is_the_one_that_is_timed() -> None:
    assert Case("vit/B16", "train", "bfloat16", 8).config().model["attention"] == "auto"
    assert "attention" not in Case("resnet/50", "train", "bfloat16", 8).config().model
