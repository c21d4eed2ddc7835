"""The configuration of a run: its schema with every default, and the one parser of config files and overrides.

A config file has `get_config(arg: str) -> ConfigDict`, which starts from `default()`, or with `run_file` from another
file's recipe, and changes what its paper or table states. `load` turns it, and `--config.<field>=<value>` overrides,
into a validated `Config`. No field is None.
"""

from vit_jax.config.effect import check_effect, check_read
from vit_jax.config.older import rename_flags
from vit_jax.config.parse import differences, from_dict, to_dict, to_json
from vit_jax.config.recipe import choose, default, load, run_file, variants
from vit_jax.config.schema import Config, check_probes, validate
