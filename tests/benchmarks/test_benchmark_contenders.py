"""The contenders do the same work, and the workers' protocol."""

import io
import json
import re

import jax
import jax.numpy as jnp
import pytest
from vit_jax.run import flops_per_image

from benchmarks import textbook, worker
from benchmarks.ours import Ours
from benchmarks.workloads import Case, check_model
from vit_jax import flops, models, trees
from vit_jax.command import UserError
from vit_jax.step import init_variables

TINY = Case("vit/mu16", "train", "float32", batch_size=4, image_size=32)


def model_group(name: str) -> dict:
    given = Case(name, "train", "float32", 8).config().model
    return {**given, "num_classes": 10}


def our_count(model: dict, size: int) -> int:
    variables = jax.eval_shape(lambda: init_variables(models.create(model), 0, (size, size, 3)))
    return trees.count(variables["params"])


@pytest.mark.parametrize(("name", "size"), [("cifar10:vit", 32), ("vit/mu16", 224)])
def test_the_textbook_has_our_parameters_and_operations(name: str, size: int) -> None:
    model = model_group(name)
    theirs = textbook.ViT(**textbook.fields(model, 10))
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(lambda: theirs.init(jax.random.key(0), jnp.zeros(images.shape), train=False))
    assert trees.count(variables["params"]) == our_count(model, size)
    counted = flops.count(lambda v, x: theirs.apply(v, x, train=False), variables, images)
    d, f, l = theirs.width, theirs.mlp_width, (size // theirs.patch_size) ** 2 + 1
    # Ours leaves out, in the last block, all tokens but the class token: queries, attention, output projection, MLP.
    left_out = (l - 1) * (2 * d * d + 4 * l * d + 2 * d * d + 4 * d * f)
    assert counted == flops_per_image(models.create(model), (size, size, 3)) + left_out


def test_the_textbook_refuses_what_it_does_not_write() -> None:
    with pytest.raises(UserError, match="has no twin in the textbook"):
        textbook.fields(models.settings("vit/B16", dropout=0.1), 10)
    with pytest.raises(UserError, match="'mixer/B16' has no twin"):
        textbook.fields(models.settings("mixer/B16"), 10)


def test_the_textbook_drops_out_in_training_only() -> None:
    model = textbook.ViT(2, 6, 1, 7, 2, 3, dropout=0.5)
    images = jax.random.normal(jax.random.key(1), (5, 4, 4, 3))
    variables = model.init(jax.random.key(0), images, train=False)
    evaluated = model.apply(variables, images, train=False)
    trained = [model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 0, 1)]
    assert evaluated.shape == (5, 3)
    assert (trained[0] == trained[1]).all() and not (trained[0] == trained[2]).any()
    assert not (trained[0] == evaluated).any()


@pytest.mark.parametrize(("name", "size"), [("cifar10:vit", 32), ("cifar10:cnn", 32), ("resnet/50", 224)])
def test_pytorch_has_our_parameters(name: str, size: int) -> None:
    torch = pytest.importorskip("torch")
    from benchmarks import torch_models

    model = model_group(name)
    with torch.device("meta"):
        twin = torch_models.create(model, size, 10)
        assert twin.eval()(torch.zeros(2, 3, size, size)).shape == (2, 10)
    assert sum(p.numel() for p in twin.parameters()) == our_count(model, size)


def test_our_steps_train(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker from its job to its answers, with the library's real step."""
    monkeypatch.setattr("sys.stdin", io.StringIO("2\n1\n"))
    job = {"contender": "ours", "case": vars(TINY), "keep_freed": False, "overrides": ["model.width=16"]}
    assert worker.main([json.dumps(job)]) == 0
    facts, *times = [json.loads(text[1:]) for text in capsys.readouterr().out.splitlines() if text.startswith("@")]
    model = {**TINY.config(["model.width=16"]).model, "num_classes": 1000}
    assert facts["parameters"] == our_count(model, 32)
    assert facts["flops_per_image"] == flops_per_image(models.create(model), (32, 32, 3))
    assert facts["compile_seconds"] > 0 and facts["peak_bytes"] > 4 * facts["parameters"]
    assert len(times) == 2 and all(found["seconds"] > 0 and found["cpu_seconds"] > 0 for found in times)


def test_inference_leaves_the_state_alone() -> None:
    evaluated = Ours(Case("vit/mu16", "inference", "float32", 4, 32), [])
    evaluated.run(2)
    assert int(evaluated.state.step) == 0


def test_what_a_device_holds_is_trained_on_by_new_indices() -> None:
    case = Case("cifar10:cnn", "train", "float32", 4)
    overrides = ["model.stages=((2,),)", "model.dense_widths=(3,)", "data.name=synthetic/8x8x3/2/24"]
    ours = Ours(case, overrides)
    ours.run(2)
    assert int(ours.state.step) == 2
    first, second = next(ours.batches), next(ours.batches)
    assert set(first) == {"index"} and not set(first["index"].tolist()) & set(second["index"].tolist())


def test_an_unknown_model_names_the_known() -> None:
    check_model("resnet/50")
    with pytest.raises(UserError, match=re.escape("'vit/B17' is unknown; choose from cifar10:vit, cifar10:cnn, vit/")):
        check_model("vit/B17")
