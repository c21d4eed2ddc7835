"""Visual Transformers: published size and cost, each equation by hand, 32-pixel images, training, maps to look at."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import quick
from tests.conftest import rest_is_slow
from tests.models.maps import random_variables, shapes
from tests.models.random_params import random_params
from vit_jax import flops, models, trees
from vit_jax.models import visual_transformer as vt
from vit_jax.models.resnet import ResNet
from vit_jax.models.visual_transformer import VisualTransformer

KEY = jax.random.key(8)
RNG = np.random.default_rng(10)
N, H, W, C, L, E = 2, 5, 7, 6, 3, 4
MAP = RNG.normal(size=(N, H, W, C)).astype(np.float32)
TOKENS = RNG.normal(size=(N, L, C)).astype(np.float32)
# For 224-pixel images and 1000 classes: parameters and millions of multiply-adds.
GOLDEN = {
    "visual_transformer/R18": (11_893_800, 1_561),  # the paper prints 11.7 M and 1,579 M
    "visual_transformer/R34": (21_804_328, 3_267),  # 21.8 M and 3,299 M
    "visual_transformer/R50": (21_395_496, 3_590),
    "visual_transformer/R101": (40_387_624, 7_303),
}
TINY = {
    "stage_sizes": (1, 1, 1),
    "bottleneck": False,
    "width": 4,
    "stem": "small",
    "modules": 3,
    "tokens": 5,
    "key_width": 8,
    "mlp_dim": 24,
}


def tiny(**fields) -> VisualTransformer:
    return VisualTransformer(**{**TINY, **fields})


def size(name: str) -> tuple[int, float]:
    """Parameters, and millions of multiply-adds for an image."""
    model = models.create(models.settings(name, num_classes=1000))
    model.check((224, 224, 3))
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = {k: v for k, v in shapes(model, image).items() if k in ("params", "batch_stats")}
    return trees.count(variables["params"]), flops.count(partial(model.apply, train=False), variables, image) / 2e6


def test_every_size_has_a_golden_count():
    assert models.names("visual_transformer/*") == list(GOLDEN)


@pytest.mark.parametrize("name", rest_is_slow(GOLDEN))
def test_golden_count(name):
    parameters, multiply_adds = size(name)
    assert (parameters, round(multiply_adds)) == GOLDEN[name]


def softmax(x: np.ndarray, axis) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def normed(x: np.ndarray, p: dict) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def run(module, *args, **kwargs):
    """Parameters, output, and what was sown."""
    params = random_params(module, *args, **kwargs)
    apply = partial(module.apply, mutable="intermediates", **kwargs)
    output, seen = quick.jit(apply)({"params": params}, *args)
    return params, output, seen["intermediates"]


def check_pooling(tokens, seen, logits: np.ndarray) -> None:
    weights = softmax(logits, axis=(1, 2))
    np.testing.assert_allclose(seen["tokenizer"][0], weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(tokens, np.einsum("nhwl,nhwc->nlc", weights, MAP), rtol=1e-4, atol=1e-5)


def test_filter_tokenizer_is_equation_1():
    params, tokens, seen = run(vt.FilterTokenizer(L, "float32"), MAP)
    check_pooling(tokens, seen, MAP @ params["filter"]["kernel"])


def test_recurrent_tokenizer_is_equation_2():
    params, tokens, seen = run(vt.RecurrentTokenizer("float32"), MAP, TOKENS)
    query = TOKENS @ params["query"]["kernel"]
    check_pooling(tokens, seen, np.einsum("nhwc,nlc->nhwl", MAP, query) / np.sqrt(C))


def test_token_transformer_is_equations_3_and_4():
    module = vt.TokenTransformer(E, 11, "float32")
    p, tokens, seen = run(module, TOKENS, KEY, drop_rate=0.0, train=False)
    y = normed(TOKENS, p["norm1"])
    q, k = y @ p["query"]["kernel"], y @ p["key"]["kernel"]
    attention = softmax(np.einsum("nle,nme->nlm", q, k) / np.sqrt(E), axis=-1)
    expected = TOKENS + attention @ y
    hidden = np.maximum(normed(expected, p["norm2"]) @ p["mlp1"]["kernel"], 0)
    np.testing.assert_allclose(tokens, expected + hidden @ p["mlp2"]["kernel"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen["attention"][0], attention[:, None], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(seen["tokens"][0], tokens)


def test_projector_is_equation_5():
    p, x, seen = run(vt.Projector(E, "float32"), MAP, TOKENS)
    logits = np.einsum("nhwe,nle->nhwl", MAP @ p["query"]["kernel"], TOKENS @ p["key"]["kernel"]) / np.sqrt(E)
    weights = softmax(logits, axis=-1)
    np.testing.assert_allclose(seen["projector"][0], weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(x, MAP + np.einsum("nhwl,nlc->nhwc", weights, TOKENS), rtol=1e-4, atol=1e-5)


def test_stochastic_depth_drops_the_transformers_branches():
    module = vt.TokenTransformer(E, 11, "float32")
    tokens = np.broadcast_to(TOKENS[:1], (29, L, C))
    params = random_params(module, tokens, KEY, drop_rate=0.0, train=False)
    output = quick.jit(partial(module.apply, drop_rate=0.5, train=True))({"params": params}, tokens, KEY)
    kinds = {np.round(image, 3).tobytes() for image in np.asarray(output)}
    assert len(kinds) == 4  # each of two branches kept or dropped
    assert any(np.array_equal(image, TOKENS[0]) for image in output)
    model = tiny(stochastic_depth=0.5)
    assert [model.drop_rate(i) for i in range(6)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_modules_follow_one_another():
    model = tiny(num_classes=7)
    images = RNG.normal(size=(2, 16, 24, 3)).astype(np.float32)
    variables = shapes(model, images)
    statistics = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), variables["batch_stats"])
    p = random_params(model, images, train=False)
    apply = quick.jit(partial(model.apply, train=False, mutable="intermediates"))
    logits, _ = apply({"params": p, "batch_stats": statistics}, images)

    trunk = ResNet(**{field: TINY[field] for field in ("stage_sizes", "bottleneck", "width", "stem")})
    names = [name for name in p if name.startswith(("conv", "norm_root", "stage"))]
    trunk_variables = {"params": {name: p[name] for name in names}, "batch_stats": statistics}

    look = quick.jit(partial(trunk.apply, train=False, capture_intermediates=True, mutable="intermediates"))
    x = look(trunk_variables, images)[1]["intermediates"]["stage3_block1"]["__call__"][0]
    for i in (1, 2, 3):
        if i == 1:
            tokens = vt.FilterTokenizer(5, "float32").apply({"params": p["tokenizer1"]}, x)
        else:
            x = vt.Projector(8, "float32").apply({"params": p[f"projector{i - 1}"]}, x, tokens)
            tokens = vt.RecurrentTokenizer("float32").apply({"params": p[f"tokenizer{i}"]}, x, tokens)
        transformer = vt.TokenTransformer(8, 24, "float32")
        tokens = transformer.apply({"params": p[f"transformer{i}"]}, tokens, KEY, 0.0, train=False)
    mean = normed(np.asarray(tokens), p["norm_tokens"]).mean(axis=1)
    expected = mean @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_a_projector_stands_between_modules_if_at_all():
    images = jnp.zeros((2, 16, 24, 3))
    found = [name for name in shapes(tiny(), images)["params"] if name.startswith("projector")]
    assert sorted(found) == ["projector1", "projector2"]
    assert not any(name.startswith("projector") for name in shapes(tiny(projector=False), images)["params"])


@pytest.mark.slow
def test_every_parameter_takes_part_in_training_on_32_pixels():
    model = tiny(num_classes=5, modules=2, dropout=0.1)
    model.check((32, 32, 3))
    images = jnp.asarray(RNG.normal(size=(10, 32, 32, 3)), jnp.float32)
    variables = random_variables(model, images)

    @quick.jit
    def gradient(params):
        def loss(params):
            apply = partial(model.apply, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"])
            logits, _ = apply(variables | {"params": params}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(10) % 5).mean()

        return jax.grad(loss)(params)

    grads = gradient(variables["params"])
    assert [name for name, g in zip(trees.names(grads), jax.tree.leaves(grads), strict=True) if not np.any(g)] == []


def test_maps_can_be_looked_at_and_differentiated():
    model = tiny(num_classes=7)
    images = jnp.zeros((2, 32, 48, 3))
    variables = shapes(model, images)
    _, seen = jax.eval_shape(partial(model.apply, train=False, mutable="intermediates"), variables, images)
    seen = seen["intermediates"]
    for i in (1, 2, 3):
        assert seen[f"tokenizer{i}"]["tokenizer"][0].shape == (2, 8, 12, 5)
        assert seen[f"transformer{i}"]["attention"][0].shape == (2, 1, 5, 5)
        assert seen[f"transformer{i}"]["tokens"][0].shape == (2, 5, 16)
        assert set(variables["perturbations"][f"transformer{i}"]) == {"attention", "tokens"}
    assert seen["projector2"]["projector"][0].shape == (2, 8, 12, 5)
    features = jax.eval_shape(partial(model.clone(num_classes=0).apply, train=False), variables, images)
    assert features.shape == (2, 16)
