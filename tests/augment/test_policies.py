"""The policies: their tables, their ranges, and the laws of their draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.augment.pictures import keys, pictures
from vit_jax import augment
from vit_jax.augment import Settings, policies
from vit_jax.augment.operations import OPERATIONS, operate
from vit_jax.augment.policies import AUTOAUGMENT, POLICIES, RANDAUGMENT, TRIVIALAUGMENT, Draws

H, W = 100, 331
operated = quick.jit(operate)


def argument(policy: str, name: str, strength: float, sign: float = 1.0, happens: bool = True) -> tuple[str, float]:
    draws = Draws(*(jnp.array([x]) for x in (POLICIES[policy][0].index(name), strength, sign, happens)))
    operation, values = policies.chosen(Settings(policy=policy), draws, H, W)
    return OPERATIONS[operation[0]], float(values[0])


@pytest.mark.parametrize(
    ("policy", "name", "strength", "sign", "expected"),
    [
        ("randaugment", "posterize", 0.9, 1, 1),  # timm: 4 - int(0.9 * 4)
        ("randaugment", "posterize", 1.0, 1, 0),
        ("randaugment", "solarize", 0.9, 1, 26),  # 256 - int(230.4)
        ("randaugment", "solarize_add", 0.9, 1, 99),
        ("randaugment", "contrast", 0.9, -1, 0.19),
        ("randaugment", "sharpness", 1.0, -1, 0.1),  # never below
        ("randaugment", "shear_y", 0.9, -1, -0.27),
        ("randaugment", "translate_x", 1.0, 1, 0.45 * W),
        ("randaugment", "translate_y", 1.0, -1, -0.45 * H),
        ("randaugment", "rotate", 0.9, 1, 27),
        ("randaugment", "posterize", 1.5, 1, 0),  # timm's laws beyond their end
        ("randaugment", "solarize", 1.5, 1, 0),
        ("randaugment", "solarize_add", 3.0, 1, 128),
        ("randaugment", "brightness", 1.5, 1, 2.35),
        ("randaugment", "brightness", 3.0, -1, 0.1),
        ("randaugment", "shear_x", 1.5, -1, -0.45),
        ("randaugment", "translate_x", 1.5, 1, 0.675 * W),
        ("randaugment", "rotate", 3.0, 1, 90),
        ("randaugment_tf", "posterize", 1.0, 1, 4),  # int(4 * 10 / 10)
        ("randaugment_tf", "posterize", 1.5, 1, 6),
        ("randaugment_tf", "posterize", 3.0, 1, 8),
        ("randaugment_tf", "solarize", 0.9, 1, 230),  # int(230.4)
        ("randaugment_tf", "solarize", 1.5, 1, 384),  # beyond every value
        ("randaugment_tf", "solarize_add", 1.5, 1, 165),
        ("randaugment_tf", "contrast", 1.5, -1, 2.8),  # without a direction
        ("randaugment_tf", "sharpness", 0.0, 1, 0.1),
        ("randaugment_tf", "translate_y", 1.5, -1, -150),
        ("randaugment_tf", "shear_y", 1.5, 1, 0.45),
        ("randaugment_tf", "rotate", 1.5, -1, -45),
        ("autoaugment_imagenet", "posterize", 8 / 9, 1, 4),  # torchvision: 8 - round(8 / 2.25)
        ("autoaugment_imagenet", "posterize", 5 / 9, 1, 6),
        ("autoaugment_imagenet", "solarize", 5 / 9, 1, 255 * 4 / 9),
        ("autoaugment_cifar10", "translate_x", 1.0, -1, -150),
        ("autoaugment_cifar10", "translate_y", 8 / 9, 1, 40),  # 40.28, cut off
        ("autoaugment_cifar10", "brightness", 1.0, -1, 0.1),
        ("trivialaugment", "posterize", 1.0, 1, 2),
        ("trivialaugment", "posterize", 2 / 30, 1, 8),
        ("trivialaugment", "solarize", 1.0, 1, 0),
        ("trivialaugment", "translate_y", 1.0, -1, -32),
        ("trivialaugment", "color", 1.0, 1, 1.99),
        ("trivialaugment", "rotate", 1.0, -1, -135),
    ],
)
def test_ranges(policy, name, strength, sign, expected):
    done, value = argument(policy, name, strength, sign)
    assert done == name
    assert value == pytest.approx(expected, rel=1e-5)


def test_what_does_not_happen_is_the_identity():
    assert argument("randaugment", "rotate", 0.9, happens=False)[0] == "identity"


def many(policy: str, **fields) -> Draws:
    draw = partial(policies.draw, Settings(policy=policy, **fields))
    return jax.tree.map(np.asarray, quick.jit(jax.vmap(draw))(keys(3000)))


def test_randaugment_draws_every_operation_equally_often_around_its_magnitude():
    draws = many("randaugment")
    counts = np.bincount(draws.operation.ravel())
    assert len(counts) == 15 and abs(counts - 400).max() < 80  # four standard deviations
    assert abs(np.corrcoef(draws.operation.T)[0, 1]) < 0.08
    assert draws.strength.max() == 1 and abs(np.median(draws.strength) - 0.9) < 0.004
    assert abs(np.quantile(draws.strength, 0.1587) - 0.85) < 0.005  # one standard deviation below
    assert abs(draws.happens.mean() - 0.5) < 0.03 and abs(draws.sign.mean()) < 0.06
    assert set(np.unique(draws.sign)) == {-1, 1}


def test_randaugments_fields():
    draws = many("randaugment", rand_layers=3, rand_magnitude=2.0, rand_magnitude_std=0.0, rand_probability=1.0)
    assert draws.operation.shape == (3000, 3) and draws.happens.all()
    np.testing.assert_allclose(draws.strength, 0.2)
    np.testing.assert_allclose(many("randaugment_tf", rand_magnitude=15.0, rand_magnitude_std=0.0).strength, 1.5)


def test_no_draw_exceeds_the_magnitude_or_ten():
    strength = many("randaugment", rand_magnitude=15.0).strength
    assert strength.max() == 1.5 and abs((strength == 1.5).mean() - 0.5) < 0.03
    assert abs(np.quantile(strength, 0.1587) - 1.45) < 0.005


@pytest.mark.parametrize("policy", ["randaugment", "randaugment_tf"])
def test_the_largest_magnitude_leaves_images(policy):
    """Arguments beyond 0..255 and shifts beyond the edge: still what the tables say of each pixel."""
    settings = Settings(policy=policy, rand_magnitude=30.0, rand_magnitude_std=0.0, rand_probability=1.0)
    image, color = jnp.asarray(np.arange(256).reshape(16, 16, 1), jnp.uint8), jnp.array([7], jnp.uint8)

    def after(name: str, sign: float) -> np.ndarray:
        draws = Draws(*(jnp.array([x]) for x in (RANDAUGMENT.index(name), 3.0, sign, True)))
        operation, values = policies.chosen(settings, draws, 16, 16)
        return np.asarray(operated(image, operation[0], values[0], color)).ravel()

    plain, less = np.arange(256), policy == "randaugment_tf"
    np.testing.assert_array_equal(after("posterize", 1.0), plain if less else 0 * plain)
    np.testing.assert_array_equal(after("solarize", 1.0), plain if less else 255 - plain)
    added = np.minimum(plain + (330 if less else 128), 255)
    np.testing.assert_array_equal(after("solarize_add", 1.0), np.where(plain < 128, added, plain))
    np.testing.assert_array_equal(after("translate_x", 1.0), np.full(256, 7))
    brighter = np.minimum(plain * (5.5 if less else 3.7), 255)
    np.testing.assert_allclose(after("brightness", 1.0), brighter, atol=1)


def test_trivialaugment_draws_one_of_14_operations_of_31_strengths():
    draws = many("trivialaugment")
    assert draws.operation.shape == (3000, 1) and draws.happens.all()
    assert len(TRIVIALAUGMENT) == 14 and set(np.unique(draws.operation)) == set(range(14))
    np.testing.assert_allclose(np.unique(draws.strength), np.arange(31) / 30, atol=1e-6)


@pytest.mark.parametrize("policy", ["autoaugment_imagenet", "autoaugment_cifar10"])
def test_autoaugment_draws_rows_of_its_table(policy):
    table = policies.AUTOAUGMENT_IMAGENET if policy.endswith("net") else policies.AUTOAUGMENT_CIFAR10
    operation, probability, strength = policies.parse(table)
    assert operation.shape == (25, 2)
    draws = many(policy)
    rows = {(*pair, *s) for pair, s in zip(operation.tolist(), strength.tolist(), strict=True)}
    assert {(*pair, *s) for pair, s in zip(draws.operation.tolist(), draws.strength.tolist(), strict=True)} == rows
    assert abs(draws.happens.mean() - probability.mean()) < 0.03


def test_autoaugment_tables_by_the_paper():
    operation, probability, strength = policies.parse(policies.AUTOAUGMENT_IMAGENET)
    counts = dict(zip(AUTOAUGMENT, np.bincount(operation.ravel(), minlength=14).tolist(), strict=True))
    assert {name: n for name, n in counts.items() if n} == {
        **{"equalize": 17, "color": 6, "rotate": 6, "posterize": 5, "solarize": 7, "invert": 3, "contrast": 2},
        **{"autocontrast": 2, "sharpness": 1, "shear_x": 1},
    }
    assert probability.sum() == pytest.approx(31) and (9 * strength).sum() == pytest.approx(287)
    operation, probability, strength = policies.parse(policies.AUTOAUGMENT_CIFAR10)
    counts = dict(zip(AUTOAUGMENT, np.bincount(operation.ravel(), minlength=14).tolist(), strict=True))
    assert counts["equalize"] == 9 and counts["autocontrast"] == 7 and counts["translate_y"] == 5
    assert counts["brightness"] == 4 and counts["color"] == 5
    assert probability.sum() == pytest.approx(26.5) and (9 * strength).sum() == pytest.approx(267)


GOLDEN = {  # of versions that drew from the list of all operations
    "randaugment": ["brightness posterize", "color shear_y", "brightness equalize"],
    "trivialaugment": ["translate_x", "identity", "shear_x"],
    "autoaugment_imagenet": ["color contrast", "rotate equalize", "rotate solarize"],
    "autoaugment_cifar10": ["equalize invert", "equalize autocontrast", "equalize equalize"],
}


@pytest.mark.parametrize("policy", GOLDEN)
def test_draws_are_those_of_before_and_a_new_operation_changes_none(policy):
    augment.register("test_negative", lambda key, image: 255 - image, stage="colour")
    draw = quick.jit(jax.vmap(partial(policies.draw, Settings(policy=policy, extra=("test_negative",)))))
    operations = draw(keys(3, seed=1)).operation.tolist()
    assert [" ".join(POLICIES[policy][0][i] for i in row) for row in operations] == GOLDEN[policy]


def test_the_list_of_all_operations_may_grow_anywhere(monkeypatch):
    settings = Settings(policy="randaugment")

    def drawn() -> Draws:
        return quick.jit(partial(policies.draw, settings))(jax.random.key(1))

    draws = drawn()
    before = [OPERATIONS[i] for i in policies.chosen(settings, draws, H, W)[0]]
    longer = ("test_new", *OPERATIONS[::-1])
    monkeypatch.setattr("vit_jax.augment.operations.OPERATIONS", longer)
    again = drawn()
    jax.tree.map(np.testing.assert_array_equal, draws, again)
    assert [longer[i] for i in policies.chosen(settings, again, H, W)[0]] == before


def test_operations_follow_one_another():
    settings = Settings(policy="randaugment", rand_layers=2, rand_probability=1.0)
    images, some_keys = pictures(7), keys(7, seed=3)
    color = jnp.array([1, 2, 3], jnp.uint8)
    choose = quick.jit(jax.vmap(lambda key: policies.chosen(settings, policies.draw(settings, key), 17, 19)))
    step = quick.jit(jax.vmap(operate, (0, 0, 0, None)))
    expected = images
    for operation, value in zip(*(column.T for column in choose(some_keys)), strict=True):
        expected = step(expected, operation, value, color)
    found = quick.jit(jax.vmap(lambda k, x: policies.apply_policy(settings, k, x, color)))(some_keys, images)
    np.testing.assert_array_equal(found, expected)
    assert (np.asarray(found) != np.asarray(images)).any(axis=(1, 2, 3)).all()
