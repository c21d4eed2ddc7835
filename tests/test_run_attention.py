"""`model.attention='auto'` takes the kernel that the devices run fastest."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import pytest

from tests import tiny
from vit_jax import config, flops, models, run, sharding
from vit_jax.models import fused
from vit_jax.models.attention import MultiHeadDotProductAttention as Attention
from vit_jax.run import attention

SHAPE = (16, 16, 3)
SMALL = models.settings(
    "vit", patch_size=(4,), width=16, depth=3, mlp_width=32, heads=2, num_classes=3, dtype="bfloat16", attention="auto"
)
GIVEN = config.from_dict({"model": SMALL, "train": {"batch_size": 24, "accumulate": 3, "steps": 5}})
MESH_OF = sharding.Settings(tensor=2)


def slowed(q):
    """q, after work that takes a hundred times as long as its attention."""
    work = jax.lax.fori_loop(0, 100, lambda _, x: jnp.tanh(x @ x), jnp.ones((128, 128)))
    return q + 0 * work[0, 0].astype(q.dtype)


def fast(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, implementation="xla")


def slow(q, k, v):
    return fast(slowed(q), k, v)


def broken(q, k, v):
    raise RuntimeError("no such instruction\non this device")


@pytest.fixture
def has(monkeypatch):
    """Makes this machine's devices have these kernels."""

    def has(**kernels):
        monkeypatch.setattr(fused, "runs_on", lambda name, platform, kind: name in kernels)
        for name, kernel in kernels.items():
            monkeypatch.setattr(fused, name, kernel)

    return has


@pytest.fixture
def slow_plain(monkeypatch):
    plain = Attention._plain
    monkeypatch.setattr(Attention, "_plain", lambda self, q, *others: plain(self, slowed(q), *others))


def fastest(deterministic=False, **overrides):
    """The kernel taken, and those timed."""
    train = dataclasses.replace(GIVEN.train, deterministic=deterministic)
    given = dataclasses.replace(GIVEN, train=train, model={**SMALL, **overrides})
    chosen, seconds = run.fastest(given, sharding.make_mesh(MESH_OF, jax.devices()[:4]), SHAPE)
    assert chosen == dataclasses.replace(given, model={**given.model, "attention": chosen.model["attention"]})
    assert all(0 < of_all < 60 for of_all in seconds.values())
    return chosen.model["attention"], set(seconds)


def test_the_fastest_is_taken(has, slow_plain):
    has(cudnn=slow, pallas=fast)
    assert fastest() == ("pallas", {"plain", "cudnn", "pallas"})


def test_plain_is_taken_where_it_is_the_fastest(has):
    has(cudnn=slow)
    assert fastest() == ("plain", {"plain", "cudnn"})


def test_what_is_computed_again_is_timed(has):
    """With full all products of the forward pass; with dots the fused kernel's, and of the plain one the logits."""
    has(cudnn=fast)
    n, (tokens, width) = 4, (17, 16)
    (layer,) = attention.attention_layers(models.create(SMALL), (n, *SHAPE), tensor=1)

    def products(kernel: str, recomputed: str) -> int:
        both = attention.forwards_and_backwards(layer, kernel, recomputed)
        return flops.count(both, *jax.eval_shape(lambda: attention.arguments(layer)))

    pairs, projection = 2 * n * tokens**2 * width, 2 * n * tokens * width**2
    again = {(k, r): products(k, r) - products(k, "none") for k in ("plain", "cudnn") for r in ("dots", "full")}
    assert again["plain", "dots"] == pairs
    assert again["cudnn", "dots"] == again["plain", "full"] - 3 * projection == 2 * pairs
    assert again["cudnn", "full"] == 2 * pairs + 3 * projection


def test_a_kernel_that_fails_is_left_out(has, slow_plain, caplog):
    has(cudnn=broken, pallas=fast)
    with caplog.at_level(logging.WARNING):
        assert fastest() == ("pallas", {"plain", "pallas"})
    assert caplog.messages == ["model.attention: cudnn does not work here (no such instruction)"]


@pytest.mark.parametrize(
    "overrides",
    [
        {"attention_dropout": 0.1},
        {"positions": "relative_bias"},
        {"depth": 1},  # whose one query nobody pads to many
        {"attention": "plain"},
        {"attention": "cudnn"},
        {"deterministic": True},
    ],
    ids=str,
)
def test_nothing_is_timed_where_there_is_no_choice(has, overrides):
    has(cudnn=broken)
    assert fastest(**overrides) == (overrides.get("attention", "auto"), set())


def test_a_cpu_has_no_choice():
    assert fastest() == ("auto", set())


@pytest.mark.parametrize(("scan", "times"), [(False, 2), (True, 1)])
def test_layers_are_those_of_one_device(scan, times):
    """Two of the three: the last block has one query, unless layers are scanned."""
    found = attention.attention_layers(models.create({**SMALL, "scan": scan}), (5, *SHAPE), tensor=2)
    ((layer, number),) = found.items()
    assert layer.tokens == (5, 4 * 4 + 1, 16) and layer.module.heads == 1 and layer.module.head_width == 8
    assert number >= times if scan else number == times  # a loop is traced more than once
    (shared,) = attention.attention_layers(models.create(SMALL), (5, *SHAPE), tensor=3)
    assert shared.module.heads == 2, "three devices cannot share two heads"


def test_a_run_says_what_it_took(has, monkeypatch, tmp_path):
    has(cudnn=fast)
    monkeypatch.setattr(attention, "time_kernels", lambda *_: {"plain": 2.35e-3, "cudnn": 1.5e-3})
    fields = ["model.attention=auto", "model.dtype=bfloat16", "model.width=16", "train.steps=2"]
    code, text = tiny.start(tmp_path, "vit", *fields)
    assert code == 0 and "Attention of all layers: plain 2.35 ms, cudnn 1.5 ms a step; taken: cudnn\n" in text
    assert tiny.result(tmp_path)["config"]["model"]["attention"] == "cudnn"
    assert config.load(str(tmp_path / "config.json")).model["attention"] == "auto"
