"""Settings that are out of range, or do not fit a model."""

import jax
import pytest

from tests.optim.small import FINE_TUNING, NAMES, SETTINGS, random_tree
from vit_jax import optim, trees
from vit_jax.command import UserError
from vit_jax.optim import Settings


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
        (
            {"name": "adam"},
            "optim.name='adam' is unknown; choose from adamw, sgd, rmsprop, lion, lamb, adafactor, muon$",
        ),
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
        ({"schedule_free": 1.0}, r"optim.schedule_free=1.0 is not in"),
        (
            {"schedule_free": 0.9},
            "optim.schedule_free=0.9 with optim.schedule=cosine: .*; set optim.schedule=const",
        ),
        ({"schedule_free": 0.9, "schedule": "constant"}, "with optim.b1=0.9: .*; set optim.b1=0.0"),
        ({"schedule_free": 0.9, "schedule": "constant", "name": "sgd"}, "with optim.momentum=0.9: .*; set optim.mom"),
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
