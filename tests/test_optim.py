"""Every optimizer against its formula in NumPy, and which parameters decay, train and how fast."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import quick
from vit_jax import checkpoint, models, optim, trees
from vit_jax.command import UserError
from vit_jax.optim import Settings

EVERY = tuple(optim.OPTIMIZERS)
NAMES = {"layers": models.ViT.NAMING.layers, "head": models.ViT.NAMING.whole_head}


@pytest.fixture(scope="module")
def parameters():
    """The shapes of a ViT with every kind of parameter."""
    model = models.create(
        models.settings(
            "vit/mu16", depth=2, num_classes=7, registers=2, pooling="map", layer_scale=0.1, qk_norm=True, pre_logits=5
        )
    )
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)["params"]


@pytest.mark.parametrize("stacked", [False, True], ids=["looped", "scanned"])
def test_exactly_the_kernels_decay(parameters, stacked):
    parameters = jax.eval_shape(trees.stack_layers, parameters) if stacked else parameters
    mask = trees.mask(parameters, Settings().decay)
    decays = dict(zip(trees.names(mask), jax.tree.leaves(mask), strict=True))
    assert {name.rsplit("/", 1)[-1] for name in decays if decays[name]} == {"kernel"}
    rest = {"bias", "scale", "cls", "registers", "pos_embedding", "probe"}
    assert {name.rsplit("/", 1)[-1] for name in decays if not decays[name]} == rest
    assert all(jax.tree.leaves(trees.mask(parameters, ".*")))


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_what_decays_is_found_by_the_path_of_a_looped_model(name):
    settings = dataclasses.replace(SETTINGS, name=name, decay=r"^Transformer/encoderblock_\d+/.*bias$")
    params, gradients = random_tree(MODEL, 0), [random_tree(MODEL, 1)]
    looped, _ = train(settings, params, gradients)
    stacked, _ = train(settings, trees.stack_layers(params), list(map(trees.stack_layers, gradients)))
    plain, _ = train(dataclasses.replace(settings, decay="(?!)"), params, gradients)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), trees.unstack_layers(stacked), looped)
    for path, moved in named(jax.tree.map(lambda a, b: bool((a != b).any()), looped, plain)):
        assert moved == ("encoderblock" in path and path.endswith("bias")), path


# Formulas in float64. Each: gradient, parameter, weight decay (0: masked), memory, step from 1 -> direction.
B1, B2, EPSILON, MOMENTUM, RMS_DECAY = 0.8, 0.95, 1e-3, 0.7, 0.6


def adam(g, memory, t):
    memory["m"] = B1 * memory.get("m", 0) + (1 - B1) * g
    memory["v"] = B2 * memory.get("v", 0) + (1 - B2) * g**2
    return memory["m"] / (1 - B1**t) / (np.sqrt(memory["v"] / (1 - B2**t)) + EPSILON)


def adamw(g, p, decay, memory, t):
    return adam(g, memory, t) + decay * p


def lamb(g, p, decay, memory, t):
    u = adam(g, memory, t) + decay * p
    return u * np.linalg.norm(p) / np.linalg.norm(u) if decay else u


def lion(g, p, decay, memory, t):
    m = memory.get("m", 0)
    memory["m"] = B2 * m + (1 - B2) * g
    return np.sign(B1 * m + (1 - B1) * g) + decay * p


def sgd(g, p, decay, memory, t):
    memory["m"] = (g + decay * p) + MOMENTUM * memory.get("m", 0)
    return memory["m"]


def nesterov(g, p, decay, memory, t):
    return (g + decay * p) + MOMENTUM * sgd(g, p, decay, memory, t)


def rmsprop(g, p, decay, memory, t):
    g = g + decay * p
    memory["v"] = RMS_DECAY * memory.get("v", 0) + (1 - RMS_DECAY) * g**2
    memory["m"] = g / np.sqrt(memory["v"] + EPSILON) + MOMENTUM * memory.get("m", 0)
    return memory["m"]


def adafactor(g, p, decay, memory, t):
    keep = 1 - t**-0.8
    if g.ndim == 2 and min(g.shape) >= 128:  # rows and columns only
        memory["row"] = keep * memory.get("row", 0) + (1 - keep) * (g**2).mean(1)
        memory["column"] = keep * memory.get("column", 0) + (1 - keep) * (g**2).mean(0)
        v = np.outer(memory["row"], memory["column"]) / memory["row"].mean()
    else:
        v = memory["v"] = keep * memory.get("v", 0) + (1 - keep) * g**2
    u = g / np.sqrt(v)
    return u / max(1, np.sqrt((u**2).mean())) + decay * p


FORMULAS = [adamw, lamb, lion, sgd, nesterov, rmsprop, adafactor]
SHAPES = {"head": {"kernel": (131, 137), "bias": (5,)}, "stem": {"kernel": (3, 2, 7)}}
SETTINGS = Settings(
    b1=B1, b2=B2, epsilon=EPSILON, momentum=MOMENTUM, rms_decay=RMS_DECAY, weight_decay=0.3, lr=0.1, schedule="linear"
)


def random_tree(shapes: dict, seed: int) -> dict:
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return rng.normal(0.1, 1, shape).astype(np.float32)

    return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


def train(settings: Settings, params: dict, gradients: list[dict]):
    """Parameters and optimizer state after one update per gradient."""
    tx, rate = optim.create(settings, **NAMES), optim.schedule(settings, steps_per_epoch=7)
    state = tx.init(params)

    @quick.jit
    def update(params, state, gradient, done):
        directions, state = tx.update(gradient, state, params)
        return jax.tree.map(lambda p, x: p - rate(done, 7) * x, params, directions), state

    for done, gradient in enumerate(gradients):
        params, state = update(params, state, gradient, done)
    return params, state


def test_there_is_a_formula_for_every_optimizer():
    assert {formula.__name__ for formula in FORMULAS} - {"nesterov"} == set(EVERY)


@pytest.mark.parametrize("formula", FORMULAS)
def test_an_optimizer_follows_its_formula(formula):
    name = "sgd" if formula is nesterov else formula.__name__
    settings = dataclasses.replace(SETTINGS, name=name, nesterov=formula is nesterov)
    params, gradients = random_tree(SHAPES, 0), [random_tree(SHAPES, seed) for seed in (1, 2, 3)]
    found, _ = train(settings, params, gradients)

    def by_hand(name, p, *gradients):
        p, memory, decay = p.astype(np.float64), {}, 0.3 if name.endswith("kernel") else 0
        for t, g in enumerate(gradients, 1):
            lr = 0.1 * (1 - (t - 1) / 7)
            p = p - lr * formula(g.astype(np.float64), p, decay, memory, t)
        return p

    expected = trees.map_with_name(by_hand, params, *gradients)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


def test_an_optimizer_can_be_added(monkeypatch):
    monkeypatch.setitem(optim.OPTIMIZERS, "sign", None)  # taken out again after the test

    @optim.register("sign")
    def sign(settings: Settings) -> list[optax.GradientTransformation]:
        return [optax.scale_by_sign(), optim.weight_decay(settings)]

    settings = dataclasses.replace(SETTINGS, name="sign", schedule="constant", weight_decay=0.5, decay=".*")
    assert optim.check(settings) is None
    params, _ = train(settings, {"a": np.float32([2, 4])}, [{"a": np.float32([-3, 0.1])}])
    np.testing.assert_allclose(params["a"], [2 - 0.1 * (-1 + 1), 4 - 0.1 * (1 + 2)], rtol=1e-6)


def test_gradients_are_clipped_by_their_global_norm():
    settings = Settings(name="sgd", momentum=0.0, lr=1.0, schedule="constant", clip_norm=2.5)
    zeros = {"a": np.zeros(2, np.float32), "b": np.zeros((1, 1), np.float32)}
    large = {"a": np.float32([3, 0]), "b": np.float32([[4]])}  # norm 5: halved
    small = {"a": np.float32([1.5, 0]), "b": np.float32([[2]])}  # norm 2.5: as it is
    for gradient in (large, small):
        params, _ = train(settings, zeros, [gradient])
        np.testing.assert_allclose(params["a"], [-1.5, 0], rtol=1e-6)
        np.testing.assert_allclose(params["b"], [[-2]], rtol=1e-6)
    params, _ = train(dataclasses.replace(settings, clip_norm=0.0), zeros, [large])
    np.testing.assert_allclose(params["b"], [[-4]])


LAYER = {"Dense_0": {"kernel": (131, 137), "bias": (5,)}, "query": {"kernel": (7, 2, 3)}}
MODEL = {
    "embedding": {"kernel": (5, 5, 3, 7)},
    "Transformer": {f"encoderblock_{i}": LAYER for i in range(3)},
    "head": {"kernel": (139, 149)},
}


FINE_TUNING = {"freeze": r"^embedding/|Dense_0/bias", "layer_decay": 0.7, "head_warmup_steps": 1}


@pytest.mark.parametrize(
    ("name", "fields"),
    [*((name, {}) for name in EVERY), *((name, FINE_TUNING) for name in ("adamw", "lamb", "adafactor"))],
)
def test_stacked_layers_get_the_updates_of_separate_ones(name, fields):
    settings = dataclasses.replace(SETTINGS, name=name, clip_norm=1.0, **fields)
    scale = {f"encoderblock_{i}": 10.0**i for i in range(3)}  # a norm over all layers would differ from each layer's

    def scaled(tree):
        return trees.map_with_name(lambda path, x: x * np.float32(scale.get(path.split("/")[1], 1)), tree)

    params, gradients = random_tree(MODEL, 0), [scaled(random_tree(MODEL, seed)) for seed in (1, 2, 3)]
    looped, looped_state = train(settings, scaled(params), gradients)
    stacked, stacked_state = train(
        settings, trees.stack_layers(scaled(params)), list(map(trees.stack_layers, gradients))
    )

    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    assert "encoderblock" in stacked["Transformer"]
    jax.tree.map(close, trees.unstack_layers(stacked), looped)
    expected, found = checkpoint.canonical(looped_state), checkpoint.canonical(stacked_state)
    assert dict(zip(trees.names(found), jax.tree.leaves(found), strict=True)).keys() == set(trees.names(expected))
    jax.tree.map(close, *map(checkpoint._without_empty, (found, expected)))


SMALL = {
    "embedding": {"kernel": (3, 5)},
    "Transformer": {f"encoderblock_{i}": {"Dense_0": {"kernel": (5, 7), "bias": (7,)}} for i in range(2)},
    "head": {"kernel": (7, 11), "bias": (11,)},
}
GRADIENTS = [random_tree(SMALL, seed) for seed in (1, 2, 3, 4)]


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
def test_what_is_not_frozen_trains_as_if_it_were_alone(name):
    settings = dataclasses.replace(SETTINGS, name=name, clip_norm=1.0, freeze="^(Transformer|embedding)/")
    params = random_tree(SMALL, 0)
    found, state = train(settings, params, GRADIENTS)
    alone = [{"head": gradient["head"]} for gradient in GRADIENTS]  # clipped by its own norm
    expected, _ = train(dataclasses.replace(settings, freeze=""), {"head": params["head"]}, alone)
    same(found["head"], expected["head"])
    same({**found, "head": 0}, {**params, "head": 0})
    assert not [path for path in trees.names(state) if "Transformer" in path or "embedding" in path]


def test_a_linear_probe_is_a_run_with_all_but_the_last_layer_frozen():
    params = random_tree({**SMALL, "head_hidden_0": {"kernel": (7, 7)}}, 0)
    gradients = [{**gradient, "head_hidden_0": params["head_hidden_0"]} for gradient in GRADIENTS]
    settings = dataclasses.replace(SETTINGS, weight_decay=0.3, decay=".*", freeze=r"^(?!head/)")
    found, _ = train(settings, params, gradients)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), found, params)
    assert {name.split("/")[0] for name, moved in named(changed) if moved} == {"head"}
    assert all(moved for name, moved in named(changed) if name.startswith("head/"))


def named(tree):
    return zip(trees.names(tree), jax.tree.leaves(tree), strict=True)


def test_the_head_trains_alone_first_and_the_rest_begins_anew_behind_it():
    settings = dataclasses.replace(SETTINGS, name="adamw", head_warmup_steps=2, clip_norm=0.7)
    params = random_tree(SMALL, 0)
    warm, state = train(settings, params, GRADIENTS[:2])
    alone = [{"head": gradient["head"]} for gradient in GRADIENTS[:2]]  # clipped by its own norm
    expected, _ = train(dataclasses.replace(settings, head_warmup_steps=0), {"head": params["head"]}, alone)
    same(warm["head"], expected["head"])
    same({**warm, "head": 0}, {**params, "head": 0})
    assert not any(np.any(leaf) for path, leaf in named(state) if "Transformer" in path)

    norms = [np.sqrt(sum(float(np.sum(np.square(x))) for x in jax.tree.leaves(g))) for g in GRADIENTS[2:]]
    p, memory = params["embedding"]["kernel"].astype(np.float64), {}
    for t, (gradient, norm) in enumerate(zip(GRADIENTS[2:], norms, strict=True), 1):
        lr = 0.1 * (1 - (t + 1) / 7)  # of the run's step; Adam counts from 1 again
        p = p - lr * adamw(gradient["embedding"]["kernel"] * 0.7 / norm, p, 0.3, memory, t)
    found, _ = train(settings, params, GRADIENTS)
    np.testing.assert_allclose(found["embedding"]["kernel"], p, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stacked", [False, True], ids=["looped", "scanned"])
def test_a_masked_state_comes_back_from_a_checkpoints_tree_and_goes_on(stacked):
    settings = dataclasses.replace(SETTINGS, freeze=r"^embedding/|Dense_0/bias", head_warmup_steps=1, clip_norm=1.0)
    arrange = trees.stack_layers if stacked else lambda tree: jax.tree.map(jnp.asarray, tree)
    tx = optim.create(settings, **NAMES)
    params = arrange(random_tree(SMALL, 0))
    state = tx.init(params)
    update = quick.jit(tx.update)
    for gradient in GRADIENTS[:2]:
        _, state = update(arrange(gradient), state, params)
    stored = checkpoint._without_empty(checkpoint.canonical({"opt": state}))
    assert not [name for name in trees.names(stored) if "bias" in name.split("Dense_0/")[-1:] or "embedding" in name]
    back = checkpoint.from_canonical(stored, {"opt": jax.eval_shape(tx.init, params)}, None)["opt"]
    assert jax.tree.structure(back) == jax.tree.structure(state)
    same(back, state)
    same(update(arrange(GRADIENTS[2]), back, params), update(arrange(GRADIENTS[2]), state, params))


@pytest.mark.parametrize("stacked", [False, True], ids=["looped", "scanned"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_layer_decay_scales_the_last_update_decay_included(name, stacked):
    arrange = trees.stack_layers if stacked else lambda tree: tree
    params, gradient = arrange(random_tree(SMALL, 0)), arrange(GRADIENTS[0])
    moves = []
    for decay in (0.5, 1.0):
        settings = dataclasses.replace(SETTINGS, name=name, layer_decay=decay)
        tx = optim.create(settings, **NAMES)
        moves.append(trees.unstack_layers(tx.update(gradient, tx.init(params), params)[0]))
    by_hand = {"embedding": 0.125, "encoderblock_0": 0.25, "encoderblock_1": 0.5, "head": 1.0}
    for (path, scaled), whole in zip(named(moves[0]), jax.tree.leaves(moves[1]), strict=True):
        factor = by_hand[path.removeprefix("Transformer/").split("/")[0]]
        np.testing.assert_array_equal(scaled, factor * whole, err_msg=path)  # powers of 2: exact


def test_fine_tunings_defaults_leave_the_state_as_it_was():
    params = random_tree(SMALL, 0)
    found = optim.create(Settings(clip_norm=1.0)).init(params)
    expected = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(0.0, mask=lambda tree: trees.mask(tree, "kernel$")),
    ).init(params)
    assert trees.names(found) == trees.names(expected)


@pytest.mark.parametrize("stacked", [False, True], ids=["looped", "scanned"])
def test_check_params_accepts_what_fits(parameters, stacked):
    parameters = jax.eval_shape(trees.stack_layers, parameters) if stacked else parameters
    off = {"decay": "(?!)", "name": "lamb"}
    decays = {"decay": r"encoderblock_\d+/", "weight_decay": 0.1}
    for fields in ({}, {"freeze": "^(?!head/)"}, {"freeze": r"encoderblock_\d+/"}, FINE_TUNING, decays, off):
        assert optim.check_params(Settings(**fields), parameters, **NAMES) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"freeze": "^stem"},
            r"freeze='\^stem' is found in no parameter's path; these begin with MAPHead_0, Transformer, cls, "
            "embedding, head, pre_logits; a whole one is MAPHead_0/LayerNorm_0/bias",
        ),
        (
            {"decay": "kernal$", "weight_decay": 0.1},
            r"decay='kernal\$' is found in no parameter's path; these begin with MAPHead_0, T",
        ),
        ({"decay": "encoderblock_1/", "name": "lamb"}, "decay='encoderblock_1/' tells the encoder's layers apart"),
        ({"freeze": ".*"}, "leaves no parameter to train; their paths begin with MAPHead_0, Tr"),
        (
            {"freeze": "encoderblock_0"},
            "tells the encoder's layers apart, which a scanned model cannot; set model.scan=F",
        ),
        (
            {"head_warmup_steps": 3, "freeze": "^(head|pre_logits)/"},
            "head_warmup_steps=3, but there is no head to train",
        ),
    ],
)
def test_check_params_explains(parameters, fields, message):
    with pytest.raises(UserError, match=message):
        optim.check_params(Settings(**fields), jax.eval_shape(trees.stack_layers, parameters), **NAMES)


def test_a_model_without_layers_has_no_layer_decay():
    with pytest.raises(UserError, match="layer_decay=0.5: the model has no layers to tell apart; set it to 1"):
        optim.check_params(Settings(layer_decay=0.5), random_tree({"dense": {"kernel": (3, 5)}}, 0), **NAMES)
    with pytest.raises(UserError, match="layer_decay=0.5: the model has no layers to tell apart; set it to 1"):
        optim.create(Settings(layer_decay=0.5))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adam"}, "optim.name='adam' is unknown; choose from adamw, sgd, rmsprop, lion, lamb, adafactor$"),
        ({"schedule": "cosin"}, "optim.schedule='cosin' is unknown; choose from cosine, linear, rsqrt, step, exp"),
        ({"lr": 0.0}, "optim.lr=0.0 is not positive"),
        ({"epsilon": -1e-8}, "optim.epsilon=-1e-08 is not positive"),
        ({"timescale_steps": 0}, "optim.timescale_steps=0 is not positive"),
        ({"weight_decay": -0.1}, "optim.weight_decay=-0.1 is negative; 0 means off"),
        ({"clip_norm": -1.0}, "optim.clip_norm=-1.0 is negative"),
        ({"warmup_steps": -1}, "optim.warmup_steps=-1 is negative"),
        ({"b1": 1.0}, r"optim.b1=1.0 is not in \[0, 1\)"),
        ({"momentum": -0.1}, r"optim.momentum=-0.1 is not in"),
        ({"ema_decay": 1.0}, r"optim.ema_decay=1.0 is not in"),
        ({"warmup_steps": 5, "warmup_epochs": 1.0}, "are both given; set one of them to 0"),
        ({"schedule": "step"}, "schedule='step' needs optim.step_epochs, e.g."),
        ({"head_warmup_steps": -1}, "optim.head_warmup_steps=-1 is negative"),
        ({"layer_decay": 0.0}, r"optim.layer_decay=0.0 is not in \(0, 1\]"),
        ({"layer_decay": 1.1}, r"optim.layer_decay=1.1 is not in"),
        ({"freeze": "(head"}, r"freeze='\(head' is not a regular expression: "),
        ({"decay": "(kernel"}, r"decay='\(kernel' is not a regular expression: "),
    ],
)
def test_check_explains(fields, message):
    with pytest.raises(UserError, match=message):
        optim.check(Settings(**fields))


def test_check_accepts_the_defaults_and_a_full_recipe():
    assert optim.check(Settings()) is None
    assert optim.check(SETTINGS) is None
