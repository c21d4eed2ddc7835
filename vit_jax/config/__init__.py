"""The configuration of a run: its schema with every default, and the one parser of config files and overrides.

A config file has `get_config(arg: str) -> ConfigDict`, which starts from `default()`, or with `run_file` from another
file's recipe, and changes what its paper or table states. `load` turns it, and `--config.<field>=<value>` overrides,
into a validated `Config`. No field is None.
"""

from vit_jax.config.effect import check_effect, check_evaluated, check_predicted, check_textured
from vit_jax.config.parse import choose, default, differences, from_dict, load, run_file, to_dict, to_json
from vit_jax.config.schema import Config, validate

__all__ = [
    "Config",
    "check_effect",
    "check_evaluated",
    "check_predicted",
    "check_textured",
    "choose",
    "default",
    "differences",
    "from_dict",
    "load",
    "run_file",
    "to_dict",
    "to_json",
    "validate",
]
