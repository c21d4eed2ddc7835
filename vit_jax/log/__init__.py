"""What a person sees of a run and what is written about it: metric files, progress, tables, warnings.

`writers` keeps `metrics.jsonl` and TensorBoard files, `progress` the bar and its time left, `tables` what is printed
before and after training, `diagnosis` the warnings about a model that learns nothing, `human` numbers with units.
"""

from dataclasses import dataclass

from vit_jax.command import UserError
from vit_jax.flops import human as human_count
from vit_jax.log.diagnosis import diagnose
from vit_jax.log.human import human_bytes, human_percent, human_seconds
from vit_jax.log.progress import Progress
from vit_jax.log.tables import overview, result_table
from vit_jax.log.writers import MetricsWriter, read_metrics

__all__ = [
    "MetricsWriter",
    "Progress",
    "Settings",
    "diagnose",
    "human_bytes",
    "human_count",
    "human_percent",
    "human_seconds",
    "overview",
    "read_metrics",
    "result_table",
]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The config group `log`."""

    every_steps: int = 50  # steps between two writes of the training metrics; each one waits for the device
    tensorboard: bool = True

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise UserError(f"log.every_steps={self.every_steps} must be at least 1; 50 is the default")
