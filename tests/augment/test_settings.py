"""The config group: its defaults, and the errors that name a field."""

import dataclasses

import pytest

from tests.augment.pictures import keys, pictures
from vit_jax import augment
from vit_jax.augment import Settings
from vit_jax.command import UserError


def test_the_defaults_fit_the_config_schema_and_are_valid():
    augment.check(Settings())
    for field in dataclasses.fields(Settings):
        assert isinstance(field.default, int | float | str | tuple), field.name


OUT_OF_RANGE = {
    **{"flip": (1.5, float("nan")), "erasing": (-0.1,), "grey": (1.5,), "blur": (-1.0,), "rand_probability": (2.0,)},
    **{"mix_probability": (1.5,), "mix_switch": (-0.5,), "mixup": (-0.8,), "cutmix": (float("inf"),)},
    **{"interpolation": ("cubic",), "fill": ("black",), "erasing_fill": ("mean",), "policy": ("randaugment2",)},
    **{"resize": ((0,), (8, 8, 3)), "crop_padding": (-1,), "rotation": (-5.0,), "shear": (90.0,), "cutout": (-1, 5)},
    **{"zoom": ((1.0,), (0.1, 0.1, 0.1)), "translation": ((1.5,),), "blur_sigma": ((0.0, 1.0),)},
    **{"erasing_area": ((0.4, 0.02), (0.2,)), "erasing_aspect": ((0.0, 1.0),)},
    **{"crop_area": ((0.0, 1.0), (0.5,), (0.5, 1.5)), "crop_aspect": ((4 / 3, 3 / 4),)},
    **{"rand_layers": (0,), "rand_magnitude": (30.5,), "rand_magnitude_std": (-0.5,)},
    **{"brightness": (-0.1,), "saturation": (float("inf"),), "hue": (0.6,)},
    **{"mean": ((0.5, 0.5), (127.5,)), "std": ((0.0,), (57.0,))},
}


@pytest.mark.parametrize(("field", "value"), [(field, x) for field, values in OUT_OF_RANGE.items() for x in values])
def test_check_names_the_field_and_the_value(field, value):
    settings = Settings(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    object.__setattr__(settings, field, value)  # past the suite's type checks, which users do not run
    with pytest.raises(UserError, match=rf"augment\.{field}=") as error:
        augment.check(settings)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("given", [{"mean": (0.5,)}, {"std": (0.5,)}])
def test_mean_and_std_go_together(given):
    with pytest.raises(UserError, match=r"augment\.mean=.*augment\.std"):
        augment.check(Settings(**given))


@pytest.mark.parametrize("mean", [(), (0.5, 0.5)])
def test_views_need_statistics_that_fit_the_channels(mean):
    settings = Settings(mean=mean, std=(0.2,))
    with pytest.raises(UserError, match=r"augment\.mean=.*3 channels"):
        augment.eval_view(settings, pictures())
    with pytest.raises(UserError, match=r"augment\.mean=.*3 channels"):
        augment.train_view(settings, pictures(), keys(5))
