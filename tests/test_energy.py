"""The energy meter against a counter that the test turns."""

import pytest

from vit_jax import energy


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A machine with one CPU package, whose counter wraps around at 10 J, and no GPU."""
    folder = tmp_path / "intel-rapl:0"
    for name in (folder, tmp_path / "intel-rapl:0:0"):  # the second is a part of the first
        name.mkdir()
        (name / "energy_uj").write_text("9000000\n")
        (name / "max_energy_range_uj").write_text("10000000\n")
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    monkeypatch.setattr(energy, "_nvml_handles", list)
    return folder / "energy_uj"


def test_counts_from_its_creation_and_over_the_end_of_the_counter(package):
    meter = energy.Meter()
    assert meter.kwh() == 0
    package.write_text("9500000")
    assert meter.kwh() == pytest.approx(0.5 / 3.6e6)
    package.write_text("2500000")  # 9.5 -> 10 -> 2.5
    assert meter.kwh() == pytest.approx(3.5 / 3.6e6)


def test_a_machine_without_counters_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "RAPL", tmp_path / "nothing")
    monkeypatch.setattr(energy, "_nvml_handles", list)
    assert energy.Meter().kwh() is None


def test_a_counter_that_may_not_be_read_is_left_out(package):
    package.unlink()
    assert energy.Meter().kwh() is None
