"""Energy used by a run's GPUs (NVML) or this machine's CPU packages (RAPL), from the hardware's own counters."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

JOULES_PER_KWH = 3.6e6
RAPL = Path("/sys/class/powercap")
UUID_BYTES = 96  # of NVML's buffer for one


class Meter:
    """Counts the energy of the devices that compute, from its creation; without a readable counter nothing (None).

    platform: JAX's name of theirs: of `gpu` it counts the GPUs that CUDA shows to this process, of `cpu` the packages.
    """

    def __init__(self, platform: str) -> None:
        self._platform = platform
        self._gpus = _nvml_handles() if platform == "gpu" else []
        self._last = self._read()
        self._joules = 0.0

    def kwh(self) -> float | None:
        """Energy since creation; call it at least every few minutes, since RAPL's counters wrap around."""
        now = self._read()
        if now is None or self._last is None:
            return None
        for name, (joules, wraps_at) in now.items():
            used = joules - self._last.get(name, (joules, 0))[0]
            self._joules += used if used >= 0 else used + wraps_at
        self._last = now
        return self._joules / JOULES_PER_KWH

    def _read(self) -> dict[str, tuple[float, float]] | None:
        """Joules so far and where the counter wraps around, by counter."""
        if self._platform == "cpu":
            return _rapl() or None
        return {f"gpu{i}": (joules, 0.0) for i, joules in enumerate(_nvml_joules(self._gpus))} or None


def _rapl() -> dict[str, tuple[float, float]]:
    found = {}
    for folder in RAPL.glob("intel-rapl:[0-9]*") if RAPL.is_dir() else ():
        if folder.name.count(":") == 1:  # packages, not their parts
            try:
                if not (folder / "name").read_text().startswith("package"):
                    continue  # psys, which counts the packages once more
                microjoules = [int((folder / f).read_text()) for f in ("energy_uj", "max_energy_range_uj")]
            except (OSError, ValueError):
                continue
            found[folder.name] = (microjoules[0] / 1e6, microjoules[1] / 1e6)
    return found


def _nvml_handles() -> list[tuple[ctypes.CDLL, ctypes.c_void_p]]:
    """The GPUs that CUDA shows to this process."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    count = ctypes.c_uint()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    handles, uuids = [], []
    for i in range(count.value):
        handle, uuid = ctypes.c_void_p(), ctypes.create_string_buffer(UUID_BYTES)
        nvml.nvmlDeviceGetHandleByIndex_v2(i, ctypes.byref(handle))  # of a lost GPU none, which then has no counter
        nvml.nvmlDeviceGetUUID(handle, uuid, UUID_BYTES)
        handles.append((nvml, handle))
        uuids.append(uuid.value.decode())
    return [handles[i] for i in visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), uuids)]


def visible_gpus(listed: str | None, uuids: Sequence[str]) -> list[int]:
    """The GPUs, by their place among `uuids`, that `listed`, CUDA_VISIBLE_DEVICES, shows; None: all.

    It holds numbers, or beginnings of UUIDs ("GPU-8932f937"); what follows an unknown one is not shown (CUDA C++
    Programming Guide, "CUDA Environment Variables"). A part of a GPU ("MIG-...") has no counter: taken for unknown.
    Numbers count as NVML does, by PCI bus: where GPUs of several kinds are mixed, CUDA_DEVICE_ORDER=PCI_BUS_ID makes
    CUDA do so, too.
    """
    if listed is None:
        return list(range(len(uuids)))
    found: list[int] = []
    for name in map(str.strip, listed.split(",")):
        matching = [i for i, uuid in enumerate(uuids) if name == str(i) or uuid.startswith(name or " ")]
        if len(matching) != 1:
            break
        found += matching
    return found


def _nvml_joules(handles: list[tuple[ctypes.CDLL, ctypes.c_void_p]]) -> list[float]:
    found = []
    for nvml, handle in handles:
        millijoules = ctypes.c_ulonglong()
        if not nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
            found.append(millijoules.value / 1e3)
    return found
