"""`model.attention='auto'` takes the kernel that the devices run fastest."""

import dataclasses
import functools
import logging
import signal

import jax
import jax.numpy as jnp
import pytest

from tests import tiny
from tests.described import described
from vit_jax import config, distributed, flops, inference, models, sharding, tasks
from vit_jax.models.attention import MultiHeadDotProductAttention as Attention
from vit_jax.ops import fused_attention
from vit_jax.train import Experiment, attention
from vit_jax.workdir import Workdir

SHAPE = (16, 16, 3)
SMALL = models.settings(
    "vit",
    patch_size=(4,),
    width=16,
    depth=3,
    mlp_dim=32,
    num_heads=2,
    num_classes=3,
    dtype="bfloat16",
    attention="auto",
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

    monkeypatch.setattr(attention, "ROUNDS", 3)
    monkeypatch.setattr(attention, "CALLS", 2)

    def has(**kernels):
        monkeypatch.setattr(fused_attention, "runs_on", lambda name, platform, kind: name in kernels)
        for name, kernel in kernels.items():
            monkeypatch.setattr(fused_attention, name, kernel)

    return has


@pytest.fixture
def slow_plain(monkeypatch):
    plain = Attention._plain
    monkeypatch.setattr(Attention, "_plain", lambda self, q, *others: plain(self, slowed(q), *others))


@functools.cache
def built(*fields: tuple[str, object]) -> Experiment:
    return described(GIVEN.with_model(**dict(fields)), SHAPE, classes=3, images=50)


def layers_of(n: int, tensor: int = 1, found: Experiment | None = None) -> set[attention.Layer]:
    """Those of a step of `n` images."""
    found = found or built()
    return attention.attention_layers(found.task, found.loader, n, tensor)


def fastest(deterministic=False, **overrides):
    """The kernel taken, and those timed."""
    train = dataclasses.replace(GIVEN.train, deterministic=deterministic)
    given = dataclasses.replace(GIVEN, train=train).with_model(**overrides)
    found = built(*(field for field in overrides.items() if field[0] != "attention"))
    mesh = sharding.make_mesh(MESH_OF, jax.devices()[:4])
    chosen, seconds = attention.fastest_attention(given, mesh, found.task, found.loader)
    assert chosen == given.with_model(attention=chosen.model["attention"])
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
    (layer,) = layers_of(n)

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
        {"pos_embed": "relative_bias"},
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


@pytest.mark.parametrize("scan", [False, True])
def test_layers_are_those_of_one_device(scan):
    """Two of the three, all alike; the last block has one query, unless layers are scanned."""
    (layer,) = layers_of(5, tensor=2, found=built(("scan", scan)))
    assert layer.tokens == (5, 4 * 4 + 1, 16) and layer.module.num_heads == 1 and layer.module.head_dim == 8
    (shared,) = layers_of(5, tensor=3)
    assert shared.module.num_heads == 2, "three devices cannot share two heads"


def test_a_masked_autoencoder_s_layers_see_few_patches():
    """Those of its encoder, which is what `model.attention` is about: a quarter of 16, and the class token."""
    task = tasks.settings("masked_autoencoder", decoder_width=12, decoder_depth=1, decoder_heads=3)
    given = dataclasses.replace(GIVEN.with_model(num_classes=0), task=task)
    (layer,) = layers_of(5, found=described(given, SHAPE, classes=3, images=50))
    assert layer.tokens == (5, 4 + 1, 16) and layer.module.num_heads == 2


@pytest.mark.parametrize("remat", ["none", "dots", "auto"])
def test_what_is_timed_is_a_device_s_part_of_a_step(has, monkeypatch, remat):
    """Of 24 images in 3 parts on 2 x 2 devices."""
    has(cudnn=broken)
    timed = []
    monkeypatch.setattr(attention, "time_kernels", lambda *given: timed.append(given) or {"cudnn": 1.0, "plain": 2.0})
    assert fastest(remat=remat) == ("cudnn", {"plain", "cudnn"})
    ((kernels, (layer,), mesh, recomputed),) = timed
    assert kernels == ("plain", "cudnn") and layer.tokens == (4, 17, 16) and layer.module.num_heads == 1
    assert mesh.devices.tolist() == [[[jax.devices()[0]]]] and recomputed == ("none" if remat == "auto" else remat)


def test_the_first_process_decides(has, monkeypatch):
    has(cudnn=broken)
    monkeypatch.setattr(attention, "time_kernels", lambda *_: {"cudnn": 1.0, "plain": 2.0})
    monkeypatch.setattr(distributed, "broadcast_from_first", lambda text: "plain")
    assert fastest() == ("plain", {"plain", "cudnn"})


def test_a_device_other_than_the_first_is_timed_itself():
    """Its arrays are there, and stay."""
    mesh = sharding.make_mesh(sharding.Settings(), jax.devices()[2:3])
    (layer,) = layers_of(4)
    found = attention._compiled(layer, "plain", mesh, "none")()
    assert {device for leaf in jax.tree.leaves(found) for device in leaf.devices()} == {jax.devices()[2]}


@pytest.mark.slow
def test_a_run_takes_what_it_took_before_and_so_do_later_commands(has, monkeypatch, tmp_path):
    """The second start would time otherwise; on another kind of device nothing of it counts."""
    calls, times = [], {"plain": 2.35e-3, "cudnn": 1.5e-3}
    has(cudnn=lambda *qkv: calls.append(qkv[0].shape) or fast(*qkv))
    monkeypatch.setattr(attention, "time_kernels", lambda *_: times)
    fields = ["model.attention=auto", "model.dtype=bfloat16", "model.width=16", "train.steps=2"]
    with pytest.MonkeyPatch.context() as patch:
        tiny.interrupt_at(1, signal.SIGTERM, patch)
        code, text = tiny.start(tmp_path, "vit", *fields)
    assert code == 143 and "A layer's attention takes plain 2.35 ms, cudnn 1.5 ms: cudnn is taken\n" in text and calls
    times["plain"] = 1e-6
    code, text = tiny.start(tmp_path, "vit", *fields)
    assert code == 0 and "resumed at step" in text and "is taken" not in text
    assert tiny.result(tmp_path)["config"]["model"]["attention"] == "cudnn"
    given = config.load(str(tmp_path / "config.json"))
    assert given.model["attention"] == "auto" and Workdir(tmp_path).with_kernel(given).model["attention"] == "cudnn"
    assert inference.load(tmp_path).model.attention == "cudnn"
    in_float32 = inference.load(tmp_path, overrides=["model.dtype=float32"])
    assert in_float32.model.attention == "auto"  # cudnn cannot do that
    Workdir(tmp_path).manifest_file.unlink()  # by which the change would be found
    Workdir(tmp_path).attention_file.write_text('{"device": "another", "kernel": "pallas"}')
    assert inference.load(tmp_path).model.attention == "auto"


def test_what_a_run_took_that_never_began_does_not_bind_the_corrected_one(tmp_path):
    Workdir(tmp_path).attention_file.write_text(f'{{"device": "{jax.devices()[0].device_kind}", "kernel": "cudnn"}}')
    assert Workdir(tmp_path).with_kernel(GIVEN).model["attention"] == "auto"
