"""What augmentation costs: shares of a real step, and a loop's body counted as often as it turns."""

from dataclasses import dataclass
from typing import Any

import pytest

from benchmarks import augmentation
from benchmarks.ours import Ours
from benchmarks.workloads import Case


@dataclass
class Counted:
    """A contender whose step the compiler gave these operations; as many bytes, times ten."""

    flops: float

    @property
    def step(self) -> "Counted":
        return self

    def cost_analysis(self) -> dict[str, float]:
        return {"flops": self.flops, "bytes accessed": 10 * self.flops}


def test_a_policy_of_two_operations_counts_twice() -> None:
    plain, randaugment, trivial = "crop and flip", "... and RandAugment(2, 9)", "... and TrivialAugment"
    steps: dict[str, Any] = {name: Counted(f) for name, f in {plain: 10.0, randaugment: 13.0, trivial: 13.0}.items()}
    found = augmentation.costs(steps)
    assert [found[name]["flops"] for name in steps] == [10.0, 16.0, 13.0]
    assert found[randaugment]["bytes"] == 160.0


def test_shares_are_medians_of_what_a_round_took_longer() -> None:
    steps: dict[str, Any] = {"none": Counted(10.0), "crop and flip": Counted(40.0)}
    rows = augmentation.rows(steps, {"none": [1.0, 2.0, 1.0], "crop and flip": [2.0, 2.0, 4.0]})
    assert [row["shares"]["flops"] for row in rows] == [0.0, 0.75]
    assert [row["shares"]["seconds"] for row in rows] == [0.0, 0.5]


@pytest.fixture(scope="module")
def steps() -> dict[str, Ours]:
    """Of the smallest published model, on images of 32 pixels."""
    case = Case("vit/mu16", "train", "float32", batch_size=4, image_size=32)
    return {name: Ours(case, ["model.depth=1", *augmentation.VIEWS[name]]) for name in list(augmentation.VIEWS)[:2]}


def test_a_view_costs_something(steps: dict[str, Ours]) -> None:
    for key in augmentation.COSTS:
        none, crop = (cost[key] for cost in augmentation.costs(steps).values())
        assert 0 < none < crop


def test_steps_take_turns(steps: dict[str, Ours], monkeypatch: pytest.MonkeyPatch) -> None:
    """There and back, so that a machine that slows down is on nobody's side."""
    turns, timed = [], augmentation.timed
    monkeypatch.setattr(augmentation, "timed", lambda step, number: turns.append(step) or timed(step, number))
    times = augmentation.in_turns(steps, rounds=2, number=1)
    assert list(times) == list(steps)
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in times.values())
    none, crop = steps.values()
    assert turns == [none, crop, crop, none]
