"""The config group `optim`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from vit_jax.names import claim
from vit_jax.setting import setting

T = TypeVar("T")

# Of the fields that only some optimizers, and some schedules, read: those that each does; None: maybe all.
READS: dict[str, dict[str, tuple[str, ...] | None]] = {"name": {}, "schedule": {}}


def register(
    kind: str, chooser: str, known: dict[str, T], name: str, reads: tuple[str, ...] | None = None
) -> Callable[[T], T]:
    """Decorates the function for `optim.<chooser>=<name>`; raises `UserError` for a name that is taken.

    reads: those of the settings that it reads, of the ones that not every optimizer or schedule does: a flag that sets
    another is refused. None: none is.
    """

    def add(function: T) -> T:
        claim(kind, name, function, known.get(name))
        known[name], READS[chooser][name] = function, reads
        return function

    return add


def reads(chooser: str, name: str, field: str) -> bool:
    """Whether the optimizer ("name") or the "schedule" of this name reads the field."""
    fields = READS[chooser][name]
    return fields is None or field in fields


def _if_read(field: str, chooser: str = "name", *, other: str = "", also: str = "") -> Callable[[], str]:
    """The condition that a chosen optimizer or schedule reads the field, `or` the other, `and` also holds."""

    def condition() -> str:
        readers = [f"optim.{chooser}={name}" for name in READS[chooser] if reads(chooser, name, field)]
        return " and ".join(filter(None, [" or ".join(filter(None, [other, *readers])), also]))

    return condition


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The config group `optim`."""

    name: str = setting("adamw", choices=lambda: READS["name"])  # see `optimizers`
    lr: float = 1e-3  # peak learning rate
    schedule: str = setting("cosine", choices=lambda: READS["schedule"])  # of the learning rate, after the warm-up
    warmup_steps: int = 0  # with train.seconds a tenth of the run at most
    warmup_epochs: float = 0.0  # instead of warmup_steps
    warmup_start_lr: float = setting(0.0, active_if="optim.warmup_steps or optim.warmup_epochs")  # its first rate
    final_lr: float = setting(0.0, active_if=_if_read("final_lr", "schedule"))  # where these end
    # The learning rate is multiplied by `factor` at each of these.
    step_epochs: tuple[float, ...] = setting((), active_if=_if_read("step_epochs", "schedule"))
    # step: at each boundary; exponential: per epoch.
    factor: float = setting(0.1, active_if=_if_read("factor", "schedule"))
    # lr falls as sqrt(timescale / (timescale + step))
    timescale_steps: int = setting(10_000, active_if=_if_read("timescale_steps", "schedule"))
    # wsd: share of the steps after the warm-up in which the rate falls.
    cooldown: float = setting(0.2, active_if=_if_read("cooldown", "schedule"))
    weight_decay: float = 0.0  # 0: off
    # Where weight decay ends, from weight_decay at the start, as half a cosine (DINO); 0: it stays.
    final_weight_decay: float = 0.0
    # Regular expression of the parameters that decay, and that lamb's trust ratio scales; ".*": all, "(?!)": none.
    decay: str = setting(r"kernel$", active_if=_if_read("decay", other="optim.weight_decay"))
    b1: float = setting(0.9, active_if=_if_read("b1"))
    b2: float = setting(0.999, active_if=_if_read("b2"))  # lion wants 0.99
    epsilon: float = setting(1e-8, active_if=_if_read("epsilon"))
    momentum: float = setting(0.9, active_if=_if_read("momentum"))
    nesterov: bool = setting(False, active_if=_if_read("nesterov", also="optim.momentum"))
    # Regular expression of the kernels that muon makes orthogonal; Adam updates all else.
    muon: str = setting(r"^(?!head|embedding/).*kernel$", active_if=_if_read("muon"))
    muon_per_head: bool = setting(False, active_if=_if_read("muon_per_head"))  # each head's q, k and v by itself
    # Leave out what the gradient speaks against (Liang et al. 2024, arXiv:2411.16085, alg. 1).
    cautious: bool = setting(False, active_if=_if_read("cautious"))
    rms_decay: float = setting(0.9, active_if=_if_read("rms_decay"))
    clip_norm: float = 0.0  # global gradient norm; 0: off
    freeze: str = ""  # regular expression of the parameters that do not train; r"^(?!head/)": all but the last layer
    # Learning rates of parameters, "EXPRESSION=FACTOR" each; the first that is found in a path counts: "^head/=0.5".
    lr_factors: tuple[str, ...] = ()
    layer_decay: float = 1.0  # learning rate of each layer over that of the next: 0.65 to 0.9 for fine-tuning; 1: off
    head_warmup_steps: int = 0  # in which the head trains alone; train.seconds does not shorten them
    sam_rho: float = 0.0  # gradients from so far up the slope (SAM, Foret et al. 2021, arXiv:2010.01412); 0: off
    # Exponential moving average of the parameters, which evaluation then uses; 0: off.
    ema_decay: float = setting(0.0, read_by="evaluate texture predict")
    ema_warmup: bool = False  # the decay begins low: (1 + t) / (10 + t) after t updates, until it is ema_decay
    # Schedule-free training (Defazio et al. 2024, arXiv:2405.15682): evaluation uses the mean of all parameters so far.
    # With 0.9 gradients are taken at 0.9 times the mean plus 0.1 times the newest parameters; 0: off.
    schedule_free: float = setting(0.0, read_by="evaluate texture predict")

    @property
    def averages(self) -> bool:
        """Whether training keeps an average of the parameters, for evaluation."""
        return self.ema_decay > 0 or self.schedule_free > 0
