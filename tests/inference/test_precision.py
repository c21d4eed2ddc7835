"""`model.dtype=auto`: the faster number format, which a run keeps, and which learns as well."""

import io
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console
from sklearn.datasets import load_digits

from tests.tiny import spec, start
from vit_jax import config, inference, models, platforms
from vit_jax.inference import precision
from vit_jax.platforms import cpu_units  # this machine's: the name in `platforms` is patched
from vit_jax.workdir import Workdir


@pytest.mark.parametrize(
    ("platform", "release", "units", "expected"),
    [
        ("gpu", (0, 10, 2), set(), "bfloat16"),
        ("tpu", (0, 10, 2), set(), "bfloat16"),
        ("cpu", (0, 12, 0), {"avx2", "amx_bf16"}, "bfloat16"),
        ("cpu", (0, 12, 0), {"avx2", "avx512_bf16"}, "bfloat16"),
        ("cpu", (0, 10, 2), {"avx2", "amx_bf16"}, "float32"),
        ("cpu", (0, 10, 2), {"avx2", "avx512_bf16"}, "float32"),
        ("cpu", (0, 12, 0), {"avx2"}, "float32"),
    ],
)
def test_what_is_faster(platform, release, units, expected, monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", release)
    monkeypatch.setattr(platforms, "cpu_units", lambda: units)
    assert precision.fast_dtype(platform) == expected


def test_a_run_keeps_what_it_began_with(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "fast_dtype", lambda platform: "bfloat16")
    few = ("model.dtype=auto", "train.steps=2", "evaluate.every_steps=2")
    assert "products in bfloat16, the faster ones on this device" in start(tmp_path, "cnn", *few)[1]
    kept = Workdir(tmp_path).config()
    assert kept.model["dtype"] == "bfloat16"
    monkeypatch.setattr(precision, "fast_dtype", lambda platform: "float32")
    given, output = config.load(spec("cnn"), few), io.StringIO()
    assert precision.choose_dtype(given, Workdir(tmp_path), Console(file=output)) == kept
    assert "as the run began" in output.getvalue()
    dtypes = [inference.load(tmp_path, overrides=words).config.model["dtype"] for words in ([], ["model.dtype=auto"])]
    assert dtypes == ["bfloat16", "float32"]
    assert not config.differences(kept, given)
    other = config.load(spec("cnn"), ("model.dtype=float32", *few[1:]))
    assert config.differences(kept, other) == {"model.dtype": ("bfloat16", "float32")}


def test_the_cpus_own_units_are_known():
    assert all(unit and " " not in unit for unit in cpu_units())


@pytest.mark.slow
def test_both_learn_as_well():
    """Test accuracy on the digits of five seeds at once, equal within two standard errors of the difference."""
    digits = load_digits()
    images, labels = jnp.asarray(digits.images[..., None] / 16, jnp.float32), jnp.asarray(digits.target)
    train, test = (images[:1200], labels[:1200]), (images[1200:], labels[1200:])
    tx = optax.adam(1e-2)

    def accuracy(dtype, key):
        fields = {"patch_size": (2,), "width": 24, "depth": 1, "mlp_dim": 24, "num_heads": 2, "dtype": dtype}
        model = models.create(models.settings("vit", **fields, num_classes=10))
        params = model.init(key, images[:1], train=False)["params"]
        apply = partial(model.apply, train=False)

        def step(carry, key):
            params, state = carry
            chosen = jax.random.choice(key, 1200, (60,))

            def loss(params):
                logits = apply({"params": params}, train[0][chosen])
                return optax.softmax_cross_entropy_with_integer_labels(logits, train[1][chosen]).mean()

            updates, state = tx.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, 120))
        return (apply({"params": params}, test[0]).argmax(-1) == test[1]).mean()

    keys = jax.random.split(jax.random.key(0), 5)
    found = [np.asarray(jax.jit(jax.vmap(partial(accuracy, dtype)))(keys)) for dtype in ("float32", "bfloat16")]
    error = np.sqrt(sum(of.var(ddof=1) / len(of) for of in found))
    assert min(of.mean() for of in found) > 0.6  # of ten classes
    assert abs(found[0].mean() - found[1].mean()) <= 2 * error
