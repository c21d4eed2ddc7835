"""The config group `optim`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The config group `optim`."""

    name: str = "adamw"  # see `optimizers`
    lr: float = 1e-3  # peak learning rate
    schedule: str = "cosine"  # see `schedules`
    warmup_steps: int = 0  # with train.seconds a tenth of the run at most
    warmup_epochs: float = 0.0  # instead of warmup_steps
    warmup_start_lr: float = 0.0
    final_lr: float = 0.0  # cosine and linear end here
    step_epochs: tuple[float, ...] = ()  # step: multiplies by `factor` at each of these epochs
    factor: float = 0.1  # step: at each boundary; exponential: per epoch
    timescale_steps: int = 10_000  # rsqrt: lr falls as sqrt(timescale / (timescale + step))
    weight_decay: float = 0.0
    # Regular expression of the parameters that decay, and that lamb's trust ratio scales; ".*": all, "(?!)": none.
    decay: str = r"kernel$"
    b1: float = 0.9  # adamw, lion, lamb
    b2: float = 0.999  # adamw, lion (which wants 0.99), lamb
    epsilon: float = 1e-8
    momentum: float = 0.9  # sgd, rmsprop
    nesterov: bool = False  # sgd
    rms_decay: float = 0.9  # rmsprop
    clip_norm: float = 0.0  # global gradient norm; 0: off
    freeze: str = ""  # regular expression of the parameters that do not train; r"^(?!head/)": all but the last layer
    layer_decay: float = 1.0  # learning rate of each layer over that of the next: 0.65 to 0.9 for fine-tuning; 1: off
    head_warmup_steps: int = 0  # in which the head trains alone; train.seconds does not shorten them
    sam_rho: float = 0.0  # gradients from so far up the slope (SAM, Foret et al. 2021, arXiv:2010.01412); 0: off
    ema_decay: float = 0.0  # exponential moving average of the parameters, which evaluation then uses; 0: off
    ema_warmup: bool = False  # the decay begins low: (1 + t) / (10 + t) after t updates, until it is ema_decay
