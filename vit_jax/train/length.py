"""How many steps a run has: a number, or as many as fit into its time."""

from vit_jax.distributed import Agreement

UNKNOWN = 2**31 - 1  # of steps, before the first one was timed: the schedule stands at its beginning


class Length:
    """The number of steps of a run, which a time budget estimates anew at each step, from all steps so far.

    The learning rate thus follows the clock, and its decay ends with the time ("budgeted training", Li et al. 2020,
    arXiv:1905.04753). Several processes take the largest estimate of any of them.
    """

    def __init__(self, steps: int, seconds: float, agree: Agreement) -> None:
        """`steps` of the run, as far as they are known; `seconds` of training, 0 for a fixed number of steps."""
        self.steps = steps or UNKNOWN
        self.seconds = seconds
        self._agree = agree

    def update(self, at: int, seconds: float) -> None:
        """After step `at`, and so many seconds of training in all."""
        fitting = at * self.seconds / seconds if seconds > 0 else UNKNOWN
        heard = self._agree(max(1, int(min(fitting, UNKNOWN))))
        self.steps = max(at, heard or self.steps)  # until something is heard, as it was known
