"""The energy meter against counters that the test turns."""

import ctypes

import pytest

from vit_jax import energy


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A machine with one CPU package, whose counter wraps around at 10 J."""
    folder = tmp_path / "intel-rapl:0"
    for name in (folder, tmp_path / "intel-rapl:0:0", tmp_path / "intel-rapl:1"):  # a part of the first; the platform
        name.mkdir()
        (name / "name").write_text("psys\n" if name.name.endswith("rapl:1") else "package-0\n")
        (name / "energy_uj").write_text("9000000\n")
        (name / "max_energy_range_uj").write_text("10000000\n")
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    return folder / "energy_uj"


class Nvml(ctypes.CDLL):
    """NVML as far as the meter calls it: four GPUs, whose counters stand at 0 mJ, 1,000 mJ ... until they are turned.

    Handles are counted from 1, since ctypes takes 0 for none.
    """

    uuids = ("GPU-8932f937-d72c", "GPU-8a001122-0000", "GPU-77abcdef-1111", "GPU-00000000-2222")
    without_counter = ()
    lost = None

    def __init__(self):
        self.millijoules = [1000 * i for i in range(len(self.uuids))]

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = len(self.uuids)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, i, handle):
        handle._obj.value = None if i == self.lost else i + 1
        return 15 if i == self.lost else 0  # NVML_ERROR_GPU_IS_LOST

    def nvmlDeviceGetUUID(self, handle, uuid, size):
        if not handle.value:
            return 2  # NVML_ERROR_INVALID_ARGUMENT
        assert size == len(uuid) == 96
        uuid.value = self.uuids[handle.value - 1].encode()
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, energy):
        if not handle.value or handle.value - 1 in self.without_counter:
            return 3  # NVML_ERROR_NOT_SUPPORTED
        energy._obj.value = self.millijoules[handle.value - 1]
        return 0


@pytest.fixture
def nvml(monkeypatch):
    found = Nvml()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: {"libnvidia-ml.so.1": found}[name])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return found


def test_counts_from_its_creation_and_over_the_end_of_the_counter(package):
    meter = energy.Meter("cpu")
    assert meter.kwh() == 0
    package.write_text("9500000")
    assert meter.kwh() == pytest.approx(0.5 / 3.6e6)
    package.write_text("2500000")  # 9.5 -> 10 -> 2.5
    assert meter.kwh() == pytest.approx(3.5 / 3.6e6)


def test_a_machine_without_counters_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "RAPL", tmp_path / "nothing")
    assert energy.Meter("cpu").kwh() is None


def test_a_counter_that_may_not_be_read_is_left_out(package):
    package.unlink()
    assert energy.Meter("cpu").kwh() is None


@pytest.mark.parametrize(
    ("listed", "joules"),
    [
        (None, 1111),
        ("0,1,2,3", 1111),
        ("2", 100),
        ("3,1", 1010),
        (" 1 , 2", 110),
        ("GPU-8932f937-d72c", 1),
        ("GPU-8a,GPU-77", 110),
        ("0,2,-1,1", 101),  # up to the first that is unknown
        ("0,,1", 1),
        ("1,7", 10),
        ("1,GPU-8", 10),  # the beginning of two
    ],
)
def test_the_gpus_that_the_run_sees_are_counted(nvml, monkeypatch, listed, joules):
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    meter = energy.Meter("gpu")
    assert meter.kwh() == 0
    for i in range(4):
        nvml.millijoules[i] += 1000 * 10**i
    assert meter.kwh() == pytest.approx(joules / 3.6e6)


@pytest.mark.parametrize("listed", ["", "-1", "MIG-8932f937-d72c", "GPU-9"])
def test_gpus_without_a_counter_tell_nothing_and_packages_do_not_stand_in(nvml, package, monkeypatch, listed):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert energy.Meter("gpu").kwh() is None
    assert energy.Meter("tpu").kwh() is None


def test_a_gpu_that_cannot_count_is_left_out(nvml, monkeypatch):
    monkeypatch.setattr(nvml, "without_counter", (0, 1))
    meter = energy.Meter("gpu")
    nvml.millijoules = [5000] * 4
    assert meter.kwh() == pytest.approx((3 + 2) / 3.6e6)
    monkeypatch.setattr(nvml, "without_counter", range(4))
    assert energy.Meter("gpu").kwh() is None


def test_a_lost_gpu_keeps_its_number(nvml, monkeypatch):
    nvml.lost = 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    meter = energy.Meter("gpu")
    nvml.millijoules = [9000] * 4
    assert meter.kwh() == pytest.approx(7 / 3.6e6)


def test_packages_are_counted_beside_idle_gpus(nvml, package):
    meter = energy.Meter("cpu")
    nvml.millijoules = [5000] * 4
    package.write_text("9500000")
    assert meter.kwh() == pytest.approx(0.5 / 3.6e6)


def test_a_machine_without_nvml_tells_nothing(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert energy.Meter("gpu").kwh() is None
